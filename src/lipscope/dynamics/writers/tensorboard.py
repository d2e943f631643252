"""Readings as TensorBoard scalars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipscope.claims.errors import UsageError
from lipscope.claims.quantity import Reading
from lipscope.dynamics.writers import tag


class TensorBoardWriter:
    """Writes every reading as a scalar, tagged `lipscope/quantity/name/layer`, with the optimizer step.

    Args:
        target: a folder, or a `torch.utils.tensorboard.SummaryWriter` that is in use anyway and stays open.

    Raises:
        UsageError: tensorboard is not installed.
    """

    def __init__(self, target: str | Path | object) -> None:
        self._own = isinstance(target, str | Path)
        self._writer: Any = target
        if self._own:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UsageError("TensorBoardWriter needs tensorboard: pip install 'lipscope[tensorboard]'") from None
            self._writer = SummaryWriter(str(target))

    def write(self, step: int, readings: Sequence[tuple[str, Reading]]) -> None:
        """One scalar a reading."""
        for quantity, reading in readings:
            self._writer.add_scalar(tag(quantity, reading), reading.value, step)

    def close(self) -> None:
        """Flush; close what was opened here."""
        self._writer.flush()
        if self._own:
            self._writer.close()
