"""The best multipliers of one small cell, by a barrier method that begins at its parent's.

Minimise `t rho - log det M(rho, l) (- sum log l_j where M >= 0 does not imply l_j > 0)` for growing t. With `B = M^{-1}`, E and C the
columns `e_j - a_j w_j` and `e_j - b_j w_j`, `P = E^T B E`, `Q = C^T B C`, `R = E^T B C`:

    gradient  t - tr B_xx, -2 R_jj;    Hessian  |B_xx|_F^2,  2 sum_{k in x} (B E)_kj (B C)_kj,  2 (P o Q + R o R^T).

At the centre `rho - rho* <= (size of M)/t`. Every iterate is strictly feasible, so the search may stop anywhere. The quadratic bounds
of whole networks have a method for large M; thousands of small ones, from good starts, are another task. Units are scaled so that the
start's multipliers and rho are 1.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.linalg import LinAlgError

from lipscope.bounds.branch.exact import Matrix
from lipscope.bounds.quadratic.cholesky import Equations, cholesky, inverse
from lipscope.bounds.quadratic.wanted import FAR, Wanted

STEPS = 60
"""Newton steps for one centring."""
GROWTH = 20.0


@dataclass(frozen=True, eq=False)
class Start:
    """A strictly feasible point.

    Attributes:
        rho: the square of the bound.
        values: multipliers, > 0.
        gap: about how far, relatively, rho is above the optimum, if the point is a centre.
    """

    rho: float
    values: Matrix
    gap: float = FAR


@dataclass(eq=False)
class Barrier:
    """The inequality of a cell in scaled variables.

    Attributes:
        reads: w_j by (x, units).
        output: F.
        slopes: (units, 2).
        guarded: whether multipliers need a barrier of their own.
    """

    reads: Matrix
    output: Matrix
    slopes: Matrix

    def __post_init__(self) -> None:
        count, width = self.reads.shape
        self.inputs = width - count
        self.products = self.slopes[:, 0] * self.slopes[:, 1]
        self.guarded = bool((self.products > 0).any())
        self.square = self.output.T @ self.output

    def matrix(self, rho: float, values: Matrix) -> Matrix:
        """M."""
        m = self.reads.T @ ((2 * self.products * values)[:, None] * self.reads) - self.square
        cross = (self.slopes.sum(1) * values)[:, None] * self.reads
        m[self.inputs :] -= cross
        m[:, self.inputs :] -= cross.T
        diagonal = np.einsum("ii->i", m)
        diagonal[: self.inputs] += rho
        diagonal[self.inputs :] += 2 * values
        return m

    def factor(self, rho: float, values: Matrix) -> Matrix | None:
        """The Cholesky factor of M, None if it is not definite."""
        if not (rho > 0 and (values > 0).all()):
            return None
        try:
            return cholesky(self.matrix(rho, values))
        except LinAlgError:
            return None

    def step(self, factor: Matrix, values: Matrix, weight: float) -> tuple[Matrix, Matrix]:
        """Gradient and Newton step."""
        middle = inverse(factor)
        n = self.inputs
        low, high = self.slopes[:, 0], self.slopes[:, 1]
        through = middle @ self.reads.T
        left, right = middle[:, n:] - through * low, middle[:, n:] - through * high
        p = left[n:] - low[:, None] * (self.reads @ left)
        q = right[n:] - high[:, None] * (self.reads @ right)
        r = right[n:] - low[:, None] * (self.reads @ right)
        units = len(values)
        hessian, gradient = np.empty((units + 1, units + 1)), np.empty(units + 1)
        hessian[1:, 1:] = 2 * (p * q + r * r.T)
        hessian[0, 1:] = hessian[1:, 0] = 2 * np.einsum("kj,kj->j", left[:n], right[:n])
        hessian[0, 0] = np.sum(middle[:n, :n] ** 2)
        gradient[0], gradient[1:] = weight - np.trace(middle[:n, :n]), -2 * np.diag(r)
        if self.guarded:
            gradient[1:] -= 1 / values
            np.einsum("ii->i", hessian)[1:] += 1 / values**2
        return gradient, -Equations.of(hessian).solve(gradient)

    def objective(self, rho: float, values: Matrix, factor: Matrix, weight: float) -> float:
        """What is minimised."""
        guard = float(np.log(values).sum()) if self.guarded else 0.0
        return float(weight * rho - 2 * np.log(np.diag(factor)).sum() - guard)


def descend(reads: Matrix, output: Matrix, slopes: Matrix, start: Start, wanted: Wanted) -> list[Start]:
    """Strictly feasible pairs of rho and multipliers, each better than the one before, with the gap that is left at each.

    Args:
        reads: w_j by (x, units), one row a unit.
        output: F.
        slopes: (units, 2).
        start: strictly feasible.
        wanted: when to stop.
    """
    rho, values = start.rho, start.values
    root, inputs = np.sqrt(values / rho), reads.shape[1] - len(values)
    columns = np.concatenate([np.ones(inputs), 1 / root])
    barrier = Barrier(reads * root[:, None] * columns, output * columns / np.sqrt(rho), slopes)
    now, own = 1.0, np.ones(len(values))
    factor = barrier.factor(now, own)
    size = reads.shape[1] + (len(values) if barrier.guarded else 0)
    weight, found = size / start.gap, list[Start]()
    while factor is not None:
        centred = False
        for _ in range(STEPS):
            if time.monotonic() > wanted.deadline:
                break
            gradient, step = barrier.step(factor, own, weight)
            slope = float(gradient @ step)
            if -slope < 0.1:
                centred = True
                break
            before, length = barrier.objective(now, own, factor, weight), 1.0
            while length > 1e-8:
                trial = barrier.factor(now + length * step[0], own + length * step[1:])
                if trial is not None:
                    value = barrier.objective(now + length * step[0], own + length * step[1:], trial, weight)
                    if value <= before + 0.1 * length * slope:
                        break
                length *= 0.5
            else:
                break
            assert trial is not None
            now, own, factor = now + length * step[0], own + length * step[1:], trial
        gap = size / weight / now
        found.append(Start(now * rho, own * root**2 * rho, gap))
        if not centred or wanted.met(now * rho, gap):
            break
        weight *= GROWTH
    return found
