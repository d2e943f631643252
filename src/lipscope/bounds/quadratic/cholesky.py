"""Cholesky factors of small symmetric matrices, by LAPACK without a detour.

What `scipy.linalg` does around a factorisation or a solution takes longer than either for a matrix of some tens of rows, and a search
makes thousands of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.linalg import LinAlgError
from scipy.linalg import lapack

from lipscope.bounds.quadratic.stacked import Matrix, Vector

RIDGE = 1e-15
"""What the unit diagonal gets on top at first: a few roundings."""


def cholesky(matrix: Matrix) -> Matrix:
    """The lower triangle L, in columns, with `L L^T` the matrix; only the lower triangle of the matrix is read.

    Raises:
        LinAlgError: the matrix is not positive definite in floating point, or not finite.
    """
    if not matrix.size:
        return np.zeros(matrix.shape, order="F")
    factor, failed = lapack.dpotrf(matrix, lower=1)
    if failed or not np.isfinite(factor.diagonal()).all():
        raise LinAlgError("the matrix is not positive definite")
    found: Matrix = factor
    return found


def solved(factor: Matrix, right: Matrix) -> Matrix:
    """`(L L^T)^{-1} right`; vectors and matrices."""
    if not right.size:
        return right
    found: Matrix = lapack.dpotrs(factor, right, lower=1)[0]
    return found


def triangular(lower: Matrix, right: Matrix, *, transposed: bool = False) -> Matrix:
    """`L^{-1} right` or `L^{-T} right` for a lower triangle with a positive diagonal; vectors and matrices."""
    if not right.size:
        return right
    found: Matrix = lapack.dtrtrs(lower, right, lower=1, trans=int(transposed))[0]
    return found


def inverse(factor: Matrix) -> Matrix:
    """`(L L^T)^{-1}`, all of it."""
    lower = lapack.dpotri(factor, lower=1)[0]  # above its diagonal are the factor's zeros
    found: Matrix = lower + lower.T
    np.einsum("ii->i", found)[:] *= 0.5
    return found


@dataclass(frozen=True, eq=False)
class Equations:
    """Newton's equations, factored.

    Attributes:
        factor: of the matrix scaled to unit diagonal, with a ridge on it if it takes one.
        scale: what its rows and columns were multiplied by.
    """

    factor: Matrix
    scale: Vector

    @classmethod
    def of(cls, matrix: Matrix) -> Equations:
        """From a symmetric matrix, which is overwritten; only its lower triangle counts.

        Raises:
            LinAlgError: it is not positive definite in floating point, whatever is added to its diagonal.
        """
        scale = 1 / np.sqrt(np.maximum(matrix.diagonal(), 1e-300))
        matrix *= scale[:, None]
        matrix *= scale
        ridge = RIDGE
        while True:
            np.einsum("ii->i", matrix)[:] = 1 + ridge
            try:
                return cls(cholesky(matrix), scale)
            except LinAlgError:
                ridge *= 100
                if ridge > 1:
                    raise

    def solve(self, right: Matrix) -> Matrix:
        """The solution for one right-hand side or for some columns of them."""
        scale = self.scale if right.ndim == 1 else self.scale[:, None]
        found: Matrix = scale * solved(self.factor, scale * right)
        return found
