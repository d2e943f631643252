"""Operators that copy, move, cut and join entries."""

from __future__ import annotations

import numpy as np

from lipscope.network.load.lowering import Operand
from lipscope.network.load.onnx_ops.call import Call, Handler, Handlers, Refusal, Result


def _transpose(call: Call) -> Operand:
    rank = len(call.x.shape)
    return call.lowering.transpose(call.x, call.attribute("perm", list(range(rank))[::-1]))


def _concat(call: Call) -> Operand:
    return call.lowering.concat(call.given(), int(call.attribute("axis", 1)))


def _split(call: Call) -> Result:
    x = call.x
    axis = int(call.attribute("axis", 0)) % len(x.shape)
    sizes = call.integers("split", 1, 13)
    if not sizes:
        parts = int(call.attribute("num_outputs", len(call.node.output)))
        chunk = -(-x.shape[axis] // parts)  # the last one may be smaller
        sizes = [max(min(chunk, x.shape[axis] - i * chunk), 0) for i in range(parts)]
    if sum(sizes) != x.shape[axis]:
        raise Refusal(f"it splits an axis of length {x.shape[axis]} into {sizes}")
    return call.lowering.split(x, sizes, axis)


def _slice(call: Call) -> Operand:
    x = call.x
    starts, ends = call.integers("starts", 1, 10) or [], call.integers("ends", 2, 10) or []
    axes = call.integers("axes", 3, 10) or list(range(len(starts)))
    steps = (call.integers("steps", 4, 10) if call.opset >= 10 else None) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = call.lowering.slice(x, axis, start, end, step)
    return x


def _gather(call: Call) -> Operand:
    axis = int(call.attribute("axis", 0))
    if not call.has(1) or isinstance(call.operand(1), np.ndarray):
        return call.lowering.take(call.x, call.constant(1, "indices"), axis)
    raise Refusal(
        "its indices depend on the input (an embedding or a lookup), which is not Lipschitz; bound the part of the "
        "model behind it, as a function of the looked-up vectors"
    )


def _moved(*indices: int) -> Handler:
    return lambda call: call.rearranged(*indices)


def _scatter(call: Call) -> Operand:
    if call.attribute("reduction", "none") != "none":
        raise Refusal("scattering with a reduction is not understood")
    return call.rearranged(0, 2)


def _tile(call: Call) -> Operand:
    x = call.x
    for axis, count in enumerate(int(r) for r in np.reshape(call.constant(1, "repeats"), -1)):
        if count != 1:
            x = call.lowering.take(x, np.tile(np.arange(x.shape[axis]), count), axis)
    return x


def _pad(call: Call) -> Operand:
    x = call.x
    rank, mode = len(x.shape), call.attribute("mode", "constant")
    pads = call.integers("pads", 1, 11) or []
    if call.opset < 11:
        value = float(call.attribute("value", 0.0))
    else:
        given = call.maybe_constant(2, "padding values")
        value = 0.0 if given is None or not np.size(given) else float(np.reshape(given, ()))
    chosen = call.maybe_constant(3, "axes") if call.opset >= 18 else None
    axes = list(range(rank)) if chosen is None else [int(a) % rank for a in np.reshape(chosen, -1)]
    if mode not in ("constant", "reflect", "edge", "wrap") or len(pads) != 2 * len(axes):
        raise Refusal(f"padding mode {mode!r} with {len(pads)} widths for {len(axes)} axes is not understood")
    if not np.isfinite(value):
        raise Refusal(f"it pads with {value}; export the pooling with its own padding")
    widths = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        widths[axis] = (pads[place], pads[place + len(axes)])
    return call.lowering.pad(x, widths, mode, value)


def _depth_to_space(call: Call) -> Operand:
    n, c, h, w = call.x.shape
    b = int(call.attribute("blocksize"))
    lowering = call.lowering
    if call.attribute("mode", "DCR") == "DCR":
        parts = lowering.transpose(lowering.reshape(call.x, (n, b, b, c // b**2, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        parts = lowering.transpose(lowering.reshape(call.x, (n, c // b**2, b, b, h, w)), (0, 1, 4, 2, 5, 3))
    return lowering.reshape(parts, (n, c // b**2, h * b, w * b))


def _space_to_depth(call: Call) -> Operand:
    n, c, h, w = call.x.shape
    b = int(call.attribute("blocksize"))
    lowering = call.lowering
    parts = lowering.transpose(lowering.reshape(call.x, (n, c, h // b, b, w // b, b)), (0, 3, 5, 1, 2, 4))
    return lowering.reshape(parts, (n, c * b**2, h // b, w // b))


def _trilu(call: Call) -> Operand:
    x = call.x
    k = 0 if not call.has(1) else int(np.reshape(call.constant(1, "diagonals"), ()))
    ones = np.ones(x.shape[-2:])
    mask = np.triu(ones, k) if call.attribute("upper", 1) else np.tril(ones, k)
    return call.lowering.times(x, mask)


HANDLERS: Handlers = {
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherND": _moved(0),
    "GatherElements": _moved(0),
    "ReverseSequence": _moved(0),
    "ScatterND": _scatter,
    "ScatterElements": _scatter,
    "Tile": _tile,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Trilu": _trilu,
}
