"""Rows (linf) and columns (l1) of a cell's Jacobian, each by the smaller of an interval and a quadratic inequality.

With w_j what unit j reads, slopes in [a_j, b_j], multipliers l_j > 0 and `A = sum_j l_j ((e_j - a_j w_j)(e_j - b_j w_j)^T + its transpose)`,
which is not positive along (x, u) for any slopes of the cell:

* linf, row f of the output: `diag(q) + A - f^T f >= 0` proves `|f u|^2 <= sum_i q_i x_i^2 <= sum q` for `|x|_inf <= 1`.
* l1, column i: on the entry x_i alone, with the output F and numbers r_k > 0, `q x_i^2 + A - F^T diag(r^2) F >= 0` proves
  `sum_k r_k^2 (F u)_k^2 <= q x_i^2`, and by Cauchy and Schwarz `|F u|_1^2 <= q sum_k r_k^-2` for `|x_i| <= 1`.

Both have the form of l2's inequality (`leaf`); the search for the best numbers is that of the method `local`
(`quadratic.sum_search`), here begun at the parent's: a decided unit only leaves a subspace, on which they stay feasible. An inequality
is about the units that move with the entries of x in question and reach the rows in question; others are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lipscope.bounds.branch.exact import Matrix, OutOfRange
from lipscope.bounds.branch.forms import Forms
from lipscope.bounds.branch.leaf import quadratic_holds
from lipscope.bounds.branch.multipliers import stacked, stakes
from lipscope.bounds.quadratic.elimination import Infeasible
from lipscope.bounds.quadratic.sum_search import Point, search
from lipscope.bounds.quadratic.wanted import Wanted
from lipscope.claims.norms import Norm
from lipscope.claims.rounding import gamma, sqrt_up, up

TOLERANCE = 1e-6
"""Relative gap at which the search for a row stops: what is left is closed by splitting."""

MARGIN = 2e-4
"""How far below what is enough the search goes on, relatively: cells that are closed should not all end just there."""

COARSE = 2e-3
"""The same where the row will be split anyway."""

ROOM = 1e-8
"""What q is enlarged by, relatively: the search may end where rounding hides that the matrix is definite."""

WARM = 0.005
"""The least gap at which the search on a cell's parts begins: a point nearer to the optimum is too near the boundary to be moved."""

MOST_SIZE = 300
"""Entries of x, units and outputs of an inequality; the matrices of larger ones would take seconds."""


Centre = tuple[dict[int, float], dict[int, float], dict[int, float], float]


@dataclass(frozen=True, eq=False)
class RowProof:
    """What an inequality proves of one row or column.

    Attributes:
        square: `sum q` or `q sum r^-2`, rounded up.
        q: by entry of x.
        r: by output; 1 in linf.
        values: the multipliers by unit.
        evidence: whether r (l1) or q (linf) stands in a bundle.
        centre: q, p and multipliers by the same keys, and the gap, where the search on parts of the cell begins.
    """

    square: float
    q: dict[int, float]
    r: dict[int, float]
    values: dict[int, float]
    evidence: str
    centre: Centre | None = None

    @property
    def bound(self) -> float:
        """What the sum of the row's entries is at most."""
        return sqrt_up(self.square)

    @property
    def numbers(self) -> list[float]:
        """What stands in a bundle: multipliers by unit, then q or r in order."""
        weights = self.q if self.evidence == "q" else self.r
        return [known[k] for known in (self.values, weights) for k in sorted(known)]


@dataclass(frozen=True, eq=False)
class Stakes:
    """Units to split.

    Attributes:
        units: the units.
        shares: between 0 and 1 for each, where its slope lies in its range at the worst differences.
        weights: how much is at stake at each.
    """

    units: Sequence[int]
    shares: Matrix
    weights: Matrix


@dataclass(frozen=True, eq=False)
class Rows:
    """What is proved of all rows of a cell.

    Attributes:
        bound: of the largest.
        proofs: those that were found, by row.
        live: whether the largest has live units: if not its bound is exact, for all points of the cell.
        stakes: of the largest, None where it has no proof by multipliers.
    """

    bound: float
    proofs: dict[int, RowProof] = field(default_factory=dict)
    live: bool = False
    stakes: Stakes | None = None


@dataclass(frozen=True, eq=False)
class _Line:
    """The inequality of one row or column, without numbers: entries of x, units and outputs in it, and coefficients."""

    forms: Forms
    norm: Norm
    inputs: list[int]
    units: list[int]
    outputs: list[int]
    reads: Matrix
    output: Matrix
    slopes: Matrix

    def point(self, centre: Centre | None) -> Point | None:
        """A point by keys as one of this inequality, None if it is not about all its units."""
        if centre is None or not set(self.units) <= set(centre[2]):
            return None
        q, p, values = (np.array([own[k] for k in keys]) for own, keys in zip(centre[:3], self._keys, strict=True))
        return Point(q, p, values, centre[3])

    def centre(self, point: Point) -> Centre:
        """A point by keys."""
        q, p, values = (dict(zip(k, own.tolist(), strict=True)) for k, own in zip(self._keys, point[:3], strict=True))
        return q, p, values, point.gap

    @property
    def _keys(self) -> tuple[list[int], list[int], list[int]]:
        return self.inputs, self.outputs, self.units

    def again(self, proof: RowProof) -> RowProof | None:
        """The proof of a cell around this one, tried on this one."""
        if not set(self.units) <= set(proof.values):
            return None
        q, r = (np.array([own[k] for k in keys]) for own, keys in ((proof.q, self.inputs), (proof.r, self.outputs)))
        found = self.proof(Point(q, 1 / r**2, np.array([proof.values[u] for u in self.units])), ROOM)
        return None if found is None else replace(found, centre=proof.centre)

    def proof(self, point: Point, room: float) -> RowProof | None:
        """What a point of the search proves, q being enlarged by some room; None if it is not proved to."""
        q, p, values, _ = point
        least = float(p.min())
        r = np.maximum(np.sqrt(least / p), 1e-15)
        q, values = q * least * (1 + room), values * least
        if not quadratic_holds(self.reads, r[:, None] * self.output, self.slopes, values, q):
            return None
        total = float(q.sum()) if self.norm == "linf" else float(q[0] * (1 / r**2).sum())
        square = up(total * (1 + 4 * gamma(len(q) + len(r) + 8)))
        by_q, by_r, by_unit = (
            dict(zip(k, v.tolist(), strict=True)) for k, v in zip(self._keys, (q, r, values), strict=True)
        )
        return RowProof(square, by_q, by_r, by_unit, "q" if self.norm == "linf" else "r")

    def stakes(self, proof: RowProof) -> Stakes:
        """What the multipliers of a proof say about its units."""
        q, r, values = (np.array(list(known.values())) for known in (proof.q, proof.r, proof.values))
        return Stakes(self.units, *stakes(self.reads, r[:, None] * self.output, self.slopes, values, q))


def row_bounds(
    forms: Forms, norm: Norm, intervals: Sequence[float], known: Mapping[int, RowProof], target: float, deadline: float
) -> Rows:
    """A proved bound of every row's (l1: column's) sum; rows that are not the largest need not have good ones.

    Args:
        forms: the cell.
        norm: l1 or linf.
        intervals: bounds of all rows.
        known: proofs on the cell's parent, by row.
        target: a bound that needs no improvement.
        deadline: `time.monotonic()` at which searches stop.
    """
    if max(intervals, default=0.0) <= target:
        return Rows(max(intervals, default=0.0))
    before = [min(size, known[k].bound if k in known else math.inf) for k, size in enumerate(intervals)]
    proofs: dict[int, RowProof] = {}
    worst, largest, own = 0.0, -1, None
    for k in sorted(range(len(intervals)), key=lambda k: (-before[k], k)):
        bound, line = intervals[k], None
        enough = max(target, worst)
        if bound > enough:
            line = _line(forms, norm, k)
            found = None if line is None else _found(line, known.get(k), enough, deadline)
            if found is not None:
                proofs[k] = found
                bound = min(bound, found.bound)
        if largest < 0 or bound > worst:
            worst, largest, own = bound, k, line
    if own is None:
        return Rows(worst, proofs, bool(_units(forms, norm, largest)))
    return Rows(worst, proofs, True, own.stakes(proofs[largest]) if largest in proofs else None)


def _units(forms: Forms, norm: Norm, index: int) -> list[int]:
    """The units that count for a row or column."""
    if norm == "linf":
        return forms.live_between(range(forms.inputs), [index])
    return forms.live_between([index], range(len(forms.output)))


def _line(forms: Forms, norm: Norm, index: int) -> _Line | None:
    """The inequality of a row or column; None if no unit counts (its interval is a point), it is too large, or out of range."""
    units = _units(forms, norm, index)
    if not units:
        return None
    every = range(forms.inputs)
    inputs, outputs = (every, [index]) if norm == "linf" else ([index], range(len(forms.output)))
    try:
        reads, output = forms.inequality(inputs, units, outputs)
    except OutOfRange:
        return None
    if norm == "linf":  # entries of x that nobody reads, and outputs that read nothing, are left out
        used = (reads[:, : len(inputs)] != 0).any(0) | (output[:, : len(inputs)] != 0).any(0)
        inputs = np.flatnonzero(used).tolist()
        kept = np.append(used, np.ones(len(units), dtype=bool))
        reads, output = reads[:, kept], output[:, kept]
    else:
        outputs = np.flatnonzero((output != 0).any(1)).tolist()
        output = output[outputs]
    if len(inputs) + len(units) + len(outputs) > MOST_SIZE:
        return None
    return _Line(forms, norm, list(inputs), units, list(outputs), reads, output, forms.slope_ends(units))


def _found(line: _Line, known: RowProof | None, enough: float, deadline: float) -> RowProof | None:
    """The best proof that the search finds, or the parent's where that is enough."""
    start = None if known is None else line.point(known.centre)
    with np.errstate(all="ignore"):
        if known is not None and known.bound <= enough:
            same = line.again(known)
            if same is not None and same.bound <= enough:
                return same
        network = stacked(line.forms, line.units, line.reads, line.output, line.slopes)
        wanted = Wanted(deadline, enough * (1 - MARGIN), TOLERANCE, COARSE)
        try:
            path = search(network, wanted, start)
        except (Infeasible, np.linalg.LinAlgError, ValueError):
            path = []
        offers = [*reversed(path[-3:]), *([] if start is None else [start])]
        for point in offers:
            proof = line.proof(point, ROOM)
            if proof is not None:
                warm = min([p for p in path if p.gap >= WARM], key=lambda p: p.gap, default=offers[-1])
                return replace(proof, centre=line.centre(warm))
    return None
