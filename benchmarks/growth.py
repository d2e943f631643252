"""What a bound costs as networks grow: processor seconds of the search against width and against depth, with fitted exponents.

    python benchmarks/growth.py [--quick] [--save] [--output FILE]

Networks are `He 10-...-10` of benchmarks/tightness.py (Gaussian weights of variance 2/in, seed 0), with 4 hidden layers of every width and
with 32 units in every number of hidden layers. Only the search of a method is timed, which includes the proof in floating point: no loading, no lower
bound, no check. One thread, float64; the median of three runs where one takes less than SLOW seconds. A method ends its series with
the size at which a search takes longer than ENOUGH seconds. An exponent is the slope of the least-squares line through the logarithms of the
seconds and the sizes, over the upper half of the sizes: of c * size^exponent, an observation about these sizes and no law. `--save` stores
the result as benchmarks/results/growth.json; `--quick` takes the three smallest sizes, and is not stored.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from environment import environment
from tightness import he

from lipscope import load
from lipscope.bounds.auto import methods
from lipscope.bounds.method import Effort
from lipscope.bounds.problem import pose
from lipscope.claims.claim import Claim

WIDTHS, LAYERS = (16, 32, 64, 128, 256), 4
DEPTHS, WIDTH = (2, 4, 8, 16, 32, 64), 32
METHODS = ("eclipse-fast", "eclipse", "lipsdp")
SLOW, ENOUGH, LIMIT = 5.0, 30.0, 90.0


def search(method: str, hidden: list[int]) -> dict[str, object]:
    """Processor seconds of a method's search on a network with these hidden layers, its value and its remark."""
    graph = load(he((10, *hidden, 10)), input_shape=(10,)).graph
    seconds: list[float] = []
    while len(seconds) < 3 and (not seconds or seconds[0] < SLOW):
        problem = pose(graph, Claim())
        effort = Effort(deadline=time.monotonic() + LIMIT)
        began = time.process_time()
        found = methods(method)[0].run(problem, effort)
        seconds.append(time.process_time() - began)
    return {
        "cpu seconds": round(statistics.median(seconds), 5), "runs": len(seconds), "value": found.value, "note": found.note or None
    }  # fmt: skip


def exponent(points: list[dict[str, object]]) -> float | None:
    """The slope in logarithms over the upper half of the sizes; None for fewer than two."""
    done = [(float(p["size"]), float(p["cpu seconds"])) for p in points if p["value"] is not None]  # type: ignore[arg-type]
    half = done[len(done) // 2 :]
    if len(half) < 2:
        return None
    sizes, seconds = np.log(np.array(half)).T
    return round(float(np.polyfit(sizes, seconds, 1)[0]), 3)


def series(method: str, sizes: tuple[int, ...], against: str) -> dict[str, object]:
    """A method's seconds for growing sizes, as far as it goes in reasonable time."""
    points: list[dict[str, object]] = []
    for size in sizes:
        point = {"size": size, **search(method, [size] * LAYERS if against == "width" else [WIDTH] * size)}
        points.append(point)
        print(against, method, point, flush=True)
        if float(point["cpu seconds"]) > ENOUGH:  # type: ignore[arg-type]
            break
    fitted = exponent(points)
    print(against, method, "exponent", fitted, flush=True)
    return {"method": method, "points": points, "exponent": fitted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--output", type=Path, help="store it here instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before, kept = environment(), 3 if arguments.quick else None
    search("lipsdp", [8, 8])  # imports and first calls are not counted
    result = {
        "environment": before,
        "width": {"hidden layers": LAYERS, "series": [series(m, WIDTHS[:kept], "width") for m in METHODS]},
        "depth": {"units": WIDTH, "series": [series(m, DEPTHS[:kept], "depth") for m in METHODS]},
    }
    stored = Path(__file__).parent / "results" / "growth.json" if arguments.save and not arguments.quick else None
    if path := arguments.output or stored:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
