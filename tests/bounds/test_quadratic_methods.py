"""The searches for multipliers: what they find is feasible, in order, and near the optimum; what is asked for is answered."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bounds.test_quadratic import chain, he_network
from harness.expect import expect_close, expect_lower, expect_upper
from lipscope import bound, load
from lipscope.bounds.quadratic.closed_form import eclipse, eclipse_fast
from lipscope.bounds.quadratic.elimination import norm_start, smallest_rho
from lipscope.bounds.quadratic.envelope import envelope, factored
from lipscope.bounds.quadratic.first_order import _Objective, descend
from lipscope.bounds.quadratic.newton import minimise
from lipscope.bounds.quadratic.stacked import Layer, Stacked
from lipscope.claims.errors import UsageError


def with_slopes(network: Stacked, slopes: list[tuple[float, float]]) -> Stacked:
    """The chain with slopes dealt out to its units in turn."""
    dealt = itertools.cycle(slopes)
    layers = []
    for layer in network.layers:
        lower, upper = np.array([next(dealt) for _ in range(layer.size)]).T
        layers.append(Layer(layer.reads, lower, upper))
    return Stacked(network.input_size, tuple(layers), network.output)


def largest_over_patterns(network: Stacked) -> float:
    """The largest norm over all choices of an end of its slopes for every unit: no valid multipliers prove less."""
    ends = np.stack([network.lower, network.upper])
    worst = 0.0
    for choice in itertools.product((0, 1), repeat=network.units):
        slopes, matrix = ends[list(choice), np.arange(network.units)], np.eye(network.input_size)
        for k, layer in enumerate(network.layers):
            matrix = slopes[network.units_of(k)][:, None] * (layer.reads[k] @ matrix)
        worst = max(worst, float(np.linalg.norm(network.output[len(network.layers)] @ matrix, 2)))
    return worst


def product(network: Stacked) -> float:
    result = float(np.linalg.norm(network.output[len(network.layers)], 2))
    for k, layer in enumerate(network.layers):
        largest = np.maximum(np.abs(layer.lower), np.abs(layer.upper))
        result *= float(np.linalg.norm(largest[:, None] * layer.reads[k], 2))
    return result


PAIRS = [(0.0, 1.0), (0.2, 1.0), (-0.129, 1.129), (-1.0, 1.0), (0.0, 3.0), (-1.5, 1.0), (-3.0, -0.5), (0.9, 1.1)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(PAIRS), min_size=1, max_size=7), st.integers(0, 99))
def test_the_methods_are_ordered_and_above_every_pattern(slopes: list[tuple[float, float]], seed: int) -> None:
    """Any signs, one pair a unit: patterns <= LipSDP <= ECLipsE, ECLipsE-Fast <= product."""
    network = with_slopes(chain((3, 4, 3, 2), seed), slopes)
    fast = eclipse_fast(network)
    stages = eclipse(network)
    assert fast is not None
    assert stages is not None
    start = norm_start(network)
    best = minimise(network, 1.05 * smallest_rho(network, start), start)[-1]
    exact = largest_over_patterns(network)
    values = [np.sqrt(v) for v in (best.rho, smallest_rho(network, stages), smallest_rho(network, fast))]
    expect_upper(values[0], exact * (1 - 1e-12))
    assert values[0] <= values[1] * (1 + 1e-6)
    assert values[0] <= values[2] * (1 + 1e-6)
    assert values[2] <= product(network) * (1 + 1e-8)


# eclipse-nn 0.1.7 gives these for the same weights.
FAST = {
    (16, 12, 1): 2.506364, (64, 32, 32, 1): 5.498849, (10, 50, 50, 5): 12.950197, (784, 100, 100, 10): 6.134299,
}  # fmt: skip


@pytest.mark.parametrize("dims", FAST, ids=str)
def test_the_closed_form_is_the_published_one(dims: tuple[int, ...]) -> None:
    values = eclipse_fast(chain(dims).reduced_input())
    assert values is not None
    expect_close(float(np.sqrt(smallest_rho(chain(dims).reduced_input(), values))), FAST[dims], 2e-7)


def test_stages_are_much_tighter_than_the_closed_form() -> None:
    network = chain((10, 30, 30, 30, 30, 30, 5))
    stages, fast = eclipse(network), eclipse_fast(network)
    assert stages is not None
    assert fast is not None
    assert smallest_rho(network, stages) < 0.5 * smallest_rho(network, fast)


def test_eclipse_is_not_looser_than_eclipse_fast() -> None:
    for act in (nn.ReLU, nn.GELU):
        model = load(he_network((6, 9, 8, 3), 4, act), input_shape=(6,))
        values = {
            m: bound(model, "l2", method=m, budget=5).upper for m in ("product", "eclipse-fast", "eclipse", "lipsdp")
        }
        assert {u.status for u in values.values()} == {"certified"}
        numbers = [values[m].value for m in ("lipsdp", "eclipse", "eclipse-fast", "product")]
        assert all(a <= b * (1 + 1e-6) for a, b in itertools.pairwise(numbers)), numbers


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.2, 1.0), (-0.129, 1.129), (-1.0, 1.0)])
def test_first_order_gradient_against_finite_differences(slopes: tuple[float, float]) -> None:
    network = chain((4, 5, 6, 3), 0, slopes)
    weights = [*(layer.reads[k] for k, layer in enumerate(network.layers)), network.output[2]]
    objective = _Objective(network, weights, float("inf"))
    assert objective.start(norm_start(network)) is not None
    z = objective.best[1] + 0.01 * np.random.default_rng(0).standard_normal(network.units)
    gradient = objective(z)[1]
    for j, unit in enumerate(np.eye(network.units)):
        slope = (objective(z + 1e-6 * unit)[0] - objective(z - 1e-6 * unit)[0]) / 2e-6
        assert gradient[j] == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("dims", [(12, 10, 8, 3), (20, 30, 30, 4)], ids=str)
def test_first_order_comes_near_the_optimum(dims: tuple[int, ...]) -> None:
    network = chain(dims, 1)
    start = norm_start(network)
    best = minimise(network, 1.05 * smallest_rho(network, start), start)[-1].rho
    found = smallest_rho(network, descend(network, start)[-1])
    expect_upper(found, best * (1 - 1e-7))
    expect_lower(found, best * (1 + 5e-3))


def skipping() -> Stacked:
    """Two layers; the output and the second layer read the first layer and the input."""
    rng = np.random.default_rng(5)
    first = Layer({0: rng.standard_normal((4, 3))}, np.zeros(4), np.ones(4))
    second = Layer({0: rng.standard_normal((5, 3)), 1: rng.standard_normal((5, 4))}, np.full(5, -0.2), np.ones(5))
    last = Layer({2: rng.standard_normal((3, 5))}, np.zeros(3), np.ones(3))
    return Stacked(3, (first, second, last), {1: rng.standard_normal((2, 4)), 3: rng.standard_normal((2, 3))})


@pytest.mark.parametrize("network", [skipping(), chain((3, 4, 5, 4, 2), 1)], ids=["skipping", "chain"])
def test_block_factorisation_against_the_dense_one(network: Stacked) -> None:
    values = norm_start(network, 1.3)
    matrix = network.matrix(1.5 * smallest_rho(network, values), values)
    factor = factored(matrix, envelope(network))
    assert factor is not None
    eye = np.eye(len(matrix))
    np.testing.assert_allclose(factor.forward(eye), np.linalg.inv(np.linalg.cholesky(matrix)), atol=1e-10)
    np.testing.assert_allclose(factor.solve(eye), np.linalg.inv(matrix), atol=1e-9)
    np.testing.assert_allclose(factor.solve(eye[:, 0]), np.linalg.inv(matrix)[:, 0], atol=1e-9)
    assert factored(matrix - 100 * eye, envelope(network)) is None


@pytest.mark.parametrize("seed", range(3))
def test_wide_enough_chains_go_block_by_block(seed: int) -> None:
    """Six equal blocks take the path of solves, two that of products; both are the same iteration."""
    network = chain((4, 5, 5, 5, 5, 5, 5, 5, 3), seed, (-0.1, 1.0))
    start = norm_start(network)
    best = minimise(network, 1.05 * smallest_rho(network, start), start)[-1]
    assert best.gap < 1e-7
    expect_close(best.rho, smallest_rho(network, best.values), 1e-6)


def test_multipliers_of_slopes_of_one_sign_stay_positive() -> None:
    """There the matrix inequality alone does not keep them so, and a negative one proves nothing."""
    network = chain((6, 3, 8, 2), 2, (0.9, 1.1))
    start = norm_start(network)
    best = minimise(network, 1.05 * smallest_rho(network, start), start)[-1]
    assert (best.values > 0).all()
    expect_upper(float(np.sqrt(best.rho)), largest_over_patterns(network) * (1 - 1e-9))
    assert best.gap < 1e-7


@pytest.mark.parametrize("method", ["eclipse-fast", "eclipse", "lipsdp"])
def test_a_forced_method_that_gains_nothing_returns_the_product(method: str) -> None:
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(4, 3)).double().eval()
    for module, size in ((linear, 4), (he_network((3, 1, 1, 2), 3), 3)):
        model = load(module, input_shape=(size,))
        forced, plain = (bound(model, "l2", method=m, budget=5) for m in (method, "product"))
        assert forced.upper.status == "certified", forced.upper
        assert forced.upper.method == method
        expect_close(forced.upper.value, plain.upper.value, 1e-7)
        assert forced.upper.value <= plain.upper.value * (1 + 1e-15)
    assert "no part of the network fits" in bound(load(linear, input_shape=(4,)), method=method).candidates[0].note


def test_memory_caps_the_parts() -> None:
    model = load(he_network((6, 20, 20, 2), 5), input_shape=(6,))
    free = bound(model, "l2", method="lipsdp", budget=5, check=False)
    capped = bound(model, "l2", method="lipsdp", budget=5, check=False, memory=3000)
    plain = bound(model, "l2", method="product", budget=5, check=False)
    assert free.upper.value < 0.9 * plain.upper.value
    assert capped.upper.value == pytest.approx(plain.upper.value, rel=1e-12)
    assert "enough for memory" in capped.candidates[0].note
    with pytest.raises(UsageError, match="more than 0 bytes"):
        bound(model, memory=0)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def test_a_trained_residual_network_gains_over_the_product() -> None:
    """Skips go inside one inequality: the gain is large, where products count `1 + K` for every block."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(digits.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), Block(3), Block(3), nn.Flatten(), nn.Linear(48, 10)
        )  # fmt: skip
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(5):
            for batch in torch.split(torch.randperm(1400), 64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
                optimizer.step()
    assert float((net(x[1400:]).argmax(1) == y[1400:]).float().mean()) > 0.7
    model = load(net.eval(), input_shape=(1, 8, 8))
    result, plain = (bound(model, "l2", method=m, budget=120) for m in ("lipsdp", "product"))
    assert result.upper.status == "certified"
    assert result.upper.value < 0.6 * plain.upper.value
    expect_upper(result.upper.value, result.lower)
