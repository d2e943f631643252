"""Tightness against time: lipscope's methods on generated and trained networks, each bound certified by the checker.

    python benchmarks/tightness.py [--only WORD] [--large] [--peers [FOLDER]] [--output FILE]

Networks named `He a-b-c, seed s` have Gaussian weights of variance 2/in from `numpy.random.default_rng(s)`; the others are trained on
scikit-learn's digits on the spot. One process, one thread, float64. `--large` adds the large generated networks; `--only` keeps the networks whose
names have the word. `--peers` adds the columns of others: LipSDP-Neuron by cvxpy with Clarabel, for chains of at most 130 inputs and units (the extra
`peers`), and eclipse-nn, which needs a folder made by `pip install --no-deps --target FOLDER eclipse-nn==0.1.7`. What is missing says so.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import sys
import time
from collections.abc import Callable
from functools import partial
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
LARGE = [(784, 400, 400, 10), (10, *[60] * 20, 10), (10, *[80] * 50, 10)]
METHODS = ("product", "eclipse-fast", "eclipse", "lipsdp")
SMALL_ENOUGH = 130
"""Inputs and units for which cvxpy finishes in seconds."""


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


Maker = Callable[[], nn.Module]
Row = dict[str, object]


def networks(large: bool) -> dict[str, tuple[Maker, tuple[int, ...]]]:
    found: dict[str, tuple[Maker, tuple[int, ...]]] = {}
    for dims in [*GENERATED, *(LARGE if large else [])]:
        found[f"He {'-'.join(map(str, dims))}, seed 0"] = partial(he, dims), (dims[0],)
    for act in (nn.ReLU, nn.Tanh, nn.GELU):
        for dims in TRAINED:
            found[f"digits {'-'.join(map(str, dims))} {act.__name__}"] = partial(trained, dims, act), (64,)
    found["digits CNN (the demo's)"] = lambda: train_digits(0).model, (1, 8, 8)
    return found


def eclipse_nn(model: nn.Module, method: str) -> Row:
    """eclipse-nn's value for a network of Linear and ReLU."""
    try:
        from eclipse_nn.LipConstEstimator import LipConstEstimator
    except ImportError as missing:
        return {"value": None, "note": f"missing: {missing}"}
    began = time.process_time()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            value = float(LipConstEstimator(model=copy.deepcopy(model).float()).estimate(method=method))
    except Exception as failure:  # noqa: BLE001 (a peer's failure is a row of the table)
        return {"value": None, "note": f"{type(failure).__name__}: {failure}"}
    return {"value": value, "cpu seconds": round(time.process_time() - began, 3), "note": "not certified"}


def by_cvxpy(model: nn.Module) -> Row:
    """LipSDP-Neuron of a network of Linear and ReLU by cvxpy with Clarabel, every layer's norm brought to 1 first."""
    try:
        import cvxpy
    except ImportError as missing:
        return {"value": None, "note": f"missing: {missing}"}
    weights = [m.weight.detach().double().numpy() for m in model if isinstance(m, nn.Linear)]
    starts = np.cumsum([0, *(w.shape[1] for w in weights)])
    if starts[-1] > SMALL_ENOUGH:
        return {"value": None, "note": f"not tried: more than {SMALL_ENOUGH} inputs and units"}
    began = time.process_time()
    norms = [float(np.linalg.norm(w, 2)) for w in weights]
    pick = [np.eye(int(starts[-1]))[a:b] for a, b in pairwise(starts)]
    rho = cvxpy.Variable(nonneg=True)
    last = weights[-1] / norms[-1] @ pick[-1]
    matrix = rho * (pick[0].T @ pick[0]) - last.T @ last
    for k, (w, norm) in enumerate(zip(weights[:-1], norms, strict=False)):
        u, v = pick[k + 1], w / norm @ pick[k]
        product = u.T @ cvxpy.diag(cvxpy.Variable(len(w), nonneg=True)) @ (v - u)
        matrix = matrix - product - product.T
    problem = cvxpy.Problem(cvxpy.Minimize(rho), [(matrix + matrix.T) / 2 >> 0])
    try:
        problem.solve(solver="CLARABEL")
    except cvxpy.SolverError as failure:
        return {"value": None, "note": str(failure)}
    seconds = round(time.process_time() - began, 3)
    return {"value": float(np.sqrt(rho.value) * np.prod(norms)), "cpu seconds": seconds, "note": problem.status}


def measured(name: str, module: nn.Module, shape: tuple[int, ...], peers: bool) -> Row:
    """One row: every method's value, status and times; the largest lower bound; the peers where they apply."""
    model = load(module, input_shape=shape)
    row: Row = {"network": name}
    for method in METHODS:
        began = time.process_time()
        result = bound(model, "l2", method=method, budget=120)
        candidate = result.candidates[-1]
        row[method] = {
            "value": result.upper.value, "status": result.upper.status, "seconds": round(candidate.seconds, 3),
            "cpu seconds with lower bound and check": round(time.process_time() - began, 3),
            "check seconds": None if result.verdict is None else result.verdict["seconds"], "note": candidate.note or None,
        }  # fmt: skip
        row["lower"] = max(float(row.get("lower", 0.0)), result.lower)  # type: ignore[arg-type]
    if peers and ("ReLU" in name or name.startswith("He")):
        row["cvxpy with Clarabel"] = by_cvxpy(module)
        for method in ("ECLipsE_Fast", "ECLipsE"):
            row[f"eclipse-nn {method}"] = eclipse_nn(module, method)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORD")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--peers", nargs="?", const="", metavar="FOLDER")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "tightness.json")
    arguments = parser.parse_args()
    if arguments.peers:
        sys.path.append(arguments.peers)
    torch.set_num_threads(1)
    before, rows = environment(), []
    for name, (make, shape) in networks(arguments.large).items():
        if arguments.only not in name:
            continue
        row = measured(name, make(), shape, arguments.peers is not None)
        rows.append(row)
        values = {key: part["value"] for key, part in row.items() if isinstance(part, dict)}
        print(name, row["lower"], values, flush=True)
    arguments.output.write_text(json.dumps({"environment": before, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
