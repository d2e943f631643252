"""The searches for multipliers: what they find is feasible, in order, and near the optimum; what is asked for is answered."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bounds.test_quadratic import chain, he_network
from harness.expect import expect_close, expect_lower, expect_upper
from lipscope import bound, load
from lipscope.bounds.auto import methods as by_name
from lipscope.bounds.method import Effort
from lipscope.bounds.problem import pose
from lipscope.bounds.quadratic import method as quadratic
from lipscope.bounds.quadratic.chain_newton import climb
from lipscope.bounds.quadratic.chain_point import Chain
from lipscope.bounds.quadratic.closed_form import eclipse, eclipse_fast
from lipscope.bounds.quadratic.elimination import norm_start, smallest_rho
from lipscope.bounds.quadratic.envelope import envelope, factored
from lipscope.bounds.quadratic.forms import piece
from lipscope.bounds.quadratic.newton import Optimum, minimise
from lipscope.bounds.quadratic.stacked import Layer, Stacked, Vector
from lipscope.claims.claim import Claim
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


@settings(max_examples=12, deadline=None)
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


# Each stage at its optimum, by another solver; which of the optimal multipliers it took is not known.
STAGES = {
    (16, 12, 1): 1.886317, (64, 32, 32, 1): 4.143293, (10, 50, 50, 5): 9.198050, (784, 100, 100, 10): 4.870133, (10, *[30] * 5, 5): 56.262374,
}  # fmt: skip


@pytest.mark.parametrize("dims", STAGES, ids=str)
def test_stages_that_stop_inside_leave_later_ones_more(dims: tuple[int, ...]) -> None:
    network = chain(dims).reduced_input()
    stages, fast = eclipse(network), eclipse_fast(network)
    assert stages is not None
    assert fast is not None
    found = float(np.sqrt(smallest_rho(network, stages)))
    expect_lower(found, STAGES[dims] * (1 + 1e-6))
    expect_lower(found, 0.8 * float(np.sqrt(smallest_rho(network, fast))))


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from(PAIRS), min_size=1, max_size=5), st.integers(0, 99))
def test_eclipse_is_never_looser(slopes: list[tuple[float, float]], seed: int) -> None:
    """The closed form is among what it takes the best of, so that this holds whatever the stages find."""
    network = with_slopes(chain((3, 4, 3, 4, 2), seed), slopes)
    fast, stages = (
        min(smallest_rho(network, o.values) for o in method.multipliers(network, Effort()))
        for method in (quadratic.EclipseFast(), quadratic.Eclipse())
    )
    expect_lower(stages, fast)


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
def test_block_recursions_against_the_dense_matrix(slopes: tuple[float, float]) -> None:
    network = chain((4, 5, 6, 3), 0, slopes)
    values = norm_start(network, 1.3)
    y = np.concatenate([[1.0], values]) / (1.5 * smallest_rho(network, values))
    blocks, q = Chain(network), 3.0

    def objective(y: np.ndarray) -> float:
        bonus = np.log(y[1:]).sum() if slopes[0] > 0 else 0.0
        return q * np.log(y[0]) + bonus + float(np.linalg.slogdet(network.matrix(1 / y[0], y[1:] / y[0]) * y[0])[1])

    state = blocks.state(y)
    assert state is not None
    gradient = blocks.gradient(state, q)
    hessian = np.stack([blocks.curvature(state, q, unit) for unit in np.eye(len(y))])
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-8, atol=1e-9 * abs(hessian).max())
    for j, unit in enumerate(np.eye(len(y))):
        step = 1e-5 * y[j] * unit
        assert gradient[j] == pytest.approx(
            (objective(y + step) - objective(y - step)) / (2e-5 * y[j]), rel=1e-5, abs=1e-6
        )
        up, down = blocks.state(y + step), blocks.state(y - step)
        assert up is not None
        assert down is not None
        change = (blocks.gradient(down, q) - blocks.gradient(up, q)) / (2e-5 * y[j])
        np.testing.assert_allclose(hessian[j], change, rtol=1e-4, atol=1e-6 * abs(hessian[j]).max())
    for k, own in enumerate(blocks.units):
        block = hessian[1:, 1:][own, own]
        np.testing.assert_allclose(blocks.own_curvature(state, k), block, rtol=1e-7, atol=1e-9 * abs(block).max())
    assert blocks.state(y * np.where(np.arange(len(y)) > 0, 1, 1e6)) is None


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.2, 1.0), (-0.129, 1.129)], ids=str)
@pytest.mark.parametrize("dims", [(12, 10, 8, 3), (20, 30, 30, 4), (5, 8, 8, 8, 8, 8, 8, 2)], ids=str)
def test_truncated_newton_steps_reach_the_optimum(dims: tuple[int, ...], slopes: tuple[float, float]) -> None:
    network = chain(dims, 1, slopes).reduced_input()
    start = norm_start(network)
    rho = 1.05 * smallest_rho(network, start)
    best = minimise(network, rho, start)[-1].rho
    path = climb(network, rho, start, memory=0)
    found = smallest_rho(network, path[-1].values)
    expect_upper(found, best * (1 - 1e-7))
    expect_lower(found, best * (1 + 2e-4))
    for point in path:  # and each says how far it is
        expect_lower(smallest_rho(network, point.values), point.rho * (1 + 1e-9))
        expect_upper(best, point.rho * (1 - point.gap))


def test_truncated_newton_steps_keep_groups_together() -> None:
    layers = tuple(
        replace(layer, group=np.repeat(np.arange(layer.size // 2), 2))
        for layer in chain((4, 6, 6, 2), 1, (-1.0, 1.0)).layers
    )
    network = Stacked(4, layers, chain((4, 6, 6, 2), 1).output)
    start = norm_start(network)
    rho = 1.05 * smallest_rho(network, start)
    best, found = minimise(network, rho, start)[-1], climb(network, rho, start, memory=0)[-1]
    np.testing.assert_array_equal(found.values[::2], found.values[1::2])
    expect_upper(found.rho, best.rho * (1 - 1e-7))
    expect_lower(found.rho, best.rho * (1 + 2e-4))


def test_truncated_newton_steps_stop_in_time_and_only_on_chains() -> None:
    network = chain((4, 5, 6, 3), 0)
    start = norm_start(network)
    rho = smallest_rho(network, start)
    (late,) = climb(network, 1.05 * rho, start, deadline=0.0)
    assert late.gap == np.inf
    assert smallest_rho(network, late.values) == pytest.approx(rho, rel=1e-12)
    assert climb(network, 0.9 * rho, start) == []
    other = skipping()
    assert climb(other, 1e9, norm_start(other)) == []


def test_chains_too_large_for_dense_matrices_are_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(he_network((10, 30, 30, 30, 30, 30, 5)), input_shape=(10,))
    problem = pose(model.graph, Claim())
    monkeypatch.setattr(quadratic, "LARGE", 10)
    found = by_name("lipsdp")[0].run(problem, Effort())
    expect_upper(found.value, 42.972915)  # the optimum, see OPTIMA
    expect_lower(found.value, 42.972916 * (1 + 1e-4))
    assert "of the best multipliers" in found.note


def test_deep_narrow_chains_reach_the_best_multipliers() -> None:
    """The points nearest to the optimum, where the search comes to a stand, have no room for a proof."""
    model = load(he_network((10, *[4] * 40, 3)), input_shape=(10,))
    found = by_name("lipsdp")[0].run(pose(model.graph, Claim()), Effort())
    assert found.note.endswith("of the best multipliers")
    small = piece(pose(model.graph, Claim()), 0, model.graph.output).stacked.reduced_input()
    start = norm_start(small)
    best = minimise(small, 1.05 * smallest_rho(small, start), start)[-1]
    expect_lower(found.value, np.sqrt(best.rho) * (1 + 1e-5))


def test_an_interior_point_search_that_is_lost_gives_way_to_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(he_network((10, 30, 30, 30, 30, 30, 5)), input_shape=(10,))

    def stuck(network: Stacked, rho: float, values: Vector, **_: object) -> list[Optimum]:
        return [Optimum(rho, values, np.inf)]

    monkeypatch.setattr(quadratic, "minimise", stuck)
    found = by_name("lipsdp")[0].run(pose(model.graph, Claim()), Effort())
    expect_lower(found.value, 42.972916 * (1 + 1e-4))  # the optimum, see OPTIMA


def test_deep_chains_of_positive_weights_have_the_norm_of_the_product() -> None:
    network = he_network((5, *[4] * 16, 3))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    exact = np.linalg.norm(
        np.linalg.multi_dot([w.detach().numpy() for w in network.parameters() if w.ndim == 2][::-1]), 2
    )
    found = by_name("lipsdp")[0].run(pose(load(network, input_shape=(5,)).graph, Claim()), Effort())
    expect_upper(found.value, exact * (1 - 1e-14))  # numpy's rounding
    expect_lower(found.value, exact * (1 + 2e-4))


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


def test_the_stages_of_a_deep_network_are_proved() -> None:
    """30 layers of 30: what a proof adds to the first forms grows on the way, and a guess of rho from float64 is out of reach.

    The network is that of He(5-(30x30)-2, seed 0), for which the greedy stages of ECLipsE come to 9.275e8 in float64.
    """
    model = load(he_network((5, *[30] * 30, 2)), input_shape=(5,))
    stages = bound(model, "l2", method="eclipse", budget=30)
    closed = bound(model, "l2", method="eclipse-fast", budget=30, check=False)
    assert stages.upper.status == "certified"
    expect_lower(stages.upper.value, 9.275e8)
    expect_lower(stages.upper.value, 0.1 * closed.upper.value)
    expect_lower(stages.lower, stages.upper.value)


def test_multipliers_that_cannot_be_proved_are_not_passed_over_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    prove, refused = quadratic.proved_constant, list[float]()

    def hard(part: object, values: object, rho: float) -> float | None:
        refused.append(rho)
        return None if len(refused) == 1 else prove(part, values, rho)

    monkeypatch.setattr(quadratic, "proved_constant", hard)
    found = bound(load(he_network((10, *[30] * 5, 5)), input_shape=(10,)), method="eclipse", budget=10, check=False)
    assert found.upper.value is not None
    assert "could not be proved" in found.candidates[0].note
    assert f"{refused[0] ** 0.5:.6g}" in found.candidates[0].note


@pytest.mark.parametrize("method", ["eclipse-fast", "eclipse"])
def test_a_network_that_is_one_part_needs_no_norms(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("norms of all layers take as long as the rest")

    model = load(he_network((5, 9, 8, 3), 1), input_shape=(5,))
    slow = bound(model, "l2", budget=10, check=False)
    monkeypatch.setattr(quadratic, "composed", asked)
    found = bound(model, "l2", method=method, budget=10)
    assert found.upper.status == "certified"
    assert found.layers[0].name.count(" + ") == 2
    expect_upper(found.upper.value, slow.lower)


def test_what_a_proof_costs_the_closed_form() -> None:
    """The multipliers are the closed form's to 1e-8, so is the bound: 5.498849 for He(64-32-32-1, seed 0), or better by enlarging them."""
    model = load(he_network((64, 32, 32, 1)), input_shape=(64,))
    found = bound(model, "l2", method="eclipse-fast", budget=10, check=False)
    expect_lower(found.upper.value, 5.498849)
    deep = load(he_network((10, *[16] * 20, 5)), input_shape=(10,))
    own = piece(pose(deep.graph, Claim("l2")), 0, deep.graph.output).stacked.reduced_input()
    values = eclipse_fast(own)
    assert values is not None
    plain = float(np.sqrt(smallest_rho(own, values * (1 + 1e-10))))
    expect_lower(bound(deep, "l2", method="eclipse-fast", budget=10, check=False).upper.value, plain * (1 + 1e-6))


def test_memory_caps_the_parts() -> None:
    model = load(he_network((6, 20, 20, 2), 5), input_shape=(6,))
    free = bound(model, "l2", method="lipsdp", budget=5, check=False)
    capped = bound(model, "l2", method="lipsdp", budget=5, check=False, memory=3000)
    plain = bound(model, "l2", method="product", budget=5, check=False)
    assert free.upper.value < 0.9 * plain.upper.value
    assert capped.upper.value == pytest.approx(plain.upper.value, rel=1e-12)
    assert "fits into --memory 3000 bytes" in capped.candidates[0].note
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
