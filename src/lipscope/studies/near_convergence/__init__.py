"""Whether the Lipschitz product goes on growing when the loss is almost 0, and whether weight decay ends it. See README.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
        seeds: of initialisation and batches.
        rate: the learning rate.
        batch: the batch size.
        widths: of the two hidden layers.
        samples: training points, few enough to be fitted.
        steps: of training.
        begin: the step from which the growth is fitted.
        records: how many times are recorded from there on, evenly in the log of the step.
        decay: weight decay of the second run of every seed.
        fit: the least R^2 of `a + b log t`.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    rate: float = 0.1
    batch: int = 32
    widths: tuple[int, ...] = (64, 32)
    samples: int = 256
    steps: int = 10_000
    begin: int = 2_000
    records: int = 12
    decay: float = 1e-3
    fit: float = 0.98

    def __post_init__(self) -> None:
        if not self.seeds or not 1 <= self.begin < self.steps or self.records < 3 or self.decay <= 0:
            raise UsageError(f"expected seeds, 3 records, a decay > 0 and 1 <= begin < steps, got {self}")


def recorded(settings: Settings) -> list[int]:
    """The steps at which the product is looked at."""
    return sorted({round(t) for t in np.geomspace(settings.begin, settings.steps, settings.records)})


def one_run(settings: Settings, seed: int, decay: float, x: Tensor, y: Tensor) -> dict[str, Any]:
    """The log product at the recorded steps, and where training ended."""
    model = network((x.shape[1], *settings.widths, 10), seed)
    optimizer, times, path = sgd(model, settings.rate, decay), recorded(settings), []
    factors = list_factors(model, x[:1])
    start = log_product(factors)
    for done, step in enumerate(steps(model, optimizer, x, y, settings.batch, settings.steps, seed), start=1):
        step()
        if done in times:
            path.append(log_product(factors))
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(model(x), y))
    slope, constant, r2 = fitted([math.log(t) for t in times], path)
    return {
        "seed": seed, "decay": decay, "start": start, "steps": times, "log_product": path, "slope": slope,
        "constant": constant, "r2": r2, "loss": loss, "accuracy": accuracy(model, x, y),
    }  # fmt: skip


def fitted(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Slope, constant and R^2 of the least squares line; R^2 is 0 where y does not move."""
    slope, constant = np.polyfit(x, y, 1)
    spread = float(np.var(y))
    missed = float(np.mean((np.asarray(y) - slope * np.asarray(x) - constant) ** 2))
    return float(slope), float(constant), 1 - missed / spread if spread > 0 else 0.0


def measure(settings: Settings, progress: Progress) -> dict[str, object]:
    """Two rows a seed, without and with weight decay."""
    data = digits(settings.samples)
    plans = [(seed, decay) for seed in settings.seeds for decay in (0.0, settings.decay)]
    rows: list[dict[str, Any]] = []
    try:
        for done, (seed, decay) in enumerate(plans):
            progress(f"seed {seed}, weight decay {decay}", done / len(plans))
            rows.append(one_run(settings, seed, decay, data.x, data.y))
    except KeyboardInterrupt:
        raise Interrupted("stopped while training", {"rows": rows}) from None
    free, decayed = ([row for row in rows if bool(row["decay"]) == wanted] for wanted in (False, True))
    return {
        "rows": rows,
        "mean_slope": fmean(row["slope"] for row in free),
        "least_r2": min(row["r2"] for row in free),
        "mean_slope_with_decay": fmean(row["slope"] for row in decayed),
    }


def judge(figures: Figures, settings: Settings) -> bool | None:
    """Growth in log time without decay, none with it, for every seed; None if the data were not fitted."""
    free = [row for row in figures["rows"] if not row["decay"]]
    decayed = [row for row in figures["rows"] if row["decay"]]
    if not all(row["accuracy"] == 1 for row in free):
        return None
    grows = all(row["slope"] > 0 and row["r2"] >= settings.fit for row in free)
    ends = all(row["log_product"][-1] <= row["log_product"][0] for row in decayed)
    return bool(grows and ends)


STUDY = Study(
    name="near-convergence",
    claim="After all training points are fitted the log Lipschitz product goes on growing like the log of the number of "
    "steps, and weight decay ends the growth.",
    settings=Settings(),
    measure=measure,
    judge=judge,
)
