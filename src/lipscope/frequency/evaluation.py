"""What the measurements by forward passes share: checks of model, inputs, labels and outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lipscope.claims.errors import UsageError
from lipscope.network.load.torch_module import evaluation_mode

Model = Callable[[Tensor], Tensor]
"""A module in eval mode, or any function of a batch (B, C, *grid)."""


def check_model(model: Model) -> None:
    """Raise `ModelError` if the model is a module in train mode: its answers would depend on the batch."""
    if isinstance(model, nn.Module):
        evaluation_mode(model)


def check_dtype(model: Model, x: Tensor) -> None:
    """Raise `UsageError` if a module cannot take inputs because its weights have another precision."""
    weights = model.parameters() if isinstance(model, nn.Module) else iter(())
    own = next((p.dtype for p in weights if p.is_floating_point()), x.dtype)
    if own == x.dtype:
        return
    try:
        with torch.no_grad():
            model(x[:1])  # it may convert them itself
    except RuntimeError as error:
        raise UsageError(
            f"expected inputs in the precision of the model's weights, {own}, got {x.dtype} ({error}); use x.to({own}), or "
            "model.double() with inputs in float64"
        ) from None


def check_inputs(x: Tensor, axes: Sequence[int] | None = None) -> None:
    """Raise `UsageError` unless x is a batch (B, C, *grid) of finite numbers.

    Args:
        x: the batch.
        axes: the grid that is expected, if it is known.
    """
    if x.ndim < 3 or x.numel() == 0 or not x.is_floating_point():
        raise UsageError(
            f"expected a batch (images, channels, *grid) of floating point numbers, channels first, got {x.dtype} of "
            f"{list(x.shape)}"
        )
    grid = list(x.shape[2:])
    if axes is not None and grid != list(axes):
        raise UsageError(
            f"expected a batch (images, channels, *grid) with grid {list(axes)}, that of the bands, got {list(x.shape)}; "
            "put channel-last data into channel-first order"
        )
    bad = (~x.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise UsageError(f"expected finite inputs, got {len(bad)} images with nan or inf, the first is number {bad[0]}")


def check_gradients(gradients: Tensor, first: int) -> None:
    """Raise `UsageError` unless gradients (B, ...) at the examples from number `first` on are finite."""
    bad = (~gradients.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise UsageError(
            f"expected finite derivatives, got nan or inf at {len(bad)} of {len(gradients)} examples, the first is number "
            f"{first + bad[0]} of those given; look for roots, logarithms or lengths of 0 in the model, or leave these examples out"
        )


def check_labels(y: Tensor, count: int) -> None:
    """Raise `UsageError` unless y has one class for each of `count` images."""
    if y.shape != (count,) or y.is_floating_point() or y.dtype == torch.bool or bool((y < 0).any()):
        raise UsageError(f"expected {count} labels, whole numbers from 0, got {y.dtype} of shape {list(y.shape)}")


def check_scores(scores: Tensor, y: Tensor) -> None:
    """Raise `UsageError` unless the model's outputs (B, classes) have an entry for each label."""
    if scores.ndim != 2 or (len(y) and int(y.max()) >= scores.shape[1]):
        raise UsageError(
            f"expected outputs (images, classes) with labels below the number of classes, got outputs of shape "
            f"{list(scores.shape[1:])} an image and labels up to {int(y.max())}; for a regression give floating point targets"
        )
