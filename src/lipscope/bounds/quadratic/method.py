"""`eclipse-fast`, `eclipse` and `lipsdp`: quadratic bounds of the parts of a network, composed with the product bound between them."""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import dataclass, replace

import numpy as np

from lipscope.bounds.method import Candidate, Effort, LayerRow, Method, Proof, Step
from lipscope.bounds.problem import Problem
from lipscope.bounds.product import composed
from lipscope.bounds.quadratic.certify import proved_constant
from lipscope.bounds.quadratic.chain_newton import climb
from lipscope.bounds.quadratic.closed_form import chain_weights, eclipse, eclipse_fast
from lipscope.bounds.quadratic.elimination import Infeasible, norm_start, repaired, smallest_rho
from lipscope.bounds.quadratic.forms import OutOfRange, Piece, piece
from lipscope.bounds.quadratic.newton import Optimum, minimise
from lipscope.bounds.quadratic.stacked import Stacked, Vector
from lipscope.bounds.quadratic.windows import Window, affordable, windows


@dataclass(frozen=True, eq=False)
class Offer:
    """Multipliers that may prove a bound.

    Attributes:
        values: one a unit.
        note: how good they are, in words.
    """

    values: Vector
    note: str = ""


class Quadratic(Method):
    """Base of the methods that bound parts of the network by quadratic constraints, in l2."""

    limit = 8000
    """The largest size of an inequality."""

    def accepts(self, problem: Problem) -> str | None:
        """l2; where no part fits, the bound is the product of norms."""
        return None if problem.norm == "l2" else f"quadratic constraints bound the l2 norm, not {problem.norm}"

    def search(self, problem: Problem, effort: Effort) -> Candidate:
        """The product bound with every part replaced by its quadratic bound where that is smaller."""
        began = time.monotonic()
        composition = composed(problem, effort)
        product = composition.known
        steps = {step.node: step for step in composition.steps}
        rows = dict(composition.layers)
        chosen = windows(problem, self.limit, effort.memory)
        notes = [] if chosen else [NO_PART]
        for number, window in enumerate(chosen):
            effort.progress(f"{self.name}: part {number + 1} of {len(chosen)}", number / len(chosen))
            factor = product[window.end] / product[window.start] if product[window.start] > 0 else 0.0
            if factor == 0:  # nothing gets through, and nothing is below 0
                continue
            found = self._bound(problem, window, _share(effort, len(chosen) - number), notes)
            if found is not None and found.constant < factor:
                _take(problem, window, found, steps, rows)
        if chosen and not any(step.rule == "quadratic" for step in steps.values()):
            notes.append("no part improves on the product of norms, which this is")
        ordered = tuple(steps[i] for i in sorted(steps))
        return Candidate(
            self.name, composition.recompose(ordered), time.monotonic() - began, Proof(self.name, ordered),
            composition.failure, tuple(rows[i] for i in sorted(rows)), "; ".join(notes), composition.interrupted,
        )  # fmt: skip

    def _bound(self, problem: Problem, window: Window, effort: Effort, notes: list[str]) -> Step | None:
        """The step that bounds a part, if its multipliers can be found and proved."""
        try:
            # Overflow on the way to multipliers is no harm: what is not finite is not proved.
            with np.errstate(all="ignore"):
                part = piece(problem, window.start, window.end)
                offers = [*self.multipliers(part.stacked, effort), *_shared(problem, part)]
                found = _best_proved(part, offers)
        except OutOfRange as reason:
            notes.append(str(reason))
            return None
        except (Infeasible, np.linalg.LinAlgError, ValueError) as failure:
            notes.append(f"no multipliers found ({type(failure).__name__})")
            return None
        if found is None:
            notes.append("the multipliers found could not be proved in float64")
            return None
        t, offer = found
        if offer.note:
            notes.append(offer.note)
        return Step(part.end, "quadratic", t, part.start, t, _evidence(part, offer.values))

    @abstractmethod
    def multipliers(self, network: Stacked, effort: Effort) -> list[Offer]:
        """Multipliers to be proved; the best that can be is taken."""


NO_PART = (
    "no part of the network fits: it needs entrywise functions or sorts between two nodes that every path passes, few "
    "enough for memory; this is the product of norms"
)


def _shared(problem: Problem, part: Piece) -> list[Offer]:
    """Multipliers that another claim about the same network has left for this part's units."""
    known = problem.shared.get("multipliers")
    if not isinstance(known, dict) or any(len(known.get(node, ())) != count for node, count in part.owners):
        return []
    return [Offer(np.concatenate([known[node] for node, _ in part.owners]), "by the multipliers of all outputs")]


def _share(effort: Effort, parts: int) -> Effort:
    """This part's share of the time that is left."""
    now = time.monotonic()
    return replace(effort, deadline=now + (effort.deadline - now) / parts)


def _best_proved(part: Piece, offers: list[Offer]) -> tuple[float, Offer] | None:
    """The smallest constant that is proved, and its multipliers; offers that cannot be below it are not tried."""
    small = part.stacked.reduced_input()
    promised = sorted((smallest_rho(small, o.values), i) for i, o in enumerate(offers))
    best: tuple[float, Offer] | None = None
    for rho, i in promised:
        if not np.isfinite(rho) or (best is not None and np.sqrt(rho) >= best[0]):
            break
        t = proved_constant(part, offers[i].values, rho)
        if t is not None and (best is None or t < best[0]):
            best = t, offers[i]
    return best


def _evidence(part: Piece, values: Vector) -> dict[str, object]:
    multipliers, first = {}, 0
    for owner, count in part.owners:
        multipliers[str(owner)] = values[first : first + count]
        first += count
    return {"kind": "quadratic", "multipliers": multipliers}


def _take(
    problem: Problem, window: Window, step: Step, steps: dict[int, Step], rows: dict[int, LayerRow]
) -> None:  # fmt: skip
    """Replace the steps inside a part, and their rows of the table, by the one that bounds it."""
    inside = [i for i in steps if window.start < i <= window.end]
    names = [rows.pop(i) for i in inside if i in rows]
    for i in inside:
        del steps[i]
    steps[window.end] = step
    rows[window.end] = LayerRow(
        " + ".join(dict.fromkeys(r.name for r in names)), f"{len(names)} layers together", None, step.constant, "quadratic",
    )  # fmt: skip


def _start(network: Stacked) -> tuple[float, Vector]:
    """The better of the closed form and the norms."""
    best = norm_start(network)
    rho = smallest_rho(network, best)
    closed = _feasible(network, eclipse_fast(network))
    return min((rho, best), closed, key=lambda pair: pair[0])


def _feasible(network: Stacked, values: Vector | None) -> tuple[float, Vector]:
    """What multipliers prove once they are a little inside; infinity for None."""
    if values is None:
        return float("inf"), np.zeros(network.units)
    inside = repaired(network, values * 1.001)
    return smallest_rho(network, inside), inside


class EclipseFast(Quadratic):
    """ECLipsE-Fast (arXiv 2404.04375): multipliers in closed form; where it does not hold, norms layer by layer."""

    name = "eclipse-fast"

    def multipliers(self, network: Stacked, effort: Effort) -> list[Offer]:
        """Closed-form multipliers."""
        del effort
        return [Offer(_start(network)[1])]


class Eclipse(Quadratic):
    """ECLipsE (arXiv 2404.04375): each layer's best multipliers after those before it; for chains, others as `eclipse-fast`."""

    name = "eclipse"

    def multipliers(self, network: Stacked, effort: Effort) -> list[Offer]:
        """Those of the stages, and the closed form, which greedy stages may miss."""
        small = network.reduced_input()
        offers = [Offer(_start(small)[1], "" if chain_weights(small) else "no chain of layers: the closed form")]
        rho, values = _feasible(small, eclipse(small, effort.deadline))
        return [Offer(values), *offers] if rho < float("inf") else offers


class LipSDP(Quadratic):
    """LipSDP-Neuron (arXiv 1906.04893): the best multipliers, one a unit.

    By the interior-point method where its matrices fit and are not too large, otherwise by truncated Newton steps, for chains of layers.
    """

    name = "lipsdp"

    def multipliers(self, network: Stacked, effort: Effort) -> list[Offer]:
        """The points on the way to the optimum; the remark estimates the gap to it, where one is known."""
        small = network.reduced_input()
        rho, values = _start(small)
        fits = _interior_bytes(small) <= affordable(effort.memory)
        if chain_weights(small) is not None and not (fits and small.dimension <= CHAIN_LIMIT):
            return [Offer(values), *_by_chain(small, effort.deadline)]
        if not fits:
            return [Offer(values, "too large for the best multipliers, and no chain of layers: the closed form")]
        path = minimise(small, 1.05 * rho, values, tolerance=1e-8, deadline=effort.deadline)
        return [Offer(values), *(Offer(o.values, _gap(o)) for o in path[-6:])]


CHAIN_LIMIT = 2500
"""Above this size an iteration of the interior-point method takes longer than many truncated Newton steps."""


def _by_chain(network: Stacked, deadline: float) -> list[Offer]:
    """The stages' multipliers, and what truncated Newton steps come to from the norms'.

    From the stages', which prove more but lie near the boundary, the steps take longer to the optimum.
    """
    now = time.monotonic()
    stages = _feasible(network, eclipse(network, now + (deadline - now) / 2))
    begin = norm_start(network)
    path = climb(network, 1.05 * smallest_rho(network, begin), begin, deadline)
    return [*([Offer(stages[1])] if stages[0] < np.inf else []), *(Offer(o.values, _gap(o)) for o in path[-4:])]


def _interior_bytes(network: Stacked) -> int:
    return 8 * 24 * network.dimension**2


def _gap(optimum: Optimum) -> str:
    if optimum.gap > 1:
        return "the search for the best multipliers was stopped early"
    return f"within about {optimum.gap / 2:.0e} of the best multipliers"
