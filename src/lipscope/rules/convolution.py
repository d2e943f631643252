"""`Conv` and `ConvTranspose` in one, two and three dimensions.

Torch computes float64 convolutions on the CPU as plain sums of products (im2col and a matrix product; the Winograd and
FFT kernels exist for float32 only), so that the count of roundings is that of a dot product.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from lipscope.claims.errors import ModelError
from lipscope.network.nodes import Conv, ConvTranspose
from lipscope.rules.affine import majorant
from lipscope.rules.questions import Roundings, absolute, evaluate, linear_part, roundings
from lipscope.rules.tensors import magnitude, real

_CONV = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_TRANSPOSE = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


def _dimensions(node: Conv | ConvTranspose) -> int:
    dimensions = node.weight.ndim - 2
    if dimensions not in _CONV:
        raise ModelError(
            f"expected a convolution over 1, 2 or 3 axes, got {dimensions} at layer {node.name!r} ({node.kind}); "
            "rewrite the layer with a convolution of fewer dimensions"
        )
    return dimensions


def _with_bias(node: Conv | ConvTranspose, y: Tensor) -> Tensor:
    if node.bias is None:
        return y
    return y + real(node.bias).reshape(-1, *(1,) * (node.weight.ndim - 2))


@evaluate.register
def _(node: Conv, *inputs: Tensor) -> Tensor:
    x = inputs[0]
    convolve = _CONV[_dimensions(node)]
    images = x.reshape(-1, *x.shape[2:])
    if any(low or high for low, high in node.padding):
        images = functional.pad(images, [p for pair in reversed(node.padding) for p in pair])
    y = convolve(images, real(node.weight), None, node.stride, 0, node.dilation, node.groups)
    return _with_bias(node, y).reshape(x.shape[0], *node.shape)


@evaluate.register
def _(node: ConvTranspose, *inputs: Tensor) -> Tensor:
    x = inputs[0]
    convolve = _TRANSPOSE[_dimensions(node)]
    images = x.reshape(-1, *x.shape[2:])
    y = convolve(images, real(node.weight), None, node.stride, 0, 0, node.groups, node.dilation)
    cuts: list[int] = []
    for (low, _), full, wanted in reversed(list(zip(node.padding, y.shape[2:], node.shape[2:], strict=True))):
        cuts += [-low, wanted - (full - low)]  # a negative pad cuts
    return _with_bias(node, functional.pad(y, cuts)).reshape(x.shape[0], *node.shape)


@linear_part.register(Conv)
@linear_part.register(ConvTranspose)
def _(node: Conv | ConvTranspose) -> Conv | ConvTranspose:
    return replace(node, bias=None)


@absolute.register(Conv)
@absolute.register(ConvTranspose)
def _(node: Conv | ConvTranspose) -> Conv | ConvTranspose:
    return replace(node, weight=magnitude(node.weight))


@majorant.register(Conv)
@majorant.register(ConvTranspose)
def _(node: Conv | ConvTranspose) -> Conv | ConvTranspose:
    bias = None if node.bias is None else magnitude(node.bias)
    return replace(node, weight=magnitude(node.weight), bias=bias)


@roundings.register
def _(node: Conv) -> Roundings:
    # Dot products over the C/groups inputs of a group and the kernel; the adjoint sums over the O/groups outputs of a
    # group and the kernel. One to spare each.
    outputs, inputs, *kernel = node.weight.shape
    taps = math.prod(kernel)
    return Roundings(inputs * taps + 1, outputs // node.groups * taps + 1)


@roundings.register
def _(node: ConvTranspose) -> Roundings:
    # The adjoint of a Conv with weight (C, O/groups, *kernel): the two counts change places.
    inputs, outputs, *kernel = node.weight.shape
    taps = math.prod(kernel)
    return Roundings(inputs // node.groups * taps + 1, outputs * taps + 1)
