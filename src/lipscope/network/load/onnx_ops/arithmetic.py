"""Sums, products, quotients, powers, entrywise extremes."""

from __future__ import annotations

from functools import reduce

import numpy as np

from lipscope.network import nodes as n
from lipscope.network.load.lowering import Operand, Ref, stored
from lipscope.network.load.onnx_ops.call import Call, Handler, Handlers, Refusal
from lipscope.network.nodes import Array


def _add(call: Call) -> Operand:
    return call.lowering.plus(call.operand(0), call.operand(1))


def _sub(call: Call) -> Operand:
    return call.lowering.minus(call.operand(0), call.operand(1))


def _mul(call: Call) -> Operand:
    return call.lowering.times(call.operand(0), call.operand(1))


def _div(call: Call) -> Operand:
    if all(call.whole):
        raise Refusal("the quotient of computed integers is cut off, which is not Lipschitz")
    return call.lowering.over(call.operand(0), call.operand(1))


def _neg(call: Call) -> Operand:
    return call.lowering.negative(call.x)


def _many(kind: type[n.Node], constants: np.ufunc) -> Handler:
    """An operator on any number of operands: the constants first, then the tensors, then both together."""

    def handle(call: Call) -> Operand:
        operands = call.given()
        refs = [x for x in operands if isinstance(x, Ref)]
        fixed = [np.asarray(stored(x)) for x in operands if not isinstance(x, Ref)]
        shape = np.broadcast_shapes(*(x.shape for x in operands))
        lowering = call.lowering
        refs = [lowering.expand(x, shape) for x in refs]
        y = refs[0] if len(refs) == 1 else lowering.put(kind, refs, shape)
        if not fixed:
            return y
        constant: Array = reduce(constants, fixed)
        return lowering.plus(y, constant) if constants is np.add else lowering.maximum(y, constant)

    return handle


_sum = _many(n.Add, np.add)
_max = _many(n.Maximum, np.maximum)


def _min(call: Call) -> Operand:
    operands = call.given()
    if len(operands) == 2:
        return call.lowering.minimum(operands[0], operands[1])
    fixed = [stored(x) for x in operands if not isinstance(x, Ref)]
    refs: list[Operand] = [x for x in operands if isinstance(x, Ref)]
    everything = refs + ([reduce(np.minimum, fixed)] if fixed else [])
    return reduce(lambda a, b: call.lowering.minimum(a, b), everything)


def _mean(call: Call) -> Operand:
    total = _sum(call)
    assert isinstance(total, Ref)
    count = len(call.operands)
    return total if count == 1 else call.lowering.over(total, np.asarray(float(count)))


def power(call: Call, x: Ref, exponent: float) -> Ref:
    """`x ** exponent` for the exponents that have a meaning here.

    Raises:
        Refusal: another exponent.
    """
    lowering = call.lowering
    if exponent == 0.0:
        return lowering.as_ref(np.ones(x.shape))
    if exponent == 1.0:
        return x
    if exponent == 2.0:
        return lowering.elementwise(x, "square")
    if exponent == 0.5:
        return lowering.elementwise(x, "sqrt")
    if exponent == 1.5:
        return lowering.times(x, lowering.elementwise(x, "sqrt"))
    if exponent < 0:
        return lowering.elementwise(power(call, x, -exponent), "reciprocal")
    if exponent.is_integer():
        return lowering.elementwise(x, "power", exponent=exponent)
    raise Refusal(f"expected an integer exponent, 0.5 or 1.5 (or their negatives), got {exponent:.9g}")


def _pow(call: Call) -> Operand:
    base, exponent = call.operand(0), call.operand(1)
    lowering = call.lowering
    if isinstance(exponent, Ref):
        if isinstance(base, Ref) or (stored(base).astype(np.float64) <= 0).any():
            raise Refusal("its exponents depend on the input; that is understood for a constant positive base only")
        return lowering.elementwise(lowering.times(exponent, np.log(stored(base).astype(np.float64))), "exp")
    exponents = stored(exponent).astype(np.float64)
    x = lowering.expand(call.x, np.broadcast_shapes(call.x.shape, exponents.shape))
    distinct = np.unique(exponents)
    if len(distinct) == 1:
        return power(call, x, float(distinct[0]))
    if (distinct < 0).any() or (distinct % 1 != 0).any():
        raise Refusal("its entries have several exponents; that is understood for non-negative integers only")
    parts = [lowering.times(power(call, x, float(p)), (exponents == p).astype(np.float64)) for p in distinct]
    return reduce(lambda a, b: lowering.plus(a, b), parts)


HANDLERS: Handlers = {
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Neg": _neg,
    "Sum": _sum,
    "Max": _max,
    "Min": _min,
    "Mean": _mean,
    "Pow": _pow,
}
