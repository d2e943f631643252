"""Whether the Lipschitz product after training is decided by the initialisation. See README.md."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, pvariance
from typing import Any

from torch import Tensor

from lipscope.claims.errors import Interrupted, UsageError
from lipscope.claims.progress import Progress
from lipscope.dynamics.factors import list_factors, log_product
from lipscope.studies.data import digits
from lipscope.studies.following import accuracy, network, sgd, steps
from lipscope.studies.study import Figures, Study


@dataclass(frozen=True)
class Settings:
    """The experiment.

    Attributes:
        scales: factors on He normal weights, rising.
        seeds: of the initialisation.
        batch_seeds: of the batches.
        rate: the learning rate.
        batch: the batch size.
        widths: of the two hidden layers.
        samples: training points.
        steps: of training.
        explained: the least share of the variance of the final log product that the scale has to explain.
    """

    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    batch_seeds: tuple[int, ...] = (0, 1, 2)
    rate: float = 0.05
    batch: int = 32
    widths: tuple[int, ...] = (64, 32)
    samples: int = 1024
    steps: int = 1500
    explained: float = 0.9

    def __post_init__(self) -> None:
        if len(self.scales) < 2 or any(a >= b for a, b in pairwise(self.scales)) or self.scales[0] <= 0:
            raise UsageError(f"expected at least two rising scales above 0, got {self.scales}")
        if not (self.seeds and self.batch_seeds):
            raise UsageError("expected at least one seed of the initialisation and one of the batches")


def one_run(settings: Settings, scale: float, seed: int, batch_seed: int, x: Tensor, y: Tensor) -> dict[str, Any]:
    """The log product before and after one training."""
    model = network((x.shape[1], *settings.widths, 10), seed, scale)
    factors = list_factors(model, x[:1])
    start = log_product(factors)
    for step in steps(model, sgd(model, settings.rate), x, y, settings.batch, settings.steps, batch_seed):
        step()
    return {
        "scale": scale, "seed": seed, "batch_seed": batch_seed, "start": start, "end": log_product(factors),
        "accuracy": accuracy(model, x, y),
    }  # fmt: skip


def shares(runs: list[dict[str, Any]]) -> dict[str, float]:
    """How much of the variance of the final log product is between scales, between seeds within a scale, and between batches."""
    total = pvariance([run["end"] for run in runs])

    def within(*keys: str) -> float:
        cells: dict[tuple[Any, ...], list[float]] = {}
        for run in runs:
            cells.setdefault(tuple(run[key] for key in keys), []).append(run["end"])
        return fmean(pvariance(cell) for cell in cells.values())

    by_scale, by_seed = within("scale"), within("scale", "seed")
    if total == 0:
        return {"scale": 0.0, "seed": 0.0, "batches": 0.0}
    return {"scale": 1 - by_scale / total, "seed": (by_scale - by_seed) / total, "batches": by_seed / total}


def measure(settings: Settings, progress: Progress) -> dict[str, object]:
    """A row a scale, and the shares of the variance."""
    data = digits(settings.samples)
    plans = [(scale, a, b) for scale in settings.scales for a in settings.seeds for b in settings.batch_seeds]
    runs: list[dict[str, Any]] = []
    try:
        for done, (scale, seed, batch_seed) in enumerate(plans):
            progress(f"scale {scale}, seeds {seed} and {batch_seed}", done / len(plans))
            runs.append(one_run(settings, scale, seed, batch_seed, data.x, data.y))
    except KeyboardInterrupt:
        raise Interrupted("stopped while training", {"runs": runs}) from None
    rows = []
    for scale in settings.scales:
        mine = [run for run in runs if run["scale"] == scale]
        ends = [run["end"] for run in mine]
        rows.append(
            {"scale": scale, "start": fmean(r["start"] for r in mine), "end": fmean(ends), "lowest": min(ends),
             "highest": max(ends), "accuracy": fmean(r["accuracy"] for r in mine)}
        )  # fmt: skip
    return {"rows": rows, "runs": runs, "variance": shares(runs)}


def judge(figures: Figures, settings: Settings) -> bool | None:
    """Whether scales do not overlap and explain enough; None with fewer than three seeds of either kind."""
    if min(len({run[key] for run in figures["runs"]}) for key in ("seed", "batch_seed")) < 3:
        return None
    apart = all(a["highest"] < b["lowest"] for a, b in pairwise(figures["rows"]))
    return bool(apart and figures["variance"]["scale"] >= settings.explained)


STUDY = Study(
    name="initialisation",
    claim="After training the log Lipschitz product is still ordered by the scale of the initialisation, which explains "
    "more than nine tenths of its variance; initial weights and batches at one scale explain the rest.",
    settings=Settings(),
    measure=measure,
    judge=judge,
)
