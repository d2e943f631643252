"""The training observer: what a network's Lipschitz constant does while it trains, and which force moves it.

Names are loaded when they are first used, so that a run can be read (`lipscope.dynamics.store`) without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lipscope.dynamics.checkpoints import replay
    from lipscope.dynamics.export import export_csv
    from lipscope.dynamics.noise import NoiseLevels, micro_batch_noise, per_sample_noise
    from lipscope.dynamics.observer import Observer
    from lipscope.dynamics.operator_calculus import first_derivative, second_derivative, third_derivative
    from lipscope.dynamics.prediction import forecast
    from lipscope.dynamics.recorder import ObserverWarning
    from lipscope.dynamics.sde import coefficients, observed_coefficients
    from lipscope.dynamics.store import open_run
    from lipscope.dynamics.track import IdentityTracker

_HOMES = {
    "IdentityTracker": "lipscope.dynamics.track",
    "NoiseLevels": "lipscope.dynamics.noise",
    "Observer": "lipscope.dynamics.observer",
    "ObserverWarning": "lipscope.dynamics.recorder",
    "coefficients": "lipscope.dynamics.sde",
    "export_csv": "lipscope.dynamics.export",
    "first_derivative": "lipscope.dynamics.operator_calculus",
    "forecast": "lipscope.dynamics.prediction",
    "micro_batch_noise": "lipscope.dynamics.noise",
    "observed_coefficients": "lipscope.dynamics.sde",
    "open_run": "lipscope.dynamics.store",
    "per_sample_noise": "lipscope.dynamics.noise",
    "replay": "lipscope.dynamics.checkpoints",
    "second_derivative": "lipscope.dynamics.operator_calculus",
    "third_derivative": "lipscope.dynamics.operator_calculus",
}

__all__ = [
    "IdentityTracker",
    "NoiseLevels",
    "Observer",
    "ObserverWarning",
    "coefficients",
    "export_csv",
    "first_derivative",
    "forecast",
    "micro_batch_noise",
    "observed_coefficients",
    "open_run",
    "per_sample_noise",
    "replay",
    "second_derivative",
    "third_derivative",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lipscope.dynamics' has no attribute {name!r}")
