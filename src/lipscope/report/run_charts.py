"""The charts of a training run as Plotly figures; colours are references to the page's CSS variables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipscope.report.charts import Figure, colour, figure_layout, plain
from lipscope.report.runs import FORCES, RunFacts

PROVED = "triangle-down"
"""The symbol of a proved upper bound."""

MOST = 600
"""Points of a line that are drawn; a screen has no room for more."""

TONES = ("c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8")

FORCE_TONES = {
    "flow": "c1", "gradient": "c1", "noise": "c2", "momentum": "c2", "noise_curvature": "c3", "curvature": "c3",
    "flow_curvature": "c4", "decay": "c4", "cross": "c5", "log_correction": "c6", "remainder": "c7",
}  # fmt: skip


def _points(symbol: str, tone: str, size: int = 7) -> dict[str, Any]:
    """What is looked at rarely is not joined by lines: between two bounds nothing was proved.

    Each kind has a symbol of its own; triangles are proved, and point down to what lies below them.
    """
    marker = {"color": colour(tone), "size": size, "symbol": symbol, "line": {"color": colour(tone), "width": 1.5}}
    return {"mode": "markers", "cliponaxis": False, "marker": marker}


Line = tuple[NDArray[np.int64], NDArray[np.float64]]


def thin(step: NDArray[np.int64], value: NDArray[np.float64], most: int = MOST) -> Line:
    """At most so many points of a line, the smallest and the largest of every stretch among them."""
    finite = np.isfinite(value)
    step, value = step[finite], value[finite]
    if len(step) <= most:
        return step, value
    edges = np.linspace(0, len(step), most // 2 + 1).astype(np.int64)
    kept = {0, len(step) - 1}
    for a, b in itertools.pairwise(edges):
        if b > a:
            kept |= {int(a + value[a:b].argmin()), int(a + value[a:b].argmax())}
    chosen = np.array(sorted(kept))
    return step[chosen], value[chosen]


def _line(facts: RunFacts, name: str, label: str, tone: str, layer: str = "", **more: Any) -> Figure | None:
    step, value = thin(*facts.values(name, layer))
    if not step.size:
        return None
    return {
        "type": "scatter", "mode": "lines" if step.size > 1 else "markers", "name": label, "x": step.tolist(),
        "y": [float(f"{v:.6g}") for v in value], "line": {"color": colour(tone), "width": 2}, "marker": {"color": colour(tone), "size": 7},
        "hovertemplate": f"step %{{x}}<br>{plain(label)} %{{y:.4g}}<extra></extra>", **more,
    }  # fmt: skip


def _steps(**more: object) -> Figure:
    return {"title": {"text": "optimizer step", "font": {"size": 12, "color": colour("muted")}}, "gridcolor": colour("line"),
            "zeroline": False, "tickfont": {"color": colour("muted")}, "fixedrange": True, "automargin": True, "rangemode": "tozero", **more}  # fmt: skip


def _values(title: str, log: bool = False, **more: object) -> Figure:
    axis: Figure = {"title": {"text": title, "font": {"size": 12, "color": colour("muted")}}, "gridcolor": colour("line"), "zeroline": not log,
                    "zerolinecolor": colour("edge"), "tickfont": {"color": colour("muted")}, "fixedrange": True, "automargin": True}  # fmt: skip
    if log:
        axis |= {"type": "log", "exponentformat": "power", "minor": {"showgrid": False}, "nticks": 6}
    return axis | more


def _figure(data: Sequence[Figure | None], height: int, **more: object) -> Figure | None:
    drawn = [d for d in data if d is not None]
    if not drawn:
        return None
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}}
    margin = {"l": 8, "r": 12, "t": 12, "b": 8}
    return {
        "data": drawn,
        "layout": figure_layout(height, **{"showlegend": True, "legend": legend, "margin": margin, **more}),
    }


def sandwich(facts: RunFacts) -> Figure | None:
    """Mean and largest Jacobian norm on the probe, the estimated product of layer norms and the proved upper bounds."""
    step, value = thin(*facts.values("log_product"))
    product: Figure | None = None
    if step.size:
        product = {
            "type": "scatter", "mode": "lines", "name": "product of layer norms (estimate)", "x": step.tolist(),
            "y": [float(f"{math.exp(min(v, 700)):.6g}") for v in value],
            "line": {"color": colour("muted"), "width": 1.5, "dash": "dot"},
            "hovertemplate": "step %{x}<br>product of layer norms %{y:.4g}<extra></extra>",
        }  # fmt: skip
    lines = [
        product,
        _line(facts, "lower", "largest on the probe", "lower"),
        _line(facts, "mean", "mean on the probe", "c2"),
        _line(facts, "lower_pairs", "largest between probe points", "c4", **_points("x-thin", "c4", 6)),
        _line(facts, "upper", "proved upper bound", "accent", **_points(PROVED, "accent", 9)),
    ]
    return _figure(lines, 380, xaxis=_steps(), yaxis=_values("Lipschitz constant (l2)", log=True))


def heat_map(facts: RunFacts) -> Figure | None:
    """The norm of every layer over time, relative to its first value."""
    layers = [layer for layer in facts.layers_of("norm") if facts.first("norm", layer)]
    if not layers:
        return None
    steps = np.unique(np.concatenate([facts.values("norm", layer)[0] for layer in layers]))
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 240)).astype(np.int64))]
    ratio, norms = [], []
    for layer in layers:
        at, value = facts.values("norm", layer)
        held = value[np.clip(np.searchsorted(at, steps, side="right") - 1, 0, len(value) - 1)]
        norms.append([float(f"{v:.5g}") if math.isfinite(v) else None for v in held])
        with np.errstate(all="ignore"):
            logs = np.log2(held / (facts.first("norm", layer) or 1))
        ratio.append([float(f"{v:.4g}") if math.isfinite(v) else None for v in logs])
    most = max((abs(v) for row in ratio for v in row if v is not None), default=1.0) or 1.0
    marks = [-most, -most / 2, 0.0, most / 2, most]
    data: Figure = {
        "type": "heatmap", "x": steps.tolist(), "y": [plain(layer, 28) for layer in layers], "z": ratio, "customdata": norms,
        "zmin": -most, "zmax": most,
        "colorscale": [[0, colour("cold")], [0.5, colour("calm")], [1, colour("hot")]],
        "colorbar": {"title": {"text": "growth", "font": {"size": 12}}, "tickvals": marks, "ticktext": [f"×{2.0**v:.3g}" for v in marks],
                     "outlinewidth": 0, "thickness": 12, "tickfont": {"color": colour("muted")}},
        "hovertemplate": "step %{x}<br>%{y}<br>norm %{customdata:.4g}<extra></extra>",
    }  # fmt: skip
    height = 110 + 26 * min(len(layers), 40)
    return _figure(
        [data], height, xaxis=_steps(rangemode="normal"), yaxis={**_values("layer"), "autorange": "reversed", "type": "category", "zeroline": False},
    )  # fmt: skip


def forces(facts: RunFacts) -> Figure | None:
    """What moved the logarithm of the product of norms, added up over the observed steps: stacked, with the change itself."""
    step, change = facts.values("total_change")
    names = [f for f in FORCES if facts.values(f"total_{f}")[0].size]
    if not step.size or not names:
        return None
    kept, _ = thin(step, change, 240)
    data: list[Figure | None] = []
    explained = np.zeros(len(kept))
    for name in names:
        at, value = facts.values(f"total_{name}")
        held = np.nan_to_num(value[np.clip(np.searchsorted(at, kept, side="right") - 1, 0, len(value) - 1)])
        explained += held
        tone = FORCE_TONES[name]
        if not np.abs(held).max() > 1e-3 * max(float(np.nanmax(np.abs(change))), 1e-300):
            continue  # too thin to be seen; it stays in the sum
        data.append({
            "type": "scatter", "mode": "lines", "name": name.replace("_", " "), "x": kept.tolist(), "y": [float(f"{v:.5g}") for v in held],
            "stackgroup": "up" if held[-1] >= 0 else "down", "line": {"width": 0.5, "color": colour(tone)}, "fillcolor": colour(f"{tone}-soft"),
            "hovertemplate": f"step %{{x}}<br>{name.replace('_', ' ')} %{{y:.4g}}<extra></extra>",
        })  # fmt: skip
    data.append({
        "type": "scatter", "mode": "lines", "name": "sum of the forces", "x": kept.tolist(), "y": [float(f"{v:.5g}") for v in explained],
        "line": {"color": colour("ink"), "width": 1.5, "dash": "dash"}, "hovertemplate": "step %{x}<br>sum %{y:.5g}<extra></extra>",
    })  # fmt: skip
    data.append(
        _line(facts, "total_change", "change that happened", "ink", line={"color": colour("ink"), "width": 2.5})
    )
    return _figure(data, 360, xaxis=_steps(), yaxis=_values("change of log of the product of norms"))


def prediction(facts: RunFacts) -> Figure | None:
    """The path of the stochastic differential equation with its band, beside what happened; crossed out if it does not hold."""
    found = facts.prediction
    if found is None:
        return None
    steps = np.array(found.forecast.steps)
    path, sd, seen = (np.array(x) for x in (found.forecast.path, found.forecast.sd, found.observed))
    data: list[Figure | None] = []
    if found.forecast.sound:
        band = [thin(steps, path + side * 2 * sd) for side in (-1, 1)]
        for (at, edge), fill in zip(band, ({}, {"fill": "tonexty", "fillcolor": colour("c1-soft")}), strict=True):
            data.append({
                "type": "scatter", "mode": "lines", "x": at.tolist(), "y": [float(f"{v:.5g}") for v in edge], "hoverinfo": "skip",
                "line": {"width": 0}, "name": "two standard deviations", "showlegend": bool(fill), **fill,
            })  # fmt: skip
    at, value = thin(steps, path)
    name = "forecast" if found.forecast.sound else "no forecast: it does not hold here"
    line = (
        {"color": colour("c1"), "width": 2}
        if found.forecast.sound
        else {"color": colour("muted"), "width": 1, "dash": "dot"}
    )
    data.append({
        "type": "scatter", "mode": "lines" if found.forecast.sound else "lines+markers", "name": name, "x": at.tolist(),
        "y": [float(f"{v:.5g}") for v in value], "line": line, "marker": {"symbol": "x-thin", "size": 5, "line": {"color": colour("muted"), "width": 1}},
        "hovertemplate": f"step %{{x}}<br>{name} %{{y:.4g}}<extra></extra>",
    })  # fmt: skip
    at, value = thin(steps, seen)
    data.append({
        "type": "scatter", "mode": "lines", "name": "what happened", "x": at.tolist(), "y": [float(f"{v:.5g}") for v in value],
        "line": {"color": colour("ink"), "width": 2.5}, "hovertemplate": "step %{x}<br>what happened %{y:.4g}<extra></extra>",
    })  # fmt: skip
    return _figure(data, 320, xaxis=_steps(), yaxis=_values("change of log of the product of norms"))


def spectra(facts: RunFacts) -> Figure | None:
    """Singular values of the Jacobian of every layer's output by the input, at the last look."""
    layers = facts.layers_of("singular_value_1") or ([""] if facts.latest("singular_value_1") else [])
    data: list[Figure | None] = []
    for k, layer in enumerate(layers[:24]):
        values = [facts.latest(f"singular_value_{i}", layer) for i in range(1, 11)]
        points = [(i, v) for i, v in enumerate(values, start=1) if v is not None and v > 0]
        if not points:
            continue
        share = k / max(len(layers) - 1, 1)
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": plain(layer or "network", 24), "x": [i for i, _ in points],
            "y": [float(f"{v:.5g}") for _, v in points], "line": {"color": colour("accent"), "width": 2}, "opacity": 0.35 + 0.65 * share,
            "marker": {"size": 6, "symbol": k % 8},
            "hovertemplate": f"{plain(layer or 'network', 40)}<br>singular value %{{x}}: %{{y:.4g}}<extra></extra>",
        })  # fmt: skip
    return _figure(data, 320, xaxis=_steps(title={"text": "number of the singular value", "font": {"size": 12, "color": colour("muted")}},
                   dtick=1, rangemode="normal"), yaxis=_values("mean over the probe", log=True))  # fmt: skip


def ranks(facts: RunFacts) -> Figure | None:
    """Ranks of the network's Jacobian over time, at several tolerances."""
    names = {
        "rank_1e-6": "rank at 1e-6",
        "rank_1e-4": "rank at 1e-4",
        "rank_1e-2": "rank at 1e-2",
        "entropy_rank": "entropy rank",
        "stable_rank": "stable rank",
    }
    lines = [_line(facts, name, label, TONES[k], mode="lines+markers") for k, (name, label) in enumerate(names.items())]
    return _figure(
        lines, 320, xaxis=_steps(), yaxis=_values("rank of the Jacobian, mean over the probe", rangemode="tozero")
    )


def task(facts: RunFacts) -> Figure | None:
    """Loss on the probe, and the margin for each unit of the Lipschitz constant."""
    lines = [
        _line(facts, "probe_loss", "loss on the probe", "c2"),
        _line(facts, "margin_per_lipschitz", "margin / Lipschitz constant", "c1"),
        _line(facts, "accuracy", "accuracy on the probe", "c3"),
    ]
    return _figure(lines, 300, xaxis=_steps(), yaxis=_values("on the probe"))


def overhead(facts: RunFacts) -> Figure | None:
    """The share of the training time that the observer took, against what it was allowed."""
    lines = [
        _line(facts, "overhead", "since the beginning", "accent"),
        _line(facts, "overhead_recent", "lately", "c2", line={"color": colour("c2"), "width": 1.2}),
    ]
    shapes: list[Figure] = []
    if (budget := facts.budget) is not None:
        rule = {"color": colour("bad"), "dash": "dash", "width": 1.5}
        shapes = [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": budget, "y1": budget, "line": rule}]
    marks = [10.0**k for k in range(-4, 4)]
    shares = _values("share of the training time", log=True, tickvals=marks, ticktext=[f"{100 * m:g} %" for m in marks])
    return _figure(lines, 280, xaxis=_steps(), yaxis=shares, shapes=shapes)


def comparison(runs: Sequence[RunFacts]) -> Figure | None:
    """The largest Jacobian norm on the probe (lines) and the proved upper bounds (points) of several runs."""
    data: list[Figure | None] = []
    for k, facts in enumerate(runs):
        tone = TONES[k % len(TONES)]
        name = plain(facts.source, 24)
        data.append(_line(facts, "lower", name, tone, legendgroup=facts.id))
        data.append(_line(facts, "upper", f"{name}, upper bound", tone, legendgroup=facts.id, showlegend=False,
                          **_points(PROVED, tone, 8)))  # fmt: skip
    return _figure(data, 380, xaxis=_steps(), yaxis=_values("Lipschitz constant (l2)", log=True))
