"""Normalisations with running or computed statistics, softmax and its relatives."""

from __future__ import annotations

import numpy as np

from lipscope.network import nodes as n
from lipscope.network.load.lowering import Lowering, Operand, Ref
from lipscope.network.load.torch_ops.call import Call, Handlers, Refusal
from lipscope.network.nodes import Array

TRAINING = "it is in training mode, where its value depends on the whole batch or on chance; call model.eval() first"


def _batch_norm(call: Call) -> Ref:
    if call.arguments.get("training"):
        raise Refusal(TRAINING)
    return _running(call)


def _running(call: Call) -> Ref:
    """`(x - running mean) / sqrt(running variance + eps) * weight + bias` on axis 1."""
    if call["running_mean"] is None or call["running_var"] is None:
        raise Refusal("it has no running statistics, so its value depends on the whole batch; track them in training")
    return call.lowering.batch_norm(
        call.ref("input"), call.array("running_mean"), call.array("running_var"), call.maybe_array("weight"),
        call.maybe_array("bias"), float(call["eps"]),
    )  # fmt: skip


def _no_training(call: Call) -> Result:
    return [_running(call), None, None]


Result = list[Ref | None]


def _maybe(call: Call, name: str) -> Operand | None:
    return None if call.arguments.get(name) is None else call.operand(name)


def _layer_norm(call: Call) -> Ref:
    axes = range(-len(call["normalized_shape"]), 0)
    return call.lowering.layer_norm(
        call.ref("input"), axes, _maybe(call, "weight"), _maybe(call, "bias"), float(call["eps"])
    )


def _rms_norm(call: Call) -> Ref:
    eps = call["eps"]
    if eps is None:
        if call.narrow:
            raise Refusal("without eps its value depends on the precision; pass eps, such as torch.finfo(x.dtype).eps")
        eps = np.finfo(np.float64).eps
    axes = range(-len(call["normalized_shape"]), 0)
    return call.lowering.rms_norm(call.ref("input"), axes, _maybe(call, "weight"), float(eps))


def _group_norm(call: Call) -> Ref:
    return call.lowering.group_norm(
        call.ref("input"), int(call["num_groups"]), call.maybe_array("weight"), call.maybe_array("bias"),
        float(call["eps"]),
    )  # fmt: skip


def _native_group_norm(call: Call) -> Result:
    x = call.ref("input")
    y = call.lowering.group_norm(
        x, int(call["group"]), call.maybe_array("weight"), call.maybe_array("bias"), float(call["eps"])
    )
    return [y, None, None]


def _instance_norm(call: Call) -> Ref:
    if not call["use_input_stats"]:
        return _running(call)
    x = call.ref("input")
    return call.lowering.group_norm(
        x, x.shape[1], call.maybe_array("weight"), call.maybe_array("bias"), float(call["eps"])
    )


# ------------------------------------------------------------------------------------------------------ softmax


def softmax(lowering: Lowering, x: Ref, axis: int) -> Ref:
    """Softmax; entries that a constant mask sets to -infinity get weight 0, and the others a softmax of their own."""
    node = lowering.nodes[x.index]
    if not isinstance(node, n.AddConstant):
        return lowering.softmax(x, axis)
    infinite = node.value == np.asarray(-np.inf)
    if not infinite.any():
        return lowering.softmax(x, axis)
    masked = np.broadcast_to(infinite, x.shape)
    finite = np.where(infinite, np.zeros((), dtype=node.value.dtype), node.value)
    base = Ref(node.inputs[0], x.shape)
    return _masked_softmax(lowering, lowering.plus(base, finite) if finite.any() else base, masked, axis)


def _masked_softmax(lowering: Lowering, x: Ref, masked: Array, axis: int) -> Ref:
    """Softmax over the entries that are not masked, slice by slice where the masks differ."""
    axis %= len(x.shape)
    last = [*(a for a in range(len(x.shape)) if a != axis), axis]
    columns = x.shape[axis]
    rows = lowering.reshape(lowering.transpose(x, last), (-1, columns))
    marks = np.transpose(masked, last).reshape(-1, columns)
    if marks.all(axis=1).any():
        raise Refusal("its mask leaves nothing of a row, whose softmax is not defined")
    patterns, which = np.unique(marks, axis=0, return_inverse=True)
    if len(patterns) > 4096:
        raise Refusal(f"its mask has {len(patterns)} different rows; at most 4096 are understood")
    zero = lowering.as_ref(np.zeros((1, 1)))
    pieces, order = [], []
    for index, pattern in enumerate(patterns):
        members = np.flatnonzero(which.reshape(-1) == index)
        order.append(members)
        kept = np.flatnonzero(~pattern)
        part = lowering.take(rows, members, 0) if len(patterns) > 1 else rows
        part = lowering.softmax(lowering.take(part, kept, 1), 1)
        spread = lowering.concat([part, lowering.expand(zero, (len(members), 1))], 1)
        place = np.full(columns, len(kept))
        place[kept] = np.arange(len(kept))
        pieces.append(lowering.take(spread, place, 1))
    y = lowering.concat(pieces, 0)
    if len(patterns) > 1:
        y = lowering.take(y, np.argsort(np.concatenate(order)), 0)
    y = lowering.reshape(y, [x.shape[a] for a in last])
    return lowering.transpose(y, np.argsort(last).tolist())


def _softmax(call: Call) -> Ref:
    return softmax(call.lowering, call.x, int(call["dim"]))


def _log_softmax(call: Call) -> Ref:
    return call.lowering.log_softmax(call.x, int(call["dim"]))


HANDLERS: Handlers = {
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _no_training,
    "layer_norm": _layer_norm,
    "native_layer_norm": lambda call: [_layer_norm(call), None, None],
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "native_group_norm": _native_group_norm,
    "instance_norm": _instance_norm,
    "softmax": _softmax,
    "_softmax": _softmax,
    "log_softmax": _log_softmax,
    "_log_softmax": _log_softmax,
}
