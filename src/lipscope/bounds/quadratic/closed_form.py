"""Multipliers of a chain layer by layer from the first: in closed form (ECLipsE-Fast) or each layer's best (ECLipsE).

Both from Xu and Sivaranjani, arXiv 2404.04375; here for slopes in any [alpha, beta], one pair a unit.

With multipliers divided by rho/2, `L' = 2 L/rho`, and M_i the form with `u_i^T M_i u_i <= |u_0|^2`, `M_0 = I`, the constraints
`L'_j ((u_j - m_j v_j)^2 - r_j^2 v_j^2) <= 0` in centre and radius, `m = (alpha + beta)/2`, `r = (beta - alpha)/2`, give

    M_i = L' - L' m H (I + H^T alpha beta L' H)^{-1} H^T m L',    H H^T = W_i M_{i-1}^{-1} W_i^T,    rho = |W_d M_{d-1}^{-1} W_d^T|.

*Closed form.* Let `c = |m| + r` be the largest slope and `g = |c H H^T c|`. Then `v^T (H H^T)^{-1} v >= sum (c_j v_j)^2/g`, so M_i is at least the
diagonal form whose entries are `min over v` of `c^2 v^2/g + L'((u - m v)^2 - r^2 v^2)`, that is `L'(c^2/g - L' r^2)/(c^2/g + L' alpha beta)`. Its maximum over
L' is 1/g, at `L' = c/(r g)`: the bound is never above the product of norms, whatever the signs of the slopes. For [0, 1] this is ECLipsE-Fast.

*The best.* ECLipsE's stage problem maximises s with `M_i >= s W_{i+1}^T W_{i+1}`: that is the inequality of the network `W_{i+1} phi(H .)` with
one hidden layer and `s = 1/rho`, which the interior-point method solves.

A stage's best multipliers are not unique: where r eigenvalues of M vanish at the optimum, `r(r + 1)/2` equations bind `n + 1` numbers, and r is
small. What the later layers are left with depends on which are taken. Points inside, with s below its maximum but M well away from
the boundary, leave them more: so all stages but the last stop early.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.linalg import LinAlgError

from lipscope.bounds.quadratic.cholesky import cholesky, triangular
from lipscope.bounds.quadratic.newton import minimise
from lipscope.bounds.quadratic.stacked import Layer, Matrix, Stacked, Vector
from lipscope.bounds.threads import threads_for

ROOM, LAST = 0.5, 1e-6
"""The relative gap of s at which a stage stops: all but the last, and the last, whose s is the bound."""

DEEP, DEEP_ROOM = 8, 0.7
"""With more layers than this stages stop a little earlier: no worse there, and a fifth faster."""

Stage = Callable[[Layer, Matrix, Matrix], Vector | None]
"""Multipliers L' of a layer from its H and the weights after it."""


def chain_weights(network: Stacked) -> list[Matrix] | None:
    """W_1, .., W_d if every layer reads the one before it and nothing else; None otherwise."""
    reads = [*(layer.reads for layer in network.layers), network.output]
    if any(set(r) - {k} for k, r in enumerate(reads)):
        return None
    return [r[k] for k, r in enumerate(reads)] if all(k in r for k, r in enumerate(reads)) else None


def eclipse_fast(network: Stacked) -> Vector | None:
    """The closed-form multipliers; None where the form does not hold (no chain, or a layer that vanishes)."""
    return _forward(network, _closed_form)


def eclipse(network: Stacked, deadline: float = float("inf")) -> Vector | None:
    """The multipliers of ECLipsE with stages that stop inside, the last one at its optimum; None where they do not exist, as `eclipse_fast`.

    Stages after the deadline (`time.monotonic()`) are stopped at what they have.
    """
    last = network.layers[-1] if network.layers else None
    room = DEEP_ROOM if len(network.layers) > DEEP else ROOM
    return _forward(network, lambda layer, h, after: _best(layer, h, after, LAST if layer is last else room, deadline))


def _forward(network: Stacked, stage: Stage) -> Vector | None:
    weights = chain_weights(network)
    if weights is None:
        return None
    h, found = weights[0], []
    for layer, after in zip(network.layers, weights[1:], strict=True):
        if not (h.any() and after.any()):
            return None
        if h.shape[1] > h.shape[0]:
            h = np.linalg.qr(h.T)[1].T
        with threads_for(sum(h.shape)):
            values = stage(layer, h, after)
            root = None if values is None else _root(layer, h, values)
        if values is None or root is None:
            return None
        found.append(values)
        h = triangular(root, after.T).T
    rho = float(np.linalg.norm(h, 2)) ** 2
    return np.concatenate(found) * (rho / 2) * (1 + 1e-9) if found and 0 < rho < np.inf else None


def _root(layer: Layer, h: Matrix, values: Vector) -> Matrix | None:
    """The Cholesky factor of M_i."""
    center, both = (layer.lower + layer.upper) / 2, layer.lower * layer.upper
    inner = np.eye(h.shape[1])
    if both.any():
        inner += h.T @ ((both * values)[:, None] * h)
    try:
        left = triangular(cholesky(inner), h.T * (center * values))
        form = np.diag(values) - left.T @ left
        # Directions that nothing after the layer sees may have nothing left; a little there changes nothing that is seen.
        form[np.diag_indices_from(form)] += 1e-13 * values
        return cholesky(form)
    except LinAlgError:
        return None


def _closed_form(layer: Layer, h: Matrix, after: Matrix) -> Vector | None:
    del after
    radius, largest = (layer.upper - layer.lower) / 2, np.maximum(np.abs(layer.lower), np.abs(layer.upper))
    g = float(np.linalg.norm(largest[:, None] * h, 2)) ** 2
    # Slopes of both signs: at the maximum the inner matrix may be singular, for m = 0 it is.
    values: Vector = largest / (radius * g) * (1 - 1e-9)
    return values if g > 0 and np.isfinite(values).all() else None


def _best(layer: Layer, h: Matrix, after: Matrix, tolerance: float, deadline: float) -> Vector | None:
    start = _closed_form(layer, h, after)
    root = None if start is None else _root(layer, h, start * (1 - 1e-3))
    if start is None or root is None:
        return None
    start = start * (1 - 1e-3)
    rho = float(np.linalg.norm(triangular(root, after.T), 2)) ** 2 * 1.01
    stage = Stacked(h.shape[1], (Layer({0: h}, layer.lower, layer.upper, layer.group),), {1: after})
    try:
        optimum = minimise(stage, rho, start * rho / 2, tolerance=tolerance, deadline=deadline)[-1]
    except (LinAlgError, ValueError):
        return start
    return optimum.values * 2 / optimum.rho
