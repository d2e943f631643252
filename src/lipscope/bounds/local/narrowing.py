"""Boxes of all values on a region, narrowed by linear bounds (CROWN: Zhang et al., arXiv 1811.00866).

Going through the network in order, the box of each node is first that of interval arithmetic. Where a nonlinear function reads
it, the node's entries are then bounded by linear functions of the input: going backward from the node, affine nodes are transposed,
functions replaced by lines above or below (`lines`), all other values by their boxes. A linear function of the input is largest on a box
or on an l1, l2 or linf ball at a known point; for l1 and l2 balls that is less than on the box around them. Narrower boxes
give narrower slopes, of which all methods profit.

Only entries that can matter are bounded: those read by functions whose slope is not fixed there, and those read by operations such as a
softmax. It costs a backward pass each, so nodes are taken in order until `MOST` multiply-adds are spent; what
does not fit keeps the box of interval arithmetic, and is listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lipscope.bounds.local.backward import Backward
from lipscope.bounds.local.lines import Lines, lines
from lipscope.bounds.local.pull import multiplications
from lipscope.claims.norms import Norm
from lipscope.claims.regions import Ball, Box
from lipscope.network.graph import Graph
from lipscope.network.nodes import AveragePool, Conv, ConvTranspose, Dense, Discontinuous, Elementwise, Mean, Sum
from lipscope.rules.questions import Interval, NoRule, box_image, slopes

MOST = 2_000_000_000
"""Multiply-adds that narrowing may take: seconds."""

PER_SECOND = 100_000_000
"""Multiply-adds for each second of a budget: about a third of what one core does, so that most of the time is left for the methods."""

LARGEST = 1e20
"""Values beyond this are left to interval arithmetic: what underflow takes from a coefficient is multiplied by them."""

_MIXING = (Dense, Conv, ConvTranspose, Sum, Mean, AveragePool)


@dataclass(frozen=True, eq=False)
class Narrowing:
    """Boxes of the values that reach the output, and why they hold.

    Attributes:
        intervals: the boxes by node.
        lines: for functions that were passed on the way back, their lines.
        entries: for each narrowed node the entries (of its flattened value) whose bounds were computed.
        left: nodes that were not narrowed because the work was spent, with the number of their entries.
    """

    intervals: dict[int, Interval]
    lines: dict[int, Lines] = field(default_factory=dict)
    entries: dict[int, Tensor] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)


def narrow(graph: Graph, region: Box | Ball, norm: Norm, most: int = MOST) -> Narrowing:
    """Boxes of all values that reach the output over the region.

    Args:
        graph: the network.
        region: where; a ball is one of `norm`.
        norm: the claim's norm.
        most: multiply-adds that may be spent on linear bounds.
    """
    return _Walk(graph, region, norm, most).narrowing()


class _Walk:
    """One walk through a network in topological order."""

    def __init__(self, graph: Graph, region: Box | Ball, norm: Norm, most: int) -> None:
        self.graph = graph
        self.region = region
        self.norm = norm
        self.spare = most
        around = region.box()
        shape = graph.nodes[0].shape
        box = Interval(torch.from_numpy(around.lower).reshape(shape), torch.from_numpy(around.upper).reshape(shape))
        self.found = Narrowing({0: box})
        self.needed = graph.ancestors(graph.output)
        self.backward = Backward(graph, region, norm, self.found.intervals, self.found.lines)

    def narrowing(self) -> Narrowing:
        """The boxes of all nodes."""
        for index, node in enumerate(self.graph.nodes):
            if index not in self.needed:
                continue
            if index:
                self.found.intervals[index] = box_image(node, *(self.found.intervals[i] for i in node.inputs))
            entries = self._wanted(index)
            if entries is not None and len(entries):
                self._narrow(index, entries)
        return self.found

    def _wanted(self, index: int) -> Tensor | None:
        """The entries of a node that are worth bounds; None if none are, or if linear bounds are no better than boxes."""
        node, box = self.graph.nodes[index], self.found.intervals[index]
        if not node.affine or not self._helps(index):
            return None
        wanted = torch.zeros(node.size, dtype=torch.bool)
        for reader in self.graph.readers[index]:
            after = self.graph.nodes[reader]
            if reader not in self.needed or after.affine or isinstance(after, Discontinuous):
                continue
            if not isinstance(after, Elementwise):
                wanted[:] = True
                continue
            try:
                low, high = slopes(after, box)
                wanted |= (low != high).reshape(-1)
            except NoRule:  # not defined on all of this box; perhaps it is on a narrower one
                wanted[:] = True
        return torch.nonzero(wanted)[:, 0]

    def _helps(self, index: int) -> bool:
        """Not where the node is one affine layer of a box, whose interval bounds are the best there are."""
        if isinstance(self.region, Ball) and self.norm != "linf":
            return True
        before = [self.graph.nodes[i] for i in self.graph.ancestors(index)]
        mixing = sum(isinstance(node, _MIXING) for node in before)
        joins = any(len(node.inputs) > 1 for node in before)
        return mixing > 1 or joins

    def _narrow(self, index: int, entries: Tensor) -> None:
        before = sorted(self.graph.ancestors(index))
        if not all(bool((self.found.intervals[i].magnitude <= LARGEST).all()) for i in before):
            return
        cost = 4 * len(entries) * sum(self._cost(i) for i in before)
        if cost > self.spare:
            self.found.left[index] = len(entries)
            return
        self.spare -= cost
        for i in before:
            self._prepare(i)
        low, high = self.backward.bounds(index, entries)
        if not bool((low.isfinite() & high.isfinite()).all()):  # coefficients overflowed, though no value does
            return
        box = self.found.intervals[index]
        ends = []
        for old, new, better in ((box.lower, low, torch.maximum), (box.upper, high, torch.minimum)):
            narrowed = old.reshape(-1).clone()
            narrowed[entries] = better(narrowed[entries], new)
            ends.append(narrowed.reshape(old.shape))
        self.found.intervals[index] = Interval(*ends)
        self.found.entries[index] = entries

    def _cost(self, index: int) -> int:
        node = self.graph.nodes[index]
        return multiplications(node, [self.graph.nodes[i].shape for i in node.inputs])

    def _prepare(self, index: int) -> None:
        """The lines of a function that a backward pass will meet."""
        node = self.graph.nodes[index]
        if not isinstance(node, Elementwise) or index in self.found.lines:
            return
        operand = self.found.intervals[node.inputs[0]]
        found = lines(node, operand, slopes(node, operand), self.found.intervals[index])
        if found is not None:
            self.found.lines[index] = found


def affordable(budget: float) -> int:
    """Multiply-adds that narrowing may take of a budget in seconds: a count, so that the result does not depend on the machine."""
    return MOST if budget * PER_SECOND >= MOST else int(budget * PER_SECOND)


def stored(narrowing: Narrowing) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict[str, np.ndarray]]]:
    """`lines` and `narrowed` of a certificate, see docs/certificate.md."""
    rows = {
        str(index): {
            "lower_slope": found.lower_slope.numpy(), "lower_offset": found.lower_offset.numpy(),
            "upper_slope": found.upper_slope.numpy(), "upper_offset": found.upper_offset.numpy(),
        }
        for index, found in sorted(narrowing.lines.items())
    }  # fmt: skip
    entries: Sequence[tuple[int, Tensor]] = sorted(narrowing.entries.items())
    return rows, {str(index): {"entries": which.numpy()} for index, which in entries}
