"""The charts of spectra as Plotly figures, several models in one; colours are references to the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lipscope.report.charts import Figure, colour, figure_layout, plain, ticks
from lipscope.report.spectra import HeatMap, Row, SpectrumFacts

TONES = ("c1", "c2", "c3", "c4", "c5", "c6", "c7")


def gains(spectra: Sequence[SpectrumFacts]) -> Figure:
    """Largest measured gain of every band with its proved bound above, over frequency."""
    data = []
    for facts, tone in zip(spectra, tones(), strict=False):
        name = _name(facts, spectra)
        data.append(_line(facts.rows, [r.measured for r in facts.rows], f"{name}measured", tone, "solid", "circle"))
        proved = [r.proved.value for r in facts.rows]
        if any(value is not None for value in proved):
            data.append(_line(facts.rows, proved, f"{name}proved bound", tone, "dash", "diamond"))
    values = [v for facts in spectra for r in facts.rows for v in (r.measured, r.proved.value)]
    return {"data": data, "layout": layout(400, "cycles per sample", "gain, ℓ₂", **logarithmic(values))}


def profile(spectra: Sequence[SpectrumFacts]) -> Figure:
    """Mean power of the Jacobian per coefficient in thin rings, with standard errors."""
    data = []
    for facts, tone in zip(spectra, tones(), strict=False):
        rings = [ring for ring in facts.profile if ring.power > 0]
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": label(facts, spectra),
            "x": [ring.middle for ring in rings], "y": [ring.power for ring in rings],
            "error_y": {"type": "data", "array": [ring.se or 0 for ring in rings], "color": colour(tone), "thickness": 1.2, "width": 2},
            "line": {"color": colour(tone), "width": 2}, "marker": {"color": colour(tone), "size": 5},
            "hovertemplate": "%{x:.3f}: %{y:.4g}<extra></extra>",
        })  # fmt: skip
    values = [ring.power for facts in spectra for ring in facts.profile]
    figure = layout(320, "cycles per sample", "power per coefficient", **logarithmic(values))
    return {"data": data, "layout": figure | legend(len(spectra) > 1)}


def importance(spectra: Sequence[SpectrumFacts]) -> Figure | None:
    """Shapley values of the bands with standard errors; None where there are none."""
    shown = [facts for facts in spectra if any(row.importance is not None for row in facts.rows)]
    data = [
        {
            "type": "bar", "name": label(facts, spectra),
            "x": [f"≤ {row.high:.3g}" for row in facts.rows], "y": [row.importance for row in facts.rows], "text": [_ends(row) for row in facts.rows],
            "textposition": "none",
            "error_y": {"type": "data", "array": [row.importance_se or 0 for row in facts.rows], "color": colour("ink"), "thickness": 1.2, "width": 3},
            "marker": {"color": colour(tone), "line": {"width": 0}}, "hovertemplate": "%{text}: %{y:.4g}<extra></extra>",
        }
        for facts, tone in zip(spectra, tones(), strict=False) if facts in shown
    ]  # fmt: skip
    figure = layout(320, "cycles per sample", "Shapley value") | {"bargap": 0.35, "barmode": "group"}
    figure |= legend(len(shown) > 1)
    # The standoff keeps the title below the ticks, however they are turned.
    title = {"text": "cycles per sample", "standoff": 14, "font": {"size": 12, "color": colour("muted")}}
    figure["xaxis"] = {**axis(""), "title": title, "type": "category", "showgrid": False}
    return {"data": data, "layout": figure} if shown else None


def heat(found: HeatMap, others: Sequence[HeatMap] = ()) -> Figure:
    """The Fourier heat map, frequency 0 in the middle, on one scale of colours with the others that show the same under the same waves."""
    rows, columns = len(found.values), len(found.values[0])
    alike = [found, *(other for other in others if other.comparable == found.comparable)]
    known = [value for one in alike for row in one.values for value in row if value is not None] or [0.0]
    data = [{
        "type": "heatmap", "z": [list(row) for row in found.values], "zmin": min(known), "zmax": max(known),
        "x": [i - columns // 2 for i in range(columns)], "y": [i - rows // 2 for i in range(rows)],
        "colorscale": [[0, colour("calm")], [1, colour("hot")]], "hovertemplate": "(%{y}, %{x}): %{z:.3g}<extra></extra>", "hoverongaps": False,
        "colorbar": {"orientation": "h", "thickness": 10, "len": 0.8, "y": 0, "yanchor": "top", "ypad": 56, "nticks": 5, "outlinewidth": 0,
                     "tickfont": {"color": colour("muted")}},
    }]  # fmt: skip
    figure = layout(380 if rows > 1 else 200, "frequency across", "frequency down") | legend(False)
    figure["yaxis"] = (
        {
            **axis("frequency down"),
            "scaleanchor": "x",
            "constrain": "domain",
            "autorange": "reversed",
            "showgrid": False,
        }
        if rows > 1
        else {"visible": False}
    )
    figure["xaxis"] = {**axis("frequency across"), "constrain": "domain", "showgrid": False}
    return {"data": data, "layout": figure | {"margin": {"l": 8, "r": 8, "t": 14, "b": 64}}}


def tones() -> tuple[str, ...]:
    """A colour for each network, used again after the seventh."""
    return TONES * 20


def label(facts: SpectrumFacts, spectra: Sequence[SpectrumFacts]) -> str:
    """How a legend calls a network: by its folder where there are several."""
    return plain(facts.label if len(spectra) > 1 else facts.source, 40)


def _name(facts: SpectrumFacts, spectra: Sequence[SpectrumFacts]) -> str:
    return f"{plain(facts.label, 32)}, " if len(spectra) > 1 else ""


def _ends(row: Row) -> str:
    return f"{row.low:.3g} – {row.high:.3g}"


def _line(rows: Sequence[Row], values: Sequence[float | None], name: str, tone: str, dash: str, symbol: str) -> Figure:
    shown = [(row, value) for row, value in zip(rows, values, strict=True) if value is not None and value > 0]
    return {
        "type": "scatter", "mode": "lines+markers", "name": name, "x": [((r.low or 0) + (r.high or 0)) / 2 for r, _ in shown],
        "y": [value for _, value in shown], "text": [_ends(row) for row, _ in shown],
        "line": {"color": colour(tone), "width": 2, "dash": dash}, "marker": {"color": colour(tone), "size": 8, "symbol": symbol},
        "hovertemplate": f"%{{text}}<br>{name} %{{y:.5g}}<extra></extra>",
    }  # fmt: skip


def axis(title: str, **more: object) -> Figure:
    """An axis in the page's colours that cannot be dragged."""
    return {
        "title": {"text": title, "font": {"size": 12, "color": colour("muted")}}, "gridcolor": colour("line"), "zeroline": False,
        "tickfont": {"color": colour("muted")}, "fixedrange": True, "automargin": True, **more,
    }  # fmt: skip


def logarithmic(values: Sequence[float | None]) -> Figure:
    """A logarithmic axis around the positive values, with ticks at round numbers."""
    logs = [math.log10(v) for v in values if v is not None and v > 0] or [0.0]
    pad = max(0.08 * (max(logs) - min(logs)), 0.15)
    low, high = min(logs) - pad, max(logs) + pad
    marks = ticks(low, high)
    return {
        "type": "log", "range": [low, high], "tickvals": [10.0**place for place, _ in marks],
        "ticktext": [text for _, text in marks],
    }  # fmt: skip


def legend(shown: bool) -> Figure:
    """With or without a legend, which needs room above."""
    return {"showlegend": shown, "margin": {"l": 8, "r": 8, "t": 48 if shown else 14, "b": 40}}


def layout(height: int, x: str, y: str, **vertical: object) -> Figure:
    """A chart with a legend above it; `vertical` goes to the vertical axis."""
    return figure_layout(
        height, margin={"l": 8, "r": 8, "t": 48, "b": 40}, xaxis=axis(x), yaxis=axis(y, **vertical)
    ) | {
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": colour("muted")}},
    }  # fmt: skip
