"""Rounding helpers against exact rationals."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipscope.claims import rounding
from lipscope.claims.rounding import (
    UNIT_ROUNDOFF,
    down,
    gamma,
    norm_down,
    norm_up,
    product_up,
    quotient_down,
    quotient_up,
    sqrt_down,
    sqrt_up,
    sum_down,
    sum_up,
    up,
)

positive = st.floats(1e-300, 1e300)
moderate = st.floats(1e-100, 1e100)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_up_and_down_are_neighbours(x: float) -> None:
    assert down(x) < x < up(x)
    assert down(up(x)) == x or x == 0
    t = torch.tensor([x], dtype=torch.float64)
    assert (float(up(t)), float(down(t))) == (up(x), down(x))


@given(st.integers(1, 2**40))
def test_gamma_is_above_the_exact_value(k: int) -> None:
    exact = Fraction(k, 2**53 - k)
    assert exact <= Fraction(gamma(k)) <= exact * (1 + Fraction(1, 2**50))


def test_gamma_at_the_ends() -> None:
    assert gamma(0) == 0
    assert gamma(2**53) == math.inf
    assert gamma(1) > UNIT_ROUNDOFF


@given(st.lists(st.floats(-1e300, 1e300), max_size=8))
def test_sums(values: list[float]) -> None:
    exact = sum(map(Fraction, values), Fraction(0))
    above, below = sum_up(values), sum_down(values)
    assert below <= exact <= above
    assert above <= up(below)


@given(moderate, moderate)
def test_products_and_quotients(a: float, b: float) -> None:
    assert (
        Fraction(a) * Fraction(b) <= Fraction(product_up(a, b)) <= Fraction(a) * Fraction(b) * (1 + Fraction(1, 2**51))
    )
    exact = Fraction(a) / Fraction(b)
    assert Fraction(quotient_down(a, b)) <= exact <= Fraction(quotient_up(a, b))
    assert quotient_up(a, b) <= up(quotient_down(a, b))


@given(positive)
def test_roots(a: float) -> None:
    assert Fraction(sqrt_down(a)) ** 2 <= Fraction(a) <= Fraction(sqrt_up(a)) ** 2
    assert sqrt_up(a) <= up(sqrt_down(a))


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=6))
def test_norms(values: list[float]) -> None:
    exact = sum(Fraction(v) ** 2 for v in values)
    above, below = norm_up(values), norm_down(values)
    assert Fraction(below) ** 2 <= exact
    assert math.isinf(above) or Fraction(above) ** 2 >= exact
    assert below >= above * (1 - 1e-13) or above < 1e-290


def test_exact_results_are_not_widened() -> None:
    assert sum_up([1.0, 2.0, 3.0]) == 6
    assert product_up(3.0, 0.5) == 1.5
    assert quotient_up(3.0, 2.0) == 1.5
    assert norm_up([3.0, 4.0]) == 5
    assert (sqrt_up(9.0), sqrt_down(9.0)) == (3, 3)


def test_special_values() -> None:
    assert product_up(0.0, math.inf) == 0
    assert product_up(2.0, math.inf) == math.inf
    assert product_up(1e-200, 1e-200) > 0
    assert product_up(1e200, 1e200) == math.inf
    assert sum_up([1e308, 1e308]) == math.inf
    assert sum_up([math.inf, 1.0]) == math.inf
    assert sum_up([]) == 0
    assert quotient_up(1.0, math.inf) > 0
    assert quotient_up(0.0, 0.0) == 0
    assert quotient_up(1.0, 0.0) == math.inf
    assert norm_up([math.inf]) == math.inf
    assert norm_up([1e308] * 4) == math.inf
    assert Fraction(norm_up([rounding.SMALLEST] * 2)) ** 2 >= 2 * Fraction(rounding.SMALLEST) ** 2
    with pytest.raises(ValueError, match="factors >= 0"):
        product_up(1.0, -1.0)
