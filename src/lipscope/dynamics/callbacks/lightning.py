"""The observer as a callback of Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lipscope.claims.errors import UsageError
from lipscope.dynamics.callbacks import optional_class
from lipscope.dynamics.observer import Observer

_Base: Any = optional_class(("lightning.pytorch", "pytorch_lightning"), "Callback")

if TYPE_CHECKING:
    from collections.abc import Callable


class LipschitzCallback(_Base):
    """Observes the training of a `LightningModule`.

    Lightning runs forward and backward pass inside the optimizer's step, so a step is watched from
    `on_before_optimizer_step`, when the gradients are there, to the end of the batch. With gradient clipping, which comes
    in between, gradients and the identity's terms are left out.

    Args:
        probe: inputs and targets; they are moved to the module's device.
        model: which module is observed, of the LightningModule; the LightningModule itself by default.
        options: of `lipscope.dynamics.Observer`, such as `loss`, `run`, `preset` and `budget`.

    Raises:
        UsageError: Lightning is not installed.
    """

    def __init__(self, probe: Any, model: Callable[[Any], nn.Module] = lambda module: module, **options: Any) -> None:
        if _Base is object:
            raise UsageError("LipschitzCallback needs lightning: pip install 'lipscope[lightning]'")
        self._probe = probe
        self._model = model
        self._options = options
        self.observer: Observer | None = None
        self._stepping = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch.

        Raises:
            UsageError: there are several optimizers, or what `Observer` raises.
        """
        if not trainer.is_global_zero:
            return
        if len(trainer.optimizers) != 1:
            raise UsageError(
                f"expected one optimizer, got {len(trainer.optimizers)}; use Observer with the one to watch"
            )
        probe = self._probe if isinstance(self._probe, list | tuple) else (self._probe,)
        moved = tuple(x.to(pl_module.device) if isinstance(x, Tensor) else x for x in probe)
        knows, pl_module._trainer = pl_module._trainer, None  # copies of the model must not drag the trainer along
        try:
            self.observer = Observer(
                self._model(pl_module), trainer.optimizers[0],
                **{"probe": moved, "start_step": trainer.global_step or None, **self._options},
            )  # fmt: skip
        finally:
            pl_module._trainer = knows
        self.observer.attach(hooks=False)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        """Gradients are there, weights are still the old ones."""
        if self.observer is not None:
            self.observer.before_step(closure=bool(trainer.gradient_clip_val))
            self._stepping = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Weights are the new ones, if there was a step."""
        if self.observer is not None and self._stepping:
            self._stepping = False
            self.observer.after_step()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop watching."""
        if self.observer is not None:
            self.observer.detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Stop watching a training that failed."""
        if self.observer is not None:
            self.observer.detach(f"{type(exception).__name__}: {exception}")
