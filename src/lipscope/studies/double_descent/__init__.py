"""The constant over the width of a network, across the width at which it can just fit its data. See README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipscope.claims.errors import Interrupted, UsageError
from lipscope.claims.progress import Progress
from lipscope.studies.data import Data, mnist1d
from lipscope.studies.sandwich import sandwich
from lipscope.studies.study import Figures, Study

INPUTS, CLASSES = 40, 10


@dataclass(frozen=True)
class Settings:
    """The experiment.

    Attributes:
        widths: hidden units of the networks, rising; a network has 50 parameters a unit.
        seeds: of the initialisation; everything else is the same for all.
        samples: how many training points, the first of MNIST-1D.
        label_noise: the share of them whose labels are permuted among each other.
        noise_seed: of the choice and the permutation.
        learning_rate: of full-batch gradient descent, after the warm-up.
        momentum: of it.
        warm_up: steps over which the learning rate rises linearly.
        clip: largest norm of the gradient over all parameters.
        stop: norm of the gradient below which training ends.
        steps: after which it ends at the latest.
        low: smallest parameters per sample at which the peak is expected.
        high: largest.
        fall: the least ratio of the peak to the widest network.
    """

    widths: tuple[int, ...] = (2, 6, 10, 12, 14, 20, 40, 128, 512)
    seeds: tuple[int, ...] = (0, 1, 2)
    samples: int = 500
    label_noise: float = 0.2
    noise_seed: int = 0
    learning_rate: float = 0.1
    momentum: float = 0.9
    warm_up: int = 200
    clip: float = 50.0
    stop: float = 0.01
    steps: int = 12_000
    low: float = 0.8
    high: float = 2.0
    fall: float = 10.0

    def __post_init__(self) -> None:
        if not self.widths or self.widths[0] < 1 or any(a >= b for a, b in pairwise(self.widths)) or not self.seeds:
            raise UsageError(f"expected rising widths >= 1 and at least one seed, got {self.widths} and {self.seeds}")
        if not (0 <= self.label_noise <= 1 and 1 <= self.samples <= 4000 and self.steps >= 1 and self.warm_up >= 1):
            raise UsageError(
                "expected a share of label noise, 1 to 4000 samples, at least one step and one step of warm-up, got "
                f"{self.label_noise}, {self.samples}, {self.steps} and {self.warm_up}"
            )


def noisy_labels(labels: Tensor, share: float, seed: int) -> Tensor:
    """The labels with a share of them, chosen at random, permuted among each other; some keep their value by chance."""
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(len(labels))[: round(share * len(labels))]
    result = labels.clone()
    result[chosen] = labels[generator.permutation(chosen)]
    return result


def train(settings: Settings, width: int, seed: int, x: Tensor, y: Tensor) -> tuple[nn.Sequential, int, float]:
    """The trained network, the steps it took and the norm of its last gradient."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(INPUTS, width, bias=False), nn.ReLU(), nn.Linear(width, CLASSES, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
    loss, norm, step = nn.CrossEntropyLoss(), float("inf"), 0
    while step < settings.steps:
        optimizer.param_groups[0]["lr"] = settings.learning_rate * min(1.0, (step + 1) / settings.warm_up)
        optimizer.zero_grad()
        loss(model(x), y).backward()
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), settings.clip))
        if norm < settings.stop:
            break
        optimizer.step()
        step += 1
    return model, step, norm


def one_run(settings: Settings, width: int, seed: int, data: Data, labels: Tensor) -> dict[str, float]:
    """Train one network and measure it: the constants over its training points, the loss on the test set."""
    x = data.x[: settings.samples]
    model, steps, norm = train(settings, width, seed, x, labels)
    with torch.no_grad():
        accuracy = float((model(x).argmax(1) == labels).float().mean())
        test = model(data.x_test)
        return {
            "train_accuracy": accuracy,
            "test_accuracy": float((test.argmax(1) == data.y_test).float().mean()),
            "test_loss": float(nn.functional.cross_entropy(test, data.y_test)),
            **sandwich(model, x),
            "steps": steps,
            "gradient_norm": norm,
        }


def measure(settings: Settings, progress: Progress) -> dict[str, object]:
    """A row a width with means over seeds (and the standard deviation of `c_lower`), the peak, and the fall after it."""
    data = mnist1d()
    labels = noisy_labels(data.y[: settings.samples], settings.label_noise, settings.noise_seed)
    rows: list[dict[str, Any]] = []
    try:
        for i, width in enumerate(settings.widths):
            runs = []
            for j, seed in enumerate(settings.seeds):
                done = (i + j / len(settings.seeds)) / len(settings.widths)
                progress(f"width {width}, seed {seed}", done)
                runs.append(one_run(settings, width, seed, data, labels))
            rows.append(_row(settings, width, runs))
    except KeyboardInterrupt:
        raise Interrupted("stopped while training", {"rows": rows}) from None
    return {"rows": rows, **_shape(rows)}


def _row(settings: Settings, width: int, runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    mean = {key: fmean(run[key] for run in runs) for key in runs[0]}
    spread = stdev(run["c_lower"] for run in runs) if len(runs) > 1 else 0.0
    ratio = (INPUTS + CLASSES) * width / settings.samples
    return {"width": width, "parameters_per_sample": ratio, **mean, "c_lower_sd": spread}


def _shape(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the constant and the test loss peak, and how far the constant falls to the widest network."""
    peak = max(rows, key=lambda row: row["c_lower"])
    return {
        "peak_width": peak["width"],
        "peak_parameters_per_sample": peak["parameters_per_sample"],
        "fall": peak["c_lower"] / rows[-1]["c_lower"],
        "test_loss_peak_width": max(rows, key=lambda row: row["test_loss"])["width"],
    }


def judge(figures: Figures, settings: Settings) -> bool | None:
    """Whether the peak is where it is expected, the fall large enough, and the test loss peaks within one width of it.

    None if the widths do not reach beyond the expected range on both sides: then there is no peak to be found.
    """
    rows = figures["rows"]
    if not all(row["c_avg"] <= row["c_lower"] <= row["c_upper"] for row in rows):
        return False
    ratios = [row["parameters_per_sample"] for row in rows]
    if not (ratios[0] < settings.low and ratios[-1] > settings.high):
        return None
    widths = [row["width"] for row in rows]
    apart = abs(widths.index(figures["test_loss_peak_width"]) - widths.index(figures["peak_width"]))
    inside = settings.low <= figures["peak_parameters_per_sample"] <= settings.high
    return bool(inside and figures["fall"] > settings.fall and apart <= 1)


STUDY = Study(
    name="double-descent",
    claim="The largest Jacobian norm over the training points peaks where a network can just fit its data, together "
    "with the test loss, and falls more than tenfold to wide networks.",
    settings=Settings(),
    measure=measure,
    judge=judge,
)
