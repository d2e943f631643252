"""Proved bounds of the Jacobian's norm over all slopes that a cell leaves open.

l1, linf: the entries of the Jacobian are enclosed in intervals from the input to the output, rounded outward, and the column (row) sums of their
magnitudes bound the norm. In l2, where no unit is live, the matrix is known.

l2 with live units: with w_j what unit j reads and F the output, as rows on (x, live units), multipliers l_j >= 0 and

    M = rho I_x + sum_j l_j ((e_j - a_j w_j)(e_j - b_j w_j)^T + its transpose) - F^T F >= 0

prove `|F u|^2 <= rho |x|^2` for all slopes in [a_j, b_j] (Fazlyab et al., arXiv 1906.04893). M is assembled in float64 from
coefficients that were rounded once; with K = live units + outputs + 16 an entry is off by at most gamma_K times the same sum of
absolute values, and one shifted Cholesky factorisation proves definiteness for all errors within.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from lipscope.bounds.branch.exact import LARGEST, SMALLEST, Matrix
from lipscope.bounds.branch.forms import Forms
from lipscope.claims.definite import shifted_cholesky
from lipscope.claims.norms import Norm
from lipscope.claims.rounding import gamma, sqrt_up, up

SLACK = 4.0
"""The independent checker sums in another order."""

NEAR = 2e-10
"""Relative room above a computed norm in which it is proved."""

TINY = 1e-300
"""More than underflow takes from an entry of a Jacobian."""


def interval_jacobian(forms: Forms) -> tuple[Matrix, Matrix]:
    """Enclosures of the entries of the Jacobian by the input's free coordinates, for all slopes of the cell: low and high ends.

    Coefficients were rounded once, and a sum of products is off by at most gamma_K times the same sum of absolute values.

    Raises:
        OutOfRange: see `Forms.inequality`.
    """
    live, inputs = forms.live, forms.inputs
    low, high = np.zeros((len(live), inputs)), np.zeros((len(live), inputs))
    (reads, output), slopes = forms.inequality_of_all(), forms.slope_ends(live)

    def combined(rows: Matrix) -> tuple[Matrix, Matrix]:
        own, factors = rows[:, :inputs], rows[:, inputs:]
        positive, negative = np.maximum(factors, 0.0), np.minimum(factors, 0.0)
        size = np.abs(own) + np.abs(factors) @ np.maximum(np.abs(low), np.abs(high))
        room = SLACK * gamma(rows.shape[1] + 16) * size + TINY * (size > 0)
        return own + positive @ low + negative @ high - room, own + positive @ high + negative @ low + room

    for layer in forms.skeleton.layers:
        own = [i for i, u in enumerate(live) if u in layer.units]
        if own:
            ends = combined(reads[own])
            products = np.stack([slopes[own, k][:, None] * e for k in (0, 1) for e in ends])
            room = gamma(4) * np.abs(products).max(0)
            low[own], high[own] = products.min(0) - room, products.max(0) + room
    return combined(output)


def entrywise_sums(forms: Forms, norm: Norm) -> list[float]:
    """For every row (linf) or column (l1) of the Jacobian a bound of the sum of its entries' magnitudes.

    Raises:
        OutOfRange: see `Forms.inequality`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = interval_jacobian(forms)
        sums = np.maximum(np.abs(low), np.abs(high)).sum(1 if norm == "linf" else 0)
        sums *= 1 + gamma(sum(low.shape) + 4)
    found: list[float] = np.where(np.isfinite(sums), sums, np.inf).tolist()
    return found


def spectral_bound(forms: Forms) -> float | None:
    """A proved l2 norm where no unit is live, as near as float64 allows; None if the proof fails.

    Raises:
        OutOfRange: see `Forms.inequality`.
    """
    matrix = forms.inequality_of_all()[1]
    if min(matrix.shape) == 0 or not matrix.any():
        return 0.0
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    top = float(np.linalg.norm(small, 2))
    rho = up(up(top * (1 + NEAR)) ** 2)
    form = rho * np.eye(len(small)) - small @ small.T
    size = rho * np.eye(len(small)) + np.abs(small) @ np.abs(small).T
    proved = semidefinite(form, SLACK * gamma(matrix.size + 16) * size)
    return sqrt_up(rho) if proved else None


def quadratic_form(
    reads: Matrix, output: Matrix, slopes: Matrix, values: Matrix, rho: float | Matrix
) -> tuple[Matrix, Matrix]:
    """M and a bound of its entrywise errors.

    Args:
        reads: w_j by (x, units), one row a unit.
        output: F.
        slopes: (units, 2), the smallest and the largest.
        values: the multipliers.
        rho: the square of the bound, or q for every entry of x.
    """
    count, width = reads.shape
    inputs = width - count
    found = []
    for w, f, s, sign in ((reads, output, slopes, -1.0), (np.abs(reads), np.abs(output), np.abs(slopes), 1.0)):
        matrix = sign * (f.T @ f)
        cross = sign * ((s[:, 0] + s[:, 1]) * values)[:, None] * w
        matrix[inputs:] += cross
        matrix[:, inputs:] += cross.T
        matrix += w.T @ ((2 * s[:, 0] * s[:, 1] * values)[:, None] * w)
        diagonal = np.einsum("ii->i", matrix)
        diagonal[inputs:] += 2 * values
        diagonal[:inputs] += rho
        found.append(matrix)
    return found[0], SLACK * gamma(count + len(output) + 16) * found[1]


def quadratic_holds(reads: Matrix, output: Matrix, slopes: Matrix, values: Matrix, rho: float | Matrix) -> bool:
    """Whether the multipliers are proved to give the bound `sqrt(rho)`, or `sum q x^2` where rho is q."""
    numbers = np.concatenate([values, np.abs(slopes).ravel(), np.atleast_1d(rho)])
    numbers = numbers[numbers != 0]
    if not (
        (values > 0).all()
        and np.all(np.asarray(rho) > 0)
        and (numbers >= SMALLEST).all()
        and (numbers <= LARGEST).all()
    ):
        return False
    matrix, error = quadratic_form(reads, output, slopes, values, rho)
    return semidefinite((matrix + matrix.T) / 2, error + gamma(2) * np.abs(matrix))


def semidefinite(matrix: Matrix, error: Matrix) -> bool:
    """Whether every symmetric matrix within `error` of `matrix`, entrywise, is proved positive semidefinite."""
    diagonal = np.diag(matrix)
    if not (np.isfinite(matrix).all() and (diagonal > 0).all()):
        return False
    # A congruence by powers of two is exact: the two matrices are definite together.
    exponents = np.frexp(diagonal)[1] // 2
    scale = -(exponents[:, None] + exponents)
    extra = float(np.ldexp(error, scale).sum(1).max()) * (1 + 1e-10)
    return math.isfinite(extra) and shifted_cholesky(torch.from_numpy(np.ldexp(matrix, scale)), extra)
