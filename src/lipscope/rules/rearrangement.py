"""Nodes whose output entries are copies of input entries (or a constant): values, boxes and adjoints are exact.

Their linear parts have coefficients 0 and 1, so that each is its own absolute value. Forward there is nothing to round;
the adjoint adds up copies of one entry.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lipscope.network.nodes import Concat, Expand, Gather, Node, Pad, Reshape, Slice, Transpose
from lipscope.rules.affine import value
from lipscope.rules.questions import Interval, Roundings, absolute, box_image, evaluate, linear_part, roundings
from lipscope.rules.tensors import common_batch


@evaluate.register
def _(node: Reshape, *inputs: Tensor) -> Tensor:
    return inputs[0].reshape(-1, *node.shape)


@evaluate.register
def _(node: Transpose, *inputs: Tensor) -> Tensor:
    return inputs[0].permute(0, *(a + 1 for a in node.permutation))


@evaluate.register
def _(node: Slice, *inputs: Tensor) -> Tensor:
    return inputs[0][(slice(None), *(slice(*r) for r in node.ranges))]


@evaluate.register
def _(node: Pad, *inputs: Tensor) -> Tensor:
    x = inputs[0]
    if node.mode == "constant":
        return functional.pad(x, [p for pair in reversed(node.pads) for p in pair], value=node.value)
    for axis, sources in enumerate(_sources(node)):
        if len(sources) != x.shape[axis + 1]:
            x = x.index_select(axis + 1, torch.from_numpy(sources))
    return x


@evaluate.register
def _(node: Gather, *inputs: Tensor) -> Tensor:
    x = inputs[0]
    indices = np.asarray(node.indices, dtype=np.int64) % x.shape[node.axis + 1]
    return x.index_select(node.axis + 1, torch.from_numpy(indices))


@evaluate.register
def _(node: Expand, *inputs: Tensor) -> Tensor:
    x = inputs[0]
    missing = len(node.shape) + 1 - x.ndim
    return x.reshape(x.shape[0], *(1,) * missing, *x.shape[1:]).expand(x.shape[0], *node.shape)


@evaluate.register
def _(node: Concat, *inputs: Tensor) -> Tensor:
    return torch.cat(common_batch(inputs), node.axis + 1)


@linear_part.register(Reshape)
@linear_part.register(Transpose)
@linear_part.register(Slice)
@linear_part.register(Gather)
@linear_part.register(Expand)
@linear_part.register(Concat)
def _(node: Node) -> Node:
    return node


@linear_part.register
def _(node: Pad) -> Pad:
    return Pad(inputs=node.inputs, shape=node.shape, name=node.name, pads=node.pads, mode=node.mode, value=0.0)


@absolute.register(Reshape)
@absolute.register(Transpose)
@absolute.register(Slice)
@absolute.register(Pad)
@absolute.register(Gather)
@absolute.register(Expand)
@absolute.register(Concat)
def _(node: Node) -> Node:
    return linear_part(node)


@roundings.register(Reshape)
@roundings.register(Transpose)
@roundings.register(Slice)
@roundings.register(Concat)
def _(node: Node) -> Roundings:
    return Roundings(0, 0)


@roundings.register
def _(node: Pad) -> Roundings:
    # The adjoint adds, axis by axis, the copies of an entry.
    if node.mode == "constant":
        return Roundings(0, 0)
    return Roundings(0, sum(_most_copies(sources) for sources in _sources(node)))


@roundings.register
def _(node: Gather) -> Roundings:
    # An index and its negative twin may mean one entry: the count of either is at most the sum.
    indices = np.asarray(node.indices, dtype=np.int64)
    return Roundings(0, 2 * _most_copies(np.where(indices < 0, indices - indices.min(initial=0), indices)))


@roundings.register
def _(node: Expand) -> Roundings:
    return Roundings(0, node.size)  # no entry has more copies than the result has entries


@box_image.register(Reshape)
@box_image.register(Transpose)
@box_image.register(Slice)
@box_image.register(Pad)
@box_image.register(Gather)
@box_image.register(Expand)
@box_image.register(Concat)
def _(node: Node, *inputs: Interval) -> Interval:
    return Interval(value(node, *(b.lower for b in inputs)), value(node, *(b.upper for b in inputs)))


def _sources(node: Pad) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """For each axis of a padding by copies: which entry each position is a copy of."""
    modes = {"reflect", "edge", "wrap"}
    if node.mode not in modes:
        raise ValueError(f"expected padding of mode constant or {sorted(modes)}, got {node.mode!r} at {node.name!r}")
    lengths = (n - low - high for n, (low, high) in zip(node.shape, node.pads, strict=True))
    return [
        np.pad(np.arange(n, dtype=np.int64), pair, mode=node.mode)  # type: ignore[call-overload]
        for n, pair in zip(lengths, node.pads, strict=True)
    ]


def _most_copies(sources: np.ndarray[tuple[int], np.dtype[np.int64]]) -> int:
    """How often the most frequent entry occurs."""
    return int(np.unique(sources, return_counts=True)[1].max(initial=0))
