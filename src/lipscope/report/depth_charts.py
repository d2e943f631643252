"""The charts of what happens to bands on their way through a network, as Plotly figures; colours refer to the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lipscope.report.charts import Figure, colour, plain
from lipscope.report.spectra import Layer, SpectrumFacts
from lipscope.report.spectrum_charts import axis, label, layout, legend, logarithmic, tones

ACROSS = 3
"""Matrices side by side; more would not fit a telephone."""

MOST = 12
"""Matrices of one network; of deeper ones so many layers are drawn, evenly spaced."""

PANEL = 148
"""Pixels of height of a matrix with its title."""

LAWS = {0.0: "white", 1.0: "1/f", 2.0: "1/f²"}
"""What noise with a power law is called, by the exponent of its variance."""


def depth(facts: SpectrumFacts, spectra: Sequence[SpectrumFacts]) -> Figure | None:
    """How much of each band's energy is there at each layer, with standard errors; None without layers on a grid."""
    if not facts.layers:
        return None
    count = len(facts.rows)
    numbers = list(range(1, len(facts.layers) + 1))
    data = []
    for band, row in enumerate(facts.rows):
        gains = [layer.gain[band] for layer in facts.layers]
        tone = _between(band / max(count - 1, 1))
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": f"{row.low:.3g} – {row.high:.3g}", "x": numbers,
            "y": [gain if gain > 0 else None for gain in gains],
            "error_y": {"type": "data", "array": [layer.gain_se[band] or 0 for layer in facts.layers], "color": tone, "thickness": 1.2, "width": 2},
            "showlegend": band in (0, count - 1), "line": {"color": tone, "width": 2}, "marker": {"color": tone, "size": 5},
            "text": [plain(f"{layer.name} ({layer.kind})", 48) for layer in facts.layers],
            "hovertemplate": f"%{{text}}<br>{row.low:.3g} – {row.high:.3g}: %{{y:.4g}}<extra></extra>",
        })  # fmt: skip
    # One scale for all networks on the page: that is what they are laid side by side for.
    values = [gain for other in spectra for layer in other.layers for gain in layer.gain]
    step = max(1, math.ceil(len(numbers) / 12))
    figure = layout(340, "layer", "energy gain", **logarithmic(values))
    figure["xaxis"] = {**axis("layer (number in the pictures below)"), "tickvals": numbers[::step], "showgrid": False}
    return {"data": data, "layout": figure}


def transfer(facts: SpectrumFacts) -> Figure | None:
    """For the layers the share of the energy of each input band (row) that is found in each of its bands (column)."""
    shown = chosen(facts)
    if not shown:
        return None
    lines = math.ceil(len(shown) / ACROSS)
    height = PANEL * lines + 58
    # In shares of the plot's height: a title of 26 pixels above each matrix, and room for ticks below the last one.
    inside = height - 14 - 44
    data: list[Figure] = []
    notes: list[Figure] = []
    figure: Figure = {}
    for place, (number, layer) in enumerate(shown):
        line, column = divmod(place, ACROSS)
        left, top = column / ACROSS, 1 - line * PANEL / inside
        ends = [left + 0.02, left + 1 / ACROSS - 0.02], [max(top - (PANEL - 12) / inside, 0), top - 26 / inside]
        suffix = str(place + 1) if place else ""  # Plotly's first axes have no number
        x, y = f"x{suffix}", f"y{suffix}"
        data.append(_matrix(facts, layer, x, y, place == 0))
        bare = {"showgrid": False, "zeroline": False, "fixedrange": True, "showticklabels": False, "ticks": ""}
        figure[f"xaxis{suffix}"] = {**bare, "anchor": y, "domain": ends[0]}
        figure[f"yaxis{suffix}"] = {**bare, "anchor": x, "domain": ends[1], "autorange": "reversed"}
        notes.append({
            "x": ends[0][0], "y": ends[1][1], "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom", "showarrow": False,
            "text": f"{number}. {plain(layer.name, 8)} · {plain(layer.kind, 9)}", "font": {"size": 11, "color": colour("muted")},
        })  # fmt: skip
    base = layout(height, "", "") | legend(False)
    margin = {"l": 4, "r": 4, "t": 14, "b": 44}
    return {"data": data, "layout": base | figure | {"annotations": notes, "margin": margin}}


def chosen(facts: SpectrumFacts) -> list[tuple[int, Layer]]:
    """The layers that are drawn with their numbers: all, or so many evenly spaced ones with the first and the last."""
    numbered = list(enumerate(facts.layers, start=1))
    if len(numbered) <= MOST:
        return numbered
    return [numbered[round(k * (len(numbered) - 1) / (MOST - 1))] for k in range(MOST)]


def _matrix(facts: SpectrumFacts, layer: Layer, x: str, y: str, scale: bool) -> Figure:
    """One matrix. A ring in which the layer's coarser grid has no frequency stays empty, so that columns mean the same everywhere."""
    ends = sorted({*layer.high, *(row.high or 0.0 for row in facts.rows)})
    columns = {end: k for k, end in enumerate(layer.high)}
    shares: list[list[float | None]] = []
    for row in layer.energy:
        total = sum(row)
        shares.append([row[columns[e]] / total if e in columns and total > 0 else None for e in ends])
    texts = [[f"{r.low:.3g} – {r.high:.3g} → up to {end:.3g}" for end in ends] for r in facts.rows]
    bar = {
        "orientation": "h", "thickness": 10, "len": 0.7, "x": 0.5, "y": 0, "yanchor": "top", "ypad": 14, "outlinewidth": 0,
        "tickvals": [0, 0.5, 1], "ticktext": ["0", "half", "all"], "tickfont": {"color": colour("muted")},
    }  # fmt: skip
    return {
        "type": "heatmap", "z": shares, "text": texts, "xaxis": x, "yaxis": y,
        "zmin": 0, "zmax": 1, "xgap": 1, "ygap": 1, "colorscale": [[0, colour("calm")], [1, colour("accent")]], "showscale": scale,
        "hovertemplate": "%{text}: %{z:.1%}<extra></extra>", "hoverongaps": False, "colorbar": bar,
    }  # fmt: skip


def noise(spectra: Sequence[SpectrumFacts]) -> Figure:
    """The response to noise of each power law, with standard errors."""
    data = []
    for facts, tone in zip(spectra, tones(), strict=False):
        data.append({
            "type": "bar", "name": label(facts, spectra), "x": [LAWS.get(n.exponent, f"1/f^{n.exponent:g}") for n in facts.noise],
            "y": [n.response for n in facts.noise],
            "error_y": {"type": "data", "array": [n.se or 0 for n in facts.noise], "color": colour("ink"), "thickness": 1.2, "width": 3},
            "marker": {"color": colour(tone), "line": {"width": 0}}, "hovertemplate": "%{x}: %{y:.4g}<extra></extra>",
        })  # fmt: skip
    figure = (
        layout(320, "noise", "power of the output") | {"bargap": 0.35, "barmode": "group"} | legend(len(spectra) > 1)
    )
    figure["xaxis"] = {**axis("variance over frequency"), "type": "category", "showgrid": False}
    return {"data": data, "layout": figure}


def _between(share: float) -> dict[str, object]:
    """A colour between those of the lowest and the highest band, mixed by the page."""
    return colour("hot") | {"to": "cold", "share": round(share, 4)}
