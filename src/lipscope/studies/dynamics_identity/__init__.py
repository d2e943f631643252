"""Whether the pathwise identity accounts for every change of the log Lipschitz product. See README.md."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

from torch import Tensor, nn

from lipscope.claims.errors import Interrupted, UsageError
from lipscope.claims.progress import Progress
from lipscope.dynamics.identity import SPLIT_TERMS
from lipscope.dynamics.track import IdentityTracker
from lipscope.studies.data import digits
from lipscope.studies.following import network, sgd, steps
from lipscope.studies.study import Figures, Study


@dataclass(frozen=True)
class Settings:
    """The experiment.

    Attributes:
        rates: learning rates.
        batches: batch sizes.
        seeds: of initialisation and batches; there is a run for every rate, batch size and seed.
        widths: of the two hidden layers.
        samples: training points, which are also the reference of the full gradient.
        steps: of training, all of them observed.
        halvings: at how many states of the first run a step is halved, to see the order of the residual.
        closure: the largest median share of the absolute changes that may be left over.
        low: smallest median ratio of residuals when a step is halved; 8 is third order.
        high: largest.
    """

    rates: tuple[float, ...] = (0.01, 0.02, 0.05)
    batches: tuple[int, ...] = (16, 64)
    seeds: tuple[int, ...] = (0, 1)
    widths: tuple[int, ...] = (64, 32)
    samples: int = 1024
    steps: int = 200
    halvings: int = 10
    closure: float = 0.01
    low: float = 6.0
    high: float = 10.0

    def __post_init__(self) -> None:
        if not (self.rates and self.batches and self.seeds) or self.steps < 1 or self.halvings < 1:
            raise UsageError("expected at least one rate, batch size, seed, step and halving")
        if not all(1 <= b <= self.samples for b in self.batches):
            raise UsageError(f"expected batches of 1 to {self.samples} samples, got {self.batches}")


def one_run(settings: Settings, rate: float, batch: int, seed: int, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Train a network with all its steps observed, and return what moved it."""
    model = network((x.shape[1], *settings.widths, 10), seed)
    optimizer = sgd(model, rate)
    tracker = IdentityTracker(model, optimizer, probe=x[:1], loss=nn.CrossEntropyLoss(), reference=(x, y))
    flagged = 0
    for step in steps(model, optimizer, x, y, batch, settings.steps, seed):
        tracker.before_step()
        step()
        flagged += any(layer.q_ratio > 0.5 for layer in tracker.after_step().layers)
    totals = tracker.totals
    return {
        "rate": rate, "batch": batch, "seed": seed, "change": totals.change,
        **{name: totals.terms[name] for name in SPLIT_TERMS},
        "residual": totals.residual, "closure": totals.closure, "observed": totals.share, "crossings": flagged,
    }  # fmt: skip


def halving_ratios(settings: Settings, x: Tensor, y: Tensor) -> list[float]:
    """At some states: the residual of a step of the first rate by that of half the step, in float64."""
    x, batch = x.double(), settings.batches[0]
    model = network((x.shape[1], *settings.widths, 10), settings.seeds[0]).double()
    optimizer, ratios = sgd(model, settings.rates[0]), []
    for step in steps(model, optimizer, x, y, batch, settings.halvings, settings.seeds[0]):
        residuals = []
        for share in (1.0, 0.5):
            state = {name: value.clone() for name, value in model.state_dict().items()}
            optimizer.param_groups[0]["lr"] = share * settings.rates[0]
            tracker = IdentityTracker(model, optimizer, probe=x[:1])
            tracker.before_step()
            step()
            residuals.append(sum(abs(layer.residual) for layer in tracker.after_step().layers))
            model.load_state_dict(state)
        ratios.append(residuals[0] / residuals[1])
        optimizer.param_groups[0]["lr"] = settings.rates[0]
        step()
    return ratios


def measure(settings: Settings, progress: Progress) -> dict[str, object]:
    """A row a run, the median closure, and the ratios of residuals when a step is halved."""
    data = digits(settings.samples)
    plans = list(product(settings.rates, settings.batches, settings.seeds))
    rows: list[dict[str, Any]] = []
    try:
        for done, (rate, batch, seed) in enumerate(plans):
            progress(f"rate {rate}, batch {batch}, seed {seed}", done / len(plans))
            rows.append(one_run(settings, rate, batch, seed, data.x, data.y))
        ratios = halving_ratios(settings, data.x, data.y)
    except KeyboardInterrupt:
        raise Interrupted("stopped while training", {"rows": rows}) from None
    return {
        "rows": rows,
        "median_closure": median(row["closure"] for row in rows),
        "largest_closure": max(row["closure"] for row in rows),
        "halving_ratios": ratios,
        "median_halving_ratio": median(ratios),
    }


def judge(figures: Figures, settings: Settings) -> bool | None:
    """Whether the median closure and the median ratio are within their limits, every step observed."""
    if not all(row["observed"] == 1 for row in figures["rows"]):
        return None
    order = settings.low <= figures["median_halving_ratio"] <= settings.high
    return bool(figures["median_closure"] <= settings.closure and order)


STUDY = Study(
    name="dynamics-identity",
    claim="Flow, noise, their curvatures, the cross term and the log correction account for all but one per cent of the "
    "changes of the log Lipschitz product under plain SGD, and what is left is of third order in the step.",
    settings=Settings(),
    measure=measure,
    judge=judge,
)
