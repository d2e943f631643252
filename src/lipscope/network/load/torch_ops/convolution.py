"""Convolutions and their adjoints."""

from __future__ import annotations

from typing import Any

from lipscope.network.load.lowering import Ref
from lipscope.network.load.torch_ops.call import Call, Handlers, Refusal, pairs


def _batched(call: Call, rank: int) -> tuple[Ref, bool]:
    """The operand with its batch axis, and whether it had none."""
    x = call.ref("input")
    if len(x.shape) == rank + 1:
        return call.lowering.reshape(x, (1, *x.shape)), True
    return x, False


def _convolution(call: Call) -> Ref:
    weight = call.array("weight")
    rank = weight.ndim - 2
    x, single = _batched(call, rank)
    dilation = pairs(call["dilation"], rank)
    y = call.lowering.conv(
        x, weight, call.maybe_array("bias"), pairs(call["stride"], rank),
        _padding(call["padding"], weight.shape[2:], dilation), dilation, int(call["groups"]),
    )  # fmt: skip
    return call.lowering.reshape(y, y.shape[1:]) if single else y


def _padding(padding: Any, kernel: tuple[int, ...], dilation: list[int]) -> list[tuple[int, int]]:
    """(low, high) an axis; 'same' puts the odd one behind, as torch does."""
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in pairs(padding, len(kernel))]


def _transposed(call: Call) -> Ref:
    weight = call.array("weight")
    rank = weight.ndim - 2
    x, single = _batched(call, rank)
    y = call.lowering.conv_transpose(
        x, weight, call.maybe_array("bias"), pairs(call["stride"], rank), [(p, p) for p in pairs(call["padding"], rank)],
        pairs(call["output_padding"], rank), pairs(call["dilation"], rank), int(call["groups"]),
    )  # fmt: skip
    return call.lowering.reshape(y, y.shape[1:]) if single else y


def _either(call: Call) -> Ref:
    return _transposed(call) if call["transposed"] else _convolution(call)


def _windows(call: Call) -> Ref:
    """`unfold`: patches as columns; padding first, then entries are moved."""
    x = call.x
    if any(call["padding"]):
        rows, columns = pairs(call["padding"], 2)
        lead = [(0, 0)] * (len(x.shape) - 2)
        x = call.lowering.pad(x, [*lead, (rows, rows), (columns, columns)])
    return call.replaced(self=x, padding=[0, 0]).rearranged("self")


def _fold(call: Call) -> Ref:
    raise Refusal("sums of overlapping patches are not understood; use a transposed convolution")


HANDLERS: Handlers = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    "convolution": _either,
    "im2col": _windows,
    "col2im": _fold,
}
