"""The layers whose operator norms are followed at every observed step: dense layers and convolutions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from lipscope.bounds.problem import pose
from lipscope.bounds.segments import segment
from lipscope.claims.claim import Claim
from lipscope.claims.rounding import sum_up
from lipscope.dynamics.view import View, isolated
from lipscope.network.graph import Graph
from lipscope.network.nodes import Conv, Dense, Input, Node, Pad
from lipscope.rules.linear_map import LinearMap

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVOLVE = {nn.Conv1d: functional.conv1d, nn.Conv2d: functional.conv2d, nn.Conv3d: functional.conv3d}


@dataclass(frozen=True, eq=False)
class WatchedLayer:
    """A linear layer of the twin, and the shape of what it takes.

    Attributes:
        name: in the user's model.
        module: the twin's module.
        input_shape: of one example, with a batch axis of length 1; its last axes for a dense layer.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]

    @property
    def weight(self) -> Tensor:
        """The weight in use at this moment."""
        return self.module.weight.detach()  # type: ignore[operator]

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer without its bias and with this weight, at (B, ...)."""
        module = self.module
        if isinstance(module, nn.Linear):
            return functional.linear(x, weight)
        assert isinstance(module, Convolution)
        padding: str | tuple[int, ...] = module.padding
        if module.padding_mode != "zeros":
            x = functional.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
            padding = (0,) * len(module.kernel_size)
        convolve = next(f for kind, f in _CONVOLVE.items() if isinstance(module, kind))
        return convolve(x, weight, None, module.stride, padding, module.dilation, module.groups)

    def linear_map(self, weight: Tensor) -> LinearMap | None:
        """The map for the proof of its norm, or None where there is none: padding that copies entries."""
        array = weight.detach().cpu().numpy().copy()
        shape = self.input_shape
        nodes: list[Node] = [Input(inputs=(), shape=shape)]
        if isinstance(self.module, nn.Linear):
            nodes[0] = Input(inputs=(), shape=(array.shape[1],))
            nodes.append(Dense(inputs=(0,), shape=(array.shape[0],), name=self.name, weight=array, axis=0))
        else:
            module = self.module
            assert isinstance(module, Convolution)
            pads = _padding(module)
            if module.padding_mode == "circular":
                wide = (*shape[:2], *(s + low + high for s, (low, high) in zip(shape[2:], pads, strict=True)))
                nodes.append(Pad(inputs=(0,), shape=wide, name=self.name, pads=((0, 0), (0, 0), *pads), mode="wrap"))
                shape, pads = wide, ((0, 0),) * len(pads)
            elif module.padding_mode != "zeros":
                return None
            nodes.append(
                Conv(
                    inputs=(len(nodes) - 1,), shape=(1, array.shape[0], *self._output_sizes()), name=self.name, weight=array,
                    stride=tuple(module.stride), padding=pads, dilation=tuple(module.dilation), groups=module.groups,
                )
            )  # fmt: skip
        last = len(nodes) - 1
        graph = Graph(tuple(nodes), last, (nodes[0].shape,), (nodes[last].shape,), self.name)
        return segment(pose(graph, Claim()), 0, last).map

    @property
    def spreads(self) -> bool:
        """Whether a change of the weight is bounded by its taps: no tap reads an entry of the input twice.

        Zero padding never does that, circular padding does where the image is padded by more than the kernel eats.
        """
        module = self.module
        if isinstance(module, nn.Linear):
            return True
        assert isinstance(module, Convolution)
        if module.padding_mode != "circular":
            return module.padding_mode == "zeros"
        return all(
            step * (out - 1) < size
            for step, out, size in zip(module.stride, self._output_sizes(), self.input_shape[2:], strict=True)
        )

    def _output_sizes(self) -> tuple[int, ...]:
        module = self.module
        assert isinstance(module, Convolution)
        return tuple(
            (s + low + high - d * (k - 1) - 1) // step + 1
            for s, (low, high), d, k, step in zip(
                self.input_shape[2:], _padding(module), module.dilation, module.kernel_size, module.stride, strict=True
            )
        )


def _padding(module: Convolution) -> tuple[tuple[int, int], ...]:
    if isinstance(module.padding, str):
        total = [
            d * (k - 1) if module.padding == "same" else 0
            for d, k in zip(module.dilation, module.kernel_size, strict=True)
        ]
        return tuple((t // 2, t - t // 2) for t in total)
    return tuple((int(p), int(p)) for p in module.padding)


def watched_layers(view: View, inputs: Tensor) -> tuple[list[WatchedLayer], list[str]]:
    """The dense layers and convolutions that a forward pass of the probe meets, in that order, and what is left out."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}
    notes: list[str] = []

    def seen(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        shape = (1, *arguments[0].shape[1:])
        if shapes.setdefault(module, shape) != shape and not isinstance(module, nn.Linear):
            notes.append(f"{names[module]!r} is used on images of several sizes; its norm is that of the first")

    names = {module: name for name, module in view.model.named_modules()}
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    handles = [m.register_forward_pre_hook(seen) for m in names if isinstance(m, kinds)]
    try:
        with isolated(view.device), torch.no_grad():
            view.model(inputs)  # all of them: without running statistics a normalization refuses a single example
    finally:
        for handle in handles:
            handle.remove()
    layers: list[WatchedLayer] = []
    owners: dict[int, str] = {}
    for module, shape in shapes.items():
        name = names[module]
        if "weight" not in module._parameters and not parametrize.is_parametrized(module, "weight"):
            notes.append(f"{name!r} computes its weight by a hook; its norm is not followed")
            continue
        layers.append(WatchedLayer(name, module, shape))
        parameter = module._parameters.get("weight")
        other = owners.setdefault(id(parameter), name) if parameter is not None else name
        if other != name:
            notes.append(
                f"{name!r} and {other!r} share one weight: each is a factor of its own, the parameter counts once"
            )
    return layers, notes


GRAM_WORK = 4_000_000
"""Multiplications up to which a change's Gram matrices are formed: a millisecond, as much as one product with a layer."""


def perturbation_bound(layer: WatchedLayer, change: Tensor) -> float:
    """Upper bound of the operator norm of the layer with `change` as its weight, all rounding accounted for.

    Dense: the Frobenius norm, or where that is cheap `|D D^T|_F^(1/2)`, which lies between it and the operator norm.
    Convolution: its tap t moves entries without copying any (zero or circular padding, any stride, dilation and groups), so
    that the sum over taps of such a bound of `change[:, :, t]` holds.

    Args:
        layer: with `spreads`.
        change: `fl(W - W0)` in the weights' own precision; its rounding is accounted for here.
    """
    dense = isinstance(layer.module, nn.Linear)
    taps = change[None] if dense else change.flatten(2).movedim(2, 0)
    bound = _frobenius_bound(taps.flatten(1))
    groups = 1 if dense else int(layer.module.groups)  # type: ignore[arg-type]
    count, rows, columns = taps.shape
    if count * rows * columns * min(rows // groups, columns) > GRAM_WORK or not math.isfinite(bound):
        return bound
    return min(bound, _gram_bound(taps.reshape(count, groups, rows // groups, columns)))


def _frobenius_bound(taps: Tensor) -> float:
    """The sum over the rows of their Euclidean norms, from above."""
    count = taps.shape[1]
    narrow = taps.dtype != torch.float64
    unit = _unit(taps.dtype)
    if taps.dtype not in (torch.float32, torch.float64):
        taps = taps.float()
    total = float(torch.linalg.vector_norm(taps, dim=1).double().sum())
    # Each entry of `change` is off by u relative; a sum of n squares by (n + 2) u in any order, its root by one more; the
    # squares may underflow by less than n times the smallest number; the sum over taps is in float64.
    slack = (count + 8) * (2.0**-24 if narrow else 2.0**-53)
    if slack >= 0.25 or not math.isfinite(total):
        return math.inf
    lost = math.sqrt(count * (2.0**-149 if narrow else 2.0**-1074)) * len(taps)
    return float(
        np.nextafter((total * (1 + 2 * slack + (len(taps) + 4) * 2.0**-52) + 2 * lost) * (1 + 4 * unit), np.inf)
    )


def _gram_bound(blocks: Tensor) -> float:
    """The sum over taps (T, groups, m, n) of the largest block's `|D D^T|_F^(1/2)`, from above.

    In float64, after a division by a power of two that brings the largest entry to between 1 and 2. With inner dimension k
    the computed Gram matrix is off by at most `k u / (1 - k u) |D|_F^2` in Frobenius norm, whatever the order of its sums;
    what underflows is below 1e-290. The change's own rounding, u' relative in every entry, moves the operator norm by at most
    `u' |D|_F`.
    """
    unit = _unit(blocks.dtype)
    largest = float(blocks.abs().max())
    if largest == 0:
        return math.inf  # what was flushed to zero is in the other bound
    exponent = max(math.floor(math.log2(largest)), -1000)
    exact = blocks.double() * math.ldexp(1.0, -exponent)
    if exact.shape[2] > exact.shape[3]:
        exact = exact.mT
    gram = exact @ exact.mT
    size = exact.shape[2] * max(exact.shape[3], exact.shape[2])
    # Of the norms below, of the Gram matrix relative to |D|_F^2, and of the last steps.
    slack = 2 * (size + 8) * 2.0**-53
    squares = exact.square().sum((2, 3)) * (1 + 2 * slack)
    norms = torch.linalg.vector_norm(gram, dim=(2, 3)) * (1 + slack) + slack * squares + 1e-290
    each = norms.sqrt() + 2 * unit * squares.sqrt()
    total = float(each.amax(1).sum()) * (1 + (len(blocks) + 8) * 2.0**-52)
    # Subnormal numbers may count as zeros.
    flushed = len(blocks) * math.sqrt(blocks[0].numel()) * torch.finfo(blocks.dtype).tiny
    return sum_up([math.ldexp(float(np.nextafter(total, np.inf)), exponent), 2 * flushed])


def _unit(dtype: torch.dtype) -> float:
    """By how much, relatively, a difference in this precision is rounded at most; half precisions keep 8 bits or more."""
    return {torch.float64: 2.0**-53, torch.float32: 2.0**-24}.get(dtype, 2.0**-8)
