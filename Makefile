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

# One process for each core, one thread for each process: threads that wait for each other cost more than they bring.
test: setup
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

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
