"""The least `sum q + sum p` for which the inequality of one row or column holds, by a barrier method.

`sums` has the inequality, N >= 0. Multipliers, q and p are all coefficients of terms `a c^T + c a^T`, and the method has one form for them:

    minimise t (sum q + sum p) - log det N - (sum log lambda where N >= 0 does not imply lambda > 0),
    gradient t cost_v - 2 R_vv,   Hessian 2 (P o Q + R o R^T),   P = E^T B E,  Q = C^T B C,  R = E^T B C,  B = N^{-1}.

Every iterate is strictly feasible, so the search may stop anywhere. At a centre the least sum is at least `sum q + sum p - (size of N)/t`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.linalg import LinAlgError

from lipscope.bounds.quadratic.cholesky import Equations, cholesky, inverse
from lipscope.bounds.quadratic.elimination import norm_start, smallest_rho
from lipscope.bounds.quadratic.stacked import Matrix, Stacked, Vector
from lipscope.bounds.quadratic.wanted import FAR, Wanted
from lipscope.bounds.threads import threads_for

STEPS = 80
"""Newton steps for one centring."""

GROWTH = 12.0


class Point(NamedTuple):
    """A strictly feasible point.

    Attributes:
        q: by entry of x.
        p: by output.
        values: multipliers.
        gap: about how far, relatively, the sum is above the least one, if the point is a centre.
    """

    q: Vector
    p: Vector
    values: Vector
    gap: float = FAR


@dataclass(eq=False)
class _Terms:
    """N(y) = a diag(y) c^T + c diag(y) a^T - cross, in scaled coordinates."""

    a: Matrix
    c: Matrix
    cross: Matrix
    cost: Vector
    guarded: Vector

    def matrix(self, y: Vector) -> Matrix:
        half = (self.a * y) @ self.c.T
        result: Matrix = half + half.T - self.cross
        return result

    def factor(self, y: Vector) -> Matrix | None:
        if not (y > 0).all():
            return None
        try:
            return cholesky(self.matrix(y))
        except LinAlgError:
            return None

    def objective(self, y: Vector, factor: Matrix, weight: float) -> float:
        return float(weight * (self.cost @ y) - 2 * np.log(np.diag(factor)).sum() - (self.guarded * np.log(y)).sum())

    def step(self, y: Vector, factor: Matrix, weight: float) -> tuple[Vector, Vector]:
        middle = inverse(factor)
        left, right = middle @ self.a, middle @ self.c
        p, q, r = self.a.T @ left, self.c.T @ right, self.a.T @ right
        hessian = 2 * (p * q + r * r.T)
        gradient = weight * self.cost - 2 * np.diag(r) - self.guarded / y
        np.einsum("ii->i", hessian)[:] += self.guarded / y**2
        return gradient, -Equations.of(hessian).solve(gradient)


def _terms(network: Stacked, q: Vector, p: Vector, values: Vector) -> tuple[_Terms, Vector]:
    """The terms in coordinates in which the start's diagonal is near 1, and the start in scaled variables."""
    n, units = network.input_size, network.units
    outputs = len(next(iter(network.output.values())))
    size = n + units + outputs
    reads, cross = np.zeros((units, size)), np.zeros((size, size))
    for k, layer in enumerate(network.layers):
        for b, w in layer.reads.items():
            reads[network.units_of(k), network.block(b)] = w
    for b, f in network.output.items():
        cross[n + units :, network.block(b)] = f
    cross += cross.T
    a, c = (-slope * reads.T for slope in (network.lower, network.upper))
    index = np.arange(units)
    a[n + index, index] += 1
    c[n + index, index] += 1
    diagonal = np.eye(size)[:, [*range(n), *range(n + units, size)]]
    a, c = np.hstack([a, diagonal]), np.hstack([c, diagonal / 2])
    start = np.concatenate([values, q, p])
    # In variables y/start, and coordinates scaled so that the start's diagonal is 1.
    root = 1 / np.sqrt(np.maximum(np.einsum("ij,j,ij->i", a, 2 * start, c), 1e-300))
    cost = np.concatenate([np.zeros(units), start[units:]])
    total = float(cost.sum())
    guarded = np.concatenate([(network.lower * network.upper > 0).astype(np.float64), np.zeros(n + outputs)])
    a, c, cross = root[:, None] * a * start, root[:, None] * c, root[:, None] * cross * root
    return _Terms(a, c, cross, cost / total, guarded), start


def search(network: Stacked, wanted: Wanted, start: Point | None = None) -> list[Point]:
    """Strictly feasible q, p and multipliers, each better than those before.

    Args:
        network: with an output that is not 0.
        wanted: when to stop.
        start: strictly feasible; None for that of the product of norms.
    """
    q, p, values, first_gap = start or _cold(network)
    n, units, outputs = network.input_size, network.units, len(p)
    if not np.isfinite(q).all():
        return []
    # The output is scaled so that both sums are equal at the start: what is proved is their product.
    share = math.sqrt(p.sum() / q.sum())
    terms, first = _terms(network.scaled_output(share), q * share**2, p, values * share**2)
    found = []
    y = np.ones(len(first))
    size = n + units + outputs + float(terms.guarded.sum())
    weight = size / first_gap
    factor = terms.factor(y)
    while factor is not None:
        with threads_for(len(factor)):
            y, factor, centred = _centred(terms, y, factor, weight, wanted.deadline)
        own = y * first
        cost = float(terms.cost @ y)
        gap = size / weight / cost
        found.append(Point(own[units : units + n] / share**2, own[units + n :], own[:units] / share**2, gap))
        # The sums are equal at the optimum, and the root of their product is never above their mean.
        if not centred or wanted.met(math.sqrt(found[-1].q.sum() * found[-1].p.sum()), gap):
            break
        weight *= GROWTH
    return found


def _cold(network: Stacked) -> Point:
    """The start of the product of norms; q is inf where rounding leaves none."""
    values = norm_start(network)
    rho = 1.05 * smallest_rho(network, values)
    outputs = len(next(iter(network.output.values())))
    return Point(np.full(network.input_size, rho if rho > 0 else np.inf), np.ones(outputs), values)


def _centred(terms: _Terms, y: Vector, factor: Matrix, weight: float, deadline: float) -> tuple[Vector, Matrix, bool]:
    """Newton steps towards the centre of a weight, and whether they came there."""
    for _ in range(STEPS):
        if time.monotonic() > deadline:
            break
        gradient, step = terms.step(y, factor, weight)
        slope = float(gradient @ step)
        if -slope < 0.1:
            return y, factor, True
        moved = _line_search(terms, y, step, factor, weight, slope)
        if moved is None:
            break
        y, factor = moved
    return y, factor, False


def _line_search(
    terms: _Terms, y: Vector, step: Vector, factor: Matrix, weight: float, slope: float
) -> tuple[Vector, Matrix] | None:
    before, length = terms.objective(y, factor, weight), 1.0
    while length > 1e-8:
        trial = terms.factor(y + length * step)
        if trial is not None:
            if terms.objective(y + length * step, trial, weight) <= before + 0.1 * length * slope:
                return y + length * step, trial
        length *= 0.5
    return None
