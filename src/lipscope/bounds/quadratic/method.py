"""`eclipse-fast`, `eclipse` and `lipsdp`: quadratic bounds of the parts of a network, composed with the product bound between them."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lipscope.bounds.method import Candidate, Effort, LayerRow, Method, Proof, Step
from lipscope.bounds.problem import Problem
from lipscope.bounds.product import composed, with_room
from lipscope.bounds.quadratic.certify import proved_constant
from lipscope.bounds.quadratic.chain_newton import climb
from lipscope.bounds.quadratic.closed_form import chain_weights, eclipse, eclipse_fast
from lipscope.bounds.quadratic.elimination import Infeasible, norm_start, repaired, smallest_rho
from lipscope.bounds.quadratic.forms import OutOfRange, Piece, piece
from lipscope.bounds.quadratic.newton import Optimum, minimise
from lipscope.bounds.quadratic.stacked import Stacked, Vector
from lipscope.bounds.quadratic.torus import Torus
from lipscope.bounds.quadratic.torus_axes import NoTorus
from lipscope.bounds.quadratic.torus_parts import bound_part, torus_windows
from lipscope.bounds.quadratic.windows import Window, affordable, cheapest, cubes, gates, windows

ROOMS = (1e-8, 0.01, 0.1)
"""By how much multipliers from the boundary are enlarged, relatively: as little as a proof needs, or so much that the closed form gains by it: up to a fifth."""

INSIDE = (0.01,)
"""The same for where a search begins: nearer to the boundary its first steps would be short."""


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

    portion = 0.5
    """Of the time left, what the closed forms and the proofs of all parts may take."""

    at_once = False
    """Whether a network that is one part is bounded without its norms first, which on deep narrow networks take as long as all else."""

    def accepts(self, problem: Problem) -> str | None:
        """l2; where no part fits, the bound is the product of norms."""
        return None if problem.norm == "l2" else f"quadratic constraints bound the l2 norm, not {problem.norm}"

    def search(self, problem: Problem, effort: Effort) -> Candidate:
        """The product bound with every part replaced by its quadratic bound where that is smaller."""
        began = time.monotonic()
        alone = self._alone(problem, effort, began) if self.at_once and "product" not in problem.shared else None
        if alone is not None:
            return alone
        composition = composed(problem, _half(effort))
        product = composition.known
        steps = {step.node: step for step in composition.steps}
        rows = dict(composition.layers)
        passed = [i for i in gates(problem, composition.anchor) if i in product]
        images = [] if min(product[i] for i in passed) == 0 else self.images(problem, passed, effort)
        chosen = self._in_time(problem, effort)
        notes = [] if chosen or images else [self._nothing(problem, passed, effort)]
        found: dict[tuple[int, int], Step] = {}
        parts: list[Torus | Window] = [*images, *chosen]
        for number, part in enumerate(parts):
            effort.progress(f"{self.name}: part {number + 1} of {len(parts)}", number / len(parts))
            if product[part.end] == 0:  # nothing gets through, and nothing is below 0
                continue
            share = _share(effort, len(parts) - number)
            if isinstance(part, Window):
                seconds = _seconds(problem, part)
                if seconds > max(ALWAYS, effort.deadline - time.monotonic()):
                    notes.append(f"no time left for the part from node {part.start} to {part.end}")
                    continue
                # What comes after the search is not interrupted: what its multipliers promise, and the proof.
                step = self._bound(problem, part, replace(share, deadline=share.deadline - seconds / 2), notes)
            else:
                share = _share(effort, len(images) - number + bool(chosen))
                step = _on_torus(part, share, notes)
            if step is not None:
                found[part.start, part.end] = min(
                    step, found.get((part.start, part.end), step), key=lambda s: s.constant
                )
        for window in cheapest(passed, product, found):
            _take(problem, window, found[window.start, window.end], steps, rows)
        if (chosen or images) and not any(step.rule == "quadratic" for step in steps.values()):
            notes.append("no part improves on the product of norms, which this is")
        ordered = tuple(steps[i] for i in sorted(steps))
        return Candidate(
            self.name, composition.recompose(ordered), time.monotonic() - began, Proof(self.name, ordered),
            composition.failure, tuple(rows[i] for i in sorted(rows)), "; ".join(notes), composition.interrupted,
        )  # fmt: skip

    def _alone(self, problem: Problem, effort: Effort, began: float) -> Candidate | None:
        """The bound where one part is the whole network and nothing vanishes on the way; None where there is more to it."""
        output, notes = problem.graph.output, list[str]()
        chosen = self._in_time(problem, effort)
        if [(w.start, w.end) for w in chosen] != [(0, output)] or any(problem.constant[i] for i in problem.reaching):
            return None
        effort.progress(f"{self.name}: the whole network", 0.0)
        try:
            with np.errstate(all="ignore"):
                part = piece(problem, 0, output)
                small = part.stacked.reduced_input()
                norms = float(np.sqrt(smallest_rho(small, norm_start(small, 1.0))))
        except (OutOfRange, Infeasible, np.linalg.LinAlgError, ArithmeticError, ValueError):
            return None
        step = self._bound(problem, chosen[0], effort, notes, part)
        if step is None or not VANISHING < step.constant < norms * (1 - GAIN):
            return None
        names = [n.name for i in sorted(problem.reaching) if (n := problem.graph.nodes[i]).affine and n.parameters()]
        row = LayerRow(
            " + ".join(dict.fromkeys(names)), f"{len(names)} layers together", None, step.constant, "quadratic"
        )
        value = with_room(step.constant, 1)
        return Candidate(
            self.name, value, time.monotonic() - began, Proof(self.name, (step,)), layers=(row,), note="; ".join(notes)
        )

    def images(self, problem: Problem, passed: list[int], effort: Effort) -> list[Torus]:
        """Parts made of convolutions that are bounded frequency by frequency; none unless a method says otherwise."""
        del problem, passed, effort
        return []

    def _in_time(self, problem: Problem, effort: Effort) -> list[Window]:
        """Parts as long as they can be if closed form and proof of all of them are to take this method's portion of the time left."""
        allowed = max(self.portion * (effort.deadline - time.monotonic()), ALWAYS)
        limit = self.limit
        chosen = windows(problem, limit, effort.memory)
        while sum(_seconds(problem, w) for w in chosen) > allowed:
            limit = int(limit * SHORTER)
            chosen = windows(problem, limit, effort.memory)
        return chosen

    def _nothing(self, problem: Problem, passed: list[int], effort: Effort) -> str:
        """Why there is no part."""
        if effort.memory is not None:
            more = replace(effort, memory=None)
            if windows(problem, self.limit) or self.images(problem, passed, more):
                return f"no part of the network fits into --memory {effort.memory} bytes; this is the product of norms"
        return NO_PART

    def _bound(
        self, problem: Problem, window: Window, effort: Effort, notes: list[str], part: Piece | None = None
    ) -> Step | None:
        """The step that bounds a part, if its multipliers can be found and proved."""
        try:
            # Overflow on the way to multipliers is no harm: what is not finite is not proved.
            with np.errstate(all="ignore"):
                part = part or piece(problem, window.start, window.end)
                offers = [*self.multipliers(part.stacked, effort), *_shared(problem, part)]
                found = _best_proved(part, offers)
        except OutOfRange as reason:
            notes.append(str(reason))
            return None
        except (Infeasible, np.linalg.LinAlgError, ArithmeticError, ValueError) as failure:
            notes.append(f"no multipliers found ({type(failure).__name__})")
            return None
        if found is None:
            notes.append("the multipliers found could not be proved in float64")
            return None
        t, offer, promised = found
        if t > promised * (1 + COARSE):
            notes.append(f"the best multipliers found promise {promised:.6g}, which could not be proved in float64")
        if offer.note:
            notes.append(offer.note)
        return Step(part.end, "quadratic", t, part.start, t, _evidence(part, offer.values))

    @abstractmethod
    def multipliers(self, network: Stacked, effort: Effort) -> list[Offer]:
        """Multipliers to be proved; the best that can be is taken."""


def _on_torus(torus: Torus, effort: Effort, notes: list[str]) -> Step | None:
    """The step that bounds a part by frequencies, if its multipliers can be found and proved."""
    try:
        with np.errstate(all="ignore"):
            found = bound_part(torus, effort)
    except (NoTorus, np.linalg.LinAlgError, ValueError) as failure:
        notes.append(f"no multipliers found on the torus ({type(failure).__name__}: {failure})")
        return None
    if found is None:
        notes.append("the multipliers found on the torus could not be proved in float64")
        return None
    nodes = torus.problem.graph.nodes
    notes.append(
        f"by frequency, one multiplier a channel, from {nodes[torus.start].name!r} to {nodes[torus.end].name!r}"
    )
    return found


VANISHING = 1e-200
"""Bounds below are left to the norms: they know what is 0, and what float64 cannot hold."""

GAIN = 1e-3
"""How much below the product of norms, relatively, a bound has to be for the norms not to be needed."""

SECONDS = 4e-10
"""About what the matrices of a part, the closed form and the proof take, times `cubes`."""

ALWAYS = 0.1
"""Parts that take so little time are bounded whatever time is left."""

SHORTER = 0.85
"""By how much the largest size falls until the parts fit into the time."""


def _seconds(problem: Problem, part: Window) -> float:
    """About what the closed form and the proof of a part take: a count of operations, whatever else the machine does."""
    return SECONDS * cubes(problem, part)


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


def _half(effort: Effort) -> Effort:
    """Half of the time that is left: norms that are still to be found then are the cheap ones."""
    now = time.monotonic()
    return replace(effort, deadline=now + (effort.deadline - now) / 2)


def _share(effort: Effort, parts: int) -> Effort:
    """This part's share of the time that is left."""
    now = time.monotonic()
    return replace(effort, deadline=now + (effort.deadline - now) / parts)


def _best_proved(part: Piece, offers: list[Offer]) -> tuple[float, Offer, float] | None:
    """The smallest constant that is proved, its multipliers, and what the best ones promise; offers that cannot be below it are not tried."""
    small = part.stacked.reduced_input()
    promised = sorted((smallest_rho(small, o.values), i) for i, o in enumerate(offers))
    best: tuple[float, Offer] | None = None
    for rho, i in promised:
        if not np.isfinite(rho) or (best is not None and np.sqrt(rho) >= best[0]):
            break
        t = proved_constant(part, offers[i].values, rho)
        if t is not None and (best is None or t < best[0]):
            best = t, offers[i]
    return None if best is None else (*best, float(np.sqrt(promised[0][0])))


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


def _start(network: Stacked, rooms: Sequence[float] = ROOMS) -> tuple[float, Vector]:
    """The better of the closed form and the norms."""
    best = norm_start(network)
    rho = smallest_rho(network, best)
    closed = _feasible(network, eclipse_fast(network), rooms)
    return min((rho, best), closed, key=lambda pair: pair[0])


def _feasible(network: Stacked, values: Vector | None, rooms: Sequence[float] = ROOMS) -> tuple[float, Vector]:
    """What multipliers prove once they are a little inside; infinity for None."""
    if values is None:
        return float("inf"), np.zeros(network.units)
    found = [repaired(network, values, room) for room in rooms]
    return min(found, key=lambda pair: pair[0])


class EclipseFast(Quadratic):
    """ECLipsE-Fast (arXiv 2404.04375): multipliers in closed form; where it does not hold, norms layer by layer."""

    name = "eclipse-fast"
    portion = 0.15
    at_once = True

    def multipliers(self, network: Stacked, effort: Effort) -> list[Offer]:
        """Closed-form multipliers."""
        del effort
        return [Offer(_start(network)[1])]


class Eclipse(Quadratic):
    """ECLipsE (arXiv 2404.04375): each layer's best multipliers after those before it; for chains, others as `eclipse-fast`."""

    name = "eclipse"
    at_once = True

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

    def images(self, problem: Problem, passed: list[int], effort: Effort) -> list[Torus]:
        """Those that fit."""
        return torus_windows(problem, passed, effort)

    def multipliers(self, network: Stacked, effort: Effort) -> list[Offer]:
        """The points on the way to the optimum; the remark estimates the gap to it, where one is known."""
        small = network.reduced_input()
        rho, values = _start(small, INSIDE)
        fits = _interior_bytes(small) <= affordable(effort.memory)
        chain = chain_weights(small) is not None
        if chain and (not fits or _deep(small)):
            return [Offer(values), *_by_chain(small, effort)]
        if not fits:
            return [Offer(values, "too large for the best multipliers, and no chain of layers: the closed form")]
        share = _half(effort) if chain else effort
        path = minimise(small, 1.05 * rho, values, tolerance=1e-8, deadline=share.deadline)
        closed = Offer(values, "" if path else "the interior-point method found no point inside: the closed form")
        inside = [closed, *(Offer(o.values, _gap(o)) for o in _spread(path))]
        lost = chain and min((o.gap for o in path), default=np.inf) > LOST
        return [*inside, *_by_chain(small, effort)] if lost else inside


def _spread(path: list[Optimum]) -> list[Optimum]:
    """The last point, and earlier ones at growing distances in rho: the nearer to the optimum, the less room for a proof."""
    found: list[Optimum] = []
    for point in reversed(path):
        if not found or point.rho >= found[-1].rho * (1 + NEAREST * 5 ** (len(found) - 1)):
            found.append(point)
    return found


NEAREST = 1e-9
"""Relative distance in rho between the last points that are offered; the next ones are five times as far apart each time."""

LOST = 2e-4
"""The relative gap in rho above which a search that has ended is not the last."""

LARGE = 2500
"""Above this size a step of the interior-point method takes longer than many truncated Newton steps."""

MANY, DEEP = 400, 60
"""With more units than this, and so many times the work of a pass over the layers, it takes longer than all of them."""


def _deep(network: Stacked) -> bool:
    """Whether truncated Newton steps, whose cost is linear in the depth, are the better choice for a chain."""
    passed = sum(layer.size**3 for layer in network.layers)
    return network.dimension > LARGE or (network.units > MANY and network.units**3 > DEEP * passed)


def _by_chain(network: Stacked, effort: Effort) -> list[Offer]:
    """The stages' multipliers, and what sweeps and Newton steps come to from them, or from the norms' where there are no stages."""
    now = time.monotonic()
    stages = _feasible(network, eclipse(network, now + (effort.deadline - now) / 2), INSIDE)
    values = stages[1] if stages[0] < np.inf else norm_start(network)
    rho = 1.05 * smallest_rho(network, values)
    path = climb(network, rho, values, effort.deadline, affordable(effort.memory))
    return [*([Offer(stages[1])] if stages[0] < np.inf else []), *(Offer(o.values, _gap(o)) for o in path[-4:])]


def _interior_bytes(network: Stacked) -> int:
    return 8 * 24 * network.dimension**2


def _gap(optimum: Optimum) -> str:
    share = 1 - np.sqrt(max(0.0, 1 - optimum.gap)) if optimum.gap < np.inf else 1.0
    if share < COARSE:
        return f"within about {share:.0e} of the best multipliers"
    words = ["the search for the best multipliers was stopped early"]
    if share < 1:
        words.append(f"they give less by about {100 * share:.0f} % at most")
    if optimum.likely is not None:
        words.append(f"by {optimum.likely / 2:.0e} as the search went on (an estimate)")
    return ": ".join([words[0], ", ".join(words[1:])]) if words[1:] else words[0]


COARSE = 0.01
"""The share of the bound above which a search counts as stopped early."""
