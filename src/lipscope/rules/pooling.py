"""Pooling over windows: `AveragePool`, `MaxPool`, and the maximum over whole axes, `ReduceMax`."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lipscope.claims.norms import Norm
from lipscope.claims.rounding import sqrt_up
from lipscope.network.nodes import Array, AveragePool, MaxPool, ReduceMax
from lipscope.rules.affine import value
from lipscope.rules.questions import Interval, Roundings, absolute, box_image, evaluate, gain, linear_part, roundings
from lipscope.rules.tensors import behind_batch, real

Integers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def _positions(rows: Array, steps: Integers) -> tuple[Tensor, Tensor]:
    """Indices `(outputs, longest window)` of the entries of each window, and which of them are entries (True).

    `rows` holds (start, stop, ..) a window; short windows are filled up with their own first entry.
    """
    start, stop = (np.asarray(rows[:, i], dtype=np.int64) for i in (0, 1))
    lengths = np.maximum(-((start - stop) // steps), 0)
    counted = np.arange(max(int(lengths.max(initial=0)), 1))
    inside = counted < lengths[:, None]
    indices = np.where(inside, start[:, None] + counted * steps[:, None], np.where(lengths > 0, start, 0)[:, None])
    return torch.from_numpy(indices), torch.from_numpy(inside)


def _windows(x: Tensor, axis: int, indices: Tensor) -> Tensor:
    """The windows along `axis`, which becomes two: the outputs, and the entries of each window."""
    chosen = x.index_select(axis, indices.reshape(-1))
    return chosen.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@evaluate.register
def _(node: AveragePool, *inputs: Tensor) -> Tensor:
    x = inputs[0]
    first = x.ndim - len(node.windows)
    for axis, rows in enumerate(node.windows, start=first):
        indices, inside = _positions(rows, _ones(rows))
        mask = inside.to(x.dtype).reshape(*inside.shape, *(1,) * (x.ndim - axis - 1))
        x = (_windows(x, axis, indices) * mask).sum(axis + 1)
    return x / _divisors(node)


def _divisors(node: AveragePool) -> Tensor:
    """The product of the counts of each output position, exact: it is far below 2^53."""
    divisors = torch.ones((), dtype=torch.float64)
    for rows in node.windows:
        divisors = divisors.unsqueeze(-1) * real(rows[:, 2])
    return divisors


@linear_part.register
def _(node: AveragePool) -> AveragePool:
    return node


@absolute.register
def _(node: AveragePool) -> AveragePool:
    return node


@roundings.register
def _(node: AveragePool) -> Roundings:
    # Axis by axis a sum over the window (masked entries add an exact 0), then one division. The adjoint divides, then adds
    # axis by axis over the windows that hold the entry.
    longest = (_positions(rows, _ones(rows))[0].shape[1] for rows in node.windows)
    held = sum(_most_windows(*_positions(rows, _ones(rows))) for rows in node.windows)
    return Roundings(sum(longest) + 1, held + 1)


@evaluate.register
def _(node: MaxPool, *inputs: Tensor) -> Tensor:
    x = inputs[0]
    first = x.ndim - len(node.windows)
    for axis, rows in enumerate(node.windows, start=first):
        indices, _ = _positions(rows, _steps(rows))
        x = _windows(x, axis, indices).amax(axis + 1)
    return x


@evaluate.register
def _(node: ReduceMax, *inputs: Tensor) -> Tensor:
    x = inputs[0]
    return x.amax(behind_batch(node.axes)).reshape(x.shape[0], *node.shape) if node.axes else x


@box_image.register(MaxPool)
@box_image.register(ReduceMax)
def _(node: MaxPool | ReduceMax, *inputs: Interval) -> Interval:
    """Exact: a maximum is increasing in every entry, and picks one of them."""
    (box,) = inputs
    return Interval(value(node, box.lower), value(node, box.upper))


@gain.register
def _(node: MaxPool, norm: Norm, region: Interval | None) -> float:
    """1, sqrt(c), c for linf, l2, l1: a maximum moves at most as the largest change in its window, which c windows share."""
    count = math.prod(_most_windows(*_positions(rows, _steps(rows))) for rows in node.windows)
    return {"linf": 1.0, "l2": sqrt_up(count), "l1": float(count)}[norm]


@gain.register
def _(node: ReduceMax, norm: Norm, region: Interval | None) -> float:
    """1: a maximum moves at most as the largest change of its entries, which no other one shares."""
    return 1.0


def _most_windows(indices: Tensor, inside: Tensor) -> int:
    """The largest number of windows that hold one entry."""
    held = indices[inside]
    return int(torch.bincount(held).max()) if held.numel() else 0


def _steps(rows: Array) -> Integers:
    return np.asarray(rows[:, 2], dtype=np.int64)


def _ones(rows: Array) -> Integers:
    return np.ones(len(rows), dtype=np.int64)
