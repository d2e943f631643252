"""Pictures and table of the documentation from stored results; measures nothing.

    python benchmarks/plots.py [--results FOLDER] [--images FOLDER] [--page FILE]

Draws docs/images/tightness.svg and docs/images/growth.svg from tightness.json and growth.json in benchmarks/results, and writes the parts of docs/tightness.md,
also from branch.json and local.json, that stand between `<!-- NAME: begin -->` and `<!-- NAME: end -->`. A result that is not there leaves its picture and its parts as they are.
The pictures have no background, and one grey for all text that reads on white and on black.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

mpl.use("svg")
ROOT = Path(__file__).parent.parent
GREY = "#808080"
STYLE = {
    "font.size": 8, "text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "grid.color": GREY, "grid.alpha": 0.25, "grid.linewidth": 0.5, "legend.frameon": False, "axes.spines.top": False,
    "axes.spines.right": False, "svg.fonttype": "none", "svg.hashsalt": "lipscope", "font.family": "sans-serif",
}  # fmt: skip
MARKS = {
    "product": ("o", "#8c8c8c"), "eclipse-fast": ("s", "#3b8bd0"), "eclipse": ("D", "#1fa187"), "lipsdp": ("*", "#d95f30"),
    "cvxpy with Clarabel": ("+", "#b07cc6"), "cvxpy with SCS": ("x", "#b07cc6"),
    "eclipse-nn ECLipsE_Fast": ("1", "#c9a227"), "eclipse-nn ECLipsE": ("2", "#c9a227"),
}  # fmt: skip
"""Full marks are certified bounds, strokes are values that nothing proves."""


def tightness(result: dict[str, Any], path: Path) -> None:
    """Seconds against the ratio to the best certified bound: one mark per network and method."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    for method, (mark, colour) in MARKS.items():
        entries = [row["methods"][method] for row in result["rows"] if method in row["methods"]]
        points = [(e["cpu seconds"], e["ratio to best"]) for e in entries if e.get("ratio to best")]
        if not points:
            continue
        proved = all(e["status"] == "certified" for e in entries if e.get("ratio to best"))
        label = f"{method} ({len(points)})" + ("" if proved else ", not proved")
        axes.plot(
            *zip(*points, strict=True),
            mark,
            color=colour,
            label=label,
            markersize=9 if mark in "*12+x" else 5,
            alpha=0.85,
        )
    logarithmic(axes)
    axes.set_xlabel("processor seconds of the search")
    axes.set_ylabel("value / smallest certified bound")
    axes.axhline(1, color=GREY, linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=3, title="method (number of networks)", title_fontsize=8)
    saved(figure, path)


def growth(result: dict[str, Any], path: Path) -> None:
    """Seconds against width and against depth, with the fitted exponents in the legends."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    titles = {
        "width": f"{result['width']['hidden layers']} hidden layers", "depth": f"{result['depth']['units']} units in every layer"
    }  # fmt: skip
    for axes, against in zip(figure.subplots(1, 2, sharey=True), titles, strict=True):
        sizes: set[int] = set()
        for series in result[against]["series"]:
            mark, colour = MARKS[series["method"]]
            points = [(p["size"], p["cpu seconds"]) for p in series["points"] if p["value"] is not None]
            sizes |= {size for size, _ in points}
            fitted = "" if series["exponent"] is None else f", exponent {series['exponent']:.1f}"
            axes.plot(
                *zip(*points, strict=True), marker=mark, color=colour, label=series["method"] + fitted, linewidth=1
            )
        logarithmic(axes)
        axes.set_xticks(sorted(sizes), [str(size) for size in sorted(sizes)])
        axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        axes.set_xlabel({"width": "units in every hidden layer", "depth": "hidden layers"}[against])
        axes.set_title(titles[against], fontsize=8)
        axes.legend(loc="upper left")
        axes.margins(y=0.25)
    figure.axes[0].set_ylabel("processor seconds of the search")
    saved(figure, path)


def logarithmic(axes: Axes) -> None:
    """Both axes with logarithmic scales, every decade named."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(10, numticks=12))
        axis.set_major_formatter(LogFormatterSciNotation())
        axis.set_minor_formatter(NullFormatter())
    axes.grid(which="major")


def saved(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    print(path)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def short(name: str) -> str:
    """The network's name with repeated widths counted: 10-16-16-16-5 is 10, 3 x 16, 5."""
    return re.sub(r"(\d+)((?:-\1)+)(?=-)", lambda m: f"{m[2].count('-') + 1}x{m[1]}", name).removesuffix(", seed 0")


def cell(entry: dict[str, Any] | None) -> str:
    """A method's ratio and seconds; marked where the value is not certified, breaks its own inequality or is a fall-back's."""
    if entry is None:
        return ""
    if entry["value"] is None:
        return NO_VALUE.get(reason(entry), "–")
    mark = "" if entry["status"] == "certified" else "?" + ("!" if entry.get("violates its inequality") else "")
    mark += "\\*" if "Falling back" in (entry.get("note") or "") else ""
    ratio = entry["ratio to best"]
    shown = f"{ratio:.4f}" if ratio < 10 else f"{ratio:.3g}"
    return f"{shown}{mark} ({entry['cpu seconds']:.2g} s)"


NO_VALUE = {"not tried": "too large", "not done": "too slow"}


def reason(entry: dict[str, Any]) -> str:
    return " ".join((entry.get("note") or "").replace(":", "").split()[:2])


def tightness_table(result: dict[str, Any]) -> str:
    """A row per network: best certified and attained values, then ratio and seconds of each method."""
    used = [m for m in MARKS if any(m in row["methods"] for row in result["rows"])]
    rows = [
        [short(row["network"]), f"{row['best certified']:.5g}", f"{row['lower']:.5g}", *(cell(row["methods"].get(m)) for m in used)]
        for row in result["rows"]
    ]  # fmt: skip
    return table(["network", "best certified", "attained", *used], rows)


def tightness_summary(result: dict[str, Any]) -> str:
    """How many values each method has, how many are certified, and how many of those that solve an inequality violate it."""
    rows = []
    for method in MARKS:
        entries = [row["methods"][method] for row in result["rows"] if method in row["methods"]]
        values = [e for e in entries if e["value"] is not None]
        ratios = sorted(e["ratio to best"] for e in values)
        checks = [e for e in values if "violates its inequality" in e]
        broken = sum(e["violates its inequality"] for e in checks)
        proved = sum(e["status"] == "certified" for e in values)
        if entries:
            rows.append(
                [method, str(len(entries)), str(len(values)), str(proved), f"{broken} of {len(checks)}" if checks else "",
                 f"{ratios[len(ratios) // 2]:.4g}" if ratios else "", f"{sum(e['cpu seconds'] for e in values):.3g}"]
            )  # fmt: skip
    return table(
        [
            "method",
            "networks",
            "with a value",
            "certified",
            "solutions that violate the inequality",
            "median ratio",
            "seconds in all",
        ],
        rows,
    )


def growth_table(result: dict[str, Any]) -> str:
    """Seconds and exponents of every series."""
    parts = []
    for against, unit in (("width", "units"), ("depth", "hidden layers")):
        series = result[against]["series"]
        sizes = sorted({p["size"] for s in series for p in s["points"]})
        rows = []
        for s in series:
            seconds = {p["size"]: f"{p['cpu seconds']:.2g}" for p in s["points"] if p["value"] is not None}
            fitted = "" if s["exponent"] is None else f"{s['exponent']:.2f}"
            rows.append([s["method"], *(seconds.get(size, "–") for size in sizes), fitted])
        parts.append(table(["seconds for", *(f"{size} {unit}" for size in sizes), "exponent"], rows))
    return "\n\n".join(parts)


def branch_table(result: dict[str, Any]) -> str:
    """A row per network and norm, over its three regions."""
    rows = []
    for name, norm in dict.fromkeys((row["network"], row["norm"]) for row in result["rows"]):
        cases = [row for row in result["rows"] if (row["network"], row["norm"]) == (name, norm)]
        error = f"{max(abs(row['error']) for row in cases):.0e}" if "error" in cases[0] else ""
        gap = max(row["upper"] / row["lower"] - 1 for row in cases)
        certified = sum(row["status"] == "certified" for row in cases)
        rows.append(
            [name, norm, error, f"{gap:.1e}", f"{max(row['seconds'] for row in cases):.2g}", f"{max(row['check'] for row in cases):.2g}",
             f"{certified} of {len(cases)}"]
        )  # fmt: skip
    head = [
        "network",
        "norm",
        "off the exact constant",
        "above the attained quotient",
        "seconds",
        "seconds of the check",
        "certified",
    ]
    return table(head, rows)


def local_table(result: dict[str, Any]) -> str:
    """A row per network, norm and half-width: every bound over the largest quotient attained."""
    used = list(result["rows"][0]["methods"])
    rows = [
        [row["network"], row["norm"], f"{row['radius']:g}", f"{row['lower']:.4g}",
         *(f"{row['methods'][m]['value'] / row['lower']:.4g} ({row['methods'][m]['cpu seconds']:.2g} s)" for m in used)]
        for row in result["rows"]
    ]  # fmt: skip
    return table(["network", "norm", "half-width", "attained", *used], rows)


def local_summary(result: dict[str, Any]) -> str:
    """For every method, how near it comes to what is attained."""
    rows = []
    for method in result["rows"][0]["methods"]:
        ratios = sorted(row["methods"][method]["value"] / row["lower"] for row in result["rows"])
        near = sum(ratio <= 1.5 for ratio in ratios)
        rows.append([method, f"{ratios[len(ratios) // 2]:.3g}", f"{ratios[-1]:.3g}", f"{near} of {len(ratios)}"])
    return table(["method", "median", "largest", "within 1.5"], rows)


def place(result: dict[str, Any]) -> str:
    """The environment of a run, in a line."""
    return (
        "Measured with "
        + ", ".join(f"{key} {value}" for key, value in result["environment"].items() if value is not None)
        + "."
    )


def written(page: Path, parts: dict[str, str]) -> None:
    """The page with its parts replaced; a part whose markers are missing is an error."""
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
        before, marked, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (marked and closed):
            raise SystemExit(f"expected the lines {begin.strip()} and {end.strip()} in {page}")
        text = before + begin + "\n" + part + "\n" + end + after
    page.write_text(text, encoding="utf-8")
    print(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "tightness.md")
    arguments = parser.parse_args()
    makers = {
        "tightness": (tightness, {"table": tightness_table, "summary": tightness_summary}),
        "growth": (growth, {"growth": growth_table}),
        "branch": (None, {"branch": branch_table}),
        "local": (None, {"local": local_table, "local summary": local_summary}),
    }
    parts: dict[str, str] = {}
    with mpl.rc_context(STYLE):
        for name, (draw, texts) in makers.items():
            source = arguments.results / f"{name}.json"
            if not source.exists():
                print(f"{source} is missing: its picture and its parts stay as they are")
                continue
            result = json.loads(source.read_text(encoding="utf-8"))
            if draw is not None:
                draw(result, arguments.images / f"{name}.svg")
            parts |= {key: make(result) for key, make in texts.items()} | {f"{name} environment": place(result)}
    written(arguments.page, parts)


if __name__ == "__main__":
    main()
