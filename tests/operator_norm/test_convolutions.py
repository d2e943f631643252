"""Every path for every kind of convolution against the matrix by definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from lipscope.claims.norms import NORMS
from lipscope.operator_norm import enclose
from lipscope.operator_norm.cholesky import Plan, assemble, eliminates, prove_cholesky, slabs
from lipscope.operator_norm.gram import Gram, attained, gram
from lipscope.operator_norm.grid import Symbol, grid_counts, prove_grid, prove_on_grid
from lipscope.operator_norm.lanczos import Recurrence, converge, prove_lanczos, starts_for
from lipscope.operator_norm.schur import prove_schur
from lipscope.operator_norm.sums import absolute_sums
from lipscope.rules.linear_map import LinearMap
from operator_norm.maps import conv, conv_matrix, impulse_matrix, padded_conv, spectral_norm

KERNELS = [(3, 3), (2, 3), (4, 1), (1, 1)]
CASES = [
    pytest.param(
        k, (s, s if k[0] != 2 else 1), (p, p), (d, d if k[0] != 4 else 1), g, id=f"k{k[0]}{k[1]}s{s}p{p}d{d}g{g}"
    )
    for k, s, p, d, g in itertools.product(KERNELS, (1, 2, 3), (0, 1, 2), (1, 2), (1, 2))
]
SIZE = (9, 7)


def kernel(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def operators(linear_map: LinearMap) -> list[Gram]:
    sums = absolute_sums(linear_map)
    return [gram(linear_map, "input", sums), gram(linear_map, "output", sums)]


def plans(linear_map: LinearMap) -> list[Plan]:
    """One block on each side, and the narrowest slabs along each axis of each side."""
    result = []
    for operator in operators(linear_map):
        result.append(Plan(operator))
        result += [Plan(operator, a, slabs(operator, a)) for a, n in enumerate(operator.shape) if n > 1]
    return result


@pytest.mark.parametrize("kernel_size, stride, padding, dilation, groups", CASES)
def test_every_path_encloses_the_matrix(
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> None:
    weight = kernel((4, 4 // groups, *kernel_size), hash((kernel_size, stride, padding, dilation, groups)) % 1000)
    linear_map = conv(weight, SIZE, stride, padding, dilation, groups)
    matrix = conv_matrix(weight, SIZE, stride, padding, dilation, groups)
    low, high = spectral_norm(matrix)

    x, y = kernel((1, *linear_map.input_shape), 1), kernel((1, *linear_map.output_shape), 2)
    forth, back = float((linear_map.apply(x) * y).sum()), float((linear_map.adjoint(y) * x).sum())
    assert abs(forth - back) <= 1e-12 * float(x.norm() * y.norm()) * high
    assert np.array_equal(impulse_matrix(linear_map), matrix)

    for norm, truth in (("l1", np.abs(matrix).sum(0).max()), ("linf", np.abs(matrix).sum(1).max())):
        found = enclose(linear_map, norm)
        assert truth * (1 - 1e-9) <= found.lower <= truth * (1 + 1e-14)
        assert truth * (1 - 1e-14) <= found.upper <= truth * (1 + 1e-9)

    found = enclose(linear_map, "l2")
    assert found.failure == 0
    assert found.lower <= high and low <= found.upper <= found.lower * (1 + 1e-9)
    assert low <= prove_schur(absolute_sums(linear_map)).upper

    proofs = [prove_cholesky(plan, assemble(plan), found.lower) for plan in plans(linear_map)]
    for proof in proofs:
        assert proof is not None
        assert low <= proof.upper <= high * (1 + 1e-9)

    assert linear_map.convolution is not None
    symbol = Symbol(linear_map.convolution, operators(linear_map)[0].exponent, linear_map.roundings.forward)
    counts = grid_counts(symbol.taps, 1e-2)
    proof = prove_on_grid(symbol, counts, 0.0)
    assert proof is not None
    assert low <= proof.upper <= math.ldexp(symbol.estimate(), symbol.exponent) * 1.011
    if kernel_size == (1, 1) and min(linear_map.output_shape[2:]) > 2:
        assert proof.upper <= high * (1 + 1e-9)


@pytest.mark.parametrize("kernel_size, stride, padding, dilation, groups", CASES[::5])
@pytest.mark.parametrize("side", [0, 1])
def test_lanczos_encloses_the_matrix(
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    side: int,
) -> None:
    weight = kernel((4, 4 // groups, *kernel_size), 5)
    linear_map = conv(weight, SIZE, stride, padding, dilation, groups)
    low, high = spectral_norm(conv_matrix(weight, SIZE, stride, padding, dilation, groups))
    operator = operators(linear_map)[side]
    recurrence = Recurrence(operator, starts_for(1e-9))
    proof = prove_lanczos(recurrence, 1e-9, 1e-3, 500, lambda: False)
    assert proof is not None and proof.failure == 1e-9
    lower = attained(linear_map, operator.input_vector(recurrence.ritz_vector()[0]), operator.exponent)
    assert lower <= high and low <= proof.upper <= lower * (1 + 1e-3)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [(3, 3), (2, 4)])
def test_padding_by_copies(mode: str, padding: int, stride: int, kernel_size: tuple[int, int]) -> None:
    linear_map = padded_conv(kernel((2, 3, *kernel_size), 7), (6, 5), mode, padding, stride)
    matrix = impulse_matrix(linear_map)
    low, high = spectral_norm(matrix)
    found = enclose(linear_map, "l2")
    assert found.lower <= high and low <= found.upper <= found.lower * (1 + 1e-9)
    for plan in plans(linear_map):
        proof = prove_cholesky(plan, assemble(plan), found.lower)
        assert proof is not None
        assert low <= proof.upper <= high * (1 + 1e-9)
    for norm, axis in (("l1", 0), ("linf", 1)):
        truth = np.abs(matrix).sum(axis).max()
        found = enclose(linear_map, norm)
        assert truth * (1 - 1e-12) <= found.lower <= truth * (1 + 1e-14)
        assert truth * (1 - 1e-14) <= found.upper <= truth * (1 + 1e-9)


@pytest.mark.parametrize("n, zero, circular", [(6, 1.8019, 1.7321), (10, 1.9190, 1.9021)])
def test_zero_padding_can_exceed_the_circular_norm_of_the_same_size(n: int, zero: float, circular: float) -> None:
    weight = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).reshape(1, 1, 1, 3)
    found = enclose(conv(weight, (1, n), padding=(0, 1)), "l2")
    assert zero - 1e-4 < found.lower <= found.upper < zero + 1e-4
    periodic = np.array([[float((i - j) % n == n - 1) - float((i - j) % n == 1) for j in range(n)] for i in range(n)])
    assert abs(spectral_norm(periodic)[0] - circular) < 1e-4
    assert found.lower > circular


def test_circular_padding_with_repeated_outputs_exceeds_the_symbol() -> None:
    linear_map = padded_conv(torch.ones(1, 1, 1, 1, dtype=torch.float64), (1, 1), "circular", 1)
    assert linear_map.convolution is None  # so that nobody takes the symbol, which is 1
    larger = padded_conv(torch.ones(1, 1, 1, 1, dtype=torch.float64), (4, 4), "circular", 1)
    found = enclose(larger, "l2")
    assert 2.0 * (1 - 1e-9) <= found.lower <= 2.0 <= found.upper <= 2.0 * (1 + 1e-9)


@pytest.mark.parametrize(
    "shape, kernel_shape, stride, side", [((16, 16), (8, 8, 3, 3), 1, 0), ((28, 28), (8, 4, 3, 3), 2, 1)]
)
def test_elimination_accepts_above_and_refuses_below(
    shape: tuple[int, int], kernel_shape: tuple[int, ...], stride: int, side: int
) -> None:
    linear_map = conv(kernel(kernel_shape, 3), shape, (stride, stride), (1, 1))
    operator = operators(linear_map)[side]
    vector = converge(Recurrence(operator, seed=0), 1e-8, 500, lambda: False)
    sigma = operator.scaled(attained(linear_map, operator.input_vector(vector), operator.exponent))
    for plan in (Plan(operator), Plan(operator, 2, slabs(operator, 2))):
        blocks = assemble(plan)
        for factor in (1.0005, 1.00005, 1 + 1e-7):
            assert eliminates(plan, blocks, sigma * factor)
        for factor in (0.99995, 1 - 1e-7, 1.0):
            assert not eliminates(plan, blocks, sigma * factor)


def test_blocks_are_those_of_the_gram_matrix() -> None:
    linear_map = conv(kernel((3, 2, 3, 3), 9), (11, 6), (1, 1), (1, 1))
    for plan in plans(linear_map):
        matrix = plan.gram(torch.eye(plan.gram.size, dtype=torch.float64))
        if plan.axis is not None:
            order = torch.arange(plan.gram.size).reshape(plan.gram.shape).movedim(plan.axis, 0).flatten()
            matrix = matrix[order][:, order]
        blocks, edges = assemble(plan), np.cumsum([0, *plan.sizes])
        rebuilt = torch.zeros_like(matrix)
        for i, diagonal in enumerate(blocks.diagonals):
            rebuilt[edges[i] : edges[i + 1], edges[i] : edges[i + 1]] = diagonal
        for i, coupling in enumerate(blocks.couplings):
            rebuilt[edges[i] : edges[i + 1], edges[i + 1] : edges[i + 2]] = coupling
            rebuilt[edges[i + 1] : edges[i + 2], edges[i] : edges[i + 1]] = coupling.T
        assert float((rebuilt - matrix).abs().max()) <= 1e-15


def test_slabs_follow_the_reach_of_the_kernel() -> None:
    def along_rows(k: int, stride: int, dilation: int, side: int) -> tuple[int, ...]:
        linear_map = conv(kernel((2, 2, k, 1)), (12, 3), (stride, 1), (k // 2, 0), (dilation, 1))
        return slabs(operators(linear_map)[side], 2)

    assert along_rows(3, 1, 1, 0) == (0, 1, 3, 5, 7, 9, 11, 12)
    assert along_rows(1, 1, 1, 0) == tuple(range(13))
    assert along_rows(3, 2, 1, 1) == (0, 1, 2, 3, 4, 5, 6)
    grouped = conv(kernel((6, 1, 3, 3)), (5, 5), padding=(1, 1), groups=6)
    assert slabs(operators(grouped)[0], 1) == tuple(range(7))


@pytest.mark.parametrize("stride, dilation", [((1, 1), (1, 1)), ((2, 1), (1, 2)), ((2, 2), (2, 3)), ((3, 2), (1, 1))])
def test_the_symbol_on_coarse_grids_bounds_large_maps(stride: tuple[int, int], dilation: tuple[int, int]) -> None:
    closest = 0.0
    for seed in range(40):
        weight = kernel((2, 2, 3, 2), seed)
        linear_map = conv(weight, (24, 24), stride, (2, 2), dilation)
        lower = enclose(linear_map, "l2", tolerance=1e-2).lower
        assert linear_map.convolution is not None
        symbol = Symbol(linear_map.convolution, operators(linear_map)[0].exponent, linear_map.roundings.forward)
        for extra in (0, 1, 3):
            counts = tuple(q + extra if q > 1 else 1 for q in symbol.taps)
            proof = prove_on_grid(symbol, counts, 0.0)
            if proof is not None:
                assert lower <= proof.upper
                closest = max(closest, lower / proof.upper)
    assert 0.5 < closest <= 1


def test_the_symbol_of_a_large_map_is_within_the_tolerance() -> None:
    linear_map = conv(kernel((6, 3, 3, 3), 11), (96, 96), padding=(1, 1))
    operator = operators(linear_map)[0]
    lower = attained(linear_map, converge(Recurrence(operator, seed=0), 1e-5, 300, lambda: False), operator.exponent)
    assert linear_map.convolution is not None
    symbol = Symbol(linear_map.convolution, operator.exponent, linear_map.roundings.forward)
    proof = prove_grid(symbol, lower, 1e-3, 1e11)
    assert proof is not None
    assert lower <= proof.upper <= lower * (1 + 1e-3)
    assert prove_grid(symbol, lower, 1e-6, 1e11) is None  # the symbol's supremum itself is further away
    assert prove_grid(symbol, lower, 1e-3, 1e5) is None  # not affordable


def test_one_dimensional_and_three_dimensional_kernels_have_symbols() -> None:
    from lipscope.network.nodes import Conv

    one = Conv(
        inputs=(0,), shape=(1, 2, 8), weight=kernel((2, 3, 3), 1).numpy(), stride=(1,), padding=((1, 1),), dilation=(1,)
    )
    flat = conv(kernel((2, 3, 3), 1).reshape(2, 3, 1, 3), (1, 8), padding=(0, 1))
    assert flat.convolution is not None
    first, second = Symbol(one, 3, 9), Symbol(flat.convolution, 3, 9)
    a, b = prove_on_grid(first, (40,), 0.0), prove_on_grid(second, (1, 40), 0.0)
    assert a is not None and b is not None
    assert abs(a.upper / b.upper - 1) < 1e-12
    cube = Conv(
        inputs=(0,), shape=(1, 2, 4, 4, 4), weight=kernel((2, 2, 2, 2, 2), 1).numpy(), stride=(2, 1, 1),
        padding=((0, 0),) * 3, dilation=(1, 1, 1),
    )  # fmt: skip
    bound = prove_on_grid(Symbol(cube, 3, 16), (1, 9, 9), 0.0)
    taps = torch.nn.functional.conv3d
    probes = torch.eye(2 * 5 * 5 * 5, dtype=torch.float64).reshape(-1, 2, 5, 5, 5)
    matrix = taps(probes, torch.from_numpy(cube.weight), stride=(2, 1, 1)).reshape(250, -1).T.numpy()
    assert bound is not None
    assert spectral_norm(matrix)[0] <= bound.upper


@pytest.mark.parametrize("norm", NORMS)
def test_scaling_by_a_power_of_two_scales_the_bounds(norm: str) -> None:
    weight = kernel((3, 2, 3, 3), 4)
    first = enclose(conv(weight, (7, 7), padding=(1, 1)), norm)
    second = enclose(conv(weight * 2.0**-40, (7, 7), padding=(1, 1)), norm)
    assert second.upper * 2.0**40 == first.upper
    assert second.lower * 2.0**40 == first.lower
