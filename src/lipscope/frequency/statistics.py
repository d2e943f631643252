"""Means over data with their standard errors."""

from __future__ import annotations

import math

from torch import Tensor


def standard_error(values: Tensor) -> Tensor:
    """Standard error of the mean over axis 0, nan for a single row."""
    n = values.shape[0]
    if n < 2:
        return values.new_full(values.shape[1:], math.nan)
    spread: Tensor = values.std(dim=0) / n**0.5
    return spread


def numbers(values: Tensor) -> list[float | None]:
    """A vector as JSON: nan and infinity become null."""
    return [v if math.isfinite(v) else None for v in values.tolist()]


def number(value: Tensor | float) -> float | None:
    """A number as JSON."""
    plain = float(value)
    return plain if math.isfinite(plain) else None
