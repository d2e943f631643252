"""The functions that a network is split on: continuous, linear between finitely many thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flint import fmpq

from lipscope.bounds.branch.exact import rational
from lipscope.network.nodes import Elementwise


@dataclass(frozen=True)
class Pieces:
    """A piecewise linear function: on piece p, between thresholds p - 1 and p, it is `slopes[p] v + shifts[p]`."""

    thresholds: tuple[fmpq, ...]
    slopes: tuple[fmpq, ...]
    shifts: tuple[fmpq, ...]

    @classmethod
    def of(cls, thresholds: Sequence[float], slopes: Sequence[float], shifts: Sequence[float]) -> Pieces:
        """From float64 numbers."""
        return cls(*(tuple(rational(v) for v in values) for values in (thresholds, slopes, shifts)))

    def reached(self, lower: float, upper: float) -> tuple[int, int]:
        """The first and the last piece that an argument in `[lower, upper]` needs; at a threshold either side does."""
        first = sum(t <= rational(lower) for t in self.thresholds) if lower > -math.inf else 0
        last = sum(t < rational(upper) for t in self.thresholds) if upper < math.inf else len(self.thresholds)
        return first, max(first, last)


ABSOLUTE = Pieces.of([0.0], [-1.0, 1.0], [0.0, 0.0])
SPLIT = ("relu", "leaky_relu", "prelu", "abs", "clip")
"""Functions of `Elementwise` that have pieces."""


def pieces_of(node: Elementwise) -> list[Pieces]:
    """The pieces of every entry of a node whose function is in `SPLIT`."""
    name, argument = node.function, node.argument
    if name == "prelu":
        assert node.slope is not None
        slopes = np.broadcast_to(np.asarray(node.slope, dtype=np.float64), node.shape).ravel().tolist()
        return [Pieces.of([0.0], [slope, 1.0], [0.0, 0.0]) for slope in slopes]
    if name == "clip":
        return [_clip(argument["low"], argument["high"])] * node.size
    if name == "abs":
        return [ABSOLUTE] * node.size
    negative = 0.0 if name == "relu" else argument["negative_slope"]
    return [Pieces.of([0.0], [negative, 1.0], [0.0, 0.0])] * node.size


def _clip(low: float, high: float) -> Pieces:
    """`min(max(v, low), high)`, where an end may be infinite."""
    if low >= high:
        return Pieces.of([], [0.0], [high])
    thresholds, slopes, shifts = [], [1.0], [0.0]
    if low > -math.inf:
        thresholds, slopes, shifts = [low], [0.0, *slopes], [low, *shifts]
    if high < math.inf:
        thresholds, slopes, shifts = [*thresholds, high], [*slopes, 0.0], [*shifts, high]
    return Pieces.of(thresholds, slopes, shifts)
