"""Multipliers for a part on a torus, one a channel and phase: strictly feasible ones, and the best by the interior-point method of `newton.py`.

At every frequency the matrix is `M = rho I_0 + sum_j lambda_j (a_j^H c_j + c_j^H a_j) - F^H F`, rows `a_j = e_j - alpha_j w_j`, `c_j = e_j - beta_j w_j`; rho and lambda are shared. The
primal-dual equations of the block diagonal of all of them are sums over frequencies: with `T = M^-1`, X the dual matrix, and for a matrix Z
`p_Z = A Z A^H, q_Z = C Z C^H, r_Z = A Z C^H`,

    H = Re sum (conj(r_X^T o r_T) + q_X o conj(p_T) + p_X o conj(q_T) + r_X o r_T^T).

The search takes some frequencies for all: symbols are trigonometric polynomials of a low degree. What the multipliers prove is found at all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.linalg import LinAlgError
from numpy.typing import NDArray

from lipscope.bounds.quadratic.cholesky import Equations
from lipscope.bounds.quadratic.stacked import Vector
from lipscope.bounds.quadratic.torus import Spectrum, Symbols, Torus, Value

BATCH = 3_000_000
"""Complex numbers in one batch of matrices."""

ROOM = 1.05
"""How far above the smallest ones the first multipliers are."""

GAP, ITERATIONS = 1e-3, 50
"""The relative gap of rho that ends the search, and iterations at most."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """The matrices at some frequencies.

    Attributes:
        size: length of block 0.
        reads: W, `(frequencies, units, dimension)`.
        output: F, `(frequencies, outputs, dimension)`.
        lower: alpha.
        upper: beta.
    """

    size: int
    reads: Symbols
    output: Symbols
    lower: Vector
    upper: Vector

    @property
    def dimension(self) -> int:
        """The order of the matrices."""
        return int(self.reads.shape[2])

    def matrices(self, rho: float, values: Vector) -> Symbols:
        """M at all frequencies."""
        matrices: Symbols = self.linear(rho, values) - _adjoint(self.output) @ self.output
        return matrices

    def linear(self, rho: float, values: Vector) -> Symbols:
        """M without the output's term."""
        m = np.zeros((len(self.reads), self.dimension, self.dimension), dtype=np.complex128)
        units = slice(self.size, self.dimension)
        cross = (values * (self.lower + self.upper))[:, None] * self.reads
        m[:, units] -= cross
        m[:, :, units] -= _adjoint(cross)
        inner = 2 * values * self.lower * self.upper
        if inner.any():
            m += _adjoint(self.reads) @ (inner[:, None] * self.reads)
        diagonal = np.einsum("fii->fi", m)
        diagonal[:, : self.size] += rho
        diagonal[:, self.size :] += 2 * values
        return m

    def demands(self, values: Vector) -> Vector:
        """For each frequency the smallest rho that the multipliers prove there; inf if none."""
        m, n = self.matrices(0.0, values), self.size
        try:
            root = np.linalg.cholesky(m[:, n:, n:])
        except np.linalg.LinAlgError:
            return np.full(len(m), math.inf)
        half = np.linalg.solve(root, m[:, n:, :n])
        rest = _adjoint(half) @ half - m[:, :n, :n]
        return np.asarray(np.maximum(np.linalg.eigvalsh(rest)[:, -1], 0.0), dtype=np.float64)

    def smallest_rho(self, values: Vector) -> float:
        """The smallest rho that the multipliers prove at all of these frequencies; inf if none."""
        return float(self.demands(values).max())


def _adjoint(m: Symbols) -> Symbols:
    adjoint: Symbols = m.conj().transpose(0, 2, 1)
    return adjoint


def blocks(spectrum: Spectrum, count: int) -> Blocks:
    """The matrices of a spectrum at `count` frequencies."""
    ends = np.cumsum([0, spectrum.input_size, *(b.size for b in spectrum.bands)])
    bands = {b: slice(int(i), int(j)) for b, (i, j) in enumerate(pairwise(ends))}

    def filled(value: Value) -> Symbols:
        rows = len(next(iter(value.sizes.values())))
        full = np.zeros((count, rows, int(ends[-1])), dtype=np.complex128)
        for b, s in value.symbols.items():
            full[:, :, bands[b]] = s
        return full

    reads = np.concatenate([np.zeros((count, 0, int(ends[-1]))), *(filled(v) for v in spectrum.reads)], axis=1)
    lower = np.concatenate([np.zeros(0), *(b.lower for b in spectrum.bands)])
    upper = np.concatenate([np.zeros(0), *(b.upper for b in spectrum.bands)])
    return Blocks(spectrum.input_size, reads, filled(spectrum.output), lower, upper)


def start(parts: Blocks, bands: list[slice]) -> Vector:
    """Strictly feasible multipliers, one number a band: from the last band to the first a little more than is needed."""
    values = np.zeros(len(parts.lower))
    n = parts.size
    later: list[slice] = []
    for band in reversed(bands):
        values[band] = 0.0
        m = parts.matrices(0.0, values)
        own = np.r_[band.start + n : band.stop + n]
        form = -m[:, own][:, :, own]
        if later:
            rest = np.concatenate([np.r_[s.start + n : s.stop + n] for s in later])
            coupled = m[:, rest][:, :, own]
            form = form + _adjoint(coupled) @ np.linalg.solve(m[:, rest][:, :, rest], coupled)
        top = float(np.linalg.eigvalsh((form + _adjoint(form)) / 2)[:, -1].max())
        scale = float(np.abs(parts.output).max()) ** 2 or 1.0
        values[band] = ROOM * max(top, 1e-9 * scale)
        later.append(band)
    return values


def searched(torus: Torus, half: int) -> NDArray[np.int64]:
    """Some frequencies of half the torus, `half` on the first axis; 0 first."""
    axes = []
    for axis, count in enumerate(torus.counts):
        most = count // 2 if axis == 0 else count - 1
        wanted = half if axis == 0 else 2 * half - 1
        axes.append(np.unique(np.round(np.linspace(0, most, min(wanted, most + 1))).astype(np.int64)))
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def improve(
    parts: Blocks, rho: float, values: Vector, deadline: float, tick: Callable[[float], None]
) -> tuple[Vector, float]:
    """The multipliers that the search ends at, strictly feasible at these frequencies, and the relative gap of rho there.

    Args:
        parts: the matrices.
        rho: strictly feasible with the multipliers.
        values: multipliers, > 0.
        deadline: `time.monotonic()` at which the point reached is the last.
        tick: called with the relative gap after each iteration.
    """
    scale = np.sqrt(rho / values)
    stretch = np.concatenate([np.ones(parts.size), scale])
    scaled = replace(
        parts, reads=parts.reads / scale[:, None] * stretch, output=parts.output * stretch / math.sqrt(rho)
    )
    search = _Search(scaled, np.ones(len(values)))
    for _ in range(ITERATIONS):
        if search.gap < GAP or time.monotonic() > deadline or not search.advance():
            break
        tick(search.gap)
    return search.y[1:] * rho / scale**2, search.gap


class _Products:
    """Of Hermitian matrices Z: `A Z`, `C Z`, `A Z A^H`, `C Z C^H`, `A Z C^H`, and the traces with I_0 and all A_j."""

    def __init__(self, parts: Blocks, z: Symbols) -> None:
        n, lower, upper = parts.size, parts.lower[:, None], parts.upper[:, None]
        wz = parts.reads @ z
        self.a, self.c = z[:, n:] - lower * wz, z[:, n:] - upper * wz
        adjoint = _adjoint(parts.reads)
        wa, wc = self.a @ adjoint, self.c @ adjoint
        self.p = self.a[:, :, n:] - wa * parts.lower
        self.q = self.c[:, :, n:] - wc * parts.upper
        self.r = self.a[:, :, n:] - wa * parts.upper
        self.corner = z[:, :n, :n]
        own = 2 * np.einsum("fii->i", self.r).real
        self.traces = np.concatenate([[np.einsum("fii->", self.corner).real], own])


class _Search:
    """The iterate: y = (rho, lambda) with M and T; X; the slack of `lambda >= 0`, which is a constraint of its own."""

    def __init__(self, parts: Blocks, values: Vector) -> None:
        self.parts = parts
        self.y = np.concatenate([[1.0], values])
        self.s = parts.matrices(1.0, values)
        self.t = np.linalg.inv(self.s)
        n = parts.size
        weight = 1 / float(np.einsum("fii->", self.t[:, :n, :n]).real)
        self.x, self.slack = self.t * weight, weight / values
        self.order = self.s.shape[0] * self.s.shape[1] + len(values)
        self._renew()

    def _renew(self) -> None:
        self.of_t, self.of_x = _Products(self.parts, self.t), _Products(self.parts, self.x)
        residual = self.of_x.traces.copy()
        residual[0] -= 1
        residual[1:] += self.slack
        self.product = float(np.vdot(self.x, self.s).real) + float(self.slack @ self.y[1:])
        self.gap = (self.product + float(np.abs(residual) @ self.y)) / float(self.y[0])

    def _solver(self) -> Callable[[Vector], Vector]:
        x, t, n = self.of_x, self.of_t, self.parts.size
        h = np.empty((len(self.y), len(self.y)))
        cross = np.einsum("fkj,fjk->jk", x.r, t.r).real
        h[1:, 1:] = cross + cross.T + (x.q * t.p.conj()).sum(0).real + (x.p * t.q.conj()).sum(0).real
        sides = x.c[:, :, :n] * t.a[:, :, :n].conj() + x.a[:, :, :n] * t.c[:, :, :n].conj()
        h[0, 1:] = h[1:, 0] = sides.sum((0, 2)).real
        h[0, 0] = float((x.corner * t.corner.conj()).sum().real)
        index = np.arange(1, len(h))
        h[index, index] += self.slack / self.y[1:]
        return Equations.of(h).solve

    def advance(self) -> bool:
        """One predictor and corrector; False if no step leads on."""
        try:
            solve = self._solver()
        except (LinAlgError, ValueError):
            return False
        mu = self.product / self.order
        y, s, x, slack = self._direction(solve, 0.0, None)
        primal, dual = self._lengths(y, s, x, slack)
        left = float(np.vdot(self.x + primal * x, self.s + dual * s).real)
        left += float((self.slack + primal * slack) @ (self.y[1:] + dual * y[1:]))
        centring = min(1.0, max(left / self.order / mu, 1e-3) ** 2)
        centring = max(centring, 0.5) if min(primal, dual) < 0.1 else centring
        y, s, x, slack = self._direction(solve, centring * mu, (y, s, x, slack))
        primal, dual = self._lengths(y, s, x, slack)
        if max(primal, dual) < 1e-4:
            return False
        self.y, self.s = self.y + dual * y, self.s + dual * s
        self.x, self.slack = self.x + primal * x, self.slack + primal * slack
        self.t = np.linalg.inv(self.s)
        self.t = (self.t + _adjoint(self.t)) / 2
        self._renew()
        return True

    def _direction(
        self, solve: Callable[[Vector], Vector], target: float, first: tuple[Vector, Symbols, Symbols, Vector] | None
    ) -> tuple[Vector, Symbols, Symbols, Vector]:
        """Newton's step in y, M, X and the slack to `X M = target I`, corrected by what the step `first` leaves of second order."""
        right = target * self.of_t.traces
        right[0] -= 1
        slack = target / self.y[1:]
        beyond: Symbols | None = None
        if first is not None:
            beyond = first[2] @ first[1] @ self.t
            beyond = (beyond + _adjoint(beyond)) / 2
            right -= _Products(self.parts, beyond).traces
            slack = slack - first[3] * first[0][1:] / self.y[1:]
        right[1:] += slack
        y = solve(right)
        s = self.parts.linear(float(y[0]), y[1:])
        x = self.x @ s @ self.t
        x = target * self.t - self.x - (x + _adjoint(x)) / 2
        if beyond is not None:
            x = x - beyond
        return y, s, x, slack - self.slack - self.slack * y[1:] / self.y[1:]

    def _lengths(self, y: Vector, s: Symbols, x: Symbols, slack: Vector) -> tuple[float, float]:
        """How far X and the slack, and M and y, stay positive along a step, at most 1."""
        return (
            _length(self.x, x, min(1.0, 0.95 * _ratio(self.slack, slack))),
            _length(self.s, s, min(1.0, 0.95 * _ratio(self.y, y))),
        )


def _length(matrices: Symbols, step: Symbols, most: float) -> float:
    """A length along the step at which the matrices are positive definite, with some room; 0 if none is found."""
    length = most
    while length > 1e-6:
        try:
            np.linalg.cholesky(matrices + length * step)
        except np.linalg.LinAlgError:
            length *= 0.8
            continue
        return length if length == most < 1 else 0.95 * length
    return 0.0


def _ratio(values: Vector, step: Vector) -> float:
    falling = step < 0
    return float(np.min(-values[falling] / step[falling], initial=np.inf))
