"""The product bound: norms of segments multiplied along the network, added at sums, joined at concatenations.

For a chain this is the product of the layers' norms, with everything linear between two nonlinear operations taken
as one map. On a box, slopes are those that occur there: rows of a segment that ends at an activation are scaled by
the largest slope, columns of dead units vanish, and activations whose slopes are all fixed belong to the segment.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from lipscope.bounds.method import Candidate, Effort, LayerRow, Method, Proof, Step
from lipscope.bounds.problem import NoBound, Problem
from lipscope.bounds.segments import anchors, segment
from lipscope.claims.rounding import UNIT_ROUNDOFF, product_up, sum_up
from lipscope.network.nodes import Elementwise, Node
from lipscope.operator_norm import Enclosure, enclose
from lipscope.rules.linear_map import LinearMap
from lipscope.rules.questions import Interval, NoRule, gain, join


class Product(Method):
    """Norms of segments, composed along the graph. Accepts every network; loose where the segments' top directions differ."""

    name = "product"

    def accepts(self, problem: Problem) -> str | None:
        """Every problem is accepted; where a node has no constant, `search` says which."""
        del problem
        return None

    def search(self, problem: Problem, effort: Effort) -> Candidate:
        """The product bound; stopped early it finishes with the cheapest norms."""
        began = time.monotonic()
        composition = composed(problem, effort, hurried=False)
        value = composition.known[problem.graph.output]
        return Candidate(
            method=self.name,
            value=with_room(value, len(composition.steps)),
            seconds=time.monotonic() - began,
            proof=Proof(self.name, tuple(sorted(composition.steps, key=lambda s: s.node))),
            failure=composition.failure,
            layers=tuple(row for _, row in sorted(composition.layers, key=lambda pair: pair[0])),
            note="stopped early: the remaining norms are the cheap ones" if composition.hurried else "",
            interrupted=composition.interrupted,
        )


def composed(problem: Problem, effort: Effort, *, hurried: bool = True) -> Composition:
    """The finished walk to the problem's output; it is kept for the next method that asks.

    Args:
        problem: the claim.
        effort: what may be spent.
        hurried: whether an earlier walk will do that took the cheap norms for want of time; it is what methods start from
            that spend their time on other things.
    """
    kept = problem.shared.get("product")
    if isinstance(kept, Composition) and kept.effort.failure == effort.failure and (hurried or not kept.hurried):
        return kept
    composition = Composition(problem, effort, anchors(problem))
    composition.constant(problem.graph.output)
    if not composition.interrupted:
        problem.shared["product"] = composition
    return composition


def with_room(value: float, steps: int) -> float:
    """A little more than `value`: the checker composes the same norms with its own outward roundings, some ulps a step."""
    return product_up(value, 1 + 16 * (steps + 1) * UNIT_ROUNDOFF)


@dataclass
class Composition:
    """One walk over a network; constants of nodes are found on demand and kept."""

    problem: Problem
    effort: Effort
    anchor: tuple[int, ...]
    known: dict[int, float] = field(default_factory=lambda: {0: 1.0})
    steps: list[Step] = field(default_factory=list)
    layers: list[tuple[int, LayerRow]] = field(default_factory=list)
    failure: float = 0.0
    hurried: bool = False
    interrupted: bool = False

    def constant(self, output: int) -> float:
        """Upper bound of the constant of the map from the input to node `output`."""
        needed = [i for i in range(output + 1) if self._needed(i, output)]
        segments = sum(self._rule(i) == "segment" for i in needed)
        share = self.effort.failure / max(segments, 1) * (1 - 1e-9)  # the rounded sum of all shares stays within it
        for done, index in enumerate(needed):
            if index in self.known:
                continue
            node = self.problem.graph.nodes[index]
            self.effort.progress(f"product: {node.name or node.kind}", done / len(needed))
            if self.problem.constant[index]:
                self.known[index] = 0.0
            elif self._rule(index) == "segment":
                self._segment(index, share)
            else:
                self._nonlinear(index, node)
        return self.known[output]

    def recompose(self, steps: Sequence[Step]) -> float:
        """The constant of the output from other steps, some of which reach over several of this composition's."""
        known = {0: 1.0} | {i: 0.0 for i in range(len(self.problem.graph)) if self.problem.constant[i]}
        for step in steps:
            node = self.problem.graph.nodes[step.node]
            if step.norm is not None:
                start = node.inputs[0] if step.start is None else step.start
                known[step.node] = product_up(step.norm, known[start])
            else:
                known[step.node] = self._join(node, tuple(known[i] for i in node.inputs))
        return with_room(known[self.problem.graph.output], len(steps))

    def _join(self, node: Node, constants: tuple[float, ...]) -> float:
        regions = self.problem.intervals
        return join(
            node, self.problem.norm, constants, None if regions is None else tuple(regions[i] for i in node.inputs)
        )

    def _needed(self, index: int, output: int) -> bool:
        """A node's constant is needed if it is an anchor, is read by a node that is not linear in a single anchor, or is the output."""
        if index not in self.problem.reaching:
            return False
        own = self.anchor[index] == index
        readers = self.problem.graph.readers[index]
        joined = any(self.anchor[r] == r and self._rule(r) != "segment" for r in readers)
        return index == output or own or joined

    def _rule(self, index: int) -> str:
        node = self.problem.graph.nodes[index]
        if isinstance(node, Elementwise) or self.anchor[index] != index:
            return "segment"
        return "join" if len(node.inputs) > 1 else "gain"

    def _segment(self, index: int, share: float) -> None:
        node = self.problem.graph.nodes[index]
        start = self.anchor[index]
        if start == index:  # a nonlinear function: its segment begins at its operand's anchor
            start = self.anchor[node.inputs[0]]
            self._demand_finite_slopes(index, node)
        piece = segment(self.problem, start, index)
        bound = self._enclose(piece.map, share)
        constant = product_up(bound.upper, self.known[start])
        self._demand_finite(index, node, constant)
        self.failure = sum_up([self.failure, bound.failure])
        self.known[index] = constant
        self.steps.append(Step(index, "segment", constant, start, bound.upper, bound.evidence))
        weighted = [self.problem.graph.nodes[i] for i in piece.inner if self.problem.graph.nodes[i].parameters()]
        shown = [n for n in weighted if n.kind in _NAMED] or [node]
        row = LayerRow(
            " + ".join(dict.fromkeys(n.name for n in shown)), " + ".join(dict.fromkeys(n.kind for n in shown)),
            bound.lower, bound.upper, str(bound.evidence["kind"]), bound.seconds,
        )  # fmt: skip
        self.layers.append((index, row))

    def _enclose(self, linear_map: LinearMap, share: float) -> Enclosure:
        """The segment's norm; once time is up or the user has had enough, the cheapest proof."""
        norm, effort = self.problem.norm, self.effort
        if not (self.hurried or effort.expired):
            try:
                return enclose(
                    linear_map, norm, tolerance=effort.tolerance, failure=share, deadline=effort.deadline,
                    memory=effort.memory,
                )  # fmt: skip
            except KeyboardInterrupt:
                self.interrupted = True
        self.hurried = True
        return enclose(linear_map, norm, deadline=0.0)

    def _nonlinear(self, index: int, node: Node) -> None:
        constants = tuple(self.known[i] for i in node.inputs)
        factor: float | None = None
        try:
            if len(node.inputs) == 1:
                factor = gain(node, self.problem.norm, self._operand(node))
                constant = product_up(factor, constants[0])
                self.layers.append((index, LayerRow(node.name, node.kind, None, factor, "closed form")))
            else:
                constant = self._join(node, constants)
        except NoRule as missing:
            raise NoBound(index, node.name, missing.reason) from None
        self._demand_finite(index, node, constant)
        self.known[index] = constant
        self.steps.append(Step(index, "join" if factor is None else "gain", constant, norm=factor))

    def _operand(self, node: Node) -> Interval:
        """The operand's box; the whole space is a box with infinite ends, so that rules know its shape."""
        known = self.problem.operand(node)
        ends = torch.full(self.problem.graph.nodes[node.inputs[0]].shape, math.inf, dtype=torch.float64)
        return Interval(-ends, ends) if known is None else known

    def _demand_finite_slopes(self, index: int, node: Node) -> None:
        lower, upper = self.problem.slopes[index]
        if not (lower.isfinite().all() and upper.isfinite().all()):
            assert isinstance(node, Elementwise)
            where = "on the whole line" if self.problem.box is None else "on the box of its operand"
            raise NoBound(
                index, node.name, f"{node.function} has unbounded slope {where}; give a box region that keeps it away"
            )

    def _demand_finite(self, index: int, node: Node, constant: float) -> None:
        if not math.isfinite(constant):
            raise NoBound(index, node.name, "the product of constants up to here exceeds the range of float64")


_NAMED = ("Dense", "Conv", "ConvTranspose", "BatchNorm", "MulConstant", "DivConstant", "AveragePool", "Mean", "Sum")
