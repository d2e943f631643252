"""Functions of single entries."""

from __future__ import annotations

import math

from lipscope.network.load.lowering import Ref
from lipscope.network.load.torch_ops.call import Call, Handler, Handlers, Refusal, number
from lipscope.network.load.torch_ops.normalization import TRAINING


def _plain(function: str, **arguments: float) -> Handler:
    return lambda call: call.lowering.elementwise(call.x, function, **arguments)


def _named(function: str, **names: str) -> Handler:
    """An entrywise function whose parameters are arguments of the operation."""

    def handle(call: Call) -> Ref:
        return call.lowering.elementwise(call.x, function, **{key: float(call[name]) for key, name in names.items()})

    return handle


def _gelu(call: Call) -> Ref:
    return call.lowering.elementwise(call.x, "gelu_tanh" if call["approximate"] == "tanh" else "gelu")


def _elu(call: Call) -> Ref:
    if call["scale"] != 1 or call["input_scale"] != 1:
        raise Refusal("elu with a scale is not understood; multiply after it")
    return call.lowering.elementwise(call.x, "elu", alpha=float(call["alpha"]))


def _celu(call: Call) -> Ref:
    alpha = float(call["alpha"])
    if not alpha > 0:
        raise Refusal(f"expected alpha > 0, got {alpha}")
    return call.lowering.elementwise(call.x, "celu", alpha=alpha)


def _softplus(call: Call) -> Ref:
    if float(call["threshold"]) < 20:
        raise Refusal("with a threshold below 20 it has a visible jump; leave the threshold at its default")
    return call.lowering.elementwise(call.x, "softplus", beta=float(call["beta"]))


def _log_sigmoid(call: Call) -> Ref:
    """-log(1 + exp(-x))"""
    lowering = call.lowering
    return lowering.negative(lowering.elementwise(lowering.negative(call.x), "softplus", beta=1.0))


def _prelu(call: Call) -> Ref:
    slope, x = call.array("weight"), call.x
    return call.lowering.prelu(x, slope, 1 if slope.size > 1 and len(x.shape) > 1 else None)


def _rrelu(call: Call) -> Ref:
    if call["training"]:
        raise Refusal(TRAINING)
    slope = (float(call["lower"]) + float(call["upper"])) / 2
    return call.lowering.elementwise(call.x, "leaky_relu", negative_slope=slope)


def _hardtanh(call: Call) -> Ref:
    return call.lowering.clip(call.x, float(call["min_val"]), float(call["max_val"]))


def _hardsigmoid(call: Call) -> Ref:
    """clip(x + 3, 0, 6) / 6"""
    lowering = call.lowering
    shifted = lowering.clip(lowering.plus(call.x, number(3)), 0.0, 6.0)
    return lowering.over(shifted, number(6))


def _glu(call: Call) -> Ref:
    """The first half times the sigmoid of the second."""
    lowering, x, axis = call.lowering, call.x, int(call["dim"])
    half = x.shape[axis] // 2
    first, second = lowering.split(x, [half, half], axis)
    return lowering.times(first, lowering.elementwise(second, "sigmoid"))


def _threshold(call: Call) -> Ref:
    """The entry where it is above the threshold, else a value; without a jump it is a shifted ReLU."""
    threshold, value = float(call["threshold"]), float(call["value"])
    if threshold == value:
        return call.lowering.clip(call.x, low=threshold)
    return call.lowering.discontinuous("threshold", [call.x], call.x.shape, threshold=threshold, value=value)


def _hardshrink(call: Call) -> Ref:
    lambd = float(call["lambd"])
    if lambd == 0:
        return call.x
    return call.lowering.discontinuous("hardshrink", [call.x], call.x.shape, lambd=lambd)


def _rsqrt(call: Call) -> Ref:
    return call.lowering.elementwise(call.lowering.elementwise(call.x, "sqrt"), "reciprocal")


def _expm1(call: Call) -> Ref:
    return call.lowering.plus(call.lowering.elementwise(call.x, "exp"), number(-1))


def _log1p(call: Call) -> Ref:
    return call.lowering.elementwise(call.lowering.plus(call.x, number(1)), "log")


def _log_to(base: float) -> Handler:
    return lambda call: call.lowering.over(call.lowering.elementwise(call.x, "log"), number(math.log(base)))


def _exp2(call: Call) -> Ref:
    return call.lowering.elementwise(call.lowering.times(call.x, number(math.log(2))), "exp")


def _hyperbolic(sign: float) -> Handler:
    """(exp(x) + sign exp(-x)) / 2"""

    def handle(call: Call) -> Ref:
        lowering = call.lowering
        up, down = lowering.elementwise(call.x, "exp"), lowering.elementwise(lowering.negative(call.x), "exp")
        whole = lowering.plus(up, down) if sign > 0 else lowering.minus(up, down)
        return lowering.times(whole, number(0.5))

    return handle


def _tan(call: Call) -> Ref:
    return call.lowering.over(call.lowering.elementwise(call.x, "sin"), call.lowering.elementwise(call.x, "cos"))


def _erfc(call: Call) -> Ref:
    return call.lowering.minus(number(1), call.lowering.elementwise(call.x, "erf"))


HANDLERS: Handlers = {
    **{name: _plain(name) for name in
       ("relu", "sigmoid", "tanh", "sin", "cos", "exp", "erf", "abs", "mish", "hardswish", "square", "sqrt", "log",
        "reciprocal", "selu")},
    "absolute": _plain("abs"),
    "special_erf": _plain("erf"),
    "special_expit": _plain("sigmoid"),
    "silu": _plain("silu", beta=1.0),
    "relu6": lambda call: call.lowering.clip(call.x, 0.0, 6.0),
    "atan": _plain("arctan"),
    "arctan": _plain("arctan"),
    "softsign": _plain("softsign"),
    "tanhshrink": _plain("tanhshrink"),
    "leaky_relu": _named("leaky_relu", negative_slope="negative_slope"),
    "celu": _celu,
    "softshrink": _named("softshrink", lambd="lambd"),
    "elu": _elu,
    "gelu": _gelu,
    "softplus": _softplus,
    "log_sigmoid": _log_sigmoid,
    "prelu": _prelu,
    "rrelu": _rrelu,
    "hardtanh": _hardtanh,
    "hardsigmoid": _hardsigmoid,
    "glu": _glu,
    "threshold": _threshold,
    "hardshrink": _hardshrink,
    "rsqrt": _rsqrt,
    "expm1": _expm1,
    "log1p": _log1p,
    "log2": _log_to(2),
    "log10": _log_to(10),
    "exp2": _exp2,
    "sinh": _hyperbolic(-1),
    "cosh": _hyperbolic(1),
    "tan": _tan,
    "erfc": _erfc,
}  # fmt: skip
