"""Operators that read or change the shape alone."""

from __future__ import annotations

from math import prod

import numpy as np

from lipscope.network.load.lowering import Operand, Ref
from lipscope.network.load.onnx_ops.call import Call, Handlers, Refusal, Result


def _shape(call: Call) -> Operand:
    return np.array(call.x.shape[call.attribute("start", 0) : call.attribute("end")], dtype=np.int64)


def _size(call: Call) -> Operand:
    return np.array(prod(call.x.shape), dtype=np.int64)


def _identity(call: Call) -> Operand:
    return call.x


def _dropout(call: Call) -> Result:
    training = call.maybe_constant(2, "modes") if call.opset >= 12 else None
    if training is not None and bool(np.reshape(training, ())):
        raise Refusal("it drops entries at random (training mode); export the model in eval mode")
    return [call.x, np.ones(call.x.shape, dtype=bool)]


def _reshape(call: Call) -> Operand:
    x = call.x
    target = [int(s) for s in np.reshape(call.constant(1, "shapes"), -1)]
    if not (call.opset >= 14 and call.attribute("allowzero", 0)):
        target = [x.shape[i] if s == 0 else s for i, s in enumerate(target)]
    return call.lowering.reshape(x, target)


def _flatten(call: Call) -> Operand:
    x = call.x
    axis = int(call.attribute("axis", 1))
    axis = axis + len(x.shape) if axis < 0 else axis
    return call.lowering.reshape(x, (prod(x.shape[:axis]), prod(x.shape[axis:])))


def _squeeze(call: Call) -> Operand:
    x = call.x
    axes = call.integers("axes", 1, 13)
    if axes is None:
        return call.lowering.reshape(x, [s for s in x.shape if s != 1])
    gone = {a % len(x.shape) for a in axes}
    if any(x.shape[a] != 1 for a in gone):
        raise Refusal(f"it drops axes {sorted(gone)} of shape {list(x.shape)}, which have a length other than 1")
    return call.lowering.reshape(x, [s for a, s in enumerate(x.shape) if a not in gone])


def _unsqueeze(call: Call) -> Operand:
    x = call.x
    axes = call.integers("axes", 1, 13) or []
    rank = len(x.shape) + len(axes)
    new = {a % rank for a in axes}
    old = iter(x.shape)
    return call.lowering.reshape(x, [1 if a in new else next(old) for a in range(rank)])


def _expand(call: Call) -> Operand:
    shape = [int(s) for s in np.reshape(call.constant(1, "shapes"), -1)]
    x: Ref = call.x
    return call.lowering.expand(x, np.broadcast_shapes(x.shape, tuple(shape)))


HANDLERS: Handlers = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _identity,
    "Dropout": _dropout,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
}
