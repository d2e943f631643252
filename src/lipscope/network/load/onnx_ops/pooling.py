"""Pooling."""

from __future__ import annotations

from math import prod

import numpy as np

from lipscope.network.load.lowering import Operand, Ref
from lipscope.network.load.onnx_ops.call import Call, Handler, Handlers, Refusal
from lipscope.network.load.onnx_ops.convolution import Window, window
from lipscope.network.load.windows import pooled_size
from lipscope.network.nodes import Array


def _window(call: Call) -> Window:
    kernel = call.attribute("kernel_shape")
    if kernel is None:
        raise Refusal("it has no kernel_shape; the file is malformed")
    return window(call, call.x.shape[2:], kernel)


def _max_pool(call: Call) -> Operand:
    w = _window(call)
    ceil = bool(call.attribute("ceil_mode", 0))
    return call.lowering.max_pool(call.x, w.kernel, w.stride, w.padding, w.dilation, ceil)


def _average_pool(call: Call) -> Operand:
    w = _window(call)
    ceil, padded = bool(call.attribute("ceil_mode", 0)), bool(call.attribute("count_include_pad", 0))
    if max(w.dilation) == 1:
        return call.lowering.average_pool(call.x, w.kernel, w.stride, w.padding, ceil, padded)
    sums, counts = _window_sums(call, call.x, w, ceil, padded)
    return call.lowering.over(sums, counts)


def _window_sums(call: Call, x: Ref, w: Window, ceil: bool, padded: bool) -> tuple[Ref, Array]:
    """The sum over every window, and how many entries it counts (with the padding's, if `padded`)."""
    counts = np.ones(())
    for axis, (k, s, d, pad) in enumerate(zip(w.kernel, w.stride, w.dilation, w.padding, strict=True)):
        size = x.shape[axis + 2]
        rows = pooled_size(size, k, s, pad, d, ceil)
        taps = (np.arange(rows) * s - pad[0])[:, None] + d * np.arange(k)
        matrix = np.zeros((rows, size))
        for row, places in enumerate(taps):
            matrix[row, places[(places >= 0) & (places < size)]] = 1.0
        inside = (taps >= -pad[0]) & (taps < size + pad[1]) if padded else (taps >= 0) & (taps < size)
        counts = counts[..., None] * inside.sum(axis=1)
        x = call.lowering.dense(x, matrix, None, axis + 2)
    if (counts == 0).any():
        raise Refusal("a window holds no entry of the image")
    return x, counts


def _lp(call: Call, x: Ref) -> tuple[Ref, bool]:
    """|x|^p, and whether a square root follows."""
    p = call.attribute("p", 2)
    if p not in (1, 2):
        raise Refusal(f"expected p = 1 or 2, got {p}")
    return call.lowering.elementwise(x, "abs" if p == 1 else "square"), p == 2


def _lp_pool(call: Call) -> Operand:
    powers, root = _lp(call, call.x)
    sums, _ = _window_sums(call, powers, _window(call), bool(call.attribute("ceil_mode", 0)), padded=True)
    return call.lowering.elementwise(sums, "sqrt") if root else sums


def _global(method: str) -> Handler:
    def handle(call: Call) -> Operand:
        axes = range(2, len(call.x.shape))
        if not prod(call.x.shape[2:]) or not axes:
            return call.x
        y: Ref = getattr(call.lowering, method)(call.x, axes, True)
        return y

    return handle


def _global_lp_pool(call: Call) -> Operand:
    p = call.attribute("p", 2)
    if p not in (1, 2):
        raise Refusal(f"expected p = 1 or 2, got {p}")
    reduce = call.lowering.reduce_l1 if p == 1 else call.lowering.reduce_l2
    return reduce(call.x, range(2, len(call.x.shape)), True)


HANDLERS: Handlers = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": _global("mean"),
    "GlobalMaxPool": _global("reduce_max"),
    "GlobalLpPool": _global_lp_pool,
}
