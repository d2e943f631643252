"""Normalisations."""

from __future__ import annotations

import numpy as np

from lipscope.network.load.lowering import Operand
from lipscope.network.load.onnx_ops.call import Call, Handlers, Refusal
from lipscope.network.nodes import Array

_DEFAULT_EPS = float(np.float32(1e-5))


def _eps(call: Call) -> float:
    return float(call.attribute("epsilon", _DEFAULT_EPS))


def _batch_normalization(call: Call) -> Operand:
    outputs = [name for name in call.node.output if name]
    if call.attribute("training_mode", 0) or (call.opset < 14 and len(outputs) > 1):
        raise Refusal("it normalises with the batch's own statistics (training mode); export the model in eval mode")
    if call.opset < 9 and call.attribute("spatial", 1) != 1:
        raise Refusal("statistics for every position (spatial = 0) are not understood; export with opset 9 or newer")
    names = ("scale", "shift", "mean", "variance")
    weight, bias, mean, variance = (call.constant(i + 1, name) for i, name in enumerate(names))
    return call.lowering.batch_norm(call.x, mean, variance, weight, bias, _eps(call))


def _layer_normalization(call: Call) -> Operand:
    x = call.x
    axis = int(call.attribute("axis", -1)) % len(x.shape)
    weight = call.operand(1) if call.has(1) else None
    bias = call.operand(2) if call.has(2) else None
    return call.lowering.layer_norm(x, range(axis, len(x.shape)), weight, bias, _eps(call))


def _rms_normalization(call: Call) -> Operand:
    x = call.x
    axis = int(call.attribute("axis", -1)) % len(x.shape)
    weight = call.operand(1) if call.has(1) else None
    return call.lowering.rms_norm(x, range(axis, len(x.shape)), weight, _eps(call))


def _instance_normalization(call: Call) -> Operand:
    weight, bias = call.constant(1, "scale"), call.constant(2, "shift")
    return call.lowering.group_norm(call.x, call.x.shape[1], weight, bias, _eps(call))


def _group_normalization(call: Call) -> Operand:
    groups = int(call.attribute("num_groups"))
    channels = call.x.shape[1]
    weight: Array = call.constant(1, "scale")
    bias: Array = call.constant(2, "shift")
    if call.opset < 21:  # one number a group
        weight, bias = (np.repeat(v, channels // groups) for v in (weight, bias))
    return call.lowering.group_norm(call.x, groups, weight, bias, _eps(call))


def _mean_variance_normalization(call: Call) -> Operand:
    lowering, axes = call.lowering, call.attribute("axes", [0, 2, 3])
    centred = lowering.minus(call.x, lowering.mean(call.x, axes, True))
    variance = lowering.mean(lowering.elementwise(centred, "square"), axes, True)
    deviation = lowering.plus(lowering.elementwise(variance, "sqrt"), np.asarray(1e-9))
    return lowering.over(centred, deviation)


def _lp_normalization(call: Call) -> Operand:
    p, axis = call.attribute("p", 2), int(call.attribute("axis", -1))
    if p not in (1, 2):
        raise Refusal(f"expected p = 1 or 2, got {p}")
    norm = call.lowering.reduce_l1 if p == 1 else call.lowering.reduce_l2
    return call.lowering.over(call.x, norm(call.x, [axis], True))


HANDLERS: Handlers = {
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
    "RMSNormalization": _rms_normalization,
    "InstanceNormalization": _instance_normalization,
    "GroupNormalization": _group_normalization,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "LpNormalization": _lp_normalization,
}
