"""A forecast of the log Lipschitz product from the coefficients of its stochastic differential equation, with the evidence
against it. What the coefficients are is told in `lipscope.dynamics.sde`. Knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lipscope.claims.errors import UsageError
from lipscope.dynamics.alerts import CROSSING

OMITTED = 0.2
"""Share of the forecast's motion that the missing curvature of the flow may have before the step size counts as too large."""
CROSSED = 0.01
"""Share of the steps at which the top singular vector may change."""
AGREEMENT = 0.5
"""R^2 against what was observed, below which a forecast is refuted."""


@dataclass(frozen=True)
class LayerCoefficients:
    """One layer at one moment, per unit of time, for `calls` uses of it.

    Attributes:
        layer: its name.
        drift: `mu`.
        noise_curvature: `kappa`.
        diffusion: `l^2` of all its calls together.
        correction: `-l^2 / 2` of every call, summed.
        flow_curvature: what the equation leaves out; nan where unknown.
    """

    layer: str
    drift: float
    noise_curvature: float
    diffusion: float
    correction: float
    flow_curvature: float


@dataclass(frozen=True)
class Coefficients:
    """The network at one moment.

    Attributes:
        step: optimizer steps done.
        eta: the step size.
        layers: in order.
        diffusion: of `Z` per unit of time, with the covariances between layers.
        q_ratio: the largest of the layers' at the step taken there; nan where not looked at.
    """

    step: int
    eta: float
    layers: tuple[LayerCoefficients, ...]
    diffusion: float
    q_ratio: float = math.nan

    @property
    def drift(self) -> float:
        """Of `Z` per unit of time: flow, noise-curvature and correction."""
        return sum(layer.drift + layer.noise_curvature + layer.correction for layer in self.layers)

    @property
    def product_drift(self) -> float:
        """Of `K = exp Z`, relative to it: the drift of `Z` plus half of its diffusion, covariances between layers included."""
        return self.drift + self.diffusion / 2

    @property
    def block_diffusion(self) -> float:
        """Of `Z` if the layers were independent."""
        return sum(layer.diffusion for layer in self.layers)

    @property
    def flow_curvature(self) -> float:
        """What is left out, per unit of time; nan if it is unknown for a layer."""
        return sum(layer.flow_curvature for layer in self.layers)


@dataclass(frozen=True)
class Flag:
    """Something that a reader of a forecast must know.

    Attributes:
        name: step size, cadence, variance, gap, observed, coefficients or state.
        reason: in words, with the evidence.
        unsound: whether the forecast must not be drawn as one.
    """

    name: str
    reason: str
    unsound: bool


@dataclass(frozen=True)
class Forecast:
    """The path of `Z` with an envelope.

    Attributes:
        steps: at which the path is given.
        path: `E Z`.
        sd: square root of the integrated diffusion; an upper envelope of the spread, never a confidence interval.
        flags: what speaks against it, always at least the two that hold for every run.
    """

    steps: tuple[int, ...]
    path: tuple[float, ...]
    sd: tuple[float, ...]
    flags: tuple[Flag, ...]

    @property
    def sound(self) -> bool:
        """False if it is known not to hold: it may then be shown crossed out, with the reasons, and not as a forecast."""
        return not any(flag.unsound for flag in self.flags)

    @property
    def mean_product(self) -> tuple[float, ...]:
        """`E exp Z = exp(E Z + Var Z / 2)`."""
        return tuple(_exp(z + sd**2 / 2) for z, sd in zip(self.path, self.sd, strict=True))

    @property
    def sd_product(self) -> tuple[float, ...]:
        """Standard deviation of `exp Z`, under the same envelope."""
        return tuple(_exp(z + sd**2 / 2) * math.sqrt(_exp(sd**2) - 1) for z, sd in zip(self.path, self.sd, strict=True))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def forecast(
    points: Sequence[Coefficients],
    start: float,
    last_step: int,
    *,
    averaged: bool = False,
    observed: Sequence[float] | None = None,
) -> Forecast:
    """The path from coefficients at some steps, each held until the next.

    Args:
        points: in order of their steps.
        start: `Z` at the first of them.
        last_step: where the path ends, after the last of them.
        averaged: whether every point is a mean over its whole interval and not a probe at its beginning.
        observed: `Z` as it was, at the steps of the path (one more than the points), to refute the forecast.

    Raises:
        UsageError: no points, steps that do not grow, or another number of observations.
    """
    steps = [*(p.step for p in points), last_step]
    if not points or any(b <= a for a, b in pairwise(steps)):
        raise UsageError(f"expected coefficients at growing steps before the last one, got the steps {steps}")
    if observed is not None and len(observed) != len(steps):
        raise UsageError(f"expected {len(steps)} observed values, one a step of the path, got {len(observed)}")
    path, variance = [start], [0.0]
    for point, stop in zip(points, steps[1:], strict=True):
        time = point.eta * (stop - point.step)
        path.append(path[-1] + time * point.drift)
        variance.append(variance[-1] + time * max(point.diffusion, 0.0))
    flags = [*_flags(points, steps, averaged), *_refuted(path, observed)]
    return Forecast(tuple(steps), tuple(path), tuple(math.sqrt(v) for v in variance), tuple(flags))


def _flags(points: Sequence[Coefficients], steps: Sequence[int], averaged: bool) -> list[Flag]:
    lengths = [b - a for a, b in pairwise(steps)]
    found = [
        Flag("variance", "noise at one step is undone by the flow of the next: the true spread is smaller", False),
        Flag("state", "the drift depends on where training goes; the path holds for the weights that were seen", False),
    ]
    if not all(math.isfinite(p.drift) and math.isfinite(p.diffusion) for p in points):
        found.append(Flag("coefficients", "some coefficients are not known (curvature of a layer, or weights)", True))
    if not averaged and max(lengths) > 1:
        found.append(
            Flag("cadence", f"the drift was probed every {max(lengths)} steps, and it changes from step to step", True)
        )
    moved = _motion(points, lengths)
    omitted = sum(p.eta * n * p.flow_curvature for p, n in zip(points, lengths, strict=True))
    if math.isnan(omitted):
        found.append(Flag("step size", "the curvature of the flow was not measured", False))
    elif omitted > OMITTED * moved:
        found.append(
            Flag("step size", f"the curvature of the flow, left out, is {omitted / moved:.2f} of the motion", True)
            if moved
            else Flag("step size", "only the curvature of the flow, left out, moves it", True)
        )
    seen = [(p.q_ratio, n) for p, n in zip(points, lengths, strict=True) if not math.isnan(p.q_ratio)]
    crossed = sum(n for ratio, n in seen if ratio > CROSSING)
    if not seen:
        found.append(Flag("gap", "the distance to the second singular value was not looked at", False))
    elif crossed:
        share = crossed / sum(n for _, n in seen)
        found.append(
            Flag("gap", f"another singular vector is within reach at {share:.1%} of the steps", share > CROSSED)
        )
    return found


def _motion(points: Sequence[Coefficients], lengths: Sequence[int]) -> float:
    """How much the flow and the curvature of the noise move the log product, over the whole path."""
    time = [p.eta * n for p, n in zip(points, lengths, strict=True)]
    flow = sum(t * layer.drift for t, p in zip(time, points, strict=True) for layer in p.layers)
    return abs(flow) + sum(t * layer.noise_curvature for t, p in zip(time, points, strict=True) for layer in p.layers)


def _refuted(path: Sequence[float], observed: Sequence[float] | None) -> list[Flag]:
    if observed is None:
        return []
    mean = sum(observed) / len(observed)
    spread = sum((z - mean) ** 2 for z in observed)
    missed = sum((z - p) ** 2 for z, p in zip(observed, path, strict=True))
    if not missed > (1 - AGREEMENT) * spread:
        return []
    score = f"R^2 {1 - missed / spread:.2f}" if spread else "nothing moved"
    return [Flag("observed", f"it disagrees with what was observed ({score})", True)]
