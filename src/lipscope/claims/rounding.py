"""Rounding to float64, outward: the only place of lipscope that knows how floating point rounds.

Arithmetic is IEEE 754 double precision, round to nearest, with gradual underflow: a basic operation (+, -, *, /, sqrt)
returns `(1 + d) exact + e` with `|d| <= u = 2^-53` and `|e| <= 2^-1075`, so that the neighbour of the result on either
side bounds the exact value. Functions of libm are assumed to be within `LIBM_ULPS` units in the last place.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from fractions import Fraction
from typing import overload

import torch
from torch import Tensor

UNIT_ROUNDOFF = 2.0**-53
"""u: the largest relative error of one rounded operation."""

SMALLEST = math.ulp(0.0)
"""The smallest positive number, 2^-1074: twice the absolute error of one operation that underflows."""

LARGEST = sys.float_info.max
"""The largest finite number."""

LIBM_ULPS = 16
"""How many units in the last place exp, tanh, erf, ... are assumed to be off at most; SLEEF and glibc promise 1 to 4."""


@overload
def up(value: float) -> float: ...
@overload
def up(value: Tensor) -> Tensor: ...
def up(value: float | Tensor) -> float | Tensor:
    """The next larger number, entrywise: at least the exact value of the operation that returned `value`."""
    if isinstance(value, Tensor):
        return torch.nextafter(value, torch.full_like(value, math.inf))
    return math.nextafter(value, math.inf)


@overload
def down(value: float) -> float: ...
@overload
def down(value: Tensor) -> Tensor: ...
def down(value: float | Tensor) -> float | Tensor:
    """The next smaller number, entrywise: at most the exact value of the operation that returned `value`."""
    if isinstance(value, Tensor):
        return torch.nextafter(value, torch.full_like(value, -math.inf))
    return math.nextafter(value, -math.inf)


def gamma(count: int) -> float:
    """Upper bound of `k u/(1 - k u)`, the relative error of k roundings in a row (Higham, lemma 3.1); inf for k u >= 1."""
    if count <= 0:
        return 0.0
    product = (
        count * UNIT_ROUNDOFF
    )  # exact: a power of two times an integer (rounded once beyond 2^53, where it is inf)
    return math.inf if product >= 1 else up(product / down(1 - product))


def sum_up(values: Iterable[float]) -> float:
    """At least the exact sum of the values: `math.fsum` is correctly rounded."""
    terms = list(values)
    if math.inf in terms:
        return math.inf
    try:
        total = math.fsum(terms)
    except OverflowError:
        return math.inf
    # A sum that is a number already (all terms but one 0, small integers, ..) stays what it is.
    return total if sum(map(Fraction, terms)) <= Fraction(total) else up(total)


def product_up(*factors: float) -> float:
    """At least the exact product of numbers that are not negative; 0 times infinity is 0."""
    if 0.0 in factors:
        return 0.0
    result = 1.0
    for factor in factors:
        if factor < 0:
            raise ValueError(f"expected factors >= 0, got {factor}")
        rounded = result * factor
        if not math.isinf(rounded) and Fraction(rounded) < Fraction(result) * Fraction(factor):
            rounded = up(rounded)
        result = rounded
    return result


def quotient_up(numerator: float, denominator: float) -> float:
    """At least the exact quotient of a number >= 0 and a number > 0."""
    if numerator == 0:
        return 0.0
    rounded = numerator / denominator if denominator > 0 else math.inf
    if math.isinf(rounded) or math.isinf(denominator):
        return math.inf if math.isinf(rounded) else SMALLEST
    return rounded if Fraction(rounded) * Fraction(denominator) >= Fraction(numerator) else up(rounded)


def sqrt_up(value: float) -> float:
    """At least the exact square root of a number >= 0; the root itself where it is a number."""
    root = math.sqrt(value)
    return root if math.isinf(root) or Fraction(root) ** 2 >= Fraction(value) else up(root)


def sqrt_down(value: float) -> float:
    """At most the exact square root of a number >= 0; the root itself where it is a number."""
    root = math.sqrt(value)
    return root if math.isinf(root) or Fraction(root) ** 2 <= Fraction(value) else down(root)


def norm_up(values: Iterable[float]) -> float:
    """At least the exact Euclidean norm of the values; the norm itself where it is a number."""
    terms = [abs(v) for v in values]
    largest = max(terms, default=0.0)
    if largest == 0 or math.isinf(largest):
        return largest
    # Scaling by a power of two is exact and keeps the squares from overflowing; exact rationals do the rest.
    exponent = math.frexp(largest)[1]
    scale = Fraction(2) ** exponent
    square = sum((Fraction(t) / scale) ** 2 for t in terms)
    root = math.sqrt(float(square))
    while Fraction(root) ** 2 < square:
        root = up(root)
    try:
        result = math.ldexp(root, exponent)
    except OverflowError:
        return math.inf
    return result if Fraction(result) >= Fraction(root) * scale else up(result)


def sum_down(values: Iterable[float]) -> float:
    """At most the exact sum of finite values: `math.fsum` is correctly rounded."""
    terms = list(values)
    total = math.fsum(terms)
    return total if sum(map(Fraction, terms)) >= Fraction(total) else down(total)


def norm_down(values: Iterable[float]) -> float:
    """At most the exact Euclidean norm of finite values."""
    terms = [abs(v) for v in values]
    largest = max(terms, default=0.0)
    if largest == 0:
        return 0.0
    exponent = math.frexp(largest)[1]
    scaled = [math.ldexp(t, -exponent) for t in terms]
    # Squares of numbers in [0, 1]: each product is rounded once, fsum once more, the root once more.
    root = math.sqrt(max(0.0, down(math.fsum(down(t * t) for t in scaled))))
    return max(0.0, down(math.ldexp(max(0.0, down(root)), exponent)))


def quotient_down(numerator: float, denominator: float) -> float:
    """At most the exact quotient of a number >= 0 and a number > 0."""
    rounded = numerator / denominator
    if math.isinf(rounded):
        return LARGEST
    return rounded if Fraction(rounded) * Fraction(denominator) <= Fraction(numerator) else down(rounded)
