"""Readings as MLflow metrics."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

from lipscope.claims.errors import UsageError
from lipscope.claims.quantity import Reading
from lipscope.dynamics.writers import tag

BATCH = 1000
"""Metrics that MLflow takes at once."""


class MLflowWriter:
    """Logs every reading as a metric of one run.

    Args:
        run_id: of a run that is there; without it the active run, or a new one that is ended here.
        tracking_uri: of the store; MLflow's own default if None.
        experiment: of a new run.

    Raises:
        UsageError: mlflow is not installed.
    """

    def __init__(
        self, run_id: str | None = None, tracking_uri: str | None = None, experiment: str = "lipscope"
    ) -> None:
        try:
            import mlflow
            from mlflow.entities import Metric
        except ImportError:
            raise UsageError("MLflowWriter needs mlflow: pip install 'lipscope[mlflow]'") from None
        self._metric: Any = Metric
        self._client: Any = mlflow.MlflowClient(tracking_uri=tracking_uri)
        active: Any = mlflow.active_run() if run_id is None and tracking_uri is None else None
        self._own = run_id is None and active is None
        if self._own:
            found = self._client.get_experiment_by_name(experiment)
            number = self._client.create_experiment(experiment) if found is None else found.experiment_id
            run_id = self._client.create_run(number).info.run_id
        self.run_id: str = str(run_id or active.info.run_id)

    def write(self, step: int, readings: Sequence[tuple[str, Reading]]) -> None:
        """One metric a reading; names have other signs than letters, digits and `_-. /` replaced by `_`."""
        now = int(time.time() * 1000)
        metrics = [
            self._metric(re.sub(r"[^\w\-. /]", "_", tag(quantity, reading)), reading.value, now, step)
            for quantity, reading in readings
        ]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + BATCH])

    def close(self) -> None:
        """End the run if it was begun here."""
        if self._own:
            self._client.set_terminated(self.run_id)
