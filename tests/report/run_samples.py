"""Runs written straight into stores, without training anything."""

from __future__ import annotations

import math
from pathlib import Path

from lipscope.claims.quantity import Reading
from lipscope.dynamics.recorder import Entry, Recorder

LAYERS = ("features.0", "<b>head</b> & tail")
META = {
    "model": {
        "class": "Tiny<script>", "parameters": 1234,
        "layers": [{"name": name, "kind": "Linear", "shape": [3, 3], "parameters": 9} for name in LAYERS],
    },
    "created": 1.7e9,
}  # fmt: skip
INFO = {
    "settings": {"preset": "default", "budget": 0.05, "optimizer": {"class": "SGD"}},
    "environment": {"torch": "2.13.0", "lipscope": "0.1.0"},
    "probe": {"shape": [32, 3], "dtype": "torch.float32", "scale": "inputs in [0, 1]"},
}


def entry(step: int) -> Entry:
    """Everything that the page has a place for, growing with the step."""
    rows: list[tuple[str, Reading]] = []

    def put(
        quantity: str, name: str, value: float, certainty: str = "measured", layer: str = "", note: str = ""
    ) -> None:
        rows.append((quantity, Reading(name, value, certainty, layer, 32, note)))  # type: ignore[arg-type]

    lower = 2 + 0.01 * step
    for name, value in (("lower", lower), ("mean", 0.8 * lower), ("rms", 0.9 * lower)):
        put("probe-lipschitz", name, value)
    for name, value in (("probe_loss", 1 / (1 + step)), ("accuracy", 0.5), ("margin_per_lipschitz", 0.1)):
        put("margins", name, value)
    if step % 10 == 0:
        put("upper", "upper", 2 * lower, "computed")
        for i in range(1, 11):
            put("spectrum", f"singular_value_{i}", lower / i, layer=LAYERS[0])
        put("spectrum", "rank_1e-4", 10.0)
    for k, layer in enumerate(LAYERS):
        put("layer-norms", "norm", 1 + 0.001 * (k + 1) * step, "estimate", layer)
        put("layer-norms", "norm_upper", 2 + 0.001 * step, "computed", layer)
    put("layer-norms", "log_product", math.log(3 + 0.01 * step), "estimate")
    terms = {"flow": 0.02 * step, "noise": -0.005 * step, "noise_curvature": 0.001 * step}
    for name, value in terms.items():
        put("identity", f"total_{name}", value)
    put("identity", "total_change", sum(terms.values()))
    put("identity", "change", 0.016)
    put("identity", "residual", 1e-5)
    put("identity", "observed_share", 1.0)
    put("observer", "overhead", 0.04)
    return Entry(step, 1.7e9 + step, rows)


def write_run(folder: Path, steps: range = range(0, 200, 5), state: str = "finished") -> Path:
    recorder = Recorder(folder, META, INFO)
    for step in steps:
        recorder.record(entry(step))
        recorder.flush()
    recorder.close(state)
    return folder
