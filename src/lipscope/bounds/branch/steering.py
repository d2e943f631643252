"""Whether a pattern of pieces occurs anywhere, in float64: it says where to split, it proves nothing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from lipscope.bounds.branch.exact import Matrix
from lipscope.bounds.branch.nearest import CONFLICT, place
from lipscope.bounds.branch.points import Evaluator
from lipscope.bounds.branch.skeleton import Cell


@dataclass(frozen=True, eq=False)
class Meeting:
    """What is believed of a pattern.

    Attributes:
        point: one that has it; None if none was found.
        conflict: the units whose inequalities stand against each other, if no point has it.
    """

    point: Matrix | None = None
    conflict: list[int] = field(default_factory=list)


def meeting(evaluator: Evaluator, around: Cell, pattern: Cell) -> Meeting:
    """Whether some point has a pattern, as far as its units are affine in x on a cell around it.

    Args:
        evaluator: of the skeleton.
        around: the cell.
        pattern: a part of it, maybe all of it.
    """
    skeleton, root = evaluator.skeleton, evaluator.skeleton.root
    rows, units = list[Matrix](), list[int]()
    for layer, (plain, arguments), (thresholds, _, _) in zip(
        skeleton.layers, evaluator.arguments(around), evaluator.tables, strict=True
    ):
        for i, unit in enumerate(layer.units):
            low, high = pattern.low[unit], pattern.high[unit]
            if plain[i] and low > root.low[unit]:
                rows.append(_shifted(arguments[i], thresholds[i, low - 1]))
                units.append(unit)
            if plain[i] and high < root.high[unit]:
                rows.append(-_shifted(arguments[i], thresholds[i, high]))
                units.append(unit)
    table = np.array(rows).reshape(len(rows), skeleton.inputs + 1)
    moving = np.asarray(table[:, :-1].any(1))
    still = [u for u, row, moves in zip(units, table, moving, strict=True) if not moves and row[-1] < 0]
    if still:
        return Meeting(conflict=still[:1])
    if not moving.any():
        return Meeting(skeleton.domain.middle)
    found = place(skeleton.domain, table[moving, :-1], table[moving, -1])
    if found is None:
        return Meeting()
    if found.inner or not found.multipliers.max() > 0:
        return Meeting(found.point)
    least = CONFLICT * found.multipliers.max()
    moved = itertools.compress(units, moving)
    return Meeting(found.point, [u for u, w in zip(moved, found.multipliers, strict=True) if w > least])


def _shifted(row: Matrix, threshold: float) -> Matrix:
    found = row.copy()
    found[-1] -= threshold
    return found
