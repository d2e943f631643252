"""Lines above and below the functions of `Elementwise` nodes, proved on an interval.

A line `c x + d` is above f on [p, q] if `g = f - c x` is at most d there. Piecewise linear functions: g is largest at an end or a knot.
All others: with difference quotients of f in [s, S], for any t in [0, w], w = q - p,

    g(x) <= g(p) + max(S - c, 0) t          for x <= p + t,
    g(x) <= g(q) + max(c - s, 0) (w - t)    for x >= p + t,

and where the larger right side exceeds d the interval is halved. A line below f is one above -f.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipcheck import functions
from lipcheck.bundle import Bundle, keys
from lipcheck.errors import Rejected
from lipcheck.nodes import Node
from lipcheck.rounding import Floats, downs, ups

LINEAR = ("relu", "leaky_relu", "prelu", "abs", "clip", "softshrink")
HALVINGS = 60
MOST = 3_000_000
"""Intervals that may be looked at for one line of a node."""

FIELDS = ("lower_slope", "lower_offset", "upper_slope", "upper_offset")


@dataclass(frozen=True)
class Lines:
    """`below[0] x + below[1] <= f(x) <= above[0] x + above[1]` on the operand's box, entrywise, of the node's shape."""

    below: tuple[Floats, Floats]
    above: tuple[Floats, Floats]


def read_lines(value: object, node: Node, bundle: Bundle) -> Lines:
    """The lines of a node as they are stored; nothing is proved yet.

    Raises:
        Rejected: they do not fit the specification.
    """
    if node.kind != "Elementwise":
        raise Rejected(f"lines belong to Elementwise nodes, {node.name!r} is {node.kind}")
    stored: Mapping[str, Any] = keys(value, set(FIELDS), f"lines of {node.name!r}")
    a, b, c, d = (bundle.floats(stored[name], node.shape, f"{name} of {node.name!r}") for name in FIELDS)
    return Lines((a, b), (c, d))


def prove_lines(node: Node, lo: Floats, hi: Floats, lines: Lines) -> None:
    """The lines hold on `[lo, hi]`, entrywise.

    Raises:
        Rejected: not proved; the message says how many.
    """
    with np.errstate(all="ignore"):
        for upper, (slope, offset) in ((True, lines.above), (False, lines.below)):
            signed = (slope, offset) if upper else (-slope, -offset)
            test = _kinked if node["function"] in LINEAR else _curved
            count = test(node, lo, hi, *signed, upper)
            if count:
                raise Rejected(
                    f"{count} of {slope.size} lines {'above' if upper else 'below'} {node['function']} at "
                    f"{node.name!r} are not proved"
                )


def _top(node: Node, lo: Floats, hi: Floats, upper: bool) -> Floats:
    """At least f on `[lo, hi]`, or -f."""
    least, most = functions.values(node, lo, hi)
    return np.asarray(most if upper else -least)


def _reaches(slope: Floats, x: Floats, offset: Floats, value: Floats) -> Floats:
    """Whether `slope x + offset >= value`, without any allowance: the product is rounded downward, the sum is exact."""
    product = slope * x
    product = np.where((slope == 0) | (x == 0), 0.0, downs(product))
    total = product + offset
    rest = total - product
    error = (product - (total - rest)) + (offset - rest)
    return np.asarray((total > value) | ((total == value) & (error >= 0)))


def _kinked(node: Node, lo: Floats, hi: Floats, slope: Floats, offset: Floats, upper: bool) -> int:
    argument = node.argument
    knots = {"clip": ("low", "high"), "softshrink": ("lambd", "lambd")}.get(node["function"])
    places = [0.0] if knots is None else [argument[k] for k in knots]
    if node["function"] == "softshrink":
        places[0] = -places[0]
    fine = np.ones(lo.shape, bool)
    for x in (lo, hi, *(np.minimum(np.maximum(lo, place), hi) for place in places)):
        fine &= _reaches(slope, x, offset, _top(node, x, x, upper))
    return int((~fine).sum())


def _curved(node: Node, lo: Floats, hi: Floats, slope: Floats, offset: Floats, upper: bool) -> int:
    flat = slope.reshape(-1) == 0
    easy = flat & (_top(node, lo, hi, upper).reshape(-1) <= offset.reshape(-1))
    p, q, c, d = (x.reshape(-1)[~easy] for x in (lo, hi, slope, offset))
    looked = 0
    for _ in range(HALVINGS):
        if not len(p):
            return 0
        looked += len(p)
        ends = [_top(node, x, x, upper) for x in (p, q)]
        missed = ~np.logical_and(_reaches(c, p, d, ends[0]), _reaches(c, q, d, ends[1]))
        if missed.any() or looked > MOST:
            return int(missed.sum()) or len(p)
        open_ = ~(_bound(node, p, q, c, ends, upper) <= d)  # NaN, where something overflowed, bounds nothing
        open_ &= p < q
        p, q, c, d = (x[open_] for x in (p, q, c, d))
        middle = p / 2 + q / 2
        p, q, c, d = np.concatenate([p, middle]), np.concatenate([middle, q]), np.tile(c, 2), np.tile(d, 2)
    return len(p)


def _bound(node: Node, p: Floats, q: Floats, c: Floats, ends: list[Floats], upper: bool) -> Floats:
    """At least `f - c x` on `[p, q]`, see the module."""
    if not len(p):
        return p
    least, most = functions.slopes(node, p, q)
    if not upper:
        least, most = -most, -least
    point = p == q  # no difference quotients: the range is empty
    rise, fall = (np.where(point, 0.0, np.maximum(ups(x), 0.0)) for x in (most - c, c - least))
    width = ups(q - p)
    first, last = ups(ends[0] - downs(c * p)), ups(ends[1] - downs(c * q))
    turn = np.clip((last - first + fall * width) / np.maximum(rise + fall, 1e-300), 0.0, width)
    return np.asarray(np.maximum(ups(first + ups(rise * turn)), ups(last + ups(fall * ups(width - turn)))))
