"""Bounds in linf and l1 on small boxes, beside the exact constant as closely as `branch` encloses it.

    python benchmarks/local.py [--only WORD] [--budget SECONDS] [--save]

Small dense networks with ReLU: `He a-b-c` with Gaussian weights of variance 2/in (seed 0), the others trained on the spot on data that come with
scikit-learn, scaled to mean 0 and variance 1. Regions are boxes of half-widths RADII around a point of the data (0.1 in every coordinate for
generated networks). What is measured is the bound of `absolute`, of `local` without quadratic inequalities and with one box (linear relaxation of
the Jacobian, what others offer), of `local` as it is, and of `branch`; and the largest quotient that any of them attained. The exact
constant lies between that and the smallest certified bound. One process, one thread, float64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from environment import environment
from sklearn import datasets
from tightness import he
from torch import Tensor, nn

from lipscope import bound, load
from lipscope.bounds.local.jacobian import Part
from lipscope.bounds.local.method import enclose_part
from lipscope.bounds.method import Effort
from lipscope.bounds.problem import pose
from lipscope.claims.claim import Claim
from lipscope.claims.regions import Box

RADII = (0.02, 0.1, 0.5)
GENERATED = [
    (2, 40, 40, 2), (4, 16, 16, 2), (5, 20, 20, 20, 3), (10, 20, 20, 3),
]  # fmt: skip
TRAINED: dict[str, tuple[Callable[..., object], tuple[int, ...]]] = {
    "iris": (datasets.load_iris, (4, 6, 6, 3)),
    "diabetes": (datasets.load_diabetes, (10, 20, 20, 1)),
    "wine": (datasets.load_wine, (13, 16, 16, 3)),
    "digits": (datasets.load_digits, (64, 24, 24, 10)),
}
RESULTS = Path(__file__).parent / "results" / "local.json"


def generated(dims: tuple[int, ...]) -> tuple[nn.Sequential, Tensor]:
    return he(dims), torch.full((dims[0],), 0.1, dtype=torch.float64)


def trained(source: Callable[..., object], dims: tuple[int, ...]) -> tuple[nn.Sequential, Tensor]:
    """A network that Adam has fitted to the whole data in 200 epochs, and the first point of the data."""
    data, target = source(return_X_y=True)  # type: ignore[misc]
    x = torch.tensor((data - data.mean(0)) / np.maximum(data.std(0), 1e-6))
    regression = dims[-1] == 1
    y = torch.tensor((target - target.mean()) / target.std())[:, None] if regression else torch.tensor(target)
    loss = nn.MSELoss() if regression else nn.CrossEntropyLoss()
    torch.manual_seed(0)
    model = nn.Sequential(*[part for a, b in pairwise(dims) for part in (nn.Linear(a, b), nn.ReLU())][:-1]).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(200):
        for batch in torch.split(torch.randperm(len(x)), 64):
            optimizer.zero_grad()
            loss(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model.eval(), x[0]


def networks() -> dict[str, Callable[[], tuple[nn.Sequential, Tensor]]]:
    found: dict[str, Callable[[], tuple[nn.Sequential, Tensor]]] = {}
    for dims in GENERATED:
        found[f"He {'-'.join(map(str, dims))}"] = partial(generated, dims)
    for name, (source, dims) in TRAINED.items():
        found[f"{name} {'-'.join(map(str, dims))}"] = partial(trained, source, dims)
    return found


def relaxed(module: nn.Sequential, norm: str, region: Box) -> dict[str, object]:
    """The norm of the Jacobian's linear relaxation on the whole box."""
    problem = pose(load(module, input_shape=(len(region.lower),)).graph, Claim(norm, region))  # type: ignore[arg-type]
    began = time.process_time()
    effort = Effort(deadline=time.monotonic() + 60)
    found = enclose_part(Part(problem, 0, problem.graph.output), problem.norm, effort, may_split=False)
    return {"value": found.value, "cpu seconds": round(time.process_time() - began, 4), "status": "computed"}


def measured(module: nn.Sequential, norm: str, region: Box, budget: float) -> dict[str, object]:
    """Every method's value, seconds and status, and the largest quotient attained."""
    graph = load(module, input_shape=(len(region.lower),))
    methods: dict[str, dict[str, object]] = {"linear relaxation": relaxed(module, norm, region)}
    lower = 0.0
    for method in ("absolute", "local", "branch"):
        cpu = time.process_time()
        result = bound(graph, norm, region, method=method, budget=budget)  # type: ignore[arg-type]
        seconds = round(time.process_time() - cpu, 3)
        lower = max(lower, result.lower)
        methods[method] = {
            "value": result.upper.value, "cpu seconds": seconds, "status": result.upper.status,
            "check seconds": None if result.verdict is None else result.verdict["seconds"], "note": result.candidates[-1].note or None,
        }  # fmt: skip
    proved = [float(m["value"]) for m in methods.values() if m["status"] == "certified" and m["value"] is not None]  # type: ignore[arg-type]
    return {"lower": lower, "best certified": min(proved), "methods": methods}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD")
    parser.add_argument("--budget", type=float, default=8.0)
    parser.add_argument("--save", action="store_true", help=f"to {RESULTS}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    before, rows = environment(), []
    for name, make in networks().items():
        if options.only not in name:
            continue
        module, center = make()
        for norm in ("linf", "l1"):
            for radius in RADII:
                region = Box(center.numpy() - radius, center.numpy() + radius)
                row = {"network": name, "norm": norm, "radius": radius} | measured(module, norm, region, options.budget)
                rows.append(row)
                ratios = {
                    m: round(e["value"] / row["best certified"], 3) for m, e in row["methods"].items() if e["value"]
                }  # type: ignore[attr-defined]
                closed = row["best certified"] / max(row["lower"], 1e-300)  # type: ignore[operator, call-overload]
                print(
                    name,
                    norm,
                    radius,
                    f"{row['best certified']:.5g}",
                    f"above attained x{closed:.4f}",
                    ratios,
                    flush=True,
                )
                if options.save:
                    RESULTS.write_text(
                        json.dumps({"environment": before, "budget": options.budget, "rows": rows}, indent=1) + "\n"
                    )
    within = [row["methods"]["local"]["value"] / row["lower"] for row in rows]  # type: ignore[index, operator]
    print(
        f"local over attained: median {statistics.median(within):.3f}, {sum(w <= 1.5 for w in within)} of {len(within)} within 1.5"
    )
    refused = [m for row in rows for m in row["methods"].values() if m["status"] not in ("certified", "computed")]  # type: ignore[attr-defined]
    return int(bool(refused))


if __name__ == "__main__":
    sys.exit(main())
