"""Which linear operator a layer is: how it is read from the module, applied, and expanded around its weights.

A convolution is the operator on the input size that it meets. With circular padding and stride 1 that is a block diagonal
matrix in Fourier space; otherwise it is the padded, strided operator itself. Its kernel reshaped to a matrix is another
operator, whose norm bounds nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lipscope.dynamics.expansions import Expansion, FourierExpansion, PairExpansion, ScaleExpansion
from lipscope.dynamics.krylov import NotFoundError
from lipscope.dynamics.matrix_free import KrylovExpansion, MatrixFreeExpansion

UNROLLED = 160
"""Operators with at most so many inputs or outputs are written down."""
UNROLLED_ENTRIES = 1 << 21
"""And of those only the ones with at most so many entries."""
FEW = 8
"""Fewer inputs than Lanczos needs."""

Snapshot = tuple[Tensor, ...]
"""What a norm depends on, in float64: the weights, then whatever else (the scale of a normalization)."""


class Operator(ABC):
    """A layer that is linear up to its bias, and linear in its weights.

    Attributes:
        module: the user's layer.
        shape: of one input, without the batch axis.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        self.module, self.shape = module, shape

    @property
    def parameter(self) -> nn.Parameter | None:
        """The weights where they are a parameter, None where they are computed from others (parametrizations)."""
        return self.module._parameters.get("weight")

    @property
    def frozen(self) -> bool:
        """Whether no parameter behind the weights asks for a gradient."""
        return not any(p.requires_grad for p in self.module.parameters())

    def weight(self) -> Tensor:
        """The weights now, detached; reading them changes nothing, also where a parametrization counts its calls."""
        if not parametrize.is_parametrized(self.module):
            weight = self.module.weight
            assert isinstance(weight, Tensor)
            return weight.detach()
        with _parametrizations_in_eval(self.module), torch.no_grad():
            weight = self.module.weight
            assert isinstance(weight, Tensor)
            return weight.detach()

    def snapshot(self) -> Snapshot:
        """A copy of what the norm depends on."""
        return (self.weight().to("cpu", torch.float64, copy=True),)

    @abstractmethod
    def apply(self, weight: Tensor, x: Tensor) -> Tensor:
        """`K(W) x` for a batch, without bias; linear in both and differentiable."""

    @abstractmethod
    def expand(self, snapshot: Snapshot, start: Expansion | None = None, towards: Tensor | None = None) -> Expansion:
        """The norm around the weights of a snapshot.

        Args:
            snapshot: of this operator.
            start: an earlier expansion, to begin from.
            towards: the change to come, which decides between equal maxima.
        """


@contextmanager
def _parametrizations_in_eval(module: nn.Module) -> Iterator[None]:
    inner = list(module.parametrizations.modules())  # type: ignore[union-attr]
    flags = [part.training for part in inner]
    try:
        for part in inner:
            part.training = False
        yield
    finally:
        for part, flag in zip(inner, flags, strict=True):
            part.training = flag


class Dense(Operator):
    """`nn.Linear`, on the last axis; over a sequence the norm is the same."""

    def apply(self, weight: Tensor, x: Tensor) -> Tensor:
        """`x W^T`."""
        return F.linear(x, weight)

    def expand(self, snapshot: Snapshot, start: Expansion | None = None, towards: Tensor | None = None) -> Expansion:
        """By the smaller Gram matrix, or a Krylov space of it."""
        return PairExpansion(snapshot[0], start=start if isinstance(start, PairExpansion) else None)


class Convolution(Operator):
    """`nn.Conv1d`, `2d`, `3d` with any stride, padding, dilation and groups, on inputs (channels, *sizes)."""

    module: nn.modules.conv._ConvNd

    def apply(self, weight: Tensor, x: Tensor) -> Tensor:
        """The convolution with these weights."""
        forward: Callable[[Tensor, Tensor, None], Tensor] = self.module._conv_forward
        return forward(x, weight, None)

    @property
    def circular(self) -> bool:
        """Whether it is block diagonal in Fourier space: circular padding, stride 1, and outputs of the inputs' size."""
        conv = self.module
        padded = [
            size + _padding(conv, axis) - d * (k - 1)
            for axis, (size, d, k) in enumerate(zip(self.shape[1:], conv.dilation, conv.kernel_size, strict=True))
        ]
        return conv.padding_mode == "circular" and set(conv.stride) == {1} and padded == list(self.shape[1:])

    @property
    def disjoint(self) -> bool:
        """Whether no two outputs read the same input and none reads padding: kernels of 1, patches.

        Then the operator is one matrix, repeated, and its norm that of a single patch: simple where the whole operator's is not.
        """
        conv = self.module
        inside = all(_padding(conv, axis) == 0 for axis in range(len(conv.stride)))
        return inside and _apart(conv)

    def expand(self, snapshot: Snapshot, start: Expansion | None = None, towards: Tensor | None = None) -> Expansion:
        """By Fourier blocks where it is circular, else written down where it is small, else by Lanczos."""
        (weight,) = snapshot
        if self.disjoint:
            return _expand(self.apply, weight, (self.shape[0], *_spans(self.module)), start)
        if self.circular:
            return FourierExpansion(weight, self.shape[1:], tuple(self.module.dilation), self.module.groups)
        return _expand(self.apply, weight, self.shape, start)


def _spans(conv: nn.modules.conv._ConvNd) -> list[int]:
    """How far a kernel reaches along every axis."""
    return [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]


def _apart(conv: nn.modules.conv._ConvNd) -> bool:
    """Whether the places that a kernel reaches do not meet those of its neighbours."""
    return all(span <= stride for span, stride in zip(_spans(conv), conv.stride, strict=True))


def _padding(conv: nn.modules.conv._ConvNd, axis: int) -> int:
    """Both sides together."""
    if conv.padding == "same":
        return int(conv.dilation[axis] * (conv.kernel_size[axis] - 1))
    return 0 if isinstance(conv.padding, str) else 2 * int(conv.padding[axis])


class TransposedConvolution(Operator):
    """`nn.ConvTranspose1d`, `2d`, `3d`, called without an output size."""

    module: nn.modules.conv._ConvTransposeNd

    def apply(self, weight: Tensor, x: Tensor) -> Tensor:
        """The transposed convolution with these weights."""
        conv = self.module
        function = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[len(conv.kernel_size)]
        return function(x, weight, None, conv.stride, conv.padding, conv.output_padding, conv.groups, conv.dilation)  # type: ignore[arg-type]

    def expand(self, snapshot: Snapshot, start: Expansion | None = None, towards: Tensor | None = None) -> Expansion:
        """Written down where it is small, else by Lanczos; of one pixel where pixels do not meet in the output and none is cut."""
        conv = self.module
        alone = _apart(conv) and not any(conv.padding)
        shape = (self.shape[0], *(1 for _ in conv.stride)) if alone else self.shape
        return _expand(self.apply, snapshot[0], shape, start)


def _expand(
    apply: Callable[[Tensor, Tensor], Tensor], weight: Tensor, shape: tuple[int, ...], start: Expansion | None
) -> Expansion:
    inputs = math.prod(shape)
    with torch.no_grad():
        outputs = apply(weight, weight.new_zeros(1, *shape)).numel()
    if inputs <= FEW or (min(inputs, outputs) <= UNROLLED and inputs * outputs <= UNROLLED_ENTRIES):
        return PairExpansion(weight, apply, shape)
    try:
        return KrylovExpansion(weight, apply, shape, start if isinstance(start, KrylovExpansion) else None)
    except NotFoundError:
        guess = start.right if isinstance(start, MatrixFreeExpansion) else None
        return MatrixFreeExpansion(weight, apply, shape, guess)


class Scale(Operator):
    """A normalization: its learned scale times what it does without, `max_c |gamma_c| s_c`.

    In eval mode `BatchNorm` has `s_c = 1 / sqrt(running_var_c + eps)`. Layer, group, instance and RMS normalization have
    `s = 1 / sqrt(eps)`: the Jacobian of `(x - mean) / sqrt(var + eps)` at a constant x is that times a projection (times
    the identity for RMS), and nowhere larger.
    """

    def weight(self) -> Tensor:
        """The learned scale; ones where there is none."""
        if self.module._parameters.get("weight") is not None or parametrize.is_parametrized(self.module):
            return super().weight()
        variance = getattr(self.module, "running_var", None)
        return torch.ones_like(variance) if isinstance(variance, Tensor) else torch.ones(1)

    def scale(self) -> Tensor:
        """`s`, for every channel, (channels,)."""
        module, channels = self.module, self.weight().numel()
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_var is not None
            return (module.running_var.detach().to("cpu", torch.float64) + module.eps).rsqrt()
        eps = module.eps
        assert eps is None or isinstance(eps, float)
        floor = torch.finfo(self.weight().dtype).eps if eps is None else eps
        return torch.full((channels,), 1 / math.sqrt(floor) if floor else math.inf, dtype=torch.float64)

    def snapshot(self) -> Snapshot:
        """Scale parameter and `s`."""
        return self.weight().to("cpu", torch.float64, copy=True), self.scale()

    def apply(self, weight: Tensor, x: Tensor) -> Tensor:
        """The normalized input times `weight`: linear in the weights; for BatchNorm affine in the input."""
        module = self.module
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return F.batch_norm(x, module.running_mean, module.running_var, weight, None, False, 0.0, module.eps)
        if isinstance(module, nn.GroupNorm):
            return F.group_norm(x, module.num_groups, weight, None, module.eps)
        if isinstance(module, nn.LayerNorm):
            return F.layer_norm(x, module.normalized_shape, weight, None, module.eps)
        if isinstance(module, nn.RMSNorm):
            return F.rms_norm(x, module.normalized_shape, weight, module.eps)
        assert isinstance(module, nn.modules.instancenorm._InstanceNorm)
        return F.instance_norm(x, None, None, weight, None, True, 0.0, module.eps)

    def expand(self, snapshot: Snapshot, start: Expansion | None = None, towards: Tensor | None = None) -> Expansion:
        """The attained channel."""
        weight, scale = snapshot
        return ScaleExpansion(weight.reshape(-1), scale, None if towards is None else towards.reshape(-1))


OPERATORS: dict[type[nn.Module], type[Operator]] = {
    nn.Linear: Dense,
    nn.Conv1d: Convolution,
    nn.Conv2d: Convolution,
    nn.Conv3d: Convolution,
    nn.ConvTranspose1d: TransposedConvolution,
    nn.ConvTranspose2d: TransposedConvolution,
    nn.ConvTranspose3d: TransposedConvolution,
    nn.BatchNorm1d: Scale,
    nn.BatchNorm2d: Scale,
    nn.BatchNorm3d: Scale,
    nn.SyncBatchNorm: Scale,
    nn.LayerNorm: Scale,
    nn.GroupNorm: Scale,
    nn.RMSNorm: Scale,
    nn.InstanceNorm1d: Scale,
    nn.InstanceNorm2d: Scale,
    nn.InstanceNorm3d: Scale,
}
"""Layers whose weights are followed. Subclasses are not: they may compute something else."""


def plain_type(module: nn.Module) -> type[nn.Module]:
    """The module's class, without what `torch.nn.utils.parametrize` derives from it."""
    kind = type(module)
    return kind.__bases__[0] if parametrize.is_parametrized(module) else kind
