"""The demo's network: a small convolutional classifier of scikit-learn's digits, trained on the spot."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lipscope.claims.regions import Vector

RADIUS = 0.02
"""Half the side of the demo's box, in units of the pixels' range."""


@dataclass(frozen=True)
class Trained:
    """A trained network and what the demo says about it.

    Attributes:
        model: in eval mode.
        accuracy: share of right answers on the test images.
        test_size: how many test images there are.
        image: a test image that is classified rightly, flattened, pixels from 0 to 1.
        label: what it shows.
        margin: by how much its score leads.
        seconds: what the training took.
    """

    model: nn.Module
    accuracy: float
    test_size: int
    image: Vector
    label: int
    margin: float
    seconds: float


def digits_network() -> nn.Sequential:
    """Two convolutions with batch normalisation, a pooling layer and two dense layers, for one 8x8 image."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def train_digits(seed: int = 0, epochs: int = 25) -> Trained:
    """The network trained on the first 1400 digits and tested on the rest. The caller's random state is untouched."""
    from sklearn.datasets import load_digits

    began = time.monotonic()
    digits = load_digits()
    pixels = torch.tensor(digits.images[:, None] / 16.0, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = digits_network()
        # Weight decay keeps the layers' norms, and with them the bound, small at no cost in accuracy.
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(1400), 64):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(pixels[batch]), labels[batch])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    model.eval()
    with torch.no_grad():
        scores = model(pixels[1400:])
    right = scores.argmax(1) == labels[1400:]
    lead = scores.topk(2, dim=1).values
    margins = torch.where(right, lead[:, 0] - lead[:, 1], -torch.inf)
    chosen = int(margins.argsort()[len(margins) // 2])  # a typical one, not the best
    return Trained(
        model=model,
        accuracy=float(right.double().mean()),
        test_size=len(right),
        image=np.asarray(digits.images[1400 + chosen], dtype=np.float64).reshape(-1) / 16.0,
        label=int(labels[1400 + chosen]),
        margin=float(margins[chosen]),
        seconds=time.monotonic() - began,
    )
