"""What a study's figures depend on, stored beside them."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version


def environment() -> dict[str, object]:
    """Versions, machine, threads and date. A package that is not installed is None."""
    import torch

    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in ("lipscope", "torch", "numpy", "scipy", "scikit-learn", "mnist1d")},
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
