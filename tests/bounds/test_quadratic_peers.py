"""A second opinion on the optimum: the same semidefinite program, formed anew, by cvxpy with Clarabel."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from bounds.test_quadratic import he_weights
from harness.expect import expect_close
from lipscope.bounds.quadratic.elimination import norm_start, smallest_rho
from lipscope.bounds.quadratic.newton import minimise
from lipscope.bounds.quadratic.stacked import Layer, Stacked

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def cvxpy() -> ModuleType:
    """cvxpy; tests that need it are skipped, by name, where it is missing."""
    pytest.importorskip("clarabel", reason="needs cvxpy")
    module: ModuleType = pytest.importorskip("cvxpy", reason="needs cvxpy")
    return module


def by_cvxpy(cvxpy: ModuleType, weights: list[np.ndarray], alpha: float, beta: float) -> float:
    """The square root of the smallest rho, after bringing every layer's norm to 1."""
    norms = [float(np.linalg.norm(w, 2)) for w in weights]
    scaled = [w / n for w, n in zip(weights, norms, strict=True)]
    sizes = [scaled[0].shape[1], *(len(w) for w in scaled[:-1])]
    starts = np.cumsum([0, *sizes])
    total = int(starts[-1])
    pick = [np.eye(total)[starts[i] : starts[i + 1]] for i in range(len(sizes))]
    rho = cvxpy.Variable(nonneg=True)
    matrix = rho * (pick[0].T @ pick[0]) - pick[-1].T @ scaled[-1].T @ scaled[-1] @ pick[-1]
    for i, w in enumerate(scaled[:-1]):
        multipliers = cvxpy.Variable(len(w), nonneg=True)
        u, v = pick[i + 1], w @ pick[i]
        left, right = (u - alpha * v), (beta * v - u)
        product = left.T @ cvxpy.diag(multipliers) @ right
        matrix = matrix - product - product.T
    problem = cvxpy.Problem(cvxpy.Minimize(rho), [(matrix + matrix.T) / 2 >> 0])
    problem.solve(solver="CLARABEL")
    assert problem.status == "optimal"
    return float(np.sqrt(rho.value) * np.prod(norms))


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.2, 1.0), (-0.129, 1.129), (-1.0, 1.0)], ids=str)
@pytest.mark.parametrize("dims", [(5, 6, 6, 2), (4, 5, 5, 5, 3)], ids=str)
def test_the_optimum_is_that_of_a_semidefinite_solver(
    cvxpy: ModuleType, dims: tuple[int, ...], slopes: tuple[float, float]
) -> None:
    weights = [w for w, _ in he_weights(dims, 3)]
    layers = tuple(
        Layer({k: w}, np.full(len(w), slopes[0]), np.full(len(w), slopes[1])) for k, w in enumerate(weights[:-1])
    )
    network = Stacked(dims[0], layers, {len(layers): weights[-1]})
    start = norm_start(network)
    own = minimise(network, 1.05 * smallest_rho(network, start), start)[-1].rho
    expect_close(float(np.sqrt(own)), by_cvxpy(cvxpy, weights, *slopes), 1e-5)
