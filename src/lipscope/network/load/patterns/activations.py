"""Activation functions that exporters write out in elementary operations."""

from __future__ import annotations

from math import pi, sqrt

import numpy as np

from lipscope.network import nodes as n
from lipscope.network.load.lowering import Ref
from lipscope.network.load.patterns.matcher import Matcher, Rule, uniform

Gated = tuple[str, dict[str, float], float]
_TANH_GELU = {1: sqrt(2 / pi), 3: 0.044715 * sqrt(2 / pi)}


def _gate(m: Matcher, index: int, x: int) -> Gated | None:
    """(f, arguments, k) such that the node times x is k f(x)."""
    for a, b, base in m.affine(index):
        node = m.node(base)
        if not isinstance(node, n.Elementwise):
            continue
        operand, name = node.inputs[0], node.function
        if name == "sigmoid" and b == 0.0:
            inner = m.polynomial(operand, x)
            if inner is not None and set(inner) == {1} and inner[1] > 0:
                return "silu", {"beta": inner[1]}, a
        if name == "erf" and b == a and m.is_polynomial(operand, x, {1: sqrt(0.5)}):
            return "gelu", {}, 2 * a
        if name == "tanh" and b == a and m.is_polynomial(operand, x, _TANH_GELU):
            return "gelu_tanh", {}, 2 * a
        if name == "tanh" and b == 0.0 and m.function(operand, "softplus") == x:
            inside = m.node(operand)
            assert isinstance(inside, n.Elementwise)
            if inside.argument["beta"] == 1.0:
                return "mish", {}, a
        if name == "clip" and b == 0.0 and node.argument["low"] == 0.0:
            top = node.argument["high"]
            if 0 < top < np.inf and m.is_polynomial(operand, x, {1: top / 6, 0: top / 2}):
                return "hardswish", {}, a * top
    return None


def gated(m: Matcher, index: int) -> Ref | None:
    """X g(x): SiLU, GELU (both forms), Mish, hard-swish, up to a factor."""
    node = m.node(index)
    if not isinstance(node, n.Multiply):
        return None
    for left, right in (node.inputs, node.inputs[::-1]):
        for c, x in m.scaling(left):
            found = _gate(m, right, x)
            if found:
                function, arguments, k = found
                return m.scale(
                    m.lowering.elementwise(m.ref(x), function, **arguments), c * k, rounded=function == "hardswish"
                )
    return None


def rescaled(m: Matcher, index: int) -> Ref | None:
    """A scaling by 1 or a shift by 0; a scaling that undoes the one which a rule above has added."""
    if m.term(index) and m.term(index)[0] == 0.0:  # type: ignore[index]
        return m.ref(m.node(index).inputs[0])
    found = m.factor(index)
    if not found:
        return None
    c, x = found
    if c == 1.0:
        return m.ref(x)
    if x in m.scaled:
        inner, base, rounded = m.scaled[x]
        return m.scale(m.ref(base), c * inner, rounded)
    return None


def quotients(m: Matcher, index: int) -> Ref | None:
    """x/(1 + exp(-beta x)) = SiLU, x/(1 + |x|) = softsign."""
    node = m.node(index)
    if not isinstance(node, n.Divide):
        return None
    top, bottom = node.inputs
    shifted = m.term(bottom)
    if not shifted or shifted[0] != 1.0:
        return None
    for c, x in m.scaling(top):
        if m.function(shifted[1], "abs") == x:
            return m.scale(m.lowering.elementwise(m.ref(x), "softsign"), c)
        power = m.function(shifted[1], "exp")
        inner = None if power is None else m.polynomial(power, x)
        if inner is not None and set(inner) == {1} and inner[1] < 0:
            return m.scale(m.lowering.elementwise(m.ref(x), "silu", beta=-inner[1]), c)
    return None


def written_out(m: Matcher, index: int) -> Ref | None:
    """log(1 + exp x) = softplus, 1/(1 + exp(-x)) = sigmoid, sqrt(x^2) = |x|."""
    node = m.node(index)
    if not isinstance(node, n.Elementwise):
        return None
    operand = node.inputs[0]
    if node.function == "sqrt" and (base := m.function(operand, "square")) is not None:
        return m.lowering.elementwise(m.ref(base), "abs")
    shifted = m.term(operand)
    power = m.function(shifted[1], "exp") if shifted and shifted[0] == 1.0 else None
    if power is None:
        return None
    if node.function == "log":
        return m.lowering.elementwise(m.ref(power), "softplus", beta=1.0)
    if node.function == "reciprocal":
        scaled = next((x for a, x in m.scaling(power) if a == -1.0), None)
        return None if scaled is None else m.lowering.elementwise(m.ref(scaled), "sigmoid")
    return None


def maxima(m: Matcher, index: int) -> Ref | None:
    """max(x, a x) with a <= 1 = leaky ReLU, max(x, -x) = |x|."""
    node = m.node(index)
    if not isinstance(node, n.Maximum) or len(node.inputs) != 2:
        return None
    for x, other in (node.inputs, node.inputs[::-1]):
        for a, base in m.scaling(other):
            if base == x and a == -1.0:
                return m.lowering.elementwise(m.ref(x), "abs")
            if base == x and a <= 1.0:
                return m.lowering.elementwise(m.ref(x), "leaky_relu", negative_slope=a)
    return None


def sums(m: Matcher, index: int) -> Ref | None:
    """relu(x) + s (x - |x|)/2 and relu(x) - s relu(-x) = PReLU; x - tanh(x) = tanhshrink."""
    node = m.node(index)
    if not isinstance(node, n.Add) or len(node.inputs) != 2:
        return None
    for first, second in (node.inputs, node.inputs[::-1]):
        if any(a == -1.0 and m.function(base, "tanh") == first for a, base in m.scaling(second)):
            return m.lowering.elementwise(m.ref(first), "tanhshrink")
        x = m.function(first, "relu")
        for w, base in m.weighted(second) if x is not None else ():
            assert x is not None
            opposite = m.function(base, "relu")
            if opposite is not None and any(a == -1.0 and y == x for a, y in m.scaling(opposite)):
                return m.lowering.prelu(m.ref(x), -w)
            if _twice_negative_part(m, base, x):
                return m.lowering.prelu(m.ref(x), 2.0 * w)
    return None


def _twice_negative_part(m: Matcher, index: int, x: int) -> bool:
    """Whether the node is x - |x|."""
    node = m.node(index)
    if not isinstance(node, n.Add) or len(node.inputs) != 2 or x not in node.inputs:
        return False
    other = node.inputs[1] if node.inputs[0] == x else node.inputs[0]
    return any(a == -1.0 and m.function(base, "abs") == x for a, base in m.scaling(other))


def thresholds(m: Matcher, index: int) -> Ref | None:
    """Softplus that returns x itself above a threshold, where the two differ by less than float32 can tell.

    The jump log(1 + exp(-t)) of such a program at u = t >= 15 is below half a unit in the last place of t.
    """
    node = m.node(index)
    if not isinstance(node, n.Discontinuous) or node.operator != "where":
        return None
    condition, x, smooth = node.inputs
    test = m.node(condition)
    if not isinstance(test, n.Discontinuous) or test.operator not in ("greater", "greater_equal"):
        return None
    limit = m.node(m.spread(test.inputs[1])[0])
    t = uniform(limit.value) if isinstance(limit, n.Constant) else None
    for a, base in m.scaling(smooth) if t is not None and t >= 15.0 else ():
        u, inside = m.function(base, "softplus"), m.node(base)
        same = u is not None and isinstance(inside, n.Elementwise) and inside.argument["beta"] == 1.0
        if same and a > 0 and m.is_polynomial(u, x, {1: 1 / a}) and m.is_polynomial(test.inputs[0], x, {1: 1 / a}):  # type: ignore[arg-type]
            return m.ref(smooth)
    return None


RULES: tuple[Rule, ...] = (rescaled, gated, quotients, written_out, maxima, sums, thresholds)
