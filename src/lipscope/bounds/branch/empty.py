"""Cells without a point, and the multipliers that prove it.

In a cell a unit whose pieces begin after a threshold has `v > threshold`; one whose pieces end at it has `v < threshold`,
almost everywhere, unless v is the threshold identically (such points are sent below). Where v is affine in x these are
inequalities `a_i x + b_i > 0`. If multipliers `m_i >= 0`, not all 0, make `sum m_i (a_i x + b_i) <= 0` on the whole domain,
no point satisfies them all (the easy half of Farkas' lemma), and the cell may be dropped.

`nearest` looks for a point; where there is none it has the multipliers, in float64. They are rounded to integers, or, where the
inequalities leave no room (parallel or concurrent hyperplanes), found again in rational arithmetic from the constraints that are active.
Whether they prove it is decided exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from flint import fmpq, fmpq_mat

from lipscope.bounds.branch.exact import Matrix, OutOfRange, Row, nearest_rows
from lipscope.bounds.branch.forms import Forms
from lipscope.bounds.branch.nearest import CONFLICT, place
from lipscope.bounds.branch.region import Domain

Key = tuple[int, str]
"""A unit and a side, `above` or `below`."""


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
        slope = row[: forms.inputs]
        if low > root.low[unit]:
            found.append(strictly(forms, unit, "above", thresholds[low - 1]))
        if high < root.high[unit]:
            below = strictly(forms, unit, "below", thresholds[high])
            if below.offset != 0 or any(a != 0 for a in slope):  # v may be the threshold itself
                found.append(below)
    return found


def strictly(forms: Forms, unit: int, side: str, threshold: fmpq) -> Inequality:
    """A unit that is affine in x on the cell is strictly above, or below, a threshold."""
    row = forms.rows[unit]
    slope, offset = row[: forms.inputs], row[-1] - threshold
    return (
        Inequality((unit, side), slope, offset)
        if side == "above"
        else Inequality((unit, side), [-a for a in slope], -offset)
    )


def solve(domain: Domain, rows: list[Inequality]) -> Answer:
    """Whether all inequalities hold somewhere in the domain."""
    moving, still = list[Inequality](), list[Inequality]()
    for row in rows:
        (moving if any(a != 0 for a in row.slope) else still).append(row)
    for row in still:
        if row.offset <= 0:
            return Answer(proof={row.key: 1}, conflict=[row.key])
    if not moving:
        return Answer(point=domain.middle)
    try:
        slopes = nearest_rows([row.slope for row in moving], len(domain.free))
        values = nearest_rows([domain.values([(row.slope, row.offset) for row in moving])], len(moving))[0]
    except OutOfRange:
        return _alone(domain, moving)
    found = place(domain, slopes, values)
    if found is not None and found.inner:
        return Answer(point=found.point)
    alone = _alone(domain, moving)
    if alone.proof is not None or found is None or not found.multipliers.max() > 0:
        return replace(alone, point=None if found is None else found.point)
    weights = found.multipliers
    proof = _rounded(domain, moving, weights) or _solved(domain, moving, weights, found.loose)
    conflict = [row.key for row, w in zip(moving, weights, strict=True) if w > CONFLICT * weights.max()]
    return Answer(proof=proof, point=found.point, conflict=conflict)


def _alone(domain: Domain, rows: list[Inequality]) -> Answer:
    """Whether one of the inequalities holds nowhere."""
    for row in rows:
        if domain.nonpositive(row.slope, row.offset):
            return Answer(proof={row.key: 1}, conflict=[row.key])
    return Answer()


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
    support = [i for i, w in enumerate(weights) if w > CONFLICT * weights.max()]
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
