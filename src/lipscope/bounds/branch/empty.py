"""Cells without a point, and the multipliers that prove it.

In a cell a unit whose pieces begin after a threshold has `v > threshold`; one whose pieces end at it has `v < threshold`,
almost everywhere, unless v is the threshold identically (such points are sent below). Where v is affine in x these are
inequalities `a_i x + b_i > 0`. If multipliers `m_i >= 0`, not all 0, make `sum m_i (a_i x + b_i) <= 0` on the whole domain,
no point satisfies them all (the easy half of Farkas' lemma), and the cell may be dropped.

A linear program looks for the point that satisfies them best; where there is none its dual values are the multipliers.
They are rounded to integers, or, where the inequalities leave no room (parallel or concurrent hyperplanes), found again
in rational arithmetic from the constraints that are active. Whether they prove it is decided exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from flint import fmpq, fmpq_mat
from scipy.optimize import linprog

from lipscope.bounds.branch.exact import Matrix, OutOfRange, Row, nearest_rows
from lipscope.bounds.branch.forms import Forms
from lipscope.bounds.branch.region import Domain

Key = tuple[int, str]
"""A unit and a side, `above` or `below`."""

ROOM = 1e-6
"""A point that satisfies all inequalities (scaled to length 1) by this much is believed."""

CUTS = 40
"""Rounds in which a Euclidean ball is approximated by half-spaces."""


@dataclass(frozen=True, eq=False)
class Inequality:
    """`slope x + offset > 0` almost everywhere in a cell."""

    key: Key
    slope: Row
    offset: fmpq


@dataclass(frozen=True, eq=False)
class Answer:
    """What is known of a set of inequalities.

    Attributes:
        proof: the multipliers that prove it empty, by inequality, as positive integers; None if it is not proved empty.
        point: a point believed to satisfy all, or where there is none the point that comes nearest to it; None if none was found.
        conflict: the inequalities that stand against each other, if there is no such point.
    """

    proof: dict[Key, int] | None = None
    point: Matrix | None = None
    conflict: list[Key] = field(default_factory=list)


def inequalities(forms: Forms) -> list[Inequality]:
    """Those of the cell's units that are affine in x, as far as they are more than `0 >= 0`."""
    skeleton, cell = forms.skeleton, forms.cell
    found = []
    for unit, row in enumerate(forms.rows):
        low, high, root = cell.low[unit], cell.high[unit], skeleton.root
        if (low == root.low[unit] and high == root.high[unit]) or not forms.plain(row):
            continue
        thresholds = skeleton.pieces_of_unit[unit].thresholds
        slope, offset = row[: forms.inputs], row[-1]
        if low > root.low[unit]:
            found.append(Inequality((unit, "above"), slope, offset - thresholds[low - 1]))
        if high < root.high[unit]:
            below = Inequality((unit, "below"), [-a for a in slope], thresholds[high] - offset)
            if below.offset != 0 or any(a != 0 for a in slope):  # v may be the threshold itself
                found.append(below)
    return found


def solve(domain: Domain, rows: list[Inequality]) -> Answer:
    """Whether all inequalities hold somewhere in the domain."""
    for row in rows:
        if domain.nonpositive(row.slope, row.offset):
            return Answer(proof={row.key: 1}, conflict=[row.key])
    if not rows:
        return Answer(point=domain.middle())
    try:
        matrix = nearest_rows([[*row.slope, row.offset] for row in rows], len(domain.free) + 1)
    except OutOfRange:
        return Answer()
    program = _Program(domain, matrix[:, :-1], matrix[:, -1])
    for _ in range(CUTS if domain.kind == "l2" else 1):
        if not program.solve():
            return Answer()
        if program.room > ROOM and program.inside():
            return Answer(point=program.point)
        if program.room <= ROOM:
            weights = program.multipliers
            proof = _rounded(domain, rows, weights) or _solved(domain, rows, weights, program.loose)
            if proof is not None or program.inside():
                conflict = [row.key for row, w in zip(rows, weights, strict=True) if w > 1e-9 * weights.max()]
                return Answer(proof=proof, point=program.point if program.inside() else None, conflict=conflict)
        program.cut()
    return Answer()


class _Program:
    """`max t` with `(a_i x + b_i)/|a_i| >= t`, x in the domain, t <= 1."""

    def __init__(self, domain: Domain, slopes: Matrix, offsets: Matrix) -> None:
        self.domain = domain
        self.scale = np.maximum(np.linalg.norm(slopes, axis=1), 1e-300)
        self.slopes, self.offsets = slopes / self.scale[:, None], offsets / self.scale
        self.cuts: list[tuple[Matrix, float]] = []

    def solve(self) -> bool:
        """One linear program; False if it has no answer."""
        count, size = self.slopes.shape
        extra = size if self.domain.kind == "l1" else 0
        rows = [np.hstack([-self.slopes, np.zeros((count, extra)), np.ones((count, 1))])]
        sides = [self.offsets]
        if extra:
            eye, one = np.eye(size), np.zeros((size, 1))
            center = self.domain.middle()
            rows += [np.hstack([eye, -eye, one]), np.hstack([-eye, -eye, one])]
            rows.append(np.hstack([np.zeros((1, size)), np.ones((1, size)), np.zeros((1, 1))]))
            sides += [center, -center, np.array([float(self.domain.second[0])])]
        for normal, side in self.cuts:
            rows.append(np.hstack([normal, np.zeros(extra + 1)])[None])
            sides.append(np.array([side]))
        ends = self.domain.ends()
        limits = np.full((size + extra + 1, 2), [-np.inf, np.inf])
        if ends is not None and not extra:
            limits[:size, 0], limits[:size, 1] = ends
        limits[-1, 1] = 1.0
        goal = np.zeros(size + extra + 1)
        goal[-1] = -1.0
        found = linprog(goal, np.vstack(rows), np.concatenate(sides), bounds=limits, method="highs-ds")
        if found.status != 0:
            return False
        self.point, self.room = found.x[:size], float(found.x[-1])
        self.multipliers = np.maximum(-found.ineqlin.marginals[:count], 0.0)
        pull = np.abs(found.lower.marginals[:size]) + np.abs(found.upper.marginals[:size])
        self.loose = [i for i in range(size) if pull[i] <= 1e-11]
        self.multipliers = self.multipliers / self.scale
        return bool(self.multipliers.max() > 0) or self.room > ROOM

    def inside(self) -> bool:
        """Whether the point lies in the domain, about."""
        if self.domain.kind != "l2":
            return True
        radius = float(self.domain.second[0])
        return bool(np.linalg.norm(self.point - self.domain.middle()) <= radius * (1 + 1e-7))

    def cut(self) -> None:
        """The half-space that touches a Euclidean ball towards the point."""
        center = self.domain.middle()
        away = self.point - center
        length = np.linalg.norm(away)
        normal = away / (length or 1.0)
        self.cuts.append((normal, float(normal @ center) + float(self.domain.second[0])))


def _rounded(domain: Domain, rows: list[Inequality], weights: Matrix) -> dict[Key, int] | None:
    """The multipliers as integers of 50 bits at most, if they prove it."""
    if not weights.max() > 0:
        return None
    whole = np.rint(np.ldexp(weights / weights.max(), 50))
    return _proving(domain, rows, [int(w) for w in whole])


def _solved(domain: Domain, rows: list[Inequality], weights: Matrix, loose: list[int]) -> dict[Key, int] | None:
    """Multipliers that cancel exactly on the loose coordinates, near the given ones, if they prove it."""
    if not weights.max() > 0:
        return None
    support = [i for i, w in enumerate(weights) if w > 1e-9 * weights.max()]
    system = fmpq_mat(len(loose), len(support), [rows[i].slope[c] for c in loose for i in support]) if loose else None
    values = [fmpq(round(w * 2**50 / weights.max()), 2**50) for w in weights[support]]
    if system is not None:
        reduced, rank = system.rref()
        table = reduced.tolist()[:rank]
        pivots = [next(j for j, v in enumerate(row) if v != 0) for row in table]
        for row, pivot in zip(table, pivots, strict=True):
            values[pivot] = -sum((v * values[j] for j, v in enumerate(row) if j != pivot), fmpq(0))
    if any(v < 0 for v in values) or not any(v > 0 for v in values):
        return None
    common = math.lcm(*(int(v.q) for v in values))
    whole = [0] * len(rows)
    for i, v in zip(support, values, strict=True):
        whole[i] = int(v.p) * (common // int(v.q))
    return _proving(domain, rows, whole)


def _proving(domain: Domain, rows: list[Inequality], whole: list[int]) -> dict[Key, int] | None:
    """The positive ones of the multipliers, if their combination is nowhere positive on the domain."""
    used = [(row, w) for row, w in zip(rows, whole, strict=True) if w > 0]
    if not used:
        return None
    slope = [sum((w * row.slope[i] for row, w in used), fmpq(0)) for i in range(len(domain.free))]
    offset = sum((w * row.offset for row, w in used), fmpq(0))
    return {row.key: w for row, w in used} if domain.nonpositive(slope, offset) else None
