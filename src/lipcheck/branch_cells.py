"""The cells of rule `branch`: what units read inside one, and the quadratic inequality of its open units.

All of this is rational arithmetic; only the definiteness of a matrix is proved by a Cholesky factorisation of its nearest floats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from flint import fmpq, fmpq_mat

from lipcheck.branch_network import Row, Split
from lipcheck.rounding import U, gamma, up

LARGEST = fmpq(10**100)
SMALLEST = 1 / LARGEST
"""Entries of a matrix that is rounded are 0 or between these in absolute value."""

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


def holds(
    found: Leaf, inputs: Sequence[int], units: Sequence[int], output: Sequence[Row], diagonal: Row, weights: Row
) -> bool:
    """Whether `sum_i d_i x_i^2 + sum_j 2 l_j (u_j - a_j v_j)(u_j - b_j v_j) - |output|^2` is proved positive semidefinite.

    For all slopes in [a_j, b_j] the second sum is not positive along any difference, so `|output|^2 <= sum_i d_i x_i^2` there.

    Args:
        found: the leaf.
        inputs: the entries of x that vary.
        units: the live units between them and the output.
        output: rows of the leaf.
        diagonal: d.
        weights: l > 0.
    """
    places = [*inputs, *(found.columns[u] for u in units)]
    size, first = len(places), len(inputs)
    targets = fmpq_mat([[row[p] for p in places] for row in output])
    reads = fmpq_mat([[found.rows[u][p] for p in places] for u in units])
    slopes = [found.slopes(u) for u in units]
    outer = fmpq_mat([[2 * w * a * b * v for v in row] for w, (a, b), row in zip(weights, slopes, reads.tolist(), strict=True)])  # fmt: skip
    form = (reads.transpose() * outer - targets.transpose() * targets).tolist()
    for i, d in enumerate(diagonal):
        form[i][i] = form[i][i] + d
    for k, (w, (a, b), row) in enumerate(zip(weights, slopes, reads.tolist(), strict=True)):
        own = first + k
        form[own][own] = form[own][own] + 2 * w
        for j in range(size):
            if row[j] != 0:
                cross = w * (a + b) * row[j]
                form[own][j] = form[own][j] - cross
                form[j][own] = form[j][own] - cross
    return semidefinite(form)


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
