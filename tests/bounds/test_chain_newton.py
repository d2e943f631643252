"""Newton's steps for chains: the Hessian against its definition, what is said of the optimum against the optimum."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from bounds.test_chain_sweep import SLOPES, start
from bounds.test_quadratic import chain, he_network
from harness.expect import expect_lower, expect_upper
from lipscope import load
from lipscope.bounds.method import Effort
from lipscope.bounds.problem import pose
from lipscope.bounds.quadratic import chain_newton, method
from lipscope.bounds.quadratic.chain_hessian import newton_step
from lipscope.bounds.quadratic.chain_newton import climb
from lipscope.bounds.quadratic.chain_point import Chain, State
from lipscope.bounds.quadratic.closed_form import eclipse
from lipscope.bounds.quadratic.elimination import norm_start, smallest_rho
from lipscope.bounds.quadratic.newton import Optimum, minimise
from lipscope.bounds.quadratic.stacked import Matrix, Stacked, Vector
from lipscope.bounds.quadratic.windows import Window, cubes
from lipscope.claims.claim import Claim

Q = 7.0


def point(network: Stacked) -> tuple[Chain, State]:
    chained = Chain(network)
    state = chained.state(start(network))
    assert state is not None
    return chained, state


def by_definition(network: Stacked, y: Vector) -> tuple[Vector, Matrix]:
    """Gradient and negative Hessian of `q log s + log det M (+ sum log lambda)` with every dM / dy_j written out."""

    def linear(v: Vector) -> Matrix:
        free = replace(network, output={}).matrix(0.0, v[1:])
        output = replace(
            network, layers=tuple(replace(k, lower=0 * k.lower, upper=0 * k.upper) for k in network.layers)
        )
        return free + v[0] * output.matrix(0.0, np.zeros(len(v) - 1))

    moves = [linear(e) for e in np.eye(len(y))]
    corner = np.diag((np.arange(network.dimension) < network.input_size).astype(np.float64))
    inverse = np.linalg.inv(corner + linear(y))
    pushed = [inverse @ a for a in moves]
    slope = np.array([np.trace(p) for p in pushed])
    bend = np.array([[np.vdot(p, r.T) for r in pushed] for p in pushed])
    slope[0] += Q / y[0]
    bend[0, 0] += Q / y[0] ** 2
    if (network.lower * network.upper > 0).any():
        slope[1:] += 1 / y[1:]
        bend[1:, 1:] += np.diag(1 / y[1:] ** 2)
    return slope, bend


@pytest.mark.parametrize("slopes", SLOPES, ids=str)
@pytest.mark.parametrize("dims", [(4, 3, 2), (4, 5, 3, 4, 2)], ids=str)
def test_the_step_solves_newtons_equations(dims: tuple[int, ...], slopes: tuple[float, float]) -> None:
    network = chain(dims, 0, slopes)
    chained, state = point(network)
    slope, bend = by_definition(network, state.y)
    found = newton_step(chained, state, Q)
    expected = np.linalg.solve(bend, slope)
    np.testing.assert_allclose(found.step / state.y, expected / state.y, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.decrement, np.sqrt(slope @ expected), rtol=1e-8)
    path = np.linalg.solve(bend, np.eye(len(bend))[0])[0] * Q / state.y[0] ** 2
    np.testing.assert_allclose(found.rise, path, rtol=1e-7)


def test_the_step_keeps_groups_together() -> None:
    plain = chain((4, 6, 6, 2), 1, (-0.2, 1.0))
    layers = tuple(replace(layer, group=np.repeat(np.arange(layer.size // 2), 2)) for layer in plain.layers)
    network = Stacked(4, layers, plain.output)
    chained, state = point(network)
    slope, bend = by_definition(network, state.y)
    add = np.zeros((7, 13))
    add[np.concatenate([[0], network.variables + 1]), np.arange(13)] = 1
    expected = np.linalg.solve(add @ bend @ add.T, add @ slope) @ add
    np.testing.assert_allclose(newton_step(chained, state, Q).step, expected, rtol=1e-7)


@pytest.mark.parametrize("memory", [0.0, float("inf")], ids=["truncated", "whole"])
@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.2, 1.0), (-0.1, 1.1)], ids=str)
def test_what_is_said_of_the_optimum_holds(
    slopes: tuple[float, float], memory: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No point is farther from the optimum than its gap; and the estimate, which is none, is of the right size early on."""
    monkeypatch.setattr(chain_newton, "LAST", 1e3)
    network = chain((4, 8, 8, 8, 8, 3), 2, slopes)
    begin = norm_start(network)
    rho = 1.05 * smallest_rho(network, begin)
    best = minimise(network, rho, begin, tolerance=1e-9)[-1].rho
    path = climb(network, rho, begin, memory=memory)
    assert len(path) == 5
    for found in path:
        expect_lower(found.rho * (1 - found.gap), best * (1 + 1e-9))
        expect_upper(found.rho, best * (1 - 1e-9))
    assert path[-1].gap < 2.5e-3 * (1 if slopes[0] <= 0 else 2)
    if memory:
        off = 1 - best / path[0].rho
        assert path[0].likely is not None
        assert off / 3 < path[0].likely < 3 * off
        assert path[0].gap > 3 * off


def test_time_that_runs_out_leaves_a_feasible_point_that_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    network = chain((4, *[5] * 4, 3), 0)
    begin = norm_start(network)
    rho = 1.05 * smallest_rho(network, begin)
    found = list[float]()
    monkeypatch.setattr(chain_newton, "LAST", 10.0)
    for ticks in (-1, 5, 20, 10**6):
        clock = iter(range(10**9))
        with monkeypatch.context() as patched:
            patched.setattr(chain_newton.time, "monotonic", lambda clock=clock: next(clock))
            path = climb(network, rho, begin, deadline=ticks)
        assert np.linalg.eigvalsh(network.matrix(path[-1].rho, path[-1].values))[0] > 0
        found.append(path[-1].rho)
    assert found[0] == rho
    assert all(a >= b for a, b in pairwise(found))
    assert found[-1] < found[1] < rho


def test_words_tell_a_bound_from_an_estimate() -> None:
    def words(gap: float, likely: float | None = None) -> str:
        return method._gap(Optimum(1.0, np.ones(1), gap, likely))

    assert words(float("inf")) == "the search for the best multipliers was stopped early"
    assert words(2e-4) == "within about 1e-04 of the best multipliers"
    early = words(0.51, 4e-3)
    assert early.startswith(
        "the search for the best multipliers was stopped early: they give less by about 30 % at most"
    )
    assert early.endswith("by 2e-03 as the search went on (an estimate)")


def test_a_long_narrow_chain_is_one_part_in_little_time() -> None:
    """What it costs is not the cube of its size: 750 units in layers of 30 take less than one layer of 200."""
    problem = pose(load(he_network((4, *[30] * 25, 2)), input_shape=(4,)).graph, Claim())
    end = problem.graph.output
    assert cubes(problem, Window(0, end)) == 34**3 + 24 * 60**3 + 30**3
    effort = Effort(deadline=time.monotonic() - 1)
    assert method.Eclipse()._in_time(problem, effort) == [Window(0, end)]


def test_stages_come_before_the_climb() -> None:
    """Whatever time is left, `lipsdp` offers what `eclipse` would."""
    network = chain((4, *[6] * 8, 3), 0)
    offers = method._by_chain(network, Effort(deadline=time.monotonic() - 1))
    stages = eclipse(network, time.monotonic() - 1)
    assert stages is not None
    expect_lower(
        min(smallest_rho(network, o.values) for o in offers), smallest_rho(network, stages * 1.001) * (1 + 1e-12)
    )
