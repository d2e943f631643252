"""Whether the curvature of the gradient noise is needed to account for the growth of the Lipschitz product. See README.md."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from lipscope.claims.errors import Interrupted, UsageError
from lipscope.claims.progress import Progress
from lipscope.dynamics.track import IdentityTracker
from lipscope.studies.data import digits
from lipscope.studies.following import network, sgd, standardised, steps
from lipscope.studies.study import Figures, Study


@dataclass(frozen=True)
class Settings:
    """The experiment.

    Attributes:
        seeds: of initialisation and batches, at least five.
        rate: the learning rate.
        batch: the batch size.
        widths: of the two hidden layers.
        samples: training points, which are also the reference of the full gradient.
        steps: of training, all of them observed.
        better: how many times smaller the error with noise-curvature has to be, in the mean over seeds.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    rate: float = 0.02
    batch: int = 4
    widths: tuple[int, ...] = (64, 32)
    samples: int = 1024
    steps: int = 300
    better: float = 2.0

    def __post_init__(self) -> None:
        if not self.seeds or self.steps < 1 or not 1 <= self.batch <= self.samples:
            raise UsageError(f"expected a seed, a step and a batch of 1 to {self.samples}, got {self}")


def one_run(settings: Settings, seed: int, x: Tensor, y: Tensor) -> dict[str, Any]:
    """The change that was seen in a run, and what is made of it with and without the curvature of the noise."""
    model = network((x.shape[1], *settings.widths, 10), seed)
    optimizer = sgd(model, settings.rate)
    tracker = IdentityTracker(model, optimizer, probe=x[:1], loss=nn.CrossEntropyLoss(), reference=(x, y))
    for step in steps(model, optimizer, x, y, settings.batch, settings.steps, seed):
        tracker.before_step()
        step()
        tracker.after_step()
    totals, terms = tracker.totals, tracker.totals.terms
    drift = terms["flow"] + terms["noise"]
    return {
        "seed": seed, "change": totals.change, "flow": terms["flow"], "noise": terms["noise"],
        "noise_curvature": terms["noise_curvature"],
        "flow_curvature_and_cross": terms["flow_curvature"] + terms["cross"],
        "error_without": abs(totals.change - drift),
        "error_with": abs(totals.change - drift - terms["noise_curvature"]),
        "error_of_flow_alone": abs(totals.change - terms["flow"]),
        "error_of_flow_with": abs(totals.change - terms["flow"] - terms["noise_curvature"]),
    }  # fmt: skip


def measure(settings: Settings, progress: Progress) -> dict[str, object]:
    """A row a seed, means of the errors, and the share of the growth that is noise-curvature."""
    data = digits(settings.samples)
    x = standardised(data.x)
    rows: list[dict[str, Any]] = []
    try:
        for done, seed in enumerate(settings.seeds):
            progress(f"seed {seed}", done / len(settings.seeds))
            rows.append(one_run(settings, seed, x, data.y))
    except KeyboardInterrupt:
        raise Interrupted("stopped while training", {"rows": rows}) from None
    errors = ("error_without", "error_with", "error_of_flow_alone", "error_of_flow_with")
    return {
        "rows": rows,
        **{f"mean_{name}": fmean(row[name] for row in rows) for name in errors},
        "seeds_in_favour": sum(row["error_with"] < row["error_without"] for row in rows),
        "share_of_growth": fmean(row["noise_curvature"] for row in rows) / fmean(row["change"] for row in rows),
    }


def judge(figures: Figures, settings: Settings) -> bool | None:
    """Whether the term helps for every seed, and by the wanted factor in the mean; None with fewer than five seeds."""
    if len(figures["rows"]) < 5:
        return None
    factor = figures["mean_error_without"] >= settings.better * figures["mean_error_with"]
    return bool(factor and figures["seeds_in_favour"] == len(figures["rows"]))


STUDY = Study(
    name="noise-curvature",
    claim="The curvature of the operator norm along the gradient noise is part of what moves the log Lipschitz product: "
    "without it flow and noise along the path account for the change at least two times worse, for every seed.",
    settings=Settings(),
    measure=measure,
    judge=judge,
)
