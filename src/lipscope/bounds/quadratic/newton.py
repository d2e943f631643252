"""The optimal multipliers by a barrier method on the stacked inequality.

Minimise `t rho - log det M(rho, lambda)`. At the centre `rho - rho* <= D/t`, D the size of M. With `B = M^{-1}`,
`P = E^T B E`, `Q = C^T B C`, `R = E^T B C` (E, C with columns a_j, c_j):

    gradient  t - tr B_00, -2 R_jj;    Hessian  |B_00|_F^2,  2 sum_{k in block 0} (B E)_kj (B C)_kj,  2 (P o Q + R o R^T).

E and C are never formed: with `U = B[:, units]`, `V = B W^T` (the rows w_j of v) one has `B E = U - V alpha`, `B C = U - V beta`, and
P, Q, R come from the three products U_u, V_u and W V. A step costs one factorisation and inversion of M and one factorisation
of the Hessian.

The scale of the variables decides whether this works at all: hidden blocks are rescaled so that each layer's mean multiplier and rho
are near 1, and the Hessian is scaled to unit diagonal before it is factored.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, cholesky, lapack

from lipscope.bounds.quadratic.stacked import Matrix, Stacked, Vector

INNER_STEPS = 300
"""Newton steps for one centring; the first may take far over a hundred, and a gap off-centre means nothing."""


@dataclass(frozen=True, eq=False)
class Optimum:
    """A strictly feasible point.

    Attributes:
        rho: `|output|^2 <= rho |input|^2`, up to rounding.
        values: multipliers of all units.
        gap: no feasible point has a rho smaller by more than this share; inf where the search was stopped off-centre.
    """

    rho: float
    values: Vector
    gap: float


def minimise(
    network: Stacked, rho: float, values: Vector, *, tolerance: float = 1e-7, deadline: float = float("inf")
) -> list[Optimum]:
    """The centres that lead from a strictly feasible point to the optimum, the last one nearest to it.

    The last ones lie so close to the boundary that a proof in float64 may fail there or cost more than it gains; the earlier
    ones are farther inside.

    Args:
        network: the inequality.
        rho: of the start.
        values: multipliers of the start, > 0.
        tolerance: relative gap of rho at which to stop.
        deadline: `time.monotonic()` at which the best point so far is returned.

    Raises:
        ValueError: the start is not strictly feasible.
    """
    problem, scale = _rescaled(network, rho, values)
    state = _start(problem, 1.0, values * scale)
    weight, path = float(problem.dimension), list[Optimum]()
    while time.monotonic() < deadline:
        centred = _centre(problem, state, weight, deadline)
        gap = problem.dimension / (weight * state.rho) if centred else float("inf")
        path.append(Optimum(state.rho * rho, state.values / scale, gap))
        if not centred or gap < tolerance:
            break
        weight *= 10
    return path


def _rescaled(network: Stacked, rho: float, values: Vector) -> tuple[Stacked, Vector]:
    """The network with rho = 1 and mean multiplier 1 in every layer, and what each multiplier is to be multiplied by."""
    factors = np.ones(len(network.layers) + 1)
    scale = np.empty(network.units)
    for k in range(len(network.layers)):
        own = network.units_of(k)
        factors[k + 1] = 1 / np.sqrt(np.mean(values[own]) / rho)
        scale[own] = factors[k + 1] ** 2 / rho
    return network.scaled_output(1 / np.sqrt(rho)).scaled_blocks(factors), scale


@dataclass
class _State:
    rho: float
    values: Vector
    factor: Matrix


def _start(problem: Stacked, rho: float, values: Vector) -> _State:
    factor = _factor(problem.matrix(rho, values))
    if factor is None:
        raise ValueError("expected a strictly feasible start, got multipliers that prove nothing")
    return _State(rho, values, factor)


def _factor(matrix: Matrix) -> Matrix | None:
    try:
        factor: Matrix = cholesky(matrix, lower=True, check_finite=False)
    except LinAlgError:
        return None
    return factor if np.isfinite(np.diag(factor)).all() else None


def _inverse(factor: Matrix) -> Matrix:
    inverse, info = lapack.dpotri(factor, lower=1)
    if info:
        raise LinAlgError("the factor has a zero pivot")
    lower = np.tril(inverse)
    full: Matrix = lower + np.tril(inverse, -1).T
    return full


def _centre(problem: Stacked, state: _State, weight: float, deadline: float) -> bool:
    """Newton's method to the centre for one barrier weight; False if stopped or stuck before."""
    for _ in range(INNER_STEPS):
        if time.monotonic() > deadline:
            return False
        gradient, hessian = derivatives(problem, state.factor, weight)
        step = _shared_step(problem, gradient, hessian)
        if float(-gradient @ step) < 0.09:  # the Newton decrement, squared, below 0.3^2
            return True
        if not _line_search(problem, state, weight, gradient, step):
            return False
    return False


def derivatives(problem: Stacked, factor: Matrix, weight: float) -> tuple[Vector, Matrix]:
    """Gradient and Hessian of `weight rho - log det M` by (rho, lambda), given M's Cholesky factor."""
    inverse = _inverse(factor)
    n, lower, upper = problem.input_size, problem.lower, problem.upper
    u, v = inverse[:, n:], problem.pull(inverse)
    uu, uv = u[n:], v[n:]
    vv = problem.pull(np.ascontiguousarray(v.T)).T
    cross = uu - uv * upper - lower[:, None] * (uv.T - vv * upper)  # R
    p, q = (uu - uv * s - s[:, None] * uv.T + s[:, None] * vv * s for s in (lower, upper))
    units = problem.units
    hessian = np.empty((units + 1, units + 1))
    hessian[1:, 1:] = 2 * (p * q + cross * cross.T)
    hessian[0, 1:] = hessian[1:, 0] = 2 * np.einsum("kj,kj->j", (u - v * lower)[:n], (u - v * upper)[:n])
    corner = inverse[:n, :n]
    hessian[0, 0] = np.sum(corner * corner)
    gradient = np.empty(units + 1)
    gradient[0], gradient[1:] = weight - np.trace(corner), -2 * np.diag(cross)
    return gradient, hessian


def _shared_step(problem: Stacked, gradient: Vector, hessian: Matrix) -> Vector:
    """The Newton step in the multipliers' own variables: units of one group move together."""
    variables = problem.variables
    count = int(variables.max(initial=-1)) + 1
    if count == len(variables):
        return _newton_step(gradient, hessian)
    spread = np.zeros((len(variables) + 1, count + 1))
    spread[0, 0] = 1
    spread[np.arange(1, len(variables) + 1), variables + 1] = 1
    step: Vector = spread @ _newton_step(spread.T @ gradient, spread.T @ hessian @ spread)
    return step


def _newton_step(gradient: Vector, hessian: Matrix) -> Vector:
    scale = 1 / np.sqrt(np.maximum(np.diag(hessian), 1e-300))
    scaled = hessian * scale[:, None] * scale
    diagonal = np.einsum("ii->i", scaled)
    ridge = 1e-14
    while True:
        diagonal[:] = 1 + ridge
        try:
            factor = cho_factor(scaled, lower=True, check_finite=False)
        except LinAlgError:
            ridge *= 100
            continue
        step: Vector = -scale * cho_solve(factor, scale * gradient, check_finite=False)
        return step


def _line_search(problem: Stacked, state: _State, weight: float, gradient: Vector, step: Vector) -> bool:
    value = weight * state.rho - 2 * np.sum(np.log(np.diag(state.factor)))
    slope, length = float(gradient @ step), 1.0
    for _ in range(60):
        rho, values = state.rho + length * step[0], state.values + length * step[1:]
        if rho > 0 and (values > 0).all():
            factor = _factor(problem.matrix(rho, values))
            if factor is not None:
                moved = weight * rho - 2 * np.sum(np.log(np.diag(factor)))
                if moved <= value + 0.1 * length * slope:
                    state.rho, state.values, state.factor = rho, values, factor
                    return True
        length *= 0.6
    return False
