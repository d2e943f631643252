"""For every kind of node: what its fields and shapes must satisfy. Each rule raises `Rejected` if they do not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lipcheck.errors import Rejected

Shape = tuple[int, ...]
Fields = Mapping[str, Any]
Rule = Callable[[Fields, Sequence[Shape], Shape], None]

FUNCTIONS: dict[str, tuple[str, ...]] = {
    "leaky_relu": ("negative_slope",), "clip": ("low", "high"), "softplus": ("beta",), "silu": ("beta",),
    "elu": ("alpha",), "celu": ("alpha",), "softshrink": ("lambd",), "power": ("exponent",),
    **dict.fromkeys(
        "relu prelu abs sigmoid tanh sin cos exp arctan erf softsign gelu gelu_tanh selu mish hardswish tanhshrink "
        "square sqrt log reciprocal".split(), ()),
}  # fmt: skip
"""Every function of `Elementwise` with its arguments."""

OPERATORS: dict[str, tuple[int, tuple[str, ...]]] = {
    **dict.fromkeys("sign round floor ceil truncate argmax argmin logical_not".split(), (1, ())),
    **dict.fromkeys("equal less less_equal greater greater_equal logical_and logical_or".split(), (2, ())),
    "one_hot": (1, ("off", "on")), "where": (3, ()), "threshold": (1, ("threshold", "value")),
    "hardshrink": (1, ("lambd",)), "heaviside": (1, ("at_zero",)), "modulo": (1, ("divisor",)),
}  # fmt: skip
"""Every operator of `Discontinuous` with the number of its inputs and its arguments."""


def need(condition: bool, what: str) -> None:
    """Raise `Rejected` unless the condition holds."""
    if not condition:
        raise Rejected(f"expected {what}")


def _equal(found: Shape, shape: Shape) -> None:
    need(tuple(found) == tuple(shape), f"shape {list(found)} from fields and inputs, got {list(shape)}")


def _one(inputs: Sequence[Shape]) -> Shape:
    need(len(inputs) == 1, f"one input, got {len(inputs)}")
    return inputs[0]


def _axis(axis: int, x: Shape) -> int:
    need(0 <= axis < len(x), f"an axis of a tensor with {len(x)} axes, got {axis}")
    return axis


def _axes(axes: Shape, x: Shape) -> None:
    need(len(axes) >= 1 and len(set(axes)) == len(axes), "one or more different axes")
    for axis in axes:
        _axis(axis, x)


def _source(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    need(not inputs, "no inputs")
    if "value" in fields:
        _equal(fields["value"].shape, shape)


def _dense(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    x, weight, bias = _one(inputs), fields["weight"], fields["bias"]
    axis = _axis(fields["axis"], x)
    need(weight.ndim == 2 and weight.shape[1] == x[axis], f"a weight with {x[axis]} columns, got {weight.shape}")
    need(bias is None or bias.shape == weight.shape[:1], "a bias with one entry a row")
    _equal((*x[:axis], weight.shape[0], *x[axis + 1 :]), shape)


def _conv_fields(fields: Fields, x: Shape) -> Any:
    weight, spatial = fields["weight"], len(x) - 2
    need(spatial >= 1 and weight.ndim == len(x), f"a weight with {len(x)} axes, got {weight.ndim}")
    need(weight.size > 0, "a weight with entries")
    need(all(len(fields[k]) == spatial for k in ("stride", "padding", "dilation")), f"{spatial} spatial axes")
    need(min(fields["stride"]) >= 1 and min(fields["dilation"]) >= 1, "stride and dilation >= 1")
    limit = 2**30
    need(max(*fields["stride"], *fields["dilation"], *(p for pair in fields["padding"] for p in pair)) < limit,
         "moderate stride, dilation and padding")  # fmt: skip
    return weight


def _conv(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    x = _one(inputs)
    weight, groups = _conv_fields(fields, x), fields["groups"]
    need(x[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0, "channels that fit weight and groups")
    bias = fields["bias"]
    need(bias is None or bias.shape == weight.shape[:1], "a bias with one entry an output channel")
    rows = zip(x[2:], weight.shape[2:], fields["stride"], fields["padding"], fields["dilation"], strict=True)
    spatial = tuple((n + low + high - d * (k - 1) - 1) // s + 1 for n, k, s, (low, high), d in rows)
    need(min(spatial) >= 1, "a kernel that fits into the padded image")
    need(math.prod(n + sum(p) for n, p in zip(x[2:], fields["padding"], strict=True)) * x[1] <= 10**9, "less padding")
    _equal((x[0], weight.shape[0], *spatial), shape)


def _conv_transpose(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    x = _one(inputs)
    weight, groups = _conv_fields(fields, x), fields["groups"]
    need(x[1] == weight.shape[0] and weight.shape[0] % groups == 0, "channels that fit weight and groups")
    channels = weight.shape[1] * groups
    bias = fields["bias"]
    need(bias is None or bias.shape == (channels,), "a bias with one entry an output channel")
    need(len(shape) == len(x) and shape[:2] == (x[0], channels), f"shape [{x[0]}, {channels}, ...], got {list(shape)}")
    full = [s * (n - 1) + d * (k - 1) + 1 for n, k, s, d in
            zip(x[2:], weight.shape[2:], fields["stride"], fields["dilation"], strict=True)]  # fmt: skip
    need(math.prod(full) * channels <= 10**9, "a smaller full size")


def _batch_norm(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    x = _one(inputs)
    axis = _axis(fields["axis"], x)
    for key in ("mean", "variance", "weight", "bias"):
        need(fields[key].shape == (x[axis],), f"{key} with {x[axis]} entries")
    need(bool((fields["variance"] + fields["eps"] > 0).all()), "variance + eps > 0")
    need(bool(np.isfinite(fields["variance"] + fields["eps"]).all()), "a finite variance + eps")
    _equal(x, shape)


def _constant(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    x = _one(inputs)
    need(np.broadcast_shapes(fields["value"].shape, x) == x, f"a value that broadcasts to {list(x)}")
    _equal(x, shape)


def _div_constant(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    _constant(fields, inputs, shape)
    need(bool((fields["value"] != 0).all()), "a divisor without zeros")


def _same(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    need(len(inputs) >= 2, "two or more inputs")
    for x in inputs:
        _equal(x, shape)


def _two(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    need(len(inputs) == 2, "two inputs")
    _same(fields, inputs, shape)


def _concat(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    need(len(inputs) >= 1, "one or more inputs")
    axis = _axis(fields["axis"], inputs[0])
    need(all(len(x) == len(inputs[0]) for x in inputs), "inputs with equally many axes")
    need(len({(*x[:axis], *x[axis + 1 :]) for x in inputs}) == 1, "inputs that differ along the axis only")
    _equal((*inputs[0][:axis], sum(x[axis] for x in inputs), *inputs[0][axis + 1 :]), shape)


def _reduce(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    x, axes = _one(inputs), fields["axes"]
    _axes(axes, x)
    kept = tuple(1 if a in axes else n for a, n in enumerate(x))
    dropped = tuple(n for a, n in enumerate(x) if a not in axes)
    need(shape in (kept, dropped), f"shape {list(kept)} or {list(dropped)}, got {list(shape)}")


def _pool(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    x, windows = _one(inputs), fields["windows"]
    first = len(x) - len(windows)
    need(first >= 0, "at most as many windows as axes")
    for n, rows in zip(x[first:], windows, strict=True):
        start, stop, third = rows.T
        need(bool((start >= 0).all() and (stop > start).all() and (stop <= n).all()), "windows inside the tensor")
        need(bool((third >= 1).all()), "counts and steps >= 1")
    need(math.prod(int(rows[:, 2].max(initial=1)) for rows in windows) < 2**53, "moderate counts")
    _equal((*x[:first], *(len(rows) for rows in windows)), shape)


def _reshape(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    need(math.prod(_one(inputs)) == math.prod(shape), "equally many entries before and after")


def _transpose(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    x, permutation = _one(inputs), fields["permutation"]
    need(sorted(permutation) == list(range(len(x))), "a permutation of the axes")
    _equal(tuple(x[p] for p in permutation), shape)


def _slice(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    x, ranges = _one(inputs), fields["ranges"]
    need(len(ranges) == len(x) and all(step >= 1 for _, _, step in ranges), "a range with step >= 1 for each axis")
    _equal(tuple(len(range(*slice(*r).indices(n))) for r, n in zip(ranges, x, strict=True)), shape)


def _pad(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    x, pads = _one(inputs), fields["pads"]
    need(len(pads) == len(x), "pads for each axis")
    need(fields["mode"] in ("constant", "reflect", "edge", "wrap"), "mode constant, reflect, edge or wrap")
    _equal(tuple(n + low + high for n, (low, high) in zip(x, pads, strict=True)), shape)


def _gather(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    x, indices = _one(inputs), fields["indices"]
    axis = _axis(fields["axis"], x)
    need(indices.ndim == 1 and bool((indices >= 0).all() and (indices < x[axis]).all()), f"indices below {x[axis]}")
    _equal((*x[:axis], len(indices), *x[axis + 1 :]), shape)


def _expand(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    x = _one(inputs)
    need(len(x) <= len(shape) and np.broadcast_shapes(x, shape) == shape, f"{list(x)} to broadcast to {list(shape)}")


def _elementwise(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    x, function, arguments = _one(inputs), fields["function"], dict(fields["arguments"])
    need(function in FUNCTIONS, f"a known function, got {function!r:.60}")
    need(set(arguments) == set(FUNCTIONS[function]), f"arguments {FUNCTIONS[function]} of {function}")
    slope = fields["slope"]
    need((slope is not None) == (function == "prelu"), "a slope for prelu and for nothing else")
    if slope is not None:
        need(np.broadcast_shapes(slope.shape, x) == x, f"a slope that broadcasts to {list(x)}")
    if function == "clip":
        need(arguments["low"] <= arguments["high"], "low <= high")
        need(arguments["low"] < math.inf and arguments["high"] > -math.inf, "limits that leave finite values")
    else:
        need(all(map(math.isfinite, arguments.values())), "finite arguments")
    if function == "power":
        n = arguments["exponent"]
        need(n == int(n) and 2 <= n <= 10_000, "an integer exponent in 2..10000")
    positive = {"softplus": "beta", "silu": "beta", "celu": "alpha"}
    need(function not in positive or arguments[positive[function]] > 0, "a positive argument")
    need(function != "softshrink" or arguments["lambd"] >= 0, "lambd >= 0")
    _equal(x, shape)


def _along(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    x = _one(inputs)
    _axis(fields["axis"], x)
    _equal(x, shape)


def _normalise(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    x = _one(inputs)
    _axes(fields["axes"], x)
    need(fields["eps"] >= 0, "eps >= 0")
    _equal(x, shape)


def _matmul(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    need(len(inputs) == 2 and all(len(x) >= 2 for x in inputs), "two inputs with two or more axes")
    a, b = inputs
    need(a[:-2] == b[:-2] and a[-1] == b[-2], f"factors that fit, got {list(a)} and {list(b)}")
    _equal((*a[:-1], b[-1]), shape)


def _discontinuous(fields: Fields, inputs: Sequence[Shape], shape: Shape) -> None:
    operator, arguments, axis = fields["operator"], dict(fields["arguments"]), fields["axis"]
    need(operator in OPERATORS, f"a known operator, got {operator!r:.60}")
    count, names = OPERATORS[operator]
    need(len(inputs) == count, f"{count} inputs of {operator}")
    need(set(arguments) == set(names) and all(map(math.isfinite, arguments.values())), f"numbers {names}")
    need(operator != "modulo" or arguments["divisor"] != 0, "a divisor other than 0")
    need(operator != "hardshrink" or arguments["lambd"] >= 0, "lambd >= 0")
    x = inputs[0]
    if operator in ("argmax", "argmin"):
        _axis(axis, x)
        kept, dropped = (*x[:axis], 1, *x[axis + 1 :]), (*x[:axis], *x[axis + 1 :])
        need(shape in (kept, dropped), f"shape {list(kept)} or {list(dropped)}, got {list(shape)}")
    elif operator == "one_hot":
        need(0 <= axis < len(shape) and (*shape[:axis], *shape[axis + 1 :]) == x, "one new axis")
    else:
        for other in inputs:
            _equal(other, shape)


RULES: dict[str, Rule] = {
    "Input": _source, "Constant": _source, "Dense": _dense, "Conv": _conv, "ConvTranspose": _conv_transpose,
    "BatchNorm": _batch_norm, "AddConstant": _constant, "MulConstant": _constant, "DivConstant": _div_constant,
    "Add": _same, "Concat": _concat, "Sum": _reduce, "Mean": _reduce, "AveragePool": _pool, "Reshape": _reshape,
    "Transpose": _transpose, "Slice": _slice, "Pad": _pad, "Gather": _gather, "Expand": _expand,
    "Elementwise": _elementwise, "MaxPool": _pool, "ReduceMax": _reduce, "Maximum": _same, "Sort": _along,
    "Softmax": _along, "LogSoftmax": _along, "LogSumExp": _reduce, "LayerNorm": _normalise, "RMSNorm": _normalise,
    "ReduceL2": _reduce, "Multiply": _two, "Divide": _two, "MatMul": _matmul, "Discontinuous": _discontinuous,
}  # fmt: skip
