"""The functions of `Elementwise` on intervals: enclosures of their values and of their difference quotients.

Slopes are exact hulls of the derivative (difference quotients lie in its closed convex hull), rounded outward by at
most one unit in the last place. An interval `[a, b]` may have infinite ends where the claim is about everything; an
interval of one point has no difference quotients, so that any pair of numbers bounds them: it returns an empty range
(`lower = inf`, `upper = -inf`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from flint import arb, ctx
from numpy.typing import NDArray

from lipcheck.errors import Rejected
from lipcheck.nodes import Node
from lipcheck.rounding import Floats, downs, ups
from lipcheck.smooth import PRECISION, SMOOTH, Smooth, power

Range = tuple[Floats, Floats]

SELU_SCALE, SELU_ALPHA = "1.0507009873554804934193349852946", "1.6732632423543772848170429916717"


def arb_down(x: arb) -> float:
    """The largest float not above the ball."""
    low = x.lower()
    value = float(low)
    if math.isnan(value):
        return -math.inf
    return value if arb(value) <= low else math.nextafter(value, -math.inf)


def arb_up(x: arb) -> float:
    """The smallest float not below the ball."""
    return -arb_down(-x)


def enclose(function: Callable[[arb], arb], x: Floats) -> Range:
    """Tight float enclosures of a function at every entry (finite ones)."""
    points, inverse = np.unique(x, return_inverse=True)
    low, high = np.empty(points.shape), np.empty(points.shape)
    with ctx.workprec(PRECISION):
        for i, point in enumerate(points):
            ball = function(arb(float(point)))
            low[i], high[i] = arb_down(ball), arb_up(ball)
    return low[inverse].reshape(x.shape), high[inverse].reshape(x.shape)


def _enclose_with_limits(smooth: Smooth, scale: arb, x: Floats) -> Range:
    """F' at every entry of x times scale; infinite entries give the limits."""
    inside = np.where(np.isfinite(x), x, 0.0)
    low, high = enclose(lambda t: smooth.derivative(t * scale), inside)
    for end, index in ((-math.inf, 0), (math.inf, 1)):
        if smooth.limits is not None:
            low = np.where(x == end, smooth.limits[index], low)
            high = np.where(x == end, smooth.limits[index], high)
    return low, high


def _hull(ranges: Sequence[Range]) -> Range:
    return np.minimum.reduce([r[0] for r in ranges]), np.maximum.reduce([r[1] for r in ranges])


def _inside(points: Sequence[arb], scale: arb, values: Sequence[arb], lo: Floats, hi: Floats) -> list[Range]:
    """The ranges that the values at interior points contribute: empty where the interval does not reach the point."""
    found: list[Range] = []
    for point, value in zip(points, values, strict=True):
        where = point / scale
        hit = (lo <= arb_up(where)) & (hi >= arb_down(where))
        found.append((np.where(hit, arb_down(value), np.inf), np.where(hit, arb_up(value), -np.inf)))
    return found


def _check_domain(name: str, smooth: Smooth, lo: Floats, hi: Floats) -> None:
    fine = {
        "all": True,
        "positive": bool((lo > 0).all()),
        "nonnegative": bool((lo >= 0).all()),
        "nonzero": bool(((lo > 0) | (hi < 0)).all()),
    }[smooth.domain]
    if not fine:
        raise Rejected(f"{name} is not defined on the whole of the operand's interval")


def _smooth(node: Node) -> tuple[Smooth, arb] | None:
    """The function and beta, if node is f(beta x)/beta for a row of the table."""
    name, argument = node["function"], node.argument
    if name == "square" or name == "power":
        return power(int(argument.get("exponent", 2))), arb(1)
    if name in SMOOTH:
        return SMOOTH[name], arb(argument.get("beta", 1.0))
    return None


# ------------------------------------------------------------------------------------------------------- slopes


def slopes(node: Node, lo: Floats, hi: Floats) -> Range:
    """Enclosure of all difference quotients of the node's function on `[lo, hi]`, entrywise; ends may be infinite.

    Raises:
        Rejected: the function has no finite slope there, or is not defined.
    """
    name = node["function"]
    empty = lo == hi
    with ctx.workprec(PRECISION), np.errstate(all="ignore"):
        low, high = _slopes(node, lo, hi)
    low, high = np.where(empty, np.inf, low), np.where(empty, -np.inf, high)
    bad = ~empty & ~(np.isfinite(low) & np.isfinite(high))
    if bad.any():
        raise Rejected(f"{name} has no finite slope on {int(bad.sum())} of the intervals of {node.name!r}")
    return low, high


def _slopes(node: Node, lo: Floats, hi: Floats) -> Range:
    name = node["function"]
    smooth = _smooth(node)
    if smooth is not None:
        function, scale = smooth
        if function.limits is None and not (np.isfinite(lo).all() and np.isfinite(hi).all()):
            raise Rejected(f"{name} has no finite slope on the whole line")
        _check_domain(name, function, lo, hi)
        ends = [_enclose_with_limits(function, scale, x) for x in (lo, hi)]
        turning = function.turning()
        return _hull([*ends, *_inside(turning, scale, [function.derivative(t) for t in turning], lo, hi)])
    if name in ("sin", "cos"):  # sin' = cos, cos' = cos(. + pi/2)
        return _cosine(lo, hi, 0 if name == "sin" else -1)
    if name in ("elu", "celu", "selu"):
        return _elu_slopes(node, lo, hi)
    if name == "hardswish":
        below, above = np.clip(lo, -3.0, 3.0), np.clip(hi, -3.0, 3.0)
        middle = enclose(lambda t: (2 * t + 3) / 6, below)[0], enclose(lambda t: (2 * t + 3) / 6, above)[1]
        return _pieces(lo, hi, [-3.0, 3.0], [np.zeros(()), middle, np.ones(())])
    knots, steps = _linear_pieces(node)
    return _pieces(lo, hi, knots, [np.asarray(s, dtype=np.float64) for s in steps])


def _pieces(lo: Floats, hi: Floats, knots: list[float], steps: Sequence[Floats | Range]) -> Range:
    """Hull of the slopes of those pieces whose inside meets the inside of the interval."""
    edges = [-math.inf, *knots, math.inf]
    found: list[Range] = [(np.full(lo.shape, np.inf), np.full(lo.shape, -np.inf))]
    for left, right, step in zip(edges[:-1], edges[1:], steps, strict=True):
        hit = (lo < right) & (hi > left) & (left < right)
        low, high = step if isinstance(step, tuple) else (step, step)
        found.append((np.where(hit, low, np.inf), np.where(hit, high, -np.inf)))
    return _hull(found)


def _linear_pieces(node: Node) -> tuple[list[float], list[float | NDArray[np.float64]]]:
    name, argument = node["function"], node.argument
    if name == "clip":
        return [argument["low"], argument["high"]], [0.0, 1.0, 0.0]
    if name == "softshrink":
        return [-argument["lambd"], argument["lambd"]], [1.0, 0.0, 1.0]
    negative = {"relu": 0.0, "abs": -1.0, "leaky_relu": argument.get("negative_slope"), "prelu": node["slope"]}[name]
    return [0.0], [negative, 1.0]


def _elu(node: Node) -> tuple[arb, arb, arb, arb]:
    """(s, A, k, A k) of `s x if x >= 0 else A (exp(k x) - 1)`."""
    name, one = node["function"], arb(1)
    if name == "selu":
        scale, alpha = arb(SELU_SCALE), arb(SELU_ALPHA)
        return scale, scale * alpha, one, scale * alpha
    alpha = arb(node.argument["alpha"])
    return (one, alpha, one, alpha) if name == "elu" else (one, alpha, 1 / alpha, one)


def _elu_slopes(node: Node, lo: Floats, hi: Floats) -> Range:
    positive, _, rate, steep = _elu(node)
    finite_lo, finite_hi = np.maximum(np.minimum(lo, 0.0), -1e300), np.maximum(np.minimum(hi, 0.0), -1e300)
    at_lo = enclose(lambda t: steep * (rate * t).exp(), finite_lo)
    at_lo = np.where(np.isinf(lo), 0.0, at_lo[0]), np.where(np.isinf(lo), 0.0, at_lo[1])
    # Below -1e300 the slope lies between 0 and that at -1e300, which the hull with the limit 0 covers.
    far = lo < -1e300
    at_lo = np.where(far, np.minimum(at_lo[0], 0.0), at_lo[0]), np.where(far, np.maximum(at_lo[1], 0.0), at_lo[1])
    negative = _hull([at_lo, enclose(lambda t: steep * (rate * t).exp(), finite_hi)])
    right = np.full(lo.shape, arb_down(positive)), np.full(lo.shape, arb_up(positive))
    return _pieces(lo, hi, [0.0], [negative, right])


def _cosine(lo: Floats, hi: Floats, quarter: int) -> Range:
    """Range of `cos(x - quarter pi/2)`: extrema at the integers of `(x - quarter pi/2)/pi`, even ones being 1."""
    wide = ~(np.isfinite(lo) & np.isfinite(hi) & (np.abs(lo) < 1e15) & (np.abs(hi) < 1e15))
    a, b = np.where(wide, 0.0, lo), np.where(wide, 0.0, hi)
    phase = quarter * arb.pi() / 2
    ends = [enclose(lambda t: (t - phase).cos(), x) for x in (a, b)]
    first = np.ceil(enclose(lambda t: (t - phase) / arb.pi(), a)[0])
    last = np.floor(enclose(lambda t: (t - phase) / arb.pi(), b)[1])
    count = last - first + 1
    even = (count >= 2) | ((count == 1) & (first % 2 == 0)) | wide
    odd = (count >= 2) | ((count == 1) & (first % 2 != 0)) | wide
    low, high = _hull(ends)
    return np.where(odd, -1.0, np.maximum(low, -1.0)), np.where(even, 1.0, np.minimum(high, 1.0))


# ------------------------------------------------------------------------------------------------------- values


def values(node: Node, lo: Floats, hi: Floats) -> Range:
    """Enclosure of the node's function on the finite interval `[lo, hi]`, entrywise.

    Raises:
        Rejected: the function is not defined there.
    """
    name, argument = node["function"], node.argument
    with ctx.workprec(PRECISION), np.errstate(all="ignore"):
        smooth = _smooth(node)
        if smooth is not None:
            function, scale = smooth
            _check_domain(name, function, lo, hi)
            ends = [enclose(lambda t: function.value(t * scale) / scale, x) for x in (lo, hi)]
            still = function.stationary()
            return _hull([*ends, *_inside(still, scale, [function.value(t) / scale for t in still], lo, hi)])
        if name in ("sin", "cos"):
            return _cosine(lo, hi, 1 if name == "sin" else 0)
        if name == "hardswish":
            # Falls on (-3, -3/2), rises afterwards; constant below -3.
            ends = [enclose(_hardswish, x) for x in (lo, hi)]
            return _hull([*ends, *_inside([arb(-1.5)], arb(1), [arb(-0.375)], lo, hi)])
        if name in ("elu", "celu", "selu"):
            positive, amplitude, rate, _ = _elu(node)
            right = [enclose(lambda t: positive * t, np.maximum(x, 0.0)) for x in (lo, hi)]
            left = [enclose(lambda t: amplitude * (rate * t).expm1(), np.minimum(x, 0.0)) for x in (lo, hi)]
            return _split(lo, hi, _hull(left), _hull(right))
        return _piecewise_values(name, argument, node["slope"], lo, hi)


def _split(lo: Floats, hi: Floats, left: Range, right: Range) -> Range:
    """Hull of the ranges of the sides of 0 that the interval reaches; each is over the part on its side, 0 included."""
    low = np.where(hi <= 0, left[0], np.where(lo >= 0, right[0], np.minimum(left[0], right[0])))
    high = np.where(hi <= 0, left[1], np.where(lo >= 0, right[1], np.maximum(left[1], right[1])))
    return low, high


def _hardswish(x: arb) -> arb:
    if x <= -3:
        return arb(0)
    return x if x >= 3 else x * (x + 3) / 6


def _piecewise_values(name: str, argument: dict[str, float], slope: Floats | None, lo: Floats, hi: Floats) -> Range:
    if name == "relu":
        return np.maximum(lo, 0.0), np.maximum(hi, 0.0)
    if name == "clip":
        low, high = argument["low"], argument["high"]
        return np.clip(lo, low, high), np.clip(hi, low, high)
    if name == "abs":
        sizes = np.abs(lo), np.abs(hi)
        return np.where((lo <= 0) & (hi >= 0), 0.0, np.minimum(*sizes)), np.maximum(*sizes)
    if name == "softshrink":
        lambd = argument["lambd"]
        shrink = [np.where(np.abs(x) > lambd, x - np.copysign(lambd, x), 0.0) for x in (lo, hi)]
        exact = [(np.abs(x) <= lambd) | (lambd == 0) for x in (lo, hi)]
        return np.where(exact[0], shrink[0], downs(shrink[0])), np.where(exact[1], shrink[1], ups(shrink[1]))
    factor = np.asarray(argument["negative_slope"] if name == "leaky_relu" else slope, dtype=np.float64)
    ends = [factor * np.minimum(x, 0.0) for x in (lo, hi)]
    zero = [(np.minimum(x, 0.0) == 0) | (factor == 0) | (factor == 1) for x in (lo, hi)]
    left = _hull([(np.where(z, e, downs(e)), np.where(z, e, ups(e))) for z, e in zip(zero, ends, strict=True)])
    return _split(lo, hi, left, (np.maximum(lo, 0.0), np.maximum(hi, 0.0)))
