"""The cells of rule `branch`: what units read inside one, and the quadratic inequality of its open units.

The rows are rational arithmetic; a matrix is assembled from their nearest floats, and its definiteness proved by a Cholesky factorisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from flint import fmpq, fmpq_mat

from lipcheck.branch_network import Row, Split
from lipcheck.quadratic import semidefinite
from lipcheck.rounding import Floats, gamma

LARGEST, SMALLEST = 1e100, 1e-100
"""Numbers that are rounded are 0 or between these in absolute value."""

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
        return self.live_between(range(self.inputs), self.output)

    def live_between(self, inputs: Sequence[int], output: Sequence[Row]) -> list[int]:
        """Open units that can move with these entries of x and that these rows read, directly or through others."""
        moving: set[int] = set()
        for u in self.columns:
            row = self.rows[u]
            if any(row[i] != 0 for i in inputs) or any(row[self.columns[w]] != 0 for w in moving):
                moving.add(u)
        seen: set[int] = set()
        waiting = list(output)
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


def nearest(rows: Sequence[Row], width: int) -> Floats | None:
    """The nearest floats (a quotient of two integers is rounded correctly); None if one is out of range."""
    try:
        found = np.array([[int(v.p) / int(v.q) if v else 0.0 for v in row] for row in rows]).reshape(len(rows), width)
    except OverflowError:
        return None
    sizes = np.abs(found)
    in_range = ((sizes >= SMALLEST) & (sizes <= LARGEST)) | np.array([[not v for v in row] for row in rows]).reshape(
        sizes.shape
    )
    return found if in_range.all() else None


def holds(
    found: Leaf, inputs: Sequence[int], units: Sequence[int], output: Sequence[Row], diagonal: Row, weights: Floats
) -> bool:
    """Whether `sum_i d_i x_i^2 + sum_j 2 l_j (u_j - a_j v_j)(u_j - b_j v_j) - |output|^2` is proved positive semidefinite.

    For all slopes in [a_j, b_j] the second sum is not positive along any difference, so `|output|^2 <= sum_i d_i x_i^2` there.

    Rows, slopes and d are rounded once to floats, the matrix is assembled from them. An entry is a sum of at most `units + output + 4` products of
    at most six factors, so that it is off by at most gamma_k times the same sum of absolute values, k = units + output + 24.

    Args:
        found: the leaf.
        inputs: the entries of x that vary.
        units: the live units between them and the output.
        output: rows of the leaf.
        diagonal: d.
        weights: l > 0.
    """
    places = [*inputs, *(found.columns[u] for u in units)]
    ends = nearest([list(found.slopes(u)) for u in units], 2)
    reads = nearest([[found.rows[u][p] for p in places] for u in units], len(places))
    targets = nearest([[row[p] for p in places] for row in output], len(places))
    squares = nearest([diagonal], len(inputs))
    if ends is None or reads is None or targets is None or squares is None or weights.min(initial=1.0) < SMALLEST:
        return False
    with np.errstate(over="ignore", invalid="ignore"):  # then it is not proved
        form = _form(reads, targets, ends, squares[0], weights, -1.0)
        size = _form(np.abs(reads), np.abs(targets), np.abs(ends), squares[0], weights, 1.0)
        return semidefinite((form + form.T) / 2, 2 * gamma(len(units) + len(output) + 24) * (size + size.T) / 2)


def _form(reads: Floats, targets: Floats, ends: Floats, squares: Floats, weights: Floats, sign: float) -> Floats:
    """The matrix of `holds`, with a sign at what is subtracted."""
    first, low, high = len(squares), ends[:, 0], ends[:, 1]
    form: Floats = reads.T @ ((2 * weights * low * high)[:, None] * reads) + sign * (targets.T @ targets)
    cross = sign * (weights * (low + high))[:, None] * reads
    form[first:] += cross
    form[:, first:] += cross.T
    index = np.arange(len(form))
    form[index, index] += np.concatenate([squares, 2 * weights])
    return form
