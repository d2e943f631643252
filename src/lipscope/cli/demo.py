"""`lipscope demo`: the whole story on real data, in a minute or two."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from lipscope.claims.errors import LipscopeError
from lipscope.cli.bound import show
from lipscope.cli.console import figure, progress, stderr

if TYPE_CHECKING:
    from lipscope.certificate.result import Result


def command(
    folder: Annotated[Path, typer.Option("-o", "--output", help="Where bundles and the report are written.")] = Path(
        "lipscope-demo"
    ),
    seed: Annotated[int, typer.Option("--seed", help="Seed of the training.")] = 0,
) -> None:
    """Train a small digit classifier, bound it globally and around one image, have it checked, write a report."""
    from lipscope.api import bound, load
    from lipscope.claims.regions import Box
    from lipscope.cli.demo_model import RADIUS, train_digits
    from lipscope.report import write_report

    console = stderr()
    console.print(
        "[bold]1. Train[/] a convolutional network on the 1797 handwritten digits of scikit-learn (8x8 pixels, 0 to 1)"
    )
    trained = train_digits(seed)
    console.print(
        f"   {trained.accuracy:.1%} of the {trained.test_size} test images are right, after {trained.seconds:.1f} s\n"
    )
    console.print("[bold]2. Load[/] it as lipscope's graph and compare the two on random, zero and large inputs")
    loaded = load(trained.model, input_shape=(1, 8, 8))
    console.print(
        f"   {len(loaded.graph)} nodes, the same function as the module; digest {loaded.graph.digest[:19]}…\n"
    )
    console.print(
        f"[bold]3. Bound[/] it: everywhere, and on the box of all images within {RADIUS:g} of one test image, pixel by pixel\n"
    )
    box = Box(np.maximum(trained.image - RADIUS, 0.0), np.minimum(trained.image + RADIUS, 1.0))
    folders, results = [], []
    for norm in ("l2", "linf"):
        for region, name in (("everywhere", "everywhere"), (box, "box")):
            place = folder / f"{norm}-{name}"
            with progress() as report:
                result = bound(loaded, norm, region, check=False, progress=report)
                result = result.save(place, progress=report)
            show(result, place)
            console.print()
            folders.append(place)
            results.append(result)
    write_report(folders, folder / "report.html")
    explain(results, trained.margin, trained.label)
    console.print(f"\n[bold]5. Look[/] at {folder / 'report.html'} in a browser. Then try:", soft_wrap=True)
    for line in (
        f"lipscope check {folders[0]}",
        "lipscope inspect your_model.onnx",
        "lipscope bound your_model.onnx --norm l2 -o your_bundle",
    ):
        console.print(f"   {line}", soft_wrap=True)
    if not all(r.verdict is not None and r.verdict["accepted"] for r in results):
        raise typer.Exit(LipscopeError.exit_code)


def explain(results: list[Result], margin: float, label: int) -> None:
    """What the numbers mean, in sentences."""
    console = stderr()
    everywhere, box = results[0], results[1]
    assert everywhere.upper.value is not None
    console.print("[bold]4. Read[/] the numbers")
    console.print(
        f"   upper  No two images whatsoever change the ten scores (in l2) by more than {figure(everywhere.upper.value)} times their "
        "distance. That is proved, not sampled: a second program re-derived it from the stored weights."
    )
    console.print(
        f"   lower  Two images are known whose scores differ by {figure(everywhere.lower)} times their distance, so the true constant "
        f"is between the two; their ratio, {figure(everywhere.ratio)}, says how loose the upper bound is at most."
    )
    console.print(
        f"   box    Around the chosen image (a {label}) the network is calmer: {figure(box.upper.value)} instead of {figure(everywhere.upper.value)}."
    )
    console.print(
        f"   use    Its score leads by {margin:.3g}. A lead shrinks by at most sqrt(2) K r within distance r, so no image closer than "
        f"{margin / (2**0.5 * everywhere.upper.value):.3g} in l2 is classified differently."
    )
