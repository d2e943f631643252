"""What a spectrum costs: the whole command on a 28 x 28 CNN, and Fourier heat maps beside their forward passes.

    apt install dataset-fashion-mnist
    python benchmarks/spectrum.py --save

The command trains nothing: a CNN that was trained on 4000 images of Fashion-MNIST is measured on 200 test images with 8 bands, proved,
checked, and its spectral importance is computed, in a process of its own. The maps are of all 514 distinct frequencies of 32 x 32 images,
both phases, 256 images; what they are compared with is forward passes of the same number and size on perturbed images that lie ready in
memory. Processor seconds of one thread, taken in turns. Smaller with `--scale`: a share of samples, images and frequencies.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from environment import environment
from torch import Tensor, nn

from lipscope.frequency import band_masks, fourier_heatmap
from lipscope.studies.images import Recipe, images, train

POOL = 32
"""Batches of ready images that forward passes alone go round in."""


def the_command(scale: float) -> dict[str, object]:
    """`lipscope spectrum` as a user types it."""
    _, data = images("fashion-mnist", max(200, int(4000 * scale)), 100)
    model = train(data, Recipe(epochs=4), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        torch.export.save(torch.export.export(model, (torch.zeros(1, 1, 28, 28),)), path)
        samples = max(4, int(200 * scale))
        command = [sys.executable, "-m", "lipscope", "spectrum", str(path), "--data", "fashion-mnist", "--json",
                   "--samples", str(samples), "-o", str(Path(folder) / "out")]  # fmt: skip
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        variables = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
        seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(done.stdout)
    return {
        "samples": samples, "bands": len(found["bands"]), "seconds": round(seconds, 2),
        "processor seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "status": [row["status"] for row in found["bands"]], "measured": [row["measured"] for row in found["bands"]],
        "proved": [row["proved"] for row in found["bands"]], "importance": found["importance"],
    }  # fmt: skip


def networks() -> dict[str, nn.Sequential]:
    """Three sizes; the smallest takes some microseconds for an image, about as much as copying it a few times."""
    torch.manual_seed(0)
    return {
        "two strided convolutions, 8 and 16 channels": nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(784, 10)),
        "two convolutions, 16 and 32 channels": nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(7200, 10)),
        "three convolutions, 32 to 64 channels": nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2), nn.ReLU(), nn.Conv2d(64, 64, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(3136, 10)),
    }  # fmt: skip


def processor_seconds(action: Callable[[], object]) -> float:
    """Of one call."""
    began = time.process_time()
    action()
    return time.process_time() - began


def passes(model: nn.Module, pool: list[Tensor], count: int) -> None:
    """So many forward passes over batches that lie ready."""
    with torch.no_grad():
        for number in range(count):
            model(pool[number % len(pool)]).argmax(dim=1)


def one_map(name: str, model: nn.Module, scale: float, rounds: int, batch: int) -> dict[str, object]:
    """A whole map, its forward passes alone, and a sample of less than a tenth of the passes, in turns."""
    count = max(batch, int(256 * scale))
    x, y = torch.rand(count, 3, 32, 32), torch.randint(10, (count,))
    distinct = max(12, int(514 * scale))
    whole = None if distinct >= 514 else distinct
    part = max(3, (whole or 514) * 48 // 514)
    pool = [torch.rand(batch, 3, 32, 32) for _ in range(POOL)]
    waves = 1024 if whole is None else 2 * distinct  # four of the 514 frequencies have one phase
    number = waves * count // batch
    fourier_heatmap(model, x, y, 4.0, frequencies=3)  # what is loaded at the first call
    rows = []
    for _ in range(rounds):
        alone = processor_seconds(lambda: passes(model, pool, number))
        full = processor_seconds(lambda: fourier_heatmap(model, x, y, 4.0, frequencies=whole, batch_size=batch))
        sampled = processor_seconds(lambda: fourier_heatmap(model, x, y, 4.0, frequencies=part, batch_size=batch))
        rows.append({"passes": round(alone, 3), "map": round(full, 3), "sampled map": round(sampled, 3)})
    ratios, gains = [r["map"] / r["passes"] for r in rows], [r["map"] / r["sampled map"] for r in rows]
    bands = band_masks((32, 32), 4)
    mean, error = fourier_heatmap(model, x, y, 4.0, frequencies=part, batch_size=batch).profile(bands)
    truth = fourier_heatmap(model, x, y, 4.0, frequencies=whole, batch_size=batch).profile(bands)[0]
    return {
        "network": name, "images": count, "frequencies": whole or 514, "sampled frequencies": part, "batch": batch,
        "map over passes": round(sorted(ratios)[rounds // 2], 3), "map over sampled map": round(sorted(gains)[rounds // 2], 2),
        "bands": {"whole": truth.tolist(), "sampled": mean.nan_to_num(-1).tolist(), "standard error": error.nan_to_num(-1).tolist()},
        "rounds": rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of samples, images and frequencies")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="store the result in results/spectrum.json")
    options = parser.parse_args()
    before = environment()
    found: dict[str, object] = {"environment": before, "scale": options.scale, "command": the_command(options.scale)}
    print(json.dumps(found["command"]), flush=True)
    torch.set_num_threads(1)
    maps = []
    for name, model in networks().items():
        maps.append(one_map(name, model.eval(), options.scale, options.rounds, batch=64))
        print({k: v for k, v in maps[-1].items() if k not in ("bands", "rounds")}, flush=True)
    found["heat maps"] = maps
    if options.save:
        path = Path(__file__).parent / "results" / "spectrum.json"
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
