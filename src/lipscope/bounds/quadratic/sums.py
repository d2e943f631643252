"""Quadratic bounds in l1 and linf: one inequality for each row (linf) or column (l1) of the matrices of differences.

For any two inputs the difference of the end is M times that of the start, M with slopes in their ranges. With A the inequality's terms
on (start x, units u) without the output, F the output, and nonnegative numbers q, p (one for each entry of x, of F u),

    [[diag(q) + A, -F^T], [-F, diag(p)]] >= 0    gives    2 s^T F u <= x^T diag(q) x + s^T diag(p) s    for every vector s,

since A contributes at most 0 along every pair. For linf F is one row and |x| <= 1 entrywise: `|F u|^2 <= sum q sum p`. For l1 the network
reads one entry of x alone, and s = c sign(F u): `|F u|_1^2 <= sum q sum p` again. So `sum q + sum p` is minimised (`sum_search`).

The linf form is in GeoLIP (Wang et al., arXiv 2203.01212) for scalar outputs.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import LinAlgError

from lipscope.bounds.quadratic.certify import proved_form, proved_margin
from lipscope.bounds.quadratic.elimination import Infeasible
from lipscope.bounds.quadratic.forms import Piece
from lipscope.bounds.quadratic.stacked import Matrix, Stacked, Vector
from lipscope.bounds.quadratic.sum_search import search
from lipscope.bounds.quadratic.wanted import Wanted
from lipscope.claims.norms import Norm
from lipscope.claims.rounding import sqrt_up, up

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
                wanted = Wanted(now + (deadline - now) / (count - k), max(enough, 0.999 * worst), tolerance)
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


def _one(part: Piece, norm: Norm, index: int, wanted: Wanted) -> tuple[float, Vector, Vector] | None:
    """The bound of one row or column, its weights and multipliers."""
    network, positive = single(part.stacked, norm, index), single(part.absolute, norm, index)
    for q, p, values, _ in reversed(search(_visible(network, positive), wanted)):
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
