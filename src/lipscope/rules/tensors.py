"""Small helpers that the rules share: weights as tensors, axes behind the batch axis, sums whose depth is known."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipscope.network.nodes import Array, Shape

SUM_DEPTH = 62
"""`pairwise_sum` adds in a tree of at most this depth, whatever the length: tensors have fewer than 2^62 entries."""


def real(array: Array) -> Tensor:
    """The array as a float64 tensor that nobody writes to; shares memory where it is float64 and writable already."""
    plain = np.ascontiguousarray(array, dtype=np.float64)
    # torch warns of memory that it could write to by mistake, hence the copy of what is read-only.
    return torch.from_numpy(plain if plain.flags.writeable else plain.copy()).reshape(array.shape)


def zeros_like(array: Array) -> Array:
    """Zeros of the shape of `array`, in float64."""
    return np.zeros(array.shape)


def magnitude(array: Array) -> NDArray[np.float64]:
    """The entrywise absolute value, exact, in float64."""
    return np.asarray(np.abs(np.asarray(array, dtype=np.float64)))


def behind_batch(axes: Shape) -> Shape:
    """Axes of a node's value, counted from 0, as axes of a tensor with a batch axis in front."""
    return tuple(a + 1 for a in axes)


def pairwise_sum(x: Tensor, axes: Shape) -> Tensor:
    """The sum over `axes` of x (removed), every entry passing at most `SUM_DEPTH` additions."""
    kept = [a for a in range(x.ndim) if a not in axes]
    lead = [x.shape[a] for a in kept]
    x = x.permute(*kept, *axes).reshape(*lead, -1)
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        head, tail = x[..., :half] + x[..., half : 2 * half], x[..., 2 * half :]
        x = torch.cat((head, tail), -1) if tail.shape[-1] else head
    return x.squeeze(-1)


def common_batch(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """The tensors with one batch size: those of batch 1 (constants) are repeated."""
    batch = max(t.shape[0] for t in tensors)
    return [t.expand(batch, *t.shape[1:]) for t in tensors]
