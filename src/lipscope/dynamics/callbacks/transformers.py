"""The observer as a callback of the Hugging Face Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lipscope.claims.errors import UsageError
from lipscope.dynamics.callbacks import optional_class
from lipscope.dynamics.observer import Observer

_Base: Any = optional_class(("transformers",), "TrainerCallback")


class LipschitzCallback(_Base):
    """Observes the model of a `transformers.Trainer`.

    The observed module takes one tensor of real numbers and returns one tensor, which models of this library do not do:
    `model` picks or wraps the part to look at. It must hold the parameters themselves, so that training them is seen.

    Args:
        probe: inputs and targets; they are moved to the device of the parameters.
        model: the module to observe, of the Trainer's model; the model itself by default.
        options: of `lipscope.dynamics.Observer`, such as `loss`, `run`, `preset` and `budget`.

    Raises:
        UsageError: transformers is not installed.
    """

    def __init__(
        self, probe: Any, model: Callable[[nn.Module], nn.Module] = lambda module: module, **options: Any
    ) -> None:
        if _Base is object:
            raise UsageError("LipschitzCallback needs transformers: pip install 'lipscope[transformers]'")
        self._probe = probe
        self._model = model
        self._options = options
        self.observer: Observer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Begin to watch. Raises what `Observer` raises."""
        if not state.is_world_process_zero:
            return
        part = self._model(parts["model"])
        device = next(part.parameters()).device
        probe = self._probe if isinstance(self._probe, list | tuple) else (self._probe,)
        moved = tuple(x.to(device) if isinstance(x, Tensor) else x for x in probe)
        start = {"start_step": state.global_step} if state.global_step else {}
        self.observer = Observer(part, parts["optimizer"], **{"probe": moved, **start, **self._options})
        self.observer.attach()

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Stop watching."""
        if self.observer is not None:
            self.observer.detach()
