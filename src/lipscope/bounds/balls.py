"""Values of a network in ball arithmetic: for pairs of points that boxes of float64 numbers cannot tell apart.

A box grows with the row sums of |W| from layer to layer, a value does not; in a deep network the box around an exact
point ends up wider than any difference of outputs. With some hundred bits the same growth starts at 2^-300. Sums of
products, which are nearly all of the work, are matrix products of balls and run at about 10^8 multiplications a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from flint import arb, arb_mat, ctx

from lipscope.claims.norms import Norm
from lipscope.claims.regions import Vector
from lipscope.network.graph import Graph
from lipscope.network.nodes import (
    Add,
    AddConstant,
    Array,
    AveragePool,
    BatchNorm,
    Concat,
    Constant,
    Conv,
    ConvTranspose,
    Dense,
    DivConstant,
    Elementwise,
    Expand,
    Gather,
    Maximum,
    MaxPool,
    Mean,
    MulConstant,
    Node,
    Pad,
    ReduceMax,
    Reshape,
    Slice,
    Sort,
    Sum,
    Transpose,
)  # fmt: skip
from lipscope.rules.questions import NoRule, evaluate, linear_part

Balls = Any
"""A numpy array of objects, each a ball that holds the exact value."""

LIMIT = 4_000_000_000
"""Multiplications up to which a network is evaluated: about a minute for two points."""

BITS, BITS_PER_LAYER = 320, 12
"""The precision: it decides how small the balls are, never whether they hold the values."""

SELU_SCALE, SELU_ALPHA = "1.0507009873554804934193349852946", "1.6732632423543772848170429916717"
"""As decimals: the specification's numbers are not float64 numbers."""

CHUNK = 2_000_000
"""Entries of a matrix of image patches that are held at once."""

_ball = np.frompyfunc(arb, 1, 1)
_larger = np.frompyfunc(lambda a, b: a.max(b), 2, 1)


def multiplications(graph: Graph) -> int:
    """About how many multiplications one value of the network takes."""
    total = 0
    for index in graph.ancestors(graph.output):
        node = graph.nodes[index]
        if isinstance(node, (Dense, Conv)):
            total += node.size * math.prod(node.weight.shape[1:])
        elif isinstance(node, ConvTranspose):
            total += graph.nodes[node.inputs[0]].size * math.prod(node.weight.shape[1:])
        total += 20 * node.size
    return total


def seconds(graph: Graph) -> float:
    """About how long two values take."""
    return 2 * multiplications(graph) / 5e7


def affordable(graph: Graph) -> bool:
    """Whether every node that reaches the output has a value in balls, and the whole of them in about a minute."""
    rules = (ball_value.dispatch(type(graph.nodes[i])) for i in graph.ancestors(graph.output) if i)
    refusal = ball_value.dispatch(object)
    known = all(rule is not refusal for rule in rules) and all(
        node.function in _FUNCTIONS for node in graph.nodes if isinstance(node, Elementwise)
    )
    return known and multiplications(graph) <= LIMIT


def quotient(graph: Graph, norm: Norm, x: Vector, y: Vector) -> float:
    """A number that `|f(x) - f(y)| / |x - y|` is not below, off by little more than the rounding of the result.

    Raises:
        NoRule: some node has no value in balls.
    """
    weighted = sum(isinstance(node, (Dense, Conv, ConvTranspose)) for node in graph.nodes)
    with ctx.workprec(BITS + BITS_PER_LAYER * weighted):
        points = [np.array([arb(float(v)) for v in point], dtype=object) for point in (x, y)]
        ends = [_evaluate(graph, point) for point in points]
        run = _length(points[0] - points[1], norm)
        if not run > 0:
            return 0.0
        ratio = (_length(ends[0] - ends[1], norm) / run).lower()
        # Rounded down, and a little for a checker that rounds elsewhere.
        found = float(ratio) * (1 - 2.0**-50)
    return max(found, 0.0) if math.isfinite(found) else 0.0


def _length(values: Balls, norm: Norm) -> arb:
    sizes: list[arb] = [abs(v) for v in values.ravel()]
    if norm == "l2":
        return arb(sum((v * v for v in sizes), arb(0))).sqrt()
    if norm == "l1":
        return sum(sizes, arb(0))
    top = sizes[0]
    for value in sizes[1:]:
        top = top.max(value)
    return top


def _evaluate(graph: Graph, point: Balls) -> Balls:
    values: dict[int, Balls] = {0: point.reshape(graph.nodes[0].shape)}
    needed = graph.ancestors(graph.output)
    last = {i: max((r for r in readers if r in needed), default=-1) for i, readers in enumerate(graph.readers)}
    for index in sorted(needed - {0}):
        node = graph.nodes[index]
        values[index] = np.asarray(ball_value(node, *(values[i] for i in node.inputs)), dtype=object).reshape(
            node.shape
        )
        for i in set(node.inputs):
            if last[i] == index:
                del values[i]
    return values[graph.output].ravel()


@singledispatch
def ball_value(node: Node, *inputs: Balls) -> Balls:
    """Balls that hold the entries of the node's value, given balls that hold those of its inputs."""
    raise NoRule(node, "ball_value")


def _times(left: Balls, right: Balls) -> Balls:
    """The product of two matrices."""
    (m, k), n = left.shape, right.shape[1]
    product = arb_mat(m, k, left.ravel().tolist()) * arb_mat(k, n, right.ravel().tolist())
    return np.array(product.entries(), dtype=object).reshape(m, n)


def _along(values: Array, axis: int, dimensions: int) -> Balls:
    return np.asarray(_ball(values)).reshape([-1 if a == axis else 1 for a in range(dimensions)])


# ------------------------------------------------------------------------------------------------- with weights


@ball_value.register
def _(node: Dense, *inputs: Balls) -> Balls:
    moved = np.moveaxis(inputs[0], node.axis, 0)
    product = _times(_ball(node.weight), moved.reshape(moved.shape[0], -1)).reshape(-1, *moved.shape[1:])
    value = np.moveaxis(product, 0, node.axis)
    return value if node.bias is None else value + _along(node.bias, node.axis, value.ndim)


def _numbered(x: Balls) -> tuple[Balls, Array]:
    """The entries behind an exact 0, and their places: 1, 2, .. in the shape of x."""
    return np.concatenate([np.array([arb(0)], dtype=object), x.ravel()]), np.arange(1, x.size + 1).reshape(x.shape)


def _correlate(entries: Balls, places: Array, weight: Array, stride: Sequence[int], dilation: Sequence[int]) -> Balls:
    """`sum_{c, t} weight[o, c, t] x[n, c, stride p + dilation t]`, (O, N, *positions); x is `entries[places]`."""
    kernel = weight.shape[2:]
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    axes = tuple(range(2, places.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(places, extent, axis=axes)
    where = (
        slice(None),
        slice(None),
        *(slice(None, None, s) for s in stride),
        *(slice(None, None, d) for d in dilation),
    )
    windows = windows[where]  # (N, C, *positions, *kernel)
    positions = (windows.shape[0], *windows.shape[2 : 2 + len(kernel)])
    order = (1, *range(2 + len(kernel), windows.ndim), 0, *range(2, 2 + len(kernel)))
    patches = windows.transpose(order).reshape(math.prod(weight.shape[1:]), -1)
    rows = _ball(weight.reshape(weight.shape[0], -1))
    step = max(1, CHUNK // patches.shape[0])
    parts = [_times(rows, entries[patches[:, i : i + step]]) for i in range(0, patches.shape[1], step)]
    return np.concatenate(parts, axis=1).reshape(weight.shape[0], *positions)


def _grouped(
    node: Conv | ConvTranspose, entries: Balls, places: Array, weights: Sequence[Array], stride: Sequence[int]
) -> Balls:
    """All groups one after the other, with the bias."""
    channels = np.split(places, node.groups, axis=1)
    parts = [_correlate(entries, c, w, stride, node.dilation) for c, w in zip(channels, weights, strict=True)]
    value = np.moveaxis(np.concatenate(parts), 0, 1)
    return value if node.bias is None else value + _along(node.bias, 1, value.ndim)


@ball_value.register
def _(node: Conv, *inputs: Balls) -> Balls:
    entries, places = _numbered(inputs[0])
    padded = np.pad(places, [(0, 0), (0, 0), *node.padding])
    return _grouped(node, entries, padded, np.split(node.weight, node.groups), node.stride)


@ball_value.register
def _(node: ConvTranspose, *inputs: Balls) -> Balls:
    """A convolution of the image with `stride - 1` zeros between its entries with the kernel turned around.

    Output p reads entry `p + low - dilation t` of that image, so with t counted from the end the window begins at
    `p + low - dilation (k - 1)`; what lies outside is 0.
    """
    entries, places = _numbered(inputs[0])
    for a, (s, d, (low, _)) in enumerate(zip(node.stride, node.dilation, node.padding, strict=True), start=2):
        reach = d * (node.weight.shape[a] - 1)
        first, length = low - reach, node.shape[a] + reach
        spread = np.zeros((*places.shape[:a], length, *places.shape[a + 1 :]), dtype=places.dtype)
        position = s * np.arange(places.shape[a]) - first
        kept = (position >= 0) & (position < length)
        spread[(slice(None),) * a + (position[kept],)] = np.compress(kept, places, axis=a)
        places = spread
    turned = np.flip(node.weight, axis=tuple(range(2, node.weight.ndim)))
    weights = [np.swapaxes(w, 0, 1) for w in np.split(turned, node.groups)]
    return _grouped(node, entries, places, weights, (1,) * len(node.stride))


@ball_value.register
def _(node: BatchNorm, *inputs: Balls) -> Balls:
    mean, variance, weight, bias = (
        _along(v, node.axis, inputs[0].ndim) for v in (node.mean, node.variance, node.weight, node.bias)
    )
    scale = weight / np.frompyfunc(lambda v: (v + arb(node.eps)).sqrt(), 1, 1)(variance)
    return (inputs[0] - mean) * scale + bias


@ball_value.register
def _(node: AddConstant, *inputs: Balls) -> Balls:
    return inputs[0] + _ball(node.value)


@ball_value.register
def _(node: MulConstant, *inputs: Balls) -> Balls:
    return inputs[0] * _ball(node.value)


@ball_value.register
def _(node: DivConstant, *inputs: Balls) -> Balls:
    return inputs[0] / _ball(node.value)


@ball_value.register
def _(node: Constant, *inputs: Balls) -> Balls:
    return _ball(node.value)


# ---------------------------------------------------------------------------------------- sums and rearrangements


@ball_value.register
def _(node: Add, *inputs: Balls) -> Balls:
    return sum(inputs[1:], start=inputs[0])


@ball_value.register(Sum)
@ball_value.register(Mean)
def _(node: Sum | Mean, *inputs: Balls) -> Balls:
    total = inputs[0].sum(axis=node.axes)
    return total / math.prod(inputs[0].shape[a] for a in node.axes) if isinstance(node, Mean) else total


@ball_value.register
def _(node: AveragePool, *inputs: Balls) -> Balls:
    value = inputs[0]
    first = value.ndim - len(node.windows)
    for axis, rows in enumerate(node.windows, start=first):
        moved = np.moveaxis(value, axis, 0)
        zero = np.full(moved.shape[1:], arb(0), dtype=object)
        sums = [sum(moved[start:stop], start=zero) / int(count) for start, stop, count in rows]
        value = np.moveaxis(np.stack(sums), 0, axis)
    return value


@ball_value.register(Reshape)
@ball_value.register(Transpose)
@ball_value.register(Slice)
@ball_value.register(Pad)
@ball_value.register(Gather)
@ball_value.register(Expand)
@ball_value.register(Concat)
def _(node: Node, *inputs: Balls) -> Balls:
    """Each entry of the value is one of the inputs' or constant: the rule of float64 moves the entries' numbers."""
    entries, numbers = [np.array([arb(node.value if isinstance(node, Pad) else 0.0)], dtype=object)], []
    for x in inputs:
        begin = sum(map(len, entries))
        numbers.append(torch.arange(begin, begin + x.size, dtype=torch.float64).reshape(1, *x.shape))
        entries.append(x.ravel())
    moved = evaluate(linear_part(node), *numbers)[0].numpy().astype(np.int64)
    return np.concatenate(entries)[moved]


# ------------------------------------------------------------------------------------------------ nonlinear


@ball_value.register
def _(node: MaxPool, *inputs: Balls) -> Balls:
    value = inputs[0]
    first = value.ndim - len(node.windows)
    for axis, rows in enumerate(node.windows, start=first):
        moved = np.moveaxis(value, axis, 0)
        value = np.moveaxis(np.stack([_larger.reduce(moved[a:b:step], axis=0) for a, b, step in rows]), 0, axis)
    return value


@ball_value.register
def _(node: ReduceMax, *inputs: Balls) -> Balls:
    value = inputs[0]
    for axis in sorted(node.axes, reverse=True):
        value = _larger.reduce(value, axis=axis)
    return value


@ball_value.register
def _(node: Maximum, *inputs: Balls) -> Balls:
    return _larger.reduce(np.stack(inputs), axis=0)


@ball_value.register
def _(node: Sort, *inputs: Balls) -> Balls:
    """The k-th smallest value lies between the k-th smallest lower end and the k-th smallest upper end."""
    low, high = (
        np.sort(np.frompyfunc(end, 1, 1)(inputs[0]), axis=node.axis)
        for end in (lambda v: v.lower(), lambda v: v.upper())
    )
    value = np.frompyfunc(lambda a, b: a.union(b), 2, 1)(low, high)
    return np.flip(value, node.axis) if node.descending else value


def _two_sided(x: arb, left: Callable[[arb], arb], right: Callable[[arb], arb]) -> arb:
    if x >= 0:
        return right(x)
    return left(x) if x <= 0 else left(x).union(right(x))


def _sigmoid(x: arb) -> arb:
    return 1 / (1 + (-x).exp())


def _softplus(x: arb) -> arb:
    return x.max(arb(0)) + (-abs(x)).exp().log1p()


def _gelu_tanh(x: arb, a: dict[str, Any]) -> arb:
    inner = (2 / arb.pi()).sqrt() * (x + arb(44715) / 1000000 * x**3)
    return x / 2 * (1 + inner.tanh())


def _elu(x: arb, alpha: arb, rate: arb, scale: arb) -> arb:
    return _two_sided(x, lambda t: scale * alpha * (t * rate).expm1(), lambda t: scale * t)


_FUNCTIONS: dict[str, Callable[[arb, dict[str, Any]], arb]] = {
    "relu": lambda x, a: x.max(arb(0)),
    "leaky_relu": lambda x, a: _two_sided(x, lambda t: a["negative_slope"] * t, lambda t: t),
    "prelu": lambda x, a: _two_sided(x, lambda t: a["slope"] * t, lambda t: t),
    "abs": lambda x, a: abs(x),
    "clip": lambda x, a: x.max(a["low"]).min(a["high"]),
    "sigmoid": lambda x, a: _sigmoid(x),
    "tanh": lambda x, a: x.tanh(),
    "sin": lambda x, a: x.sin(),
    "cos": lambda x, a: x.cos(),
    "exp": lambda x, a: x.exp(),
    "arctan": lambda x, a: x.atan(),
    "erf": lambda x, a: x.erf(),
    "softsign": lambda x, a: x / (1 + abs(x)),
    "softplus": lambda x, a: _softplus(a["beta"] * x) / a["beta"],
    "gelu": lambda x, a: x / 2 * (1 + (x / arb(2).sqrt()).erf()),
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x, a: x * _sigmoid(a["beta"] * x),
    "elu": lambda x, a: _elu(x, a["alpha"], arb(1), arb(1)),
    "celu": lambda x, a: _elu(x, a["alpha"], 1 / a["alpha"], arb(1)),
    "selu": lambda x, a: _elu(x, arb(SELU_ALPHA), arb(1), arb(SELU_SCALE)),
    "mish": lambda x, a: x * _softplus(x).tanh(),
    "hardswish": lambda x, a: x * (x + 3).max(arb(0)).min(arb(6)) / 6,
    "square": lambda x, a: x * x,
}
"""The functions of `Elementwise` nodes in balls, as the certificate's specification defines them."""


@ball_value.register
def _(node: Elementwise, *inputs: Balls) -> Balls:
    function = _FUNCTIONS.get(node.function)
    if function is None:
        raise NoRule(node, "ball_value")
    arguments: dict[str, Any] = {name: arb(value) for name, value in node.arguments}
    if node.slope is None:
        return np.frompyfunc(lambda x: function(x, arguments), 1, 1)(inputs[0])
    slopes = _ball(np.broadcast_to(node.slope, node.shape))
    return np.frompyfunc(lambda x, slope: function(x, {"slope": slope}), 2, 1)(inputs[0], slopes)
