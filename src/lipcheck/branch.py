"""The rule `branch`: a tree of splits, and for each of its leaves a proof of the bound, or that no point lies there.

The network is continuous and piecewise linear. On a convex region its constant is the essential supremum of the operator norm
of its Jacobian (along the coordinates that vary). At almost every point x each unit's argument v is either off the unit's
thresholds or constant near x; a split at threshold t sends x *above* if v(x) > t and *below* otherwise. So almost every x
ends in exactly one leaf, where

* the slope of a unit that can move near x is one that the leaf leaves it (where v is constant near x, any slope is right);
* `v > t` if the leaf lies above t; `v < t` if it lies below and v is not t identically on it.

Where v is affine in x on a leaf (all units that it reads have one piece left), the last line gives linear inequalities that almost
every x of the leaf satisfies. If a nonnegative combination of them, not all weights 0, is not positive anywhere on the region, the
leaf has measure zero and needs no bound. Any other leaf is bounded for all slopes that it leaves (`branch_cells`; in l1 and linf
`branch_rows`). All of this is rational arithmetic; only the definiteness of a matrix is proved by a Cholesky factorisation.
"""

from __future__ import annotations

import re

import numpy as np
from flint import fmpq, fmpq_mat

from lipcheck.branch_cells import Leaf, Pieces, holds, leaf, nearest
from lipcheck.branch_network import Row, Split, longest
from lipcheck.branch_rows import prove_rows
from lipcheck.bundle import integer
from lipcheck.errors import Rejected
from lipcheck.quadratic import semidefinite
from lipcheck.rounding import Floats, U

MOST_NODES = 100_000
"""Entries of a tree."""

MOST_WORK = 2e10
"""Multiplications of rationals, about, for all leaves."""

_WEIGHT = re.compile(r"0x[1-9a-f][0-9a-f]{0,9999}")

# ---------------------------------------------------------------------------------------------------------- leaves


def prove_empty(found: Leaf, document: object) -> None:
    """No point lies in the leaf, except for a set of measure zero.

    Raises:
        Rejected: the weights do not prove it.
    """
    if not isinstance(document, list) or not 1 <= len(document) <= 2 * len(found.left):
        raise Rejected("expected weights of an empty cell as a list")
    slope, offset = [fmpq(0)] * found.inputs, fmpq(0)
    used = set()
    for entry in document:
        if not isinstance(entry, list) or len(entry) != 3 or entry[1] not in ("above", "below"):
            raise Rejected("expected a unit, a side and a weight in an empty cell")
        unit, side = integer(entry[0], "unit", 0, len(found.left) - 1), entry[1]
        if not isinstance(entry[2], str) or not _WEIGHT.fullmatch(entry[2]) or (unit, side) in used:
            raise Rejected("expected different inequalities with positive weights in an empty cell")
        used.add((unit, side))
        weight = fmpq(int(entry[2], 16))
        own = _inequality(found, unit, side)
        slope = [a + weight * b for a, b in zip(slope, own[0], strict=True)]
        offset = offset + weight * own[1]
    if found.split.domain.highest(slope, offset) > 0:
        raise Rejected("the weights do not prove that the cell is empty")


def _inequality(found: Leaf, unit: int, side: str) -> tuple[Row, fmpq]:
    """`slope x + offset > 0` almost everywhere in the leaf."""
    (low, high), (first, last) = found.left[unit], found.split.left[unit]
    row, thresholds = found.rows[unit], found.split.pieces[unit].thresholds
    if any(v != 0 for v in row[found.inputs : -1]):
        raise Rejected(f"unit {unit} is not affine in the input on the cell")
    slope, constant = row[: found.inputs], row[-1]
    if side == "above" and low > first:
        return slope, constant - thresholds[low - 1]
    if side == "below" and high < last:
        offset = thresholds[high] - constant
        if offset != 0 or any(a != 0 for a in slope):  # otherwise it says 0 >= 0
            return [-a for a in slope], offset
    raise Rejected(f"the cell does not say that unit {unit} is strictly {side} a threshold")


def prove_norm(found: Leaf, t: float) -> None:
    """The norm in l2 of a leaf's only Jacobian is at most t.

    Raises:
        Rejected: not proved, or there are several.
    """
    if found.live:
        raise Rejected("a cell with open units has no single Jacobian; expected multipliers")
    matrix = [row[: found.inputs] for row in found.output]
    if matrix and matrix[0] and not _spectral(matrix, t):
        raise Rejected(f"the norm of a cell's Jacobian is not proved to be at most {t!r}")


def _exact(value: float) -> fmpq:
    return fmpq(*value.as_integer_ratio())


def _spectral(matrix: list[Row], t: float) -> bool:
    """Whether `t^2 - J J^T >= 0` (or `t^2 - J^T J`, whichever is smaller)."""
    jacobian = fmpq_mat(matrix)
    if jacobian.nrows() > jacobian.ncols():
        jacobian = jacobian.transpose()
    form = (jacobian * jacobian.transpose()).tolist()
    square = _exact(t) * _exact(t)
    if all(v == 0 for row in form for v in row):
        return True
    return _semidefinite([[(square if i == j else 0) - v for j, v in enumerate(r)] for i, r in enumerate(form)])


def _semidefinite(matrix: list[Row]) -> bool:
    """Whether a symmetric matrix of rationals is proved positive semidefinite, from its nearest floats."""
    floats = nearest(matrix, len(matrix))
    return floats is not None and semidefinite(floats, 2 * U * np.abs(floats))


def prove_multipliers(found: Leaf, values: Floats, t: float) -> None:
    """The Jacobian's norm in l2 is at most t for all slopes of the leaf: `holds`, with `t^2 |x|^2` and all live units.

    Raises:
        Rejected: not proved.
    """
    if not (values > 0).all():
        raise Rejected("expected positive multipliers in a cell")
    square = _exact(t) * _exact(t)
    inputs = range(found.inputs)
    if not holds(found, inputs, found.live, found.output, [square] * found.inputs, values):
        raise Rejected(f"the multipliers of a cell do not prove {t!r}")


# ------------------------------------------------------------------------------------------------------------ tree


def prove_branch(split: Split, norm: str, t: float, tree: object, values: Floats) -> None:
    """The Jacobian's norm is at most t almost everywhere on the region.

    The tree is a list, each split before what is below its threshold and that before what is above; the leaves' multipliers
    stand in `values` in the same order.

    Raises:
        Rejected: not proved, or not a tree.
    """
    if not isinstance(tree, list) or not 1 <= len(tree) <= MOST_NODES:
        raise Rejected(f"expected a tree as a list of 1 to {MOST_NODES} entries")
    rows = sum(len(e[1]) for e in tree if isinstance(e, list) and len(e) == 2 and e[0] == "quadratic" and isinstance(e[1], list))  # fmt: skip
    if (len(tree) + rows) * _work(split) > MOST_WORK:
        raise Rejected("the tree has too many cells for a network of this size")
    waiting: list[Pieces] = [tuple(split.left)]
    numbers = _Numbers(values)
    for entry in tree:
        kind = entry[0] if isinstance(entry, list) and entry else None
        if not waiting:
            raise Rejected("the tree goes on after its last leaf")
        left = waiting.pop()
        if kind == "split" and len(entry) == 3:
            waiting += _parts(left, entry)
            continue
        kinds = [("empty", 2), ("norm", 1), ("quadratic", 1 if norm == "l2" else 2)]
        if (kind, len(entry) if isinstance(entry, list) else 0) not in kinds:
            raise Rejected(f"expected a split or a leaf for {norm} in the tree")
        found = leaf(split, left)
        if kind == "empty":
            prove_empty(found, entry[1])
        elif norm != "l2":
            prove_rows(found, norm, t, entry[1] if kind == "quadratic" else [], numbers.take)
        elif kind == "norm":
            prove_norm(found, t)
        else:
            prove_multipliers(found, numbers.take(len(found.live)), t)
    if waiting:
        raise Rejected(f"the tree ends early: {len(waiting)} cells have no leaf")
    if numbers.left:
        raise Rejected("expected no multipliers after those of the last cell")


class _Numbers:
    """The leaves' multipliers, one leaf after the other."""

    def __init__(self, values: Floats) -> None:
        self._values = values
        self._first = 0

    @property
    def left(self) -> int:
        """How many have not been taken."""
        return len(self._values) - self._first

    def take(self, count: int) -> Floats:
        """The next ones."""
        if count > self.left:
            raise Rejected("expected a multiplier for every live unit of every cell")
        self._first += count
        return self._values[self._first - count : self._first]


def _parts(left: Pieces, entry: list[object]) -> list[Pieces]:
    """The cell above the threshold, then the one below, which is taken first."""
    unit = integer(entry[1], "unit", 0, len(left) - 1)
    low, high = left[unit]
    threshold = integer(entry[2], "threshold", 0, MOST_NODES)
    if not low <= threshold < high:
        raise Rejected(f"unit {unit} has no threshold {threshold} left to split at")
    parts = [(threshold + 1, high), (low, threshold)]
    return [(*left[:unit], part, *left[unit + 1 :]) for part in parts]


def _work(split: Split) -> float:
    """Multiplications for one leaf, about; longer numbers count more."""
    width = len(split.domain.free) + len(split.left) + 1
    forms = [*(layer.reads for layer in split.layers), split.output]
    parts = [part for form in forms for part in form.parts.values()]
    composed = sum(part.nrows() * part.ncols() for part in parts)
    bits = sum(longest(part) for part in parts)
    return (width * (composed + width * (len(split.left) + split.output.size)) / 4 + 1) * (1 + bits / 1000)
