"""What watching costs: training with the observer against training without, and with cockpit-for-pytorch, in one run.

    python benchmarks/observer_overhead.py                       # an MLP, a small CNN and a small ViT
    python benchmarks/observer_overhead.py --peers               # and cockpit, if it is installed (without torchvision)

Every round trains the same model on the same batches once plainly and once in each other way, all beside each other: some
tenths of a second of one, then of the next, in an order that rotates, so that a machine that gets slower does so for all. The
ratio of a round is to its own plain training; a second plain training shows what such a ratio is worth. What the observer does before the first and after the last step (it exports
the model, and reads everything once more) is not in the ratio; it is given in seconds. Peak memory is that of processes of
their own, one a way, with the first and last readings in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from environment import environment
from torch import Tensor, nn

from lipscope.dynamics import Observer

RESULTS = Path(__file__).parent / "results" / "observer_overhead.json"
BATCH = 128
EVERY = 64
"""Steps between two of cockpit's readings."""


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, w = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * (w // self.heads) ** -0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, t, w))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class ViT(nn.Module):
    """Patches of 4 x 4 of a 28 x 28 image, two blocks of width 64."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 64, 4, 4)
        self.blocks = nn.Sequential(Block(64, 4), Block(64, 4))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "MLP 784-512-512-10": (mlp, (1, 28, 28), 3000, 100),
    "CNN, 3 convolutions on 3x32x32": (cnn, (3, 32, 32), 800, 10),
    "ViT, 2 blocks of width 64 on 28x28": (ViT, (1, 28, 28), 800, 10),
}
"""Model, shape of an input, steps of a run, and of a block."""

Course = Iterator[None]
"""A training that stops after every block of steps, first before the first step; it ends when asked after the last block."""

Build = Callable[[], nn.Module]
Watch = Callable[[nn.Module, torch.optim.Optimizer, nn.Module, tuple[Tensor, Tensor], Callable[[], float]], object]


class Stopwatch:
    """The clock of one training among several: it stands still while the others have their turn."""

    def __init__(self) -> None:
        self._passed, self._since = 0.0, time.perf_counter()

    def now(self) -> float:
        return self._passed + time.perf_counter() - self._since

    def time(self, course: Course) -> float:
        """Seconds of the course's next block."""
        self._since = time.perf_counter()
        next(course, None)
        seconds = time.perf_counter() - self._since
        self._passed += seconds
        return seconds


@contextmanager
def nothing(*_: object) -> Iterator[None]:
    yield None


def observed(preset: str) -> Watch:
    @contextmanager
    def watch(
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: nn.Module,
        probe: tuple[Tensor, Tensor],
        clock: Callable[[], float],
    ) -> Iterator[None]:
        with tempfile.TemporaryDirectory() as folder:
            with Observer(model, optimizer, loss=loss, probe=probe, run=folder, preset=preset, clock=clock):
                yield None

    return watch


def train(
    watch: Watch, build: Build, shape: tuple[int, ...], steps: int, block: int, clock: Callable[[], float]
) -> Course:
    torch.manual_seed(0)
    model, loss = build(), nn.CrossEntropyLoss()
    batches = [(torch.randn(BATCH, *shape), torch.randint(0, 10, (BATCH,))) for _ in range(16)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    yield
    with watch(model, optimizer, loss, (batches[0][0][:32], batches[0][1][:32]), clock):
        yield
        for step in range(steps):
            x, y = batches[step % len(batches)]
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
            if (step + 1) % block == 0:
                yield


def train_cockpit(
    configuration: str,
    every: int,
    build: Build,
    shape: tuple[int, ...],
    steps: int,
    block: int,
    clock: Callable[[], float],
) -> Course:
    """The same loop as its documentation writes it, tracking every so many steps."""
    from backpack import extend
    from cockpit import Cockpit
    from cockpit.utils import schedules
    from cockpit.utils.configuration import configuration as quantities

    torch.manual_seed(0)
    model = extend(build())
    loss, single = extend(nn.CrossEntropyLoss()), nn.CrossEntropyLoss(reduction="none")
    batches = [(torch.randn(BATCH, *shape), torch.randint(0, 10, (BATCH,))) for _ in range(16)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    yield
    cockpit = Cockpit(model.parameters(), quantities=quantities(configuration, track_schedule=schedules.linear(every)))
    yield
    for step in range(steps):
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        outputs = model(x)
        value = loss(outputs, y)
        info = {"batch_size": BATCH, "individual_losses": single(outputs, y), "loss": value, "optimizer": optimizer}
        with cockpit(step, info=info):
            value.backward(create_graph=cockpit.create_graph(step))
        optimizer.step()
        if (step + 1) % block == 0:
            yield


def race(
    ways: dict[str, Callable[..., Course]], build: Build, shape: tuple[int, ...], steps: int, block: int
) -> tuple[dict[str, float], dict[str, float]]:
    """All ways beside each other, a block of each in turn, whose order rotates: seconds of the loop, and around it."""
    watches = {way: Stopwatch() for way in ways}
    courses = {way: ways[way](build, shape, steps, block, watches[way].now) for way in ways}
    names = list(ways)
    around, loop = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    for way, course in courses.items():
        next(course)
        around[way] += watches[way].time(course)
    for turn in range(steps // block):
        for way in names[turn % len(names) :] + names[: turn % len(names)]:
            loop[way] += watches[way].time(courses[way])
    for way, course in courses.items():
        around[way] += watches[way].time(course)
    return loop, around


def measure(name: str, rounds: int, scale: float, ways: dict[str, Callable[..., Course]]) -> dict[str, object]:
    build, shape, steps, block = MODELS[name]
    steps = max(2, int(steps * scale) // block) * block
    found: dict[str, list[float]] = {way: [] for way in ways}
    extra: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        seconds, around = race(ways, build, shape, steps, block)
        for way in ways:
            found[way].append(seconds[way] / seconds["plain"])
            extra[way].append(around[way])
        print(
            name,
            {way: round(v[-1], 3) for way, v in found.items()},
            f"{1000 * seconds['plain'] / steps:.2f} ms a step",
            flush=True,
        )
    return {
        "model": name, "steps": steps, "block": block, "milliseconds_a_step": 1000 * seconds["plain"] / steps,
        "ratio": {way: statistics.median(v) for way, v in found.items() if way != "plain"},
        "ratios": {way: v for way, v in found.items() if way != "plain"},
        "seconds_before_and_after": {way: statistics.median(v) for way, v in extra.items() if way.startswith("lipscope")},
    }  # fmt: skip


def peak(name: str, preset: str, steps: int) -> float:
    """MB of memory that a process of its own had at most: import, model, data and some steps of training."""
    command = [sys.executable, __file__, "--peak", name, "--way", preset, "--steps", str(steps)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_peak(name: str, preset: str, steps: int) -> None:
    """What `peak` starts."""
    import lipscope.dynamics.track  # noqa: F401 - code is loaded in every way, so that memory of data is compared

    build, shape, _, _ = MODELS[name]
    way = nothing if preset == "plain" else observed(preset)
    for _ in train(way, build, shape, steps, steps, time.perf_counter):
        pass
    # Not getrusage: on Linux its maximum begins with that of the process that started this one.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(line.split()[1]) * 1024 / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of steps")
    parser.add_argument("--only", help="models whose name has this in it")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument(
        "--memory-steps", type=int, default=100, help="of the runs whose peak memory is taken (Linux); 0 for none"
    )
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true", help=f"to {RESULTS}")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.peak:
        return print_peak(options.peak, options.way, options.steps)
    ways: dict[str, Callable[..., Course]] = {"plain": partial(train, nothing), "plain, again": partial(train, nothing)}
    for preset in ("lite", "default", "research"):
        ways[f"lipscope {preset}"] = partial(train, observed(preset))
    rows = []
    for name in MODELS:
        if options.only and options.only not in name:
            continue
        here, begun = dict(ways), environment()
        if options.peers and not name.startswith("ViT"):
            for configuration in ("economy", "business"):
                here[f"cockpit {configuration}, every {EVERY}"] = partial(train_cockpit, configuration, EVERY)
        row = measure(name, options.rounds, options.scale, here) | {
            "environment": begun,
            "rounds": options.rounds,
            "batch": BATCH,
        }
        if options.memory_steps:
            megabytes = {w: peak(name, w, options.memory_steps) for w in ("plain", "lite", "default", "research")}
            row["peak_megabytes"] = megabytes
            row["peak_ratio"] = {w: v / megabytes["plain"] for w, v in megabytes.items() if w != "plain"}
            print(name, {w: round(v) for w, v in megabytes.items()}, "MB at most", flush=True)
        rows.append(row)
    if options.save:  # rows of other models stay as they are
        stored = {row["model"]: row for row in json.loads(RESULTS.read_text())["models"]} if RESULTS.exists() else {}
        stored |= {row["model"]: row for row in rows}
        RESULTS.write_text(json.dumps({"models": [stored[name] for name in MODELS if name in stored]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
