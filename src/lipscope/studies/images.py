"""Small images and the differently trained networks of them that the frequency studies compare."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipscope.claims.errors import Interrupted, UsageError
from lipscope.claims.progress import Progress
from lipscope.frequency.fashion import FASHION, fashion_mnist
from lipscope.studies.data import Data, digits

SOURCES = ("auto", "fashion-mnist", "digits")
"""Data of images: `auto` is Fashion-MNIST where it is installed, else the digits of scikit-learn."""


def images(source: str, train: int, test: int, seed: int = 0) -> tuple[str, Data]:
    """The name of the data and (n, 1, side, side) images with pixels from 0 to 1, drawn at random from its two parts.

    Raises:
        UsageError: there is no such data here, or fewer images than asked for.
    """
    if source not in SOURCES:
        raise UsageError(f"expected data out of {', '.join(SOURCES)}, got {source!r}")
    if source == "digits" or (source == "auto" and not FASHION.is_dir()):
        if not 0 < test <= 1797 - train:
            raise UsageError(f"expected at most 1797 digits, got {train} for training and {test} for testing")
        found = digits(train, seed)
        square = [x.reshape(-1, 1, 8, 8) for x in (found.x, found.x_test[:test])]
        return "digits", Data(square[0], found.y, square[1], found.y_test[:test])
    draw = np.random.default_rng(seed)
    parts: list[Tensor] = []
    for name, count in (("train", train), ("t10k", test)):
        pixels, labels = fashion_mnist(name)
        if not 0 < count <= len(labels):
            raise UsageError(f"expected from 1 to {len(labels)} images of the part {name}, got {count}")
        kept = draw.permutation(len(labels))[:count]
        parts += [torch.from_numpy(pixels[kept]).float().unsqueeze(1) / 255, torch.from_numpy(labels[kept]).long()]
    return "fashion-mnist", Data(*parts)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: over the training images.
        noise: standard deviation of Gaussian noise on the inputs.
        attack: length in the largest norm of one signed gradient step on the inputs (arXiv 1412.6572), clipped to [0, 1].
        budget: bound of the product of the layers' proved norms; None for none.
    """

    epochs: int
    noise: float = 0.0
    attack: float = 0.0
    budget: float | None = None


def network(side: int) -> nn.Sequential:
    """A small convolutional classifier; its first layer is circular with stride 1, so that it acts on each frequency alone."""
    kernel = 5 if side >= 16 else 3
    return nn.Sequential(
        nn.Conv2d(1, 8, kernel, padding=kernel // 2, padding_mode="circular"), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * ((side + 3) // 4) ** 2, 10),
    ).eval()  # fmt: skip


def train(
    data: Data,
    recipe: Recipe,
    seed: int,
    batch: int = 100,
    every: int = 20,
    tick: Callable[[float], None] | None = None,
) -> nn.Sequential:
    """A network trained by a recipe; under a budget its layers are projected every so many steps and at the end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(data.x.shape[-1])
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        batches = [part for _ in range(recipe.epochs) for part in torch.split(torch.randperm(len(data.x)), batch)]
        for step, part in enumerate(batches):
            x, y = data.x[part], data.y[part]
            if recipe.noise:
                x = x + recipe.noise * torch.randn_like(x)
            if recipe.attack:
                x = attacked(model, x, y, recipe.attack)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if recipe.budget is not None and (step % every == 0 or step == len(batches) - 1):
                project(model, data.x.shape[-1], recipe.budget)
            if tick is not None:
                tick((step + 1) / len(batches))
    return model


def project(model: nn.Sequential, side: int, budget: float) -> None:
    """Scale the weights of each layer whose proved norm is above its share of the budget, the same factor for each.

    After it the product of the layers' proved norms is at most the budget, up to the rounding of the scaling in float32;
    the bound that is reported is proved again for the weights as they are.
    """
    shape: tuple[int, ...] = (1, side, side)
    layers = [layer for layer in model if isinstance(layer, nn.Conv2d | nn.Linear)]
    share = budget ** (1 / len(layers))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            shape = (layer.in_features,)
        norm = proved_norm(layer, shape)
        if norm > share:
            with torch.no_grad():
                layer.weight.mul_(share / norm * (1 - 1e-6))
        if isinstance(layer, nn.Conv2d):
            stride = int(layer.stride[0])
            shape = (layer.out_channels, -(-shape[1] // stride), -(-shape[2] // stride))


def proved_norm(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """A proved upper bound of the operator norm of an affine layer for inputs of one shape, in l2, tight to 1e-2."""
    import lipscope
    from lipscope.bounds.problem import pose
    from lipscope.bounds.segments import segment
    from lipscope.claims.claim import Claim
    from lipscope.operator_norm import enclose

    problem = pose(lipscope.load(layer, input_shape=shape).graph, Claim())
    linear_map = segment(problem, 0, problem.graph.output).map
    return enclose(linear_map, "l2", tolerance=1e-2, deadline=time.monotonic() + 5).upper


def attacked(model: nn.Module, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """The images after one signed gradient step of the loss, clipped to [0, 1]."""
    moved = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(moved), y), moved)
    return (x + radius * gradient.sign()).clamp(0, 1)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of right answers."""
    with torch.no_grad():
        return float((model(x).argmax(dim=1) == y).double().mean())


def each_network(
    name: str, seeds: Sequence[int], recipes: Mapping[str, Recipe], run: Callable[[Recipe, int], dict[str, Any]],
    progress: Progress,
) -> list[dict[str, Any]]:  # fmt: skip
    """What `run` finds for every recipe and seed, with the names of both.

    Raises:
        Interrupted: the user stopped it; its result has the runs that were done.
    """
    runs: list[dict[str, Any]] = []
    total = len(seeds) * len(recipes)
    try:
        for seed in seeds:
            for label, recipe in recipes.items():
                progress(f"seed {seed}, {label}", len(runs) / total)
                runs.append({"network": label, "seed": seed} | run(recipe, seed))
    except KeyboardInterrupt:
        raise Interrupted(f"stopped after {len(runs)} of {total} networks", {"data": name, "runs": runs}) from None
    return runs
