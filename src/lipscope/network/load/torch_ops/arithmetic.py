"""Sums, products, quotients, powers, limits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lipscope.network import nodes as n
from lipscope.network.load.lowering import Operand, Ref
from lipscope.network.load.torch_ops.call import Call, Handler, Handlers, Refusal, number

HALF = number(0.5)


def _scaled(call: Call, x: Operand, factor: float) -> Operand:
    if factor == 1:
        return x
    return call.lowering.times(x, number(factor)) if isinstance(x, Ref) else np.multiply(x, factor)


def _no_truth(call: Call) -> None:
    if call.dtype == torch.bool:
        raise Refusal("sums of truth values that depend on the input are not understood")


def _add(call: Call) -> Ref:
    _no_truth(call)
    alpha = float(call.arguments.get("alpha", 1))
    return call.lowering.plus(call.operand("self"), _scaled(call, call.operand("other"), alpha))


def _sub(call: Call) -> Ref:
    _no_truth(call)
    alpha = float(call.arguments.get("alpha", 1))
    return call.lowering.minus(call.operand("self"), _scaled(call, call.operand("other"), alpha))


def _rsub(call: Call) -> Ref:
    alpha = float(call.arguments.get("alpha", 1))
    return call.lowering.minus(call.operand("other"), _scaled(call, call.operand("self"), alpha))


def _mul(call: Call) -> Ref:
    a, b = call.operand("self"), call.operand("other")
    for sign, size in ((a, b), (b, a)):
        known = _sign_times_size(call, sign, size)
        if known is not None:
            return known
    return call.lowering.times(a, b)


def _sign_times_size(call: Call, sign: Operand, size: Operand) -> Ref | None:
    """sign(x) |x| = x, as torch's power-average pooling writes it (with a ReLU around the absolute value)."""
    if not (isinstance(sign, Ref) and isinstance(size, Ref)):
        return None
    nodes = call.lowering.nodes
    first, second = nodes[sign.index], nodes[size.index]
    if isinstance(second, n.Elementwise) and second.function == "relu":
        second = nodes[second.inputs[0]]
    if not (isinstance(first, n.Discontinuous) and first.operator == "sign" and first.inputs == second.inputs):
        return None
    if not (isinstance(second, n.Elementwise) and second.function == "abs"):
        return None
    return Ref(first.inputs[0], sign.shape)


def _div(call: Call) -> Ref:
    if call.arguments.get("rounding_mode") is not None:
        return _rounded_quotient(call, {"floor": "floor", "trunc": "truncate"}[call["rounding_mode"]])
    return call.lowering.over(call.operand("self"), call.operand("other"))


def _rounded_quotient(call: Call, operator: str) -> Ref:
    quotient = call.lowering.over(call.operand("self"), call.operand("other"))
    return call.lowering.discontinuous(operator, [quotient], quotient.shape)


def _pow(call: Call) -> Ref:
    base, exponent = call.operand("self"), call.operand("exponent")
    lowering = call.lowering
    if isinstance(exponent, Ref):
        if isinstance(base, Ref) or base.size != 1 or not float(base.reshape(())) > 0:
            raise Refusal("only a positive constant to the power of a tensor is understood")
        rate = np.asarray(math.log(float(base.reshape(()))))
        return lowering.elementwise(lowering.times(exponent, rate), "exp")
    if exponent.size != 1:
        raise Refusal("an array of exponents is not understood; use one exponent for all entries")
    assert isinstance(base, Ref)
    return power(call, base, float(exponent.reshape(())))


def power(call: Call, x: Ref, exponent: float) -> Ref:
    """A constant power of x; one that is not whole needs x > 0."""
    lowering = call.lowering
    if exponent == 0:
        return lowering.as_ref(np.ones(x.shape))
    if exponent < 0:
        return lowering.elementwise(power(call, x, -exponent), "reciprocal")
    if exponent == 1:
        return x
    if exponent == 2:
        return lowering.elementwise(x, "square")
    if exponent == 0.5:
        return lowering.elementwise(x, "sqrt")
    if exponent == int(exponent):
        return lowering.elementwise(x, "power", exponent=exponent)
    return lowering.elementwise(lowering.times(lowering.elementwise(x, "log"), number(exponent)), "exp")


def _clamp(call: Call) -> Ref:
    x: Operand = call.x
    low, high = (None if call.arguments.get(k) is None else call.operand(k) for k in ("min", "max"))
    if isinstance(x, Ref) and _single(low) and _single(high):
        return call.lowering.clip(
            x, -math.inf if low is None else call.number("min"), math.inf if high is None else call.number("max")
        )
    if low is not None:
        x = call.lowering.maximum(x, low)
    if high is not None:
        x = call.lowering.minimum(x, high)
    return call.lowering.as_ref(x)


def _single(x: Operand | None) -> bool:
    return x is None or (not isinstance(x, Ref) and x.size == 1)


def _maximum(call: Call) -> Ref:
    return call.lowering.maximum(call.operand("self"), call.operand("other"))


def _minimum(call: Call) -> Ref:
    return call.lowering.minimum(call.operand("self"), call.operand("other"))


def _lerp(call: Call) -> Ref:
    """The point between `self` and `end`, entrywise."""
    lowering = call.lowering
    start, end = call.ref("self"), call.ref("end")
    return lowering.plus(start, lowering.times(lowering.minus(end, start), call.operand("weight")))


def _fused(product: bool) -> Handler:
    """`addcmul` and `addcdiv`: self + value tensor1 (* or /) tensor2"""

    def handle(call: Call) -> Ref:
        lowering = call.lowering
        a, b = call.ref("tensor1"), call.operand("tensor2")
        y = lowering.times(a, b) if product else lowering.over(a, b)
        return lowering.plus(call.operand("self"), _scaled(call, y, float(call["value"])))

    return handle


def _logaddexp(call: Call) -> Ref:
    pair = call.lowering.stack(call.lowering._common([call.operand("self"), call.operand("other")]), 0)
    return call.lowering.log_sum_exp(pair, [0], False)


def _hypot(call: Call) -> Ref:
    pair = call.lowering.stack(call.lowering._common([call.operand("self"), call.operand("other")]), 0)
    return call.lowering.reduce_l2(pair, [0], False)


def _limit(name: str) -> Handler:
    def handle(call: Call) -> Any:
        return _clamp(replace(call, arguments={"self": call["self"], name: call[name]}))

    return handle


HANDLERS: Handlers = {
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "multiply": _mul,
    "div": _div,
    "divide": _div,
    "true_divide": _div,
    "floor_divide": lambda call: _rounded_quotient(call, "floor"),
    "neg": lambda call: call.lowering.negative(call.x),
    "negative": lambda call: call.lowering.negative(call.x),
    "pow": _pow,
    "float_power": _pow,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _limit("min"),
    "clamp_max": _limit("max"),
    "maximum": _maximum,
    "fmax": _maximum,
    "max.other": _maximum,
    "minimum": _minimum,
    "fmin": _minimum,
    "min.other": _minimum,
    "lerp": _lerp,
    "addcmul": _fused(True),
    "addcdiv": _fused(False),
    "logaddexp": _logaddexp,
    "hypot": _hypot,
}
