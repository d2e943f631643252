"""Measured band gains: how much a model amplifies small changes of each band, at data points.

`K_b(x) = |J(x) P_b|_2`. The largest over data is a lower bound of the gain K_b of the band up to rounding, never an upper one;
for that see `band_bounds`. At every x: `max_b K_b(x) <= |J(x)|_2 <= sqrt(sum_b K_b(x)^2)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipscope.frequency.bands import Bands
from lipscope.frequency.evaluation import Model
from lipscope.frequency.jacobian import Sensitivity, sensitivity
from lipscope.frequency.statistics import number, standard_error


@dataclass(frozen=True)
class Gain:
    """The gain of one band (or of all) over the data.

    Attributes:
        largest: over the examples.
        at: the example that attains it, counted from 0.
        mean: over the examples.
        se: standard error of the mean; nan for one example.
        median: the 50th percentile.
        p99: the 99th percentile.
    """

    largest: float
    at: int
    mean: float
    se: float
    median: float
    p99: float

    def to_json(self) -> dict[str, object]:
        """The keys of a band in `spectrum.json`."""
        return {
            "measured": self.largest, "measured_at": self.at, "measured_mean": self.mean,
            "measured_se": number(self.se), "measured_p50": self.median, "measured_p99": self.p99,
        }  # fmt: skip


def summary(values: Tensor) -> Gain:
    """The statistics of one gain at n examples."""
    at = int(values.argmax())
    middle, high = torch.quantile(values, torch.tensor([0.5, 0.99], dtype=values.dtype)).tolist()
    return Gain(float(values[at]), at, float(values.mean()), float(standard_error(values)), middle, high)


def summaries(measured: Sensitivity) -> tuple[tuple[Gain, ...], Gain]:
    """The gains of all bands, and that of the whole input."""
    return tuple(summary(column) for column in measured.gains.T), summary(measured.total)


def band_gains(model: Model, x: Tensor, bands: Bands, *, batch: int = 32) -> tuple[Gain, ...]:
    """The measured gain of every band at examples (n, C, *grid).

    Raises:
        ModelError: the model is in train mode.
        UsageError: x is not on the grid of the bands.
    """
    return summaries(sensitivity(model, x, bands, batch=batch))[0]
