"""`lipscope study`: rerun a claim on small data."""

from __future__ import annotations

import json as json_format
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lipscope.claims.errors import Interrupted, UsageError
from lipscope.cli.console import Json, print_json, progress, stderr

if TYPE_CHECKING:
    from lipscope.studies.study import Outcome


def command(
    name: Annotated[str | None, typer.Argument(help="The study; without a name all are listed.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, a setting other than the default; can be repeated.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write the result, with its environment, to this file.")
    ] = None,
    json: Json = False,
) -> None:
    """Rerun the study NAME on small data and say whether its claim holds: true, false, or null if it cannot tell."""
    from lipscope.certificate.files import write_file
    from lipscope.studies.environment import environment
    from lipscope.studies.study import find

    if name is None:
        if changes or output:
            raise UsageError("expected the name of a study with --set or -o; `lipscope study` alone lists them")
        _list(json)
        return
    study = find(name)
    settings = study.read(changes or [])
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise UsageError(f"expected a file in a folder that exists for the result, got {output}")
    with progress() as report:
        outcome = study.run(settings, report)
    document = outcome.to_json(name)
    try:
        if output is not None:
            again = shlex.join(["lipscope", "study", name, *(f"--set={change}" for change in changes or [])])
            stored = {**document, "environment": environment(), "command": again}
            write_file(output, (json_format.dumps(stored, indent=2) + "\n").encode())
    finally:  # a file that cannot be written takes nothing away from the answer
        print_json(document)
        if not json:
            _show(outcome)
    if outcome.interrupted:
        raise typer.Exit(Interrupted.exit_code)


def _list(json: bool) -> None:
    """All studies with their claims, on stderr, or as JSON on stdout."""
    from lipscope.studies.study import find, names

    claims = {name: find(name).claim for name in names()}
    if json:
        print_json({"studies": [{"study": name, "claim": claim} for name, claim in claims.items()]})
        return
    table = Table("study", "claim", box=None, pad_edge=False)
    for name, claim in claims.items():
        table.add_row(name, claim)
    stderr().print(table)


def _show(outcome: Outcome) -> None:
    """The verdict in words, on stderr; the figures are on stdout."""
    verdict = {True: "the claim holds", False: "the claim does NOT hold", None: "this run cannot tell"}[outcome.holds]
    stopped = ", stopped by you; the figures are those that were reached" if outcome.interrupted else ""
    stderr().print(f"{outcome.claim}\n{verdict}{stopped} ({outcome.seconds:.1f} s)", markup=False, soft_wrap=True)
