"""Frequency principle: a tanh network fits the low peak of a target's spectrum before the high one (arXiv 1901.06523)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lipscope.claims.errors import UsageError
from lipscope.claims.progress import Progress
from lipscope.studies.study import Figures, Study

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Settings:
    """All settings.

    Attributes:
        seeds: of initial weights, one run each.
        points: of the even grid on [-10, 10], both ends included, that is trained on.
        test_points: of the even grid on the same interval on which the errors are measured again.
        widths: of the hidden layers.
        deviation: standard deviation of all initial weights and biases.
        learning_rate: of Adam on the full batch.
        steps: of training.
        every: steps from one record to the next.
        error: the relative error at which a peak counts as fitted.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    points: int = 61
    test_points: int = 201
    widths: tuple[int, ...] = (200, 200, 200, 100)
    deviation: float = 0.05
    learning_rate: float = 2e-5
    steps: int = 12000
    every: int = 100
    error: float = 0.2

    def __post_init__(self) -> None:
        if min(self.points, self.test_points) < 40:
            raise UsageError("expected at least 40 points: fewer do not resolve sin 4x on [-10, 10]")
        if not self.seeds or not 0 < self.error < 1 or min(self.steps, self.every) < 1:
            raise UsageError("expected a seed or more, an error between 0 and 1, and steps and every of at least 1")


def measure(settings: Settings, progress: Progress) -> dict[str, object]:
    """When each peak of the target's spectrum is fitted, on the training grid and on the test grid, for each seed."""
    from lipscope.studies.regression import each_seed

    return each_seed(
        settings.seeds, lambda seed, done: _run(settings, seed, progress, done), lambda runs: {"runs": runs}
    )


def _run(settings: Settings, seed: int, progress: Progress, done: float) -> dict[str, object]:
    import torch

    from lipscope.claims.quantity import Moment
    from lipscope.frequency import PeakError, first_passage
    from lipscope.studies.regression import descent

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _network(settings)
    grids = {"train": _grid(settings.points), "test": _grid(settings.test_points)}
    x, y = grids["train"]
    quantity = PeakError()
    records: dict[str, list[list[float]]] = {name: [] for name in grids}
    peaks: dict[str, list[int]] = {}
    steps = []
    figures: dict[str, object] = {"seed": seed}
    for step, loss in descent(model, x, y, settings.learning_rate, settings.steps):
        figures["last_loss"] = loss
        if step % settings.every == 0:
            progress(f"seed {seed}, step {step}", done + step / settings.steps / len(settings.seeds))
            steps.append(step)
            for name, (inputs, targets) in grids.items():
                readings = list(quantity.read(Moment(step, model, inputs, targets, None, torch.Generator())))
                records[name].append([r.value for r in readings])
                peaks[name] = [int(r.name.rsplit(" ", 1)[1]) for r in readings]
    for name, rows in records.items():
        errors = torch.tensor(rows, dtype=torch.float64)
        # "The error is at most e" is "1 - error is at least 1 - e".
        passage = first_passage(steps, 1 - errors, peaks[name], 1 - settings.error)
        figures[name] = {
            "peaks": peaks[name], "first_passage": list(passage.reached), "last_error": rows[-1],
            "steps": steps[:: max(1, len(steps) // 60)], "errors": rows[:: max(1, len(steps) // 60)],
        }  # fmt: skip
    return figures


def _grid(points: int) -> tuple[Tensor, Tensor]:
    import torch

    x = torch.linspace(-10, 10, points, dtype=torch.float64)[:, None]
    return x.float(), (torch.sin(x) + torch.sin(4 * x)).float()


def _network(settings: Settings) -> nn.Module:
    """Linear and tanh layers with normal weights and biases from the global generator."""
    from torch import nn

    widths = (1, *settings.widths, 1)
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layer = nn.Linear(a, b)
        nn.init.normal_(layer.weight, std=settings.deviation)
        nn.init.normal_(layer.bias, std=settings.deviation)
        parts += [layer, nn.Tanh()]
    return nn.Sequential(*parts[:-1]).eval()


def judge(figures: Figures, settings: Settings) -> bool | None:
    """Whether in every run and on both grids all peaks are fitted later the higher they are.

    False if some higher peak is fitted at the same record or before a lower one; None if only peaks that were never
    fitted leave it open.
    """
    del settings
    open_ends = False
    for run in figures["runs"]:
        for name in ("train", "test"):
            times = run[name]["first_passage"]
            for low, high in itertools.pairwise(times):
                if low is None:
                    if high is not None:
                        return False
                    open_ends = True
                elif high is not None and high <= low:
                    return False
    return None if open_ends or not figures["runs"] else True


STUDY = Study(
    name="frequency-principle",
    claim="A tanh network that is trained on sin x + sin 4x fits the low peak of its spectrum before the high one.",
    settings=Settings(),
    measure=measure,
    judge=judge,
)
