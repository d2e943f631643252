"""Between which inputs a constant is claimed: those that differ in a band of frequencies only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipscope.claims.errors import UsageError


@dataclass(frozen=True, eq=False)
class Directions:
    """Differences whose discrete Fourier transform over a grid vanishes outside a mask, the same for every channel.

    Attributes:
        mask: booleans over the grid, in the order of `fftfreq`; with every frequency w it holds -w.
        shape: how the input's entries are arranged, row-major.
        axes: the axes of that shape which are the grid, rising; the others are channels.
    """

    mask: NDArray[np.bool_]
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.axes or list(self.axes) != sorted(set(self.axes)) or max(self.axes) >= len(self.shape):
            raise UsageError(f"expected the grid on rising axes of {list(self.shape)}, got {list(self.axes)}")
        grid = tuple(self.shape[a] for a in self.axes)
        if self.mask.dtype != np.bool_ or self.mask.shape != grid:
            raise UsageError(
                f"expected a mask of booleans over {list(grid)}, got {self.mask.dtype} {list(self.mask.shape)}"
            )
        if not (self.mask == self.mask[np.ix_(*((-np.arange(n)) % n for n in grid))]).all():
            raise UsageError("expected a mask that holds -w with every frequency w")

    @property
    def words(self) -> str:
        """How many of the grid's frequencies it holds, in words."""
        return f"{int(self.mask.sum())} of {self.mask.size} frequencies of a grid {'x'.join(map(str, self.mask.shape))}"
