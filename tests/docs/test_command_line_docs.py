"""Every command and each of its options is documented, and the documentation tells of no other."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer

from harness.pages import read, section
from lipscope.bounds.auto import METHODS
from lipscope.claims import errors
from lipscope.cli import app

PAGE = "docs/command-line.md"
COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]


def options(command: Any) -> set[str]:
    """All spellings of a command's options."""
    return {spelling for p in command.params if p.param_type_name == "option" for spelling in p.opts + p.secondary_opts}


def told(text: str) -> set[str]:
    """The options that stand in backticks in a text."""
    return {word for code in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"(?<![\w-])--?[a-z][\w-]*", code)}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_stands_in_the_section_of_its_command(name: str) -> None:
    text = section(PAGE, f"lipscope {name}")
    missing = options(COMMANDS[name]) - told(text) - {"--help"}
    assert not missing, f"lipscope {name}: {sorted(missing)} are not documented"


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_is_invented(name: str) -> None:
    table = "\n".join(line for line in section(PAGE, f"lipscope {name}").splitlines() if line.startswith("| `-"))
    left = {word for line in table.splitlines() for word in told(line.split("|")[1])}
    assert left and left <= options(COMMANDS[name]), sorted(left - options(COMMANDS[name]))


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_are_those_of_the_code(name: str) -> None:
    rows = [line.split(" | ") for line in section(PAGE, f"lipscope {name}").splitlines() if line.startswith("| `-")]
    documented = {word: row[1].strip(" `") for row in rows if len(row) == 3 for word in told(row[0])}
    for parameter in COMMANDS[name].params:
        shown = {documented[word] for word in parameter.opts if documented.get(word)}
        if shown:
            assert shown == {
                f"{parameter.default:g}" if isinstance(parameter.default, float) else str(parameter.default)
            }


def test_the_list_of_commands_is_complete() -> None:
    assert set(re.findall(r"^\| \[`(\w+)`\]", read(PAGE), re.MULTILINE)) == set(COMMANDS)
    assert set(re.findall(r"^## lipscope (\w+)", read(PAGE), re.MULTILINE)) == set(COMMANDS)


def test_every_method_is_named_and_no_other() -> None:
    rows = [line for line in section(PAGE, "lipscope bound").splitlines() if line.startswith("| `--method`")]
    assert len(rows) == 1
    named = set(re.findall(r"`([\w-]+)`", rows[0])) - {"--method"}
    assert named == {"auto", *(method.name for method in METHODS)}


def test_each_command_and_option_has_help() -> None:
    for name, command in COMMANDS.items():
        assert command.help, name
        without = [p.name for p in command.params if not getattr(p, "help", None)]
        assert not without, f"lipscope {name}: {without}"


def test_every_exit_code_is_documented() -> None:
    rows = re.findall(r"^\| (\d) \|", section(PAGE, "Exit codes"), re.MULTILINE)
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LipscopeError)
    ]
    assert {0, *(kind.exit_code for kind in kinds)} == set(map(int, rows))
    assert rows == ["0", "1", "2", "3", "4", "5"]
