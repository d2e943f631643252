"""`Discontinuous` nodes: their boxes, and a network in which their decisions are frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcheck.nodes import Network, Node
from lipcheck.rounding import Floats, downs, ups

Range = tuple[Floats, Floats]
Truths = NDArray[np.bool_]

COUNTABLE_EXCEPTIONS = frozenset({"where", "threshold", "hardshrink", "modulo"})
"""The operators whose values are not countably many."""

_MONOTONE = {"sign": np.sign, "round": np.rint, "floor": np.floor, "ceil": np.ceil, "truncate": np.trunc}


def _truth(possible: Truths, certain: Truths) -> Range:
    return certain.astype(np.float64), possible.astype(np.float64)


def _compare(operator: str, a: Range, b: Range) -> Range:
    if operator in ("greater", "greater_equal"):
        a, b, operator = b, a, {"greater": "less", "greater_equal": "less_equal"}[operator]
    if operator == "less":
        return _truth(a[0] < b[1], a[1] < b[0])
    if operator == "less_equal":
        return _truth(a[0] <= b[1], a[1] <= b[0])
    same = (a[0] == a[1]) & (b[0] == b[1]) & (a[0] == b[0])
    return _truth((a[0] <= b[1]) & (b[0] <= a[1]), same)


def _logic(operator: str, inputs: Sequence[Range]) -> Range:
    possible = [(lo != 0) | (hi != 0) for lo, hi in inputs]  # may differ from 0
    certain = [(lo > 0) | (hi < 0) for lo, hi in inputs]
    if operator == "logical_not":
        return _truth(~certain[0], ~possible[0])
    combine = np.logical_and if operator == "logical_and" else np.logical_or
    return _truth(combine(*possible), combine(*certain))


def _arg(node: Node, lo: Floats, hi: Floats) -> Range:
    """The indices of the entries that may be the first extreme one."""
    axis = node["axis"]
    if node["operator"] == "argmin":
        lo, hi = -hi, -lo
    place = np.arange(lo.shape[axis]).reshape([-1 if a == axis else 1 for a in range(lo.ndim)])
    # Entry i is out if some entry is certainly larger, or an earlier one certainly not smaller.
    best = lo.max(axis=axis, keepdims=True)
    earlier = np.maximum.accumulate(lo, axis=axis)
    shifted = np.concatenate([np.full_like(np.take(lo, [0], axis), -np.inf), earlier], axis=axis)
    shifted = np.take(shifted, np.arange(lo.shape[axis]), axis)
    may = (hi >= best) & (hi > shifted)
    n = lo.shape[axis]
    first, last = np.where(may, place, n).min(axis=axis), np.where(may, place, -1).max(axis=axis)
    return first.astype(np.float64).reshape(node.shape), last.astype(np.float64).reshape(node.shape)


def _one_hot(node: Node, lo: Floats, hi: Floats) -> Range:
    axis, (off, on) = node["axis"], (node.argument["off"], node.argument["on"])
    place = np.arange(node.shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(node.shape))])
    a, b = np.expand_dims(lo, axis), np.expand_dims(hi, axis)
    possible, certain = (a <= place) & (place <= b), (a == place) & (place == b)
    one = np.where(certain, on, np.where(possible, min(on, off), off))
    return one, np.where(certain, on, np.where(possible, max(on, off), off))


def _hull(cases: Sequence[tuple[Truths, NDArray[Any], NDArray[Any]]]) -> Range:
    """Hull of the ranges whose condition may hold; each case is (condition, lower, upper)."""
    lows = [np.where(c, lo, np.inf) for c, lo, _ in cases]
    highs = [np.where(c, hi, -np.inf) for c, _, hi in cases]
    return np.minimum.reduce(lows), np.maximum.reduce(highs)


def image(node: Node, inputs: Sequence[Range]) -> Range:
    """The range of the node's value."""
    operator, argument = node["operator"], node.argument
    lo, hi = inputs[0]
    if operator in _MONOTONE:
        return _MONOTONE[operator](lo) + 0.0, _MONOTONE[operator](hi) + 0.0
    if operator in ("argmax", "argmin"):
        return _arg(node, lo, hi)
    if operator == "one_hot":
        return _one_hot(node, lo, hi)
    if operator.startswith("logical"):
        return _logic(operator, inputs)
    if operator in ("equal", "less", "less_equal", "greater", "greater_equal"):
        return _compare(operator, inputs[0], inputs[1])
    constant = np.ones(lo.shape)
    if operator == "where":
        (a, b), (c, d) = inputs[1], inputs[2]
        return _hull([((lo != 0) | (hi != 0), a, b), ((lo <= 0) & (hi >= 0), c, d)])
    if operator == "heaviside":
        at = argument["at_zero"] * constant
        return _hull(
            [(lo < 0, 0 * constant, 0 * constant), (hi > 0, constant, constant), ((lo <= 0) & (hi >= 0), at, at)]
        )
    if operator == "threshold":  # x where x > threshold, else value
        edge, value = argument["threshold"], argument["value"] * constant
        return _hull([(hi > edge, np.maximum(lo, edge), hi), (lo <= edge, value, value)])
    if operator == "hardshrink":  # x where |x| > lambd, else 0
        edge = argument["lambd"]
        return _hull([
            (hi > edge, np.maximum(lo, edge), hi), (lo < -edge, lo, np.minimum(hi, -edge)),
            ((lo <= edge) & (hi >= -edge), 0 * constant, 0 * constant),
        ])  # fmt: skip
    return _modulo(argument["divisor"], lo, hi)


def _modulo(divisor: float, lo: Floats, hi: Floats) -> Range:
    """`x - d floor(x/d)`, between 0 and d; linear where both ends surely have one quotient."""
    ends = (lo / divisor, hi / divisor) if divisor > 0 else (hi / divisor, lo / divisor)
    first, last = np.floor(downs(ends[0])), np.floor(ups(ends[1]))
    one = (first == last) & (np.abs(first) < 2.0**52)
    shift = first * divisor
    low = np.where(one, downs(lo - np.maximum(downs(shift), ups(shift))), min(divisor, 0.0))
    high = np.where(one, ups(hi - np.minimum(downs(shift), ups(shift))), max(divisor, 0.0))
    return np.maximum(low, min(divisor, 0.0)), np.minimum(high, max(divisor, 0.0))


def frozen(network: Network) -> Network:
    """A network without jumps. What is proved of its constant everywhere, from slopes and gains alone, holds for the given one
    however the decisions of its jumps are frozen: countable values are constants, a selection moves at most as a maximum
    does, the other pieces have slopes 0 and 1, as a relu.
    """
    nodes: list[Node] = []
    dependent: list[bool] = []
    for node in network.nodes:
        calm = _calm(node) if node.kind == "Discontinuous" else node
        nodes.append(calm)
        dependent.append(calm.kind == "Input" or any(dependent[i] for i in calm.inputs))
    return replace(network, nodes=tuple(nodes), dependent=tuple(dependent))


def _calm(node: Node) -> Node:
    if node["operator"] == "where":
        return Node("Maximum", node.inputs[1:], node.shape, node.name, {})
    if node["operator"] in COUNTABLE_EXCEPTIONS:
        return Node(
            "Elementwise", node.inputs, node.shape, node.name, {"function": "relu", "arguments": (), "slope": None}
        )
    return Node("Constant", (), node.shape, node.name, {"value": np.zeros(node.shape)})
