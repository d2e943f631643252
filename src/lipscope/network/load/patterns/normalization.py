"""Normalisations, norms and softmax that exporters write out in elementary operations."""

from __future__ import annotations

from lipscope.network import nodes as n
from lipscope.network.load.lowering import Ref
from lipscope.network.load.patterns.matcher import Matcher, Rule
from lipscope.network.nodes import Shape


def _centred(m: Matcher, index: int) -> tuple[int, Shape] | None:
    """(x, axes) where the node is x minus its mean over the axes."""
    node = m.node(index)
    if not isinstance(node, n.Add) or len(node.inputs) != 2:
        return None
    for x, other in (node.inputs, node.inputs[::-1]):
        inner, shape = m.spread(other)
        for a, base in m.scaling(inner):
            axes = m.same_over(base, n.Mean, x) if a == -1.0 else None
            if a == -1.0 and axes is None:
                axes = _unkept(m, base, x, shape)
            if axes is not None:
                return x, axes
    return None


def _unkept(m: Matcher, base: int, x: int, shape: Shape) -> Shape | None:
    """The axes, if `base` is the mean of x over axes that are dropped, and `shape` puts them back."""
    node = m.node(base)
    if not isinstance(node, n.Mean) or node.inputs != (x,):
        return None
    kept = tuple(1 if a in node.axes else s for a, s in enumerate(m.node(x).shape))
    return node.axes if shape == kept else None


def _root_mean_square(m: Matcher, index: int) -> tuple[int, Shape, float] | None:
    """(x, axes, eps) where the node is sqrt(mean(x^2) + eps), broadcast back along the axes."""
    inner, _ = m.spread(index)
    operand = m.function(inner, "sqrt")
    if operand is None:
        return None
    eps, mean = m.term(operand) or (0.0, operand)
    node = m.node(m.spread(mean)[0])
    if not isinstance(node, n.Mean) or eps < 0:
        return None
    square = node.inputs[0]
    x = m.function(square, "square")
    kept = tuple(1 if a in node.axes else s for a, s in enumerate(m.node(square).shape))
    if x is None or m.spread(index)[1] != kept:
        return None
    return x, node.axes, eps


def normalized(m: Matcher, index: int) -> Ref | None:
    """x/sqrt(mean(x^2) + eps) = RMSNorm; with x minus its mean for x, LayerNorm."""
    node = m.node(index)
    if isinstance(node, n.Divide):
        pairs = [(node.inputs[0], node.inputs[1], False)]
    elif isinstance(node, n.Multiply):
        pairs = [(a, b, True) for a, b in (node.inputs, node.inputs[::-1])]
    else:
        return None
    for top, bottom, inverted in pairs:
        found = _inverse_root(m, bottom) if inverted else _root_mean_square(m, bottom)
        if found is None:
            continue
        x, axes, eps = found
        centred = _centred(m, top)
        if centred is not None and centred == _centred(m, x) and centred[1] == axes:
            return m.lowering.layer_norm(m.ref(centred[0]), axes, None, None, eps)
        if x == top:
            return m.lowering.rms_norm(m.ref(x), axes, None, eps)
    return None


def _inverse_root(m: Matcher, index: int) -> tuple[int, Shape, float] | None:
    """(x, axes, eps) where the node is 1/sqrt(mean(x^2) + eps), broadcast back along the axes."""
    inner, shape = m.spread(index)
    operand = m.function(inner, "reciprocal")
    found = None if operand is None else _root_mean_square(m, operand)
    if found is None:
        return None
    x, axes, _ = found
    kept = tuple(1 if a in axes else s for a, s in enumerate(m.node(x).shape))
    return found if shape == kept else None


def norms(m: Matcher, index: int) -> Ref | None:
    """sqrt(sum x^2) and sqrt(a^2 + b^2 + ...) = the Euclidean norm."""
    operand = m.function(index, "sqrt")
    if operand is None:
        return None
    node = m.node(operand)
    if isinstance(node, n.Sum) and (x := m.function(node.inputs[0], "square")) is not None:
        return m.lowering.put(n.ReduceL2, [m.ref(x)], node.shape, axes=node.axes)
    if isinstance(node, n.Add):
        parts = [m.function(i, "square") for i in node.inputs]
        refs = [m.ref(i) for i in parts if i is not None]
        if len(refs) == len(parts):
            return m.lowering.reduce_l2(m.lowering.stack(refs, len(node.shape)), [len(node.shape)], False)
    return None


def softmax(m: Matcher, index: int) -> Ref | None:
    """exp(x)/sum exp(x), with or without subtracting the maximum first."""
    node = m.node(index)
    if not isinstance(node, n.Divide):
        return None
    x = m.function(node.inputs[0], "exp")
    axes = None if x is None else m.same_over(node.inputs[1], n.Sum, node.inputs[0])
    if x is None or axes is None or len(axes) != 1:
        return None
    return m.lowering.softmax(m.ref(_unshifted(m, x, axes)), axes[0])


def _unshifted(m: Matcher, index: int, axes: Shape) -> int:
    """x, if the node is x minus its maximum over the axes: softmax does not see the shift."""
    node = m.node(index)
    if isinstance(node, n.Add) and len(node.inputs) == 2:
        for x, other in (node.inputs, node.inputs[::-1]):
            inner, _ = m.spread(other)
            if any(a == -1.0 and m.same_over(base, n.ReduceMax, x) == axes for a, base in m.scaling(inner)):
                return x
    return index


RULES: tuple[Rule, ...] = (normalized, norms, softmax)
