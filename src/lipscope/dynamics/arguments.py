"""What an observer is given: checked, and told apart from what looks like it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lipscope.claims.errors import UsageError
from lipscope.claims.quantity import Quantity

Data = tuple[Tensor, Tensor | None]
Loss = Callable[[Tensor, Tensor], Tensor]


HINTS = {
    "DataLoader": "take one batch of it, next(iter(loader))",
    "ndarray": "torch.as_tensor(array) makes a tensor",
    "tuple": "a model with several inputs is watched through a module that takes one tensor",
    "dict": "a model with named inputs is watched through a module that takes one tensor",
}
"""What to do about things that are often given for a tensor, by the name of their class."""


def as_data(given: object, what: str) -> Data:
    """Inputs and targets of `(x, y)`, `(x,)` or `x`.

    Raises:
        UsageError: it is something else.
    """
    parts = list(given) if isinstance(given, list | tuple) else [given]
    if not 1 <= len(parts) <= 2 or not isinstance(parts[0], Tensor) or not isinstance(parts[-1], Tensor | None):
        names = [type(part).__name__ for part in parts]
        hint = next((f"; {HINTS[name]}" for name in names if name in HINTS), "")
        raise UsageError(
            f"expected {what}=(inputs, targets), two tensors, or inputs alone, got {', '.join(names)}{hint}"
        )
    if parts[0].layout is not torch.strided:
        raise UsageError(f"expected dense inputs in {what}=, got {parts[0].layout}; call .to_dense() on them")
    inputs = parts[0].detach().clone()
    targets = parts[1].detach().clone() if len(parts) == 2 and isinstance(parts[1], Tensor) else None
    return inputs, targets


def check_reference(reference: Data | None, loss: object) -> None:
    """Raise `UsageError` unless there is what a gradient of the reference needs."""
    if reference is None:
        return
    if loss is None:
        raise UsageError("expected loss= beside reference=, which is for gradients of the loss; got none")
    if reference[1] is None:
        raise UsageError("expected reference=(inputs, targets), for gradients of the loss; got inputs without targets")


def check_loss_value(loss: Loss | None, outputs: Tensor, targets: Tensor | None, summed: bool = True) -> None:
    """Raise `UsageError` unless the loss of these outputs is one number.

    Args:
        loss: of outputs and targets; None passes, and so does a loss without targets.
        outputs: of the model.
        targets: of the same examples.
        summed: whether the loss may be a sum over the examples.
    """
    if loss is None or targets is None:
        return
    with torch.no_grad():
        try:
            value = loss(outputs, targets)
            twice = value if summed else loss(torch.cat([outputs, outputs]), torch.cat([targets, targets]))
        except Exception as error:
            raise UsageError(
                f"expected a loss that takes the model's outputs {list(outputs.shape)} and the targets "
                f"{list(targets.shape)} of {targets.dtype}, got {type(error).__name__}: {error}"
            ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise UsageError(f"expected a loss that is one number, the mean over the examples, got {got}")
    if not summed and bool(value.abs() > 0) and bool((twice - 2 * value).abs() < 1e-3 * value.abs()):
        raise UsageError(
            "expected a loss that is the mean over the examples beside reference=, which may be larger than a batch; got one "
            "that doubles where every example comes twice, a sum"
        )


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter is that has values."""
    # Parameters on meta are nowhere: refused when the model is looked at.
    return next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))


def check_loss(loss: object) -> None:
    """Raise `UsageError` unless the loss can be called."""
    if loss is not None and not callable(loss):
        raise UsageError(f"expected loss=, a function of outputs and targets, got {type(loss).__name__}")


def check_writers(writers: object) -> None:
    """Raise `UsageError` unless it is a list of writers."""
    for writer in writers if isinstance(writers, list | tuple) else [writers]:
        if not (callable(getattr(writer, "write", None)) and callable(getattr(writer, "close", None))):
            raise UsageError(f"expected writers=[...], objects with write and close, got {type(writer).__name__}")


def check_place(run: object) -> None:
    """Raise `UsageError` unless it names a folder."""
    if not isinstance(run, str | Path) or not str(run).strip():
        raise UsageError(f"expected run=, the name of a folder, got {run!r}")


def check_count(name: str, number: object) -> None:
    """Raise `UsageError` unless it is a whole number that is not negative."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise UsageError(f"expected {name}, a whole number of at least 0, got {number!r}")


def check_quantities(quantities: Iterable[object]) -> None:
    """Raise `UsageError` unless all of them can be read."""
    for quantity in quantities:
        if not isinstance(quantity, Quantity):
            raise UsageError(f"expected quantities with a name and read(moment), got {type(quantity).__name__}")


def is_first_rank() -> bool:
    """Whether this process is the one that observes."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank() != 0)


def own_optimizer(model: nn.Module, optimizer: object) -> torch.optim.Optimizer:
    """The optimizer that does the steps, inside whatever a library wrapped around it.

    Raises:
        UsageError: there is none, or it trains another model.
    """
    inner = optimizer
    while not isinstance(inner, torch.optim.Optimizer) and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    while hasattr(inner, "optimizer") and isinstance(inner.optimizer, torch.optim.Optimizer):
        inner = inner.optimizer  # wrapped by a library; the hooks belong to the one that does the step
    if not isinstance(inner, torch.optim.Optimizer):
        raise UsageError(f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if not isinstance(model, nn.Module):
        raise UsageError(f"expected an nn.Module as model, got {type(model).__name__}")
    trained = {id(p) for group in inner.param_groups for p in group["params"]}
    if not any(id(p) in trained for p in model.parameters()):
        raise UsageError(
            f"expected an optimizer that trains the model, got one that has none of the parameters of {type(model).__name__}; "
            "make the optimizer from the parameters of the model that is passed"
        )
    return inner


def optimizer_settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its class and its groups' plain settings."""
    plain = (int, float, str, bool, type(None))
    groups = [{k: v for k, v in g.items() if k != "params" and isinstance(v, plain)} for g in optimizer.param_groups]
    return {"class": type(optimizer).__name__, "groups": groups}
