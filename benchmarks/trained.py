"""Networks trained on the spot on scikit-learn's digits: dense ones, and a small ResNet."""

from __future__ import annotations

from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

TRAINING = 1400
"""Of 1797 images."""


class Block(nn.Module):
    """`relu(x + F(x))` with two convolutions, each with BatchNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.inner(x))


def dense(dims: tuple[int, ...], act: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [part for a, b in pairwise(dims) for part in (nn.Linear(a, b), act())][:-1]
    return fitted(nn.Sequential(*layers), (64,), epochs=60, rate=2e-3)


def resnet(channels: int, blocks: int) -> nn.Sequential:
    """A stem, blocks with skip connections, pooling over 2 x 2, and a dense layer."""
    torch.manual_seed(0)
    stem = nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    head = nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * channels, 10)
    return fitted(
        nn.Sequential(*stem, *(Block(channels) for _ in range(blocks)), *head), (1, 8, 8), epochs=15, rate=2e-3
    )


def fitted(model: nn.Sequential, shape: tuple[int, ...], epochs: int, rate: float) -> nn.Sequential:
    """The model after Adam on the training images, in eval mode."""
    digits = load_digits()
    x = torch.tensor(digits.data[:TRAINING] / 16, dtype=torch.float32).reshape(-1, *shape)
    y = torch.tensor(digits.target[:TRAINING])
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(TRAINING), 64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model.eval()
