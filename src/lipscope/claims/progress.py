"""How slow work reports: a function of what is being done and the share that is done."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]


def silent(message: str, fraction: float) -> None:
    """The progress report of those who want none."""
    del message, fraction
