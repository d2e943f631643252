"""Pooling over windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from lipscope.network.load.lowering import Ref
from lipscope.network.load.torch_ops.call import Call, Handler, Handlers, Refusal, number, pairs

INDICES = "the positions of the maxima are used, which jump; only the values are understood"


def refused(reason: str) -> Any:
    """A result that is refused if somebody reads it."""

    def raise_refusal() -> Ref:
        raise Refusal(reason)

    return raise_refusal


def _average(rank: int) -> Handler:
    def handle(call: Call) -> Ref:
        lowering, x = call.lowering, call.x
        kernel = pairs(call["kernel_size"], rank)
        stride = pairs(call["stride"], rank) if len(call["stride"]) else kernel
        padding = [(p, p) for p in pairs(call["padding"], rank)]
        divisor = call.arguments.get("divisor_override")
        if divisor is None:
            return lowering.average_pool(
                x, kernel, stride, padding, bool(call["ceil_mode"]), bool(call["count_include_pad"])
            )
        means = lowering.average_pool(x, kernel, stride, padding, bool(call["ceil_mode"]), True)
        return _sums(call, means, int(divisor))

    return handle


def _sums(call: Call, means: Ref, divisor: int) -> Ref:
    """Window means turned into window sums over one divisor."""
    node = call.lowering.nodes[means.index]
    windows = tuple(np.column_stack([w[:, :2], np.ones(len(w), dtype=np.int64)]) for w in node.windows)  # type: ignore[attr-defined]
    sums = call.lowering.put(type(node), [Ref(node.inputs[0], call.x.shape)], node.shape, windows=windows)
    return call.lowering.over(sums, number(divisor))


def _maximum(rank: int, indices: bool) -> Handler:
    def handle(call: Call) -> Ref | list[Any]:
        kernel = pairs(call["kernel_size"], rank)
        y = call.lowering.max_pool(
            call.x, kernel, pairs(call["stride"], rank) if len(call["stride"]) else kernel,
            [(p, p) for p in pairs(call["padding"], rank)], pairs(call["dilation"], rank), bool(call["ceil_mode"]),
        )  # fmt: skip
        return [y, refused(INDICES)] if indices else y

    return handle


def _adaptive_average(call: Call) -> Ref:
    return call.lowering.adaptive_average_pool(call.x, [int(v) for v in call["output_size"]])


def _adaptive_maximum(call: Call) -> list[Any]:
    return [call.lowering.adaptive_max_pool(call.x, [int(v) for v in call["output_size"]]), refused(INDICES)]


HANDLERS: Handlers = {
    **{f"avg_pool{d}d": _average(d) for d in (1, 2, 3)},
    **{f"max_pool{d}d": _maximum(d, False) for d in (1, 2, 3)},
    **{f"max_pool{d}d_with_indices": _maximum(d, True) for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": _adaptive_average for d in (1, 2, 3)},
    **{f"_adaptive_avg_pool{d}d": _adaptive_average for d in (1, 2, 3)},
    **{f"adaptive_max_pool{d}d": _adaptive_maximum for d in (1, 2, 3)},
}
