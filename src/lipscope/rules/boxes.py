"""Interval arithmetic that the nonlinear rules share. Everything is rounded outward; no result is NaN."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipscope.claims.rounding import LARGEST, down, gamma, up
from lipscope.rules.curves import RELATIVE, TINY
from lipscope.rules.questions import Interval


def outward(lower: Tensor, upper: Tensor, relative: float = RELATIVE, absolute: float = TINY) -> Interval:
    """The computed interval, widened by `relative |end| + absolute`; what is not a number becomes infinite.

    An end that overflowed to the inner side (a lower end of +inf) is a number above the largest one.
    """
    lower = torch.nan_to_num(lower, nan=-math.inf, posinf=LARGEST, neginf=-math.inf)
    upper = torch.nan_to_num(upper, nan=math.inf, posinf=math.inf, neginf=-LARGEST)
    return Interval(down(lower - (relative * lower.abs() + absolute)), up(upper + (relative * upper.abs() + absolute)))


def hull(first: Interval, second: Interval) -> Interval:
    """The smallest box that holds both."""
    return Interval(first.lower.minimum(second.lower), first.upper.maximum(second.upper))


def smallest_magnitude(box: Interval) -> Tensor:
    """The smallest absolute value, entrywise."""
    return torch.maximum(box.lower, -box.upper).clamp(min=0)


def product(a: Interval, b: Interval) -> Interval:
    """The products: extreme at corners, 0 times an infinite end being 0."""
    corners = torch.stack([torch.nan_to_num(x * y, nan=0.0, posinf=math.inf, neginf=-math.inf)
                           for x in (a.lower, a.upper) for y in (b.lower, b.upper)])  # fmt: skip
    return outward(corners.amin(0), corners.amax(0))


def reciprocal(box: Interval) -> Interval:
    """The reciprocals; the whole line where the interval holds 0."""
    low, high = torch.minimum(1 / box.lower, 1 / box.upper), torch.maximum(1 / box.lower, 1 / box.upper)
    inside = (box.lower <= 0) & (box.upper >= 0)
    image = outward(low, high)
    return Interval(image.lower.masked_fill(inside, -math.inf), image.upper.masked_fill(inside, math.inf))


def others(x: Tensor) -> Tensor:
    """For each entry along the last axis the sum of all the others, for x >= 0: no subtraction, so no cancellation.

    Relative error at most `gamma_n`.
    """
    before = torch.cat((torch.zeros_like(x[..., :1]), x[..., :-1].cumsum(-1)), -1)
    after = torch.cat((x[..., 1:].flip(-1).cumsum(-1).flip(-1), torch.zeros_like(x[..., :1])), -1)
    return before + after


def sum_error(count: int) -> float:
    """Relative widening of a function of a sum of `count` terms >= 0."""
    return RELATIVE + 4 * gamma(count + 4)
