"""Operations with jumps, the comparisons that feed them, and conversions of type."""

from __future__ import annotations

import numpy as np
import torch

from lipscope.network.load.lowering import Operand, Ref
from lipscope.network.load.torch_ops.call import Call, Handler, Handlers, Refusal
from lipscope.network.nodes import Shape


def _shape(operands: list[Operand]) -> Shape:
    return tuple(np.broadcast_shapes(*(tuple(x.shape) for x in operands)))


def _entrywise(operator: str) -> Handler:
    def handle(call: Call) -> Ref:
        names = [name for name in ("self", "other") if name in call.arguments]
        operands = [call.operand(name) for name in names]
        return call.lowering.discontinuous(operator, operands, _shape(operands))

    return handle


def _round(call: Call) -> Ref:
    if call.arguments.get("decimals", 0):
        raise Refusal("rounding to decimals is not understood; it is not Lipschitz in any case")
    return _entrywise("round")(call)  # type: ignore[return-value]


def _not_equal(call: Call) -> Ref:
    operands = [call.operand("self"), call.operand("other")]
    equal = call.lowering.discontinuous("equal", operands, _shape(operands))
    return call.lowering.discontinuous("logical_not", [equal], equal.shape)


def _argument(operator: str) -> Handler:
    def handle(call: Call) -> Ref:
        x, dim = call.x, call["dim"]
        if dim is None:
            x = call.lowering.reshape(x, (-1,))
        axis = 0 if dim is None else int(dim) % len(x.shape)
        kept = [1] * (len(call.x.shape) if dim is None else 1) if call["keepdim"] else []
        return call.lowering.discontinuous(operator, [x], (*x.shape[:axis], *kept, *x.shape[axis + 1 :]), axis)

    return handle


def _one_hot(call: Call) -> Ref:
    classes, x = int(call["num_classes"]), call.x
    if classes < 0:
        raise Refusal("without num_classes the shape of its result depends on the input; give num_classes")
    return call.lowering.discontinuous("one_hot", [x], (*x.shape, classes), len(x.shape), off=0.0, on=1.0)


def _where(call: Call) -> Ref:
    condition, a, b = call.operand("condition"), call.operand("self"), call.operand("other")
    if isinstance(condition, Ref):
        return call.lowering.discontinuous("where", [condition, a, b], _shape([condition, a, b]))
    return call.lowering.select(condition, a, b)


def _masked_fill(call: Call) -> Ref:
    mask, value, x = call.operand("mask"), call.operand("value"), call.operand("self")
    if isinstance(mask, Ref):
        return call.lowering.discontinuous("where", [mask, value, x], _shape([mask, value, x]))
    return call.lowering.select(mask, value, x)


def _heaviside(call: Call) -> Ref:
    return call.lowering.discontinuous("heaviside", [call.x], call.x.shape, at_zero=call.number("values"))


def _remainder(call: Call) -> Ref:
    return call.lowering.discontinuous("modulo", [call.x], call.x.shape, divisor=call.number("other"))


def _fraction(call: Call) -> Ref:
    lowering, x = call.lowering, call.x
    return lowering.minus(x, lowering.discontinuous("truncate", [x], x.shape))


def _converted(call: Call) -> Ref:
    """Another type: floats stay what they are, a float to an integer is cut off."""
    dtype, x = call.arguments.get("dtype"), call.x
    if "other" in call.arguments and not isinstance(call["other"], Ref | None):
        dtype = call["other"].dtype
    if dtype is None or dtype.is_floating_point:
        return x
    if dtype.is_complex:
        raise Refusal("complex numbers are not understood; write real and imaginary parts as two tensors")
    if dtype == torch.bool:
        equal = call.lowering.discontinuous("equal", [x, np.zeros(())], x.shape)
        return call.lowering.discontinuous("logical_not", [equal], x.shape)
    if next(iter(call.arguments)) in call.whole:
        return x
    return call.lowering.discontinuous("truncate", [x], x.shape)


HANDLERS: Handlers = {
    **dict.fromkeys(("sign", "sgn"), _entrywise("sign")),
    "round": _round,
    "floor": _entrywise("floor"),
    "ceil": _entrywise("ceil"),
    **dict.fromkeys(("trunc", "fix"), _entrywise("truncate")),
    "eq": _entrywise("equal"),
    "lt": _entrywise("less"),
    "le": _entrywise("less_equal"),
    "gt": _entrywise("greater"),
    "ge": _entrywise("greater_equal"),
    "ne": _not_equal,
    "less": _entrywise("less"),
    "less_equal": _entrywise("less_equal"),
    "greater": _entrywise("greater"),
    "greater_equal": _entrywise("greater_equal"),
    **dict.fromkeys(("logical_not", "bitwise_not"), _entrywise("logical_not")),
    **dict.fromkeys(("logical_and", "bitwise_and", "__and__"), _entrywise("logical_and")),
    **dict.fromkeys(("logical_or", "bitwise_or", "__or__"), _entrywise("logical_or")),
    "argmax": _argument("argmax"),
    "argmin": _argument("argmin"),
    "one_hot": _one_hot,
    "where": _where,
    "masked_fill": _masked_fill,
    "heaviside": _heaviside,
    "remainder": _remainder,
    "frac": _fraction,
    **dict.fromkeys(("to", "_to_copy", "type_as"), _converted),
}
