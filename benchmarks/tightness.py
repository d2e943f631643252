"""Tightness against time: lipscope's methods on generated and trained networks, each bound certified by the checker.

    python benchmarks/tightness.py [--peers FOLDER]

Networks named `He a-b-c, seed s` have Gaussian weights of variance 2/in from `numpy.random.default_rng(s)`; the others are trained on
scikit-learn's digits on the spot. One process, one thread, float64. `--peers` is a folder made by
`pip install --no-deps --target FOLDER eclipse-nn==0.1.7` beside an installed cvxpy; without it those columns say that it is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from environment import environment
from sklearn.datasets import load_digits
from torch import nn

from lipscope import bound, load
from lipscope.cli.demo_model import train_digits

GENERATED = [
    (16, 12, 1), (64, 32, 32, 1), (10, 50, 50, 5), (784, 100, 100, 10), (10, *[30] * 5, 5), (10, *[16] * 20, 5),
    (10, *[60] * 10, 5), (100, 400, 400, 10),
]  # fmt: skip
TRAINED = [(64, 48, 10), (64, 24, 24, 10), (64, 16, 16, 16, 16, 10)]
METHODS = ("product", "eclipse-fast", "lipsdp")


def he(dims: tuple[int, ...], seed: int = 0) -> nn.Sequential:
    generator = np.random.default_rng(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(dims):
        layer = nn.Linear(a, b).double()
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(generator.standard_normal((b, a)) * np.sqrt(2 / a)))
            layer.bias.copy_(torch.from_numpy(0.1 * generator.standard_normal(b)))
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def trained(dims: tuple[int, ...], act: type[nn.Module]) -> nn.Sequential:
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32)[:1400], torch.tensor(digits.target)[:1400]
    torch.manual_seed(0)
    layers = [part for a, b in pairwise(dims) for part in (nn.Linear(a, b), act())][:-1]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(60):
        for batch in torch.split(torch.randperm(1400), 64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model.eval()


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    found: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}
    for dims in GENERATED:
        found[f"He {'-'.join(map(str, dims))}, seed 0"] = he(dims), (dims[0],)
    for act in (nn.ReLU, nn.Tanh, nn.GELU):
        for dims in TRAINED:
            found[f"digits {'-'.join(map(str, dims))} {act.__name__}"] = trained(dims, act), (64,)
    found["digits CNN (the demo's)"] = train_digits(0).model, (1, 8, 8)
    return found


def peer(model: nn.Module, method: str) -> dict[str, object]:
    """eclipse-nn's value for a network of Linear and ReLU."""
    try:
        from eclipse_nn.LipConstEstimator import LipConstEstimator
    except ImportError as missing:
        return {"value": None, "note": f"missing: {missing}"}
    began = time.process_time()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            value = float(LipConstEstimator(model=model.float()).estimate(method=method))
    except Exception as failure:  # noqa: BLE001 (a peer's failure is a row of the table)
        return {"value": None, "note": f"{type(failure).__name__}: {failure}"}
    return {"value": value, "cpu seconds": round(time.process_time() - began, 3), "note": "not certified"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "tightness.json")
    arguments = parser.parse_args()
    if arguments.peers:
        sys.path.append(str(arguments.peers))
    torch.set_num_threads(1)
    before, rows = environment(), []
    for name, (module, shape) in networks().items():
        model = load(module, input_shape=shape)
        row: dict[str, object] = {"network": name}
        for method in METHODS:
            result = bound(model, "l2", method=method, budget=120)
            candidate = result.candidates[-1]
            row[method] = {
                "value": result.upper.value, "status": result.upper.status, "seconds": round(candidate.seconds, 3),
                "check seconds": None if result.verdict is None else result.verdict["seconds"], "note": candidate.note or None,
            }  # fmt: skip
            row["lower"] = max(float(row.get("lower", 0.0)), result.lower)  # type: ignore[arg-type]
        if "ReLU" in name or name.startswith("He"):
            row["eclipse-nn ECLipsE_Fast"] = peer(module, "ECLipsE_Fast")
        rows.append(row)
        print(
            name, row["lower"], {m: (row[m]["value"], row[m]["status"], row[m]["seconds"]) for m in METHODS}, flush=True
        )  # type: ignore[index]
    arguments.output.write_text(json.dumps({"environment": before, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
