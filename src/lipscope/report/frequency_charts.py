"""Which frequencies a training run has learned, and at what Lipschitz constant: spectral bias as the observer saw it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipscope.report.charts import Figure, colour, figure_layout
from lipscope.report.runs import RunFacts

LEARNED = 0.8
"""The amplitude ratio at which a frequency counts as learned (arXiv 1806.08734)."""

_NAMES = {"ratio": re.compile(r"ratio at (\d+)"), "error": re.compile(r"error at (\d+)")}


@dataclass(frozen=True)
class Learned:
    """When a frequency was learned.

    Attributes:
        frequency: periods on the probe's grid.
        latest: the last amplitude ratio.
        step: the first look at which the ratio was at least 0.8; None if there was none.
        after: the look before it, when it was not yet; None if it was from the beginning.
        constant: the largest Jacobian norm on the probe at the last look at it up to that step; None if there was none.
    """

    frequency: int
    latest: float
    step: int | None
    after: int | None
    constant: float | None


def watched(facts: RunFacts, kind: str) -> list[tuple[int, str]]:
    """The frequencies, rising, of which a run has series of this kind (`ratio` or `error`), with the series' names."""
    found = [(match, name) for name, layer in facts.series if not layer and (match := _NAMES[kind].fullmatch(name))]
    return sorted((int(match[1]), name) for match, name in found)


def passages(facts: RunFacts) -> list[Learned]:
    """When each frequency was learned, lowest first; empty if no run watched amplitudes."""
    steps, constants = facts.values("lower")
    result = []
    for frequency, name in watched(facts, "ratio"):
        at, ratio = facts.values(name)
        if not at.size:
            continue
        reached = np.flatnonzero(ratio >= LEARNED)
        first = int(reached[0]) if reached.size else None
        step = None if first is None else int(at[first])
        earlier = np.flatnonzero((steps <= (-1 if step is None else step)) & np.isfinite(constants))
        result.append(Learned(
            frequency, float(ratio[-1]), step, int(at[first - 1]) if first else None,
            float(constants[earlier[-1]]) if len(earlier) else None,
        ))  # fmt: skip
    return result


def learning(facts: RunFacts) -> Figure | None:
    """Amplitude ratios (or relative errors) over the steps, above the largest Jacobian norm on the probe; None if not watched."""
    kind = "ratio" if watched(facts, "ratio") else "error"
    lines = watched(facts, kind)
    if not lines:
        return None
    data: list[Figure] = []
    for place, (frequency, name) in enumerate(lines):
        step, value = facts.values(name)
        tone = colour("hot") | {"to": "cold", "share": round(place / max(len(lines) - 1, 1), 4)}
        data.append(_line(step.tolist(), value, f"frequency {frequency}", tone, "y"))
    step, value = facts.values("lower")
    if step.size:
        data.append(_line(step.tolist(), value, "largest Jacobian norm on the probe", colour("lower"), "y2"))
    shapes: list[Figure] = []
    if kind == "ratio":
        rule = {"color": colour("muted"), "dash": "dash", "width": 1.2}
        shapes = [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": LEARNED, "y1": LEARNED, "line": rule}
        ]
    title = "amplitude / target’s" if kind == "ratio" else "relative error"
    below = bool(step.size)
    return {"data": data, "layout": figure_layout(
        460 if below else 300, showlegend=True, margin={"l": 8, "r": 12, "t": 12, "b": 8}, shapes=shapes,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
        xaxis={**_axis("optimizer step"), "rangemode": "tozero", "anchor": "y2" if below else "y"},
        yaxis={**_axis(title), "domain": [0.46 if below else 0, 1], "rangemode": "tozero"},
        **({"yaxis2": {**_axis("constant (l2)"), "domain": [0, 0.38], "rangemode": "tozero"}} if below else {}),
    )}  # fmt: skip


def _line(steps: list[int], values: Any, name: str, tone: object, axis: str) -> Figure:
    finite = [float(f"{v:.6g}") if np.isfinite(v) else None for v in values]
    return {
        "type": "scatter", "mode": "lines+markers" if len(steps) <= 60 else "lines", "name": name, "x": steps, "y": finite, "yaxis": axis,
        "line": {"color": tone, "width": 2}, "marker": {"color": tone, "size": 5},
        "hovertemplate": f"step %{{x}}<br>{name} %{{y:.4g}}<extra></extra>",
    }  # fmt: skip


def _axis(title: str) -> Figure:
    return {"title": {"text": title, "font": {"size": 12, "color": colour("muted")}}, "gridcolor": colour("line"), "zeroline": False,
            "tickfont": {"color": colour("muted")}, "fixedrange": True, "automargin": True}  # fmt: skip
