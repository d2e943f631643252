"""The Jacobian's norm at given points: the lower side of the sandwich `mean <= lower <= constant <= upper`.

Where a function f is differentiable, `|J(x)|_2` is at most its Lipschitz constant on any region that has x inside.
Hence the largest norm over points is a lower value of the constant (`C_lower` of arXiv 2302.10886, section 2), and the
mean (`C_avg`) is smaller still. Two things keep them from being certified bounds, and they are never called so here:

- the Jacobian is computed in the model's own precision, without enclosing its rounding;
- at a kink autograd returns one of several matrices, and that one need not be a limit of Jacobians nearby:
  `x - (relu(x) - relu(-x))` is 0 everywhere, and autograd says 1 at 0. Points of data lie on kinks with probability 0,
  but zero inputs of a network without biases do.

A certified lower bound comes from a pair of inputs, see `lipscope.bound`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipscope.claims.errors import UsageError

ENTRIES = 2**22
"""Entries of the Jacobians that are held at once when no batch size is given: 32 MB in float64."""


@dataclass(frozen=True, eq=False)
class PointwiseNorms:
    """The l2 operator norms of a function's Jacobian at points: estimates, up to the rounding of the model's precision.

    Attributes:
        norms: (n,) float64, one a point, in the order of the points; nan where the Jacobian is not finite.
    """

    norms: Tensor

    @property
    def samples(self) -> int:
        """How many points: a maximum over points means little without it."""
        return self.norms.numel()

    @property
    def lower(self) -> float:
        """`C_lower`, the largest norm: a lower value of the Lipschitz constant. It grows with the number of points."""
        return float(self.norms.max())

    @property
    def mean(self) -> float:
        """`C_avg`, the mean norm."""
        return float(self.norms.mean())

    @property
    def rms(self) -> float:
        """The root of the mean squared norm."""
        return float(self.norms.square().mean().sqrt())

    @property
    def where(self) -> int:
        """The index of the point with the largest norm."""
        return int(self.norms.argmax())

    def quantile(self, share: float) -> float:
        """The norm that `share` of the points do not exceed; interpolated between neighbours."""
        ordered = self.norms.sort().values  # torch.quantile refuses more than 2^24 entries
        if bool(ordered.isnan().any()):
            return float("nan")
        position = share * (self.samples - 1)
        low = int(position)
        high = min(low + 1, self.samples - 1)
        return float(torch.lerp(ordered[low], ordered[high], position - low))


def pointwise_norms(
    model: Callable[[Tensor], Tensor], inputs: Tensor, *, batch_size: int | None = None
) -> PointwiseNorms:
    """`|J(x)|_2` at each of the inputs, of the map from the flattened input to the flattened output.

    Computed from the whole Jacobian, one backward pass an output; then the largest eigenvalue of the smaller of
    `J J^T` and `J^T J` in float64. Random state, `.grad`, `requires_grad` and modes stay as they are.

    Args:
        model: in eval mode, and such that each output row depends on its own input row alone. Its precision is that
            of the result; give a float64 copy (and float64 inputs) for the last digits.
        inputs: (n, ...), n >= 1, of the model's dtype and on its device.
        batch_size: how many points at once; chosen by memory if None.

    Raises:
        UsageError: there is no point, the inputs are integers, a module is in train mode, or the output is not one tensor
            with a row a point.
    """
    _check(model, inputs)
    with _untouched(inputs):
        if batch_size is None:
            batch_size = max(1, ENTRIES // max(1, _rows(model, inputs[:1])[0].numel() * inputs[0].numel()))
        parts = [operator_norms(_jacobians(model, part)) for part in torch.split(inputs, batch_size)]
    return PointwiseNorms(torch.cat(parts))


def jacobians(model: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The Jacobian at each of the inputs, (n, outputs, inputs), flattened row-major, in the model's precision.

    The conditions and errors are those of `pointwise_norms`. At a kink it is autograd's choice.
    """
    _check(model, inputs)
    with _untouched(inputs):
        return _jacobians(model, inputs)


def operator_norms(matrices: Tensor) -> Tensor:
    """The largest singular value of each matrix, (n, rows, columns) to (n,) float64; nan where an entry is not finite.

    Relative error of some `min(rows, columns)` float64 roundings; scaled, so that no square over- or underflows.
    """
    exact = matrices.detach().double()
    if exact.shape[1] > exact.shape[2]:
        exact = exact.mT
    if exact.numel() == 0:
        return exact.new_zeros(exact.shape[0])
    largest = exact.abs().amax(dim=(1, 2))
    finite = largest.isfinite()
    scale = torch.where(finite & (largest > 0), largest, torch.ones_like(largest))
    scaled = torch.where(finite[:, None, None], exact, torch.zeros_like(exact)) / scale[:, None, None]
    squares = torch.linalg.eigvalsh(scaled @ scaled.mT)[:, -1].clamp_min(0.0)
    return torch.where(finite, squares.sqrt() * scale, torch.full_like(scale, torch.nan))


def _check(model: Callable[[Tensor], Tensor], inputs: Tensor) -> None:
    if inputs.ndim < 1 or inputs.shape[0] == 0:
        raise UsageError(f"expected inputs with one point a row, at least one, got shape {tuple(inputs.shape)}")
    if not inputs.is_floating_point():
        raise UsageError(f"expected inputs that can be differentiated by, of a floating dtype, got {inputs.dtype}")
    if isinstance(model, nn.Module):
        training = [name or "the model" for name, module in model.named_modules() if module.training]
        if training:
            raise UsageError(
                f"expected a model in eval mode, got train mode in {training[0]!r} ({len(training)} modules in all): "
                "there a point's output depends on chance and on the other points; call model.eval(), or give a copy"
            )


@contextmanager
def _untouched(inputs: Tensor) -> Iterator[None]:
    """Gradients on, autocast and inference mode off, and the random state put back afterwards."""
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with (
        torch.inference_mode(False), torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False),
        torch.random.fork_rng(devices=devices),
    ):  # fmt: skip
        yield


def _rows(model: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """The outputs, one flattened row a point."""
    outputs = model(points.clone())  # a copy, which a layer may change in place
    if not isinstance(outputs, Tensor) or outputs.ndim < 1 or outputs.shape[0] != points.shape[0]:
        came = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UsageError(f"expected one tensor with {points.shape[0]} rows, one a point, from the model, got {came}")
    return outputs.reshape(points.shape[0], -1)


def _jacobians(model: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    points = inputs.detach().clone().requires_grad_()
    outputs = _rows(model, points)
    columns, count = points[0].numel(), outputs.shape[1]
    result = points.new_zeros((points.shape[0], count, columns), dtype=outputs.dtype)
    if not outputs.requires_grad:  # a constant
        return result.detach()
    for k in range(count):
        # Rows do not depend on each other, so one backward pass of their sum gives row k of every Jacobian.
        (gradient,) = torch.autograd.grad(outputs[:, k].sum(), points, retain_graph=k + 1 < count, allow_unused=True)
        if gradient is not None:
            result[:, k] = gradient.detach().reshape(points.shape[0], columns)
    return result.detach()
