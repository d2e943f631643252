"""Readings of a run on their way to other programs: one file each, each an optional dependency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lipscope.claims.quantity import Reading


class Writer(Protocol):
    """Gets what is recorded."""

    def write(self, step: int, readings: Sequence[tuple[str, Reading]]) -> None:
        """The readings of one step, each with the name of its quantity."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


def tag(quantity: str, reading: Reading) -> str:
    """`lipscope/quantity/name` or `lipscope/quantity/name/layer`: one name for a series everywhere."""
    parts = ["lipscope", quantity, reading.name, *([reading.layer] if reading.layer else [])]
    return "/".join(parts)
