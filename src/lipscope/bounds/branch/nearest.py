"""Where inequalities hold in a domain, in float64: the point nearest to the domain's center, or the multipliers that speak against one.

`min |y|^2` with `G y >= h` is a least distance problem. With `E = [G^T; h^T]`, f the last unit vector and r = E u - f for the u >= 0 that
minimises |r|, the point is `y = -r_y/r_h` and `|y|^2 = 1/|r|^2 - 1`; where r = 0 there is none (Lawson and Hanson, Solving Least Squares
Problems, ch. 23). In both cases u says why there is no point nearer to the origin: `u (G y - h) >= 0` fails there.

Coordinates are chosen so that the domain is about of size 1. A box is 2n inequalities, a ball in l1 is the image of `y >= 0, sum y <= 1` under
`y -> y_+ - y_-`, and one in l2 is met if |y| <= 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from lipscope.bounds.branch.exact import Matrix
from lipscope.bounds.branch.region import Domain

NOWHERE = 1e-13
"""|r|^2 that counts as 0: points more than a few million times farther away than the hyperplanes are not found."""

CONFLICT = 1e-9
"""Multipliers of more than this share of the largest one name the inequalities that stand against each other."""

MARGINS = (0.1, 0.03, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""How far from the hyperplanes a point is to be, in these coordinates: as far as the first of them that is possible."""


@dataclass(frozen=True, eq=False)
class Place:
    """What is known of inequalities in a domain.

    Attributes:
        point: satisfies them about; None where none was found.
        inner: whether it has room around it.
        multipliers: of the inequalities, where there is no such point.
        loose: the coordinates of x that no inequality of the domain holds back.
    """

    point: Matrix | None
    inner: bool
    multipliers: Matrix
    loose: list[int]


@dataclass(frozen=True, eq=False)
class _Frame:
    """`x = center + scale (y or y_+ - y_-)`, the domain's inequalities on y, and the least |r|^2 of a point in it."""

    center: Matrix
    scale: Matrix
    rows: Matrix
    least: Matrix
    least_square: float = NOWHERE

    def slopes(self, slopes: Matrix) -> Matrix:
        """Of x as those of y."""
        scaled = slopes * self.scale
        return np.hstack([scaled, -scaled]) if self.rows.shape[1] > len(self.center) else scaled

    def point(self, y: Matrix) -> Matrix:
        """The x of a y."""
        n = len(self.center)
        return self.center + self.scale * (y[:n] - y[n:] if len(y) > n else y)

    def loose(self, multipliers: Matrix) -> list[int]:
        """See `Place`."""
        n = len(self.center)
        if len(multipliers) != 2 * n:
            return list(range(n))
        return np.flatnonzero(multipliers[:n] + multipliers[n:] == 0).tolist()


def _frame(domain: Domain, distances: Matrix) -> _Frame:
    center, size = domain.middle, len(domain.free)
    if domain.kind == "everywhere":
        typical = float(np.median(distances[distances > 0])) if (distances > 0).any() else 1.0
        return _Frame(center, np.full(size, typical), np.zeros((0, size)), np.zeros(0))
    ends = domain.ends
    assert ends is not None
    half = ends[1] / 2 - ends[0] / 2
    if domain.kind == "l2":
        return _Frame(center, half, np.zeros((0, size)), np.zeros(0), 0.5)
    if domain.kind == "l1":
        return _Frame(
            center, half, np.vstack([np.eye(2 * size), -np.ones((1, 2 * size))]), np.append(np.zeros(2 * size), -1)
        )
    return _Frame(center, half, np.vstack([np.eye(size), -np.eye(size)]), np.full(2 * size, -1.0))


def place(domain: Domain, slopes: Matrix, values: Matrix) -> Place | None:
    """Where `slopes (x - center) + values >= 0` in a domain; None if the search fails.

    Args:
        domain: where x lies.
        slopes: one row an inequality, by free coordinates, none of them 0.
        values: of the inequalities' left sides at the domain's center (`Domain.middle`).
    """
    lengths = np.linalg.norm(slopes, axis=1)
    frame = _frame(domain, np.abs(values) / lengths)
    own = frame.slopes(slopes)
    lengths = np.linalg.norm(own, axis=1)
    own, values = own / lengths[:, None], values / lengths

    def nearest(margin: float) -> tuple[Matrix | None, Matrix] | None:
        rows, least = np.vstack([own, frame.rows]), np.concatenate([margin - values, frame.least])
        return _least_distance(rows, least, frame.least_square)

    found = nearest(0.0)
    point = None if found is None or found[0] is None else frame.point(found[0])
    if point is not None:
        for margin in MARGINS:
            found = nearest(margin)
            if found is not None and found[0] is not None and (own @ found[0] + values >= margin / 2).all():
                return Place(frame.point(found[0]), True, np.zeros(len(values)), [])
    if found is None:
        return None
    return Place(point, False, found[1][: len(values)] / lengths, frame.loose(found[1][len(values) :]))


def _least_distance(rows: Matrix, least: Matrix, least_square: float) -> tuple[Matrix | None, Matrix] | None:
    """The point (None where there is none, or it is too far away), and the multipliers; None if the search fails."""
    size = np.maximum(1.0, np.abs(least))
    system = np.vstack([rows.T, least]) / size
    goal = np.zeros(len(system))
    goal[-1] = 1.0
    try:
        scaled, distance = nnls(system, goal)
    except (RuntimeError, ValueError):  # it goes round in circles, or has met numbers that are not finite
        return None
    if distance**2 < least_square:
        return None, scaled / size
    rest = system @ scaled - goal
    if not rest[-1] < 0:  # at the minimum it is -|r|^2
        return None
    point = -rest[:-1] / rest[-1]
    holds = rows @ point - least >= -1e-9 * size * (1 + np.abs(point).max(initial=0.0))
    return (point, scaled / size) if bool(holds.all()) else None
