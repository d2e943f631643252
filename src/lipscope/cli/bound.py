"""`lipscope bound`: the certified Lipschitz interval of a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lipscope.claims.errors import Interrupted, LipscopeError, ResourceError, UsageError
from lipscope.cli.console import (
    InputShape,
    Json,
    Mean,
    Model,
    Std,
    Weights,
    figure,
    print_json,
    progress,
    read_model,
    stderr,
)  # fmt: skip

if TYPE_CHECKING:
    from lipscope.certificate.pairs import Pairs
    from lipscope.certificate.result import Result


def command(
    model: Model,
    norm: Annotated[str, typer.Option("--norm", help="l1, l2 or linf, of input and output.")] = "l2",
    region: Annotated[
        str, typer.Option("--region", help="everywhere, box:LO,HI, box:FILE.npz or ball:FILE.npz, in raw input units.")
    ] = "everywhere",
    output: Annotated[
        str,
        typer.Option("--output", help="all, I, I-J for a difference, counted from 0, or pairs for all differences."),
    ] = "all",
    method: Annotated[str, typer.Option("--method", help="auto, or the name of one method.")] = "auto",
    budget: Annotated[float, typer.Option("--budget", help="Seconds for the search; the check is not counted.")] = 60.0,
    memory: Annotated[
        str | None, typer.Option("--memory", help="Bytes that one part's matrices may take, as 500M or 2G.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option("-o", "--bundle", help="Folder for the bundle.")] = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Do not check; the bound is then only computed.")
    ] = False,
    json: Json = False,
    input_shape: InputShape = None,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
) -> None:
    """Prove an interval for the Lipschitz constant of MODEL and have it checked."""
    from lipscope.api import bound, bound_pairs
    from lipscope.certificate.bundle import try_folder
    from lipscope.certificate.pairs import MARKER

    limit, result = number_of_bytes(memory), None
    if bundle is not None:
        try_folder(bundle, *([MARKER] if output == "pairs" else []))
    with progress() as report:
        loaded = read_model(model, input_shape, weights, mean, std)
        if output == "pairs":
            pairs = bound_pairs(loaded, norm, region, method, budget, memory=limit, check=not no_check, progress=report)
        else:
            result = bound(
                loaded, norm, region, output, method, budget, memory=limit, check=not no_check, progress=report
            )
    if result is None:
        finish_pairs(pairs, bundle, json, no_check)
        return
    written: Path | None = None
    try:
        if bundle is not None:
            result, written = result.save(bundle, check=False), bundle
    finally:  # a bundle that cannot be written takes nothing away from the answer
        if json:
            print_json(result.to_json())
        else:
            show(result, written)
    if result.interrupted:
        raise typer.Exit(Interrupted.exit_code)
    if result.verdict is None and not no_check:  # no room for it, as a warning says
        raise typer.Exit(ResourceError.exit_code)
    if result.verdict is not None and not result.verdict["accepted"]:
        raise typer.Exit(LipscopeError.exit_code)


def finish_pairs(pairs: Pairs, bundle: Path | None, json: bool, no_check: bool) -> None:
    """Write, print and exit, for all differences of two outputs."""
    written: Path | None = None
    try:
        if bundle is not None:
            pairs, written = pairs.save(bundle, check=False), bundle
    finally:
        if json:
            print_json(pairs.to_json())
        else:
            show(pairs.whole)
            show_pairs(pairs, written)
    if pairs.interrupted:
        raise typer.Exit(Interrupted.exit_code)
    if not no_check and any(result.verdict is None for result in (pairs.whole, *pairs.pairs)):
        raise typer.Exit(ResourceError.exit_code)
    if not pairs.accepted:
        raise typer.Exit(LipscopeError.exit_code)


def show_pairs(pairs: Pairs, bundle: Path | None) -> None:
    """The table of all differences on stderr."""
    console = stderr()
    table = Table("outputs", "lower", "upper", "status", "by", box=None, pad_edge=False)
    for result in pairs.pairs:
        upper = result.upper
        table.add_row(
            result.problem.claim.output.text, figure(result.lower), figure(upper.value), upper.status, upper.method
        )
    console.print(table)
    if bundle is not None:
        console.print(f"bundles  {bundle}", soft_wrap=True)


def number_of_bytes(text: str | None) -> int | None:
    """A number of bytes, with K, M, G or T for powers of 1000.

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise UsageError(f"expected a number of bytes such as 500M or 2G for --memory, got {text!r}")
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " "))


def show(result: Result, bundle: Path | None = None) -> None:
    """The result as tables on stderr."""
    console, document = stderr(), result.to_json()
    upper, claim = result.upper, result.problem.claim
    for warning in result.warnings:
        console.print(f"[yellow]note:[/] {warning}")
    where = claim.region.kind if claim.region.kind == "everywhere" else f"on the {claim.region.kind}"
    of = "" if claim.output.first is None else f" of output {claim.output.text}"
    console.print(f"[bold]Lipschitz constant{of} in {claim.norm}, {where}[/]")
    if upper.value is None:
        console.print(f"  upper   {upper.status}: {upper.reason}" + (f" (at {upper.layer!r})" if upper.layer else ""))
    else:
        console.print(f"  upper   [bold]{figure(upper.value)}[/]  {upper.status}, {upper.proof}, by {upper.method}")
        if upper.reason:
            console.print(f"          [red]{upper.reason}[/]")
    attained = (
        f"{result.lower_status}, attained by a pair of inputs"
        if result.witness
        else "no pair of inputs found that proves more"
    )
    console.print(f"  lower   [bold]{figure(result.lower)}[/]  {attained}")
    if result.exact:
        console.print("  exact   both ends agree to 1e-9")
    elif result.ratio is not None:
        console.print(f"  ratio   {result.ratio:.4g}")
    console.print(f"  search  {result.seconds:.2f} s ({result.cpu_seconds:.2f} s of processor time)")
    if result.layers:
        table = Table("layer", "kind", "lower", "upper", "proved by", box=None, pad_edge=False)
        for row in result.layers:
            table.add_row(row.name, row.kind, figure(row.lower), figure(row.upper), row.evidence)
        console.print(table)
    for candidate in result.candidates:
        note = f"  {candidate.note}" if candidate.note else ""
        console.print(
            f"  {candidate.method}: {figure(candidate.value)} in {candidate.seconds:.2f} s{note}", markup=False
        )
    if bundle is not None:
        console.print(f"bundle  {bundle}  model {str(document['model']['digest'])[:19]}…", soft_wrap=True)  # type: ignore[index]
