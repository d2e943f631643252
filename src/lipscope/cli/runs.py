"""`lipscope runs`: what the training observer wrote, as a table."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lipscope.cli.console import Json, figure, print_json, stderr

if TYPE_CHECKING:
    from lipscope.dynamics.store import Series

STATES = {"running": "running or killed"}
"""A training that was killed had no time to say so."""


def command(
    run: Annotated[Path, typer.Argument(help="A folder that the training observer wrote.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write every value, alert and event to this CSV file.")
    ] = None,
    json: Json = False,
) -> None:
    """Tell what RUN holds, or write all of it to a CSV file."""
    from lipscope.dynamics.export import export_csv
    from lipscope.dynamics.store import open_run

    with open_run(run) as opened:
        rows = None if output is None else export_csv(opened, output)
        ends = {s.name: s for s in reversed(opened.all_series()) if not s.layer and len(s)}  # of one name, the first
        last = {name: float(s.value[-1]) for name, s in ends.items()}
        sessions = opened.sessions
        document = {
            "run": str(run), "steps": len(opened.steps), "last_step": opened.last_step,
            "state": STATES.get(sessions[-1].state, sessions[-1].state) if sessions else None, "model": opened.meta.get("model"),
            "series": len(opened.all_series()), "values": sum(len(s) for s in opened.all_series()),
            "alerts": [{"step": a.step, "kind": a.kind, "layer": a.layer, "message": a.message} for a in opened.alerts()],
            "last": {name: value if abs(value) < float("inf") else None for name, value in last.items()},
            "last_at": {name: int(s.step[-1]) for name, s in ends.items()},
            "csv": None if output is None else str(output),
        }  # fmt: skip
    if json:
        print_json(document)
        return
    console = stderr()
    console.print(
        f"run     {run}: {document['steps']} observed steps up to step {document['last_step']}, {document['values']} values, "
        f"{document['state']}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    for name in ("mean", "lower", "upper", "accuracy", "overhead"):
        if name in ends:
            console.print(f"{name:<10}{shown(ends[name], opened.last_step)}", markup=False, soft_wrap=True)
    for alert in opened_alerts(document):
        console.print(f"alert   {alert}", markup=False, soft_wrap=True)
    if rows is not None:
        console.print(f"csv     {output}, {rows} rows", markup=False, soft_wrap=True)


def shown(series: Series, last_step: int | None) -> str:
    """Its last value, a bound rounded up; with its step if that is not the run's last: an older bound may be below newer values."""
    from lipscope.report.numbers import up

    value, step = float(series.value[-1]), int(series.step[-1])
    number = up(value, 6) if series.name == "upper" and math.isfinite(value) else figure(value)
    return number if step == last_step else f"{number}  (at step {step})"


def opened_alerts(document: dict[str, object]) -> list[str]:
    """One line an alert."""
    alerts = document["alerts"]
    assert isinstance(alerts, list)
    return [f"step {a['step']}: {a['message']}" for a in alerts]
