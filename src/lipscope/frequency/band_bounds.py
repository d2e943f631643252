"""Proved bounds of band gains: `|f(x + P_b h) - f(x)| <= K_b |P_b h|` for all x and h, in l2.

The proof is that of the network with the band's basis before it (`basis.py`). Only steps that begin at the input differ from
the proof of the plain network, so they are the only ones that are done again for a band. For a first layer that is circular
with stride 1 its step is the largest norm of the layer's symbol over the band (the composed operator is block-diagonal in
frequency). K_b is never above the bound K of the plain network, whose claim covers all directions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lipscope.bounds.auto import METHODS, best, gathered
from lipscope.bounds.method import Candidate, Effort, LayerRow, Proof, Step
from lipscope.bounds.problem import NoBound, Problem, pose
from lipscope.bounds.product import with_room
from lipscope.bounds.quadratic.certify import proved_constant
from lipscope.bounds.quadratic.elimination import smallest_rho
from lipscope.bounds.quadratic.forms import OutOfRange, piece
from lipscope.bounds.segments import between, segment
from lipscope.bounds.unbounded import prove_unbounded
from lipscope.certificate.result import Result, Upper
from lipscope.claims.claim import Claim
from lipscope.claims.directions import Directions
from lipscope.claims.errors import UsageError
from lipscope.claims.progress import Progress, silent
from lipscope.claims.rounding import product_up, sqrt_up, sum_up
from lipscope.frequency.bands import Bands
from lipscope.frequency.basis import PREFIX, affordable, directed, error
from lipscope.frequency.layout import Layout
from lipscope.frequency.unit_multipliers import by_unit, proof_seconds
from lipscope.network.graph import Graph, finite_weights
from lipscope.network.nodes import Add, Array, Concat, Sort
from lipscope.operator_norm import enclose
from lipscope.operator_norm.cholesky import SMALL, assemble, plan, prove_cholesky
from lipscope.operator_norm.gram import gram
from lipscope.operator_norm.sums import absolute_sums
from lipscope.rules.linear_map import LinearMap
from lipscope.rules.questions import join

FAILURE = 1e-9
"""The largest probability with which the randomised norms of one band's proof may be wrong."""

TINY_NORM = 1e-7
"""Norms below this share of Schur's bound are not resolved: the square of a norm is what is computed."""


@dataclass(frozen=True)
class BandBounds:
    """Proved bounds: of the whole network, and of every band.

    Attributes:
        total: the bound K for all directions.
        bands: for each band the bound K_b, at most K. A band without a proof of its own has the plain claim.
        interrupted: whether the user stopped the search or the checks: bands that were not reached have the plain claim.
    """

    total: Result
    bands: tuple[Result, ...]
    interrupted: bool = False

    @property
    def results(self) -> dict[str, Result]:
        """All of them by the names of their bundles: total, band-0, ..."""
        return {"total": self.total, **{f"band-{i}": result for i, result in enumerate(self.bands)}}

    def checked(self, progress: Progress = silent) -> BandBounds:
        """The same with the statuses that the independent checker gives them; interrupted, those that it came to."""
        done: dict[int, Result] = {}
        stopped = self.interrupted
        wanted = list({id(result): result for result in (self.total, *self.bands)}.values())
        try:
            for i, result in enumerate(wanted):
                done[id(result)] = result.checked(_part(progress, i, len(wanted)))
        except KeyboardInterrupt:
            stopped = True
        total, *found = (done.get(id(result), result) for result in (self.total, *self.bands))
        return BandBounds(total, tuple(found), stopped)


def prove_band_bounds(
    graph: Graph,
    layout: Layout,
    bands: Bands,
    budget: float = 30.0,
    method: str = "auto",
    *,
    agreement: Sequence[tuple[Array, Array]] = (),
    dtype: str = "float64",
    progress: Progress = silent,
) -> BandBounds:
    """Upper bounds of the network's constant and of its band gains, proved for the weights as stored.

    Args:
        graph: the network.
        layout: where the grid is in its input.
        bands: of that grid.
        budget: seconds for the search, half of them for the plain network.
        method: auto, or the name of one method.
        agreement: inputs and outputs of the source model, stored as evidence.
        dtype: in what precision they were computed.
        progress: called with what is being done and the share that is done.

    Interrupted by the user it returns what was reached: see `BandBounds.interrupted`.

    Raises:
        UsageError: the bands are of another grid than the input, or there is no such method.
        KeyboardInterrupt: stopped before there was a bound.
    """
    if bands.grid != layout.grid:
        raise UsageError(f"expected bands of the input's grid {list(layout.grid)}, got bands of {list(bands.grid)}")
    finite_weights(graph)
    began = time.monotonic()
    problem = pose(graph, Claim())
    effort = Effort(deadline=began + budget / 2, failure=FAILURE, progress=progress)
    found, stopped = gathered(problem, effort, method)
    total = _result(problem, tuple(found), began, agreement, dtype)
    results = [_smaller(None, total, began, agreement, dtype)] * bands.count
    late = list(range(bands.count))
    try:
        movable = [] if stopped else [moved for c in found if (moved := by_unit(problem, c)) is not None]
        # At first all share what the plain network left; what is left over goes to those that need more of their part of the budget.
        for first in () if stopped else (True, False):
            waiting, late = late, []
            for place, i in enumerate(waiting):
                progress(f"proving band {i + 1} of {bands.count}", place / len(waiting))
                now = time.monotonic()
                left = max(0.0, began + budget - now)
                share = left / (len(waiting) - place) if first else min(left, budget / bands.count)
                restricted = Directions(bands.masks[i].numpy(), layout.shape, layout.axes)
                own, skipped = _band(problem, movable, restricted, replace(effort, deadline=now + share), first)
                results[i] = _smaller(own, total, now, agreement, dtype)
                late += [i] if skipped else []
    except KeyboardInterrupt:
        stopped = True
    return BandBounds(total, tuple(results), stopped)


def _result(
    problem: Problem, found: tuple[Candidate, ...], began: float, agreement: Sequence[tuple[Array, Array]], dtype: str
) -> Result:
    winner = best(list(found))
    unbounded = prove_unbounded(problem) if winner is None and problem.claim.directions is None else None
    if winner is not None:
        upper = Upper(winner.value, winner.method, "computed", winner.failure)
    else:
        blocked = next((c.blocked for c in found if c.blocked is not None), None)
        node = problem.graph.output if blocked is None else blocked.node
        reason = "; ".join(c.note for c in found) if blocked is None else blocked.reason
        status = "no-bound"
        if unbounded is not None:
            node, reason, status = unbounded.node, unbounded.reason, "unbounded"
        name = problem.graph.nodes[node].name
        upper = Upper(None, "none", status, node=node, layer=name, reason=reason)  # type: ignore[arg-type]
    return Result(
        problem, upper, winner, unbounded, None, found, tuple(agreement), dtype, time.monotonic() - began,
    )  # fmt: skip


def _smaller(
    own: tuple[Problem, Candidate] | None,
    total: Result,
    began: float,
    agreement: Sequence[tuple[Array, Array]],
    dtype: str,
) -> Result:
    """The band's result; that of the plain network where it is not larger, or the band has none."""
    if own is not None and (total.found.value is None or (own[1].value or 0.0) < total.found.value):
        return _result(own[0], (own[1],), began, agreement, dtype)
    if total.found.status != "unbounded":
        return total
    # That the network has no constant says nothing of one band.
    found = Upper(None, "none", "no-bound", node=total.found.node, layer=total.found.layer, reason=total.found.reason)
    return replace(total, found=found, unbounded=None)


def _band(
    problem: Problem, found: Sequence[Candidate], directions: Directions, effort: Effort, search: bool
) -> tuple[tuple[Problem, Candidate] | None, bool]:
    """The smallest bound of one band, from the proofs of the plain network, and with `search` from methods that reach the input.

    The second is whether a proof was left out because it would have taken too long.
    """
    if not affordable(directions.mask):
        return None, False
    composed = Problem(
        problem.stored,
        directed(problem.graph, directions),
        replace(problem.claim, directions=directions),
        torch.zeros((0, problem.graph.input_size), dtype=torch.float64),
    )
    options: list[Candidate | None] = []
    skipped = False
    # Proofs that begin with norms cost next to nothing; those with multipliers from the input cost more, in this order.
    for candidate in sorted(found, key=_reaches_input):
        if candidate.value is None or candidate.proof is None:
            continue
        if any(step.rule not in RULES for step in candidate.proof.steps):
            continue
        if not _reaches_input(candidate):
            options.append(_Band(composed, effort).candidate(candidate, _moved(candidate.proof.steps, composed)))
            continue
        steps = _moved(candidate.proof.steps, composed)
        seconds = proof_seconds(composed, steps)
        if options and time.monotonic() + seconds > effort.deadline:
            skipped = True
            continue
        options.append(_Band(composed, effort).candidate(candidate, steps))
        method = next((m for m in METHODS if m.name == candidate.method), None)
        if (
            not search
            or method is None
            or time.monotonic() + max(candidate.seconds, SEARCH * seconds) > effort.deadline
        ):
            continue
        again = by_unit(composed, method.run(composed, effort))
        if again is not None and again.value is not None and again.proof is not None:
            options.append(_Band(composed, effort).candidate(again, again.proof.steps))
    valued = [option for option in options if option is not None]
    return min(((composed, c) for c in valued), key=lambda pair: pair[1].value or 0.0, default=None), skipped


RULES = ("segment", "quadratic", "gain", "join")
"""The rules of proofs that can be moved behind a basis; all of them speak of differences alone."""

SEARCH = 4.0
"""How many times as long as their proof the search for multipliers takes, at least."""


def _reaches_input(candidate: Candidate) -> bool:
    """Whether a proof takes the input together with nonlinear layers, so that a band needs more than a new norm."""
    steps = () if candidate.proof is None else candidate.proof.steps
    return any(step.rule == "quadratic" and step.start == 0 for step in steps)


def _moved(steps: Sequence[Step], composed: Problem) -> list[Step]:
    """The steps of a proof of the plain network, moved behind the basis; those from the input still lack their norms."""
    moved = []
    for step in steps:
        evidence = step.evidence
        if evidence is not None and isinstance(multipliers := evidence.get("multipliers"), dict):
            evidence = {**evidence, "multipliers": {str(int(k) + PREFIX): v for k, v in multipliers.items()}}
        start = None if step.start is None else step.start + PREFIX
        if start == PREFIX:
            start, evidence = 0, evidence if step.rule == "quadratic" else None
        norm = step.norm if start != 0 else None  # to be found
        moved.append(replace(step, node=step.node + PREFIX, start=start, norm=norm, evidence=evidence))
    if any(PREFIX in composed.graph.nodes[step.node].inputs and step.start is None for step in moved):
        moved.insert(0, Step(PREFIX, "segment", 0.0, 0, None))
    return moved


def _part(progress: Progress, number: int, count: int) -> Progress:
    """The progress of one of several checks, as that of all of them."""
    return lambda message, share: progress(f"bound {number + 1} of {count}: {message}", (number + share) / count)


@dataclass
class _Band:
    """The composition of a proof about one band."""

    problem: Problem
    effort: Effort
    failure: float = 0.0

    def candidate(self, source: Candidate, steps: Sequence[Step]) -> Candidate | None:
        """The bound that the steps give, those from the input enlarged by what the basis's rounding may cost."""
        began = time.monotonic()
        graph = self.problem.graph
        known = {0: 1.0} | {i: 0.0 for i in range(len(graph)) if self.problem.constant[i]}
        done, rows = [], []
        try:
            for step in steps:
                node = graph.nodes[step.node]
                if step.start == 0:
                    own, known[step.node], row = self._first(step)
                    rows += [row] if row is not None else []
                elif step.norm is not None:
                    own = step
                    start = node.inputs[0] if step.start is None else step.start
                    known[step.node] = product_up(step.norm, known[start])
                else:
                    own = step
                    known[step.node] = join(node, "l2", tuple(known[i] for i in node.inputs), None)
                done.append(replace(own, constant=known[step.node]))
        except (NoBound, OutOfRange, KeyError):
            return None
        value = with_room(known[graph.output], len(done))
        if not math.isfinite(value):
            return None
        # Of the steps that were replaced the probabilities of failure are counted, too: no more than twice the truth.
        failure = sum_up([source.failure, self.failure])
        return Candidate(
            source.method, value, time.monotonic() - began, Proof(source.method, tuple(done)), failure, tuple(rows)
        )

    def _first(self, step: Step) -> tuple[Step, float, LayerRow | None]:
        """A step from the input: its norm for the rounded basis with room for the checker's basis, and its constant."""
        mask = self.problem.claim.directions
        assert mask is not None
        slack = product_up(error(int(mask.mask.sum())), amplification(self.problem, step))
        row = None
        if step.rule == "quadratic" and step.norm is None:
            step = replace(step, norm=_again(self.problem, step))
        elif step.norm is None:
            linear_map = segment(self.problem, 0, step.node).map
            lower, norm, evidence, failure = _enclosed(linear_map, self.effort)
            self.failure = sum_up([self.failure, failure])
            step = replace(step, rule="segment", norm=norm, evidence=evidence)
            name = self.problem.graph.nodes[step.node].name
            row = LayerRow(f"band, {name}", "band, first layers", lower, norm, str(evidence["kind"]))
        assert step.norm is not None
        norm = sum_up([step.norm, 4 * slack])
        return replace(step, norm=norm), sum_up([norm, 2 * slack]), row


def _again(problem: Problem, step: Step) -> float:
    """The constant that multipliers found for all directions prove for the band."""
    assert step.evidence is not None
    multipliers = step.evidence["multipliers"]
    assert isinstance(multipliers, dict)
    part = piece(problem, 0, step.node)
    values = np.concatenate([multipliers[str(owner)] for owner, _ in part.owners])
    with np.errstate(all="ignore"):
        rho = smallest_rho(part.stacked.reduced_input(), values)
        norm = proved_constant(part, values, rho) if math.isfinite(rho) else None
    if norm is None:
        name = problem.graph.nodes[step.node].name
        raise NoBound(step.node, name, "the multipliers could not be proved for the band")
    return norm


def _enclosed(linear_map: LinearMap, effort: Effort) -> tuple[float, float, dict[str, object], float]:
    """(lower, upper, evidence, failure) of a map from a band, also where the band is nearly cancelled by the layer."""
    found = enclose(linear_map, "l2", tolerance=1e-6, failure=FAILURE / 4, deadline=effort.deadline)
    if found.upper <= 1.01 * found.lower or found.upper == 0:
        return found.lower, found.upper, found.evidence, found.failure
    sums = absolute_sums(linear_map)
    order = plan((gram(linear_map, "input", sums), gram(linear_map, "output", sums)), 2e11, 2e9)
    if order is not None and (order.axis is None or order.gram.size <= SMALL):
        floor = max(found.lower, TINY_NORM * sqrt_up(product_up(*sums)))
        with torch.no_grad():
            proof = prove_cholesky(order, assemble(order), floor)
        if proof is not None and proof.upper < found.upper:
            return found.lower, proof.upper, proof.evidence, 0.0
    return found.lower, found.upper, found.evidence, found.failure


def amplification(problem: Problem, step: Step) -> float:
    """M: a bound of the constant of the part between the network's own input and a step's end.

    Schur's bound of a segment's operator; for several layers the root of the product of their l1 and linf constants, node
    by node, which bounds the l2 norm of every Jacobian (Riesz and Thorin).
    """
    if step.node == PREFIX:
        return 1.0
    if step.rule == "segment":
        columns, rows = absolute_sums(segment(problem, PREFIX, step.node).map)
        return sqrt_up(product_up(columns, rows))
    known: dict[int, tuple[float, float]] = {PREFIX: (1.0, 1.0)}
    for index in between(problem, PREFIX, step.node):
        node = problem.graph.nodes[index]
        parts = [known[i] for i in node.inputs if i in known]
        if isinstance(node, Add | Concat):
            known[index] = sum_up(p[0] for p in parts), sum_up(p[1] for p in parts)
        elif isinstance(node, Sort):
            known[index] = parts[0]
        else:
            source = next(i for i in node.inputs if i in known)
            own = absolute_sums(segment(problem, source, index).map)
            known[index] = product_up(own[0], parts[0][0]), product_up(own[1], parts[0][1])
    return sqrt_up(product_up(*known[step.node]))
