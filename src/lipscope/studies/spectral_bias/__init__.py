"""Spectral bias: a ReLU network fits the low frequencies of a sum of sines first (arXiv 1806.08734)."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lipscope.claims.errors import UsageError
from lipscope.claims.progress import Progress
from lipscope.studies.study import Figures, Study

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lipscope.studies.regression import Runs


@dataclass(frozen=True)
class Settings:
    """All settings.

    Attributes:
        seeds: of initial weights and phases, one run each.
        frequencies: of the target's sines, in periods on [0, 1); all have amplitude 1.
        points: of the even grid on [0, 1) that is both training set and probe.
        width: of the hidden layers.
        depth: how many hidden layers.
        learning_rate: of Adam on the full batch.
        steps: of training.
        every: steps from one record to the next.
        threshold: the amplitude ratio at which a frequency counts as learned.
        tolerance: the median rank correlation of frequency and first passage that the claim asks for.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    frequencies: tuple[int, ...] = (5, 10, 15, 20, 25, 30)
    points: int = 200
    width: int = 128
    depth: int = 6
    learning_rate: float = 1e-3
    steps: int = 12000
    every: int = 50
    threshold: float = 0.8
    tolerance: float = 0.9

    def __post_init__(self) -> None:
        if len(self.frequencies) < 3 or not all(0 < k < self.points / 2 for k in self.frequencies):
            raise UsageError(
                f"expected three or more frequencies above 0 and below half of {self.points} points, got {self.frequencies}"
            )
        if min(len(self.seeds), self.width, self.depth, self.steps, self.every) < 1:
            raise UsageError("expected a seed or more, and width, depth, steps and every of at least 1")


def measure(settings: Settings, progress: Progress) -> dict[str, object]:
    """First-passage steps of all frequencies and their rank correlation, for each seed."""
    from lipscope.studies.regression import each_seed

    return each_seed(settings.seeds, lambda seed, done: _run(settings, seed, progress, done), _summary)


def _summary(runs: Runs) -> dict[str, object]:
    values = [float(r["spearman"]) for r in runs if r["spearman"] is not None]
    return {"median_spearman": statistics.median(values) if values else None, "runs": runs}


def _run(settings: Settings, seed: int, progress: Progress, done: float) -> dict[str, object]:
    import torch

    from lipscope.claims.quantity import Moment, Reading
    from lipscope.frequency import AmplitudeRatio, ResidualSplit
    from lipscope.studies.regression import descent

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x, y = _target(settings)
        model = _network(settings)
    quantity = AmplitudeRatio(settings.frequencies)
    split = ResidualSplit(cutoff=statistics.median(settings.frequencies))
    history: list[tuple[int, list[Reading]]] = []
    slopes, best = {}, float("inf")
    first = _proved_constant(model)
    for step, loss in descent(model, x, y, settings.learning_rate, settings.steps):
        if step % settings.every == 0:
            if step % (settings.every * 20) == 0:
                progress(f"seed {seed}, step {step}", done + step / settings.steps / len(settings.seeds))
            moment = Moment(step, model, x, y, None, torch.Generator())
            history.append((step, list(quantity.read(moment))))
            slopes[step] = _steepest(model, x)
        if step < settings.steps:
            best = min(best, loss)
    passage = quantity.first_passage(history, settings.threshold)
    ends = {reading.name: reading.value for reading in split.read(moment)}
    correlation = passage.spearman()
    return {
        "seed": seed,
        "first_passage": {str(int(k)): s for k, s in zip(passage.frequencies, passage.reached, strict=True)},
        "censored": [int(k) for k in passage.censored],
        "spearman": correlation if correlation == correlation else None,
        "spearman_range": list(passage.spearman_range()),
        "last_ratio": {str(k): r.value for k, r in zip(settings.frequencies, history[-1][1], strict=True)},
        "slope_at_first_passage": {
            str(int(k)): None if s is None else slopes[s]
            for k, s in zip(passage.frequencies, passage.reached, strict=True)
        },
        "first_slope": slopes[0], "last_slope": slopes[history[-1][0]],
        "first_upper": first, "last_upper": _proved_constant(model),
        "last_residual": ends, "best_loss": best,
    }  # fmt: skip


def _target(settings: Settings) -> tuple[Tensor, Tensor]:
    """The grid on [0, 1) and the sum of sines with phases from the global generator."""
    import torch

    x = torch.arange(settings.points) / settings.points
    phases = torch.rand(len(settings.frequencies))
    waves = [torch.sin(2 * torch.pi * (k * x + p)) for k, p in zip(settings.frequencies, phases, strict=True)]
    return x[:, None], torch.stack(waves).sum(dim=0)[:, None]


def _network(settings: Settings) -> nn.Module:
    """Linear and ReLU layers with the initial weights of torch, from the global generator."""
    from torch import nn

    widths = [1] + [settings.width] * settings.depth
    hidden = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(settings.width, 1)).eval()


def _steepest(model: nn.Module, x: Tensor) -> float:
    """The largest difference quotient between neighbours of the grid: attained, so a lower bound of the constant up to rounding."""
    import torch

    with torch.no_grad():
        outputs = model(x)
    return float((outputs.diff(dim=0) / x.diff(dim=0)).abs().max())


def _proved_constant(model: nn.Module) -> float | None:
    """A proved upper bound of the Lipschitz constant, the product of the layers' norms."""
    import lipscope
    from lipscope.bounds.method import Effort
    from lipscope.bounds.problem import pose
    from lipscope.bounds.product import Product
    from lipscope.claims.claim import Claim

    return Product().run(pose(lipscope.load(model, input_shape=(1,)).graph, Claim()), Effort()).value


def judge(figures: Figures, settings: Settings) -> bool | None:
    """Whether the median rank correlation over seeds reaches the tolerance; None where no seed has one."""
    median = figures["median_spearman"]
    return None if median is None else bool(median >= settings.tolerance)


STUDY = Study(
    name="spectral-bias",
    claim="A ReLU network that is trained on a sum of equally large sines learns them in the order of their frequencies.",
    settings=Settings(),
    measure=measure,
    judge=judge,
)
