"""Segments: the linear maps between one nonlinear node and the next, taken whole.

A node v is affine in an earlier node a if every way back from v through affine nodes ends at a (or at constants).
The norm of the composed map is never above the product of its factors' norms, and it is exact where the factors
cancel or do not share their top directions, so segments are as long as they can be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lipscope.bounds.problem import Problem
from lipscope.claims.errors import ModelError
from lipscope.network.nodes import (
    AddConstant,
    BatchNorm,
    Conv,
    DivConstant,
    Elementwise,
    MulConstant,
    Node,
    Pad,
    Shape,
)  # fmt: skip
from lipscope.rules.linear_map import LinearMap
from lipscope.rules.questions import Roundings, absolute, evaluate, linear_part, roundings

SMALLEST_SCALE, LARGEST_SCALE = 2.0**-800, 2.0**100
"""Nonzero scales of channels, and their partial products, that may be taken into a convolution's weights."""

SMALLEST_WEIGHT = 1e-290
"""Nonzero scaled weights below lose accuracy."""

ROUNDED_AWAY = 2.0**-1040
"""More than underflow takes from one value on the way (2^-1075 for each of its terms)."""

NEGLIGIBLE = 1e-30
"""What underflow may take from a norm, relative to it."""


def anchors(problem: Problem) -> tuple[int, ...]:
    """For each node the node whose affine function it is.

    The anchor of a nonlinear node is itself, and so is that of an affine node whose inputs have different anchors (a
    residual sum). Nodes that depend on constants alone have anchor -1.
    """
    found: list[int] = []
    for index, node in enumerate(problem.graph.nodes):
        if problem.constant[index]:
            found.append(-1)
            continue
        sources = {found[i] for i in node.inputs} - {-1}
        single = problem.is_linear(index) and len(sources) == 1
        found.append(sources.pop() if single else index)
    return tuple(found)


@dataclass(frozen=True)
class Segment:
    """The linear map from the value of `start` to that of `end`.

    Attributes:
        start: the node it begins at; entries whose slopes are both 0 there are constant, their columns are 0.
        end: the node it ends at; if that is a nonlinear function, its rows carry the largest slopes.
        inner: the affine nodes between, in topological order (`end` included where it is affine).
        map: the linear map.
    """

    start: int
    end: int
    inner: tuple[int, ...]
    map: LinearMap


def between(problem: Problem, start: int, end: int) -> tuple[int, ...]:
    """The nodes after `start` that `end` depends on and that depend on `start`, `end` included, in order."""
    forward = {start}
    for index in range(start + 1, end + 1):
        if not problem.constant[index] and forward & set(problem.graph.nodes[index].inputs):
            forward.add(index)
    return tuple(sorted((forward & problem.graph.ancestors(end)) - {start}))


def segment(problem: Problem, start: int, end: int) -> Segment:
    """The segment from `start` to `end`, which must be affine in `start` up to a final nonlinear function."""
    path = between(problem, start, end)
    scaled_end = not problem.is_linear(end)
    inner = path[:-1] if scaled_end else path
    mask = _live_entries(problem, start)
    rows = _largest_slope(problem, end) if scaled_end else None
    factors = {index: _factor(problem, index) for index in inner}
    target = problem.graph.nodes[end].inputs[0] if scaled_end else end
    plain = _Composition(problem, start, target, factors, mask, rows)
    absolute_factors = {index: absolute(node) for index, node in factors.items()}
    positive = _Composition(problem, start, target, absolute_factors, mask, rows)
    _refuse_underflow(problem.graph.nodes[end], positive)
    chain = [factors[i] for i in inner]
    circle = _circle(problem.graph.nodes[start].shape, chain)
    if circle is not None:
        chain = chain[1:]
    linear_map = LinearMap(
        input_shape=problem.graph.nodes[start].shape,
        output_shape=problem.graph.nodes[end].shape,
        apply=plain.apply,
        adjoint=plain.adjoint,
        absolute=positive.apply,
        absolute_adjoint=positive.adjoint,
        roundings=_count(problem, start, target, factors, rows is not None),
        convolution=_as_convolution(chain, mask, rows),
        circle=circle,
    )
    return Segment(start, end, inner, linear_map)


def _refuse_underflow(end: Node, positive: _Composition) -> None:
    """Refuse a segment in which values may underflow and be enlarged afterwards: error bounds relative to |L| miss that.

    Raises:
        ModelError: what is lost may matter.
    """
    ones = torch.ones(1, *positive.input_shape, dtype=torch.float64)
    size = ones.numel()
    with torch.no_grad():
        largest = float(positive.apply(ones).max())
    lost = max(positive.enlarged()) * ROUNDED_AWAY
    # A map that is 0 or leaves float64 altogether is recognised later.
    if 0 < largest < math.inf and not lost * max(size, math.prod(end.shape)) <= NEGLIGIBLE * largest / size:
        raise ModelError(
            f"expected layers whose products float64 can hold, got intermediate values that underflow on the way to "
            f"{end.name!r} and are enlarged again; rescale the layers before it"
        )


def _live_entries(problem: Problem, index: int) -> Tensor | None:
    """1 where the value of node `index` can change on the region, 0 where it is constant; None if all can."""
    if index not in problem.slopes:
        return None
    lower, upper = problem.slopes[index]
    dead = (lower == 0) & (upper == 0)
    return (~dead).to(torch.float64) if bool(dead.any()) else None


def _largest_slope(problem: Problem, index: int) -> Tensor:
    lower, upper = problem.slopes[index]
    return torch.maximum(lower.abs(), upper.abs())


def _factor(problem: Problem, index: int) -> Node:
    """The linear part of an affine node; a function with fixed slopes is a multiplication by them."""
    node = problem.graph.nodes[index]
    if isinstance(node, Elementwise):
        value = problem.slopes[index][0].numpy()
        return MulConstant(inputs=node.inputs, shape=node.shape, name=node.name, value=value)
    return linear_part(node)


class _Composition:
    """Linear parts composed along the graph, and the transpose by automatic differentiation.

    The transpose of a linear map does not depend on the point, so one recorded pass per batch size serves every call.
    """

    def __init__(
        self, problem: Problem, start: int, target: int, factors: dict[int, Node], mask: Tensor | None,
        rows: Tensor | None,
    ) -> None:  # fmt: skip
        self._nodes = problem.graph.nodes
        self._start = start
        self._target = target
        self._factors = factors
        self._mask = mask
        self._rows = rows
        self._recorded: tuple[int, Tensor, Tensor] | None = None
        self.input_shape = problem.graph.nodes[start].shape

    def enlarged(self) -> tuple[float, float]:
        """By how much, of |L|, what is added to every value on the way arrives: at the output, and of the transpose."""
        with torch.enable_grad():
            x = torch.zeros((1, *self.input_shape), dtype=torch.float64, requires_grad=True)
            result = self.apply(x, lost=1.0)
            forward = float(result.detach().max())
            if not result.requires_grad:
                return forward, 0.0
            backward = torch.autograd.grad(result, x, torch.ones_like(result))[0]
        return forward, float(backward.max()) + 1.0

    def apply(self, x: Tensor, lost: float = 0.0) -> Tensor:
        """The map. With `lost`, every value on the way is enlarged by it, and so is every adjoint on the way back."""
        values = {self._start: x if self._mask is None else x * self._mask}
        remaining = {i: sum(i in self._nodes[j].inputs for j in self._factors) for i in (self._start, *self._factors)}
        for index, node in self._factors.items():
            batch = x.shape[:1]
            operands = [values[i] if i in values else x.new_zeros((*batch, *self._nodes[i].shape)) for i in node.inputs]
            values[index] = evaluate(node, *operands)
            if lost:
                values[index] = values[index] + lost
                if values[index].requires_grad:
                    values[index].register_hook(lambda adjoint: adjoint + lost)  # type: ignore[no-untyped-call]
            for i in set(node.inputs) & values.keys():
                remaining[i] -= 1
                if remaining[i] == 0 and i != self._target:
                    del values[i]
        result = values[self._target]
        return result if self._rows is None else result * self._rows

    def adjoint(self, y: Tensor) -> Tensor:
        batch = y.shape[0]
        if self._recorded is None or self._recorded[0] != batch:
            with torch.enable_grad():
                x = torch.zeros((batch, *self._nodes[self._start].shape), dtype=torch.float64, requires_grad=True)
                self._recorded = batch, x, self.apply(x)
        _, x, value = self._recorded
        if not value.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(value, x, y, retain_graph=True)[0]


def _count(problem: Problem, start: int, target: int, factors: dict[int, Node], scaled: bool) -> Roundings:
    """Roundings along the longest way; one more for the rows' scaling."""
    forward, backward = {start: 0}, {start: 0}
    for index, node in factors.items():
        own = roundings(node)
        forward[index] = own.forward + max((forward[i] for i in node.inputs if i in forward), default=0)
        # A value that several nodes read collects their adjoints in a sum: one rounding for each further reader.
        joins = max((sum(i in n.inputs for n in factors.values()) for i in node.inputs if i in forward), default=1)
        backward[index] = own.adjoint + joins - 1 + max((backward[i] for i in node.inputs if i in backward), default=0)
    extra = int(scaled)
    return Roundings(forward[target] + extra, backward[target] + extra)


def _circle(shape: Shape, factors: Sequence[Node]) -> Shape | None:
    """The numbers of output positions, if the segment begins with a convolution of an image (N, C, *spatial) that goes round.

    With n entries on an axis, stride s and extent e, the image padded by copies of its other end has n + low + high entries;
    output position p reads from `s p - low` on, all around the circle, if there are exactly n/s positions.
    """
    if len(factors) < 2 or not (isinstance(pad := factors[0], Pad) and isinstance(conv := factors[1], Conv)):
        return None
    plain = all(low == high == 0 for low, high in (*pad.pads[:2], *conv.padding))
    divided = all(n % s == 0 and n // s == m for n, s, m in zip(shape[2:], conv.stride, conv.shape[2:], strict=True))
    return conv.shape[2:] if pad.mode == "wrap" and plain and divided else None


def _as_convolution(factors: Sequence[Node], mask: Tensor | None, rows: Tensor | None) -> Conv | None:
    """The segment as one convolution with the scalings of its output channels in its weights."""
    convs = [node for node in factors if isinstance(node, Conv)]
    if len(convs) != 1 or mask is not None or not isinstance(factors[0], Conv):
        return None
    conv = convs[0]
    scale = torch.ones(conv.shape[1], dtype=torch.float64)
    for node in factors[1:]:
        if not isinstance(node, (BatchNorm, MulConstant, DivConstant, AddConstant)) and node.kind != "Reshape":
            return None
        if node.kind == "Reshape" and node.shape != conv.shape:
            return None
        found = _scaled(scale, _per_channel(evaluate(node, torch.ones((1, *conv.shape), dtype=torch.float64))[0]))
        if found is None:
            return None
        scale = found
    if rows is not None:
        found = _scaled(scale, _per_channel(rows))
        if found is None:
            return None
        scale = found
    weight = np.asarray(conv.weight, dtype=np.float64)
    scaled = weight * scale.numpy().reshape(-1, *(1,) * (weight.ndim - 1))
    zero = (weight == 0) | (scale.numpy() == 0).reshape(-1, *(1,) * (weight.ndim - 1))
    if not (zero | (np.abs(scaled) >= SMALLEST_WEIGHT)).all():
        return None
    return replace(conv, weight=scaled, bias=None)


def _scaled(scale: Tensor, by: Tensor | None) -> Tensor | None:
    """The product of channel scales; None unless it and its factors are 0 or in the range of the certificate's `grid`."""
    if by is None:
        return None
    result = scale * by
    for values in (by, result):
        size = values.abs()
        if not bool(((values == 0) | ((size >= SMALLEST_SCALE) & (size <= LARGEST_SCALE))).all()):
            return None
    return None if bool(((result == 0) & (scale != 0) & (by != 0)).any()) else result


def _per_channel(values: Tensor) -> Tensor | None:
    """One number per channel (axis 1) if `values` (N, C, *spatial) is constant elsewhere."""
    by_channel = values.movedim(1, 0).reshape(values.shape[1], -1)
    first = by_channel[:, :1]
    return first[:, 0].clone() if bool((by_channel == first).all()) else None
