"""Where the grid is in a model's input."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lipscope.claims.errors import UsageError


@dataclass(frozen=True)
class Layout:
    """The entries of one example, row-major in `shape`; `axes` (rising) are the grid, the others are channels."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """The grid's shape."""
        return tuple(self.shape[a] for a in self.axes)

    @property
    def channels(self) -> int:
        """How many channels there are, at least 1."""
        return math.prod(self.shape) // math.prod(self.grid)

    @property
    def _order(self) -> list[int]:
        return [*(a for a in range(len(self.shape)) if a not in self.axes), *self.axes]

    def gather(self, x: Tensor) -> Tensor:
        """Examples (B, *any shape of that size) as (B, channels, *grid)."""
        moved = x.reshape(x.shape[0], *self.shape).permute(0, *(a + 1 for a in self._order))
        return moved.reshape(x.shape[0], self.channels, *self.grid)

    def scatter(self, x: Tensor) -> Tensor:
        """The inverse of `gather`: (B, channels, *grid) as (B, *shape)."""
        order = self._order
        split = x.reshape(x.shape[0], *(self.shape[a] for a in order))
        return split.permute(0, *(order.index(a) + 1 for a in range(len(order))))


def find_layout(shape: tuple[int, ...], channels_last: bool = False, grid: tuple[int, ...] | None = None) -> Layout:
    """The layout of one example of the given shape (axes of length 1 at the start, such as a batch axis, are dropped).

    Three or more axes are channels and a grid, two are an image without channels axis, one is a signal or the features of a
    table. An axis of length 1 to 4 at the end of three, before which no such axis is, is refused as probably channels; so is the first of
    two axes where it has length 2 to 4 and the second is longer.

    Args:
        shape: of one example, without batch.
        channels_last: whether the channels are the last axis.
        grid: the grid's shape where the input is flat: channels, if there are several, come first, or last with
            `channels_last`.

    Raises:
        UsageError: there is no grid, or it is not clear which axes it has.
    """
    size = math.prod(shape)
    if grid is not None:
        if min(grid, default=0) < 1 or size % math.prod(grid) != 0:
            raise UsageError(
                f"expected a grid whose size divides the model's input, which has {size} entries {list(shape)}, got {list(grid)}"
            )
        channels = size // math.prod(grid)
        whole = (*grid, channels) if channels_last else (channels, *grid)
        return Layout(whole, tuple(range(len(grid))) if channels_last else tuple(range(1, len(grid) + 1)))
    if not shape:
        raise UsageError("expected a model whose input is on a grid, got one that takes a single number")
    if len(shape) == 1:
        return Layout(shape, (0,))
    if len(shape) == 2 and not channels_last and 1 < shape[0] <= 4 < shape[1]:
        raise UsageError(
            f"expected an input of which it is clear what its axes are, got shape {list(shape)}: say --grid {shape[1]} (grid=({shape[1]},)) for a "
            f"signal of {shape[0]} channels, or --grid {shape[0]},{shape[1]} (grid={shape}) for an image"
        )
    if len(shape) == 2:
        # (1, n) is one channel of a signal; anything else with two axes is an image.
        return Layout(shape, (1,)) if shape[0] == 1 and not channels_last else Layout(shape, (0, 1))
    if channels_last:
        return Layout(shape, tuple(range(len(shape) - 1)))
    if shape[-1] <= 4 < min(shape[:-1]):
        raise UsageError(
            f"expected channels before the grid, got an input of shape {list(shape)} whose last axis looks like channels; "
            "say --channels-last if it is, or give the grid with --grid"
        )
    return Layout(shape, tuple(range(1, len(shape))))
