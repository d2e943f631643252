"""Verified positive semidefiniteness by one shifted Cholesky factorisation (Rump, BIT 46, 2006).

Derivation. With u = 2^-53 and gamma_k = k u/(1 - k u), a Cholesky factorisation of a symmetric A of order n that runs
to completion in float64 returns R with `R^T R = A + dA`, `|dA| <= gamma_{n+1} |R|^T |R|` entrywise, for every order
of summation, with or without fused multiply-add, blocked or not (Higham, Accuracy and Stability, theorem 10.3 and the
remark on the order of evaluation); multiplying by the rounded reciprocal of a pivot instead of dividing by it costs
one more rounding. Hence

    |dA|_2 <= gamma |R|_F^2 = gamma tr(R^T R) <= gamma tr(A)/(1 - gamma),    lambda_min(A) >= -gamma tr(A)/(1 - gamma).

So M is positive semidefinite if the factorisation of some A with `M - c I - A >= 0`, c >= gamma tr(A)/(1 - gamma),
completes. Multiplication by Strassen's scheme and reduced precision are not covered; the float64 routines of LAPACK
use neither.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lipscope.claims.rounding import down, gamma, product_up, up

UNDERFLOW = 1e-290
"""More than everything that underflow can add to a matrix of order < 10^6 with entries of size one: about n^2
2^-1074."""


def factorisation_error(terms: int, trace: float) -> float:
    """Upper bound of `|R^T R - A|_2` for a completed Cholesky factorisation of A in float64.

    Args:
        terms: the number of products in the longest inner product (the order; for a banded matrix the bandwidth).
        trace: an upper bound of the trace of A.
    """
    relative = gamma(terms + 3)
    if relative >= 0.5:
        return math.inf
    return up(up(product_up(relative, trace) / down(1.0 - relative)) + UNDERFLOW)


def shifted_cholesky(matrix: Tensor, extra_error: float = 0.0) -> bool:
    """Whether a matrix is proved to be positive semidefinite, together with all its neighbours.

    True proves: `M + E` is positive semidefinite for every symmetric E with `|E|_2 <= extra_error`, where M is the
    symmetric matrix whose lower triangle is that of `matrix`, its entries taken as exact numbers. False proves nothing;
    matrices with a smallest eigenvalue below about `n^2 u` after scaling to unit diagonal are refused.

    Args:
        matrix: `(n, n)`, float64; only the lower triangle is read. It is not changed.
        extra_error: bound of the spectral norm of what `matrix` differs from the matrix in question, >= 0.

    Raises:
        ValueError: the matrix is not square or not float64, or the error is negative or NaN.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.dtype != torch.float64:
        raise ValueError(f"expected a square float64 matrix, got {tuple(matrix.shape)} of {matrix.dtype}")
    if not extra_error >= 0:
        raise ValueError(f"expected an error bound >= 0, got {extra_error}")
    size = matrix.shape[0]
    if size == 0:
        return True
    lower = torch.tril(matrix.detach())
    if not bool(torch.isfinite(lower).all()) or math.isinf(extra_error):
        return False
    diagonal = lower.diagonal().clone()
    if extra_error > 0:
        diagonal = down(diagonal - extra_error)
    if not bool((diagonal > 0).all()):
        return bool((lower == 0).all()) and extra_error == 0  # the zero matrix is semidefinite
    # Scaling rows and columns by powers of two to a diagonal in [1/2, 2) is an exact congruence (up to underflow).
    exponents = np.frexp(diagonal.numpy())[1] // 2
    with np.errstate(over="ignore", under="ignore"):
        scaled = np.ldexp(lower.numpy(), -(exponents[:, None] + exponents[None, :]))
    unit = np.ldexp(diagonal.numpy(), -2 * exponents)
    if not np.isfinite(scaled).all():  # an entry so far above its diagonal that the matrix is indefinite
        return False
    shift = factorisation_error(size, up(math.fsum(unit.tolist())))
    result = torch.from_numpy(scaled)
    result.diagonal().copy_(down(torch.from_numpy(unit) - shift))
    return factorises(result)


def factorises(matrix: Tensor) -> bool:
    """Whether the float64 (or complex128) Cholesky factorisation of the lower triangle completes with finite
    numbers.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    return not bool(info.any()) and bool(torch.isfinite(factor.diagonal(dim1=-2, dim2=-1)).all())
