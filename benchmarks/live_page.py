"""How long the live page takes: a run of 100,000 logged values, `lipscope ui`, and Chromium until every chart is drawn.

    pip install playwright
    python benchmarks/live_page.py --save              # needs the program chromium

The run is written into a store by the recorder that training uses: 10 layers, every quantity that the page draws, and as many
observed steps as make the number of values. Then `lipscope ui` is started as a user would, and a fresh browser context opens
its address again and again. Measured is the time from asking for the address until all charts are there, and in it the time
until the document has arrived; the first load is given by itself, because the server reads the whole store then.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import environment

from lipscope.claims.quantity import Reading
from lipscope.dynamics.recorder import Entry, Recorder
from lipscope.dynamics.store import open_run

RESULTS = Path(__file__).parent / "results" / "live_page.json"
LAYERS = tuple(f"features.{k}" for k in range(10))
TERMS = ("flow", "noise", "noise_curvature", "flow_curvature", "cross", "log_correction", "remainder")
CHARTS = "document.querySelectorAll('[data-figure]').length"
DRAWN = (
    "[...document.querySelectorAll('[data-figure]')].filter(e => e.querySelector("
    "'.main-svg .xtick, .main-svg .trace, .main-svg .points, .main-svg .hm')).length"
)
TARGET = 2.0
"""Seconds until the charts of a loaded page are drawn."""


def entry(step: int) -> Entry:
    """About what the observer writes at a step at which everything is due."""
    rows: list[tuple[str, Reading]] = []

    def put(quantity: str, name: str, value: float, certainty: str = "measured", layer: str = "") -> None:
        rows.append((quantity, Reading(name, value, certainty, layer, 32)))  # type: ignore[arg-type]

    wave = 1 + 0.05 * math.sin(step / 7) + 0.5 * math.log1p(step)
    for layer in LAYERS:
        put("layer-norms", "norm", wave, "estimate", layer)
        put("layer-norms", "norm_upper", 1.1 * wave, "computed", layer)
        put("weights", "update_norm", 0.01 / wave, layer=layer)
        put("identity", "change", 0.001 * wave, layer=layer)
    put("layer-norms", "log_product", 10 * math.log(wave), "estimate")
    for k, name in enumerate(TERMS):
        put("identity", name, 1e-3 * wave)
        put("identity", f"total_{name}", (k - 2) * 0.01 * wave)
    put("identity", "change", 0.001 * wave)
    put("identity", "total_change", sum((k - 2) * 0.01 * wave for k in range(len(TERMS))))
    put("identity", "residual", 1e-6)
    put("identity", "observed_share", 1.0)
    for name, share in (("lower", 1.0), ("mean", 0.8), ("rms", 0.85), ("p50", 0.7), ("p99", 0.95)):
        put("probe-lipschitz", name, share * wave)
    for name in ("probe_loss", "accuracy", "margin_per_lipschitz"):
        put("margins", name, 1 / wave)
    if step % 50 == 0:
        put("upper", "upper", 3 * wave, "computed")
        for number in range(1, 11):
            put("spectrum", f"singular_value_{number}", wave / number, layer=LAYERS[0])
        for name in ("rank_1e-2", "rank_1e-4", "rank_1e-6", "stable_rank", "entropy_rank"):
            put("spectrum", name, 5 + wave)
    put("observer", "overhead", 0.04)
    put("observer", "overhead_recent", 0.03 + 0.01 * math.sin(step))
    return Entry(step, 1.7e9 + step, rows)


def write_run(folder: Path, values: int) -> int:
    """A run with at least so many values; how many there are."""
    layers = [{"name": name, "kind": "Linear", "shape": [64, 64], "parameters": 4160} for name in LAYERS]
    recorder = Recorder(
        folder,
        {"model": {"class": "Sequential", "parameters": 41600, "layers": layers}},
        {"settings": {"preset": "default", "budget": 0.05}},
    )
    step = written = 0
    while written < values:
        found = entry(step)
        recorder.record(found)
        recorder.flush()
        written, step = written + len(found.readings), step + 1
    recorder.close("finished")
    with open_run(folder) as run:
        return sum(len(series) for series in run.all_series())


def load(browser: object, address: str) -> dict[str, float]:
    """One visit by a browser context without a cache, in seconds."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})  # type: ignore[attr-defined]
    page = context.new_page()
    began = time.perf_counter()
    page.goto(address, wait_until="commit")
    # The page's own policy forbids the browser to evaluate text, so it is asked from outside.
    while page.evaluate("document.readyState") == "loading" or page.evaluate(CHARTS) == 0:
        if time.perf_counter() - began > 120:
            raise SystemExit("the page had no charts within two minutes")
        page.wait_for_timeout(5)
    while page.evaluate(DRAWN) < page.evaluate(CHARTS):
        if time.perf_counter() - began > 120:
            raise SystemExit("the charts were not drawn within two minutes")
        page.wait_for_timeout(5)
    drawn, charts = time.perf_counter() - began, page.evaluate(CHARTS)
    timing = "performance.getEntriesByType('navigation')[0]"
    arrived, size = page.evaluate(f"{timing}.responseEnd") / 1000, page.evaluate(f"{timing}.transferSize")
    context.close()
    return {"document": arrived, "drawn": drawn, "charts": charts, "bytes": size}


def measure(folder: Path, repeats: int) -> list[dict[str, float]]:
    """Visits to a server of its own."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("expected the program chromium, got none on the path; install it")
    command = [sys.executable, "-m", "lipscope", "ui", str(folder), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            line = server.stderr.readline()
            found = re.search(r"http://\S+", line)
            if found is None:
                raise SystemExit(f"expected an address from lipscope ui, got {line!r}")
            with sync_playwright() as running:
                browser = running.chromium.launch(
                    executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
                )
                visits = []
                for _ in range(repeats + 1):
                    visits.append(load(browser, found[0]))
                    print({k: round(v, 3) for k, v in visits[-1].items()}, file=sys.stderr, flush=True)
                browser.close()
            return visits
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--save", action="store_true", help=f"to {RESULTS}")
    options = parser.parse_args()
    begun = environment()
    with tempfile.TemporaryDirectory() as folder:
        values = write_run(Path(folder) / "run", options.values)
        first, *rest = measure(Path(folder), options.repeats)
    report = {
        "environment": begun, "values": values, "charts": first["charts"], "bytes": first["bytes"],
        "seconds_first": first["drawn"],
        "seconds_drawn": statistics.median(v["drawn"] for v in rest), "all_drawn": [v["drawn"] for v in rest],
        "seconds_document": statistics.median(v["document"] for v in rest),
        "target": TARGET,
    }  # fmt: skip
    report["within_target"] = max(report["seconds_first"], report["seconds_drawn"]) < TARGET
    print(json.dumps(report, indent=1))
    if options.save:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
