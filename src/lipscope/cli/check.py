"""`lipscope check`: the independent checker on a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lipscope.claims.errors import LipscopeError
from lipscope.cli.console import Json, print_json, progress, stderr

if TYPE_CHECKING:
    from lipcheck import Verdict


def command(
    bundle: Annotated[Path, typer.Argument(help="The folder that `lipscope bound -o` wrote.")],
    json: Json = False,
) -> None:
    """Check every claim of BUNDLE with the independent checker; exit code 0 only if all are proved."""
    from lipscope.api import check

    with progress() as report:
        verdict = check(bundle, report)
    if json:
        print_json(verdict.document)
    else:
        show(verdict)
    if not verdict.accepted:
        raise typer.Exit(LipscopeError.exit_code)


def show(verdict: Verdict) -> None:
    """The verdict on stderr."""
    console = stderr()
    for side, part in (("upper", verdict.upper), ("lower", verdict.lower)):
        value = part["value"]
        shown = "" if value is None else f"  {float.fromhex(value['float']):.9g}"
        console.print(f"{side}  {part['status']}{shown}", markup=False)
        for reason in part["reasons"]:
            console.print(f"       {reason}", markup=False, soft_wrap=True)
    console.print("accepted" if verdict.accepted else "REJECTED: not every claim of the bundle is proved")
