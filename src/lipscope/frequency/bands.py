"""Bands: a partition of the frequencies of a grid into sets that contain `-w` with every `w`.

For such a set the projector P_b (unitary discrete Fourier transform, mask, inverse transform) is a real orthogonal
projector, and the projectors of a partition sum to the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipscope.claims.errors import UsageError

KINDS = ("square", "round", "octave")
"""How `band_masks` divides the spectrum."""


@dataclass(frozen=True, eq=False)
class Bands:
    """A partition of the frequencies of a grid.

    Attributes:
        masks: booleans (M, *grid) in the order of `torch.fft.fftfreq`; disjoint, covering, each symmetric under w -> -w.
        low: for each band the lower end of its frequencies, in cycles per sample; band 0 contains its own, the others
            lie above theirs.
        high: the upper ends, contained.
        kind: square, round, octave or custom. Frequencies are measured by `max_a |w_a|` for square rings and octaves, by
            the Euclidean length for round rings. For custom bands `low` and `high` are the extremes of `max_a |w_a|`.
    """

    masks: Tensor
    low: tuple[float, ...]
    high: tuple[float, ...]
    kind: str
    rings: int = 0

    def __post_init__(self) -> None:
        _check(self.masks)
        if not len(self.low) == len(self.high) == self.masks.shape[0]:
            raise UsageError(
                f"expected a low and a high end for each of {self.masks.shape[0]} bands, got {len(self.low)} and {len(self.high)}"
            )

    @property
    def count(self) -> int:
        """The number of bands M."""
        return int(self.masks.shape[0])

    @property
    def grid(self) -> tuple[int, ...]:
        """The shape of the grid."""
        return tuple(self.masks.shape[1:])

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many frequencies each band has."""
        return tuple(int(n) for n in self.masks.flatten(1).sum(dim=1))

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the grid in a tensor (..., *grid), counted from the end."""
        return tuple(range(-len(self.grid), 0))

    def spectrum(self, x: Tensor) -> Tensor:
        """The unitary discrete Fourier transform over the grid of a tensor (..., *grid): complex, of the same shape.

        Raises:
            UsageError: the last axes of x are not the grid.
        """
        if tuple(x.shape[x.ndim - len(self.grid) :]) != self.grid:
            raise UsageError(
                f"expected tensors (..., channels, *grid) with grid {list(self.grid)}, got {list(x.shape)}"
            )
        transformed: Tensor = torch.fft.fftn(x, dim=self.axes, norm="ortho")
        return transformed

    def project(self, x: Tensor, band: int | Tensor) -> Tensor:
        """P_b x for real x of shape (..., *grid), the same for every channel: real, idempotent; over all bands it sums to x.

        Args:
            x: what is projected.
            band: the index of a band, or booleans (M,) for the union of several.
        """
        if isinstance(band, Tensor):
            mask = self.masks[band.to(self.masks.device)].any(dim=0)
        else:
            mask = self.masks[band]
        projected: Tensor = torch.fft.ifftn(self.spectrum(x) * mask.to(x.device), dim=self.axes, norm="ortho").real
        return projected

    def power(self, x: Tensor) -> Tensor:
        """`|P_b x|^2` for every band, (..., M): sums over the grid only. They sum to `|x|^2` over the grid (Parseval)."""
        energy = self.spectrum(x).abs().square().flatten(x.ndim - len(self.grid))
        return energy @ self.masks.flatten(1).to(energy).T


def band_masks(grid_shape: Sequence[int], count: int, kind: str = "square") -> Bands:
    """Rings around frequency 0.

    With w_a in cycles per sample (at most 1/2 on every axis) and r = `max_a |w_a|` (square, octave) or `|w|_2` (round),
    band i holds what is at most its upper end and above the one before: `(i+1)/(2 count)` for square rings,
    `(i+1) sqrt(d)/(2 count)` for round ones, d being the number of axes, and `2^(i-count)` for octaves. Ends are compared in
    integers, so that no frequency is misplaced by rounding. Rings without a frequency are left out: a grid of 8 x 8
    has 5 square rings out of 8.

    Args:
        grid_shape: one or more axes of any length.
        count: how many rings the spectrum is divided into.
        kind: square, round or octave.

    Raises:
        UsageError: the grid is empty, the count is not positive, or there is no such kind.
    """
    grid = tuple(int(n) for n in grid_shape)
    if not grid or min(grid) < 1:
        raise UsageError(f"expected a grid with one or more axes of at least one sample, got {list(grid)}")
    if count < 1:
        raise UsageError(f"expected at least one band, got {count}")
    if kind not in KINDS:
        raise UsageError(f"expected bands of kind {', '.join(KINDS)}, got {kind!r}")
    number, ends = _rings(grid, count, kind)
    kept = [i for i in range(count) if bool((number == i).any())]
    masks = torch.from_numpy(np.stack([number == i for i in kept]))
    starts = (0.0, *ends)
    return Bands(masks, tuple(starts[i] for i in kept), tuple(ends[i] for i in kept), kind, count)


def custom_bands(masks: Tensor | NDArray[np.bool_]) -> Bands:
    """Bands from masks (M, *grid) of your own, in the order of `fftfreq`.

    Raises:
        UsageError: they are not disjoint, do not cover the grid or are not symmetric; the message names a frequency.
    """
    boolean = torch.as_tensor(masks).to(torch.bool)
    _check(boolean)
    radius = torch.from_numpy(np.abs(np.stack(_frequencies(tuple(boolean.shape[1:])))).max(axis=0))
    inside = [radius[mask] for mask in boolean]
    return Bands(boolean, tuple(float(r.min()) for r in inside), tuple(float(r.max()) for r in inside), "custom")


def _integers(grid: tuple[int, ...]) -> list[NDArray[np.int64]]:
    """For each axis the integer frequency of every entry of the grid, between -n/2 and n/2."""
    axes = [(np.arange(n) + n // 2) % n - n // 2 for n in grid]
    return [np.asarray(a, dtype=np.int64) for a in np.meshgrid(*axes, indexing="ij")]


def _frequencies(grid: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """The same in cycles per sample."""
    return [f / n for f, n in zip(_integers(grid), grid, strict=True)]


def _rings(grid: tuple[int, ...], count: int, kind: str) -> tuple[NDArray[np.int64], list[float]]:
    """The ring that each frequency is in, and the rings' upper ends."""
    integers = [np.abs(f).astype(object) for f in _integers(grid)]
    number = np.zeros(grid, dtype=np.int64)
    ends = []
    for i in range(count):
        if kind == "round":
            # 4 count^2 sum (f_a/n_a)^2 <= d (i+1)^2, times all n_a^2.
            whole = int(np.prod([n * n for n in grid], dtype=object))
            length = sum(f * f * (whole // (n * n)) for f, n in zip(integers, grid, strict=True))
            inside = 4 * count**2 * length <= len(grid) * (i + 1) ** 2 * whole
            ends.append((i + 1) * len(grid) ** 0.5 / (2 * count))
        else:
            # r <= top/bottom
            top, bottom = (1, 2 ** (count - i)) if kind == "octave" else (i + 1, 2 * count)
            inside = np.logical_and.reduce([f * bottom <= top * n for f, n in zip(integers, grid, strict=True)])
            ends.append(top / bottom)
        number += ~np.asarray(inside, dtype=bool)
    return number, ends


def _check(masks: Tensor) -> None:
    """Raise `UsageError` unless the masks are a partition into symmetric sets."""
    if masks.dtype != torch.bool or masks.ndim < 2 or masks.shape[0] < 1 or masks.numel() == 0:
        raise UsageError(f"expected boolean masks of shape (bands, *grid), got {masks.dtype} of {list(masks.shape)}")
    owners = masks.sum(dim=0)
    for wrong, what in ((owners > 1, "in several bands"), (owners == 0, "in no band")):
        if bool(wrong.any()):
            raise UsageError(f"expected every frequency in one band, got {_name(masks, wrong)} {what}")
    axes = tuple(range(1, masks.ndim))
    mirrored = masks.flip(axes).roll([1] * len(axes), axes)
    odd = (masks != mirrored).any(dim=0)
    if bool(odd.any()):
        raise UsageError(
            f"expected bands that hold -w with every frequency w, got {_name(masks, odd)} without its mirror image; "
            "a projection would not be real"
        )
    empty = [i for i, mask in enumerate(masks) if not bool(mask.any())]
    if empty:
        raise UsageError(f"expected at least one frequency in every band, got none in band {empty[0]}")


def _name(masks: Tensor, where: Tensor) -> str:
    """The first marked frequency, as integers per axis."""
    place = tuple(int(i) for i in where.nonzero()[0])
    numbers = [int(f[place]) for f in _integers(tuple(masks.shape[1:]))]
    return f"frequency {tuple(numbers)}"
