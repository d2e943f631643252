"""Units that a cell decides though nobody split on them: the side of a threshold on which no point of the cell lies.

Each such side is a cell of its own, proved empty, beside the rest. Points that are known to lie in the cell show which sides need no proof.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipscope.bounds.branch.empty import Answer, Inequality, Key, inequalities, solve, strictly
from lipscope.bounds.branch.exact import Matrix, nearest_or_nan
from lipscope.bounds.branch.forms import Forms, forms_in

MOST_POINTS = 64
"""Points of a cell that are kept for its parts."""


@dataclass(frozen=True, eq=False)
class Void:
    """A side of a threshold on which no point of a cell lies.

    Attributes:
        unit: the unit.
        threshold: the number of its threshold.
        side: the empty one.
        proof: the multipliers, see `empty`.
    """

    unit: int
    threshold: int
    side: str
    proof: dict[Key, int]


@dataclass(frozen=True, eq=False)
class Rest:
    """What is left of a cell.

    Attributes:
        forms: of what is left.
        answer: whether a point lies there.
        voids: what was taken from the cell, in order.
        points: columns, points that lie there.
    """

    forms: Forms
    answer: Answer
    voids: list[Void]
    points: Matrix


def narrowed(forms: Forms, points: Matrix) -> Rest:
    """A cell without the sides of thresholds on which none of its points lies.

    Args:
        forms: of the cell.
        points: columns that may lie in the cell.
    """
    domain, voids = forms.skeleton.domain, list[Void]()
    while True:
        rows = inequalities(forms)
        answer = solve(domain, rows)
        if answer.proof is not None:
            return Rest(forms, answer, voids, points[:, :0])
        if answer.point is not None:
            points = np.column_stack([points, answer.point])
        points = points[:, _satisfied(rows, points)][:, -MOST_POINTS:]
        before, cell = len(voids), forms.cell
        for own in _undecided(forms):
            if len(_satisfied([own], points)):
                continue
            # A proof names each inequality once: of two about one side of a unit the later threshold follows from the other.
            beyond = solve(domain, [*(row for row in rows if row.key != own.key), own])
            unit, side = own.key
            if beyond.proof is not None:
                threshold = cell.low[unit] if side == "below" else cell.high[unit] - 1
                voids.append(Void(unit, threshold, side, beyond.proof))
                cell = cell.above(unit, threshold) if side == "below" else cell.below(unit, threshold)
            elif beyond.point is not None and not beyond.conflict:
                points = np.column_stack([points, beyond.point])
        if len(voids) == before:
            return Rest(forms, answer, voids, points)
        forms = forms_in(forms.skeleton, cell)


def _undecided(forms: Forms) -> list[Inequality]:
    """Both outer sides of every live unit that is affine in x on the cell."""
    found = []
    for unit in forms.live:
        row = forms.rows[unit]
        if forms.plain(row):
            thresholds = forms.skeleton.pieces_of_unit[unit].thresholds
            low, high = forms.cell.low[unit], forms.cell.high[unit]
            found += [
                strictly(forms, unit, "below", thresholds[low]),
                strictly(forms, unit, "above", thresholds[high - 1]),
            ]
    return found


def _satisfied(rows: list[Inequality], points: Matrix) -> NDArray[np.int64]:
    """Which points satisfy all inequalities, in float64, with a little room."""
    size = len(points)
    table = nearest_or_nan([[*row.slope, row.offset] for row in rows], size + 1)
    values = table[:, :-1] @ points + table[:, -1:]
    sizes = np.abs(table[:, :-1]) @ np.abs(points) + np.abs(table[:, -1:])
    return np.flatnonzero((values > 1e-12 * sizes).all(0))
