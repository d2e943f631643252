"""The optimal multipliers of a chain by Newton steps, where the interior-point method's matrices are too large.

With rho = 1/s and multipliers divided by rho, `M(s, lambda) = I_0 + sum_j lambda_j A_j - s F^T F` is to be positive definite and s as large as it can be.
For growing q the maximum of the concave function `q log s + log det M` is sought. (Where `lambda >= 0` is not implied, D below grows by the number of
units.) Near it a Newton step (ds, dM) of length delta < 1 in the Hessian's norm gives a point of the dual problem, `X = (T - T dM T) s/(q (1 - ds/s))`,
`T = M^{-1}`: Newton's equations are its constraints. With `|<T, dM>| <= delta sqrt(D)` and `|ds/s| <= delta/sqrt(q)`, D the dimension of M,

    (largest s)/s <= 1 + <X, M>/s <= 1 + (D + delta sqrt(D))/(q - delta sqrt(q)).

The step is Newton's own where the Hessian fits (`chain_hessian.py`). Otherwise Newton's equations are solved by conjugate gradients, with products
by the Hessian from `chain_point.py`, preconditioned by the Hessian's block of each layer (Hadamard products of blocks of T, as in `newton.py`) and,
added to it, the Hessian on the span of the layers' scalings, which repairs what the blocks do not see: that all layers have to move together.

In long chains M is so near to singular that Newton's steps are short, far from the maximum; there sweeps along the layers (`chain_sweep.py`) lead on,
at a fraction of the cost. The first q has nothing else, and a few follow each of Newton's steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.linalg import LinAlgError

from lipscope.bounds.quadratic.chain_hessian import Newton, hessian_bytes, newton_step
from lipscope.bounds.quadratic.chain_point import Chain, State
from lipscope.bounds.quadratic.chain_sweep import sweep
from lipscope.bounds.quadratic.cholesky import Equations, cholesky, solved
from lipscope.bounds.quadratic.closed_form import chain_weights
from lipscope.bounds.quadratic.newton import Optimum
from lipscope.bounds.quadratic.stacked import Stacked, Vector

FIRST, FACTOR, LAST = 0.1, 10.0, 1e4
"""q/D at the beginning, what it is multiplied by, and where it ends."""

SETTLED, SWEEPS = 2e-3, 150
"""What a sweep gains, divided by D, below which sweeps end; and how many there are at most before Newton's steps."""

FINELY = 0.1
"""What SETTLED is multiplied by where Newton's steps are truncated, and so worth less."""

BETWEEN = 4
"""Sweeps between two of Newton's steps."""

WHOLE = 8000
"""Units for which a factor of the Hessian takes no longer than conjugate gradients."""

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


def climb(
    network: Stacked, rho: float, values: Vector, deadline: float = float("inf"), memory: float = float("inf")
) -> list[Optimum]:
    """The points that lead from a strictly feasible one to the optimum, one for each q; none where the network is no chain of layers.

    The last point is the one that was reached when time was up, where it was.

    Args:
        network: the inequality.
        rho: of the start.
        values: multipliers of the start, > 0.
        deadline: `time.monotonic()` at which the point reached is returned.
        memory: bytes for the Hessian.
    """
    if chain_weights(network) is None:
        return []
    chain = Chain(network)
    state = chain.state(np.concatenate([[1 / rho], values / rho]))
    if state is None:
        return []
    order = network.dimension + (network.units if chain.guarded else 0)
    whole = network.units <= WHOLE and hessian_bytes(network.units) <= memory
    enough = SETTLED * order * (1.0 if whole else FINELY)
    goal = _Goal(chain, FIRST * order)
    state = _swept(goal, state, SWEEPS, enough, deadline)
    goal = _Goal(chain, goal.q * FACTOR)
    if not whole:
        state = _swept(goal, state, SWEEPS, enough, deadline)
    path, known = list[Optimum](), _Known()
    for _ in range(STEPS):
        if time.monotonic() > deadline or goal.q > LAST * order:
            break
        direction = newton_step(chain, state, goal.q) if whole else _direction(goal, state, deadline)
        if not whole and time.monotonic() > deadline:  # a direction cut short: its decrement says nothing
            state = _ascent(goal, state, direction.step)
            break
        known = known.after(state, goal.q, order, direction)
        state = _ascent(goal, state, direction.step)
        if direction.decrement < CENTRED:
            path.append(_point(state, known))
            goal = _Goal(chain, goal.q * FACTOR)
        else:
            state = _swept(goal, state, BETWEEN, enough, deadline)
    return [*path, _point(state, known)]


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known of the largest s: an upper bound, up to rounding; an estimate, 0 before there is one."""

    ceiling: float = float("inf")
    likely: float = 0.0

    def after(self, state: State, q: float, order: int, direction: Newton) -> _Known:
        """What a Newton step from a state adds; only near the maximum it adds anything."""
        s, delta = float(state.y[0]), direction.decrement
        if delta >= 1:
            return self
        over = (order + delta * np.sqrt(order)) / (q - delta * np.sqrt(q))
        return _Known(min(self.ceiling, s * (1 + over)), s * (1 + direction.rise) if direction.rise > 0 else 0.0)


def _swept(goal: _Goal, state: State, most: int, enough: float, deadline: float) -> State:
    """The state after sweeps, each continued along what it changed as long as that leads further, until one gains less than `enough`."""
    chain = goal.chain
    for _ in range(most):
        if time.monotonic() > deadline:
            break
        y = sweep(chain.network, [*chain.weights, chain.output], state.y, goal.q, guarded=chain.guarded)
        further = None if y is None else chain.state(y)
        before = goal.value(state)
        if further is None or not goal.value(further) > before:
            break
        ratio, length = further.y / state.y, 0.5
        state = further
        while True:
            trial = chain.state(further.y * ratio**length)
            if trial is None or not goal.value(trial) > goal.value(state):
                break
            state, length = trial, 2 * length
        if goal.value(state) - before < enough:
            break
    return state


def _point(state: State, known: _Known) -> Optimum:
    s = float(state.y[0])
    likely = max(0.0, 1 - s / known.likely) if known.likely > 0 else None
    gap = 1 - s / known.ceiling if known.ceiling < np.inf else float("inf")
    return Optimum(1 / s, state.y[1:] / s, gap, likely)


@dataclass(frozen=True, eq=False)
class _Goal:
    """What is maximised: `q log s + log det M`, with `sum log lambda_j` where `lambda >= 0` is not implied."""

    chain: Chain
    q: float

    def value(self, state: State) -> float:
        """At a state."""
        bonus = float(np.log(state.y[1:]).sum()) if self.chain.guarded else 0.0
        return self.q * float(np.log(state.y[0])) + state.log_det + bonus

    def gradient(self, state: State) -> Vector:
        """By (s, lambda)."""
        return self.chain.gradient(state, self.q)


def _direction(goal: _Goal, state: State, deadline: float) -> Newton:
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
    return Newton(spread(step), float(np.sqrt(float(slope @ step) + size)), 0.0)


Map = Callable[[Vector], Vector]


def _sharing(network: Stacked) -> tuple[Map, Map]:
    """Sums over the units that share a multiplier, and one entry a unit; s comes first."""
    places = np.concatenate([[0], network.variables + 1])

    def share(v: Vector) -> Vector:
        return np.asarray(np.bincount(places, v), dtype=np.float64)

    def spread(v: Vector) -> Vector:
        return np.asarray(v[places], dtype=np.float64)

    return share, spread


def _preconditioner(chain: Chain, state: State, q: float) -> Map:
    """About the inverse of the negative Hessian: its blocks' inverses and, added, that on the scalings of the layers."""
    network, (share, spread) = chain.network, _sharing(chain.network)
    corner = q / state.y[0] ** 2 + float(np.sum((chain.output @ state.t[-1] @ chain.output.T) ** 2))
    ends, factors = [1], []
    for k, u in enumerate(chain.units):
        places = network.variables[u] - ends[-1] + 1
        sums = np.zeros((int(places.max(initial=-1)) + 1, len(places)))
        sums[places, np.arange(len(places))] = 1
        block = chain.own_curvature(state, k)
        factors.append(Equations.of(block if len(sums) == len(block) else sums @ block @ sums.T))
        ends.append(ends[-1] + len(sums))

    def blockwise(v: Vector) -> Vector:
        result = np.empty_like(v)
        result[0] = v[0] / corner
        for (a, b), equations in zip(pairwise(ends), factors, strict=True):
            result[a:b] = equations.solve(v[a:b])
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
        small = cholesky(coarse.T @ image)
    except LinAlgError:
        return blockwise
    return lambda v: blockwise(v) + coarse @ solved(small, coarse.T @ v)


def _ascent(goal: _Goal, state: State, step: Vector) -> State:
    """The best point found along a step: halved until it leads upwards, then halved or doubled as long as that leads further."""

    def reached(length: float) -> tuple[float, State | None]:
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
