"""When a barrier method may stop, and where it begins."""

from __future__ import annotations

from dataclasses import dataclass

FAR = 1 / 3
"""The relative gap to which a start is centred of which nothing is known."""


@dataclass(frozen=True)
class Wanted:
    """When a search for the least value of an inequality may stop.

    Attributes:
        deadline: `time.monotonic()` at which it stops.
        enough: a value that needs no improvement.
        tolerance: relative gap at which it stops.
        coarse: relative gap at which it stops where `enough` is known to be out of reach.
    """

    deadline: float
    enough: float
    tolerance: float
    coarse: float = 0.0

    def met(self, value: float, gap: float) -> bool:
        """Whether a centre is good enough, of which the least value is about at least `value (1 - gap)`."""
        hopeless = gap < self.coarse and value * (1 - gap) > self.enough
        return bool(value <= self.enough or gap < self.tolerance or hopeless)
