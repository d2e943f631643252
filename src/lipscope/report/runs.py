"""What a page says about a training run: facts gathered from its store, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipscope.dynamics.store import Alert, Event, Run, Series
from lipscope.report.predictions import Prediction, predict

FORCES = (
    "flow",
    "noise",
    "noise_curvature",
    "flow_curvature",
    "cross",
    "gradient",
    "momentum",
    "decay",
    "curvature",
    "log_correction",
    "remainder",
)
"""The terms of the pathwise identity, in the order in which they are stacked."""


@dataclass(frozen=True)
class LayerRow:
    """One layer of the table: its operator norm at the beginning, now, and the last proved upper bound of it."""

    name: str
    kind: str
    first: float | None
    now: float | None
    upper: float | None

    @property
    def growth(self) -> float | None:
        """By what factor the norm has grown."""
        return self.now / self.first if self.first and self.now else None


@dataclass(frozen=True)
class RunFacts:
    """A run as the page shows it.

    Attributes:
        id: of its part of the page.
        folder: where it is.
        state: `running or killed`, `finished`, `failed` or `deleted`.
        series: by (name, layer); of names that several quantities have, the first.
        layers: of the table, in the order of the model.
        alerts: first to last.
        events: first to last.
        settings: words about the run, for a list.
        budget: the share of the training time that the observer may take.
        token: changes whenever something was added.
        identity: its series, by (name, layer).
        calls: how often the network uses a layer, if not once.
    """

    id: str
    folder: Path
    state: str
    series: dict[tuple[str, str], Series]
    layers: tuple[LayerRow, ...]
    alerts: tuple[Alert, ...]
    events: tuple[Event, ...]
    settings: tuple[tuple[str, str], ...]
    budget: float | None
    token: str
    identity: Mapping[tuple[str, str], Series] = field(default_factory=dict)
    calls: Mapping[str, int] = field(default_factory=dict)

    template = "run.html"

    @property
    def source(self) -> str:
        """The name of the run."""
        return self.folder.name or str(self.folder)

    def latest(self, name: str, layer: str = "") -> float | None:
        """The last finite value of a series."""
        values = self.values(name, layer)[1]
        finite = values[np.isfinite(values)]
        return float(finite[-1]) if finite.size else None

    def first(self, name: str, layer: str = "") -> float | None:
        """The first finite value of a series."""
        values = self.values(name, layer)[1]
        finite = values[np.isfinite(values)]
        return float(finite[0]) if finite.size else None

    def values(self, name: str, layer: str = "") -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps and values of a series; empty if there is none."""
        found = self.series.get((name, layer))
        return (np.zeros(0, dtype=np.int64), np.zeros(0)) if found is None else (found.step, found.value)

    def layers_of(self, name: str) -> list[str]:
        """The layers that have a series of this name: in the order of the model where the identity knows it."""
        found = [layer for other, layer in self.series if other == name and layer]
        order = {layer: k for k, layer in enumerate(x for other, x in self.series if other == "change" and x)}
        return sorted(found, key=lambda layer: order[layer]) if set(found) <= set(order) else found

    def note(self, name: str, layer: str = "") -> str:
        """The last remark to a series."""
        found = self.series.get((name, layer))
        return "" if found is None or not len(found) else str(found.note[-1])

    @property
    def last_step(self) -> int:
        """The last step that any series saw."""
        return max((int(s.step[-1]) for s in self.series.values() if len(s)), default=0)

    @property
    def explained(self) -> int:
        """How many steps the identity was read at."""
        return len(self.values("observed_share")[0])

    @property
    def growth(self) -> float | None:
        """By what factor the measured Lipschitz constant on the probe has grown since the first reading."""
        first, last = self.first("lower"), self.latest("lower")
        return last / first if first and last else None

    @property
    def proved_at(self) -> int | None:
        """The step whose weights the last finite upper bound is about: it says nothing of later ones."""
        steps, values = self.values("upper")
        proved = steps[np.isfinite(values)]
        return int(proved[-1]) if proved.size else None

    @property
    def lower_when_proved(self) -> float | None:
        """The largest Jacobian norm on the probe of the weights that the last finite upper bound is about, if it was measured."""
        steps, values = self.values("lower")
        found = values[steps == self.proved_at]
        return float(found[-1]) if found.size and math.isfinite(found[-1]) else None

    @property
    def left_out(self) -> str:
        """Why the product of all layers' norms has no value, in words: the identity's sums are then about the others."""
        _, values = self.values("log_product")
        return self.note("log_product") if values.size and not math.isfinite(values[-1]) else ""

    @cached_property
    def prediction(self) -> Prediction | None:
        """Of the stochastic differential equation; None where the steps were not split into flow and noise."""
        return predict(self.identity, self.calls)

    @property
    def missing_upper(self) -> str:
        """Why the last upper bound is missing, in words; empty if there is one, or none was asked for."""
        _, values = self.values("upper")
        return self.note("upper") if values.size and not math.isfinite(values[-1]) else ""

    @property
    def told(self) -> list[tuple[Alert, int]]:
        """The last alert of every kind and layer, and how many there were: warnings first, then the latest."""
        last: dict[tuple[str, str], Alert] = {}
        count: dict[tuple[str, str], int] = {}
        for alert in self.alerts:
            key = alert.kind, alert.layer
            last[key], count[key] = alert, count.get(key, 0) + 1
        chosen = sorted(last.values(), key=lambda a: (a.severity != "warning", -a.step))
        return [(alert, count[alert.kind, alert.layer]) for alert in chosen]

    @property
    def closure(self) -> float | None:
        """The sum of absolute residuals of the identity over the sum of absolute changes, over the observed steps."""
        residual, change = self.values("residual")[1], self.values("change")[1]
        total = float(np.nansum(np.abs(change)))
        return float(np.nansum(np.abs(residual))) / total if total > 0 else None


def gather_run(run: Run, name: str) -> RunFacts:
    """The facts of a run as it is now.

    Args:
        run: opened; `refresh` is the caller's.
        name: the id of the run's part of the page.
    """
    series: dict[tuple[str, str], Series] = {}
    for found in run.all_series():
        series.setdefault((found.name, found.layer), found)
    followed = {(s.name, s.layer): s for s in run.all_series() if s.quantity == "layer-norms"}
    series |= followed
    meta, sessions = run.meta, run.sessions
    alerts, events = tuple(run.alerts()), tuple(run.events())
    state = sessions[-1].state if sessions else "empty"
    info = sessions[-1].info if sessions else {}
    budget = _object(info.get("settings")).get("budget")
    facts = RunFacts(
        name, run.folder, "running or killed" if state == "running" else state, series, (), alerts, events,
        tuple(_settings(meta, info)), float(budget) if isinstance(budget, int | float) else None,
        f"{run.last_id}-{len(alerts)}-{len(events)}-{state}",
    )  # fmt: skip
    model = meta.get("model", {})
    layers = model.get("layers", [])
    return replace(
        facts,
        layers=tuple(_layer(facts, str(layer["name"]), str(layer["kind"])) for layer in layers),
        identity={(s.name, s.layer): s for s in run.all_series() if s.quantity == "identity"},
        calls=model.get("calls", {}),
    )


def _layer(facts: RunFacts, name: str, kind: str) -> LayerRow:
    return LayerRow(name, kind, facts.first("norm", name), facts.latest("norm", name), facts.latest("norm_upper", name))


def _settings(meta: dict[str, object], info: dict[str, object]) -> Sequence[tuple[str, str]]:
    model, settings, environment, probe = (_object(x) for x in (
        meta.get("model"), info.get("settings"), info.get("environment"), info.get("probe")))  # fmt: skip
    optimizer = _object(settings.get("optimizer"))
    created = meta.get("created")
    shape = probe.get("shape")
    rows = [
        ("model", f"{model.get('class', '?')}, {int(str(model.get('parameters', 0))):,} parameters"),
        ("optimizer", str(optimizer.get("class", "?"))),
        ("probe", f"{shape[0] if isinstance(shape, list) and shape else '?'} points, {probe.get('scale', 'scale unknown')}, {str(probe.get('dtype', '')).removeprefix('torch.')}"),
        ("observer", f"preset {settings.get('preset', '?')}, budget {100 * float(str(settings.get('budget', 'nan'))):g} % of the training time"),
        ("begun", datetime.fromtimestamp(float(str(created)), UTC).strftime("%Y-%m-%d %H:%M UTC") if created else "?"),
        ("with", f"torch {environment.get('torch', '?')}, lipscope {environment.get('lipscope', '?')}"),
    ]  # fmt: skip
    return rows


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
