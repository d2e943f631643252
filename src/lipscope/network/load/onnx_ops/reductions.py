"""Reductions over axes, sorting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lipscope.network.load.lowering import Lowering, Operand, Ref
from lipscope.network.load.onnx_ops.call import Call, Handler, Handlers, Refusal

Reduce = Callable[[Lowering, Ref, Sequence[int] | None, bool], Ref]


def _reduction(apply: Reduce, input_since: int = 18, pointwise: str = "") -> Handler:
    """A reduction whose axes are an input from opset `input_since` on.

    `pointwise` is the entrywise function that is left of it where it reduces over nothing.
    """

    def handle(call: Call) -> Operand:
        axes = call.integers("axes", 1, input_since)
        if not axes:
            if call.attribute("noop_with_empty_axes", 0):
                return call.lowering.elementwise(call.x, pointwise) if pointwise else call.x
            axes = None
        return apply(call.lowering, call.x, axes, bool(call.attribute("keepdims", 1)))

    return handle


def _sum_square(lowering: Lowering, x: Ref, axes: Sequence[int] | None, keep: bool) -> Ref:
    return lowering.sum(lowering.elementwise(x, "square"), axes, keep)


def _log_sum(lowering: Lowering, x: Ref, axes: Sequence[int] | None, keep: bool) -> Ref:
    return lowering.elementwise(lowering.sum(x, axes, keep), "log")


def _product(lowering: Lowering, x: Ref, axes: Sequence[int] | None, keep: bool) -> Ref:
    chosen = sorted({a % len(x.shape) for a in (range(len(x.shape)) if axes is None else axes)})
    long = [a for a in chosen if x.shape[a] > 1]
    if sum(x.shape[a] for a in long) > 8:
        raise Refusal("a product over more than eight entries is not understood")
    for axis in long:
        factors = [lowering.slice(x, axis, i, i + 1) for i in range(x.shape[axis])]
        x = factors[0]
        for factor in factors[1:]:
            x = lowering.times(x, factor)
    return x if keep else lowering.reshape(x, [s for a, s in enumerate(x.shape) if a not in chosen])


def _top_k(call: Call) -> Operand:
    x, lowering = call.x, call.lowering
    k = int(np.reshape(call.constant(1, "counts"), ())) if call.opset >= 10 else int(call.attribute("k"))
    axis = int(call.attribute("axis", -1)) % len(x.shape)
    largest = bool(call.attribute("largest", 1))
    if not call.attribute("sorted", 1) and k > 1:
        raise Refusal("the order of unsorted values is not defined; set sorted = 1")
    if k == 1:
        return (lowering.reduce_max if largest else lowering.reduce_min)(x, [axis], True)
    return lowering.slice(lowering.sort(x, axis, largest), axis, 0, k)


HANDLERS: Handlers = {
    "ReduceSum": _reduction(Lowering.sum, 13),
    "ReduceMean": _reduction(Lowering.mean),
    "ReduceMax": _reduction(Lowering.reduce_max),
    "ReduceMin": _reduction(Lowering.reduce_min),
    "ReduceL1": _reduction(Lowering.reduce_l1, pointwise="abs"),
    "ReduceL2": _reduction(Lowering.reduce_l2, pointwise="abs"),
    "ReduceSumSquare": _reduction(_sum_square, pointwise="square"),
    "ReduceLogSum": _reduction(_log_sum, pointwise="log"),
    "ReduceLogSumExp": _reduction(Lowering.log_sum_exp),
    "ReduceProd": _reduction(_product),
    "TopK": _top_k,
}
