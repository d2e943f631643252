"""MaxMin: the maxima and minima of pairs side by side, which is the pairs sorted."""

from __future__ import annotations

from lipscope.network import nodes as n
from lipscope.network.load.lowering import Ref
from lipscope.network.load.patterns.matcher import Matcher, Rule


def _negated(m: Matcher, index: int) -> int | None:
    """x, if the node is -x."""
    return next((x for a, x in m.scaling(index) if a == -1.0 and x != index), None)


def _maximum(m: Matcher, index: int) -> tuple[int, int] | None:
    node = m.node(index)
    return (node.inputs[0], node.inputs[1]) if isinstance(node, n.Maximum) and len(node.inputs) == 2 else None


def _minimum(m: Matcher, index: int) -> tuple[int, int] | None:
    """(a, b) where the node is min(a, b), written as -max(-a, -b)."""
    inner = _negated(m, index)
    pair = None if inner is None else _maximum(m, inner)
    if pair is None:
        return None
    a, b = _negated(m, pair[0]), _negated(m, pair[1])
    return None if a is None or b is None else (a, b)


def _reduced(m: Matcher, index: int) -> tuple[int, int, bool] | None:
    """(x, axis, maximum) where the node is the maximum or minimum of x over one axis of length 2."""
    inner = _negated(m, index)
    node = m.node(index if inner is None else inner)
    if not isinstance(node, n.ReduceMax) or len(node.axes) != 1:
        return None
    x: int | None = node.inputs[0] if inner is None else _negated(m, node.inputs[0])
    if x is None or m.node(x).shape[node.axes[0]] != 2:
        return None
    return x, node.axes[0], inner is None


def _before_reshape(m: Matcher, index: int) -> int:
    while isinstance(m.node(index), n.Reshape):
        index = m.node(index).inputs[0]
    return index


def max_min(m: Matcher, index: int) -> Ref | None:
    """max(a, b) and min(a, b) joined along an axis = the sorted pairs (a, b), rearranged."""
    node = m.node(index)
    if not isinstance(node, n.Concat) or len(node.inputs) != 2:
        return None
    shapes = [m.node(i).shape for i in node.inputs]
    if shapes[0] != shapes[1]:
        return None
    first, second = (_before_reshape(m, i) for i in node.inputs)
    low = m.lowering
    for high, other, descending in ((first, second, True), (second, first, False)):
        pair = _maximum(m, high)
        if pair is not None and (found := _minimum(m, other)) is not None and set(found) == set(pair):
            a, b = (low.reshape(m.ref(i), shapes[0]) for i in pair)
            return low.reshape(low.sort(low.stack([a, b], node.axis), node.axis, descending), node.shape)
    return _pairs_of_one(m, node, first, second)


def _pairs_of_one(m: Matcher, node: n.Concat, first: int, second: int) -> Ref | None:
    """The same where maxima and minima are taken over an axis of length 2 of one tensor."""
    one, two = _reduced(m, first), _reduced(m, second)
    if one is None or two is None or one[:2] != two[:2] or one[2] == two[2]:
        return None
    x, axis, descending = one
    low = m.lowering
    ordered = low.sort(m.ref(x), axis, descending)
    halves = [low.reshape(low.slice(ordered, axis, i, i + 1), m.node(node.inputs[0]).shape) for i in (0, 1)]
    return low.concat(halves, node.axis)


RULES: tuple[Rule, ...] = (max_min,)
