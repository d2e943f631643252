"""The training observer: what a network's Lipschitz constant does while it trains, and which force moves it.

Names are loaded when they are first used, so that a run can be read (`lipscope.dynamics.store`) without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lipscope.dynamics.checkpoints import replay
    from lipscope.dynamics.export import export_csv
    from lipscope.dynamics.observer import Observer
    from lipscope.dynamics.recorder import ObserverWarning
    from lipscope.dynamics.store import open_run

_HOMES = {
    "Observer": "lipscope.dynamics.observer",
    "ObserverWarning": "lipscope.dynamics.recorder",
    "export_csv": "lipscope.dynamics.export",
    "open_run": "lipscope.dynamics.store",
    "replay": "lipscope.dynamics.checkpoints",
}

__all__ = ["Observer", "ObserverWarning", "export_csv", "open_run", "replay"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lipscope.dynamics' has no attribute {name!r}")
