"""From multipliers of a part on a torus to a proved bound, with rounding accounted for.

At every frequency M is formed in floating point. With k the roundings of what units and the output read and |M| the same sums of
absolute values (of kernels and compositions, the same for all frequencies), an entry is off by at most `gamma_K |M|`, K = 2 k + longest inner product + 32,
complex arithmetic included by `SLACK`. After an exact scaling by powers of two to near-unit diagonal the largest row sum of these errors and what a complex
Cholesky factorisation can be off by (as in `claims/definite.py`, a complex product costing at most gamma_4) are taken from the diagonal; if the factorisation completes, M is positive semidefinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from lipscope.bounds.quadratic.stacked import Matrix, Vector
from lipscope.bounds.quadratic.torus import Spectrum, Torus, Value
from lipscope.bounds.quadratic.torus_search import BATCH, Blocks, blocks
from lipscope.claims.definite import factorises
from lipscope.claims.rounding import gamma, sqrt_up

SLACK = 16.0
"""For complex arithmetic, and for the independent checker, which works with real matrices of twice the order."""

SURPLUS = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3)
"""What is added to rho, relatively, tried in this order."""

SMALLEST_DIAGONAL = 1e-120
"""Then what underflows, below 1e-150, is far below the 1e-20 that is taken from the scaled diagonal."""

SPARE = 1e-9
"""Relative room in the bound for the checker."""


def batches(torus: Torus, dimension: int) -> Iterator[tuple[Spectrum, Blocks]]:
    """All frequencies, some at a time."""
    step = max(1, BATCH // dimension**2)
    for first in range(0, len(torus.frequencies), step):
        points = torus.frequencies[first : first + step]
        spectrum = torus.walk(points)
        yield spectrum, blocks(spectrum, len(points))


def smallest_rho(torus: Torus, dimension: int, values: Vector) -> float:
    """The smallest rho that the multipliers prove at all frequencies, up to rounding."""
    worst = 0.0
    for _, part in batches(torus, dimension):
        worst = max(worst, part.smallest_rho(values))
        if worst == math.inf:
            break
    return worst


def proved_constant(torus: Torus, dimension: int, values: Vector, rho: float) -> float | None:
    """A Lipschitz constant of the part that the multipliers are proved to give; None if the proof fails.

    Args:
        torus: the part.
        dimension: the order of its matrices.
        values: its multipliers.
        rho: what they prove in exact arithmetic, or so; a little more is tried.
    """
    if not (np.isfinite(values).all() and (values >= 0).all() and 0 < rho < math.inf):
        return None
    attempt = 0
    for spectrum, part in batches(torus, dimension):
        while attempt < len(SURPLUS) and not _proved(spectrum, part, rho * (1 + SURPLUS[attempt]), values):
            attempt += 1
        if attempt == len(SURPLUS):
            return None
    return sqrt_up(rho * (1 + SURPLUS[attempt])) * (1 + SPARE)


def _proved(spectrum: Spectrum, part: Blocks, rho: float, values: Vector) -> bool:
    """Whether every matrix of the batch is positive semidefinite."""
    heavy = _absolute(spectrum, part, rho, values)
    longest = max(v.roundings for v in (*spectrum.reads, spectrum.output))
    terms = 2 * longest + len(values) + part.output.shape[1] + 32
    error = SLACK * gamma(terms) * heavy
    matrices = part.matrices(rho, values)
    diagonal = np.einsum("fii->fi", matrices).real
    if not (np.isfinite(matrices).all() and np.isfinite(error).all() and (diagonal > SMALLEST_DIAGONAL).all()):
        return False
    exponents = np.frexp(diagonal)[1] // 2
    scale = -(exponents[:, :, None] + exponents[:, None, :])
    scaled = np.ldexp(matrices.real, scale) + 1j * np.ldexp(matrices.imag, scale)
    order = part.dimension
    extra = np.ldexp(error[None], scale).sum(2).max(1) * (1 + 1e-10)
    unit = np.einsum("fii->fi", scaled)
    shift = extra + 4 * gamma(4 * order + 16) * unit.real.sum(1) + 1e-20
    unit -= shift[:, None]
    return bool((unit.real > 0).all()) and factorises(torch.from_numpy(scaled))


def _absolute(spectrum: Spectrum, part: Blocks, rho: float, values: Vector) -> NDArray[np.float64]:
    """The sums of absolute values of which M's entries are made."""
    reads = _stack(spectrum, spectrum.reads)
    output = _stack(spectrum, [spectrum.output])
    heavy: Matrix = output.T @ output
    n = part.size
    cross = (values * (np.abs(part.lower) + np.abs(part.upper)))[:, None] * reads
    heavy[n:] += cross
    heavy[:, n:] += cross.T
    heavy += reads.T @ ((2 * values * np.abs(part.lower * part.upper))[:, None] * reads)
    heavy[np.diag_indices_from(heavy)] += np.concatenate([np.full(n, rho), 2 * values])
    return heavy


def _stack(spectrum: Spectrum, values: list[Value] | tuple[Value, ...]) -> Matrix:
    ends = np.cumsum([0, spectrum.input_size, *(b.size for b in spectrum.bands)])
    rows = []
    for value in values:
        full = np.zeros((len(next(iter(value.sizes.values()))), int(ends[-1])))
        for b, s in value.sizes.items():
            full[:, ends[b] : ends[b + 1]] = s
        rows.append(full)
    return np.concatenate([np.zeros((0, int(ends[-1]))), *rows])
