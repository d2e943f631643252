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
    bundle: Annotated[Path, typer.Argument(help="A folder that `-o` wrote: a bundle, or one with bundles in it.")],
    json: Json = False,
) -> None:
    """Check every claim of BUNDLE with the independent checker; exit code 0 only if all are proved."""
    from lipscope.api import check

    inside = [] if (bundle / "bundle.json").exists() else sorted(p.parent for p in bundle.glob("*/bundle.json"))
    verdicts = {}
    with progress() as report:
        for folder in inside or [bundle]:
            verdicts[folder.name] = check(folder, report)
    accepted = all(verdict.accepted for verdict in verdicts.values())
    if json and inside:
        print_json({"accepted": accepted, "bundles": {name: v.document for name, v in verdicts.items()}})
    elif json:
        print_json(verdicts[bundle.name].document)
    else:
        for name, verdict in verdicts.items():
            if inside:
                stderr().print(f"{name}:", markup=False, soft_wrap=True)
            show(verdict)
    if not accepted:
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
