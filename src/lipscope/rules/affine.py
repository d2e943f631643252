"""The image of a box under any affine node, from its value, its linear part and its rounding count alone."""

from __future__ import annotations

import math
from functools import singledispatch

import torch
from torch import Tensor

from lipscope.claims.rounding import down, gamma, up
from lipscope.network.nodes import AffineNode, Node
from lipscope.rules.questions import Interval, absolute, box_image, evaluate, linear_part, roundings

CHECKER_FACTOR = 4.0
"""How much wider than our own rounding error a box is made. The independent checker computes the same box with another
order of summation and adds its own error; its box has to lie inside ours, so ours carries both errors, twice."""


@singledispatch
def majorant(node: Node) -> Node:
    """The affine node with all its terms made positive: at |x| it bounds every intermediate value of `evaluate` at x.

    The default fits nodes without a constant part.
    """
    return absolute(linear_part(node))


def value(node: Node, *inputs: Tensor) -> Tensor:
    """`evaluate` of one example, without batch axis."""
    return evaluate(node, *(x.unsqueeze(0) for x in inputs)).squeeze(0)


def midpoint_radius(box: Interval) -> tuple[Tensor, Tensor]:
    """(m, r) with the box inside `[m - r, m + r]`, r rounded upward; finite boxes only, a point has r = 0."""
    middle = box.lower / 2 + box.upper / 2
    middle = torch.where(box.lower == box.upper, box.lower, middle)
    radius = torch.maximum(up(box.upper - middle), up(middle - box.lower))
    return middle, torch.where(box.lower == box.upper, 0.0, radius)


def widen(lower: Tensor, upper: Tensor, error: Tensor) -> Interval:
    """`[lower - error, upper + error]` rounded outward; what is not a number becomes infinite."""
    return Interval(
        torch.nan_to_num(down(lower - error), nan=-math.inf, posinf=math.inf, neginf=-math.inf),
        torch.nan_to_num(up(upper + error), nan=math.inf, posinf=math.inf, neginf=-math.inf),
    )


@box_image.register
def _(node: AffineNode, *inputs: Interval) -> Interval:
    """Midpoint and radius: `L [m - r, m + r] + b` is `[L m + b - |L| r, L m + b + |L| r]`.

    With M the majorant at `|m| + r`, every intermediate value of both evaluations is at most M, so each is off by at
    most `gamma_k M` (k counts the linear part's roundings and those of the constants). An entry that an unbounded
    input entry reaches is unbounded on both sides.
    """
    boxes = [_finite(box) for box in inputs]
    pairs = [midpoint_radius(box) for box in boxes]
    length = absolute(linear_part(node))
    centre = value(node, *(m for m, _ in pairs))
    radius = value(length, *(r for _, r in pairs))
    largest = value(majorant(node), *(m.abs() + r for m, r in pairs))
    # Ours is the first count; the second is that of a plain sum over a slice, which the checker may use.
    entries = sum(box.lower.numel() for box in inputs)
    count = max(roundings(linear_part(node)).forward, entries // node.size) + 4
    error = up(CHECKER_FACTOR * gamma(count) * largest) + UNDERFLOW
    image = widen(down(centre - radius), up(centre + radius), error)
    if all(torch.isfinite(box.lower).all() and torch.isfinite(box.upper).all() for box in inputs):
        return image
    reached = value(length, *(_unbounded(box) for box in inputs)) > 0
    return Interval(image.lower.masked_fill(reached, -math.inf), image.upper.masked_fill(reached, math.inf))


UNDERFLOW = 1e-280
"""More than all that underflow can lose (2^-1074 for each of fewer than 2^62 operations), and than what the checker adds
for it (a small multiple of 2^-1000 for each)."""


def _unbounded(box: Interval) -> Tensor:
    """1 where the box has an infinite end, 0 elsewhere."""
    return (~(torch.isfinite(box.lower) & torch.isfinite(box.upper))).to(torch.float64)


def _finite(box: Interval) -> Interval:
    """The box with unbounded entries replaced by the point 0."""
    off = _unbounded(box) > 0
    return Interval(box.lower.masked_fill(off, 0.0), box.upper.masked_fill(off, 0.0))
