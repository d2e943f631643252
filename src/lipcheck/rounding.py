"""Floating-point bounds that hold: the only place that reasons about single roundings.

Model: `u = 2^-53`; every operation returns `(a op b)(1 + d) + e` with `|d| <= u`, `|e| <= 2^-1075`, and `e = 0` for
sums and differences. `k` successive roundings change a quantity by at most `gamma_k = k u/(1 - k u)`, relative to the
sum of absolute values. Overflow gives inf or NaN, which `finite` turns into a rejection.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lipcheck.errors import Rejected

Floats = NDArray[np.float64]

U = 2.0**-53
TINY = 2.0**-1000
"""Far above what any single underflow loses (2^-1075), so that a multiple of it covers many of them."""


def up(x: float) -> float:
    """A float above the real number that rounded to x."""
    return float(np.nextafter(x, np.inf))


def down(x: float) -> float:
    """A float below the real number that rounded to x."""
    return float(np.nextafter(x, -np.inf))


def ups(x: Floats) -> Floats:
    """`up`, entrywise."""
    return np.nextafter(x, np.inf)


def downs(x: Floats) -> Floats:
    """`down`, entrywise."""
    return np.nextafter(x, -np.inf)


def gamma(k: int) -> float:
    """An upper bound of `k u/(1 - k u)`.

    Raises:
        Rejected: so many roundings that nothing can be said.
    """
    if k > 2**40:
        raise Rejected(f"expected at most 2^40 roundings on one path, got {k}")
    return k * U / (1 - k * U) * (1 + 8 * U)


def finite(array: Floats, what: str) -> Floats:
    """The array itself.

    Raises:
        Rejected: an entry is NaN or infinite.
    """
    if not np.isfinite(array).all():
        raise Rejected(f"overflow: {what} is not finite in double precision")
    return array


def sum_up(x: Floats, axis: int | tuple[int, ...] | None = None) -> Floats:
    """Upper bound of the sum of nonnegative entries: `fl <= exact (1 - gamma_n)` and adding never underflows."""
    n = x.size if axis is None else int(np.prod([x.shape[a] for a in np.atleast_1d(axis)]))
    return ups(np.asarray(x.sum(axis=axis), dtype=np.float64) * (1 + 4 * (n + 2) * U))


def sum_down(x: Floats, axis: int | tuple[int, ...] | None = None) -> Floats:
    """Lower bound of the sum of nonnegative entries, nonnegative itself."""
    n = x.size if axis is None else int(np.prod([x.shape[a] for a in np.atleast_1d(axis)]))
    return np.maximum(downs(np.asarray(x.sum(axis=axis), dtype=np.float64) * (1 - 4 * (n + 2) * U)), 0.0)


def _total(x: Floats, upward: bool) -> float:
    """The sum of nonnegative floats, rounded in the given direction: the best float, however many terms there are."""
    terms = x.ravel().tolist()
    try:
        total = math.fsum(terms)  # correctly rounded
        beyond = math.fsum([*terms, -total])  # the sign of what it left out is right
    except OverflowError:
        return math.inf if upward else 2.0**1023
    if upward:
        return up(total) if beyond > 0 else total
    return down(total) if beyond < 0 else total


def norm_up(x: Floats, norm: str) -> float:
    """Upper bound of the norm of a vector of exact nonnegative numbers, a few units in the last place above it."""
    if norm == "linf" or not x.any():
        return float(x.max(initial=0.0))
    if norm == "l1":
        return _total(x, upward=True)
    scaled, exponent = _scaled(x)
    # Squares below 2^-1074 may vanish: at most n of them.
    square = up(_total(ups(scaled * scaled), upward=True) + x.size * TINY)
    return _unscaled_up(square, exponent)


def norm_down(x: Floats, norm: str) -> float:
    """Lower bound of the norm of a vector of exact nonnegative numbers, a few units in the last place below it."""
    if norm == "linf" or not x.any():
        return float(x.max(initial=0.0))
    if norm == "l1":
        return _total(x, upward=False)
    scaled, exponent = _scaled(x)
    square = _total(np.maximum(downs(scaled * scaled), 0.0), upward=False)
    square = down(square - x.size * TINY)
    return max(0.0, down(float(np.ldexp(down(float(np.sqrt(max(square, 0.0)))), exponent))))


def _unscaled_up(square: float, exponent: int) -> float:
    return up(float(np.ldexp(up(float(np.sqrt(square))), exponent)))


def _scaled(x: Floats) -> tuple[Floats, int]:
    """X times the power of two that brings its largest entry to [1/2, 1); entries 2^-1000 below lose some bits."""
    exponent = int(np.frexp(x.max(initial=0.0))[1])
    return np.ldexp(x.ravel(), -exponent), exponent


def frobenius_up(x: Floats) -> float:
    """Upper bound of the Frobenius norm of an array of floats: faster than `norm_up`, `4 (n + 2) u` above the norm."""
    scaled, exponent = _scaled(np.abs(x))
    return _unscaled_up(up(float(sum_up(scaled * scaled * (1 + 4 * U))) + x.size * TINY), exponent)
