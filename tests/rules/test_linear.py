"""Affine nodes: linear part, absolute value, count of roundings."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from lipscope.claims.rounding import gamma
from lipscope.network.nodes import BatchNorm, Dense
from lipscope.rules import NoRule, absolute, evaluate, linear_part, roundings
from rules.rule_cases import AFFINE, CASES, Case

names = pytest.mark.parametrize("name", AFFINE)


def split(case: Case, flat: Tensor) -> list[Tensor]:
    parts = flat.split([math.prod(s) for s in case.shapes], 1)
    return [p.reshape(-1, *s) for p, s in zip(parts, case.shapes, strict=True)]


def dense(case: Case, node: object) -> Tensor:
    """The matrix, column by column."""
    size = sum(math.prod(s) for s in case.shapes)
    return evaluate(node, *split(case, torch.eye(size, dtype=torch.float64))).reshape(size, -1).T


@names
def test_linear_part_is_the_node_minus_its_value_at_zero(name: str) -> None:
    case = AFFINE[name]
    node = linear_part(case.node)
    x, y = case.inputs(1), case.inputs(2)
    zero = [torch.zeros_like(v) for v in x]
    assert torch.equal(evaluate(node, *zero), torch.zeros_like(evaluate(node, *zero)))
    together = evaluate(node, *(2 * a - 3 * b for a, b in zip(x, y, strict=True)))
    torch.testing.assert_close(together, 2 * evaluate(node, *x) - 3 * evaluate(node, *y), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        evaluate(node, *x), evaluate(case.node, *x) - evaluate(case.node, *zero), rtol=1e-12, atol=1e-12
    )
    assert node.shape == case.node.shape
    assert evaluate(node, *x).shape == (3, *node.shape)


@names
def test_absolute_is_the_entrywise_absolute_value(name: str) -> None:
    case = AFFINE[name]
    node = linear_part(case.node)
    assert torch.equal(dense(case, absolute(node)), dense(case, node).abs())


@names
def test_vector_jacobian_product_is_the_transpose(name: str) -> None:
    case = AFFINE[name]
    node = linear_part(case.node)
    matrix = dense(case, node)
    flat = torch.zeros(1, matrix.shape[1], dtype=torch.float64)
    y = torch.randn(1, matrix.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, back = torch.autograd.functional.vjp(lambda v: evaluate(node, *split(case, v)).reshape(1, -1), flat, y)
    torch.testing.assert_close(back, y @ matrix, rtol=1e-13, atol=1e-13)


def exact_matrix(case: Case) -> list[list[Fraction]]:
    """The matrix in rationals: float64 columns are exact except where a coefficient is a quotient."""
    node = linear_part(case.node)
    matrix = dense(case, node)
    if node.kind in {"Mean", "AveragePool", "DivConstant"}:
        return [[Fraction(v).limit_denominator(10**4) if node.kind != "DivConstant" else v for v in row]
                for row in matrix.tolist()]  # fmt: skip
    return [[Fraction(v) for v in row] for row in matrix.tolist()]


@pytest.mark.parametrize("name", [n for n, c in AFFINE.items() if c.node.kind not in {"BatchNorm", "DivConstant"}])
def test_rounding_stays_within_the_count(name: str) -> None:
    case = AFFINE[name]
    node = linear_part(case.node)
    matrix, counts = exact_matrix(case), roundings(node)
    scales = torch.logspace(-3, 3, len(matrix[0]), dtype=torch.float64)
    x = scales * torch.randn(1, len(matrix[0]), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    y = evaluate(node, *split(case, x)).reshape(-1).tolist()
    check_within(matrix, x[0].tolist(), y, counts.forward)
    out = torch.randn(1, len(matrix), dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    _, back = torch.autograd.functional.vjp(lambda v: evaluate(node, *split(case, v)).reshape(1, -1), x, out)
    check_within(
        [list(column) for column in zip(*matrix, strict=True)], out[0].tolist(), back[0].tolist(), counts.adjoint
    )


def check_within(matrix: list[list[Fraction]], x: list[float], computed: list[float], count: int) -> None:
    for row, value in zip(matrix, computed, strict=True):
        terms = [a * Fraction(b) for a, b in zip(row, x, strict=True)]
        assert abs(Fraction(value) - sum(terms)) <= Fraction(gamma(count)) * sum(map(abs, terms))


def test_the_rounding_check_can_fail() -> None:
    row = [Fraction(1, 3)]
    with pytest.raises(AssertionError):
        check_within([row], [1.0], [1 / 3], 0)


def test_batch_norm_scale_is_counted() -> None:
    case = AFFINE["BatchNorm"]
    node = linear_part(case.node)
    assert isinstance(node, BatchNorm)
    (x,) = case.inputs(3, batch=1)
    y = evaluate(node, x)[0, 0]
    for c in range(4):
        value = Fraction(float(node.variance[c])) + Fraction(node.eps)
        for a, b in zip(x[0, 0, c].reshape(-1).tolist(), y[c].reshape(-1).tolist(), strict=True):
            # |b| = |x w|/sqrt(v) (1 + d): compare squares, in rationals.
            ratio = Fraction(b) ** 2 * value / (Fraction(a) * Fraction(float(node.weight[c]))) ** 2
            assert (1 - Fraction(gamma(5))) ** 2 <= ratio <= (1 + Fraction(gamma(5))) ** 2


def test_long_sums_stay_within_their_depth() -> None:
    node = replace(CASES["Sum"].node, shape=(), axes=(0,))
    x = torch.rand(1, 100_003, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = sum(map(Fraction, x[0].tolist()))
    assert abs(Fraction(float(evaluate(node, x))) - exact) <= Fraction(gamma(18)) * exact
    assert roundings(node).forward >= 18


def test_nonlinear_kinds_have_no_linear_part() -> None:
    with pytest.raises(NoRule, match="not an affine map"):
        linear_part(CASES["Softmax"].node)
    assert isinstance(linear_part(CASES["Dense"].node), Dense)
