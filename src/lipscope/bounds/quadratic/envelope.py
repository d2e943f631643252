"""Cholesky factorisation of a symmetric matrix of blocks that keeps each block row's leading zero blocks.

In the inequality of a chain a block meets its neighbours only, so that factoring and solving cost `sum n_k^3` and
`D sum n_k^2` instead of `D^3`. A block row of the factor begins where that of the matrix does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.linalg import LinAlgError

from lipscope.bounds.quadratic.cholesky import cholesky, triangular
from lipscope.bounds.quadratic.stacked import Matrix, Stacked


@dataclass(frozen=True)
class Envelope:
    """Where blocks begin, and the first block that each block row of the matrix meets."""

    starts: tuple[int, ...]
    first: tuple[int, ...]

    def row(self, index: int) -> slice:
        """The entries of a block."""
        return slice(self.starts[index], self.starts[index + 1])


def envelope(network: Stacked) -> Envelope:
    """The envelope of the network's inequality: blocks meet if one layer reads both, or one reads the other."""
    count = len(network.layers) + 1
    first = list(range(count))
    groups = [{k + 1, *layer.reads} for k, layer in enumerate(network.layers)] + [set(network.output)]
    for group in groups:
        for block in group:
            first[block] = min(first[block], *group)
    return Envelope(network.starts, tuple(first))


@dataclass(frozen=True, eq=False)
class Factor:
    """L with `L L^T` the matrix, stored by block rows."""

    shape: Envelope
    blocks: tuple[tuple[Matrix, Matrix], ...]
    """For each block row the part left of its diagonal block, and the diagonal block."""

    def forward(self, right: Matrix) -> Matrix:
        """`L^{-1} right`."""
        result = np.empty_like(right)
        for k, (left, corner) in enumerate(self.blocks):
            own, before = self.shape.row(k), slice(self.shape.starts[self.shape.first[k]], self.shape.starts[k])
            rest = right[own] - left @ result[before] if left.size else right[own]
            result[own] = triangular(corner, rest)
        return result

    def backward(self, right: Matrix) -> Matrix:
        """`L^{-T} right`."""
        result = right.copy()
        for k in reversed(range(len(self.blocks))):
            left, corner = self.blocks[k]
            own, before = self.shape.row(k), slice(self.shape.starts[self.shape.first[k]], self.shape.starts[k])
            result[own] = triangular(corner, result[own], transposed=True)
            if left.size:
                result[before] -= left.T @ result[own]
        return result

    def solve(self, right: Matrix) -> Matrix:
        """The matrix's inverse times `right`."""
        return self.backward(self.forward(right))


def factored(matrix: Matrix, shape: Envelope) -> Factor | None:
    """The factor, or None if the matrix is not positive definite in floating point."""
    blocks: list[tuple[Matrix, Matrix]] = []
    for k, first in enumerate(shape.first):
        own, begin = shape.row(k), shape.starts[first]
        left = matrix[own, begin : shape.starts[k]].copy()
        for j in range(first, k):
            columns = slice(shape.starts[j] - begin, shape.starts[j + 1] - begin)
            below, corner = blocks[j]
            # Columns left of what the two block rows share are zero in one of them.
            shared = max(begin, shape.starts[shape.first[j]])
            if shared < shape.starts[j]:
                mine = left[:, shared - begin : shape.starts[j] - begin]
                left[:, columns] -= mine @ below[:, shared - shape.starts[shape.first[j]] :].T
            left[:, columns] = triangular(corner, left[:, columns].T).T
        try:
            corner = cholesky(matrix[own, own] - left @ left.T)
        except LinAlgError:
            return None
        blocks.append((left, corner))
    return Factor(shape, tuple(blocks))
