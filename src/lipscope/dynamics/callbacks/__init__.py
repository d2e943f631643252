"""The observer in other people's trainers: one file each, each an optional dependency."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any


def optional_class(modules: Sequence[str], name: str) -> Any:
    """The class of that name in the first of the modules that is installed, or `object`."""
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except ImportError:
            continue
    return object
