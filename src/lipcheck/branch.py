"""The rule `branch`: a tree of splits, and for each of its leaves a proof of the bound, or that no point lies there.

The network is continuous and piecewise linear. On a convex region its constant is the essential supremum of the operator norm
of its Jacobian (along the coordinates that vary). At almost every point x each unit's argument v is either off the unit's
thresholds or constant near x; a split at threshold t sends x *above* if v(x) > t and *below* otherwise. So almost every x
ends in exactly one leaf, where

* the slope of a unit that can move near x is one that the leaf leaves it (where v is constant near x, any slope is right);
* `v > t` if the leaf lies above t; `v < t` if it lies below and v is not t identically on it.

Where v is affine in x on a leaf (all units that it reads have one piece left), the last line gives linear inequalities that almost
every x of the leaf satisfies. If a nonnegative combination of them, not all weights 0, is not positive anywhere on the region, the
leaf has measure zero and needs no bound. Any other leaf is bounded for all slopes that it leaves. All of this is rational
arithmetic; only the definiteness of a matrix is proved by a Cholesky factorisation of its nearest floats.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from flint import fmpq, fmpq_mat

from lipcheck.branch_network import Row, Split, exact, longest
from lipcheck.bundle import integer
from lipcheck.errors import Rejected
from lipcheck.rounding import Floats, U, gamma, up

MOST_NODES = 100_000
"""Entries of a tree."""

MOST_WORK = 2e10
"""Multiplications of rationals, about, for all leaves."""

LARGEST = fmpq(10**100)
SMALLEST = 1 / LARGEST
"""Entries of a matrix that is rounded are 0 or between these in absolute value."""

_WEIGHT = re.compile(r"0x[1-9a-f][0-9a-f]{0,9999}")

Pieces = tuple[tuple[int, int], ...]
"""For every unit its first and last piece."""


@dataclass(frozen=True)
class Leaf:
    """A leaf: rows on the columns (x, open units, 1) of what units read and of the output."""

    split: Split
    left: Pieces
    columns: dict[int, int]
    rows: list[Row]
    output: list[Row]

    @property
    def inputs(self) -> int:
        """The number of columns of x."""
        return len(self.split.domain.free)

    @cached_property
    def live(self) -> list[int]:
        """Open units that can move and that the output reads, directly or through others."""
        moving: set[int] = set()
        for u in self.columns:
            row = self.rows[u]
            if any(v != 0 for v in row[: self.inputs]) or any(row[self.columns[w]] != 0 for w in moving):
                moving.add(u)
        seen: set[int] = set()
        waiting = list(self.output)
        while waiting:
            row = waiting.pop()
            for u in moving - seen:
                if row[self.columns[u]] != 0:
                    seen.add(u)
                    waiting.append(self.rows[u])
        return sorted(seen)

    def slopes(self, unit: int) -> tuple[fmpq, fmpq]:
        """The smallest and the largest slope that are left."""
        low, high = self.left[unit]
        found = self.split.pieces[unit].slopes[low : high + 1]
        return min(found), max(found)


def leaf(split: Split, left: Pieces) -> Leaf:
    """The rows of a leaf: units with one piece left are substituted."""
    fixed = {}
    for unit, (low, high) in enumerate(left):
        pieces = split.pieces[unit]
        kinds = {(pieces.slopes[p], pieces.shifts[p]) for p in range(low, high + 1)}
        if len(kinds) == 1:
            fixed[unit] = kinds.pop()
    inputs = len(split.domain.free)
    columns = {u: inputs + i for i, u in enumerate(u for u in range(len(left)) if u not in fixed)}
    width = inputs + len(columns) + 1
    blocks = [fmpq_mat(inputs, width)]
    for i in range(inputs):
        blocks[0][i, i] = fmpq(1)
    rows: list[Row] = []
    for layer in split.layers:
        values = []
        for unit, row in enumerate(_rows(layer.reads.parts, layer.reads.offset, blocks, width), layer.first):
            rows.append(row)
            value = [fmpq(0)] * width
            if unit in fixed:
                slope, shift = fixed[unit]
                value = [slope * v for v in row]
                value[-1] = value[-1] + shift
            else:
                value[columns[unit]] = fmpq(1)
            values.append(value)
        blocks.append(fmpq_mat(values))
    return Leaf(split, left, columns, rows, _rows(split.output.parts, split.output.offset, blocks, width))


def _rows(parts: Mapping[int, fmpq_mat], offset: fmpq_mat, blocks: Sequence[fmpq_mat], width: int) -> list[Row]:
    total = fmpq_mat(offset.nrows(), width)
    for block, part in parts.items():
        if part.ncols():
            total = total + part * blocks[block]
    rows: list[Row] = total.tolist()
    for row, constant in zip(rows, offset.entries(), strict=True):
        row[-1] = row[-1] + constant
    return rows


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


def prove_norm(found: Leaf, norm: str, t: float) -> None:
    """The Jacobian's norm is at most t for all slopes of the leaf.

    Raises:
        Rejected: not proved.
    """
    jacobian = _jacobian(found)
    if norm == "l2":
        if found.live:
            raise Rejected("a cell with open units has no single Jacobian; expected multipliers")
        matrix = [[low for low, _ in row] for row in jacobian]
        if matrix and matrix[0] and not _spectral(matrix, t):
            raise Rejected(f"the norm of a cell's Jacobian is not proved to be at most {t!r}")
        return
    sizes = [[max(abs(low), abs(high)) for low, high in row] for row in jacobian]
    lines = sizes if norm == "linf" else [list(column) for column in zip(*sizes, strict=True)]
    bound = _exact(t)
    if any(sum(line, fmpq(0)) > bound for line in lines):
        raise Rejected(f"a sum of a cell's Jacobian exceeds {t!r}")


def _exact(value: float) -> fmpq:
    return fmpq(*value.as_integer_ratio())


def _jacobian(found: Leaf) -> list[list[tuple[fmpq, fmpq]]]:
    """Intervals of the entries of the Jacobian by x."""
    moves: dict[int, list[tuple[fmpq, fmpq]]] = {}

    def through(row: Row) -> list[tuple[fmpq, fmpq]]:
        entries = [(v, v) for v in row[: found.inputs]]
        for unit, own in moves.items():
            entries = [(_plus(a, b, row[found.columns[unit]])) for a, b in zip(entries, own, strict=True)]
        return entries

    for unit in found.live:
        ends = found.slopes(unit)
        products = [[s * v for s in ends for v in pair] for pair in through(found.rows[unit])]
        moves[unit] = [(min(p), max(p)) for p in products]
    return [through(row) for row in found.output]


def _plus(sum_: tuple[fmpq, fmpq], term: tuple[fmpq, fmpq], factor: fmpq) -> tuple[fmpq, fmpq]:
    if factor == 0:
        return sum_
    low, high = (term[0], term[1]) if factor > 0 else (term[1], term[0])
    return sum_[0] + factor * low, sum_[1] + factor * high


def _spectral(matrix: list[Row], t: float) -> bool:
    """Whether `t^2 - J J^T >= 0` (or `t^2 - J^T J`, whichever is smaller)."""
    jacobian = fmpq_mat(matrix)
    if jacobian.nrows() > jacobian.ncols():
        jacobian = jacobian.transpose()
    form = (jacobian * jacobian.transpose()).tolist()
    square = _exact(t) * _exact(t)
    if all(v == 0 for row in form for v in row):
        return True
    return semidefinite([[(square if i == j else 0) - v for j, v in enumerate(r)] for i, r in enumerate(form)])


def prove_multipliers(found: Leaf, values: Floats, t: float) -> None:
    """`t^2 |x|^2 + sum_j 2 l_j (u_j - a_j v_j)(u_j - b_j v_j) - |output|^2` is positive semidefinite in (x, live units).

    For all slopes in [a_j, b_j] the sum is not positive along any difference, so `|output| <= t |x|` there.

    Raises:
        Rejected: not proved.
    """
    if not (values > 0).all():
        raise Rejected("expected positive multipliers in a cell")
    places = [*range(found.inputs), *(found.columns[u] for u in found.live)]
    size, first = len(places), found.inputs
    output = fmpq_mat([[row[p] for p in places] for row in found.output])
    reads = fmpq_mat([[found.rows[u][p] for p in places] for u in found.live])
    slopes = [found.slopes(u) for u in found.live]
    weights = exact(values)
    outer = fmpq_mat([[2 * w * a * b * v for v in row] for w, (a, b), row in zip(weights, slopes, reads.tolist(), strict=True)])  # fmt: skip
    form = (reads.transpose() * outer - output.transpose() * output).tolist()
    square = _exact(t) * _exact(t)
    for i in range(first):
        form[i][i] = form[i][i] + square
    for k, (w, (a, b), row) in enumerate(zip(weights, slopes, reads.tolist(), strict=True)):
        own = first + k
        form[own][own] = form[own][own] + 2 * w
        for j in range(size):
            if row[j] != 0:
                cross = w * (a + b) * row[j]
                form[own][j] = form[own][j] - cross
                form[j][own] = form[j][own] - cross
    if not semidefinite(form):
        raise Rejected(f"the multipliers of a cell do not prove {t!r}")


def semidefinite(matrix: list[Row]) -> bool:
    """Whether a symmetric matrix of rationals is proved positive semidefinite.

    Its nearest floats are off by at most u each, relatively. After an exact congruence by powers of two that brings the diagonal
    near 1, Cholesky of the floats minus c I running to completion proves it, if c is at least the largest row sum of these errors
    and `gamma_{n+1}/(1 - gamma_{n+1})` of the trace (Rump, BIT 46, 2006).
    """
    n = len(matrix)
    floats = np.empty((n, n))
    for i, row in enumerate(matrix):
        for j, v in enumerate(row):
            if v != 0 and not SMALLEST <= abs(v) <= LARGEST:
                return False
            floats[i, j] = int(v.p) / int(v.q)
    diagonal = np.diagonal(floats)
    if not (diagonal > 0).all():
        return False
    half = np.frexp(diagonal)[1] // 2
    scaled = np.ldexp(floats, -(half[:, None] + half[None, :]))
    g = gamma(n + 4)
    c = up(
        (2 * U * float(np.abs(scaled).sum(axis=1).max()) + 2 * g * float(np.diagonal(scaled).sum())) * (1 + 1e-9)
        + 8 * U
    )
    scaled[np.arange(n), np.arange(n)] -= c
    try:
        return bool((np.diagonal(scaled) > 0).all() and np.isfinite(np.linalg.cholesky(scaled)).all())
    except np.linalg.LinAlgError:
        return False


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
    if len(tree) * _work(split) > MOST_WORK:
        raise Rejected("the tree has too many cells for a network of this size")
    waiting: list[Pieces] = [tuple(split.left)]
    first = 0
    for entry in tree:
        kind = entry[0] if isinstance(entry, list) and entry else None
        if not waiting:
            raise Rejected("the tree goes on after its last leaf")
        left = waiting.pop()
        if kind == "split" and len(entry) == 3:
            waiting += _parts(left, entry)
            continue
        if (kind, len(entry) if isinstance(entry, list) else 0) not in (("empty", 2), ("norm", 1), ("quadratic", 1)):
            raise Rejected("expected a split or a leaf in the tree")
        found = leaf(split, left)
        if kind == "empty":
            prove_empty(found, entry[1])
        elif kind == "norm":
            prove_norm(found, norm, t)
        elif norm != "l2":
            raise Rejected(f"multipliers of a cell say nothing about {norm}")
        else:
            own = values[first : first + len(found.live)]
            first += len(found.live)
            if len(own) != len(found.live):
                raise Rejected("expected a multiplier for every live unit of every cell")
            prove_multipliers(found, own, t)
    if waiting:
        raise Rejected(f"the tree ends early: {len(waiting)} cells have no leaf")
    if first != len(values):
        raise Rejected("expected no multipliers after those of the last cell")


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
