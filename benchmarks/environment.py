"""What a benchmark's figures depend on, stored beside them."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch


def environment() -> dict[str, object]:
    """Versions, machine, threads, load and date."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load when begun": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
    }


def versions(packages: Iterable[str]) -> dict[str, object]:
    """The versions of further packages, None for one that is not installed."""
    found: dict[str, object] = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
