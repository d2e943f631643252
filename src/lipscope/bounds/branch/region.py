"""Where x may lie, exactly: the region of the claim in the coordinates in which it has an interior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from flint import fmpq, fmpq_mat

from lipscope.bounds.branch.exact import Matrix, Row, rational, rationals
from lipscope.claims.norms import Norm
from lipscope.claims.regions import Ball, Box, Region

INSIDE = 1 - 1e-3
"""The share of a region in which points are looked for: around them there is room for others."""


@dataclass(frozen=True)
class Domain:
    """A convex set with interior in the coordinates `free`; the others are fixed.

    Attributes:
        kind: everywhere, box, or the norm of a ball.
        size: the number of all coordinates.
        free: the coordinates that vary.
        fixed: the values of the others, by coordinate.
        first: lower ends of a box, or the center of a ball, of the free coordinates.
        second: upper ends of a box, or the radius of a ball (one number).
    """

    kind: Literal["everywhere", "box", "l1", "l2", "linf"]
    size: int
    free: tuple[int, ...]
    fixed: dict[int, fmpq]
    first: Row
    second: Row

    @property
    def bounded(self) -> bool:
        """Whether it is bounded."""
        return self.kind != "everywhere"

    def nonpositive(self, slope: Row, offset: fmpq) -> bool:
        """Whether `slope x + offset <= 0` for all x of the domain, exactly."""
        return self.largest_sign(slope, offset) <= 0

    def largest_sign(self, slope: Row, offset: fmpq) -> int:
        """The sign of the largest value of `slope x + offset` on the domain: 1 also where it is unbounded."""
        if self.kind == "everywhere":
            return 1 if any(a != 0 for a in slope) else _sign(offset)
        if self.kind == "box":
            ends = zip(slope, self.first, self.second, strict=True)
            return _sign(sum((a * (high if a > 0 else low) for a, low, high in ends), offset))
        middle = sum((a * c for a, c in zip(slope, self.first, strict=True)), offset)
        sizes, radius = [abs(a) for a in slope], self.second[0]
        if self.kind == "linf":
            return _sign(middle + radius * sum(sizes, fmpq(0)))
        if self.kind == "l1":
            return _sign(middle + radius * max(sizes, default=fmpq(0)))
        square = radius * radius * sum((a * a for a in slope), fmpq(0))
        return 1 if middle > 0 else _sign(square - middle * middle)

    def values(self, rows: Sequence[tuple[Row, fmpq]]) -> Row:
        """`slope x + offset` of each row (slope, offset) at `middle`, exactly."""
        products = fmpq_mat([slope for slope, _ in rows]) * fmpq_mat(len(self.free), 1, self._exact_middle)
        return [p + offset for p, (_, offset) in zip(products.entries(), rows, strict=True)]

    @cached_property
    def ends(self) -> tuple[Matrix, Matrix] | None:
        """Float64 ends of a box around it (free coordinates), or None; for searching."""
        if self.kind == "everywhere":
            return None
        first = np.array([float(v) for v in self.first])
        if self.kind == "box":
            return first, np.array([float(v) for v in self.second])
        return first - float(self.second[0]), first + float(self.second[0])

    def pulled(self, points: Matrix) -> Matrix:
        """Columns as they are where they lie inside, the others moved inside in float64; for searching."""
        if self.kind == "everywhere":
            return points
        center = self.middle[:, None]
        if self.kind in ("box", "linf"):
            assert self.ends is not None
            half = (self.ends[1] / 2 - self.ends[0] / 2)[:, None] * INSIDE
            return np.clip(points, center - half, center + half)
        radius = float(self.second[0]) * INSIDE
        length = np.linalg.norm(points - center, 1 if self.kind == "l1" else 2, axis=0)
        shrunk: Matrix = center + (points - center) * np.where(
            length > radius, radius / np.where(length > radius, length, 1.0), 1.0
        )
        return shrunk

    @cached_property
    def middle(self) -> Matrix:
        """A point inside, in float64; for searching."""
        return np.zeros(len(self.free)) if self.ends is None else self.ends[0] / 2 + self.ends[1] / 2

    @cached_property
    def _exact_middle(self) -> Row:
        return rationals(self.middle.tolist())


def domain_of(region: Region, size: int, norm: Norm) -> Domain:
    """The domain of a claim's region."""
    every = tuple(range(size))
    if isinstance(region, Ball) and region.radius > 0:
        return Domain(norm, size, every, {}, rationals(region.center.tolist()), [rational(region.radius)])
    if isinstance(region, Ball):
        region = Box(region.center, region.center)
    if isinstance(region, Box):
        free = tuple(np.flatnonzero(region.lower < region.upper).tolist())
        fixed = {i: rational(float(region.lower[i])) for i in every if region.lower[i] == region.upper[i]}
        return Domain("box", size, free, fixed, _picked(region.lower, free), _picked(region.upper, free))
    return Domain("everywhere", size, every, {}, [], [])


def _picked(values: Matrix, free: Sequence[int]) -> Row:
    return rationals(values[list(free)].tolist())


def _sign(value: fmpq) -> int:
    return int(value > 0) - int(value < 0)
