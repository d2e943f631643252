"""Evidence `lanczos`: a bound of the norm with a stated probability, from random vectors drawn here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from flint import arb, ctx

from lipcheck.bundle import finite_real, integer
from lipcheck.errors import Rejected
from lipcheck.functions import arb_down, arb_up
from lipcheck.norms import scaled
from lipcheck.rounding import TINY, Floats, U, frobenius_up, gamma
from lipcheck.segments import Operator


def threshold(failure: float, starts: int, size: int) -> float:
    """A lower bound of `delta = p^(1/r) sqrt(pi/(2N))`.

    A coordinate of a uniform unit vector in dimension N >= 3 has a density of at most sqrt((N-1)/(2 pi)), so it is
    below delta in absolute value with probability at most `delta sqrt(2N/pi) = p^(1/r)`; for N = 2 that is
    `2/pi asin(delta)`, smaller; for N = 1 it is 0 as delta < 1, `p^(1/r) <= 1/2` being demanded.
    """
    with ctx.workprec(120):
        share = arb(failure).root(starts)
        if not share <= arb(0.5):
            raise Rejected("expected a probability of failure below 2^-starts")
        return arb_down(share * (arb.pi() / (2 * size)).sqrt())


def residue(alphas: Sequence[float], betas: Sequence[float], last: float, eta: float, level: float) -> float:
    """An upper bound of `|<q, v_1>|` for a unit eigenvector q with eigenvalue at least `level`; inf if none is proved.

    With `y_j = <q, v_j>` and `(lambda - T) y = beta_k y_{k+1} e_k + g`, `|g_j| <= eta`:
    `|y_1| <= R_{1k} beta_k |v_{k+1}| + eta sum_j R_{1j}`, where `R = (lambda - T)^-1` has positive entries that fall in
    lambda above the largest eigenvalue of T. The trailing pivots `e_k = lambda - alpha_k`,
    `e_j = lambda - alpha_j - beta_j^2/e_{j+1}` are all positive exactly there, and
    `R_11 = 1/e_1, R_{1,j+1} = R_{1j} beta_j/e_{j+1}`.
    """
    k = len(alphas)
    with ctx.workprec(200):
        pivots = [arb(0)] * k
        for j in reversed(range(k)):
            below = arb(betas[j]) ** 2 / pivots[j + 1] if j + 1 < k else arb(0)
            pivots[j] = arb(level) - arb(alphas[j]) - below
            if not pivots[j] > 0:
                return math.inf
        entry, total = arb(1), arb(0)
        for j in range(k):
            entry = entry * (arb(betas[j - 1]) if j else 1) / pivots[j]
            total += entry
        return arb_up(entry * arb(betas[k - 1]) * arb(last) + arb(eta) * total)


def _gram(operator: Operator, side: str, x: Floats) -> Floats:
    if side == "input":
        return operator.adjoint(operator.apply(x))
    return operator.apply(operator.adjoint(x))


def _start(operator: Operator, side: str, level: float, delta: float, steps: int, local: tuple[float, float],
           generator: np.random.Generator) -> None:  # fmt: skip
    """One random start vector.

    Local error of `M v_j = beta_{j-1} v_{j-1} + alpha_j v_j + beta_j v_{j+1}`: `local[0] |v_j| + local[1]` from the
    product with M, 2u of the norms in each of the two subtractions, 2u beta_j |v_{j+1}| from the division. What alpha
    and beta are does not matter: they are the numbers of the recurrence.

    Raises:
        Rejected: within the allowed steps the vector does not show the bound.
    """
    shape = operator.shapes[0 if side == "input" else 1]
    size = math.prod(shape)
    v = generator.standard_normal((1, *shape))
    v = v / np.sqrt((v * v).sum())
    alphas: list[float] = []
    betas: list[float] = []
    before, eta, best = np.zeros_like(v), 0.0, math.inf
    for step in range(1, steps + 1):
        w = _gram(operator, side, v)
        beta = betas[-1] if betas else 0.0
        error = local[0] * frobenius_up(v) + local[1] + 2 * U * beta * frobenius_up(before)
        w = w - beta * before
        alpha = float((w * v).sum())
        error += 2 * U * (frobenius_up(w) + abs(alpha) * frobenius_up(v))
        w = w - alpha * v
        length = float(np.sqrt((w * w).sum()))
        size_w = frobenius_up(w)
        error += 2 * U * size_w + size * TINY
        stop = not length > 1e-250
        before, v = v, (np.zeros_like(v) if stop else w / length)
        if stop:
            error, length = error + size_w, 0.0
        last = frobenius_up(v)
        error += 2 * U * length * last
        eta = max(eta, error * (1 + 1e-10))
        alphas.append(alpha)
        betas.append(length)
        if stop or step % 10 == 0 or step == steps:
            found = residue(alphas, betas, last, eta, level)
            # v_1 is a unit vector up to gamma_N relative and u absolute.
            best = (found + 4 * U) * (1 + 4 * gamma(size + 4))
            if best <= delta:
                return
        if stop:
            break
    raise Rejected(f"a random vector shows only that its component is below {best:.3g}, not {delta:.3g}")


def prove_lanczos(operator: Operator, t: float, evidence: dict[str, Any], generator: np.random.Generator) -> float:
    """`|L| <= t` unless all `starts` random vectors have a tiny component along the top singular vector.

    Returns:
        The probability of that.

    Raises:
        Rejected: not proved.
    """
    side = evidence["side"]
    if side not in ("input", "output"):
        raise Rejected("expected side input or output")
    starts = integer(evidence["starts"], "starts", 1, 1000)
    steps = integer(evidence["steps"], "steps", 1, 100_000)
    failure = finite_real(evidence["failure"], "failure")
    if not 0 < failure < 1:
        raise Rejected(f"expected a probability of failure between 0 and 1, got {failure}")
    if t == 0:
        raise Rejected("lanczos proves no bound 0")
    small, t = scaled(operator, t)
    n1, ninf = small.sums()
    (f, e_f), (b, e_b) = small.forward(), small.backward()
    if side == "output":
        e_f, e_b, own = e_b, e_f, ninf
    else:
        own = n1
    size = math.prod(small.shapes[0 if side == "input" else 1])
    local = 2 * gamma(f + b) * n1 * ninf, 2 * math.sqrt(size) * (2 * own * e_f + e_b) * (1 + 1e-10)
    delta = threshold(failure, starts, size)
    level = math.nextafter(t * t, 0.0)  # lambda_1 > t^2 would be above it
    for _ in range(starts):
        _start(small, side, level, delta, 10 + steps + steps // 2, local, generator)
    return failure
