"""Whether wrong labels slow the growth of the Lipschitz product early in training. See README.md."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import torch
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
        shares: of labels that are drawn anew uniformly, rising; the sets are nested in each other.
        seeds: of initialisation, batches and labels.
        rate: the learning rate.
        batch: the batch size.
        widths: of the two hidden layers.
        samples: training points.
        steps: of training, too few to memorise wrong labels.
    """

    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    rate: float = 0.02
    batch: int = 32
    widths: tuple[int, ...] = (64, 32)
    samples: int = 1024
    steps: int = 1000

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise(self.shares))
        if len(self.shares) < 2 or not rising or not 0 <= self.shares[0] <= self.shares[-1] <= 1 or not self.seeds:
            raise UsageError(f"expected at least two rising shares within 0 and 1 and a seed, got {self}")


def relabelled(labels: Tensor, share: float, seed: int) -> Tensor:
    """The labels with a share of them drawn anew; a larger share changes the same ones and more. Some keep their value."""
    generator = torch.Generator().manual_seed(seed)
    order, fresh = (
        torch.randperm(len(labels), generator=generator),
        torch.randint(10, (len(labels),), generator=generator),
    )
    chosen = order[: round(share * len(labels))]
    result = labels.clone()
    result[chosen] = fresh[chosen]
    return result


def one_run(settings: Settings, share: float, seed: int, x: Tensor, y: Tensor) -> dict[str, Any]:
    """How the log product changes in one training."""
    labels = relabelled(y, share, seed)
    model = network((x.shape[1], *settings.widths, 10), seed)
    factors = list_factors(model, x[:1])
    start = log_product(factors)
    for step in steps(model, sgd(model, settings.rate), x, labels, settings.batch, settings.steps, seed):
        step()
    return {
        "share": share, "seed": seed, "change": log_product(factors) - start, "accuracy": accuracy(model, x, labels),
    }  # fmt: skip


def measure(settings: Settings, progress: Progress) -> dict[str, object]:
    """A row a share: mean and spread of the change over seeds."""
    data = digits(settings.samples)
    plans = [(share, seed) for share in settings.shares for seed in settings.seeds]
    runs: list[dict[str, Any]] = []
    try:
        for done, (share, seed) in enumerate(plans):
            progress(f"share {share}, seed {seed}", done / len(plans))
            runs.append(one_run(settings, share, seed, data.x, data.y))
    except KeyboardInterrupt:
        raise Interrupted("stopped while training", {"runs": runs}) from None
    rows = []
    for share in settings.shares:
        changes = [run["change"] for run in runs if run["share"] == share]
        fitted = fmean(run["accuracy"] for run in runs if run["share"] == share)
        spread = stdev(changes) if len(changes) > 1 else 0.0
        rows.append({"share": share, "change": fmean(changes), "change_sd": spread, "accuracy": fitted})
    clean = [run["change"] for run in runs if run["share"] == settings.shares[0]]
    noisy = [run["change"] for run in runs if run["share"] == settings.shares[-1]]
    return {
        "rows": rows,
        "runs": runs,
        "seeds_in_favour": sum(a > b for a, b in zip(clean, noisy, strict=True)),
        "seeds": len(clean),
    }


def judge(figures: Figures, settings: Settings) -> bool | None:
    """Whether the mean change falls from share to share, and from first to last for every seed; None with under 5 seeds."""
    if figures["seeds"] < 5:
        return None
    falls = all(a["change"] > b["change"] for a, b in pairwise(figures["rows"]))
    return bool(falls and figures["seeds_in_favour"] == figures["seeds"])


STUDY = Study(
    name="label-noise",
    claim="The larger the share of labels drawn at random, the less the log Lipschitz product grows early in training.",
    settings=Settings(),
    measure=measure,
    judge=judge,
)
