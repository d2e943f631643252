"""`eclipse-fast` and `lipsdp`: quadratic bounds of the parts of a network, composed with the product bound between them."""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from lipscope.bounds.method import Candidate, Effort, LayerRow, Method, Proof, Step
from lipscope.bounds.problem import Problem
from lipscope.bounds.product import Composition
from lipscope.bounds.quadratic.certify import proved_constant
from lipscope.bounds.quadratic.closed_form import eclipse_fast
from lipscope.bounds.quadratic.elimination import Infeasible, norm_start, repaired, smallest_rho
from lipscope.bounds.quadratic.forms import OutOfRange, Piece, dimension, entries, open_units, piece, refusal
from lipscope.bounds.quadratic.newton import Optimum, minimise
from lipscope.bounds.quadratic.stacked import Stacked, Vector
from lipscope.bounds.segments import anchors, between
from lipscope.network.nodes import Elementwise, Node, Sort


@dataclass(frozen=True, eq=False)
class Offer:
    """Multipliers that may prove a bound.

    Attributes:
        values: one a unit.
        note: how good they are, in words.
    """

    values: Vector
    note: str = ""


@dataclass(frozen=True)
class Window:
    """A part of the network between two nodes that every path passes."""

    start: int
    end: int


def gates(problem: Problem, anchor: tuple[int, ...]) -> list[int]:
    """Where parts may begin and end: nodes that every path from the input to the output passes.

    Of these the input and the output, nonlinear nodes and joins, and what a node reads that no part may contain.
    """
    output, live = problem.graph.output, sorted(problem.reaching)
    readers = {i: [r for r in problem.graph.readers[i] if r in problem.reaching] for i in live}
    found, crossing = [], 0  # the last reader of everything so far: where it lies behind a node, paths lead around it
    for index in live:
        if problem.constant[index]:
            continue
        cut = any(not _may_contain(problem.graph.nodes[r]) for r in readers[index])
        if crossing <= index and (index in (0, output) or anchor[index] == index or cut):
            found.append(index)
        crossing = max(crossing, *readers[index], index)
    return found


def _may_contain(node: Node) -> bool:
    return node.affine or isinstance(node, (Elementwise, Sort))


class Quadratic(Method):
    """Base of the methods that bound parts of the network by quadratic constraints, in l2."""

    limit = 3000
    """The largest size of an inequality."""

    def accepts(self, problem: Problem) -> str | None:
        """l2, and at least one part with units between two nodes that every path passes."""
        if problem.norm != "l2":
            return f"quadratic constraints bound the l2 norm, not {problem.norm}"
        if not self.windows(problem):
            return "no part of the network fits: it needs entrywise functions or sorts between two nodes that every path passes, few enough for memory"
        return None

    def windows(self, problem: Problem) -> list[Window]:
        """Parts that do not overlap, each as long as it can be."""
        passed = gates(problem, anchors(problem))
        found, i = [], 0
        while i < len(passed) - 1:
            j = i + 1
            while j < len(passed) and self._fits(problem, passed[i], passed[j]):
                j += 1
            last = j - 1
            if last > i and any(open_units(problem, k) for k in between(problem, passed[i], passed[last])):
                found.append(Window(passed[i], passed[last]))
            i = max(last, i + 1)
        return found

    def _fits(self, problem: Problem, start: int, end: int) -> bool:
        return (
            refusal(problem, start, end) is None
            and dimension(problem, start, end) <= self.limit
            and entries(problem, start, end) * 8 <= 4e9
        )

    def search(self, problem: Problem, effort: Effort) -> Candidate:
        """The product bound with every part replaced by its quadratic bound where that is smaller."""
        began = time.monotonic()
        composition = Composition(problem, effort, anchors(problem))
        composition.constant(problem.graph.output)
        product = dict(composition.known)
        steps = {step.node: step for step in composition.steps}
        rows = dict(composition.layers)
        notes: list[str] = []
        chosen = self.windows(problem)
        for number, window in enumerate(chosen):
            effort.progress(f"{self.name}: part {number + 1} of {len(chosen)}", number / len(chosen))
            factor = product[window.end] / product[window.start] if product[window.start] > 0 else 0.0
            if factor == 0:  # nothing gets through, and nothing is below 0
                continue
            # Overflow on the way to multipliers is no harm: what is not finite is not proved.
            try:
                with np.errstate(all="ignore"):
                    found = self._bound(piece(problem, window.start, window.end), effort, notes)
            except OutOfRange as reason:
                notes.append(str(reason))
                continue
            if found is None or found[0] >= factor:
                continue
            t, step = found
            inside = [i for i in steps if window.start < i <= window.end]
            names = [rows.pop(i) for i in inside if i in rows]
            for i in inside:
                del steps[i]
            steps[window.end] = step
            rows[window.end] = LayerRow(
                " + ".join(dict.fromkeys(r.name for r in names)), f"{len(names)} layers together", None, t, "quadratic",
            )  # fmt: skip
        if not any(step.rule == "quadratic" for step in steps.values()):
            notes.append("no part improves on the product of norms")
            return Candidate(self.name, None, time.monotonic() - began, note="; ".join(notes))
        ordered = tuple(steps[i] for i in sorted(steps))
        value = composition.recompose(ordered)
        return Candidate(
            self.name, value, time.monotonic() - began, Proof(self.name, ordered), composition.failure,
            tuple(rows[i] for i in sorted(rows)), "; ".join(notes), composition.interrupted,
        )  # fmt: skip

    def _bound(self, part: Piece, effort: Effort, notes: list[str]) -> tuple[float, Step] | None:
        try:
            offers = self.multipliers(part.stacked, effort)
        except (Infeasible, np.linalg.LinAlgError, ValueError) as failure:
            notes.append(f"no multipliers found ({type(failure).__name__})")
            return None
        proved = [(t, o) for o in offers if (t := proved_constant(part, o.values)) is not None]
        if not proved:
            notes.append("the multipliers found could not be proved in float64")
            return None
        t, offer = min(proved, key=lambda pair: pair[0])
        values = offer.values
        if offer.note:
            notes.append(offer.note)
        multipliers, first = {}, 0
        for owner, count in part.owners:
            multipliers[str(owner)] = values[first : first + count]
            first += count
        return t, Step(part.end, "quadratic", t, part.start, t, {"kind": "quadratic", "multipliers": multipliers})

    @abstractmethod
    def multipliers(self, network: Stacked, effort: Effort) -> list[Offer]:
        """Multipliers to be proved; the best that can be is taken."""


def _start(network: Stacked) -> tuple[float, Vector]:
    """The better of the closed form and the norms."""
    best = norm_start(network)
    rho = smallest_rho(network, best)
    closed = eclipse_fast(network)
    if closed is not None:
        closed = repaired(network, closed * 1.001)
        other = smallest_rho(network, closed)
        if other < rho:
            return other, closed
    return rho, best


class EclipseFast(Quadratic):
    """ECLipsE-Fast (arXiv 2404.04375): multipliers in closed form; where it does not hold, norms layer by layer."""

    name = "eclipse-fast"

    def multipliers(self, network: Stacked, effort: Effort) -> list[Offer]:
        """Closed-form multipliers."""
        del effort
        return [Offer(_start(network)[1])]


class LipSDP(Quadratic):
    """LipSDP-Neuron (arXiv 1906.04893): the best multipliers, one a unit, by a barrier method."""

    name = "lipsdp"
    limit = 1600

    def multipliers(self, network: Stacked, effort: Effort) -> list[Offer]:
        """The points on the way to the optimum; the remark estimates the gap to it by the barrier's weight."""
        small = network.reduced_input()
        rho, values = _start(small)
        path = minimise(small, 1.05 * rho, values, tolerance=1e-8, deadline=effort.deadline)
        return [Offer(values), *(Offer(o.values, _gap(o)) for o in path[-6:])]


def _gap(optimum: Optimum) -> str:
    if np.isinf(optimum.gap):
        return "the barrier method was stopped off-centre"
    return f"within about {optimum.gap / 2:.0e} of the best multipliers"
