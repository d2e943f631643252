"""Quadratic bounds in l1 and linf: one inequality for each row (linf) or column (l1) of the matrices of differences.

For any two inputs the difference of the end is M times that of the start, M with slopes in their ranges. With A the inequality's terms
on (start x, units u) without the output, F the output, and nonnegative numbers q, p (one for each entry of x, of F u),

    [[diag(q) + A, -F^T], [-F, diag(p)]] >= 0    gives    2 s^T F u <= x^T diag(q) x + s^T diag(p) s    for every vector s,

since A contributes at most 0 along every pair. For linf F is one row and |x| <= 1 entrywise: `|F u|^2 <= sum q sum p`. For l1 the network
reads one entry of x alone, and s = c sign(F u): `|F u|_1^2 <= sum q sum p` again. So `sum q + sum p` is minimised; the multipliers, q and p
are all coefficients of terms `a c^T + c a^T`, and the barrier method has one form for them:

    minimise t (sum q + sum p) - log det N - (sum log lambda where N >= 0 does not imply lambda > 0),
    gradient t cost_v - 2 R_vv,   Hessian 2 (P o Q + R o R^T),   P = E^T B E,  Q = C^T B C,  R = E^T B C,  B = N^{-1}.

The linf form is in GeoLIP (Wang et al., arXiv 2203.01212) for scalar outputs.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, cholesky, lapack

from lipscope.bounds.quadratic.certify import proved_form, proved_margin
from lipscope.bounds.quadratic.elimination import Infeasible, norm_start, smallest_rho
from lipscope.bounds.quadratic.forms import Piece
from lipscope.bounds.quadratic.stacked import Matrix, Stacked, Vector
from lipscope.claims.norms import Norm
from lipscope.claims.rounding import sqrt_up, up

STEPS = 80
"""Newton steps for one centring."""

GROWTH = 12.0
TOLERANCE = 1e-4
"""Relative gap at which the search stops."""

ROOM = 1e-7
"""What q is enlarged by, relatively, so that the checker's rounding fits."""


SMALL = 1e-5
"""What stands for an output that is 0, in terms of its absolute values: its square is far above their rounding."""

SMALLEST = 1e-20
"""What stands for an output whose absolute values are 0: the checker counts on underflow, which is far below its square."""

SPARE = 1e-6
"""Relative room in the square of the bound for the checker, whose Schur complements are rounded differently."""


@dataclass(frozen=True, eq=False)
class Sums:
    """A proved bound of the largest row (column) sum, with its evidence.

    Attributes:
        constant: the bound.
        weights: linf: q by (rows, entries of the start). l1: r, proportional to the square roots of 1/p and at most 1, by (entries of the start, outputs).
        values: multipliers by (rows or columns, units).
    """

    constant: float
    weights: Matrix
    values: Matrix


def bound_sums(
    part: Piece, norm: Norm, deadline: float, enough: float = 0.0, tolerance: float = TOLERANCE
) -> Sums | None:
    """A proved constant of the part in l1 or linf; None where there is none, or time ran out before every row had its own.

    Args:
        part: the part, without sorts if the norm is l1.
        norm: l1 or linf.
        deadline: `time.monotonic()` at which to stop.
        enough: a bound that needs no improvement.
        tolerance: relative gap at which the search for a row stops.
    """
    network = part.stacked
    outputs = len(next(iter(network.output.values()))) if network.output else 0
    count = outputs if norm == "linf" else network.input_size
    weights, values, worst = [], [], 0.0
    for k in range(count):
        now = time.monotonic()
        if now >= deadline:
            return None
        try:
            with np.errstate(all="ignore"):
                # Only the largest row counts: others need not be better than it.
                wanted = _Wanted(now + (deadline - now) / (count - k), max(enough, 0.999 * worst), tolerance)
                found = _one(part, norm, k, wanted)
        except (Infeasible, LinAlgError, np.linalg.LinAlgError, ValueError):
            return None
        if found is None:
            return None
        worst = max(worst, found[0])
        weights.append(found[1])
        values.append(found[2])
    if not weights or not math.isfinite(worst):
        return None
    return Sums(worst, np.array(weights), np.array(values))


def single(network: Stacked, norm: Norm, index: int) -> Stacked:
    """Of all outputs one (linf), or of all inputs one (l1)."""
    if norm == "linf":
        return replace(network, output={b: f[index : index + 1] for b, f in network.output.items()})
    layers = tuple(
        replace(layer, reads={b: w[:, index : index + 1] if b == 0 else w for b, w in layer.reads.items()})
        for layer in network.layers
    )
    output = {b: f[:, index : index + 1] if b == 0 else f for b, f in network.output.items()}
    return Stacked(1, layers, output)


def scaled(network: Stacked, factors: Vector) -> Stacked:
    """The output's entries multiplied by numbers > 0."""
    return replace(network, output={b: f * factors[:, None] for b, f in network.output.items()})


@dataclass(frozen=True)
class _Wanted:
    """When the search for one row may stop: at a time, at a bound, or at a relative gap."""

    deadline: float
    enough: float
    tolerance: float


def _one(part: Piece, norm: Norm, index: int, wanted: _Wanted) -> tuple[float, Vector, Vector] | None:
    """The bound of one row or column, its weights and multipliers."""
    network, positive = single(part.stacked, norm, index), single(part.absolute, norm, index)
    for q, p, values in reversed(_search(_visible(network, positive), wanted)):
        if norm == "linf":
            form = proved_form(network, positive, part.roundings, values * p[0])
            proved = None if form is None else proved_margin(form, q * p[0] * (1 + ROOM))
            if proved is not None:
                return sqrt_up(up(float(proved.sum()) * (1 + SPARE))), proved, values * p[0]
        else:
            r = np.maximum(np.sqrt(p.min() / p), 1e-30)
            values = values * p.min()
            form = proved_form(scaled(network, r), scaled(positive, r), part.roundings + 2, values)
            proved = None if form is None else proved_margin(form, q * p.min() * (1 + ROOM))
            if proved is not None:
                square = up(float(proved[0]) * float((1 / r**2).sum()) * (1 + SPARE))
                return sqrt_up(square), r, values
    return None


def _visible(network: Stacked, positive: Stacked) -> Stacked:
    """A network whose output is not 0: what was computed as 0 is 0 within rounding only, for which a small output makes room."""
    if any(f.any() for f in network.output.values()):
        return network
    return replace(network, output={b: SMALL * f + SMALLEST for b, f in positive.output.items()})


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
            found: Matrix = cholesky(self.matrix(y), lower=True, check_finite=False)
        except (LinAlgError, ValueError):
            return None
        return found

    def objective(self, y: Vector, factor: Matrix, weight: float) -> float:
        return float(weight * (self.cost @ y) - 2 * np.log(np.diag(factor)).sum() - (self.guarded * np.log(y)).sum())

    def step(self, y: Vector, factor: Matrix, weight: float) -> tuple[Vector, Vector]:
        lower = np.tril(lapack.dpotri(factor, lower=1)[0])
        inverse = lower + np.tril(lower, -1).T
        left, right = inverse @ self.a, inverse @ self.c
        p, q, r = self.a.T @ left, self.c.T @ right, self.a.T @ right
        hessian = 2 * (p * q + r * r.T)
        gradient = weight * self.cost - 2 * np.diag(r) - self.guarded / y
        np.einsum("ii->i", hessian)[:] += self.guarded / y**2
        scale = 1 / np.sqrt(np.maximum(np.diag(hessian), 1e-300))
        hessian *= scale[:, None] * scale
        ridge = 1e-14
        while ridge < 1:
            np.einsum("ii->i", hessian)[:] = 1 + ridge
            try:
                solved = cho_solve(cho_factor(hessian, lower=True, check_finite=False), scale * gradient)
                return gradient, -scale * solved
            except LinAlgError:
                ridge *= 100
        raise LinAlgError("the Hessian is not definite")


def _terms(network: Stacked, q: Vector, values: Vector) -> tuple[_Terms, Vector]:
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
    start = np.concatenate([values, q, np.ones(outputs)])
    # In variables y/start, and coordinates scaled so that the start's diagonal is 1.
    root = 1 / np.sqrt(np.maximum(np.einsum("ij,j,ij->i", a, 2 * start, c), 1e-300))
    cost = np.concatenate([np.zeros(units), start[units:]])
    total = float(cost.sum())
    guarded = np.concatenate([(network.lower * network.upper > 0).astype(np.float64), np.zeros(n + outputs)])
    a, c, cross = root[:, None] * a * start, root[:, None] * c, root[:, None] * cross * root
    return _Terms(a, c, cross, cost / total, guarded), start


def _search(network: Stacked, wanted: _Wanted) -> list[tuple[Vector, Vector, Vector]]:
    """Strictly feasible q, p and multipliers, each better than those before."""
    n, units = network.input_size, network.units
    values = norm_start(network)
    rho = 1.05 * smallest_rho(network, values)
    if not (math.isfinite(rho) and rho > 0):
        return []
    outputs = len(next(iter(network.output.values())))
    # The output is scaled so that both sums are equal at the start: what is proved is their product.
    share = math.sqrt(outputs / (rho * n))
    terms, start = _terms(network.scaled_output(share), np.full(n, rho * share**2), values * share**2)
    found = []
    y = np.ones(len(start))
    weight = 3.0 * (n + units + outputs)
    factor = terms.factor(y)
    while factor is not None:
        centred = False
        for _ in range(STEPS):
            if time.monotonic() > wanted.deadline:
                break
            gradient, step = terms.step(y, factor, weight)
            slope = float(gradient @ step)
            if -slope < 0.1:
                centred = True
                break
            moved = _line_search(terms, y, step, factor, weight, slope)
            if moved is None:
                break
            y, factor = moved
        own = y * start
        found.append((own[units : units + n] / share**2, own[units + n :], own[:units] / share**2))
        size = n + units + outputs + float(terms.guarded.sum())
        reached = float(found[-1][0].sum() * found[-1][1].sum())
        if not centred or size / weight < wanted.tolerance * float(terms.cost @ y) or reached <= wanted.enough**2:
            break
        weight *= GROWTH
    return found


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
