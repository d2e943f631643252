"""Entrywise functions of one variable, and softmax."""

from __future__ import annotations

from math import prod

import numpy as np

from lipscope.network.load.lowering import Operand, Ref, stored
from lipscope.network.load.onnx_ops.call import Call, Handler, Handlers, Refusal

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def _named(function: str, **defaults: float) -> Handler:
    """An entrywise function whose arguments are attributes: argument name = default, the attribute being `alpha`."""

    def handle(call: Call) -> Operand:
        arguments = {name: call.attribute("alpha", default) for name, default in defaults.items()}
        return call.lowering.elementwise(call.x, function, **arguments)

    return handle


def _celu(call: Call) -> Operand:
    alpha = float(call.attribute("alpha", 1.0))
    if not alpha > 0:
        raise Refusal(f"expected alpha > 0, got {alpha}")
    return call.lowering.elementwise(call.x, "celu", alpha=alpha)


def _softplus(call: Call) -> Operand:
    return call.lowering.elementwise(call.x, "softplus", beta=1.0)


def _selu(call: Call) -> Operand:
    # Not the row `selu`: its constants are real numbers, ONNX means their float32 roundings.
    alpha = call.attribute("alpha", 1.67326319217681884765625)
    gamma = call.attribute("gamma", 1.05070102214813232421875)
    return call.lowering.times(
        call.lowering.elementwise(call.x, "elu", alpha=alpha), np.asarray(gamma, dtype=np.float64)
    )


def _hard_sigmoid(call: Call) -> Operand:
    default = float(np.float32(0.2))
    return call.lowering.hard_sigmoid(call.x, call.attribute("alpha", default), call.attribute("beta", 0.5))


def _gelu(call: Call) -> Operand:
    kind = call.attribute("approximate", "none")
    return call.lowering.elementwise(call.x, "gelu_tanh" if kind == "tanh" else "gelu")


def _swish(call: Call) -> Operand:
    beta = float(call.attribute("alpha", 1.0))
    if beta > 0:
        return call.lowering.elementwise(call.x, "silu", beta=beta)
    gate = call.lowering.elementwise(call.lowering.times(call.x, np.asarray(beta, dtype=np.float64)), "sigmoid")
    return call.lowering.times(call.x, gate)


def _bounds(call: Call) -> tuple[Operand | None, Operand | None]:
    if call.opset < 11:
        low, high = call.attribute("min", -_FLOAT32_MAX), call.attribute("max", _FLOAT32_MAX)
        return np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    return (
        call.operand(1) if call.has(1) else None,
        call.operand(2) if call.has(2) else None,
    )


def _clip(call: Call) -> Operand:
    low, high = _bounds(call)
    if isinstance(low, Ref) or isinstance(high, Ref):
        y: Operand = call.operand(0)
        y = y if low is None else call.lowering.maximum(y, low) if isinstance(y, Ref) or isinstance(low, Ref) else y
        return y if high is None else call.lowering.minimum(y, high)
    bottom = -np.inf if low is None else float(np.reshape(stored(low), ()))
    top = np.inf if high is None else float(np.reshape(stored(high), ()))
    bottom, top = (-np.inf if bottom <= -_FLOAT32_MAX else bottom), (np.inf if top >= _FLOAT32_MAX else top)
    if bottom == -np.inf and top == np.inf:
        return call.x
    return call.lowering.clip(call.x, bottom, top)


def _prelu(call: Call) -> Operand:
    slope = call.operand(1)
    if isinstance(slope, Ref) or not isinstance(call.operand(0), Ref):
        back = call.lowering.elementwise(call.lowering.negative(call.x), "relu")
        return call.lowering.minus(call.lowering.elementwise(call.x, "relu"), call.lowering.times(back, slope))
    return call.lowering.prelu(call.x, slope)


def _thresholded_relu(call: Call) -> Operand:
    alpha = float(call.attribute("alpha", 1.0))
    if alpha == 0.0:
        return call.lowering.elementwise(call.x, "relu")
    return call.lowering.discontinuous("threshold", [call.x], call.x.shape, threshold=alpha, value=0.0)


def _shrink(call: Call) -> Operand:
    bias, lambd = float(call.attribute("bias", 0.0)), float(call.attribute("lambd", 0.5))
    if lambd < 0:
        raise Refusal(f"expected lambd >= 0, got {lambd}")
    if bias == lambd:
        return call.lowering.elementwise(call.x, "softshrink", lambd=lambd)
    if bias == 0.0:
        return call.lowering.discontinuous("hardshrink", [call.x], call.x.shape, lambd=lambd)
    raise Refusal(f"with bias {bias} and lambd {lambd} it jumps at lambd; only bias = lambd is continuous")


def _softmax(logarithm: bool) -> Handler:
    def handle(call: Call) -> Operand:
        x, lowering = call.x, call.lowering
        apply = lowering.log_softmax if logarithm else lowering.softmax
        if call.opset >= 13:
            return apply(x, call.attribute("axis", -1))
        axis = int(call.attribute("axis", 1)) % max(len(x.shape), 1)
        flat = lowering.reshape(x, (prod(x.shape[:axis]), prod(x.shape[axis:])))  # all axes from `axis` on are one
        return lowering.reshape(apply(flat, 1), x.shape)

    return handle


HANDLERS: Handlers = {
    "Relu": _named("relu"),
    "LeakyRelu": _named("leaky_relu", negative_slope=float(np.float32(0.01))),
    "Elu": _named("elu", alpha=1.0),
    "Celu": _celu,
    "Selu": _selu,
    "Sigmoid": _named("sigmoid"),
    "Tanh": _named("tanh"),
    "Sin": _named("sin"),
    "Cos": _named("cos"),
    "Exp": _named("exp"),
    "Atan": _named("arctan"),
    "Erf": _named("erf"),
    "Abs": _named("abs"),
    "Sqrt": _named("sqrt"),
    "Log": _named("log"),
    "Reciprocal": _named("reciprocal"),
    "Softsign": _named("softsign"),
    "Mish": _named("mish"),
    "HardSwish": _named("hardswish"),
    "Softplus": _softplus,
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "Swish": _swish,
    "Clip": _clip,
    "PRelu": _prelu,
    "ThresholdedRelu": _thresholded_relu,
    "Shrink": _shrink,
    "Softmax": _softmax(False),
    "LogSoftmax": _softmax(True),
}
