"""Linear bounds of a node's entries in terms of the input, backward through the network, rounded outward.

What is bounded is `sum over nodes A_v . v + constant`, first `A_v` = one entry of the node, in the end only the input. Every step
replaces the last node v of the sum by something above it:

* `v = L u + b`: by `(L^T A) u + A b`. With `M = |L| |u| + |b|` (the node's majorant at the largest |u|) everything that rounding does
  to this step is at most `gamma_k |A| M`, k counting the roundings of L, of its transpose and of the sum over entries: a number;
* `v = phi(u)`: by the upper line where A > 0, the lower one where A < 0;
* anything else, and constants: by the best end of its box.

On the box `[m - r, m + r]` the linear function A x is at most `A m + |A| r`, on the ball of radius r at c `A c + r |A|*`, with the dual norm.
The errors of all steps are added to the result, several times, so that a checker that rounds elsewhere comes out below.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipscope.bounds.local.lines import Lines
from lipscope.bounds.local.pull import CHUNK, flat, pull
from lipscope.claims.norms import Norm
from lipscope.claims.regions import Ball, Box
from lipscope.claims.rounding import gamma, up
from lipscope.network.graph import Graph
from lipscope.network.nodes import Constant, Elementwise, Node
from lipscope.rules.affine import UNDERFLOW, majorant, midpoint_radius, value
from lipscope.rules.questions import Interval, linear_part, roundings

ROOM = 16.0
"""How often the rounding error is added: once for us, and for the difference to a checker that counts differently."""


@dataclass
class _Sum:
    """`sum_v A_v . v + constant`, one for each row; `error` bounds what rounding did to it so far."""

    rows: dict[int, Tensor]
    constant: Tensor
    error: Tensor


class Backward:
    """Backward passes through one network.

    Args:
        graph: the network.
        region: where the input lies.
        norm: of the region, if it is a ball.
        intervals: boxes of all nodes before those that are bounded; may grow later.
        lines: of functions; those without are replaced by their boxes.
    """

    def __init__(
        self, graph: Graph, region: Box | Ball, norm: Norm, intervals: dict[int, Interval], lines: dict[int, Lines]
    ) -> None:
        self.graph = graph
        self.region = region
        self.norm = norm
        self.intervals = intervals
        self.lines = lines
        self._majorants: dict[int, tuple[Tensor, Tensor, int]] = {}

    def bounds(self, index: int, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of some entries of a node's flattened value, one each."""
        size = self.graph.nodes[index].size
        widest = max(self.graph.nodes[i].size for i in self.graph.ancestors(index))
        low, high = [], []
        for part in torch.split(entries, max(1, CHUNK // widest)):
            rows = torch.zeros((len(part), size), dtype=torch.float64)
            rows[torch.arange(len(part)), part] = 1.0
            high.append(self._above(index, rows))
            low.append(-self._above(index, -rows))
        return torch.cat(low), torch.cat(high)

    def _above(self, index: int, rows: Tensor) -> Tensor:
        """At least the largest value of each row times the node's value."""
        zero = torch.zeros(len(rows), dtype=torch.float64)
        total = _Sum({index: rows.reshape(-1, *self.graph.nodes[index].shape)}, zero, zero.clone())
        with torch.no_grad():
            for i in range(index, 0, -1):
                if i in total.rows:
                    self._replace(i, total.rows.pop(i), total)
            if 0 in total.rows:
                self._concretise(flat(total.rows.pop(0)), total)
            return up(total.constant + up(ROOM * total.error)) + UNDERFLOW

    def _replace(self, index: int, a: Tensor, total: _Sum) -> None:
        node = self.graph.nodes[index]
        if node.affine and not isinstance(node, Constant):
            self._affine(index, node, a, total)
        elif isinstance(node, Elementwise) and index in self.lines:
            self._function(node, self.lines[index], a, total)
        else:
            box = self.intervals[index]
            self._add(total, flat(a.clamp(min=0)) @ box.upper.reshape(-1) + flat(a.clamp(max=0)) @ box.lower.reshape(-1),
                      flat(a.abs()) @ box.magnitude.reshape(-1), node.size)  # fmt: skip

    def _affine(self, index: int, node: Node, a: Tensor, total: _Sum) -> None:
        bias, largest, count = self._majorant(index, node)
        shapes = [self.graph.nodes[i].shape for i in node.inputs]
        for i, part in zip(node.inputs, pull(linear_part(node), a, shapes), strict=True):
            self._accumulate(i, part, total)
        self._add(total, flat(a) @ bias, flat(a.abs()) @ largest, count)

    def _majorant(self, index: int, node: Node) -> tuple[Tensor, Tensor, int]:
        """The node's constant part, a bound of all that it adds up, and a count of roundings; kept."""
        if index not in self._majorants:
            boxes = [self.intervals[i] for i in node.inputs]
            origin = [torch.zeros_like(box.lower) for box in boxes]
            bias = value(node, *origin)
            largest = value(majorant(node), *(box.magnitude for box in boxes))
            own, inputs = roundings(linear_part(node)), sum(box.lower.numel() for box in boxes)
            count = own.forward + own.adjoint + max(inputs // node.size, node.size // inputs) + node.size + 16
            self._majorants[index] = bias.reshape(-1), largest.reshape(-1), count
        return self._majorants[index]

    def _function(self, node: Elementwise, found: Lines, a: Tensor, total: _Sum) -> None:
        positive, negative = a.clamp(min=0), a.clamp(max=0)
        box = self.intervals[node.inputs[0]]
        part = positive * found.upper_slope + negative * found.lower_slope
        constant = flat(positive) @ found.upper_offset.reshape(-1) + flat(negative) @ found.lower_offset.reshape(-1)
        steep = torch.maximum(found.upper_slope.abs(), found.lower_slope.abs()) * box.magnitude
        size = steep + torch.maximum(found.upper_offset.abs(), found.lower_offset.abs())
        self._accumulate(node.inputs[0], part, total)
        self._add(total, constant, flat(a.abs()) @ size.reshape(-1), node.size + 4)

    def _accumulate(self, index: int, part: Tensor, total: _Sum) -> None:
        if index not in total.rows:
            total.rows[index] = part
            return
        combined = total.rows[index] + part
        total.rows[index] = combined
        total.error = total.error + 2 * gamma(1) * (flat(combined.abs()) @ self.intervals[index].magnitude.reshape(-1))

    def _add(self, total: _Sum, constant: Tensor, size: Tensor, count: int) -> None:
        """Add a number of each row that is a sum of terms of absolute value `size` together, with `count` roundings."""
        total.constant = total.constant + constant
        total.error = total.error + 2 * (gamma(count + 4) * size + gamma(2) * total.constant.abs())

    def _concretise(self, a: Tensor, total: _Sum) -> None:
        region, n = self.region, a.shape[1]
        if isinstance(region, Box):
            middle, radius = (t.reshape(-1) for t in midpoint_radius(self.intervals[0]))
            self._add(total, a @ middle + a.abs() @ radius, a.abs() @ (middle.abs() + radius), n + 8)
            return
        center = torch.from_numpy(region.center)
        reach = dual_norm(a, self.norm) * region.radius
        self._add(total, a @ center + reach, a.abs() @ center.abs() + reach, n + 8)


def dual_norm(a: Tensor, norm: Norm) -> Tensor:
    """For each row the largest a x with |x| <= 1, in floating point."""
    largest = a.abs().amax(1)
    if norm == "l1":
        return largest
    if norm == "linf":
        return a.abs().sum(1)
    # Scaled, so that squares do not underflow.
    scale = torch.where(largest > 0, largest, 1.0)
    return scale * (a / scale[:, None]).square().sum(1).sqrt()
