"""Operators with jumps, and the comparisons that feed them."""

from __future__ import annotations

import numpy as np
import onnx

from lipscope.network.load.lowering import Operand, Ref
from lipscope.network.load.onnx_ops.call import Call, Handler, Handlers, Refusal
from lipscope.network.nodes import Array, Shape

FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}


def _shape(operands: list[Operand]) -> Shape:
    return tuple(np.broadcast_shapes(*(np.shape(x) if not isinstance(x, Ref) else x.shape for x in operands)))


def _entrywise(operator: str) -> Handler:
    def handle(call: Call) -> Operand:
        operands = call.given()
        return call.lowering.discontinuous(operator, operands, _shape(operands))

    return handle


def _argument(operator: str) -> Handler:
    def handle(call: Call) -> Operand:
        if call.attribute("select_last_index", 0):
            raise Refusal("ties that take the last index are not understood")
        x = call.x
        axis = int(call.attribute("axis", 0)) % len(x.shape)
        kept = [1] if call.attribute("keepdims", 1) else []
        return call.lowering.discontinuous(operator, [x], (*x.shape[:axis], *kept, *x.shape[axis + 1 :]), axis)

    return handle


def _where(call: Call) -> Operand:
    condition, a, b = call.given()
    if isinstance(condition, Ref):
        return call.lowering.discontinuous("where", [condition, a, b], _shape([condition, a, b]))
    if not isinstance(a, Ref) and not isinstance(b, Ref):
        raise Refusal("it reads constants only")
    return call.lowering.select(condition, a, b)


def _cast(call: Call) -> Operand:
    kind = call.attribute("to")
    return _converted(call, int(kind))


def _cast_like(call: Call) -> Operand:
    return _converted(call, int(onnx.TensorProto.INT64 if call.whole[1] else onnx.TensorProto.FLOAT))


def _converted(call: Call, kind: int) -> Operand:
    """A float stays what it is (roundings of narrower types are left out); a float to an integer is cut off."""
    x, lowering = call.x, call.lowering
    if kind in FLOATS:
        return x
    if kind == onnx.TensorProto.BOOL:
        zero: Array = np.zeros(())
        equal = lowering.discontinuous("equal", [x, zero], x.shape)
        return lowering.discontinuous("logical_not", [equal], x.shape)
    return x if call.whole[0] else lowering.discontinuous("truncate", [x], x.shape)


def _one_hot(call: Call) -> Operand:
    depth = int(np.reshape(call.constant(1, "depths"), ()))
    off, on = (float(v) for v in np.reshape(call.constant(2, "values"), -1))
    x = call.x
    axis = int(call.attribute("axis", -1)) % (len(x.shape) + 1)
    shape = (*x.shape[:axis], depth, *x.shape[axis:])
    return call.lowering.discontinuous("one_hot", [x], shape, axis, off=off, on=on)


def _mod(call: Call) -> Operand:
    divisor = np.unique(np.asarray(call.constant(1, "divisors"), dtype=np.float64))
    if call.attribute("fmod", 0) or len(divisor) != 1 or divisor[0] == 0:
        raise Refusal("expected one divisor that is not 0 and fmod = 0; it is not Lipschitz in any case")
    return call.lowering.discontinuous("modulo", [call.x], call.x.shape, divisor=float(divisor[0]))


def _hardmax(call: Call) -> Operand:
    x, lowering = call.x, call.lowering
    axis = int(call.attribute("axis", -1 if call.opset >= 13 else 1)) % len(x.shape)
    if call.opset < 13 and axis != len(x.shape) - 1:
        raise Refusal("before opset 13 it flattens the axes; export with opset 13 or newer")
    best = lowering.discontinuous("argmax", [x], (*x.shape[:axis], *x.shape[axis + 1 :]), axis)
    return lowering.discontinuous("one_hot", [best], x.shape, axis, off=0.0, on=1.0)


HANDLERS: Handlers = {
    "Sign": _entrywise("sign"),
    "Round": _entrywise("round"),
    "Floor": _entrywise("floor"),
    "Ceil": _entrywise("ceil"),
    "Equal": _entrywise("equal"),
    "Less": _entrywise("less"),
    "LessOrEqual": _entrywise("less_equal"),
    "Greater": _entrywise("greater"),
    "GreaterOrEqual": _entrywise("greater_equal"),
    "Not": _entrywise("logical_not"),
    "And": _entrywise("logical_and"),
    "Or": _entrywise("logical_or"),
    "ArgMax": _argument("argmax"),
    "ArgMin": _argument("argmin"),
    "Where": _where,
    "Cast": _cast,
    "CastLike": _cast_like,
    "OneHot": _one_hot,
    "Mod": _mod,
    "Hardmax": _hardmax,
}
