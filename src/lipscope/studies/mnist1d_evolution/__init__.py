"""How both sides of a network's constant grow while it trains, against the published figures. See README.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from lipscope.claims.errors import Interrupted, UsageError
from lipscope.claims.progress import Progress
from lipscope.studies.data import Data, mnist1d
from lipscope.studies.sandwich import sandwich
from lipscope.studies.study import Figures, Study

PUBLISHED = {0: 0.369, 1000: 1.336, 2000: 3.762, 3000: 5.775}
"""`C_lower` by epoch in arXiv 2302.10886, one seed. At epoch 0 the last digit is worth 0.3 per cent."""


@dataclass(frozen=True)
class Settings:
    """The published recipe.

    Attributes:
        data_seed: of the order of the training points, in numpy's older generator.
        model_seed: of the initialisation.
        width: hidden units.
        batch: points a step; batches are cut from the fixed order, the last one is smaller.
        learning_rate: of plain stochastic gradient descent, after the warm-up.
        warm_up: updates over which the learning rate rises linearly to its value.
        clip: largest norm of the gradient over all parameters.
        epochs: when the constant is measured; training ends with the last of them.
        tolerance: largest relative distance of `c_lower` from the published figures, after epoch 0.
    """

    data_seed: int = 42
    model_seed: int = 42
    width: int = 256
    batch: int = 512
    learning_rate: float = 0.005
    warm_up: int = 20_000
    clip: float = 50.0
    epochs: tuple[int, ...] = (0, 1000, 2000, 3000)
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        if not self.epochs or self.epochs[0] < 0 or any(a >= b for a, b in pairwise(self.epochs)):
            raise UsageError(f"expected rising epochs >= 0, got {self.epochs}")
        if min(self.width, self.batch, self.warm_up) < 1 or self.learning_rate <= 0 or self.clip <= 0:
            raise UsageError("expected positive sizes, learning rate and clip in the settings of mnist1d-evolution")


def network(settings: Settings) -> nn.Sequential:
    """The published network: no biases, and a ReLU on the output as well."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.model_seed)
        return nn.Sequential(
            nn.Linear(40, settings.width, bias=False), nn.ReLU(), nn.Linear(settings.width, 10, bias=False), nn.ReLU()
        )


def training(settings: Settings, model: nn.Module, data: Data) -> Iterator[int]:
    """Trains the model for as long as it is asked; yields the number of epochs done, 0 first."""
    order = torch.from_numpy(np.random.RandomState(settings.data_seed).permutation(len(data.x)))
    batches = [(data.x[rows], data.y[rows]) for rows in torch.split(order, settings.batch)]
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=settings.learning_rate), nn.CrossEntropyLoss()
    epoch = update = 0
    while True:
        yield epoch
        for x, y in batches:
            update += 1
            optimizer.param_groups[0]["lr"] = settings.learning_rate * min(1.0, update / settings.warm_up)
            optimizer.zero_grad()
            loss(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
        epoch += 1


def measure(settings: Settings, progress: Progress) -> dict[str, object]:
    """By epoch: `c_avg`, `c_lower` (over the training points) and the proved `c_upper`, and how each has grown."""
    data, model = mnist1d(), network(settings)
    rows: dict[str, dict[str, float]] = {}
    try:
        for epoch in training(settings, model, data):
            if epoch % 20 == 0:
                progress(f"epoch {epoch}", epoch / max(settings.epochs[-1], 1))
            if epoch in settings.epochs:
                rows[str(epoch)] = sandwich(model, data.x)
            if epoch == settings.epochs[-1]:
                break
    except KeyboardInterrupt:
        raise Interrupted("stopped while training", {"by_epoch": rows}) from None
    first, last = (rows[str(epoch)] for epoch in (settings.epochs[0], settings.epochs[-1]))
    return {"by_epoch": rows, "growth": {key: last[key] / first[key] for key in first}}


def judge(figures: Figures, settings: Settings) -> bool | None:
    """Whether the sandwich holds at each epoch, both sides grow, and `c_lower` is the published one after epoch 0.

    With another recipe a sandwich that holds says nothing about the published figures: None.
    """
    rows = {int(epoch): row for epoch, row in figures["by_epoch"].items()}
    if not all(row["c_avg"] <= row["c_lower"] <= row["c_upper"] for row in rows.values()):
        return False
    if settings != Settings(tolerance=settings.tolerance):
        return None
    grows = all(rows[a][key] < rows[b][key] for a, b in pairwise(rows) for key in ("c_lower", "c_upper"))
    return grows and all(
        abs(rows[epoch]["c_lower"] - value) <= settings.tolerance * value for epoch, value in PUBLISHED.items() if epoch
    )


STUDY = Study(
    name="mnist1d-evolution",
    claim="Both sides of a network's Lipschitz constant grow while it trains on MNIST-1D, the lower one as published.",
    settings=Settings(),
    measure=measure,
    judge=judge,
)
