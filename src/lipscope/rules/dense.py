"""`Dense`: a matrix along one axis."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lipscope.network.nodes import Dense
from lipscope.rules.affine import majorant
from lipscope.rules.questions import Roundings, absolute, evaluate, linear_part, roundings
from lipscope.rules.tensors import magnitude, real


@evaluate.register
def _(node: Dense, *inputs: Tensor) -> Tensor:
    y = inputs[0].movedim(node.axis + 1, -1) @ real(node.weight).T
    if node.bias is not None:
        y = y + real(node.bias)
    return y.movedim(-1, node.axis + 1)


@linear_part.register
def _(node: Dense) -> Dense:
    return replace(node, bias=None)


@absolute.register
def _(node: Dense) -> Dense:
    return replace(node, weight=magnitude(node.weight))


@majorant.register
def _(node: Dense) -> Dense:
    bias = None if node.bias is None else magnitude(node.bias)
    return replace(node, weight=magnitude(node.weight), bias=bias)


@roundings.register
def _(node: Dense) -> Roundings:
    # A dot product of length n in any order, fused or not: one product and at most n - 1 additions; one to spare.
    rows, columns = node.weight.shape
    return Roundings(columns + 1, rows + 1)
