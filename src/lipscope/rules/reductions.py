"""Sums, means, Euclidean norms and log-sum-exps over whole axes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipscope.claims.norms import Norm
from lipscope.claims.rounding import gamma, sqrt_up
from lipscope.network.nodes import LogSumExp, Mean, Node, ReduceL2, Shape, Sum
from lipscope.rules.affine import value
from lipscope.rules.boxes import outward, smallest_magnitude, sum_error
from lipscope.rules.curves import CANCELLATION, RELATIVE
from lipscope.rules.questions import (
    Interval,
    NoRule,
    Roundings,
    absolute,
    box_image,
    evaluate,
    gain,
    linear_part,
    roundings,
)
from lipscope.rules.tensors import SUM_DEPTH, behind_batch, pairwise_sum


@evaluate.register
def _(node: Sum, *inputs: Tensor) -> Tensor:
    x = inputs[0]
    return pairwise_sum(x, behind_batch(node.axes)).reshape(x.shape[0], *node.shape)


@evaluate.register
def _(node: Mean, *inputs: Tensor) -> Tensor:
    x = inputs[0]
    count = math.prod(x.shape[a + 1] for a in node.axes)
    return pairwise_sum(x, behind_batch(node.axes)).reshape(x.shape[0], *node.shape) / count


@evaluate.register
def _(node: ReduceL2, *inputs: Tensor) -> Tensor:
    x = inputs[0]
    norm = torch.linalg.vector_norm(x, dim=behind_batch(node.axes)) if node.axes else x.abs()
    return norm.reshape(x.shape[0], *node.shape)


@evaluate.register
def _(node: LogSumExp, *inputs: Tensor) -> Tensor:
    x = inputs[0]
    return torch.logsumexp(x, behind_batch(node.axes)).reshape(x.shape[0], *node.shape) if node.axes else x


@linear_part.register(Sum)
@linear_part.register(Mean)
@absolute.register(Sum)
@absolute.register(Mean)
def _(node: Node) -> Node:
    return node


# The sum is a tree of known depth, so that its count needs no length; the adjoint copies. A mean divides once, by a
# whole number, in both directions.


@roundings.register
def _(node: Sum) -> Roundings:
    return Roundings(SUM_DEPTH, 0)


@roundings.register
def _(node: Mean) -> Roundings:
    return Roundings(SUM_DEPTH + 1, 1)


@box_image.register
def _(node: LogSumExp, *inputs: Interval) -> Interval:
    """Increasing in every entry: the value at both ends."""
    (box,) = inputs
    count = entries(node.axes, box)
    # The computed value is m + log(sum exp(x - m)), m the largest entry: off by an ulp of m, which may cancel with the
    # logarithm (at most log n < 44), and by the relative error of the sum.
    low, high = value(node, box.lower), value(node, box.upper)
    return outward(low, high, RELATIVE, CANCELLATION + 4 * gamma(count + 4))


@box_image.register
def _(node: ReduceL2, *inputs: Interval) -> Interval:
    """Increasing in every absolute value: the norm of the smallest and of the largest of them."""
    (box,) = inputs
    low, high = value(node, smallest_magnitude(box)), value(node, box.magnitude)
    # Squares may overflow from 1e154 on, and vanish below 1e-161.
    image = outward(low.clamp(max=1e153), high, sum_error(entries(node.axes, box)), 1e-150)
    return Interval(image.lower, torch.where(high > 1e153, math.inf, image.upper))


@gain.register
def _(node: LogSumExp, norm: Norm, region: Interval | None) -> float:
    """1: the gradient is a vector of probabilities; its dual norm is at most 1 for every norm."""
    return 1.0


@gain.register
def _(node: ReduceL2, norm: Norm, region: Interval | None) -> float:
    """1 in l1 and l2 (|x|_2 <= |x|_1), sqrt(n) in linf.

    n is the number of entries of a slice, which the region's shape tells; its ends may be infinite.
    """
    if norm != "linf":
        return 1.0
    if region is None:
        raise NoRule(
            node,
            "gain",
            "its constant in linf is the root of the number of entries, which only a region's shape tells; "
            "pass a box of the operand's shape, with infinite ends for the whole space",
        )
    return sqrt_up(entries(node.axes, region))


def entries(axes: Shape, box: Interval) -> int:
    """How many entries a slice along the axes has."""
    return math.prod(box.lower.shape[a] for a in axes)
