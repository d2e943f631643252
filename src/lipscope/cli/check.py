"""`lipscope check`: the independent checker on a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipscope.claims.errors import LipscopeError, UsageError
from lipscope.cli.console import Json, print_json, progress, stderr


def command(
    bundle: Annotated[Path, typer.Argument(help="The folder that `lipscope bound -o` wrote.")],
    json: Json = False,
) -> None:
    """Check every claim of BUNDLE with the independent checker; exit code 0 only if all are proved."""
    import lipcheck

    with progress() as report:
        try:
            verdict = lipcheck.check(bundle, progress=report)
        except lipcheck.Unreadable as error:
            raise UsageError(str(error)) from None
    if json:
        print_json(verdict.to_json())
    else:
        stderr().print(verdict.describe(), markup=False, soft_wrap=True)
    if not verdict.accepted:
        raise typer.Exit(LipscopeError.exit_code)
