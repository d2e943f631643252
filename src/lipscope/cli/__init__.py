"""The command line: one file per command, no mathematics. `main` is the entry point."""

from __future__ import annotations

import sys

import typer

from lipscope.claims.errors import Interrupted, LipscopeError, ResourceError
from lipscope.cli import bound, check, demo, inspect, report, runs, spectrum, study, ui
from lipscope.cli.console import complain

app = typer.Typer(
    name="lipscope",
    help="Prove, follow, explain and shape the Lipschitz continuity of neural networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (inspect, bound, check, spectrum, report, ui, study, runs, demo):
    app.command(name=command.__name__.rpartition(".")[2])(command.command)


@app.callback()
def _options() -> None:
    """Commands read a model or a bundle and print tables to stderr; `--json` prints one JSON object to stdout."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with the exit code of docs/command-line.md."""
    code: str | int | None
    try:
        code = app(args=arguments, prog_name="lipscope")
    except SystemExit as left:  # typer leaves by itself, after its own words about wrong options
        code = left.code
    except KeyboardInterrupt:
        code = SHELL_INTERRUPT
    except MemoryError:
        code = complain("out of memory: try a smaller model or another machine", ResourceError.exit_code)
    except LipscopeError as error:
        code = complain(str(error), error.exit_code)
    sys.exit(_stopped() if code == SHELL_INTERRUPT else code)


SHELL_INTERRUPT = 130
"""What typer makes of Ctrl-C."""


def _stopped() -> int:
    return complain("stopped before anything was reached", Interrupted.exit_code)


if __name__ == "__main__":
    main()
