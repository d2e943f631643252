"""The optimal multipliers of a chain by truncated Newton steps, where the interior-point method's matrices are too large.

With rho = 1/s and multipliers divided by rho, `M(s, lambda) = I_0 + sum_j lambda_j A_j - s F^T F` is to be positive definite and s as large as it can be.
For growing q the maximum of the concave function `q log s + log det M` is sought, which lies within `D/q` of the largest s, relatively; D is the
dimension of M. (At the maximum `X = s T/q`, `T = M^{-1}`, is a point of the dual problem, with gap `<X, M> = s D/q`.)

M is block tridiagonal, and of T no more is ever needed than the blocks on the diagonal and next to it. With `B_k = M_{k+1,k}` and

    S_k = M_kk - B_k^T S_{k+1}^{-1} B_k,    G_k = S_{k+1}^{-1} B_k,    T_00 = S_0^{-1},    T_{k+1,k} = -G_k T_kk,    T_{k+1,k+1} = S_{k+1}^{-1} - T_{k+1,k} G_k^T,

which costs `sum n_k^3`; so does the derivative of this recursion along a direction, that is the Hessian's product with it:
`<A_j, T dM T> = -<A_j, dT>`. Newton's equations are solved by conjugate gradients, preconditioned by the Hessian's block of each layer
(Hadamard products of blocks of T, as in `newton.py`) and, added to it, the Hessian on the span of the layers' scalings, which repairs what
the blocks do not see: that all layers have to move together.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, cholesky, lapack

from lipscope.bounds.quadratic.closed_form import chain_weights
from lipscope.bounds.quadratic.newton import Optimum
from lipscope.bounds.quadratic.stacked import Matrix, Stacked, Vector

FIRST, FACTOR, LAST = 0.1, 10.0, 1e4
"""q/D at the beginning, what it is multiplied by, and where it ends."""

SHRINK, ENOUGH = 0.3, 1e-3
"""What the start's share of the gradient is multiplied by, and below what it is dropped."""

STEPS = 400
"""Newton steps at most, over all q."""

CENTRED = 0.7
"""Newton's decrement below which q grows."""

FORCING = 0.1
"""How far, relatively, conjugate gradients reduce the residual."""

PRODUCTS = 150
"""Iterations of conjugate gradients at most; a direction found until then leads upwards all the same."""

GROUPS = 16
"""Scalings of neighbouring layers in the preconditioner, at most; each costs one product with the Hessian."""


def climb(network: Stacked, rho: float, values: Vector, deadline: float = float("inf")) -> list[Optimum]:
    """The points that lead from a strictly feasible one to the optimum, one for each q; none where the network is no chain of layers.

    Args:
        network: the inequality.
        rho: of the start.
        values: multipliers of the start, > 0.
        deadline: `time.monotonic()` at which the point reached is returned.
    """
    if chain_weights(network) is None:
        return []
    chain = _Chain(network)
    state = chain.state(np.concatenate([[1 / rho], values / rho]))
    if state is None:
        return []
    order = network.dimension + (network.units if chain.guarded else 0)
    q, share, found = FIRST * order, SHRINK, list[Optimum]()
    start = chain.gradient(state, q)
    for _ in range(STEPS):
        if time.monotonic() > deadline or q > LAST * order:
            break
        goal = _Goal(chain, q, share * start)
        step, decrement = _direction(goal, state, deadline)
        state = _ascent(goal, state, step)
        if time.monotonic() > deadline:  # the decrement is that of a direction cut short
            break
        if decrement < CENTRED and share:
            share = share * SHRINK if share > ENOUGH else 0.0
        elif decrement < CENTRED:
            found.append(_point(state, order / q))
            q *= FACTOR
    return [*found, _point(state, found[-1].gap if found else np.inf)]


def _point(state: _State, gap: float) -> Optimum:
    rho = 1 / float(state.y[0])
    return Optimum(rho, state.y[1:] * rho, gap)


@dataclass(frozen=True, eq=False)
class _State:
    """A strictly feasible `y = (s, lambda)`: log det M, the blocks of the factorisation and of T on and below the diagonal."""

    y: Vector
    log_det: float
    inverse: list[Matrix]
    g: list[Matrix]
    t: list[Matrix]
    below: list[Matrix]


class _Chain:
    """The chain's matrices, and what is computed from them at a point."""

    def __init__(self, network: Stacked) -> None:
        weights = chain_weights(network)
        assert weights is not None
        self.network = network
        self.weights, self.output = weights[:-1], weights[-1]
        self.units = [network.units_of(k) for k in range(len(network.layers))]
        self.sum, self.product = network.lower + network.upper, network.lower * network.upper
        self.guarded = bool((self.product > 0).any())
        self.square = self.output.T @ self.output

    def blocks(self, y: Vector) -> tuple[list[Matrix], list[Matrix]]:
        """The linear part of M at y: its blocks on the diagonal, and `B_k` below it."""
        own = [y[1:][u] for u in self.units]
        diagonal = [np.zeros((len(self.weights[0].T),) * 2), *(np.diag(2 * v) for v in own)]
        below = []
        for k, (w, u, v) in enumerate(zip(self.weights, self.units, own, strict=True)):
            below.append((-self.sum[u] * v)[:, None] * w)
            if self.product[u].any():
                diagonal[k] += w.T @ ((2 * self.product[u] * v)[:, None] * w)
        diagonal[-1] -= y[0] * self.square
        return diagonal, below

    def state(self, y: Vector) -> _State | None:
        """The state at y; None where M is not positive definite in floating point."""
        factors = self._factors(y)
        if factors is None:
            return None
        inverse, g, log_det = factors
        t, lower = [inverse[0]], []
        for k, gain in enumerate(g):
            lower.append(-gain @ t[k])
            t.append(inverse[k + 1] - lower[k] @ gain.T)
        return _State(y, log_det, inverse, g, t, lower)

    def _factors(self, y: Vector) -> tuple[list[Matrix], list[Matrix], float] | None:
        if not (y > 0).all():
            return None
        diagonal, below = self.blocks(y)
        diagonal[0][np.diag_indices_from(diagonal[0])] += 1
        count = len(diagonal)
        inverse, g, log_det = [np.zeros((0, 0))] * count, [np.zeros((0, 0))] * (count - 1), 0.0
        for k in reversed(range(count)):
            s = diagonal[k]
            if k < count - 1:
                g[k] = inverse[k + 1] @ below[k]
                s = s - below[k].T @ g[k]
            try:
                root = cholesky(s, lower=True)
            except (LinAlgError, ValueError):
                return None
            log_det += 2 * float(np.log(root.diagonal()).sum())
            full: Matrix = lapack.dpotri(root, lower=1)[0]
            inverse[k] = np.tril(full) + np.tril(full, -1).T
        return inverse, g, log_det

    def traces(self, t: list[Matrix], below: list[Matrix]) -> Vector:
        """`-<C, T>` and `<A_j, T>` from the blocks of a symmetric matrix T."""
        result = np.empty(self.network.units + 1)
        result[0] = -np.vdot(self.square, t[-1])
        for k, (w, u) in enumerate(zip(self.weights, self.units, strict=True)):
            own = t[k + 1].diagonal() - self.sum[u] * np.einsum("ij,ij->i", w, below[k])
            if self.product[u].any():
                own = own + self.product[u] * np.einsum("ij,ij->i", w @ t[k], w)
            result[1:][u] = 2 * own
        return result

    def gradient(self, state: _State, q: float) -> Vector:
        """Of what is maximised, by (s, lambda)."""
        result = self.traces(state.t, state.below)
        result[0] += q / state.y[0]
        if self.guarded:
            result[1:] += 1 / state.y[1:]
        return result

    def curvature(self, state: _State, q: float, v: Vector) -> Vector:
        """The negative Hessian of what is maximised times v: minus the traces of dT for dM along v."""
        diagonal, below = self.blocks(v)
        ds, dg = diagonal[-1], [np.zeros((0, 0))] * len(below)
        change = [ds] * len(diagonal)
        for k in reversed(range(len(below))):
            g = state.g[k]
            pushed = below[k] - ds @ g
            dg[k] = state.inverse[k + 1] @ pushed
            # d(B^T S^-1 B) = dB^T G + G^T dB - G^T dS G
            ds = diagonal[k] - below[k].T @ g - g.T @ pushed
            change[k] = ds
        t, lower = [-state.inverse[0] @ change[0] @ state.inverse[0]], []
        for k, g in enumerate(state.g):
            lower.append(-dg[k] @ state.t[k] - g @ t[k])
            inner = state.inverse[k + 1] @ change[k + 1] @ state.inverse[k + 1]
            t.append(-inner - lower[k] @ g.T - state.below[k] @ dg[k].T)
        result = -self.traces(t, lower)
        result[0] += q * v[0] / state.y[0] ** 2
        if self.guarded:
            result[1:] += v[1:] / state.y[1:] ** 2
        return result

    def own_curvature(self, state: _State, k: int) -> Matrix:
        """The block of the negative Hessian that belongs to layer k (from 0)."""
        layer, w, u = self.network.layers[k], self.weights[k], self.units[k]
        t, cross, inner = state.t[k + 1], state.below[k] @ w.T, w @ state.t[k] @ w.T
        alpha, beta = layer.lower, layer.upper

        def form(left: Vector, right: Vector) -> Matrix:
            return t - cross * right - left[:, None] * cross.T + left[:, None] * inner * right

        mixed = form(alpha, beta)
        result: Matrix = 2 * (form(alpha, alpha) * form(beta, beta) + mixed * mixed.T)
        if self.guarded:
            result[np.diag_indices_from(result)] += 1 / state.y[1:][u] ** 2
        return result


@dataclass(frozen=True, eq=False)
class _Goal:
    """What is maximised: `q log s + log det M`, with `sum log lambda_j` where `lambda >= 0` is not implied, minus `pull y`."""

    chain: _Chain
    q: float
    pull: Vector

    def value(self, state: _State) -> float:
        """At a state."""
        bonus = float(np.log(state.y[1:]).sum()) if self.chain.guarded else 0.0
        return self.q * float(np.log(state.y[0])) + state.log_det + bonus - float(self.pull @ state.y)

    def gradient(self, state: _State) -> Vector:
        """By (s, lambda)."""
        return self.chain.gradient(state, self.q) - self.pull


def _direction(goal: _Goal, state: _State, deadline: float) -> tuple[Vector, float]:
    """About Newton's step, by preconditioned conjugate gradients, and its decrement, with what the residual may add."""
    share, spread = _sharing(goal.chain.network)
    solve = _preconditioner(goal.chain, state, goal.q)
    slope = share(goal.gradient(state))
    step, rest, along = np.zeros_like(slope), slope, solve(slope)
    size = float(rest @ along)
    enough = FORCING**2 * size
    for _ in range(PRODUCTS):
        image = share(goal.chain.curvature(state, goal.q, spread(along)))
        bend = float(along @ image)
        if bend <= 0 or time.monotonic() > deadline:  # not positive by rounding alone
            break
        length = size / bend
        step = step + length * along
        rest = rest - length * image
        near = solve(rest)
        size, before = float(rest @ near), size
        if size < enough:
            break
        along = near + size / before * along
    return spread(step), float(np.sqrt(float(slope @ step) + size))


Map = Callable[[Vector], Vector]


def _sharing(network: Stacked) -> tuple[Map, Map]:
    """Sums over the units that share a multiplier, and one entry a unit; s comes first."""
    places = np.concatenate([[0], network.variables + 1])

    def share(v: Vector) -> Vector:
        return np.asarray(np.bincount(places, v), dtype=np.float64)

    def spread(v: Vector) -> Vector:
        return np.asarray(v[places], dtype=np.float64)

    return share, spread


def _preconditioner(chain: _Chain, state: _State, q: float) -> Map:
    """About the inverse of the negative Hessian: its blocks' inverses and, added, that on the scalings of the layers."""
    network, (share, spread) = chain.network, _sharing(chain.network)
    corner = q / state.y[0] ** 2 + float(np.sum((chain.output @ state.t[-1] @ chain.output.T) ** 2))
    ends, factors = [1], []
    for k, u in enumerate(chain.units):
        places = network.variables[u] - ends[-1] + 1
        sums = np.zeros((int(places.max(initial=-1)) + 1, len(places)))
        sums[places, np.arange(len(places))] = 1
        block = chain.own_curvature(state, k)
        factors.append(_factor(block if len(sums) == len(block) else sums @ block @ sums.T))
        ends.append(ends[-1] + len(sums))

    def blockwise(v: Vector) -> Vector:
        result = np.empty_like(v)
        result[0] = v[0] / corner
        for (a, b), (factor, scale) in zip(pairwise(ends), factors, strict=True):
            result[a:b] = scale * cho_solve((factor, True), scale * v[a:b], check_finite=False)
        return result

    groups = np.array_split(np.arange(len(factors)), min(len(factors), GROUPS))
    coarse = np.zeros((ends[-1], len(groups) + 1))
    coarse[0, 0] = state.y[0]
    full = share(state.y) / share(np.ones_like(state.y))
    for i, group in enumerate(groups):
        own = slice(ends[group[0]], ends[group[-1] + 1])
        coarse[own, i + 1] = full[own]
    image = np.stack([share(chain.curvature(state, q, spread(z))) for z in coarse.T], axis=1)
    try:
        small = cho_factor(coarse.T @ image)
    except (LinAlgError, ValueError):
        return blockwise
    return lambda v: blockwise(v) + coarse @ cho_solve(small, coarse.T @ v)


def _factor(matrix: Matrix) -> tuple[Matrix, Vector]:
    """The Cholesky factor after scaling to unit diagonal, with as much on the diagonal as it takes; the scale."""
    scale = 1 / np.sqrt(np.maximum(matrix.diagonal(), 1e-300))
    scaled, ridge = matrix * scale[:, None] * scale, 1e-14
    while True:
        np.fill_diagonal(scaled, 1 + ridge)
        try:
            return cholesky(scaled, lower=True), scale
        except LinAlgError:
            if ridge > 1:
                raise
            ridge *= 100


def _ascent(goal: _Goal, state: _State, step: Vector) -> _State:
    """The best point found along a step: halved until it leads upwards, then halved or doubled as long as that leads further."""

    def reached(length: float) -> tuple[float, _State | None]:
        found = goal.chain.state(state.y + length * step)
        return (-np.inf, None) if found is None else (goal.value(found), found)

    length, now = 1.0, goal.value(state)
    value, best = reached(length)
    while not value > now:
        length /= 2
        if length < 1e-8:
            return state
        value, best = reached(length)
    factor = 0.5 if length < 1 else 2.0
    while True:
        length *= factor
        further, trial = reached(length)
        if not further > value:
            assert best is not None
            return best
        value, best = further, trial
