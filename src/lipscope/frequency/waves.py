"""Real waves of one frequency on a grid of any number of axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Phase = Literal["cosine", "sine"]


def distinct_frequencies(grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    """One of each pair {f, -f}, as indices into a transform over the grid (0 <= f_a < n_a), frequency 0 first."""
    indices = np.indices(grid).reshape(len(grid), -1)
    sizes = np.array(grid)[:, None]
    mirrored = np.ravel_multi_index(tuple(-indices % sizes), grid)
    kept = np.arange(indices.shape[1]) <= mirrored
    return [tuple(int(i) for i in f) for f in indices[:, kept].T]


def mirror(frequency: tuple[int, ...], grid: tuple[int, ...]) -> tuple[int, ...]:
    """The indices of -f."""
    return tuple(-f % n for f, n in zip(frequency, grid, strict=True))


def phases_of(frequency: tuple[int, ...], grid: tuple[int, ...], wanted: str) -> tuple[Phase, ...]:
    """The waves that exist: where f = -f the cosine alone, else those wanted (`cosine`, `sine` or `both`)."""
    if mirror(frequency, grid) == frequency or wanted == "cosine":
        return ("cosine",)
    return ("sine",) if wanted == "sine" else ("cosine", "sine")


def wave(grid: tuple[int, ...], frequency: tuple[int, ...], phase: Phase) -> Tensor:
    """`cos` or `sin` of `2 pi sum_a f_a t_a/n_a` on the grid, scaled to Euclidean length 1, float64.

    Its transform is supported on f and -f. There is no sine where f = -f: it would be zero.
    """
    return waves(grid, [(frequency, phase)])[0]


def waves(grid: tuple[int, ...], wanted: Sequence[tuple[tuple[int, ...], Phase]]) -> Tensor:
    """Several waves (waves, *grid): one transform of all of them takes less time than one for each."""
    frequencies = torch.tensor([f for f, _ in wanted])
    turns = torch.zeros(len(wanted), dtype=torch.float64)
    for axis, n in enumerate(grid):
        # Whole turns are dropped in integers, so that large products f t lose no digits.
        own = torch.remainder(frequencies[:, axis, None] * torch.arange(n), n).to(turns) / n
        turns = turns[..., None] + own.reshape(len(wanted), *(1,) * axis, n)
    # A sine is a cosine a quarter of a turn later.
    late = torch.tensor([0.25 if phase == "sine" else 0.0 for _, phase in wanted], dtype=torch.float64)
    shape = (len(wanted), *(1,) * len(grid))
    values = turns.sub_(late.reshape(shape)).mul_(2 * torch.pi).cos_()
    length = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return values.div_(length.reshape(shape))
