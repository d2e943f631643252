"""Derivatives of the operator norm against automatic differentiation, finite differences and the formed Hessian."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lipscope.claims.errors import UsageError
from lipscope.dynamics.operator_calculus import (
    GramForm,
    derivative,
    first_derivative,
    first_form,
    gap,
    q_ratio,
    second_derivative,
    second_form,
    thin_svd,
    third_derivative,
)

SHAPES = [(6, 10), (10, 6), (7, 7), (1, 5), (5, 1), (1, 1), (3, 40)]


def draw(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight, one, other = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3))
    return weight, one, other


def autograd_derivatives(weight: Tensor, direction: Tensor) -> list[float]:
    """First to third derivative of `t -> |W + t G|` at 0."""
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = torch.linalg.matrix_norm(weight + t * direction, 2)
    (first,) = torch.autograd.grad(value, t, create_graph=True)
    (second,) = torch.autograd.grad(first, t, retain_graph=True)
    return [float(first.detach()), float(second)]


def formed_hessian(weight: Tensor) -> Tensor:
    """The Hessian of the norm, (m n, m n), row-major, by double backward."""
    hessian = torch.autograd.functional.hessian(lambda w: torch.linalg.matrix_norm(w, 2), weight)
    assert isinstance(hessian, Tensor)
    return hessian.reshape(weight.numel(), weight.numel())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_first_and_second_derivative_are_those_of_autograd(shape: tuple[int, int], seed: int) -> None:
    weight, direction, _ = draw(shape, seed)
    first, second = autograd_derivatives(weight, direction)
    scale = 1 + abs(second)
    assert abs(float(first_derivative(weight, direction)) - first) < 1e-12
    assert abs(float(second_derivative(weight, direction)) - second) < 1e-11 * scale
    assert abs(float(derivative(weight, direction, 1)) - first) < 1e-12
    assert abs(float(derivative(weight, direction, 2)) - second) < 1e-11 * scale


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_third_derivative_is_the_slope_of_the_second(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, direction, _ = draw(shape, 3, dtype)
    h = 1e-4
    slope = (
        second_derivative(weight + h * direction, direction) - second_derivative(weight - h * direction, direction)
    ) / (2 * h)
    third = float(third_derivative(weight, direction))
    assert abs(float(slope) - third) < 1e-5 * (1 + abs(third))


@pytest.mark.parametrize("shape", [(5, 4), (4, 5), (3, 3), (1, 4)])
def test_complex_second_derivative_is_the_finite_difference(shape: tuple[int, int]) -> None:
    weight, direction, _ = draw(shape, 5, torch.complex128)

    def norm(t: float) -> float:
        return float(torch.linalg.matrix_norm(weight + t * direction, 2))

    h = 1e-3
    fourth_order = (-norm(2 * h) + 16 * norm(h) - 30 * norm(0) + 16 * norm(-h) - norm(-2 * h)) / (12 * h * h)
    assert float(second_derivative(weight, direction)) == pytest.approx(fourth_order, rel=1e-6)
    assert float(derivative(weight, direction, 2)) == pytest.approx(fourth_order, rel=1e-6)


def test_the_imaginary_part_of_a_complex_direction_counts() -> None:
    weight, direction, _ = draw((5, 4), 5, torch.complex128)
    svd = thin_svd(weight)
    p, _ = svd.images(direction)
    turned = float((p @ svd.left[:, 0].conj()).imag) ** 2 / svd.norm
    assert turned > 0.01
    # A purely imaginary multiple of the matrix only turns its phase: all of H is that part.
    spin = 1j * weight
    assert float(second_derivative(weight, spin)) == pytest.approx(svd.norm, rel=1e-12)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5), (1, 5), (5, 1)])
def test_facts_of_the_hessian(shape: tuple[int, int]) -> None:
    weight, _, _ = draw(shape, 7)
    m, n = shape
    hessian = formed_hessian(weight)
    svd = thin_svd(weight)
    sigma, rest, r = svd.norm, svd.values[1:], min(m, n)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    assert float(eigenvalues[0]) > -1e-12
    assert int((eigenvalues > 1e-10).sum()) == m + n - 2
    largest = 1 / (sigma - float(rest[0])) if r > 1 else 1 / sigma
    assert float(eigenvalues[-1]) == pytest.approx(largest, rel=1e-10)
    trace = float((2 * sigma / (sigma**2 - rest**2)).sum()) + (m + n - 2 * r) / sigma
    assert float(hessian.trace()) == pytest.approx(trace, rel=1e-10)
    assert float((hessian @ weight.reshape(-1)).abs().max()) < 1e-11
    # and the form is that Hessian on every pair of unit matrices
    units = torch.eye(m * n, dtype=torch.float64).reshape(m * n, m, n)
    p, q = svd.images(units)
    assert torch.allclose(second_form(svd, (p[:, None], q[:, None]), (p[None], q[None])), hessian, atol=1e-11)
    gram = GramForm(weight)
    assert torch.allclose(gram.matrix(units @ gram.right, units.mT @ gram.left), hessian, atol=1e-11)


def test_published_formula_of_the_full_hessian() -> None:
    """The sum over outer products of arXiv 2506.03764, for the largest value, column-major."""
    weight, direction, _ = draw((6, 10), 11)
    u, s, vh = torch.linalg.svd(weight, full_matrices=True)
    v, padded = vh.mT, torch.cat([s, s.new_zeros(4)])
    vectors: list[Tensor] = []
    total = torch.zeros(60, 60, dtype=torch.float64)
    for i in range(1, 6):
        vectors.append(torch.kron(v[:, 0], u[:, i]))
        total += s[0] / (s[0] ** 2 - s[i] ** 2) * torch.outer(vectors[-1], vectors[-1])
    for j in range(1, 10):
        across = torch.kron(v[:, j], u[:, 0])
        total += s[0] / (s[0] ** 2 - padded[j] ** 2) * torch.outer(across, across)
        if j < 6:
            mixed = torch.outer(vectors[j - 1], across)
            total += s[j] / (s[0] ** 2 - s[j] ** 2) * (mixed + mixed.mT)
    flat = direction.mT.reshape(-1)
    assert float(flat @ total @ flat) == pytest.approx(float(second_derivative(weight, direction)), rel=1e-12)


@given(m=st.integers(1, 6), n=st.integers(1, 6), seed=st.integers(0, 10**6), scale=st.floats(0.1, 10.0))
@settings(max_examples=60, deadline=None)
def test_laws(m: int, n: int, seed: int, scale: float) -> None:
    weight, one, other = draw((m, n), seed)
    if gap(weight) < 1e-3:
        return
    h = float(second_derivative(weight, one))
    close = {"rel": 1e-7, "abs": 1e-9}
    assert h >= -1e-12
    assert float(second_derivative(weight, one, other)) == pytest.approx(
        float(second_derivative(weight, other, one)), **close
    )
    polar = (second_derivative(weight, one + other) - second_derivative(weight, one - other)) / 4
    assert float(second_derivative(weight, one, other)) == pytest.approx(float(polar), **close)
    assert float(second_derivative(scale * weight, scale * one)) == pytest.approx(scale * h, **close)
    assert float(second_derivative(weight.mT, one.mT)) == pytest.approx(h, **close)
    assert float(second_derivative(weight, one + 3 * weight)) == pytest.approx(h, **close)
    gram = GramForm(weight)
    p, q = one @ gram.right, one.mT @ gram.left
    assert float(gram.second(p, q)) == pytest.approx(h, **close)
    assert float(gram.first(p)) == pytest.approx(float(first_derivative(weight, one)), **close)
    assert gram.gap == pytest.approx(gap(weight), rel=1e-6)
    assert gram.crossing_ratio(p, q) == pytest.approx(q_ratio(weight, one), rel=1e-5, abs=1e-8)


def test_batches_of_directions() -> None:
    weight, _, _ = draw((6, 9), 2)
    directions = torch.randn(4, 6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    svd, gram = thin_svd(weight), GramForm(weight)
    one_by_one = torch.stack([second_derivative(weight, g) for g in directions])
    assert torch.allclose(second_form(svd, svd.images(directions)), one_by_one, rtol=1e-12)
    assert torch.allclose(gram.second(directions @ gram.right, directions.mT @ gram.left), one_by_one, rtol=1e-10)
    assert torch.allclose(
        first_form(svd, svd.images(directions)[0]), torch.stack([first_derivative(weight, g) for g in directions])
    )


def test_the_null_space_counts() -> None:
    """A change of a row vector across itself: |w + t g| = sqrt(|w|^2 + t^2 |g|^2)."""
    weight = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64)
    across = torch.tensor([[0.0, 3.0, 0.0]], dtype=torch.float64)
    assert float(second_derivative(weight, across)) == pytest.approx(9 / 2, rel=1e-14)
    assert float(second_derivative(weight.mT, across.mT)) == pytest.approx(9 / 2, rel=1e-14)
    assert float(third_derivative(weight, across)) == pytest.approx(0.0, abs=1e-13)


def test_gap_and_crossing() -> None:
    weight = torch.diag(torch.tensor([2.0, 1.5, 0.1], dtype=torch.float64))
    turn = torch.zeros(3, 3, dtype=torch.float64)
    turn[1, 0] = 0.4  # u_2^T G v_1 = .4
    assert gap(weight) == pytest.approx(0.5)
    assert q_ratio(weight, turn) == pytest.approx(0.4 / (2 * 0.5))
    assert q_ratio(weight, torch.eye(3, dtype=torch.float64)) == 0.0
    assert q_ratio(torch.eye(3, dtype=torch.float64), turn) == math.inf
    assert gap(torch.tensor([[3.0, 4.0]], dtype=torch.float64)) == pytest.approx(5.0)
    assert GramForm(torch.eye(3, dtype=torch.float64)).gap == 0.0


def test_wrong_use() -> None:
    weight = torch.eye(3, dtype=torch.float64)
    with pytest.raises(UsageError, match="shape"):
        first_derivative(weight, torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(UsageError, match="order"):
        derivative(weight, weight, 4)
    with pytest.raises(UsageError, match="matrix"):
        thin_svd(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(UsageError, match="matrix"):
        thin_svd(torch.zeros(0, 3, dtype=torch.float64))
