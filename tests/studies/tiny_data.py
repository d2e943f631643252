"""A few random points in the shape of MNIST-1D."""

from __future__ import annotations

import torch

from lipscope.studies.data import Data


def small(count: int = 10) -> Data:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 40, generator=generator), torch.arange(count) % 10
    return Data(x, y, x, y)
