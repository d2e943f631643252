"""The small data sets of the studies; none of them is downloaded, and global random state stays as it is."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lipscope.claims.errors import UsageError


@dataclass(frozen=True, eq=False)
class Data:
    """A classification task: inputs (n, d) float32 and labels (n,) int64, for training and for testing."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def mnist1d() -> Data:
    """MNIST-1D (arXiv 2011.14439) with its default settings: 4000 and 1000 signals of length 40, ten classes.

    Made by the `mnist1d` package from its fixed seed.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise UsageError(
            f"expected the package mnist1d ({error}); install it with pip install 'lipscope[studies]'"
        ) from None
    state, numpy_state = random.getstate(), np.random.get_state()  # the package seeds both
    try:
        made = make_dataset(get_dataset_args())
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
    return Data(
        torch.from_numpy(made["x"]).float(), torch.from_numpy(made["y"]).long(),
        torch.from_numpy(made["x_test"]).float(), torch.from_numpy(made["y_test"]).long(),
    )  # fmt: skip


def digits(train: int = 1297, seed: int = 0) -> Data:
    """The 1797 handwritten digits of scikit-learn, 64 pixels from 0 to 1, split at random with a seed of its own."""
    from sklearn.datasets import load_digits

    if not 0 < train < 1797:
        raise UsageError(f"expected between 1 and 1796 of the 1797 digits for training, got {train}")
    found = load_digits()
    order = np.random.default_rng(seed).permutation(1797)
    x = torch.from_numpy(found.data[order] / 16).float()
    y = torch.from_numpy(found.target[order]).long()
    return Data(x[:train], y[:train], x[train:], y[train:])
