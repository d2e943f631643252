"""Both sides of the constant of a small planar classifier, against the published figures. See README.md."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipscope.claims.errors import UsageError
from lipscope.claims.progress import Progress
from lipscope.studies.sandwich import norms_at, proved_upper
from lipscope.studies.study import Figures, Study

PUBLISHED = {"c_lower": 135.815, "grid": 144.194, "c_upper": 389.097}
"""The figures of arXiv 2302.10886 for this network."""

ANGLES = (-90.0, 30.0, 150.0)
RADIUS = 1.5


@dataclass(frozen=True)
class Settings:
    """The published recipe.

    Attributes:
        data_seed: of the points.
        model_seed: of the initialisation.
        train_points: points a class.
        width: units of each of the two hidden layers.
        learning_rate: of full-batch gradient descent.
        steps: how many.
        half_width: the grid covers [-half_width, half_width]^2.
        grid_points: points of the grid along each axis.
        tolerance: largest relative distance from the published figures.
    """

    data_seed: int = 0
    model_seed: int = 42
    train_points: int = 15
    width: int = 100
    learning_rate: float = 0.02
    steps: int = 100_000
    half_width: float = 5.0
    grid_points: int = 1000
    tolerance: float = 0.005

    def __post_init__(self) -> None:
        if min(self.train_points, self.width, self.grid_points) < 1 or self.steps < 0 or self.half_width <= 0:
            raise UsageError("expected positive sizes and steps >= 0 in the settings of toy-sandwich")


def points(settings: Settings) -> tuple[Tensor, Tensor]:
    """Training points of three Gaussians of unit covariance on a circle, class by class, and their labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.data_seed)
        centers = [RADIUS * torch.tensor([math.cos(a), math.sin(a)]) for a in map(math.radians, ANGLES)]
        x = torch.cat([center + torch.randn(settings.train_points, 2) for center in centers])
    return x, torch.arange(len(ANGLES)).repeat_interleave(settings.train_points)


def train(settings: Settings, x: Tensor, y: Tensor, progress: Progress) -> nn.Sequential:
    """The trained classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.model_seed)
        model = nn.Sequential(
            nn.Linear(2, settings.width), nn.ReLU(), nn.Linear(settings.width, settings.width), nn.ReLU(),
            nn.Linear(settings.width, len(ANGLES)),
        )  # fmt: skip
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=settings.learning_rate), nn.CrossEntropyLoss()
    for step in range(settings.steps):
        if step % 500 == 0:
            progress(f"training, step {step}", step / settings.steps)
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return model


def measure(settings: Settings, progress: Progress) -> dict[str, object]:
    """`c_lower` over the training points, `grid` over the grid, and the proved `c_upper`."""
    x, y = points(settings)
    model = train(settings, x, y, progress)
    progress("the grid", 1.0)
    axis = torch.linspace(-settings.half_width, settings.half_width, settings.grid_points, dtype=torch.float64)
    return {
        "c_lower": norms_at(model, x).lower,
        "grid": norms_at(model, torch.cartesian_prod(axis, axis)).lower,
        "c_upper": proved_upper(model, (2,)),
    }


def judge(figures: Figures, settings: Settings) -> bool | None:
    """Whether the sandwich holds and, for the published recipe, all figures are within the tolerance of the published.

    With another recipe a sandwich that holds says nothing about the published figures: None.
    """
    if not max(figures["c_lower"], figures["grid"]) <= figures["c_upper"]:
        return False  # not a matter of tolerance: the product is an upper bound
    recipe = Settings(tolerance=settings.tolerance)
    if settings != recipe:
        return None
    return all(abs(figures[key] - value) <= settings.tolerance * value for key, value in PUBLISHED.items())


STUDY = Study(
    name="toy-sandwich",
    claim="For a small classifier of points in the plane, the largest Jacobian norm over the training points, the largest "
    "on a grid and the product of the layers' norms are the published ones, in this order.",
    settings=Settings(),
    measure=measure,
    judge=judge,
)  # fmt: skip
