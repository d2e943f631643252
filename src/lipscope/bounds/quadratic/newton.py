"""The optimal multipliers by a primal-dual interior-point method on the stacked inequality.

`min rho` with `S = M(rho, lambda) = rho I_0 + sum_j lambda_j A_j - C >= 0`, `A_j = a_j c_j^T + c_j a_j^T`, `C = F^T F`, has the dual problem
`max <C, X>` with `X >= 0`, `tr X_00 = 1`, `<A_j, X> = 0`. Newton's method on `X S = mu I` in the symmetrised form of Helmberg, Rendl, Vanderbei and
Wolkowicz (SIAM J. Optim. 6, 1996), with Mehrotra's predictor and corrector, needs in each iteration with `T = S^{-1}`

    H_jk = <A_j, X A_k T> = (r_X^T o r_T + r_X o r_T^T + q_X o p_T + p_X o q_T)_jk,    p_Z = E^T Z E,  q_Z = C^T Z C,  r_Z = E^T Z C

(E, C with columns a_j, c_j), for rho `sum_k in block 0 (X C)_kj (T E)_kj + (X E)_kj (T C)_kj` and `<X_00, T_00>`. E and C are never formed:
with V the rows w_j of v, `Z E = Z[:, units] - (Z V^T) alpha`, and all products by V go along the layers. Where a product alpha beta is
positive, `S >= 0` does not make lambda_j positive, and `lambda_j >= 0` joins as a constraint of its own.

S stays exactly the matrix of (rho, lambda) and positive definite, so that every iterate is a strictly feasible point. X starts at a multiple
of S^{-1}, and becomes feasible on the way; then `rho - <C, X> = <S, X>` bounds the gap to the optimum.

The scale of the variables decides whether this works at all: hidden blocks are rescaled so that each layer's mean multiplier and rho
are near 1, and H is scaled to unit diagonal before it is factored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.linalg import LinAlgError
from scipy.linalg import eigh_tridiagonal
from scipy.sparse import csr_array

from lipscope.bounds.quadratic.cholesky import Equations, cholesky, triangular
from lipscope.bounds.quadratic.envelope import Factor, envelope, factored
from lipscope.bounds.quadratic.stacked import Matrix, Stacked, Vector
from lipscope.bounds.threads import threads_for

ITERATIONS = 80
"""It takes some twenty; more than this it takes only where rounding has the last word."""


STAND = 6
"""Iterations without progress that end a search."""

LANCZOS_STEPS = 24
"""For a step length; it is an estimate that a factorisation confirms."""

ROUGH = 8
"""The same for the predictor's, which only chooses how much is centred."""

DENSE = 150
"""Up to this size all eigenvalues take less time than the steps."""


@dataclass(frozen=True, eq=False)
class Optimum:
    """A strictly feasible point.

    Attributes:
        rho: `|output|^2 <= rho |input|^2`, up to rounding.
        values: multipliers of all units.
        gap: no feasible point has a rho smaller by more than this share, up to rounding; inf before a bound is known.
        likely: about by what share the least rho is smaller, extrapolated: an estimate, no bound; None where there is none.
    """

    rho: float
    values: Vector
    gap: float
    likely: float | None = None


def minimise(
    network: Stacked, rho: float, values: Vector, *, tolerance: float = 1e-7, deadline: float = float("inf")
) -> list[Optimum]:
    """The points that lead from a strictly feasible one to the optimum, the last one nearest to it.

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
    scaled, scale = _rescaled(network, rho, values)
    with threads_for(network.dimension):
        search = _Search(scaled, values * scale)
        path = [search.point(rho, scale)]
        for _ in range(ITERATIONS):
            if path[-1].gap < tolerance or time.monotonic() > deadline or _stands(path) or not search.advance():
                break
            path.append(search.point(rho, scale))
    return path


def _stands(path: list[Optimum]) -> bool:
    """Whether rounding has brought the search to a stand: neither rho nor the gap moves."""
    if len(path) <= STAND:
        return False
    before, now = path[-1 - STAND], path[-1]
    return now.gap < np.inf and now.gap > 0.9 * before.gap and now.rho > before.rho * (1 - 0.1 * now.gap)


def _rescaled(network: Stacked, rho: float, values: Vector) -> tuple[Stacked, Vector]:
    """The network with rho = 1 and mean multiplier 1 in every layer, and what each multiplier is to be multiplied by."""
    factors = np.ones(len(network.layers) + 1)
    scale = np.empty(network.units)
    for k in range(len(network.layers)):
        own = network.units_of(k)
        factors[k + 1] = 1 / np.sqrt(np.mean(values[own]) / rho)
        scale[own] = factors[k + 1] ** 2 / rho
    return network.scaled_output(1 / np.sqrt(rho)).scaled_blocks(factors), scale


class Products:
    """What an iteration needs of a symmetric matrix Z: `Z E`, `Z C`, `E^T Z E`, `C^T Z C`, `E^T Z C`."""

    def __init__(self, network: Stacked, z: Matrix) -> None:
        n, lower, upper = network.input_size, network.lower, network.upper
        self.corner = z[:n, :n]
        self.e, self.c = columns(network, z)
        ve, vc = (network.pull(np.ascontiguousarray(m.T)).T for m in (self.e, self.c))
        self.p = self.e[n:] - lower[:, None] * ve
        self.q = self.c[n:] - upper[:, None] * vc
        self.r = self.c[n:] - lower[:, None] * vc

    @property
    def traces(self) -> Vector:
        """`tr Z_00` and `<A_j, Z>`."""
        return np.concatenate([[np.trace(self.corner)], 2 * np.diag(self.r)])


def columns(network: Stacked, z: Matrix) -> tuple[Matrix, Matrix]:
    """`Z E` and `Z C`."""
    u, v = z[:, network.input_size :], network.pull(z)
    return u - v * network.lower, u - v * network.upper


def curvature(network: Stacked, x: Products, t: Products) -> Matrix:
    """H by (rho, lambda). For `x = t` the Hessian of `-log det S`."""
    n = network.input_size
    result = np.empty((network.units + 1, network.units + 1))
    cross = x.r * t.r.T
    result[1:, 1:] = x.q * t.p + x.p * t.q + cross + cross.T
    result[0, 1:] = result[1:, 0] = np.sum(x.c[:n] * t.e[:n], axis=0) + np.sum(x.e[:n] * t.c[:n], axis=0)
    result[0, 0] = np.sum(x.corner * t.corner)
    return result


@dataclass(frozen=True, eq=False)
class _Direction:
    """A step in (rho, lambda), S, X and the slack."""

    y: Vector
    s: Matrix
    x: Matrix
    slack: Vector


class _Search:
    """The iterate: y = (rho, lambda) with S and its factor; X with its factor; the slack of `lambda >= 0` where that is needed."""

    def __init__(self, network: Stacked, values: Vector) -> None:
        self.network = network
        self.free = replace(network, output={})  # its matrix is the linear part of M
        self.shape = envelope(network)
        self.y = np.concatenate([[1.0], values])
        self.s = network.matrix(1.0, values)
        factor = factored(self.s, self.shape)
        if factor is None:
            raise ValueError("expected a strictly feasible start, got multipliers that prove nothing")
        self.factor: Factor = factor
        self.t = self._solve(np.eye(len(self.s)))
        n = network.input_size
        weight = 1 / float(np.trace(self.t[:n, :n]))
        self.x = self.t * weight
        self.root = cholesky(self.x)
        self.guarded = bool((network.lower * network.upper > 0).any())
        self.slack = weight / values if self.guarded else np.zeros(network.units)
        self.of_t, self.of_x = Products(network, self.t), Products(network, self.x)

    def point(self, rho: float, scale: Vector) -> Optimum:
        """The iterate in the variables of the network before it was rescaled by `rho` and `scale`."""
        residual = np.abs(self._reduced(self._residual()))
        gap = float(np.vdot(self.x, self.s) + self.slack @ self.y[1:]) + float(residual @ self._shared(self.y))
        return Optimum(float(self.y[0]) * rho, self.y[1:] / scale, gap / float(self.y[0]))

    def advance(self) -> bool:
        """One iteration; False if no step leads on."""
        try:
            solve = self._solver()
        except LinAlgError:
            return False
        order = len(self.s) + (len(self.slack) if self.guarded else 0)
        mu = float(np.vdot(self.x, self.s) + self.slack @ self.y[1:]) / order
        first = self._direction(solve, 0.0, None)
        primal, dual = (min(1.0, 0.95 * length) for length in self._lengths(first, ROUGH))
        left = float(np.vdot(self.x + primal * first.x, self.s + dual * first.s))
        left += float((self.slack + primal * first.slack) @ (self.y[1:] + dual * first.y[1:]))
        centring = min(1.0, max(left / order / mu, 1e-3) ** 2)
        if min(primal, dual) < 0.1:
            centring = max(centring, 0.5)
        second = self._direction(solve, centring * mu, first)
        primal, dual = self._lengths(second, LANCZOS_STEPS)
        share = 0.9 + 0.09 * min(1.0, primal, dual)
        return self._move(second, min(1.0, share * primal), min(1.0, share * dual))

    def _residual(self) -> Vector:
        """By how much X and the slack miss the constraints of the dual problem."""
        residual = self.of_x.traces
        residual[0] -= 1
        residual[1:] += self.slack
        return residual

    def _solve(self, right: Matrix) -> Matrix:
        """`S^{-1} right`."""
        return self.factor.solve(right)

    def _times_inverse(self, left: Matrix) -> Matrix:
        """`left S^{-1}`, by whichever of two ways is the faster."""
        narrow = 4 * max(np.diff(self.shape.starts)) < len(self.s)
        return self._solve(np.ascontiguousarray(left.T)).T if narrow else left @ self.t

    def _reduced(self, vector: Vector) -> Vector:
        """Sums over the units that share a multiplier."""
        return np.concatenate([vector[:1], np.bincount(self.network.variables, vector[1:])])

    def _shared(self, vector: Vector) -> Vector:
        """The inverse of `_expanded`."""
        variables = self.network.variables
        return np.concatenate([vector[:1], np.bincount(variables, vector[1:]) / np.bincount(variables)])

    def _expanded(self, vector: Vector) -> Vector:
        """One entry a unit."""
        return np.concatenate([vector[:1], vector[1:][self.network.variables]])

    def _solver(self) -> Callable[[Vector], Vector]:
        """Newton steps in (rho, lambda) from right-hand sides."""
        h = curvature(self.network, self.of_x, self.of_t)
        if self.guarded:
            index = np.arange(1, len(h))
            h[index, index] += self.slack / self.y[1:]
        variables = self.network.variables
        if len(variables) and variables[-1] + 1 < len(variables):
            places = np.concatenate([[0], variables + 1])
            sums = csr_array((np.ones(len(h)), (places, np.arange(len(h)))))
            h = np.ascontiguousarray(sums @ (sums @ h).T)
        equations = Equations.of(h)
        return lambda right: self._expanded(equations.solve(self._reduced(right)))

    def _direction(self, solve: Callable[[Vector], Vector], target: float, first: _Direction | None) -> _Direction:
        """Newton's step to `X S = target I`, corrected by what the step `first` leaves of second order."""
        net, values = self.network, self.y[1:]
        right = target * self.of_t.traces
        right[0] -= 1
        beyond, slack = None, np.zeros(len(values))
        if first is not None:
            beyond = _times_step(net, first.x, *columns(net, first.x), first.y)
            e, c = columns(net, np.ascontiguousarray(beyond.T))
            right[1:] -= np.sum(e * self.of_t.c, axis=0) + np.sum(c * self.of_t.e, axis=0)
            right[0] -= np.sum(beyond[: net.input_size] * self.t[:, : net.input_size].T)
        if self.guarded:
            slack = target / values - (0 if first is None else first.slack * first.y[1:] / values)
            right[1:] += slack
        y = solve(right)
        product = _times_step(net, self.x, self.of_x.e, self.of_x.c, y)
        if beyond is not None:
            product += beyond
        x = self._times_inverse(product)
        x = (x + x.T) * -0.5 - self.x
        if target:
            x += target * self.t
        if self.guarded:
            slack = slack - self.slack - self.slack * y[1:] / values
        return _Direction(y, self.free.matrix(float(y[0]), y[1:]), x, slack)

    def _lengths(self, step: _Direction, steps: int) -> tuple[float, float]:
        """About how far X and the slack, and S and lambda, stay positive along a step."""
        half, root = self.factor, self.root
        primal = _reach(lambda v: triangular(root, v), lambda v: triangular(root, v, transposed=True), step.x, steps)
        dual = _reach(half.forward, half.backward, step.s, steps)
        if self.guarded:
            primal = min(primal, _ratio(self.slack, step.slack))
        return primal, min(dual, _ratio(self.y, step.y))

    def _move(self, step: _Direction, primal: float, dual: float) -> bool:
        """Go along a step as far as the factorisations allow."""
        while dual > 1e-6:
            y = self.y + dual * step.y
            s = self.network.matrix(float(y[0]), y[1:])
            factor = factored(s, self.shape) if (y > 0).all() else None
            if factor is not None:
                break
            dual *= 0.8
        else:
            return False
        while primal > 1e-6:
            x, slack = self.x + primal * step.x, self.slack + primal * step.slack
            try:
                self.root = cholesky(x)
                self.x, self.slack = x, slack
                break
            except LinAlgError:
                primal *= 0.8
        self.y, self.s, self.factor = y, s, factor
        self.t = self._solve(np.eye(len(s)))
        self.of_t, self.of_x = Products(self.network, self.t), Products(self.network, self.x)
        return True


def _times_step(network: Stacked, z: Matrix, e: Matrix, c: Matrix, y: Vector) -> Matrix:
    """`Z dS` with dS the linear part of M at `y`, from `Z E` and `Z C`."""
    n = network.input_size
    left, right = e * y[1:], c * y[1:]
    result = -network.push(left * network.upper + right * network.lower)
    result[:, n:] += left + right
    result[:, :n] += y[0] * z[:, :n]
    return result


def _ratio(values: Vector, step: Vector) -> float:
    """How far positive values stay positive."""
    falling = step < 0
    return float(np.min(-values[falling] / step[falling], initial=np.inf))


def _reach(
    forward: Callable[[Vector], Vector], backward: Callable[[Vector], Vector], step: Matrix, steps: int
) -> float:
    """About how far `L L^T + t step` stays positive definite: from the smallest eigenvalue of `L^{-1} step L^{-T}`, of large ones by some Lanczos steps."""
    size = len(step)
    if size <= DENSE:
        lowest = float(np.linalg.eigvalsh(forward(np.ascontiguousarray(forward(step).T)))[0])
        return np.inf if lowest >= 0 else -1 / lowest
    count = min(size, steps)
    basis, diagonal, off = np.zeros((count + 1, size)), np.zeros(count), np.zeros(count)
    basis[0] = np.random.default_rng(0).standard_normal(size)
    basis[0] /= np.linalg.norm(basis[0])
    for k in range(count):
        w = forward(step @ backward(basis[k]))
        diagonal[k] = w @ basis[k]
        for _ in range(2):
            w = w - basis[: k + 1].T @ (basis[: k + 1] @ w)
        off[k] = np.linalg.norm(w)
        if off[k] < 1e-12 * (1e-300 + np.abs(diagonal[: k + 1]).max()):
            count = k + 1
            break
        basis[k + 1] = w / off[k]
    values, vectors = eigh_tridiagonal(diagonal[:count], off[: count - 1])
    lowest = float(values[0]) - abs(float(off[count - 1] * vectors[-1, 0]))
    return np.inf if lowest >= 0 else -1 / lowest
