"""A sweep along a chain that gives each layer in turn its best multipliers, with the scale of all that follows it: the smoother of `chain_newton.py`.

What is maximised is `q log s + log det M(s, lambda)`, and `sum log lambda_j` where `lambda >= 0` is not implied. With the layers before layer
k eliminated from the first on (V, what is left on the block that k reads) and those after it from the last on (A, with s in it),

    log det [[V + 2 W^T p L W,  -W^T L s], [-s L W,  2 L - c A]] + (q + n_later) log c,     s = alpha + beta,  p = alpha beta,

is what depends on `L = diag(lambda_k)` and on a common factor c of s and of all later multipliers, up to a constant: those are homogeneous in c. It
is concave in `(lambda_k, c)`, and of n_k + 1 unknowns. That c moves along is what makes the sweep work: in a long chain a change of one
layer's multipliers by a percent is infeasible with all others held, though the later ones need but be scaled. With

    t = (2 L - c A - s L K L s)^{-1},  K = W X^{-1} W^T,  X = V + 2 W^T p L W,    T_10 W^T = t s L K,    W T_00 W^T = K + K L s t s L K

all derivatives are those of `newton.py`, on matrices of the layer's size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.linalg import LinAlgError

from lipscope.bounds.quadratic.cholesky import Equations, cholesky, inverse, solved
from lipscope.bounds.quadratic.stacked import Layer, Matrix, Stacked, Vector

STEPS = 4
"""Newton steps for a layer; the next sweep comes back to it."""

CENTRED = 0.1
"""Newton's decrement below which a layer is left."""


def sweep(network: Stacked, weights: list[Matrix], y: Vector, q: float, *, guarded: bool) -> Vector | None:
    """A strictly feasible `(s, lambda)` that is no worse than y, up to rounding; None where a factorisation fails.

    Args:
        network: a chain.
        weights: W_1, .., W_d.
        y: a strictly feasible (s, lambda).
        q: the weight of `log s`.
        guarded: whether `sum log lambda_j` is added.
    """
    units = [network.units_of(k) for k in range(len(network.layers))]
    result, scale = y.copy(), 1.0
    try:
        after = _from_the_end(network, weights, y)
        before: Matrix = np.eye(network.input_size)
        weight = q + network.units * (2 if guarded else 1)
        for k, (layer, own) in enumerate(zip(network.layers, units, strict=True)):
            weight -= layer.size * (2 if guarded else 1)
            stage = _Stage(layer, weights[k], before, scale * after[k], weight, guarded)
            values, factor, before = stage.best(scale * y[1:][own])
            result[1:][own] = values
            scale *= factor
            result[0] = y[0] * scale
            result[1:][own.stop :] = y[1:][own.stop :] * scale
    except (LinAlgError, ValueError):
        return None
    return result


def _from_the_end(network: Stacked, weights: list[Matrix], y: Vector) -> list[Matrix]:
    """For each layer the form that eliminating all later ones leaves on it."""
    forms: list[Matrix] = [y[0] * weights[-1].T @ weights[-1]]
    for k in reversed(range(1, len(network.layers))):
        layer, values, w = network.layers[k], y[1:][network.units_of(k)], weights[k]
        root = cholesky(2 * np.diag(values) - forms[-1])
        reads = ((layer.lower + layer.upper) * values)[:, None] * w
        product = 2 * layer.lower * layer.upper * values
        forms.append(reads.T @ solved(root, reads) - w.T @ (product[:, None] * w))
    return forms[::-1]


def own_curvature(layer: Layer, t: Matrix, cross: Matrix, inner: Matrix) -> Matrix:
    """The negative Hessian of log det M by a layer's multipliers, from `T_11`, `T_10 W^T` and `W T_00 W^T`."""
    alpha, beta = layer.lower, layer.upper

    def form(left: Vector, right: Vector) -> Matrix:
        result: Matrix = t - cross * right - left[:, None] * cross.T + left[:, None] * inner * right
        return result

    mixed = form(alpha, beta)
    return 2 * (form(alpha, alpha) * form(beta, beta) + mixed * mixed.T)


def sums(layer: Layer) -> Matrix | None:
    """The matrix that adds over the units that share a multiplier; None where each has its own."""
    if layer.group is None:
        return None
    return np.asarray(np.unique(layer.group)[:, None] == layer.group, dtype=np.float64)


def _inverse(matrix: Matrix) -> tuple[Matrix, float]:
    """The inverse of a positive definite matrix and log det."""
    root = cholesky(matrix)
    return inverse(root), 2 * float(np.log(root.diagonal()).sum())


@dataclass(frozen=True, eq=False)
class _Point:
    """A strictly feasible `(lambda, c)` of a stage: its value and the blocks of T that derivatives need."""

    z: Vector
    value: float
    t: Matrix
    seen: Matrix


@dataclass(frozen=True, eq=False)
class _Stage:
    """The problem of one layer."""

    layer: Layer
    weight: Matrix
    before: Matrix
    after: Matrix
    q: float
    guarded: bool

    def best(self, values: Vector) -> tuple[Vector, float, Matrix]:
        """Multipliers, the factor c, and V of the layer after; from multipliers that are feasible with c = 1."""
        point = self._point(np.append(values, 1.0), None)
        if point is None:
            raise ValueError("expected a strictly feasible start")
        for _ in range(STEPS):
            step, decrement = self._direction(point)
            further = self._further(point, step) if decrement > CENTRED else None
            if further is None:
                break
            point = further
        values = point.z[:-1]
        reads = (self.layer.lower + self.layer.upper) * values
        return values, float(point.z[-1]), 2 * np.diag(values) - reads[:, None] * point.seen * reads

    def _point(self, z: Vector, known: Matrix | None) -> _Point | None:
        """The point; `known` is K where it does not depend on the multipliers."""
        if not (z > 0).all():
            return None
        values, c, layer, w = z[:-1], float(z[-1]), self.layer, self.weight
        product, reads = 2 * layer.lower * layer.upper * values, (layer.lower + layer.upper) * values
        seen, value = known, self.q * float(np.log(c))
        try:
            if seen is None:
                x, size = _inverse(self.before + w.T @ (product[:, None] * w))
                seen, value = w @ x @ w.T, value + (size if product.any() else 0.0)
            t, size = _inverse(2 * np.diag(values) - c * self.after - reads[:, None] * seen * reads)
        except (LinAlgError, ValueError):
            return None
        if self.guarded:
            value += float(np.log(values).sum())
        return _Point(z, value + size, t, seen)

    def _direction(self, point: _Point) -> tuple[Vector, float]:
        """Newton's step, and its decrement."""
        layer, t, c = self.layer, point.t, float(point.z[-1])
        values, lower, upper = point.z[:-1], layer.lower, layer.upper
        cross = (t * ((lower + upper) * values)) @ point.seen
        inner = point.seen + (point.seen * ((lower + upper) * values)) @ cross
        slope = 2 * (t.diagonal() - (lower + upper) * cross.diagonal() + lower * upper * inner.diagonal())
        bend = own_curvature(layer, t, cross, inner)
        if self.guarded:
            slope = slope + 1 / values
            bend[np.diag_indices_from(bend)] += 1 / values**2
        mixed = -2 * np.einsum("ij,ij->j", t - cross * lower, self.after @ (t - cross * upper))
        add = sums(layer)
        if add is not None:
            slope, bend, mixed = add @ slope, add @ bend @ add.T, add @ mixed
        pushed = t @ self.after
        slope = np.append(slope, self.q / c - float(np.trace(pushed)))
        corner = self.q / c**2 + float(np.vdot(pushed, pushed.T))
        whole = np.block([[bend, mixed[:, None]], [mixed, np.array([[corner]])]])
        step = Equations.of(whole).solve(slope)
        decrement = float(np.sqrt(max(float(slope @ step), 0.0)))
        return (step if add is None else np.append(step[:-1] @ add, step[-1])), decrement

    def _further(self, point: _Point, step: Vector) -> _Point | None:
        """A better point along a step, halved as often as it takes and once more where that is better still; None if there is none."""
        known = None if (self.layer.lower * self.layer.upper).any() else point.seen
        length, best = 1.0, None
        while length > 1e-6:
            trial = self._point(point.z + length * step, known)
            if best is not None:
                return best if trial is None or trial.value <= best.value else trial
            if trial is not None and trial.value > point.value:
                if length == 1.0:
                    return trial
                best = trial
            length /= 2
        return best
