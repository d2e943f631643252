"""Transposes of the linear parts of single nodes, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import grad

from lipscope.network.nodes import Conv, ConvTranspose, Dense, Node, Shape
from lipscope.rules.questions import evaluate
from lipscope.rules.tensors import real

CHUNK = 2_000_000
"""Entries of the largest tensor of one batch."""

PER_ENTRY = 10
"""What an entry costs that is only moved or scaled, memory being slower than arithmetic."""


def pull(node: Node, y: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """The transpose of a linear node, `(B, *shape)` to `(B, *shapes[i])` for each of its inputs.

    Computed with at most `roundings(node).adjoint` roundings on every way: directly for dense layers and convolutions,
    otherwise by automatic differentiation.
    """
    if isinstance(node, Dense):
        return [(y.movedim(node.axis + 1, -1) @ real(node.weight)).movedim(-1, node.axis + 1)]
    if isinstance(node, Conv):
        return [_convolution(node, y, shapes[0])]
    with torch.enable_grad():
        xs = [torch.zeros((y.shape[0], *shape), dtype=torch.float64, requires_grad=True) for shape in shapes]
        value = evaluate(node, *xs)
        if not value.requires_grad:
            return [torch.zeros_like(x) for x in xs]
        found = torch.autograd.grad(value, xs, y.reshape(value.shape), allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(xs, found, strict=True)]


_INPUT: dict[int, Callable[..., Tensor]] = {1: grad.conv1d_input, 2: grad.conv2d_input, 3: grad.conv3d_input}


def _convolution(node: Conv, y: Tensor, shape: Shape) -> Tensor:
    """The transpose of a convolution, padding cut off again."""
    padded = [n + low + high for n, (low, high) in zip(shape[2:], node.padding, strict=True)]
    size = (y.shape[0] * shape[0], shape[1], *padded)
    images = y.reshape(-1, *node.shape[1:])
    transpose = _INPUT[len(padded)]
    x: Tensor = transpose(size, real(node.weight), images, node.stride, 0, node.dilation, node.groups)
    inside = tuple(slice(low, low + n) for n, (low, _) in zip(shape[2:], node.padding, strict=True))
    cut = x[(slice(None), slice(None), *inside)]
    return cut.reshape(y.shape[0], *shape)


def multiplications(node: Node, shapes: Sequence[Shape]) -> int:
    """About how many multiply-adds one application of a node, or of its transpose, takes."""
    if isinstance(node, Dense):
        return int(node.weight.size) * (node.size // int(node.weight.shape[0]))
    if isinstance(node, Conv):
        return int(node.weight.size) * int(math.prod(node.shape[2:])) * node.shape[0]
    if isinstance(node, ConvTranspose):
        return int(node.weight.size) * int(math.prod(shapes[0][2:])) * node.shape[0]
    return PER_ENTRY * (node.size + sum(math.prod(shape) for shape in shapes))


def flat(x: Tensor) -> Tensor:
    """Everything behind the batch axis in one axis."""
    return x.reshape(x.shape[0], -1)
