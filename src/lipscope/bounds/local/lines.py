"""Lines above and below a function of one variable on an interval, proved and rounded outward.

A line `c x + d` lies above phi on [l, h] if `d >= max (phi(x) - c x)`. So every slope c is allowed, and only the offset has to
be proved:

* piecewise linear functions: the maximum is attained at an end or at a kink;
* all others: [l, h] is cut into pieces. On a piece [p, q] with slopes in [s, S] and `g = phi - c x`, for any t in [0, q - p],
  `g <= max(g(p) + max(S - c, 0) t, g(q) + max(c - s, 0) (q - p - t))`: left of p + t the first bounds g, right of it the second.

The slope is chosen to make the line lowest in the middle of the interval: that is the chord of a convex function, the
tangent at the middle of a concave one, and for an S-shaped one a tangent through an end (Zhang et al., arXiv 1811.00866, choose so by cases).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipscope.claims.rounding import up
from lipscope.network.nodes import Elementwise
from lipscope.rules.questions import Interval, NoRule, box_image, slopes

PIECES = 32
"""Pieces that an interval is cut into where the function is not piecewise linear."""

LINEAR = 1e-14
"""Relative widening of offsets of piecewise linear functions: a few dozen units in the last place, some of them for the checker."""

SMOOTH = 1e-11
"""Relative widening of the other offsets: ten times that of the values and slopes that they rest on."""


@dataclass(frozen=True, eq=False)
class Lines:
    """`lower_slope x + lower_offset <= phi(x) <= upper_slope x + upper_offset` on an interval; finite, of a node's shape."""

    lower_slope: Tensor
    lower_offset: Tensor
    upper_slope: Tensor
    upper_offset: Tensor


def lines(node: Elementwise, box: Interval, own_slopes: tuple[Tensor, Tensor], image: Interval) -> Lines | None:
    """Lines of a node's function over the box of its operand; None where the box or the function's range is not finite.

    Args:
        node: the function.
        box: contains every value of the operand.
        own_slopes: the difference quotients of the function there.
        image: contains the function's values there.
    """
    if not all(bool(t.isfinite().all()) for t in (box.lower, box.upper, image.lower, image.upper)):
        return None
    low, high = box.lower.reshape(-1), box.upper.reshape(-1)
    kinks = _kinks(node, low, high)
    try:
        cut = _piecewise(node, box, kinks) if kinks is not None else _cut(node, low, high)
    except NoRule:
        return None
    fixed = (own_slopes[0] == own_slopes[1]).reshape(-1)
    steep = own_slopes[0].reshape(-1)
    upper = _above(cut, torch.where(fixed, steep, torch.nan), image.upper.reshape(-1))
    lower = _above(cut.negated(), torch.where(fixed, -steep, torch.nan), -image.lower.reshape(-1))
    return Lines(*(t.reshape(node.shape).contiguous() for t in (-lower[0], -lower[1], *upper)))


@dataclass(frozen=True, eq=False)
class _Cut:
    """Points (n, k) that begin and end the pieces, the values there (enclosed), and the slopes (n, k - 1) between.

    `slopes` is None where the function is linear on every piece.
    """

    points: Tensor
    low: Tensor
    high: Tensor
    slopes: tuple[Tensor, Tensor] | None

    def negated(self) -> _Cut:
        """The same of -phi."""
        mirrored = None if self.slopes is None else (-self.slopes[1], -self.slopes[0])
        return _Cut(self.points, -self.high, -self.low, mirrored)


def _kinks(node: Elementwise, low: Tensor, high: Tensor) -> list[Tensor] | None:
    """The kinks of a piecewise linear function, moved into the interval; None for other functions."""
    argument = node.argument
    match node.function:
        case "relu" | "leaky_relu" | "prelu" | "abs":
            places = [0.0]
        case "clip":
            places = [argument["low"], argument["high"]]
        case "softshrink":
            places = [-argument["lambd"], argument["lambd"]]
        case _:
            return None
    return [low.clamp(min=place).minimum(high) for place in places]


def _piecewise(node: Elementwise, box: Interval, kinks: list[Tensor]) -> _Cut:
    low, high = box.lower.reshape(-1), box.upper.reshape(-1)
    points = torch.stack([low, *kinks, high], 1)
    images = [box_image(node, Interval(x.reshape(node.shape), x.reshape(node.shape))) for x in points.T]
    lowest = torch.stack([image.lower.reshape(-1) for image in images], 1)
    highest = torch.stack([image.upper.reshape(-1) for image in images], 1)
    return _Cut(points, lowest, highest, None)


def _cut(node: Elementwise, low: Tensor, high: Tensor) -> _Cut:
    share = torch.linspace(0, 1, PIECES + 1, dtype=torch.float64)
    points = (low[:, None] + (high - low)[:, None] * share).clamp(low[:, None], high[:, None])
    points[:, 0], points[:, -1] = low, high
    at = box_image(node, Interval(points, points))
    between = slopes(node, Interval(points[:, :-1].contiguous(), points[:, 1:].contiguous()))
    return _Cut(points, at.lower, at.upper, between)


def _above(cut: _Cut, wanted: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and proved offset of a line above; the constant one where there is no better.

    Args:
        cut: the function.
        wanted: slopes that must be taken, where they are numbers.
        constant: an upper bound of the function.
    """
    middle = cut.points[:, 0] / 2 + cut.points[:, -1] / 2
    chosen = _kinked_slope(cut, middle) if cut.slopes is None else _curved_slope(cut, middle)
    slope = torch.nan_to_num(torch.where(wanted.isnan(), chosen, wanted), nan=0.0, posinf=0.0, neginf=0.0)
    offset = _offset(cut, slope)
    better = offset.isfinite() & (slope * middle + offset <= constant)
    return torch.where(better, slope, 0.0), torch.where(better, offset, constant)


def _kinked_slope(cut: _Cut, middle: Tensor) -> Tensor:
    """The slope, out of those between two of the points, whose line is lowest in the middle."""
    best, height = torch.zeros_like(middle), torch.full_like(middle, torch.inf)
    count = cut.points.shape[1]
    for i in range(count):
        for j in range(i + 1, count):
            run = cut.points[:, j] - cut.points[:, i]
            slope = torch.where(run > 0, (cut.high[:, j] - cut.high[:, i]) / run, 0.0)
            here = (cut.high + slope[:, None] * (middle[:, None] - cut.points)).amax(1)
            # A slope that is a little lower in the middle because of rounding is not worth an inexact number.
            better = here < height - 1e-13 * height.abs().nan_to_num(posinf=0.0)
            best, height = torch.where(better, slope, best), torch.where(better, here, height)
    return best


def _curved_slope(cut: _Cut, middle: Tensor) -> Tensor:
    """Golden-section search for the slope whose line through the highest of the points is lowest in the middle (convex)."""
    assert cut.slopes is not None
    low, high = cut.slopes[0].amin(1), cut.slopes[1].amax(1)
    ratio = (5**0.5 - 1) / 2

    def height(slope: Tensor) -> Tensor:
        return (cut.high + slope[:, None] * (middle[:, None] - cut.points)).amax(1)

    for _ in range(40):
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        left = height(first) <= height(second)
        low, high = torch.where(left, low, first), torch.where(left, second, high)
    return (low + high) / 2


def _offset(cut: _Cut, slope: Tensor) -> Tensor:
    """At least `phi(x) - slope x` on the whole interval, some units in the last place more for the checker's own rounding."""
    c = slope[:, None]
    rise = c * cut.points
    g = cut.high - rise
    size = (cut.high.abs() + rise.abs()).amax(1)
    if cut.slopes is None:
        return up(g.amax(1) + LINEAR * size)
    below, above = (c - cut.slopes[0]).clamp(min=0), (cut.slopes[1] - c).clamp(min=0)
    start, stop = g[:, :-1], g[:, 1:]
    width = up(cut.points[:, 1:] - cut.points[:, :-1])
    turn = ((stop - start + below * width) / (above + below).clamp(min=1e-300)).clamp(min=0).minimum(width)
    most = torch.maximum(start + above * turn, stop + below * up(width - turn)).amax(1)
    extent = ((above + below) * width).amax(1)
    return up(most + SMOOTH * (size + extent))
