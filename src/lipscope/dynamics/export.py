"""A run as a table that any program reads. Knows no torch."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from lipscope.claims.errors import ResourceError
from lipscope.dynamics.store import Run, open_run

COLUMNS = ("step", "time", "quantity", "name", "layer", "value", "certainty", "samples", "note")


def export_csv(run: str | Path | Run, path: str | Path) -> int:
    """Write everything that a run holds, one value a row, series by series; the number of rows.

    Values are written so that they are read back exactly (`nan`, `inf` and `-inf` as these words); `time` is in seconds since
    1970. Alerts and events follow as rows of the quantities `alert` and `event`, named by their kind, with their message
    as note and `warning` or `info` as certainty. The file appears whole or not at all.

    Raises:
        UsageError: there is no run, or it is of another version.
        ResourceError: the file cannot be written.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    target = Path(path)
    try:
        with NamedTemporaryFile(
            "w", dir=target.resolve().parent, suffix=".csv", newline="", encoding="utf-8", delete=False
        ) as file:
            temporary = Path(file.name)
            try:
                count = _write(opened, csv.writer(file))
                file.flush()
                os.fsync(file.fileno())
                temporary.chmod(0o644)
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ResourceError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        if opened is not run:
            opened.close()
    return count


def _write(run: Run, rows: Any) -> int:
    rows.writerow(COLUMNS)
    count = 0
    for series in run.all_series():
        columns = (series.step, series.time, series.value, series.certainty, series.samples, series.note)
        for step, time, value, certainty, samples, note in zip(*(c.tolist() for c in columns), strict=True):
            rows.writerow(
                (step, repr(time), series.quantity, series.name, series.layer, repr(value), certainty, samples, note)
            )
        count += len(series)
    for alert in run.alerts():
        value = "nan" if alert.value is None else repr(alert.value)
        rows.writerow(
            (alert.step, repr(alert.time), "alert", alert.kind, alert.layer, value, alert.severity, 0, alert.message)
        )
        count += 1
    for event in run.events():
        rows.writerow((event.step, repr(event.time), "event", event.kind, "", "nan", "info", 0, event.message))
        count += 1
    return count
