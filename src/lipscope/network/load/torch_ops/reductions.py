"""Sums, means, maxima, norms over axes; sorting."""

from __future__ import annotations

import math
from typing import Any

import torch

from lipscope.network.load.lowering import Ref
from lipscope.network.load.torch_ops.arithmetic import power
from lipscope.network.load.torch_ops.call import Call, Handler, Handlers, Refusal, number
from lipscope.network.load.torch_ops.pooling import INDICES, refused


def _axes(call: Call) -> list[int] | None:
    """The axes to reduce; None for all of them."""
    dim = call.arguments.get("dim")
    if dim is None or (isinstance(dim, list | tuple) and not dim):
        return None
    return [int(d) for d in dim] if isinstance(dim, list | tuple) else [int(dim)]


def _keep(call: Call) -> bool:
    return bool(call.arguments.get("keepdim", False))


def _reduction(method: str) -> Handler:
    return lambda call: getattr(call.lowering, method)(call.x, _axes(call), _keep(call))


def _extreme(method: str, index: str) -> Handler:
    """`max` and `min` along one axis: values, and indices that jump."""

    def handle(call: Call) -> list[Any]:
        x, axis = call.x, int(call["dim"]) % len(call.x.shape)
        values = getattr(call.lowering, method)(x, [axis], _keep(call))
        return [values, lambda: call.lowering.discontinuous(index, [x], values.shape, axis)]

    return handle


def _aminmax(call: Call) -> list[Ref]:
    return [getattr(call.lowering, m)(call.x, _axes(call), _keep(call)) for m in ("reduce_min", "reduce_max")]


def _norm(call: Call) -> Ref:
    """`linalg_vector_norm` and the vector norms of `norm` and `linalg_norm`."""
    order = call.arguments.get("ord", call.arguments.get("p", 2))
    lowering, x, axes, keep = call.lowering, call.x, _axes(call), _keep(call)
    if isinstance(order, str) or (axes is not None and len(axes) == 2 and "linalg_norm" in str(call.target)):
        raise Refusal("matrix norms are not understood; only vector norms are")
    order = 2.0 if order is None else float(order)
    if order == 1:
        return lowering.reduce_l1(x, axes, keep)
    if order == 2:
        return lowering.reduce_l2(x, axes, keep)
    if order == math.inf:
        return lowering.reduce_max(lowering.elementwise(x, "abs"), axes, keep)
    if order > 1:
        return power(call, lowering.sum(power(call, lowering.elementwise(x, "abs"), order), axes, keep), 1 / order)
    raise Refusal(f"the norm of order {order} is not understood; orders from 1 to infinity are")


def _variance(call: Call) -> Ref:
    """The mean of squares around the mean, with divisor n - correction."""
    lowering, x, axes = call.lowering, call.x, _axes(call)
    correction = call.arguments.get("correction")
    correction = 1.0 if correction is None else float(correction)
    if "unbiased" in call.arguments:
        correction = 1.0 if call["unbiased"] else 0.0
    count = math.prod(x.shape[a] for a in (range(len(x.shape)) if axes is None else axes))
    centred = lowering.minus(x, lowering.expand(lowering.mean(x, axes, True), x.shape))
    variance = lowering.mean(lowering.elementwise(centred, "square"), axes, _keep(call))
    if correction == 0:
        return variance
    if count <= correction:
        raise Refusal(f"the variance of {count} entries with correction {correction} divides by zero")
    return lowering.over(lowering.times(variance, number(count)), number(count - correction))


def _deviation(call: Call) -> Ref:
    return call.lowering.elementwise(_variance(call), "sqrt")


def _linear_map(call: Call) -> Ref:
    """An operation that is linear along one axis: its matrix is what it makes of the identity."""
    if not call.constants():
        raise Refusal("an argument besides the first depends on the input; that is not understood")
    x = call.x
    axis = int(call["dim"]) % len(x.shape)
    matrix = call.target(torch.eye(x.shape[axis], dtype=torch.float64), 1)
    return call.lowering.dense(x, matrix.T.numpy(), None, axis)


def _difference(call: Call) -> Ref:
    if call["n"] != 1 or call["prepend"] is not None or call["append"] is not None:
        raise Refusal("only the first difference without prepend and append is understood")
    x, axis = call.x, int(call["dim"])
    size = x.shape[axis]
    return call.lowering.minus(call.lowering.slice(x, axis, 1, size), call.lowering.slice(x, axis, 0, size - 1))


def _product(call: Call) -> Ref:
    lowering, x = call.lowering, call.x
    axis = int(call["dim"]) % len(x.shape)
    if x.shape[axis] > 64:
        raise Refusal("the product of more than 64 entries is not understood")
    y, *rest = lowering.split(x, [1] * x.shape[axis], axis)
    for factor in rest:
        y = lowering.times(y, factor)
    return y if _keep(call) else lowering.reshape(y, (*x.shape[:axis], *x.shape[axis + 1 :]))


# ------------------------------------------------------------------------------------------------------ sorting


def _sort(call: Call) -> list[Any]:
    x = call.x
    return [call.lowering.sort(x, int(call["dim"]), bool(call["descending"])), refused(INDICES)]


def _topk(call: Call) -> list[Any]:
    if not call["sorted"] and int(call["k"]) > 1:
        raise Refusal("topk with sorted=False has no order of its own; use sorted=True")
    axis = int(call["dim"])
    y = call.lowering.sort(call.x, axis, bool(call["largest"]))
    return [call.lowering.slice(y, axis, 0, int(call["k"])), refused(INDICES)]


def _place(call: Call, place: int) -> list[Any]:
    lowering, x = call.lowering, call.x
    axis = int(call["dim"]) % len(x.shape)
    y = lowering.slice(lowering.sort(x, axis), axis, place, place + 1)
    return [y if _keep(call) else lowering.reshape(y, (*x.shape[:axis], *x.shape[axis + 1 :])), refused(INDICES)]


def _median(call: Call) -> list[Any]:
    return _place(call, (call.x.shape[int(call["dim"])] - 1) // 2)


HANDLERS: Handlers = {
    "sum": _reduction("sum"),
    "mean": _reduction("mean"),
    "amax": _reduction("reduce_max"),
    "amin": _reduction("reduce_min"),
    "max": _reduction("reduce_max"),
    "min": _reduction("reduce_min"),
    "max.dim": _extreme("reduce_max", "argmax"),
    "min.dim": _extreme("reduce_min", "argmin"),
    "aminmax": _aminmax,
    "logsumexp": _reduction("log_sum_exp"),
    "linalg_vector_norm": _norm,
    "linalg_norm": _norm,
    "norm": _norm,
    "var": _variance,
    "std": _deviation,
    "prod.dim_int": _product,
    "cumsum": _linear_map,
    "diff": _difference,
    "sort": _sort,
    "topk": _topk,
    "median.dim": _median,
    "kthvalue": lambda call: _place(call, int(call["k"]) - 1),
}
