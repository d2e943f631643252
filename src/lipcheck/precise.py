"""Values of networks in ball arithmetic, for witnesses that double precision resolves too coarsely: small slopes, deep networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flint import arb, ctx

from lipcheck.errors import Rejected
from lipcheck.functions import SELU_ALPHA, SELU_SCALE
from lipcheck.linear import factor, matmul
from lipcheck.nodes import Network, Node
from lipcheck.reductions import slices, unslices
from lipcheck.smooth import SMOOTH

BITS = 320
LIMIT = 4_000_000_000
"""Multiplications up to which a network is evaluated this way: about a minute for two points."""
BITS_PER_LAYER = 12
"""What a layer may take from the accuracy: its row sums of absolute values are this much (2^12) above its values, at most."""

Balls = Any
"""An object array of balls."""
_ball = np.frompyfunc(arb, 1, 1)
_maximum = np.frompyfunc(lambda a, b: arb(a).max(arb(b)), 2, 1)
_lower = np.frompyfunc(lambda a: a.lower(), 1, 1)
_upper = np.frompyfunc(lambda a: a.upper(), 1, 1)
_hull = np.frompyfunc(lambda a, b: a.union(b), 2, 1)


def cost(network: Network) -> int:
    """About how many multiplications one evaluation takes."""
    total = 0
    for node in network.nodes:
        weight: Any = node.fields.get("weight")
        if node.kind in ("Conv", "ConvTranspose"):
            places = node.size if node.kind == "Conv" else network.nodes[node.inputs[0]].size
            total += places * int(np.prod(weight.shape[1:]))
        elif node.kind == "Dense":
            total += node.size * weight.shape[1]
        elif node.kind == "MatMul":
            total += node.size * network.nodes[node.inputs[0]].shape[-1]
        elif node.kind == "AveragePool":
            total += sum(len(rows) for rows in node["windows"]) * network.nodes[node.inputs[0]].size
        total += 20 * node.size
    return total


def bits(network: Network) -> int:
    """The precision of an evaluation. It decides how tight the balls are, never whether they are right."""
    weighted = sum(node.kind in ("Conv", "ConvTranspose", "Dense", "MatMul") for node in network.nodes)
    return BITS + BITS_PER_LAYER * max(0, weighted - 4)


def _sides(x: arb, negative: Callable[[arb], arb], positive: Callable[[arb], arb]) -> arb:
    if x >= 0:
        return positive(x)
    if x <= 0:
        return negative(x)
    return negative(x).union(positive(x))


def _scalar(node: Node) -> Callable[[arb], arb]:
    name, argument = node["function"], node.argument
    if name in SMOOTH:
        beta = arb(argument.get("beta", 1.0))
        return lambda x: SMOOTH[name].value(x * beta) / beta
    if name in ("square", "power"):
        n = int(argument.get("exponent", 2))
        return lambda x: x**n
    if name in ("elu", "celu", "selu"):
        scale = arb(SELU_SCALE) if name == "selu" else arb(1)
        alpha = arb(SELU_ALPHA) if name == "selu" else arb(argument["alpha"])
        rate = 1 / alpha if name == "celu" else arb(1)
        return lambda x: _sides(x, lambda t: scale * alpha * (rate * t).expm1(), lambda t: scale * t)
    zero = arb(0)
    table: dict[str, Callable[[arb], arb]] = {
        "relu": lambda x: x.max(zero),
        "leaky_relu": lambda x: _sides(x, lambda t: arb(argument["negative_slope"]) * t, lambda t: t),
        "abs": abs,
        "clip": lambda x: x.max(arb(argument["low"])).min(arb(argument["high"])),
        "sin": lambda x: x.sin(),
        "cos": lambda x: x.cos(),
        "hardswish": lambda x: x * (x + 3).max(zero).min(arb(6)) / 6,
        "softshrink": lambda x: (x - arb(argument["lambd"])).max(zero) + (x + arb(argument["lambd"])).min(zero),
    }
    if name not in table:
        raise Rejected(f"{name} is not evaluated in ball arithmetic")
    return table[name]


def _elementwise(node: Node, x: Balls) -> Balls:
    if node["function"] == "prelu":
        slope = np.broadcast_to(node["slope"], node.shape)
        prelu = np.frompyfunc(lambda t, s: _sides(t, lambda v: arb(float(s)) * v, lambda v: v), 2, 1)
        return np.asarray(prelu(x, slope))
    return np.asarray(np.frompyfunc(_scalar(node), 1, 1)(x))


def _sorted(node: Node, x: Balls) -> Balls:
    """Order statistics are monotone: sort the lower and the upper ends."""
    low, high = np.sort(_lower(x), axis=node["axis"]), np.sort(_upper(x), axis=node["axis"])
    balls = np.asarray(_hull(low, high))
    return np.flip(balls, node["axis"]) if node["descending"] else balls


def _slicewise(node: Node, x: Balls) -> Balls:
    axes = (node["axis"],) if "axis" in node.fields else node["axes"]
    parts = slices(x, axes)
    flat = parts.reshape(-1, parts.shape[-1])
    rows = [_SLICES[node.kind](node, row) for row in flat]
    result = np.empty((len(rows), len(rows[0])), dtype=object)
    for i, row in enumerate(rows):
        result[i] = row
    if result.shape[1] == 1 and node.shape != x.shape:
        return result.reshape(node.shape)
    return (
        unslices(result.reshape(parts.shape), x.shape, axes)
        if result.shape == flat.shape
        else result.reshape(node.shape)
    )


def _total(row: Sequence[arb]) -> arb:
    return sum(row, arb(0))


def _shifted(row: Sequence[arb]) -> tuple[arb, list[arb]]:
    top = max((x.mid() for x in row), key=float)
    return top, [(x - top).exp() for x in row]


def _softmax(node: Node, row: Sequence[arb]) -> list[arb]:
    _, parts = _shifted(row)
    total = _total(parts)
    return [p / total for p in parts]


def _log_sum_exp(node: Node, row: Sequence[arb]) -> list[arb]:
    top, parts = _shifted(row)
    return [top + _total(parts).log()]


def _log_softmax(node: Node, row: Sequence[arb]) -> list[arb]:
    (total,) = _log_sum_exp(node, row)
    return [x - total for x in row]


def _normalised(node: Node, row: Sequence[arb]) -> list[arb]:
    n = len(row)
    if node.kind == "LayerNorm":
        mean = _total(row) / n
        row = [x - mean for x in row]
    root = (_total([x * x for x in row]) / n + arb(node["eps"])).sqrt()
    return [x / root for x in row]


def _reduce_max(node: Node, row: Sequence[arb]) -> list[arb]:
    top = row[0]
    for x in row[1:]:
        top = top.max(x)
    return [top]


_SLICES: dict[str, Callable[[Node, Sequence[arb]], list[arb]]] = {
    "Softmax": _softmax, "LogSoftmax": _log_softmax, "LogSumExp": _log_sum_exp, "LayerNorm": _normalised,
    "RMSNorm": _normalised, "ReduceMax": _reduce_max,
    "ReduceL2": lambda node, row: [_total([x * x for x in row]).sqrt()],
}  # fmt: skip


def _max_pool(node: Node, x: Balls) -> Balls:
    first = x.ndim - len(node["windows"])
    for a, rows in enumerate(node["windows"]):
        moved = np.moveaxis(x, first + a, 0)
        parts = [_maximum.reduce(moved[start:stop:step], axis=0) for start, stop, step in rows]
        x = np.moveaxis(np.stack(parts), 0, first + a)
    return x


def _batch_norm(node: Node, x: Balls) -> Balls:
    shape = [-1 if a == node["axis"] else 1 for a in range(x.ndim)]
    mean, variance, weight, bias = (_ball(node[k]).reshape(shape) for k in ("mean", "variance", "weight", "bias"))
    root = np.frompyfunc(lambda v: (v + arb(node["eps"])).sqrt(), 1, 1)(variance)
    return np.asarray((x - mean) / root * weight + bias)


def _affine(node: Node, inputs: Sequence[Balls]) -> Balls:
    if node.kind == "BatchNorm":
        return _batch_norm(node, inputs[0])
    if node.kind == "AddConstant":
        return np.asarray(inputs[0] + _ball(node["value"]))
    value = factor(node, [x.shape for x in inputs], _ball).apply([x[None] for x in inputs])[0]
    if node.kind == "Pad" and node["mode"] == "constant" and node["value"] != 0:
        outside = np.pad(np.zeros(inputs[0].shape, bool), node["pads"], constant_values=True)
        value = np.where(outside, np.array(arb(node["value"]), dtype=object), value)
    bias = node.fields.get("bias")
    if bias is not None:
        axis = node.fields.get("axis", 1)
        value = value + _ball(bias).reshape([-1 if a == axis else 1 for a in range(value.ndim)])
    return np.asarray(value)


def _value(node: Node, inputs: Sequence[Balls]) -> Balls:
    if node.affine:
        return _affine(node, inputs)
    kind = node.kind
    if kind == "Constant":
        return np.asarray(_ball(node["value"]), dtype=object)
    if kind == "Elementwise":
        return _elementwise(node, inputs[0])
    if kind == "MaxPool":
        return _max_pool(node, inputs[0])
    if kind == "Sort":
        return _sorted(node, inputs[0])
    if kind == "Maximum":
        return np.asarray(_maximum.reduce(np.stack(inputs), axis=0))
    if kind == "Multiply":
        return np.asarray(inputs[0] * inputs[1])
    if kind == "Divide":
        return np.asarray(inputs[0] / inputs[1])
    if kind == "MatMul":
        return np.asarray(matmul(inputs[0], inputs[1]))
    if kind in _SLICES:
        return _slicewise(node, inputs[0])
    raise Rejected(f"{kind} is not evaluated in ball arithmetic")


def evaluate(network: Network, x: Balls) -> Balls:
    """The network's value at a vector of balls, an object array of the output's shape; ready for `bits(network)`.

    Raises:
        Rejected: a kind of node that is not evaluated this way, or a value that is not finite.
    """
    values: dict[int, Balls] = {0: x.reshape(network.nodes[0].shape)}
    with ctx.workprec(bits(network)):
        for index in sorted(network.ancestors(network.output) - {0}):
            node = network.nodes[index]
            value = np.asarray(_ball(_value(node, [values[i] for i in node.inputs])), dtype=object).reshape(node.shape)
            if not all(ball.is_finite() for ball in value.ravel()):
                raise Rejected(f"the value of node {index} ({node.kind} {node.name!r}) is not finite")
            values[index] = value
    return values[network.output]
