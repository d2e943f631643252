"""`local`: the entries of the difference matrices of parts of a network, enclosed; composed with the product bound between them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lipscope.bounds.local.cover import MOST_BOXES, covered
from lipscope.bounds.local.jacobian import Part, Range, Rows, Split
from lipscope.bounds.method import Candidate, Effort, LayerRow, Method, Proof, Step
from lipscope.bounds.problem import Problem
from lipscope.bounds.product import Composition
from lipscope.bounds.quadratic.forms import OutOfRange, dimension, piece
from lipscope.bounds.quadratic.forms import refusal as quadratic_refusal
from lipscope.bounds.quadratic.sums import bound_sums
from lipscope.bounds.segments import anchors, between
from lipscope.claims.norms import Norm
from lipscope.claims.rounding import gamma, product_up, up
from lipscope.network.nodes import Elementwise, Node
from lipscope.rules.affine import UNDERFLOW
from lipscope.rules.questions import absolute, evaluate, linear_part

SPEED = 100_000_000
"""Multiply-adds for each second that is left: a third of what one core does."""

MOST = 100_000_000_000
"""Multiply-adds that the enclosure of one part may take, however much time there is."""

MOST_SPLIT = 2_000_000_000
"""Multiply-adds that all choices of the split units together may take, however much time there is."""

MOST_UNITS = 10
"""Units that may be split."""

LEAST_UNITS = 4
"""Fewer are not split, unless there are no more: it would cost much and gain little."""

MOST_ROWS = 100
"""Rows (linf) or columns (l1) that get a quadratic inequality of their own."""

LARGEST_INEQUALITY = 600
"""The largest size of one: a step of its search takes the cube of it."""

COARSE = 1e-2
"""Relative gap of the quadratic search on one of many boxes."""

OWN_ROOM = 1e-9
"""Relative room that a bound leaves the checker, far above the rounding of both."""


@dataclass(frozen=True)
class LocalJacobian(Method):
    """Entrywise enclosures of difference matrices, and quadratic constraints on them row by row: for l1 and linf, everywhere or on a region.

    Attributes:
        boxes: the most boxes that a box may be cut into.
    """

    boxes: int = MOST_BOXES
    name = "local"

    def accepts(self, problem: Problem) -> str | None:
        """Networks with a part of affine nodes and functions between two nodes that every path passes."""
        if problem.claim.directions is not None:
            return "it knows no directions"
        if problem.norm == "l2":
            return "in l2 lipsdp takes the same slopes and is tighter"
        if not self.windows(problem):
            return "no part of the network fits: it needs functions of single entries between two nodes that every path passes, few enough to enclose every entry of the Jacobian"
        return None

    def windows(self, problem: Problem) -> list[tuple[int, int]]:
        """Parts that do not overlap, each as long as it can be."""
        passed = _gates(problem)
        found, i = [], 0
        while i < len(passed) - 1:
            last = next((j for j in range(len(passed) - 1, i, -1) if _fits(problem, passed[i], passed[j])), i)
            inside = between(problem, passed[i], passed[last])
            if any(isinstance(problem.graph.nodes[k], Elementwise) for k in inside):
                found.append((passed[i], passed[last]))
            i = max(last, i + 1)
        return found

    def search(self, problem: Problem, effort: Effort) -> Candidate:
        """The bound on the whole region, or on boxes that cover it where that is smaller."""
        began = time.monotonic()
        root = self.bounded(problem, effort)
        found = covered(problem, root, self.bounded, effort, self.boxes)
        return replace(found, seconds=time.monotonic() - began)

    def bounded(self, problem: Problem, effort: Effort, enough: float | None = None) -> Candidate:
        """The product bound with every part replaced by the norm of its enclosure where that is smaller.

        Args:
            problem: the claim.
            effort: what may be spent.
            enough: a bound that needs no improvement, where many such problems are to be solved quickly; None to do the best.
        """
        began = time.monotonic()
        composition = Composition(problem, replace(effort, progress=lambda message, share: None), anchors(problem))
        composition.constant(problem.graph.output)
        known = dict(composition.known)
        steps = {step.node: step for step in composition.steps}
        rows = dict(composition.layers)
        chosen = self.windows(problem)
        notes = []
        for number, (start, end) in enumerate(chosen):
            effort.progress(f"local: part {number + 1} of {len(chosen)}", number / len(chosen))
            factor = known[end] / known[start] if known[start] > 0 else 0.0
            if factor == 0:
                continue
            found = enclose_part(Part(problem, start, end), problem.norm, _first_share(effort), enough is None)
            quadratic = None
            if enough is None or not found.value * known[start] <= enough:
                spare = _share(effort, len(chosen) - number)
                quadratic = quadratic_part(problem, start, end, spare, enough)
            step = Step(end, "jacobian", found.value, start, found.value, found.evidence)
            if quadratic is not None and not step.constant <= quadratic.constant:
                step = quadratic
            t = step.constant
            if not t < factor:
                continue
            inside = [i for i in steps if start < i <= end]
            names = [rows.pop(i) for i in inside if i in rows]
            for i in inside:
                del steps[i]
            steps[end] = step
            rows[end] = LayerRow(
                " + ".join(dict.fromkeys(r.name for r in names)), f"{len(names)} layers together", None, t, step.rule,
            )  # fmt: skip
            if found.split and step is not quadratic:
                notes.append(f"{sum(map(len, found.split.values()))} units split")
        if problem.narrowing is not None and problem.narrowing.left:
            notes.append(f"{len(problem.narrowing.left)} layers kept interval bounds: linear ones would take too long")
        if not any(step.rule in ("jacobian", "quadratic") for step in steps.values()):
            notes.append("no part improves on the product of norms, which is the bound")
        ordered = tuple(steps[i] for i in sorted(steps))
        return Candidate(
            self.name, composition.recompose(ordered), time.monotonic() - began, Proof(self.name, ordered),
            composition.failure, tuple(rows[i] for i in sorted(rows)), "; ".join(notes), composition.interrupted,
        )  # fmt: skip


def _gates(problem: Problem) -> list[int]:
    """Where parts may begin and end: nodes that every path from the input to the output passes.

    Of these the input and the output, functions and joins, and what a node reads that no part may contain.
    """
    anchor, output = anchors(problem), problem.graph.output
    live = [i for i in sorted(problem.reaching) if not problem.constant[i]]
    found, crossing = [], 0  # the last reader of everything so far: where it lies behind a node, paths lead around it
    for index in live:
        readers = [r for r in problem.graph.readers[index] if r in problem.reaching]
        cut = any(not _may_contain(problem.graph.nodes[r]) for r in readers)
        if crossing <= index and (index in (0, output) or anchor[index] == index or cut):
            found.append(index)
        crossing = max([crossing, *readers])
    return found


def _may_contain(node: Node) -> bool:
    return node.affine or isinstance(node, Elementwise)


def _fits(problem: Problem, start: int, end: int) -> bool:
    inside = set(between(problem, start, end)) | {start}
    for index in inside - {start}:
        node = problem.graph.nodes[index]
        if any(i not in inside and not problem.constant[i] for i in node.inputs):
            return False
        if not _may_contain(node):
            return False
        if isinstance(node, Elementwise) and not all(bool(s.isfinite().all()) for s in problem.slopes[index]):
            return False
    part = Part(problem, start, end)
    size = problem.graph.nodes[end].size
    return size * problem.graph.nodes[start].size <= 4_000_000 and size * part.work(()) <= MOST


def _share(effort: Effort, parts: int) -> Effort:
    """This part's share of the time that is left."""
    now = time.monotonic()
    return replace(effort, deadline=now + (effort.deadline - now) / parts)


def _first_share(effort: Effort) -> Effort:
    """Half of the time that is left: the rest is for quadratic constraints."""
    return _share(effort, 2)


def quadratic_part(problem: Problem, start: int, end: int, effort: Effort, enough: float | None) -> Step | None:
    """A part's bound by quadratic constraints on its units, row by row; None where the part is too large, or time ran out."""
    rows = problem.graph.nodes[end if problem.norm == "linf" else start].size
    if quadratic_refusal(problem, start, end) is not None or rows > MOST_ROWS:
        return None
    if dimension(problem, start, end) + problem.graph.nodes[end].size > LARGEST_INEQUALITY:
        return None
    try:
        with np.errstate(all="ignore"):
            part = piece(problem, start, end)
            if not part.owners:  # the matrix is known, and its entries are enclosed already
                return None
            if enough is None:
                found = bound_sums(part, problem.norm, effort.deadline)
            else:
                found = bound_sums(part, problem.norm, effort.deadline, enough if start == 0 else 0.0, COARSE)
    except OutOfRange:
        return None
    if found is None:
        return None
    edges = np.cumsum([count for _, count in part.owners])[:-1]
    multipliers = dict(zip((str(i) for i, _ in part.owners), np.split(found.values, edges, axis=1), strict=True))
    stored = {name: np.ascontiguousarray(values) for name, values in multipliers.items()}
    evidence: dict[str, object] = {"kind": "quadratic", "multipliers": stored, "weights": found.weights}
    value = product_up(found.constant, 1 + OWN_ROOM) + UNDERFLOW
    return Step(end, "quadratic", value, start, value, evidence)


@dataclass(frozen=True, eq=False)
class Enclosed:
    """A bound of the constant of a part, the units that were split for it, and the nodes that lines were used at."""

    value: float
    split: Split
    refined: list[int]

    @property
    def evidence(self) -> dict[str, object]:
        """What the checker needs, see docs/certificate.md."""
        stored = {str(i): entries.numpy() for i, entries in self.split.items()}
        return {"kind": "jacobian", "split": stored, "lines": np.array(self.refined, dtype=np.int64)}


def enclose_part(part: Part, norm: Norm, effort: Effort, may_split: bool = True) -> Enclosed:
    """The norm of a part's enclosure, with the most influential units split if that is wanted and there is time."""
    outputs = part.nodes[part.end].size
    left = max(effort.deadline - time.monotonic(), 0.0)
    most = int(min(MOST, SPEED * left))
    refined = part.affordable({}, most // outputs)
    rows = Rows(part, refined, part.ends({}), 1)
    best = Enclosed(_norm(rows.matrix, part, norm), {}, refined)
    split = _influential(part, rows, min(MOST_SPLIT, most)) if may_split else {}
    if split and not effort.expired:
        other = part.affordable(split, min(MOST_SPLIT, most) // (outputs * 2 ** sum(map(len, split.values()))))
        value = _split_norm(part, split, other, norm, effort)
        if value is not None and value < best.value:
            best = Enclosed(value, split, other)
    return replace(best, value=product_up(best.value, 1 + OWN_ROOM) + UNDERFLOW)


def _split_norm(part: Part, split: Split, refined: list[int], norm: Norm, effort: Effort) -> float | None:
    """The largest norm over all choices; None if time ran out, or something overflowed."""
    ends = part.ends(split)
    choices = 2 ** sum(map(len, split.values()))
    widest = max(part.nodes[i].size for i in part.inside) * part.nodes[part.end].size
    step, worst = max(1, 1_000_000 // widest), 0.0
    for first in range(0, choices, step):
        if effort.expired:
            return None
        some = {i: (_rows(low, first, step), _rows(high, first, step)) for i, (low, high) in ends.items()}
        rows = Rows(part, refined, some, min(step, choices - first))
        found = _norm(rows.matrix, part, norm)
        if not found < math.inf:  # NaN, which max would drop
            return None
        worst = max(worst, found)
    return worst


def _rows(ends: Tensor, first: int, step: int) -> Tensor:
    return ends[first : first + step] if ends.shape[0] > 1 else ends


def _norm(matrix: Range, part: Part, norm: Norm) -> float:
    """The largest norm of a matrix within the enclosure, over all choices; `norm` is l1 or linf."""
    size = matrix.magnitude.reshape(-1, part.nodes[part.end].size, part.nodes[part.start].size)
    rows, columns = (up(size.sum(axis) * (1 + 4 * gamma(size.shape[axis] + 2))).amax(1) for axis in (2, 1))
    return float((rows if norm == "linf" else columns).max())


def _influential(part: Part, rows: Rows, most: int) -> Split:
    """The open units whose slopes move M most, as many as may be split in the time there is."""
    reach = _reach(part)
    scores, places = [], []
    for index, entries in part.open.items():
        low, high = (t.reshape(-1)[entries] for t in part.slopes[index])
        g = rows.found[index].magnitude.reshape(len(rows.rows), -1)[:, entries].amax(0)
        scores.append((high - low) * g * reach[index].reshape(-1)[entries])
        places += [(index, int(e)) for e in entries]
    if not places:
        return {}
    order = torch.cat(scores).argsort(descending=True, stable=True)
    outputs = part.nodes[part.end].size
    least = min(LEAST_UNITS, len(places))
    for count in range(min(MOST_UNITS, len(places)), least - 1, -1):
        split: Split = {}
        for index, entry in sorted(places[int(k)] for k in order[:count]):
            split[index] = torch.cat([split.get(index, torch.zeros(0, dtype=torch.int64)), torch.tensor([entry])])
        if 2**count * outputs * part.work(part.refinable(split)[:1]) <= most:
            return split
    return {}


def _reach(part: Part) -> dict[int, Tensor]:
    """About how far each function's operand can move when the start moves by one unit in linf."""
    found = {part.start: torch.ones(part.nodes[part.start].shape, dtype=torch.float64)}
    operands = {}
    for index in part.path:
        node = part.nodes[index]
        before = [found.get(i, torch.zeros(part.nodes[i].shape, dtype=torch.float64)) for i in node.inputs]
        if isinstance(node, Elementwise):
            operands[index] = before[0]
            low, high = part.slopes[index]
            found[index] = torch.maximum(low.abs(), high.abs()) * before[0]
        else:
            found[index] = evaluate(absolute(linear_part(node)), *(x.unsqueeze(0) for x in before)).squeeze(0)
    return operands
