"""Bounds of the l2 norm by Lanczos' recurrence: a lower bound at a Ritz vector, an upper bound up to a chosen
probability.

Upper bound (idea: van Dorsselaer, Hochstenbach, van der Vorst, CWI 1999). Let M = L^T L or L L^T (scaled), q a unit
eigenvector of its largest eigenvalue l, N its order. The computed vectors and coefficients satisfy `M v_j = b_{j-1}
v_{j-1} + a_j v_j + b_j v_{j+1} + f_j`, `|f_j| <= eta`. Multiplied by q^T, with y_j = <q, v_j> and T = tridiag(b, a,
b): `y (l I - T) = b_k y_{k+1} e_k^T + q^T F`. For l above the eigenvalues of T the inverse R of `l I - T` is
entrywise positive and decreasing in l, and `b_k R_{k1} = 1/p_k(l)` with the pivots d_j of `l I - T`: `p_k = prod
d_j/b_j`. Hence

    |<q, v_1>| <= |v_{k+1}|/p_k(l) + eta sum_j R_{1j}(l),

which decreases in l. A uniform unit vector has `P(|<q, v>| < delta) <= delta sqrt(2 N/pi)`. So if the right side at
t^2 is at most delta for each of r independent vectors, then `l <= t^2`, unless all r of them have a component below
delta along q, which has probability at most `(delta sqrt(2 N/pi))^r = failure`. One event per vector: it covers all k
and every stopping rule. Orthogonality of the computed v_j is not used.

Rounding. `|v_j| <= 1 + (N+8) u` and v_1 is off by (N+8) u from the exactly normalised Gaussian vector (norms of N
numbers, summed in any order). With B >= n1 ninf >= |M| the local error is that of the product, `gamma_{f+a} B`
(`gram.py`), and that of the three vector operations: `w_1 = M v_j - b v_{j-1}`: u (|w_1| + b |v|); `w_2 = w_1 - a
v_j`: u (|w_2| + a |v|); `w_2/b_j`: u |w_2|; with a, b <= 1.1 B less than 16 u B in all. T consists of the computed
a_j, b_j, taken as exact numbers. All scalars are evaluated with directed rounding.

Vectors are drawn after the weights are fixed, from the operating system's entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipscope.claims.rounding import SMALLEST, UNIT_ROUNDOFF, down, up
from lipscope.operator_norm.gram import Gram
from lipscope.operator_norm.proof import SLACK, Proof

CHECK_EVERY = 10
BREAKDOWN = 1e-14
"""A coefficient b_j below this (the scaled norm is about one) ends the recurrence: the subspace is invariant."""

HEAD_ROOM = 64.0
"""How much smaller than demanded the left side is made, so that other random vectors meet the demand at the same t."""

ROUNDING_HEAD_ROOM = 4.0
"""The same for the term of the rounding errors, which depends on the vectors by a small factor only."""

MOST_ENLARGEMENTS = 600
"""How often the excess over the Ritz value is multiplied by four: it never takes as many, from 1e-12 to 1e308."""

SMALLEST_PROBABILITY = 1e-3
"""Starts are added until each of them may fail with this probability: more would drown in rounding errors."""


class Recurrence:
    """Lanczos' recurrence without re-orthogonalisation, for several starting vectors at a time.

    Args:
        gram: M.
        starts: how many vectors.
        seed: for reproducible lower bounds; None draws from the operating system, as upper bounds need.
        basis_bytes: memory for the vectors (in float32) from which the Ritz vector of the first start is made.
    """

    def __init__(self, gram: Gram, starts: int = 1, seed: int | None = None, basis_bytes: float = 1e9) -> None:
        generator = torch.Generator()
        generator.seed() if seed is None else generator.manual_seed(seed)
        self.gram = gram
        self._keep = max(2, int(basis_bytes / (4 * gram.size)))
        gaussian = torch.randn(starts, gram.size, generator=generator, dtype=torch.float64)
        self._current = gaussian / torch.linalg.vector_norm(gaussian, dim=1, keepdim=True)
        self._previous = torch.zeros_like(self._current)
        self._last = torch.zeros(starts, dtype=torch.float64)
        self._alphas: list[NDArray[np.float64]] = []
        self._betas: list[NDArray[np.float64]] = []
        self._basis: list[Tensor] = []
        self._lengths: list[int | None] = [None] * starts

    @property
    def starts(self) -> int:
        """How many vectors there are."""
        return len(self._lengths)

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return len(self._alphas)

    @property
    def finished(self) -> bool:
        """Whether every start has found an invariant subspace."""
        return all(length is not None for length in self._lengths)

    def step(self) -> None:
        """One step of all starts."""
        if len(self._basis) < self._keep:
            self._basis.append(self._current[0].to(torch.float32))
        w = self.gram(self._current) - self._last[:, None] * self._previous
        alpha = (w * self._current).sum(dim=1)
        w -= alpha[:, None] * self._current
        beta = torch.linalg.vector_norm(w, dim=1)
        self._alphas.append(alpha.numpy())
        self._betas.append(beta.numpy())
        for start, value in enumerate(beta.tolist()):
            if self._lengths[start] is None and not value > BREAKDOWN:
                self._lengths[start] = self.steps
        # Finished starts go on with zeros, which nobody reads.
        active = torch.tensor([length is None for length in self._lengths])
        safe = torch.where(active, beta, 1.0)
        self._previous, self._current = self._current, torch.where(active[:, None], w / safe[:, None], 0.0)
        self._last = torch.where(active, beta, 0.0)

    def coefficients(self, start: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """a_1..a_k and b_1..b_k of one start, k being the number of steps it took."""
        length = self._lengths[start] or self.steps
        return (
            np.array([a[start] for a in self._alphas[:length]]),
            np.array([b[start] for b in self._betas[:length]]),
        )

    def ritz_value(self, start: int = 0) -> float:
        """The largest eigenvalue of one T: an estimate of M's from below."""
        return float(torch.linalg.eigvalsh(_tridiagonal(*self.coefficients(start)))[-1])

    def ritz_vector(self) -> tuple[Tensor, float]:
        """The vector of the first start's largest Ritz value, in float32 accuracy, and the norm of its residual."""
        alphas, betas = self.coefficients(0)
        k = min(len(alphas), len(self._basis))
        _, vectors = torch.linalg.eigh(_tridiagonal(alphas[:k], betas[:k]))
        weights = vectors[:, -1].tolist()
        total = torch.zeros(self.gram.size, dtype=torch.float64)
        for weight, vector in zip(weights, self._basis, strict=False):
            total += weight * vector
        return total, abs(float(betas[k - 1] * weights[-1]))


def _tridiagonal(alphas: NDArray[np.float64], betas: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1))


def converge(recurrence: Recurrence, accuracy: float, steps: int, stop: Callable[[], bool]) -> Tensor:
    """Steps until the residual of the Ritz vector is below `accuracy` times its value; returns the Ritz vector."""
    while True:
        for _ in range(CHECK_EVERY):
            if not recurrence.finished:
                recurrence.step()
        vector, residual = recurrence.ritz_vector()
        done = residual <= accuracy * recurrence.ritz_value()
        if done or recurrence.finished or recurrence.steps >= steps or stop():
            return vector


def tail(alphas: NDArray[np.float64], betas: NDArray[np.float64], value: float) -> tuple[float, float]:
    """Upper bounds of `1/p_k(value)` and `sum_j R_1j(value)`; infinite if `value` is not proved to be above T's
    eigenvalues.

    Pivots from the top give the first, pivots from the bottom the second:
    `sum_j R_1j = (1 + b_1 (1 + b_2 (..)/e_3)/e_2)/e_1` with `e_k = value - a_k`, `e_j = value - a_j - b_j^2/e_{j+1}`.
    """
    a, b = alphas.tolist(), betas.tolist()
    reciprocal, carried = 1.0, 0.0
    for alpha, beta in zip(a, b, strict=True):
        pivot = down(down(value - alpha) - carried)
        if not pivot > 0:
            return math.inf, math.inf
        reciprocal = max(up(reciprocal * up(beta / pivot)), SMALLEST)
        carried = up(up(beta * beta) / pivot)
    total, carried = 0.0, 0.0
    for j in range(len(a) - 1, -1, -1):
        pivot = down(down(value - a[j]) - carried)
        if not pivot > 0:
            return math.inf, math.inf
        total = up(up(1.0 + (up(b[j] * total) if j + 1 < len(a) else 0.0)) / pivot)
        carried = up(up(b[j - 1] * b[j - 1]) / pivot) if j > 0 else 0.0
    return reciprocal, total


def starts_for(failure: float) -> int:
    """How many starting vectors a failure probability asks for."""
    return max(1, math.ceil(math.log(failure) / math.log(SMALLEST_PROBABILITY) - 1e-9))


def local_error(gram: Gram) -> float:
    """The local error eta of the module's derivation, without slack."""
    return up(gram.error + 16 * UNIT_ROUNDOFF * gram.bound)


class Criterion:
    """The demand of the module's derivation, for a number of starts.

    Args:
        recurrence: the starts.
        failure: the probability that all of them together may fail with.
        head_room: by how much the term that the random vectors decide must be smaller than demanded.
        slack: by how much the term of the rounding errors is enlarged.
    """

    def __init__(
        self,
        recurrence: Recurrence,
        failure: float,
        head_room: float = HEAD_ROOM,
        slack: float = SLACK * ROUNDING_HEAD_ROOM,
    ) -> None:
        size = recurrence.gram.size
        share = failure ** (1 / recurrence.starts) * (1 - 1e-14)  # the root and pi below are within a few roundings
        unit = (size + 8) * UNIT_ROUNDOFF
        self.threshold = share * math.sqrt(math.pi / (2 * size)) * (1 - 1e-14) - unit
        self._first = head_room * (1 + 2 * unit)
        self._second = up(slack * local_error(recurrence.gram))
        self._recurrence = recurrence

    def sides(self, value: float) -> list[tuple[float, float]]:
        """For each start the two terms of the left side at the (scaled) eigenvalue, with head room and slack."""
        result = []
        for start in range(self._recurrence.starts):
            alphas, betas = self._recurrence.coefficients(start)
            in_range = max(alphas.max(), betas.max()) <= 1.1 * self._recurrence.gram.bound
            first, second = tail(alphas, betas, value) if in_range else (math.inf, math.inf)
            result.append((up(self._first * first), up(self._second * second)))
        return result

    def meets(self, value: float) -> bool:
        """Whether the demand is met by every start: then the largest eigenvalue is at most `value` (scaled)."""
        return all(up(first + second) <= self.threshold for first, second in self.sides(value))

    def stuck(self, value: float) -> bool:
        """Whether rounding errors alone break the demand, so that further steps do not help."""
        return any(first <= self.threshold < second for first, second in self.sides(value))


def prove_lanczos(
    recurrence: Recurrence, failure: float, tolerance: float, steps: int, stop: Callable[[], bool]
) -> Proof | None:
    """A bound about `1 + tolerance` above the norm, true with probability `1 - failure`; a larger one, or None, if
    steps run out.

    Args:
        recurrence: with `starts_for(failure)` starts drawn from the operating system.
        failure: the probability that may be lost.
        tolerance: relative width asked for.
        steps: how many steps may be taken in all.
        stop: asked between steps; when it says yes, the best bound reached is returned.
    """
    criterion = Criterion(recurrence, failure)
    if criterion.threshold <= 0:
        return None
    while True:
        if recurrence.steps % CHECK_EVERY == 0 or recurrence.finished:
            # The lower bound will be that of the first start.
            goal = recurrence.ritz_value() * (1.0 + 0.95 * tolerance) ** 2 if recurrence.steps > 0 else math.inf
            if recurrence.steps > 0 and (criterion.meets(goal) or recurrence.finished or criterion.stuck(goal)):
                break
        if recurrence.steps >= steps or (recurrence.steps > 0 and stop()):
            break
        recurrence.step()
    ritz = max(map(recurrence.ritz_value, range(recurrence.starts)))
    value = _smallest(criterion, ritz, recurrence.gram.bound, stop)
    if value is None:
        return None
    evidence: dict[str, object] = {
        "kind": "lanczos",
        "side": recurrence.gram.side,
        "starts": recurrence.starts,
        "steps": recurrence.steps + recurrence.steps // 4 + CHECK_EVERY,
        "failure": {"float": float(failure).hex()},
    }
    return Proof(up(recurrence.gram.unscaled(up(math.sqrt(value)))), evidence, failure)


def _smallest(criterion: Criterion, ritz: float, bound: float, stop: Callable[[], bool]) -> float | None:
    """The smallest value above the Ritz value, to 1e-3 of the excess, that meets the criterion; None if there is none
    below twice `bound`, if the Ritz value is not a positive number, or if time runs out beyond twice the Ritz value.
    """
    if not (ritz > 0 and math.isfinite(ritz)):
        return None
    excess = 1e-12
    for _ in range(MOST_ENLARGEMENTS):
        if criterion.meets(ritz * (1 + excess)):
            break
        excess *= 4
        if not ritz * (1 + excess) <= 2 * bound or (excess > 1 and stop()):
            return None
    else:
        return None
    low, high = excess / 4, excess
    for _ in range(12):
        if stop():
            break
        middle = (low + high) / 2
        low, high = (low, middle) if criterion.meets(ritz * (1 + middle)) else (middle, high)
    return ritz * (1 + high)
