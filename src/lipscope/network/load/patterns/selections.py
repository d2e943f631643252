"""Selections that do not jump: activations, clips and maxima written with comparisons and `where`."""

from __future__ import annotations

from fractions import Fraction

from lipscope.network import nodes as n
from lipscope.network.load.lowering import Ref
from lipscope.network.load.patterns.matcher import Matcher, Rule, uniform

_ABOVE = {"greater": True, "greater_equal": True, "less": False, "less_equal": False}


def _number(m: Matcher, index: int) -> float | None:
    """The one number of which a constant consists."""
    node = m.node(index)
    while isinstance(node, (n.Expand, n.Reshape)):
        node = m.node(node.inputs[0])
    return uniform(node.value) if isinstance(node, n.Constant) else None


def _comparison(m: Matcher, index: int) -> tuple[int, int, bool] | None:
    """(a, b, above) where the node says whether a > b (or a < b); whether equality counts makes no difference here."""
    node = m.node(index)
    while isinstance(node, (n.Expand, n.Reshape)):
        index = node.inputs[0]
        if m.node(index).shape != node.shape:
            return None
        node = m.node(index)
    if not isinstance(node, n.Discontinuous) or node.operator not in _ABOVE:
        return None
    a, b = node.inputs
    return a, b, _ABOVE[node.operator]


def selection(m: Matcher, index: int) -> Ref | None:
    """Where(a > b, p, q), if p and q agree for a = b: a maximum, a minimum, or a function of one operand with a kink."""
    node = m.node(index)
    if not isinstance(node, n.Discontinuous) or node.operator != "where":
        return None
    found = _comparison(m, node.inputs[0])
    if found is None:
        return None
    a, b, above = found
    p, q = node.inputs[1:] if above else node.inputs[:0:-1]
    if (p, q) == (a, b):
        return m.lowering.maximum(m.ref(a), m.ref(b))
    if (p, q) == (b, a):
        return m.lowering.minimum(m.ref(a), m.ref(b))
    edge = _number(m, b)
    if edge is not None and m.node(a).shape == node.shape:
        return _kinked(m, a, edge, p, q)
    edge = _number(m, a)
    if edge is not None and m.node(b).shape == node.shape:
        return _kinked(m, b, edge, q, p)
    return None


def _kinked(m: Matcher, x: int, edge: float, right: int, left: int) -> Ref | None:
    """The function of x that is `right` above the edge and `left` below, for the forms that are met."""
    ends = _number(m, left), _number(m, right)
    low = m.lowering
    if right == x and ends[0] == edge:
        return low.clip(m.ref(x), low=edge)
    if left == x and ends[1] == edge:
        return low.clip(m.ref(x), high=edge)
    if edge != 0.0:
        return None
    slopes = _slope(m, left, x), _slope(m, right, x)
    if slopes[0] is None or slopes[1] is None:
        return None
    return _bent(m, x, slopes[0], slopes[1])


def _slope(m: Matcher, index: int, x: int) -> float | None:
    """C, if the node is c x."""
    if _number(m, index) == 0.0:
        return 0.0
    node = m.node(index)
    if index == x:
        return 1.0
    return uniform(node.value) if isinstance(node, n.MulConstant) and node.inputs[0] == x else None


def _bent(m: Matcher, x: int, left: float, right: float) -> Ref | None:
    """Left x below 0, right x above."""
    low = m.lowering
    if left == right:
        return m.scale(m.ref(x), left)
    if (left, right) == (-1.0, 1.0):
        return low.elementwise(m.ref(x), "abs")
    if right == 1.0:
        return (
            low.elementwise(m.ref(x), "relu")
            if left == 0
            else low.elementwise(m.ref(x), "leaky_relu", negative_slope=left)
        )
    if left == 1.0:  # the same, turned around
        turned = _bent(m, low.negative(m.ref(x)).index, right, 1.0)
        return None if turned is None else low.negative(turned)
    if left == 0.0:
        return m.scale(low.elementwise(m.ref(x), "relu"), right)
    if right == 0.0:
        return m.scale(low.elementwise(low.negative(m.ref(x)), "relu"), -left)
    if Fraction(left / right) * Fraction(right) == Fraction(left):
        return m.scale(low.elementwise(m.ref(x), "leaky_relu", negative_slope=left / right), right)
    return None


RULES: tuple[Rule, ...] = (selection,)
