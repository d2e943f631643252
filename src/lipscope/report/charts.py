"""The two charts as Plotly figures, drawn on axes whose values are decimal logarithms so that ticks are ours.

Colours are references `{"var": name}` to the page's CSS variables; the page fills them in, for light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lipscope.report.facts import Facts, Layer
from lipscope.report.numbers import down, power_of_ten, up

Figure = dict[str, object]
LONGEST_LABEL = 16


def colour(name: str) -> dict[str, str]:
    """A reference to a CSS variable of the page."""
    return {"var": name}


def plain(text: str, longest: int = 80) -> str:
    """Text that Plotly shows as it is: it would take `<` and `&` for markup. Long text loses its middle."""
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[-(longest // 2 - 1) :]}"
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _tick(value: float) -> str:
    exponent = math.floor(math.log10(value) + 1e-9)
    if -3 <= exponent <= 4:
        return f"{value:.6g}"
    mantissa = value / 10.0**exponent
    return power_of_ten(exponent) if abs(mantissa - 1) < 1e-6 else f"{mantissa:.4g}·{power_of_ten(exponent)}"


def ticks(low: float, high: float, most: int = 6) -> list[tuple[float, str]]:
    """Positions and labels for an axis of decimal logarithms from `low` to `high`."""
    span = high - low
    if span >= 3.2 or low < -300 or high > 300:
        step = max(1, math.ceil(span / most))
        exponents = range(step * math.ceil(low / step), math.floor(high) + 1, step)
        return [(float(e), power_of_ten(e) if abs(e) > 3 else f"{10.0**e:g}") for e in exponents]
    if span >= 0.7:
        leading = (1, 2, 5) if span < 2.2 else (1, 3)
        candidates = (m * 10.0**e for e in range(math.floor(low), math.floor(high) + 1) for m in leading)
        return [(math.log10(v), _tick(v)) for v in candidates if low <= math.log10(v) <= high]
    start, stop = 10.0**low, 10.0**high
    raw = (stop - start) / most
    unit = 10.0 ** math.floor(math.log10(raw))
    width = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw)
    values = [k * width for k in range(math.ceil(start / width), math.floor(stop / width) + 1)]
    return [(math.log10(v), _tick(v)) for v in values if v > 0]


def _axis(low: float, high: float, **more: object) -> Figure:
    marks = ticks(low, high)
    return {
        "range": [low, high], "tickvals": [p for p, _ in marks], "ticktext": [t for _, t in marks],
        "gridcolor": colour("line"), "zeroline": False, "tickfont": {"color": colour("muted")}, "fixedrange": True, **more,
    }  # fmt: skip


def figure_layout(height: int, **more: object) -> Figure:
    """What all charts share: a clear ground, the page's type and colours, no dragging."""
    return {
        "height": height, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13, "color": colour("ink")},
        "hoverlabel": {"bgcolor": colour("card"), "bordercolor": colour("line"), "font": {"color": colour("ink")}},
        "showlegend": False, "dragmode": False, **more,
    }  # fmt: skip


def _log(value: float) -> float:
    return math.log10(value)


def _span(values: Iterable[float], pad: float, least: float) -> tuple[float, float]:
    """A range of logarithms around positive finite values; at least `least` decades wide."""
    logs = [_log(value) for value in values if 0 < value < math.inf] or [0.0]
    low, high = min(logs), max(logs)
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    return low - pad * (high - low), high + pad * (high - low)


def interval_chart(facts: Facts) -> Figure | None:
    """The interval as a band, with a row for every method that had a value; None where there is no positive number."""
    upper, lower = facts.trusted_upper, facts.lower if facts.lower_status not in ("rejected", "damaged") else 0.0
    rows = [c for c in facts.candidates if c.value is not None and 0 < c.value < math.inf][:40]
    numbers = [v for v in (lower, upper, *(c.value for c in rows)) if v is not None and v > 0]
    if not numbers:
        return None
    pad = 0.45 if len(rows) <= 1 else 0.3
    low, high = _span(numbers, pad, 0.01 if upper is not None and lower > 0 else 1.0)
    left = _log(lower) if lower > 0 else low
    right = high if upper is None else _log(upper) if upper > 0 else left
    band = {"type": "rect", "xref": "x", "yref": "paper", "x0": left, "x1": right, "y0": 0, "y1": 1, "layer": "below",
            "line": {"width": 0}, "fillcolor": colour("band")}  # fmt: skip
    shapes, notes = [band], []
    if lower > 0:
        shapes.append(_edge(left, "lower"))
        notes.append(_end(left, f"≥ {down(lower)}", "right"))
    else:
        notes.append({**_end(low, "← down to 0", "left"), "y": 1})
    if upper is not None and upper > 0:
        shapes.append(_edge(right, "accent"))
        notes.append(_end(right, f"≤ {up(upper)}", "left"))
    elif upper is None:
        notes.append(
            _end(high, "no finite bound →" if facts.upper_status == "unbounded" else "no upper bound →", "right")
        )
    marks = _candidate_marks(facts)
    names = [plain(c.method, 24) for c in rows][::-1]
    height = 96 + 34 * max(len(rows), 1)
    layout = figure_layout(
        height, margin={"l": 8, "r": 8, "t": 34, "b": 34}, shapes=shapes, annotations=notes,
        xaxis=_axis(low, high, automargin=True),
        yaxis={"range": [-0.6, max(len(rows), 1) - 0.4], "tickvals": list(range(len(rows))), "ticktext": names, "showgrid": False,
               "zeroline": False, "automargin": True, "fixedrange": True},
    )  # fmt: skip
    return {"data": [marks], "layout": layout}


def _candidate_marks(facts: Facts) -> Figure:
    rows = [c for c in facts.candidates if c.value is not None and 0 < c.value < math.inf][:40][::-1]
    chosen = [c.outcome == "chosen" for c in rows]
    return {
        "type": "scatter", "mode": "markers", "x": [_log(c.value) for c in rows if c.value], "y": list(range(len(rows))),
        "text": [f"{plain(c.method)}: {up(c.value or 0)} ({c.outcome})" for c in rows], "hovertemplate": "%{text}<extra></extra>",
        "cliponaxis": False,
        "marker": {"size": 13, "symbol": ["diamond" if best else "diamond-open" for best in chosen],
                   "color": [colour("accent") if best else colour("muted") for best in chosen], "line": {"width": 2}},
    }  # fmt: skip


def _edge(x: float, tone: str) -> Figure:
    return {"type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1.0,
            "line": {"width": 2, "color": colour(tone)}}  # fmt: skip


def _end(x: float, text: str, anchor: str) -> Figure:
    return {"x": x, "y": 1, "xref": "x", "yref": "paper", "xanchor": anchor, "yanchor": "bottom", "text": text, "showarrow": False,
            "font": {"size": 14}}  # fmt: skip


def layer_chart(facts: Facts) -> Figure | None:
    """Bars for the norm of every layer, and below them what bounds the network up to each; None without layers."""
    layers = facts.layers
    if not layers:
        return None
    reaches = [layer.reach for layer in layers if layer.reach is not None]
    goals = [v for v in (facts.lower, facts.trusted_upper) if v is not None and 0 < v < math.inf]
    low, high = _span([1.0, *(v for layer in layers for v in (layer.lower, layer.upper) if v is not None)], 0.08, 0.3)
    line_low, line_high = _span([1.0, *reaches, *goals], 0.12, 0.6)
    data: list[Figure] = [*(_bars(layers, known, low, high) for known in BARS), _attained(layers, low)]
    bottom = 0.54 if reaches else 0.0
    layout = figure_layout(
        520 if reaches else 300, margin={"l": 8, "r": 8, "t": 60, "b": 44}, showlegend=True, bargap=0.35, barmode="overlay",
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": colour("muted")}},
        xaxis=_layer_axis(layers, "y2" if reaches else "y"),
        yaxis=_axis(low, high, domain=[bottom, 1], automargin=True, zeroline=True, zerolinecolor=colour("muted"),
                    title={"text": "norm of the layer", "font": {"color": colour("muted"), "size": 12}}),
    )  # fmt: skip
    if reaches:
        data.append(_reach_line(layers))
        layout["yaxis2"] = _axis(
            line_low, line_high, domain=[0, bottom - 0.1], automargin=True,
            title={"text": "bound up to here", "font": {"color": colour("muted"), "size": 12}},
        )  # fmt: skip
        layout["shapes"], layout["annotations"] = _goals(facts)
    return {"data": data, "layout": layout}


def _layer_axis(layers: Sequence[Layer], anchor: str) -> Figure:
    axis: Figure = {"anchor": anchor, "range": [0.4, len(layers) + 0.6], "showgrid": False, "zeroline": False, "fixedrange": True,
                    "tickfont": {"color": colour("muted")}, "automargin": True,
                    "title": {"text": "layer (number in the table below)", "font": {"color": colour("muted"), "size": 12}}}  # fmt: skip
    step = max(1, math.ceil(len(layers) / 12))
    return axis | {"tickvals": [layer.number for layer in layers if (layer.number - 1) % step == 0]}


BARS = {
    "tight": ("upper norm, tight", "accent", ""),
    "slack": ("upper norm, with slack", "slack", "/"),
    "unknown": ("upper norm, lower one not known", "muted", "."),
}
"""What is known of a layer: the legend's name, colour and pattern of its bar."""


def _knowledge(layer: Layer) -> str:
    return "tight" if layer.tight else "unknown" if layer.lower is None else "slack"


def _bars(layers: Sequence[Layer], known: str, low: float, high: float) -> Figure:
    name, tone, shape = BARS[known]
    shown = [layer for layer in layers if _knowledge(layer) == known]
    pattern = {"shape": shape, "size": 6, "solidity": 0.4, "bgcolor": colour(tone), "fgcolor": colour("card")}
    return {
        "type": "bar", "name": name, "x": [layer.number for layer in shown], "width": 0.62, "showlegend": bool(shown),
        "y": [min(max(_log(layer.upper), low), high) if layer.upper > 0 else low for layer in shown],
        "marker": {"color": colour(tone), "line": {"width": 0}, **({"pattern": pattern} if shape else {})},
        "text": [_hover(layer) for layer in shown], "textposition": "none", "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _hover(layer: Layer) -> str:
    least = "not known" if layer.lower is None else down(layer.lower)
    return f"{layer.number}. {plain(layer.name, 48)}<br>upper {up(layer.upper)}<br>lower {least}"


def _attained(layers: Sequence[Layer], low: float) -> Figure:
    shown = [(layer.number, layer.lower) for layer in layers if layer.lower is not None]
    return {
        "type": "scatter", "mode": "markers", "name": "lower norm", "x": [number for number, _ in shown],
        "y": [_log(value) if value > 0 else low for _, value in shown], "hoverinfo": "skip", "showlegend": bool(shown),
        "marker": {"symbol": "line-ew", "size": 16 if len(layers) <= 40 else 6, "line": {"width": 2.5, "color": colour("lower")}},
    }  # fmt: skip


def _reach_line(layers: Sequence[Layer]) -> Figure:
    shown = [layer for layer in layers if layer.reach is not None and 0 < layer.reach < math.inf]
    return {
        "type": "scatter", "mode": "lines+markers" if len(layers) <= 40 else "lines", "name": "bound up to the layer", "yaxis": "y2",
        "x": [layer.number for layer in shown], "y": [_log(layer.reach or 1) for layer in shown],
        "line": {"color": colour("accent"), "width": 2.5}, "marker": {"size": 7, "color": colour("accent")}, "showlegend": False,
        "text": [f"{layer.number}. {plain(layer.name, 48)}<br>bound up to here {up(layer.reach or 0)}" for layer in shown],
        "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _goals(facts: Facts) -> tuple[list[Figure], list[Figure]]:
    """The attained lower bound as a dashed line across the lower panel."""
    if facts.lower <= 0 or facts.lower_status in ("rejected", "damaged"):
        return [], []
    y = _log(facts.lower)
    line = {"type": "line", "xref": "paper", "yref": "y2", "x0": 0, "x1": 1, "y0": y, "y1": y,
            "line": {"width": 2, "dash": "dash", "color": colour("lower")}}  # fmt: skip
    note = {"x": 0, "y": y, "xref": "paper", "yref": "y2", "xanchor": "left", "yanchor": "bottom", "showarrow": False,
            "xshift": 6, "text": f"attained by a pair of inputs: {down(facts.lower)}", "font": {"size": 12, "color": colour("lower")}}  # fmt: skip
    return [line], [note]
