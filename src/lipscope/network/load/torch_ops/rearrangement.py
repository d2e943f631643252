"""Operations that move, copy, cut and join entries."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lipscope.network.load.lowering import Operand, Ref
from lipscope.network.load.torch_ops.call import Call, Handlers, Refusal

MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _reshape(call: Call) -> Ref:
    return call.lowering.reshape(call.x, _shape_of(call))


def _shape_of(call: Call) -> tuple[int, ...]:
    """The result's shape, as torch finds it; an argument that only lends its shape may depend on the input."""
    lent = {k: torch.empty(v.shape, device="meta") if isinstance(v, Ref) else v for k, v in call.arguments.items()}
    return call.replaced(**{**lent, next(iter(lent)): call.x}).result_shape()


def _permute(call: Call) -> Ref:
    """A permutation of axes is read off a tensor whose axes all have different lengths."""
    marked = torch.empty(tuple(range(2, 2 + len(call.x.shape))), device="meta")
    return call.lowering.transpose(call.x, [length - 2 for length in call.on(marked).shape])


def _expand(call: Call) -> Ref:
    return call.lowering.expand(call.x, _shape_of(call))


def _repeat(call: Call) -> Ref:
    """Copies along axes; new axes in front have length 1 before they are copied."""
    lowering, x = call.lowering, call.x
    times = [int(v) for v in (call["repeats"] if "repeats" in call.arguments else call["dims"])]
    times = [1] * (len(x.shape) - len(times)) + times
    x = lowering.reshape(x, (*(1,) * (len(times) - len(x.shape)), *x.shape))
    for axis, count in enumerate(times):
        if count != 1:
            x = lowering.take(x, np.tile(np.arange(x.shape[axis]), count), axis)
    return x


def _repeat_interleave(call: Call) -> Ref:
    if call["dim"] is None:
        return call.rearranged()
    x, axis, repeats = call.x, int(call["dim"]), call["repeats"]
    counts = repeats.numpy() if isinstance(repeats, torch.Tensor) else int(repeats)
    return call.lowering.take(x, np.repeat(np.arange(x.shape[axis]), counts), axis)


def _flip(call: Call) -> Ref:
    x = call.x
    for axis in call["dims"]:
        x = call.lowering.take(x, np.arange(x.shape[axis])[::-1], int(axis))
    return x


def _roll(call: Call) -> Ref:
    if not call["dims"]:
        return call.rearranged()
    x = call.x
    for axis, shift in zip(call["dims"], call["shifts"], strict=True):
        x = call.lowering.take(x, np.roll(np.arange(x.shape[axis]), int(shift)), int(axis))
    return x


def _slice(call: Call) -> Ref:
    x, axis = call.x, int(call["dim"])
    start, stop = (call["start"], call["end"])
    size = x.shape[axis]
    return call.lowering.slice(
        x, axis, 0 if start is None else int(start), size if stop is None else int(stop), int(call["step"])
    )


def _select(call: Call) -> Ref:
    x = call.x
    axis = int(call["dim"]) % len(x.shape)
    index = int(call["index"]) % x.shape[axis]
    piece = call.lowering.slice(x, axis, index, index + 1)
    return call.lowering.reshape(piece, (*x.shape[:axis], *x.shape[axis + 1 :]))


def _narrow(call: Call) -> Ref:
    x, axis = call.x, int(call["dim"])
    start = int(call["start"]) % max(x.shape[axis], 1)
    return call.lowering.slice(x, axis, start, start + int(call["length"]))


def _pieces(call: Call) -> list[Ref]:
    """`chunk`, `split`, `tensor_split`: torch says how long the pieces are."""
    axis = int(call["dim"])
    sizes = [piece.shape[axis] for piece in call.on(torch.empty(call.x.shape, device="meta"))]
    return call.lowering.split(call.x, sizes, axis)


def _unbind(call: Call) -> list[Ref]:
    x = call.x
    axis = int(call["dim"]) % len(x.shape)
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    return [call.lowering.reshape(p, shape) for p in call.lowering.split(x, [1] * x.shape[axis], axis)]


def _index_select(call: Call) -> Ref:
    return call.lowering.take(call.x, call.array("index"), int(call["dim"]))


def _index(call: Call) -> Ref:
    given = [(axis, index) for axis, index in enumerate(call["indices"]) if index is not None]
    if any(isinstance(index, Ref) for _, index in given):
        raise Refusal("its indices depend on the input of the network; only constant indices are understood")
    if len(given) == 1 and given[0][1].dtype != torch.bool:
        return call.lowering.take(call.x, given[0][1].numpy(), given[0][0])
    return call.rearranged("self")


def _moved(call: Call) -> Ref:
    return call.rearranged("self")


def _moved_with_source(call: Call) -> Ref:
    return call.rearranged("self", "src")


def _index_put(call: Call) -> Ref:
    if call["accumulate"]:
        raise Refusal("adding into places is not understood")
    return call.rearranged("self", "values")


def _operands(call: Call) -> list[Operand]:
    """The tensors to join, without the empty vectors that torch ignores."""
    found = [call.converted(t) for t in call["tensors"]]
    return [x for x in found if isinstance(x, Ref) or x.shape != (0,)]


def _cat(call: Call) -> Ref:
    return call.lowering.concat(_operands(call), int(call["dim"]))


def _stack(call: Call) -> Ref:
    return call.lowering.stack(_operands(call), int(call["dim"]))


def _hstack(call: Call) -> Ref:
    refs = [call.lowering.as_ref(x) for x in _operands(call)]
    return call.lowering.concat(refs, 0 if len(refs[0].shape) == 1 else 1)


def _vstack(call: Call) -> Ref:
    refs = [call.lowering.as_ref(x) for x in _operands(call)]
    return call.lowering.concat([call.lowering.reshape(x, (1, *x.shape)) if len(x.shape) == 1 else x for x in refs], 0)


def _pad(call: Call) -> Ref:
    mode = call.arguments.get("mode", "constant")
    value = call.arguments.get("value")
    return _padded(call, MODES[mode], 0.0 if value is None else float(value))


def _padded(call: Call, mode: str, value: float = 0.0) -> Ref:
    x = call.x
    widths = list(call["pad"] if "pad" in call.arguments else call["padding"])
    pads = [(int(low), int(high)) for low, high in zip(widths[::2], widths[1::2], strict=True)][::-1]
    return call.lowering.pad(x, [*[(0, 0)] * (len(x.shape) - len(pads)), *pads], mode, value)


def _split_axes(call: Call, lengths: list[int], order: list[int]) -> Ref:
    """The last three axes cut into `lengths`, permuted, and joined to the shape that torch finds."""
    lowering, x = call.lowering, call.x
    lead = list(x.shape[:-3])
    y = lowering.reshape(x, [*lead, *lengths])
    y = lowering.transpose(y, [*range(len(lead)), *(len(lead) + o for o in order)])
    return lowering.reshape(y, call.result_shape())


def _pixel_shuffle(call: Call) -> Ref:
    channels, height, width = call.x.shape[-3:]
    factor = int(call["upscale_factor"])
    return _split_axes(call, [channels // factor**2, factor, factor, height, width], [0, 3, 1, 4, 2])


def _pixel_unshuffle(call: Call) -> Ref:
    channels, height, width = call.x.shape[-3:]
    factor = int(call["downscale_factor"])
    return _split_axes(call, [channels, height // factor, factor, width // factor, factor], [0, 2, 4, 1, 3])


def _channel_shuffle(call: Call) -> Ref:
    x, groups = call.x, int(call["groups"])
    return call.lowering.take(x, np.arange(x.shape[1]).reshape(groups, -1).T.reshape(-1), 1)


def _tril(call: Call) -> Ref:
    mask = call.on(torch.ones(call.x.shape, dtype=torch.float64))
    return call.lowering.times(call.x, mask.numpy())


def _written(call: Call) -> Ref:
    """`slice_scatter`, `select_scatter`: places of the first tensor replaced by the second."""
    return call.rearranged("self", "src")


def _copy(call: Call) -> Ref:
    return call.lowering.expand(call.ref("src"), call.x.shape)


def _fill(call: Call) -> Ref:
    return call.lowering.expand(call.ref("value"), call.x.shape)


def _zero(call: Call) -> Any:
    return torch.zeros(call.x.shape, dtype=torch.float64)


RESHAPES = (
    "view", "reshape", "view_as", "reshape_as", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel",
    "atleast_1d", "atleast_2d", "atleast_3d", "view_copy", "_reshape_alias",
)  # fmt: skip
PERMUTATIONS = ("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "numpy_T", "mT", "adjoint")

HANDLERS: Handlers = {
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(PERMUTATIONS, _permute),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), _pieces),
    **dict.fromkeys(
        ("gather", "diagonal", "unfold", "take", "take_along_dim",
         "rot90", "masked_select"), _moved),
    **dict.fromkeys(("slice_scatter", "select_scatter", "diagonal_scatter"), _written),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    **dict.fromkeys(("tril", "triu"), _tril),
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": _channel_shuffle,
    "repeat": _repeat,
    "tile": _repeat,
    "repeat_interleave": _repeat_interleave,
    "flip": _flip,
    "roll": _roll,
    "slice": _slice,
    "select": _select,
    "narrow": _narrow,
    "unbind": _unbind,
    "index_select": _index_select,
    "index": _index,
    "scatter": _moved_with_source,
    "index_put": _index_put,
    "stack": _stack,
    "hstack": _hstack,
    "vstack": _vstack,
    "pad": _pad,
    "constant_pad_nd": _pad,
    **{f"reflection_pad{d}d": lambda call: _padded(call, "reflect") for d in (1, 2, 3)},
    **{f"replication_pad{d}d": lambda call: _padded(call, "edge") for d in (1, 2, 3)},
    "copy": _copy,
    "fill": _fill,
    "zero": _zero,
}  # fmt: skip
