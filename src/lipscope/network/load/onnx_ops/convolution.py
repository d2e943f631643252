"""Convolutions and transposed convolutions, and the padding attributes that pooling shares with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lipscope.network.load.lowering import Operand, Ref
from lipscope.network.load.onnx_ops.call import Call, Handlers, Refusal
from lipscope.network.nodes import Array


@dataclass(frozen=True)
class Window:
    """Kernel, stride, dilation and padding of a sliding window, one entry a spatial axis."""

    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    padding: list[tuple[int, int]]


def window(call: Call, spatial: Sequence[int], kernel: Sequence[int]) -> Window:
    """The node's window attributes, `auto_pad` resolved for an input of the given spatial size."""
    ones = [1] * len(kernel)
    stride = [int(s) for s in call.attribute("strides", ones)]
    dilation = [int(d) for d in call.attribute("dilations", ones)]
    pads = [int(p) for p in call.attribute("pads", [0] * 2 * len(kernel))]
    padding = list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))
    mode = call.attribute("auto_pad", "NOTSET")
    if mode == "VALID":
        padding = [(0, 0)] * len(kernel)
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        padding = []
        for size, k, s, d in zip(spatial, kernel, stride, dilation, strict=True):
            total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
            small, large = total // 2, total - total // 2
            padding.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return Window([int(k) for k in kernel], stride, dilation, padding)


def _weights(call: Call) -> tuple[Array, Array | None, Operand | None]:
    """The kernel, a constant bias, and a bias that depends on the input."""
    weight = call.constant(1, "weights")
    bias = call.operand(2) if call.has(2) else None
    return (weight, None, bias) if isinstance(bias, Ref) else (weight, bias, None)


def _with_late_bias(call: Call, y: Ref, late: Operand | None) -> Ref:
    if late is None:
        return y
    column = call.lowering.reshape(call.lowering.as_ref(late), (-1, *(1,) * (len(y.shape) - 2)))
    return call.lowering.plus(y, column)


def _conv(call: Call) -> Operand:
    weight, bias, late = _weights(call)
    w = window(call, call.x.shape[2:], weight.shape[2:])
    groups = int(call.attribute("group", 1))
    y = call.lowering.conv(call.x, weight, bias, w.stride, w.padding, w.dilation, groups)
    return _with_late_bias(call, y, late)


def _conv_transpose(call: Call) -> Operand:
    weight, bias, late = _weights(call)
    spatial, kernel = call.x.shape[2:], weight.shape[2:]
    ones = [1] * len(kernel)
    stride, dilation = call.attribute("strides", ones), call.attribute("dilations", ones)
    extra = [int(p) for p in call.attribute("output_padding", [0] * len(kernel))]
    full = [s * (size - 1) + d * (k - 1) + 1 for size, s, d, k in zip(spatial, stride, dilation, kernel, strict=True)]
    mode, wanted = call.attribute("auto_pad", "NOTSET"), call.attribute("output_shape")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * s for size, s in zip(spatial, stride, strict=True)]
    if wanted is not None:
        wanted = list(wanted)[-len(kernel) :]
        padding = []
        for axis, (length, target) in enumerate(zip(full, wanted, strict=True)):
            total = max(length + extra[axis] - target, 0)
            small, large = total // 2, total - total // 2
            padding.append((small, large) if mode == "SAME_UPPER" else (large, small))
        extra = [target - (length - lo - hi) for length, target, (lo, hi) in zip(full, wanted, padding, strict=True)]
    else:
        pads = [0] * 2 * len(kernel) if mode == "VALID" else call.attribute("pads", [0] * 2 * len(kernel))
        padding = list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))
    if any(p < 0 for pair in padding for p in pair):
        raise Refusal(f"negative padding {padding} of a transposed convolution is not understood")
    groups = int(call.attribute("group", 1))
    y = call.lowering.conv_transpose(call.x, weight, bias, stride, padding, extra, dilation, groups)
    return _with_late_bias(call, y, late)


HANDLERS: Handlers = {"Conv": _conv, "ConvTranspose": _conv_transpose}
