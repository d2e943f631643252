"""Sweeps along a chain: what they return is feasible and never worse, and their derivatives lead to each layer's best."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from bounds.test_quadratic import chain
from harness.expect import expect_lower, expect_upper
from lipscope.bounds.quadratic import chain_newton, chain_sweep
from lipscope.bounds.quadratic.chain_newton import climb
from lipscope.bounds.quadratic.chain_sweep import sweep
from lipscope.bounds.quadratic.closed_form import chain_weights
from lipscope.bounds.quadratic.elimination import norm_start, smallest_rho
from lipscope.bounds.quadratic.newton import minimise
from lipscope.bounds.quadratic.stacked import Stacked, Vector

SLOPES = [(0.0, 1.0), (0.2, 1.0), (-0.129, 1.129), (-1.0, 1.0), (-1.5, -0.5)]


def objective(network: Stacked, y: Vector, q: float) -> float:
    """From the dense matrix; -inf outside."""
    if not (y > 0).all():
        return -np.inf
    matrix = y[0] * network.matrix(1 / y[0], y[1:] / y[0])
    if np.linalg.eigvalsh(matrix)[0] <= 0:
        return -np.inf
    bonus = float(np.log(y[1:]).sum()) if (network.lower * network.upper > 0).any() else 0.0
    return q * float(np.log(y[0])) + float(np.linalg.slogdet(matrix)[1]) + bonus


def start(network: Stacked) -> Vector:
    values = norm_start(network)
    return np.concatenate([[1.0], values]) / (1.05 * smallest_rho(network, values))


def swept(network: Stacked, y: Vector, q: float) -> Vector:
    weights = chain_weights(network)
    assert weights is not None
    found = sweep(network, weights, y, q, guarded=bool((network.lower * network.upper > 0).any()))
    assert found is not None
    return found


@pytest.mark.parametrize("slopes", SLOPES, ids=str)
@pytest.mark.parametrize("dims", [(4, 5, 6, 3), (3, 4, 5, 4, 5, 4, 2)], ids=str)
def test_each_sweep_is_feasible_and_gains(dims: tuple[int, ...], slopes: tuple[float, float]) -> None:
    network, q = chain(dims, 0, slopes), 3.0
    y = start(network)
    for number in range(4):
        further = swept(network, y, q)
        gain = objective(network, further, q) - objective(network, y, q)
        assert gain > (1e-3 if number == 0 else -1e-9)
        y = further


@pytest.mark.parametrize("slopes", SLOPES, ids=str)
def test_sweeps_end_where_no_multiplier_alone_gains(
    slopes: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maximum is the only point that sweeps keep: the objective is concave and every direction is among the blocks'."""
    monkeypatch.setattr(chain_sweep, "CENTRED", 1e-6)  # to the end
    network, q = chain((4, 5, 6, 3), 1, slopes), 3.0
    y = start(network)
    for _ in range(50):
        y = swept(network, y, q)
    best = objective(network, y, q)
    assert abs(objective(network, swept(network, y, q), q) - best) < 1e-7
    for j in range(len(y)):
        unit = np.eye(len(y))[j] * y[j]
        line = minimize_scalar(
            lambda a, unit=unit: -objective(network, y + a * unit, q), bounds=(-0.02, 0.02), method="bounded"
        )
        assert -line.fun - best < 1e-5


def test_sweeps_keep_groups_together() -> None:
    plain = chain((4, 6, 6, 2), 1, (-1.0, 1.0))
    layers = tuple(replace(layer, group=np.repeat(np.arange(layer.size // 2), 2)) for layer in plain.layers)
    network = Stacked(4, layers, plain.output)
    y = swept(network, start(network), 2.0)
    np.testing.assert_array_equal(y[1::2], y[2::2])
    assert objective(network, y, 2.0) > objective(network, start(network), 2.0)


def test_an_infeasible_start_is_refused() -> None:
    network = chain((4, 5, 6, 3), 0)
    weights = chain_weights(network)
    assert weights is not None
    y = start(network)
    assert sweep(network, weights, y * np.where(np.arange(len(y)) > 0, 1, 1e6), 3.0, guarded=False) is None


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-0.1, 1.0)], ids=str)
def test_a_long_chain_needs_few_newton_steps(slopes: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Newton's steps alone creep there; after sweeps they converge, to the optimum that the dense method finds."""
    network = chain((3, *[6] * 12, 2), 0, slopes)
    begin = norm_start(network)
    rho = 1.05 * smallest_rho(network, begin)
    best = minimise(network, rho, begin)[-1].rho
    monkeypatch.setattr(chain_newton, "STEPS", 60)
    path = climb(network, rho, begin)
    found = smallest_rho(network, path[-1].values)
    expect_upper(found, best * (1 - 1e-7))
    expect_lower(found, best * (1 + 2e-4))
    assert path[-1].gap < 2e-4


@pytest.mark.parametrize("slopes", SLOPES, ids=str)
def test_a_layers_step_is_newtons(slopes: tuple[float, float]) -> None:
    """Against differences of the stage's value, in relative changes of the multipliers and of the scale."""
    network, q = chain((3, 4, 4, 2), 0, slopes), 5.0
    weights = chain_weights(network)
    assert weights is not None
    y, layer = start(network), network.layers[0]
    after = chain_sweep._from_the_end(network, weights, y)[0]
    guarded = bool((network.lower * network.upper > 0).any())
    stage = chain_sweep._Stage(layer, weights[0], np.eye(3), after, q, guarded)
    z = np.append(y[1:5], 1.0)

    def value(change: Vector) -> float:
        point = stage._point(z * (1 + change), None)
        assert point is not None
        return point.value

    h, unit = 1e-4, np.eye(len(z))
    slope = np.array([(value(h * e) - value(-h * e)) / (2 * h) for e in unit])
    bend = np.array(
        [
            [
                (value(h * (d + e)) - value(h * (d - e)) - value(h * (e - d)) + value(-h * (d + e))) / (4 * h * h)
                for e in unit
            ]
            for d in unit
        ]
    )
    point = stage._point(z, None)
    assert point is not None
    step, decrement = stage._direction(point)
    np.testing.assert_allclose(step / z, np.linalg.solve(-bend, slope), rtol=1e-3, atol=1e-3 * np.abs(step / z).max())
    np.testing.assert_allclose(decrement**2, slope @ np.linalg.solve(-bend, slope), rtol=1e-3)
