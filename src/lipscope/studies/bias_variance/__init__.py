"""The variance of a network over seeds, and what its Lipschitz constants allow it to be. See README.md.

Derivation. Seeds z are drawn from the finite set of the run, each with equal probability; f_z is the network, g its
mean over z, C_z a Lipschitz constant of f_z, x' any reference point. `Var f(x) = E_z |f_z(x) - g(x)|^2` over all
outputs. With `h_z(x) = f_z(x) - f_z(x')`, the triangle inequality in L2 over z, and because centring does not increase
an L2 norm,

    sd f(x) <= (E |h_z(x) - E h_z(x)|^2)^(1/2) + sd f(x') <= (E |h_z(x)|^2)^(1/2) + sd f(x')
            <= (E C_z^2)^(1/2) |x - x'| + sd f(x').

Squared and averaged over x this is the two-term bound. With D a constant of g, splitting `f_z(x) - g(x)` into three and
`(a + b + c)^2 <= 3 (a^2 + b^2 + c^2)` gives the three-term bound of arXiv 2302.10886,

    E_x Var f(x) <= 3 (D^2 + E C_z^2) E_x |x - x'|^2 + 3 Var f(x').

Both hold for any upper bounds in place of C_z and D. Here C_z is proved for each network, and D = E C_z, which is a
constant of the mean. The expectation over x is the mean over the test points. The two-term bound is never the larger:
`(a + b)^2 <= 2 a^2 + 2 b^2`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lipscope.claims.errors import Interrupted, UsageError
from lipscope.claims.progress import Progress
from lipscope.studies.data import Data, mnist1d
from lipscope.studies.sandwich import norms_at, proved_upper
from lipscope.studies.study import Figures, Study

INPUTS, CLASSES = 40, 10
REFERENCES = ("zero", "test_mean")


@dataclass(frozen=True)
class Settings:
    """The experiment.

    Attributes:
        widths: hidden units of the networks, rising.
        seeds: of the initialisation; everything else is the same for all.
        samples: how many training points, the first of MNIST-1D. A width w can just fit them at `51 w + 10` about
            `10 samples`: the outputs are ten numbers each.
        learning_rate: of full-batch gradient descent on half the squared distance to the one-hot labels.
        momentum: of it.
        warm_up: steps over which the learning rate rises linearly.
        steps: how many.
        method: of `lipscope.bounds`, for the constants: `product`, or `auto` for tighter ones.
    """

    widths: tuple[int, ...] = (2, 5, 10, 20, 40, 80, 160, 320)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    samples: int = 200
    learning_rate: float = 0.05
    momentum: float = 0.9
    warm_up: int = 200
    steps: int = 8000
    method: str = "product"

    def __post_init__(self) -> None:
        if not self.widths or self.widths[0] < 1 or any(a >= b for a, b in pairwise(self.widths)):
            raise UsageError(f"expected rising widths >= 1, got {self.widths}")
        if len(set(self.seeds)) < 2 or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"expected at least two different seeds, got {self.seeds}")
        if not (1 <= self.samples <= 4000 and self.steps >= 0 and self.warm_up >= 1):
            raise UsageError(f"expected 1 to 4000 samples and steps >= 0, got {self.samples} and {self.steps}")


def train(settings: Settings, width: int, seed: int, data: Data) -> nn.Sequential:
    """The trained network of one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, CLASSES))
    x, y = data.x[: settings.samples], one_hot(data.y[: settings.samples]).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * min(1.0, (step + 1) / settings.warm_up)
        optimizer.zero_grad()
        (0.5 * (model(x) - y).square().sum(1).mean()).backward()
        optimizer.step()
    return model


def one_hot(labels: Tensor) -> Tensor:
    """Labels as targets, float64."""
    return nn.functional.one_hot(labels, CLASSES).double()


def variance(outputs: Tensor) -> Tensor:
    """`Var f(x)` at each point, (seeds, points, outputs) to (points,): over the seeds, summed over the outputs."""
    return (outputs - outputs.mean(0)).square().sum(2).mean(0)


def bounds(constants: Tensor, distances: Tensor, reference_variance: float) -> dict[str, float]:
    """The two-term and the three-term bound of `E_x Var f(x)`.

    Args:
        constants: one Lipschitz constant a seed.
        distances: `|x - x'|` of each test point from the reference point.
        reference_variance: `Var f(x')`.
    """
    square = float(constants.square().mean())
    mean = float(constants.mean())
    return {
        "two_term": float((square**0.5 * distances + reference_variance**0.5).square().mean()),
        "three_term": 3 * (mean**2 + square) * float(distances.square().mean()) + 3 * reference_variance,
    }


def one_width(settings: Settings, width: int, models: Sequence[nn.Module], data: Data) -> dict[str, Any]:
    """Both sides of the inequality for the networks of one width, and the decomposition of their test error."""
    exact = [nn.Sequential(*model.children()).double() for model in models]
    x, y = data.x_test.double(), one_hot(data.y_test)
    references = {"zero": torch.zeros(1, INPUTS, dtype=torch.float64), "test_mean": x.mean(0, keepdim=True)}
    with torch.no_grad():
        outputs = torch.stack([model(x) for model in exact])
        train_x, train_y = data.x[: settings.samples].double(), one_hot(data.y[: settings.samples])
        train_error = float(torch.stack([(model(train_x) - train_y).square().sum(1).mean() for model in exact]).mean())
        at = {key: float(variance(torch.stack([model(point) for model in exact]))) for key, point in references.items()}
    upper = torch.tensor([proved_upper(m, (INPUTS,), settings.method) for m in exact], dtype=torch.float64)
    lower = torch.tensor([norms_at(m, x).lower for m in exact], dtype=torch.float64)
    distances = {key: (x - point).norm(dim=1) for key, point in references.items()}
    measured = float(variance(outputs).mean())
    found = {key: bounds(upper, distances[key], at[key]) for key in REFERENCES}
    return {
        "width": width,
        "parameters_per_target": ((INPUTS + 1) * width + (width + 1) * CLASSES) / (CLASSES * settings.samples),
        "train_error": train_error,
        "test_error": float((outputs - y).square().sum(2).mean()),
        "bias": float((outputs.mean(0) - y).square().sum(1).mean()),
        "variance": measured,
        "c_lower": float(lower.mean()),
        "c_upper": float(upper.mean()),
        "variance_at_reference": at,
        "bound": found,
        "looseness": {key: {term: value / measured for term, value in found[key].items()} for key in REFERENCES},
        "not_a_bound_with_c_lower": {key: bounds(lower, distances[key], at[key])["two_term"] for key in REFERENCES},
    }


def measure(settings: Settings, progress: Progress) -> dict[str, object]:
    """A row a width; where variance, bias and the smallest bound peak, and how far each falls from there to the widest."""
    data = mnist1d()
    rows: list[dict[str, Any]] = []
    try:
        for i, width in enumerate(settings.widths):
            models = []
            for j, seed in enumerate(settings.seeds):
                done = (i + j / len(settings.seeds)) / len(settings.widths)
                progress(f"width {width}, seed {seed}", done)
                models.append(train(settings, width, seed, data))
            rows.append(one_width(settings, width, models, data))
    except KeyboardInterrupt:
        raise Interrupted("stopped while training", {"rows": rows}) from None
    curves = {"variance": [row["variance"] for row in rows], "bias": [row["bias"] for row in rows],
              "bound": [smallest(row) for row in rows]}  # fmt: skip
    peaks = {f"{key}_peak_width": settings.widths[curve.index(max(curve))] for key, curve in curves.items()}
    return {"rows": rows, **peaks, **{f"{key}_fall": max(curve) / curve[-1] for key, curve in curves.items()}}


def smallest(row: Mapping[str, Any]) -> float:
    """The smaller two-term bound of a row: a theorem for each reference point, so also for the better one."""
    return min(float(row["bound"][key]["two_term"]) for key in REFERENCES)


def judge(figures: Figures, settings: Settings) -> bool | None:
    """Whether the variance is below both bounds at each width, and bound and variance peak within one width.

    None if the variance peaks at the first or the last width: then the widths show no peak to compare.
    """
    rows = figures["rows"]
    for row in rows:
        for key in REFERENCES:
            if not row["variance"] <= row["bound"][key]["two_term"] <= row["bound"][key]["three_term"]:
                return False
    widths = [row["width"] for row in rows]
    peak = widths.index(figures["variance_peak_width"])
    if peak in (0, len(widths) - 1):
        return None
    return abs(peak - widths.index(figures["bound_peak_width"])) <= 1


STUDY = Study(
    name="bias-variance",
    claim="The variance of a network over seeds stays below two bounds made from its Lipschitz constants, and the bound "
    "peaks at the same width as the variance.",
    settings=Settings(),
    measure=measure,
    judge=judge,
)
