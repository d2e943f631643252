"""Prove, follow, explain and shape the Lipschitz continuity of neural networks.

    >>> import torch
    >>> import lipscope
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)).eval()
    >>> result = lipscope.bound(lipscope.load(model, input_shape=(2,)), norm="l2")
    >>> result.lower <= result.upper.value
    True

Names are loaded when they are first used, so that `lipscope.report` needs no torch and the command line starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lipscope.api import bound, bound_pairs, check, load
    from lipscope.claims.errors import LipscopeError, ModelError, ResourceError, UnsupportedError, UsageError
    from lipscope.claims.regions import Ball, Box, Everywhere

_HOMES = {
    "lipscope.api": ("bound", "bound_pairs", "check", "load"),
    "lipscope.claims.errors": ("LipscopeError", "ModelError", "ResourceError", "UnsupportedError", "UsageError"),
    "lipscope.claims.regions": ("Ball", "Box", "Everywhere"),
}

__all__ = [
    "Ball", "Box", "Everywhere", "LipscopeError", "ModelError", "ResourceError", "UnsupportedError", "UsageError",
    "bound", "bound_pairs", "check", "load",
]  # fmt: skip


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'lipscope' has no attribute {name!r}")
