"""One cell: is it empty, what bounds the Jacobian there, and on which unit is it to be split.

Where to split. The multipliers' worst differences say on which piece each live unit would lie (in l1 and linf those of the largest
row or column, and where it has none a few rounds of single changes). If some point lies on all these pieces, it attains about the bound, and the unit that is least sure of its
piece is split. If none does, the inequalities that exclude it name the units to split: their cell will be empty.
A unit that is not live is split only if the inequality of a decided unit waits for it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from lipscope.bounds.branch.empty import Key
from lipscope.bounds.branch.exact import Matrix, OutOfRange
from lipscope.bounds.branch.forms import Forms, forms_in
from lipscope.bounds.branch.implied import Void, narrowed
from lipscope.bounds.branch.leaf import entrywise_sums, spectral_bound
from lipscope.bounds.branch.multipliers import Centre, quadratic
from lipscope.bounds.branch.points import Evaluator, operator_norm
from lipscope.bounds.branch.rows import RowProof, Stakes, row_bounds
from lipscope.bounds.branch.skeleton import Cell, Skeleton
from lipscope.bounds.branch.steering import Meeting, meeting
from lipscope.claims.norms import Norm

NEARLY = 0.8
"""Points with less than this share of the best gain are no places to climb from."""

Split = tuple[int, int]
"""A unit and the number of one of its thresholds."""


@dataclass(frozen=True, eq=False)
class Finding:
    """What is known of a cell.

    Attributes:
        kind: `empty`, `norm` (the Jacobian itself proves the bound), `quadratic` (multipliers do), `rows` (the sums of its rows or columns do, each by
            intervals or multipliers) or `nothing`.
        bound: proved; inf for `nothing`.
        empty: the multipliers of an empty cell.
        values: the multipliers of the live units in l2.
        centre: where the search on the cell's parts begins in l2.
        intervals: a bound of each row's (l1: column's) sum by intervals.
        rows: what multipliers prove of some rows.
        split: where to split; None where splitting cannot help.
        reached: a computed norm of the Jacobian at some point of the domain.
        point: that point.
        voids: what was taken from the cell, since no points lie there; all of this is about the rest.
        points: columns, points of the rest.
    """

    kind: Literal["empty", "norm", "quadratic", "rows", "nothing"]
    bound: float
    empty: dict[Key, int] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)
    centre: Centre | None = None
    intervals: tuple[float, ...] = ()
    rows: dict[int, RowProof] = field(default_factory=dict)
    split: Split | None = None
    reached: float = 0.0
    point: Matrix | None = None
    voids: Sequence[Void] = ()
    points: Matrix | None = None

    def settled(self) -> Finding:
        """Without what only the search on its parts needs."""
        rows = {k: replace(proof, centre=None) for k, proof in self.rows.items()}
        return replace(self, centre=None, rows=rows, voids=(), points=None)


@dataclass(frozen=True, eq=False)
class Task:
    """A cell to examine, with what is known of its parent; below `target` nobody needs to split it."""

    cell: Cell
    parent: Finding | None
    target: float
    deadline: float


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # in a process of its own, too
def examine(skeleton: Skeleton, norm: Norm, evaluator: Evaluator, task: Task) -> Finding:
    """What is known of a cell."""
    points = None if task.parent is None else task.parent.points
    rest = narrowed(forms_in(skeleton, task.cell), np.zeros((skeleton.inputs, 0)) if points is None else points)
    forms = rest.forms
    about = functools.partial(replace, voids=rest.voids, points=rest.points)
    if rest.answer.proof is not None:
        return about(Finding("empty", 0.0, empty=rest.answer.proof))
    reached = _Reached(evaluator, task.target)
    reached.offer(rest.answer.point)
    try:
        found = (_squares if norm == "l2" else _sums)(forms, norm, task)
    except OutOfRange:
        found = None
    if found is None:
        return about(Finding("nothing", np.inf, split=_first_live(forms), reached=reached.value, point=reached.point))
    finding, stakes = found
    split = None
    if finding.bound > task.target:
        split = _split(forms, stakes, reached) if stakes is not None else _waiting(forms)
    return about(finding, split=split, reached=reached.value, point=reached.point)


def _squares(forms: Forms, norm: Norm, task: Task) -> tuple[Finding, Stakes | None] | None:
    """The bound in l2, and where it can be improved."""
    if not forms.live:
        bound = spectral_bound(forms)
        return None if bound is None else (Finding("norm", bound), None)
    inherited = None if task.parent is None else task.parent.centre
    found = quadratic(forms, inherited, task.target * task.target, task.deadline)
    if found is None:
        return None
    values = dict(zip(forms.live, found.values.tolist(), strict=True))
    return Finding("quadratic", found.bound, values=values, centre=found.centre), Stakes(
        forms.live, found.shares, found.weights
    )


def _sums(forms: Forms, norm: Norm, task: Task) -> tuple[Finding, Stakes | None]:
    """The bound in l1 or linf, and where it can be improved."""
    intervals = entrywise_sums(forms, norm)
    known = {} if task.parent is None else task.parent.rows
    found = row_bounds(forms, norm, intervals, known, task.target, task.deadline)
    finding = Finding("rows", found.bound, intervals=tuple(intervals), rows=found.proofs)
    if found.bound <= task.target or not found.live:
        return finding, None
    return finding, found.stakes or _entrywise_stakes(forms, norm)


@dataclass
class _Reached:
    """The best Jacobian met."""

    evaluator: Evaluator
    known: float
    value: float = 0.0
    point: Matrix | None = None

    def offer(self, point: Matrix | None) -> None:
        if point is None:
            return
        value = self.evaluator.gain(point)
        inner = self.evaluator.domain.pulled(point[:, None])[:, 0]
        if self.evaluator.gain(inner) >= value:  # a witness needs room around it
            point = inner
        if value > max(NEARLY * self.known, self.value):
            point = self.evaluator.climb(point)
            value = self.evaluator.gain(point)
        if value > self.value:
            self.value, self.point = value, point


def _first_live(forms: Forms) -> Split | None:
    return (forms.live[0], forms.cell.low[forms.live[0]]) if forms.live else None


def _waiting(forms: Forms) -> Split | None:
    """An open unit that the inequality of a decided one reads."""
    root, cell = forms.skeleton.root, forms.cell
    for unit in range(len(forms.rows)):
        if (cell.low[unit], cell.high[unit]) != (root.low[unit], root.high[unit]):
            waits = forms.waits(unit)
            if waits:
                return waits[0], cell.low[waits[0]]
    return None


def _split(forms: Forms, stakes: Stakes, reached: _Reached) -> Split:
    """See the module."""
    units, shares, weights = stakes.units, stakes.shares, stakes.weights
    guess = {unit: _piece(forms, unit, share) for unit, share in zip(units, shares, strict=True)}
    stake = dict(zip(units, (weights * np.minimum(shares, 1 - shares)).tolist(), strict=True))
    lost = dict(zip(units, (weights * np.maximum(shares, 1 - shares)).tolist(), strict=True))
    pattern = forms.cell
    layers = [own for layer in forms.skeleton.layers if (own := [u for u in layer.units if u in guess])]
    for k, own in enumerate(layers):
        for unit in own:
            pattern = pattern.above(unit, guess[unit] - 1) if guess[unit] > pattern.low[unit] else pattern
            pattern = pattern.below(unit, guess[unit]) if guess[unit] < pattern.high[unit] else pattern
        found = meeting(reached.evaluator, forms.cell, pattern) if k == 0 else Meeting()
        if not found.conflict:  # with what deeper units read in the pattern
            found = meeting(reached.evaluator, pattern, pattern)
        reached.offer(found.point)
        if found.conflict:
            named = [u for u in found.conflict if u in guess]
            pool = named or [u for u in units if u <= own[-1]]
            return _threshold(forms, max(pool, key=lambda u: (lost[u], -u)), guess)
    best = max(units, key=lambda u: (stake[u], lost[u], -u))
    return _threshold(forms, best, guess)


def _threshold(forms: Forms, unit: int, guess: dict[int, int]) -> Split:
    return unit, guess[unit] - 1 if guess[unit] > forms.cell.low[unit] else guess[unit]


def _piece(forms: Forms, unit: int, share: float) -> int:
    """The piece whose slope is nearest."""
    low, high = forms.slopes(unit)
    wanted = float(low) + share * float(high - low)
    slopes = forms.skeleton.pieces_of_unit[unit].slopes
    candidates = range(forms.cell.low[unit], forms.cell.high[unit] + 1)
    return min(candidates, key=lambda p: (abs(float(slopes[p]) - wanted), p))


def _entrywise_stakes(forms: Forms, norm: Norm) -> Stakes:
    """A vertex of the slopes with a large norm (shares 0 or 1), and what each unit may contribute to the norm."""
    live, inputs = forms.live, forms.inputs
    reads, output = forms.inequality_of_all()
    slopes = forms.slope_ends(live)

    def jacobian(chosen: Matrix) -> Matrix:
        rows = np.zeros((len(live), inputs))
        for i in range(len(live)):
            rows[i] = chosen[i] * (reads[i, :inputs] + reads[i, inputs:] @ rows)
        result: Matrix = output[:, :inputs] + output[:, inputs:] @ rows
        return result

    side = np.argmax(np.abs(slopes), axis=1)
    units = np.arange(len(live))
    best = operator_norm(jacobian(slopes[units, side]), norm)
    improved = True
    while improved:
        improved = False
        for i in units:
            side[i] = 1 - side[i]
            value = operator_norm(jacobian(slopes[units, side]), norm)
            if value > best * (1 + 1e-12):
                best, improved = value, True
            else:
                side[i] = 1 - side[i]
    largest = np.abs(slopes).max(1)
    forward = np.zeros((len(live), inputs))
    for i in units:
        forward[i] = np.abs(reads[i, :inputs]) + np.abs(reads[i, inputs:]) @ (largest[:, None] * forward)
    backward = np.abs(output[:, inputs:])
    for i in reversed(units):
        backward = backward + np.outer(backward[:, i] * largest[i], np.abs(reads[i, inputs:]))
    order = (backward.max(0), forward.sum(1)) if norm == "linf" else (backward.sum(0), forward.max(1))
    return Stakes(live, side.astype(np.float64), (slopes[:, 1] - slopes[:, 0]) * order[0] * order[1])
