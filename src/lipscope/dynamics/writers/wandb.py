"""Readings in a Weights & Biases run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lipscope.claims.errors import UsageError
from lipscope.claims.quantity import Reading
from lipscope.dynamics.writers import tag

STEP = "lipscope/step"


class WandbWriter:
    """Logs the readings of a step as one record, against the metric `lipscope/step`, so that the user's own steps stay.

    Args:
        run: what `wandb.init` returned; without it a run is begun and finished here, offline unless told otherwise.
        options: for `wandb.init`.

    Raises:
        UsageError: wandb is not installed.
    """

    def __init__(self, run: Any = None, **options: Any) -> None:
        self._own = run is None
        if run is None:
            try:
                import wandb
            except ImportError:
                raise UsageError("WandbWriter needs wandb: pip install 'lipscope[wandb]'") from None
            run = wandb.init(**{"mode": "offline", **options})
        self._run: Any = run
        self._run.define_metric(STEP)
        self._run.define_metric("lipscope/*", step_metric=STEP)

    def write(self, step: int, readings: Sequence[tuple[str, Reading]]) -> None:
        """One record a step."""
        self._run.log({STEP: step, **{tag(quantity, reading): reading.value for quantity, reading in readings}})

    def close(self) -> None:
        """Finish the run if it was begun here."""
        if self._own:
            self._run.finish()
