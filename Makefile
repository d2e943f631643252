# The one list of tasks. Everything runs in .venv, which `setup` makes from pyproject.toml and constraints.txt.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: setup demo test lint types contracts docs check clean

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch .venv/.ready

setup: .venv/.ready

demo: setup
	$(BIN)/lipscope demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports

docs: setup
	$(BIN)/mkdocs build --strict --quiet

check: lint types contracts docs test

clean:
	rm -rf .venv build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
