"""Small networks trained by plain stochastic gradient descent, as the studies of training dynamics follow them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def network(widths: Sequence[int], seed: int, scale: float = 1.0) -> nn.Sequential:
    """Dense layers with ReLU between them, He normal weights times `scale`, biases 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layer = nn.Linear(inputs, outputs)
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
            with torch.no_grad():
                layer.weight.mul_(scale)
            layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def sgd(model: nn.Module, rate: float, decay: float = 0.0) -> torch.optim.SGD:
    """Plain gradient descent, with weight decay if asked for."""
    return torch.optim.SGD(model.parameters(), lr=rate, weight_decay=decay)


def steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, batch: int, count: int, seed: int
) -> Iterator[Callable[[], object]]:
    """For every step what makes it, the gradient of the mean cross-entropy of a batch being ready.

    Batches are drawn without replacement, independently of each other, from a generator of their own.
    """
    generator, loss = torch.Generator().manual_seed(seed), nn.CrossEntropyLoss()
    for _ in range(count):
        rows = torch.randperm(len(x), generator=generator)[:batch]
        optimizer.zero_grad()
        loss(model(x[rows]), y[rows]).backward()
        yield optimizer.step


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of points that are classified as labelled."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def standardised(x: Tensor) -> Tensor:
    """Inputs less the mean of all their entries, by the standard deviation."""
    return (x - x.mean()) / x.std()
