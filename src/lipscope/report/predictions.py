"""The stochastic differential equation of a run, from the forces that were read at its steps. Knows no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from lipscope.dynamics.prediction import Coefficients, Forecast, LayerCoefficients, forecast
from lipscope.dynamics.store import Series

Table = Mapping[tuple[str, str], Series]

TERMS = ("flow", "noise", "noise_curvature", "flow_curvature", "q_ratio")
"""What is needed of every layer at every observed step."""


@dataclass(frozen=True)
class Prediction:
    """A forecast of the log product since the first observed step, and what happened.

    Attributes:
        forecast: with the flags that speak against it.
        observed: the log product at the steps of the path.
    """

    forecast: Forecast
    observed: tuple[float, ...]


def predict(series: Table, calls: Mapping[str, int]) -> Prediction | None:
    """The forecast from the observed steps, each of which tells the coefficients until the next.

    Time is counted in steps: the step size is in the terms already. None where the steps were not split into flow and noise
    (which needs plain SGD and a reference), or their numbers do not grow (a run that went back to an earlier checkpoint).

    Args:
        series: of the identity, by name and layer.
        calls: how often the network uses a layer, if not once.
    """
    layers = [layer for name, layer in series if name == "change" and layer]
    whole = {name: _by_step(series, name, "") for name in ("total_change", "total_outside", "change")}
    steps = list(whole["change"])
    if not steps or ("flow", "") not in series or any(b <= a for a, b in pairwise(series["change", ""].step.tolist())):
        return None
    rows = {(name, layer): _by_step(series, name, layer) for name in TERMS for layer in layers}
    points = [
        _coefficients(step, {key: row.get(step, math.nan) for key, row in rows.items()}, layers, calls)
        for step in steps
    ]
    after = [whole["total_change"][step] + whole["total_outside"].get(step, 0.0) for step in steps]
    before = [value - whole["change"][step] for value, step in zip(after, steps, strict=True)]
    observed = tuple(value - before[0] for value in (*before, after[-1]))
    return Prediction(forecast(points, 0.0, steps[-1], observed=observed), observed)


def _by_step(series: Table, name: str, layer: str) -> dict[int, float]:
    found = series.get((name, layer))
    return {} if found is None else dict(zip(found.step.tolist(), found.value.tolist(), strict=True))


def _coefficients(
    step: int, values: Mapping[tuple[str, str], float], layers: list[str], calls: Mapping[str, int]
) -> Coefficients:
    """As `lipscope.dynamics.sde.observed_coefficients`, from stored values, with a step as the unit of time."""
    found, noise, ratio = [], 0.0, 0.0
    for layer in layers:
        squared = values["noise", layer] ** 2
        noise += values["noise", layer]
        ratio = max(ratio, values["q_ratio", layer])
        found.append(
            LayerCoefficients(
                layer, values["flow", layer], values["noise_curvature", layer], squared,
                -squared / (2 * calls.get(layer, 1)), values["flow_curvature", layer],
            )
        )  # fmt: skip
    return Coefficients(step - 1, 1.0, tuple(found), noise**2, ratio)
