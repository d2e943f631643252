"""`lipscope spectrum`: which frequencies carry a network's sensitivity, measured and proved."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from lipscope.claims.errors import Interrupted, LipscopeError, UsageError
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
    from lipscope.frequency.layout import Layout
    from lipscope.frequency.spectrum import Spectrum
    from lipscope.network.graph import Graph
    from lipscope.network.load.load import LoadedModel


def command(
    model: Model,
    data: Annotated[str, typer.Option("--data", help="digits, fashion-mnist, a folder of images, or an .npz file.")],
    bands: Annotated[int, typer.Option("--bands", help="How many rings the spectrum is divided into.")] = 8,
    kind: Annotated[str, typer.Option("--kind", help="square, round or octave rings.")] = "square",
    samples: Annotated[int, typer.Option("--samples", help="How many examples, chosen at random.")] = 200,
    seed: Annotated[int, typer.Option("--seed", help="Of that choice.")] = 0,
    grid: Annotated[
        str | None, typer.Option("--grid", help="The grid's shape, as 28,28, where the model's input is flat.")
    ] = None,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="The model's input has its channels on the last axis.")
    ] = False,
    filler: Annotated[
        str, typer.Option("--filler", help="other, mean or zero: what replaces bands in spectral importance.")
    ] = "other",
    no_importance: Annotated[bool, typer.Option("--no-importance", help="Leave out spectral importance.")] = False,
    heat: Annotated[
        float | None, typer.Option("--heatmap", help="Add a Fourier heat map with waves of this l2 norm.")
    ] = None,
    heat_frequencies: Annotated[
        int | None, typer.Option("--heatmap-frequencies", help="Of the map: so many, drawn at random, instead of all.")
    ] = None,
    method: Annotated[str, typer.Option("--method", help="Of the proofs: auto, or the name of one method.")] = "auto",
    budget: Annotated[float, typer.Option("--budget", help="Seconds for the proofs; checks are not counted.")] = 30.0,
    bundle: Annotated[Path | None, typer.Option("-o", "--bundle", help="Folder for spectrum and bundles.")] = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not check; bounds are then only computed.")] = False,
    json: Json = False,
    report: Annotated[Path | None, typer.Option("--report", help="Write a page about it, too.")] = None,
    input_shape: InputShape = None,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
) -> None:
    """Measure how MODEL amplifies each band of frequencies on data, and prove how much it can at most."""
    from lipscope.bounds.auto import methods
    from lipscope.certificate.bundle import try_folder
    from lipscope.frequency.bands import band_masks
    from lipscope.frequency.data import load_data
    from lipscope.frequency.spectrum import MARKER, Wishes, spectrum

    if filler not in ("other", "mean", "zero"):
        raise UsageError(f"expected other, mean or zero as filler, got {filler!r}")
    methods(method)  # a wrong name is refused before anything is computed
    if not budget > 0:
        raise UsageError(f"expected a budget of more than 0 seconds, got {budget}")
    if heat is not None and not 0 < heat < math.inf:
        raise UsageError(f"expected a finite norm above 0 for --heatmap, got {heat}")
    if heat_frequencies is not None and (heat is None or heat_frequencies < 1):
        raise UsageError("expected --heatmap NORM and a number from 1 with --heatmap-frequencies")
    if bundle is not None:
        try_folder(bundle, MARKER)
    with progress() as shown:
        loaded = read_model(model, input_shape, weights, mean, std)
        layout = _layout(loaded, grid, channels_last)
        partition = band_masks(layout.grid, bands, kind)
        examples = load_data(data, layout, samples, seed)
        wishes = Wishes(
            check=not no_check, importance=not no_importance, filler=filler, heat_norm=heat,
            heat_frequencies=heat_frequencies, budget=budget, method=method,
        )  # fmt: skip
        result = spectrum(loaded, examples, layout, partition, wishes, progress=shown)
    try:
        if bundle is not None:
            result.save(bundle)
        if report is not None:
            _write_page(result, bundle, report)
    finally:  # what cannot be written takes nothing away from the answer
        if json:
            print_json(result.to_json())
        else:
            show(result, bundle)
    if result.interrupted:
        raise typer.Exit(Interrupted.exit_code)
    if not result.accepted:
        raise typer.Exit(LipscopeError.exit_code)


def _layout(loaded: LoadedModel, grid: str | None, channels_last: bool) -> Layout:
    from lipscope.frequency.layout import find_layout

    shapes = loaded.graph.input_shapes
    if len(shapes) != 1:
        raise UsageError(
            f"expected a model with one input, got one with {len(shapes)}: a spectrum is that of one input"
        )
    chosen = None
    if grid is not None:
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", grid):
            raise UsageError(f"expected a shape of positive integers such as 28,28 for --grid, got {grid!r}")
        chosen = tuple(int(n) for n in grid.split(","))
    shape = tuple(shapes[0])
    if chosen is None and len(shape) == 2 and not channels_last and _of_signals(loaded.graph, shape):
        chosen = shape[1:]
    return find_layout(shape, channels_last, chosen)


def _of_signals(graph: Graph, shape: tuple[int, ...]) -> bool:
    """Whether the first convolution runs along the second axis of the input alone."""
    first = next((node for node in graph.nodes if node.kind == "Conv"), None)
    return first is not None and len(first.shape) == 3 and graph.nodes[first.inputs[0]].shape[-2] == shape[0]


def _write_page(result: Spectrum, bundle: Path | None, page: Path) -> None:
    import tempfile

    from lipscope.report import write_report

    if bundle is not None:
        write_report([bundle], page)
        return
    with tempfile.TemporaryDirectory(prefix="lipscope-") as place:
        folder = Path(place) / "spectrum"
        result.save(folder)
        write_report([folder], page)


def show(result: Spectrum, bundle: Path | None = None) -> None:
    """The result as a table on stderr."""
    console, document = stderr(), result.to_json()
    for note in result.notes:
        console.print("[yellow]note:[/] ", end="")
        console.print(note, markup=False, soft_wrap=True)
    grid = " x ".join(map(str, result.bands.grid))
    console.print(
        f"[bold]Gain by frequency, l2[/]  {_bands(result)} of a {grid} grid, {len(result.data.x)} examples of "
        f"{escape(result.data.source)}",
        soft_wrap=True,
    )
    importance = document["importance"]
    columns: list[Column | str] = [
        Column("cycles per sample", no_wrap=True),
        "share",
        "measured",
        "mean",
        "proved",
        "status",
    ]
    table = Table(*columns, *(["importance"] if importance else []), box=None, pad_edge=False)
    shares: list[float | None] = document["gradient"]["share"]  # type: ignore[index]
    for i, row in enumerate(document["bands"]):  # type: ignore[arg-type, var-annotated]
        ends = f"{row['low']:.4g} .. {row['high']:.4g}"
        table.add_row(
            ends, "-" if shares[i] is None else f"{shares[i]:.1%}", *_cells(row),
            *([f"{importance[i]:.3g}"] if importance else []),  # type: ignore[index]
        )  # fmt: skip
    table.add_row("all", "", *_cells(document["total"]), *([""] if importance else []))  # type: ignore[arg-type]
    console.print(table)
    for line in _remarks(result):
        console.print(line, markup=False, soft_wrap=True)
    if bundle is not None:
        console.print(
            f"written {bundle}  (spectrum.json, and bundles for lipscope check)", markup=False, soft_wrap=True
        )
    if result.interrupted:
        console.print("stopped by you: this is what was reached")


def _bands(result: Spectrum) -> str:
    """How many bands there are, and how many were asked for if others have no frequency of the grid."""
    bands = result.bands
    count = f"{bands.count} {bands.kind} band{'s' if bands.count > 1 else ''}"
    left = bands.rings - bands.count
    return f"{count} ({left} more have no frequency)" if left > 0 else count


def _remarks(result: Spectrum) -> Iterator[str]:
    """What the proved column does not say by itself."""
    if result.bounds is None:
        return
    yield from dict.fromkeys(
        f"{r.upper.status}: {r.upper.layer!r}: {r.upper.reason}"
        for r in result.bounds.results.values()
        if r.upper.value is None
    )
    plain = [r for r in result.bounds.bands if r.upper.value is not None and r.problem.claim.directions is None]
    if plain and result.bands.count > 1:
        yield (
            f"{len(plain)} of {result.bands.count} bands have the bound of all directions: none of their own came out smaller; "
            "a larger --budget may find one"
        )


def _cells(row: dict[str, object]) -> list[str]:
    return [figure(row["measured"]), figure(row["measured_mean"]), figure(row["proved"]), str(row["status"])]
