"""The user's loss, called without a trace: a loss that is a module may keep state, and what the observer computes must not change it."""

from __future__ import annotations

from torch import Tensor, nn

from lipscope.dynamics.arguments import Loss
from lipscope.dynamics.view import View


class OwnLoss:
    """A copy of a loss that is a module, with its parameters, buffers and plain attributes as they are at the moment of the call.

    Unlike a model's twin it keeps its train or eval mode.
    """

    def __init__(self, loss: nn.Module) -> None:
        self._view = View(loss)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The value that the loss would have."""
        twin = self._view.refresh()
        for own, module in zip(twin.modules(), self._view.live.modules(), strict=True):
            own.training = module.training
        value: Tensor = twin(outputs, targets)
        return value


def own_loss(loss: Loss | None) -> Loss | None:
    """What to call in place of the loss: a function as it is, torch's own losses, which keep nothing, and a copy of any other module."""
    if not isinstance(loss, nn.Module) or type(loss).__module__ == "torch.nn.modules.loss":
        return loss
    return OwnLoss(loss)
