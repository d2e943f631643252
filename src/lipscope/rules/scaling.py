"""Entrywise affine maps with constant coefficients: `BatchNorm`, `AddConstant`, `MulConstant`, `DivConstant`."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lipscope.network.nodes import AddConstant, Array, BatchNorm, DivConstant, MulConstant, Node, Reshape
from lipscope.rules.affine import majorant
from lipscope.rules.questions import Roundings, absolute, evaluate, linear_part, roundings
from lipscope.rules.tensors import magnitude, real, zeros_like


@evaluate.register
def _(node: BatchNorm, *inputs: Tensor) -> Tensor:
    def along_axis(array: Array) -> Tensor:
        return real(array).reshape(-1, *(1,) * (len(node.shape) - node.axis - 1))

    scale = along_axis(node.weight) / (along_axis(node.variance) + node.eps).sqrt()
    return (inputs[0] - along_axis(node.mean)) * scale + along_axis(node.bias)


@evaluate.register
def _(node: AddConstant, *inputs: Tensor) -> Tensor:
    return inputs[0] + real(node.value)


@evaluate.register
def _(node: MulConstant, *inputs: Tensor) -> Tensor:
    return inputs[0] * real(node.value)


@evaluate.register
def _(node: DivConstant, *inputs: Tensor) -> Tensor:
    return inputs[0] / real(node.value)


# A BatchNorm stays one: its coefficients are exact as long as nobody computes them, and `roundings` counts what
# `evaluate` loses when it does.


@linear_part.register
def _(node: BatchNorm) -> BatchNorm:
    return replace(node, mean=zeros_like(node.mean), bias=zeros_like(node.bias))


@linear_part.register
def _(node: AddConstant) -> Node:
    return Reshape(inputs=node.inputs, shape=node.shape, name=node.name)


@linear_part.register(MulConstant)
@linear_part.register(DivConstant)
def _(node: Node) -> Node:
    return node


@absolute.register
def _(node: BatchNorm) -> BatchNorm:
    return replace(node, weight=magnitude(node.weight))


@absolute.register(MulConstant)
@absolute.register(DivConstant)
def _(node: MulConstant | DivConstant) -> Node:
    return replace(node, value=magnitude(node.value))


@majorant.register
def _(node: BatchNorm) -> BatchNorm:
    # (|x| + |mean|) |scale| + |bias|
    return replace(node, mean=-magnitude(node.mean), weight=magnitude(node.weight), bias=magnitude(node.bias))


@majorant.register
def _(node: AddConstant) -> AddConstant:
    return replace(node, value=magnitude(node.value))


@absolute.register
def _(node: AddConstant) -> Node:
    return linear_part(node)


@roundings.register
def _(node: AddConstant) -> Roundings:
    return Roundings(0, 0)


@roundings.register
def _(node: BatchNorm) -> Roundings:
    # variance + eps (its root keeps at most half of that error), the root, the quotient, the product; one to spare.
    return Roundings(5, 5)


@roundings.register(MulConstant)
@roundings.register(DivConstant)
def _(node: Node) -> Roundings:
    return Roundings(1, 1)
