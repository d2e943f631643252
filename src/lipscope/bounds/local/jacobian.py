"""Enclosures of all entries of the difference matrices of a part of a network.

For any x and y of the region `f(x) - f(y) = M (x - y)`, where M is the product of the network's linear parts with a diagonal of difference
quotients d, `d_j in [alpha_j, beta_j]`, at every function. This holds for any two points, kinks between them or not, so that the
norm of every such M bounds the constant; no derivative is used. For each output i the row of M is found going backward: g = e_i at the output, the
transpose `L^T g` at an affine node, `h = d g` at a function. Two enclosures are intersected:

* intervals: `h` between the smallest and the largest of `alpha g, beta g`;
* lines (as in Shi et al., arXiv 2210.07394, for derivatives): an entry of `L^T h` is a linear function of the h; over g in [l, u],
  `h <= max(alpha g, beta g)`, which is convex: below its chord; `h >= min(alpha g, beta g)` is above its chord. Inserted function by
  function, from the entry towards the output, this ends in a number.

M is affine in each single d_j, and a norm is convex: it is largest where d_j is alpha_j or beta_j. So a few units may be *split*: all
2^s choices of their ends are enclosed, each more tightly, and the largest norm counts.

Rounding: what a step of the second enclosure loses in a coefficient of g is multiplied by the largest |g|, a number that is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipscope.bounds.local.pull import CHUNK, multiplications, pull
from lipscope.bounds.problem import Problem
from lipscope.bounds.segments import between
from lipscope.claims.rounding import down, gamma, up
from lipscope.network.nodes import Elementwise
from lipscope.rules.affine import UNDERFLOW
from lipscope.rules.questions import absolute, evaluate, linear_part, roundings

ROOM = 8.0
"""How often rounding errors are added: once for us, and for the difference to a checker that counts differently."""

Split = dict[int, Tensor]
"""For functions by node: entries (flattened, rising) whose slopes are fixed to either end."""


@dataclass(frozen=True, eq=False)
class Range:
    """`lower <= g <= upper` entrywise, (B, *shape)."""

    lower: Tensor
    upper: Tensor

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value."""
        return torch.maximum(self.lower.abs(), self.upper.abs())


class Part:
    """The network between two nodes, made of affine nodes and functions with finite slopes, everything reading from `start`."""

    def __init__(self, problem: Problem, start: int, end: int) -> None:
        self.nodes = problem.graph.nodes
        self.start = start
        self.end = end
        self.path = between(problem, start, end)
        self.inside = {start, *self.path}
        self.slopes = {i: problem.slopes[i] for i in self.path if isinstance(self.nodes[i], Elementwise)}
        self.open = {i: torch.nonzero((low != high).reshape(-1))[:, 0] for i, (low, high) in self.slopes.items()}

    def layers_after(self, index: int, split: Split) -> int:
        """How many functions with slopes that are left open come after a node."""
        return sum(i > index and len(o) > len(split.get(i, ())) for i, o in self.open.items())

    def refinable(self, split: Split) -> list[int]:
        """Where lines can be better than intervals: two or more functions with open units follow. The start comes first."""
        return [i for i in (self.start, *self.slopes) if self.layers_after(i, split) >= 2]

    def work(self, refined: Sequence[int]) -> int:
        """About how many multiply-adds one row of M takes, with lines at some nodes."""
        costs = {
            i: multiplications(self.nodes[i], [self.nodes[j].shape for j in self.nodes[i].inputs]) for i in self.path
        }
        pushes = sum(2 * self.nodes[w].size * sum(c for i, c in costs.items() if i > w) for w in refined)
        return 6 * sum(costs.values()) + pushes

    def affordable(self, split: Split, most: int) -> list[int]:
        """The nodes that lines are used at: as many as the work allows, the cheapest first but the start before all."""
        base = self.work(())
        chosen: list[int] = []
        for index in sorted(self.refinable(split), key=lambda i: (i != self.start, self.work((i,)))):
            if self.work((*chosen, index)) <= max(most, base):
                chosen.append(index)
        return sorted(chosen)

    def ends(self, split: Split) -> dict[int, tuple[Tensor, Tensor]]:
        """Slopes of every function for all choices of the split units, (C, *shape) or (1, *shape)."""
        count = sum(len(entries) for entries in split.values())
        choices = torch.arange(2**count)
        found, bit = {}, 0
        for index, (low, high) in self.slopes.items():
            entries = split.get(index)
            if entries is None:
                found[index] = low.unsqueeze(0), high.unsqueeze(0)
                continue
            bits = (choices[:, None] >> torch.arange(bit, bit + len(entries))) & 1
            bit += len(entries)
            flat_low, flat_high = (t.reshape(1, -1).repeat(2**count, 1) for t in (low, high))
            chosen = torch.where(bits == 1, flat_high[:, entries], flat_low[:, entries])
            flat_low[:, entries] = chosen
            flat_high[:, entries] = chosen
            found[index] = flat_low.reshape(-1, *low.shape), flat_high.reshape(-1, *low.shape)
        return found


class Rows:
    """Enclosures of rows of M for a batch of choices: row b belongs to choice `b // m` and output `b % m`."""

    def __init__(
        self, part: Part, refined: Sequence[int], ends: dict[int, tuple[Tensor, Tensor]], choices: int
    ) -> None:  # fmt: skip
        self.part = part
        self.refined = refined
        shape = part.nodes[part.end].shape
        outputs = part.nodes[part.end].size
        self.rows = torch.eye(outputs, dtype=torch.float64).repeat(choices, 1).reshape(-1, *shape)
        self.ends = {
            i: tuple(t.repeat_interleave(outputs, 0) if t.shape[0] > 1 else t for t in pair) for i, pair in ends.items()
        }
        self.found: dict[int, Range] = {part.end: Range(self.rows, self.rows)}
        self._sizes: dict[int, list[Tensor]] = {}
        with torch.no_grad():
            for index in reversed(part.path):
                if index in self.found:
                    self._step(index)
            self._refine(part.start)

    @property
    def matrix(self) -> Range:
        """The rows of M themselves, (B, *shape of the start)."""
        return self.found[self.part.start]

    def _step(self, index: int) -> None:
        node = self.part.nodes[index]
        if isinstance(node, Elementwise):
            self._refine(index)
            g = self.found[index]
            low, high = self.ends[index]
            corners = torch.stack([d * e for d in (low, high) for e in (g.lower, g.upper)])
            self._add(node.inputs[0], Range(down(corners.amin(0)), up(corners.amax(0))))
            return
        g = self.found[index]
        shapes = [self.part.nodes[i].shape for i in node.inputs]
        linear = linear_part(node)
        k = roundings(linear).adjoint + 4
        middle = g.lower / 2 + g.upper / 2
        radius = up(torch.maximum(up(g.upper - middle), up(middle - g.lower)))
        wide = up(radius + ROOM * gamma(k) * g.magnitude)
        centres, widths = pull(linear, middle, shapes), pull(absolute(linear), wide, shapes)
        self._sizes[index] = pull(absolute(linear), g.magnitude, shapes)
        for i, c, w in zip(node.inputs, centres, widths, strict=True):
            w = up(w * (1 + 4 * gamma(k))) + UNDERFLOW
            self._add(i, Range(down(c - w), up(c + w)))

    def _add(self, index: int, more: Range) -> None:
        if index not in self.part.inside:
            return
        if index in self.found:
            known = self.found[index]
            more = Range(down(known.lower + more.lower), up(known.upper + more.upper))
        self.found[index] = more

    def _refine(self, index: int) -> None:
        """Intersect the range of a node's g with that from lines, where they are to be used."""
        if index not in self.found or index not in self.refined:
            return
        known, size = self.found[index], self.part.nodes[index].size
        widest = max(self.part.nodes[i].size for i in self.part.inside)
        step = max(1, CHUNK // (2 * size * widest))
        lower, upper = [], []
        for first in range(0, len(self.rows), step):
            above = self._above(index, slice(first, first + step))
            upper.append(above[:, :size])
            lower.append(-above[:, size:])
        self.found[index] = Range(
            torch.maximum(known.lower, torch.cat(lower).reshape(known.lower.shape)),
            torch.minimum(known.upper, torch.cat(upper).reshape(known.upper.shape)),
        )

    def _above(self, index: int, batch: slice) -> Tensor:
        """At least plus (then minus) every entry of g of a node, (b, 2 size): coefficients pushed towards the output."""
        part, nodes = self.part, self.part.nodes
        size = nodes[index].size
        eye = torch.eye(size, dtype=torch.float64)
        c = {index: torch.cat([eye, -eye]).reshape(1, 2 * size, *nodes[index].shape)}
        rows = self.rows[batch]
        constant = torch.zeros((len(rows), 2 * size), dtype=torch.float64)
        error = torch.zeros_like(constant)
        for i in part.path:
            node = nodes[i]
            if i <= index or not any(j in c for j in node.inputs):
                continue
            if isinstance(node, Elementwise):
                c[i], more, lost = self._lines(i, c[node.inputs[0]], batch)
                constant = constant + more
                error = error + lost + 4 * gamma(2) * constant.abs()
            else:
                count = max(c[j].shape[0] for j in node.inputs if j in c)
                operands = []
                for j in node.inputs:
                    x = c[j] if j in c else torch.zeros((1, 2 * size, *nodes[j].shape), dtype=torch.float64)
                    operands.append(x.expand(count, *x.shape[1:]).reshape(-1, *nodes[j].shape))
                linear = linear_part(node)
                c[i] = evaluate(linear, *operands).reshape(count, 2 * size, *node.shape)
                for j, mass in zip(node.inputs, self._sizes[i], strict=True):
                    if j in c:
                        error = error + 2 * gamma(roundings(linear).forward + 8) * _dot(c[j].abs(), mass[batch])
            if i == part.end:
                constant = constant + _dot(c[i], rows)
        return up(constant + up(ROOM * (error + 4 * gamma(4) * constant.abs()))) + UNDERFLOW

    def _lines(self, index: int, c: Tensor, batch: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of g after `h = d g` is replaced by lines, the constant, and what rounding did."""
        g = Range(self.found[index].lower[batch], self.found[index].upper[batch])
        low, high = (t[batch] if t.shape[0] > 1 else t for t in self.ends[index])
        above, below = _chord(low, high, g), _chord(-high, -low, g)
        positive, negative = c.clamp(min=0), c.clamp(max=0)
        after = positive * above[0].unsqueeze(1) - negative * below[0].unsqueeze(1)
        constant = _dot(positive, above[1]) - _dot(negative, below[1])
        size = torch.maximum(above[0].abs(), below[0].abs()) * g.magnitude + torch.maximum(
            above[1].abs(), below[1].abs()
        )
        return after, constant, 2 * gamma(size[0].numel() + 8) * _dot(c.abs(), size)


def _chord(low: Tensor, high: Tensor, g: Range) -> tuple[Tensor, Tensor]:
    """Slope and offset of a line above `max(low g, high g)`, which is convex in g: at both ends it has to be above."""
    rising, falling = g.lower >= 0, g.upper <= 0
    slope = (high * g.upper - low * g.lower) / (g.upper - g.lower).clamp(min=1e-300)
    slope = torch.where(rising, high, torch.where(falling, low, slope))
    at_lower, at_upper = (torch.maximum(low * x, high * x) for x in (g.lower, g.upper))
    needed = torch.maximum(at_lower - slope * g.lower, at_upper - slope * g.upper)
    room = 8 * gamma(1) * (slope.abs() + torch.maximum(low.abs(), high.abs())) * g.magnitude
    return slope, torch.where(rising | falling, 0.0, up(needed + room))


def _dot(c: Tensor, weight: Tensor) -> Tensor:
    """`sum over a value's entries of c weight`: (b or 1, k, *shape) and (b, *shape) to (b, k)."""
    c, weight = c.reshape(*c.shape[:2], -1), weight.reshape(weight.shape[0], -1, 1)
    return (c @ weight).squeeze(2)
