"""A claim about a graph made ready for the methods: the selected output, boxes of all values, slopes of all functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lipscope.bounds.local.narrowing import MOST, Narrowing, narrow
from lipscope.claims.claim import Claim, Output
from lipscope.claims.errors import LipscopeError
from lipscope.claims.norms import Norm
from lipscope.claims.regions import Everywhere, Vector, check_size
from lipscope.network.graph import Graph
from lipscope.network.nodes import Concat, Constant, Dense, Discontinuous, Elementwise, Node, Reshape
from lipscope.rules.questions import Interval, box_image, slopes

SLIGHT = 1e-100
"""Slopes nearer to 0 make products of weights and slopes underflow; a function is that flat where it has saturated."""


class NoBound(LipscopeError):
    """Nothing finite can be proved: `node` (an index) stands in the way, `reason` says why."""

    def __init__(self, node: int, name: str, reason: str) -> None:
        self.node = node
        self.reason = reason
        super().__init__(f"no finite bound: {name!r} (node {node}): {reason}")


def select_output(graph: Graph, output: Output) -> Graph:
    """The graph followed by the nodes that pick one entry or a difference of two (see docs/certificate.md).

    Of several outputs that are concatenated only those that are picked from are kept, so that an operation without a
    bound in one of them does not stand in the way of the others.
    """
    if output.first is None:
        return graph
    nodes, chosen = list(graph.nodes), [i for i in (output.first, output.second) if i is not None]
    source, positions = _picked_parts(graph, chosen)
    if len(source) > 1:
        size = sum(graph.nodes[i].size for i in source)
        nodes.append(Concat(inputs=source, shape=(size,), name="output", axis=0))
        source = (len(nodes) - 1,)
    size = nodes[source[0]].size
    row = np.zeros((1, size))
    for position, sign in zip(positions, (1.0, -1.0), strict=False):
        row[0, position] = sign
    nodes.append(Reshape(inputs=source, shape=(size,), name="output"))
    nodes.append(Dense(inputs=(len(nodes) - 1,), shape=(1,), name=f"output[{output.text}]", weight=row, axis=0))
    return replace(graph, nodes=tuple(nodes), output=len(nodes) - 1, output_shapes=((1,),))


def _picked_parts(graph: Graph, chosen: Sequence[int]) -> tuple[tuple[int, ...], list[int]]:
    """The nodes that hold the chosen entries of the output, in order, and the entries' positions in their concatenation."""
    node = graph.nodes[graph.output]
    if not (isinstance(node, Concat) and len(node.shape) == 1):
        return (graph.output,), list(chosen)
    starts = np.cumsum([0, *(graph.nodes[i].size for i in node.inputs)])
    parts = [int(np.searchsorted(starts, entry, side="right")) - 1 for entry in chosen]
    kept = sorted(set(parts))
    offsets = np.cumsum([0, *(graph.nodes[node.inputs[k]].size for k in kept)])
    positions = [int(offsets[kept.index(k)] + entry - starts[k]) for k, entry in zip(parts, chosen, strict=True)]
    return tuple(node.inputs[k] for k in kept), positions


def propagate(graph: Graph, box: Interval, keep: Sequence[int] | None = None) -> dict[int, Interval]:
    """Boxes of the values that reach the output when the input lies in `box`, rounded outward.

    Args:
        graph: the network.
        box: of the graph's input.
        keep: the nodes whose boxes are wanted; None for all that reach the output.
    """
    needed = graph.ancestors(graph.output)
    wanted = needed if keep is None else set(keep)
    last_reader = {i: max((r for r in readers if r in needed), default=i) for i, readers in enumerate(graph.readers)}
    images: dict[int, Interval] = {0: box}
    for index, node in enumerate(graph.nodes):
        if index and index in needed:
            images[index] = box_image(node, *(images[i] for i in node.inputs))
            for i in set(node.inputs):
                if last_reader[i] == index and i not in wanted:
                    del images[i]
    return {i: images[i] for i in wanted if i in images}


@dataclass(frozen=True)
class Problem:
    """A claim about a graph.

    Attributes:
        stored: the network as it is stored in a bundle.
        graph: the same, followed by the selection of the claim's output.
        claim: what is asked.
        data: points of the input space worth looking at, (k, input size).
        narrowing_work: multiply-adds that linear bounds of values may take.
    """

    stored: Graph
    graph: Graph
    claim: Claim
    data: Tensor
    narrowing_work: int = MOST

    @property
    def norm(self) -> Norm:
        """The claim's norm."""
        return self.claim.norm

    @cached_property
    def box(self) -> Interval | None:
        """The box around the region in the shape of the graph's input, or None for the whole space."""
        box = self.claim.region.box()
        if box is None:
            return None
        shape = self.graph.nodes[0].shape
        return Interval(torch.from_numpy(box.lower).reshape(shape), torch.from_numpy(box.upper).reshape(shape))

    @cached_property
    def narrowing(self) -> Narrowing | None:
        """Boxes of all values over the region with the linear bounds that narrowed them, or None for the whole space."""
        region = self.claim.region
        return None if isinstance(region, Everywhere) else narrow(self.graph, region, self.norm, self.narrowing_work)

    def with_points(self, points: Sequence[Vector]) -> Problem:
        """The same problem with these points before its data; what was found of it is kept, none of it depends on the data."""
        if not points:
            return self
        data = torch.cat([torch.from_numpy(np.stack(points)), self.data])
        other = replace(self, data=data)
        other.__dict__.update({name: value for name, value in self.__dict__.items() if name not in other.__dict__})
        return other

    def follow(self, whole: Problem) -> None:
        """Take over the boxes of another problem about the same network and region, all outputs of which it asks for.

        Proofs of one of the two then hold for the other: the boxes, and so the slopes, are the same.
        """
        if whole.narrowing is None or whole.graph.output not in self.reaching:
            return
        intervals = dict(whole.narrowing.intervals)
        for index in sorted(self.reaching - intervals.keys()):
            node = self.graph.nodes[index]
            intervals[index] = box_image(node, *(intervals[i] for i in node.inputs))
        self.__dict__["narrowing"] = replace(whole.narrowing, intervals=intervals)

    @cached_property
    def intervals(self) -> dict[int, Interval] | None:
        """Boxes of all values that reach the output, over the region, or None for the whole space."""
        return None if self.narrowing is None else self.narrowing.intervals

    def operand(self, node: Node, position: int = 0) -> Interval | None:
        """The box of one of a node's operands, or None for the whole space."""
        return None if self.intervals is None else self.intervals[node.inputs[position]]

    @cached_property
    def shared(self) -> dict[str, object]:
        """What one method has found and others would find again, by name."""
        return {}

    @cached_property
    def reaching(self) -> frozenset[int]:
        """The nodes that the output depends on."""
        return frozenset(self.graph.ancestors(self.graph.output))

    @cached_property
    def slopes(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Enclosures of the difference quotients of every `Elementwise` node, by index, of the node's shape."""
        return {
            index: _not_too_small(*slopes(node, self.operand(node)))
            for index, node in enumerate(self.graph.nodes)
            if isinstance(node, Elementwise) and index in self.reaching
        }

    def is_linear(self, index: int) -> bool:
        """Whether the node is affine on the region: an affine kind, or a function whose slopes are all fixed there."""
        node = self.graph.nodes[index]
        if isinstance(node, Elementwise):
            if index not in self.slopes:
                return False
            lower, upper = self.slopes[index]
            return bool(torch.equal(lower, upper) and torch.isfinite(lower).all())
        return node.affine

    @cached_property
    def constant(self) -> tuple[bool, ...]:
        """For each node whether it is constant on the region.

        It is if it depends on constants alone, or if it is an operation with jumps whose box is a single point.
        """
        known: list[bool] = []
        for index, node in enumerate(self.graph.nodes):
            alone = isinstance(node, Constant) or (bool(node.inputs) and all(known[i] for i in node.inputs))
            if isinstance(node, Discontinuous) and self.intervals is not None and index in self.intervals:
                box = self.intervals[index]
                alone = alone or torch.equal(box.lower, box.upper)
            known.append(alone)
        return tuple(known)


def pose(graph: Graph, claim: Claim, data: Tensor | None = None, narrowing_work: int = MOST) -> Problem:
    """The problem of `claim` about `graph`.

    Args:
        graph: the network.
        claim: what is asked.
        data: points worth looking at.
        narrowing_work: multiply-adds that linear bounds of values may take; nodes left out are listed in `narrowing.left`.

    Raises:
        UsageError: the region does not fit the graph's input.
    """
    check_size(claim.region, graph.input_size)
    points = torch.zeros((0, graph.input_size), dtype=torch.float64) if data is None else data
    return Problem(graph, select_output(graph, claim.output), claim, points, narrowing_work)


def _not_too_small(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The same ranges, ends next to 0 moved to where products with weights do not underflow; ends at 0 and single slopes stay."""
    wide, zero, slight = lower != upper, torch.zeros_like(lower), torch.full_like(lower, SLIGHT)
    low = torch.where(wide & (lower.abs() < SLIGHT) & (lower != 0), torch.where(lower > 0, zero, -slight), lower)
    high = torch.where(wide & (upper.abs() < SLIGHT) & (upper != 0), torch.where(upper > 0, slight, zero), upper)
    return low, high
