"""What the network starts from: its input and constants."""

from __future__ import annotations

from torch import Tensor

from lipscope.claims.errors import InternalError
from lipscope.claims.rounding import down, up
from lipscope.network.nodes import Constant, Input
from lipscope.rules.questions import Interval, box_image, evaluate
from lipscope.rules.tensors import real


@evaluate.register
def _(node: Input, *inputs: Tensor) -> Tensor:
    if len(inputs) != 1:
        raise InternalError("the value of an Input is given by whoever evaluates: pass it as the one argument")
    return inputs[0].reshape(-1, *node.shape)


@evaluate.register
def _(node: Constant, *inputs: Tensor) -> Tensor:
    """The value with a batch axis of length 1."""
    return real(node.value).reshape(1, *node.shape)


@box_image.register
def _(node: Input, *inputs: Interval) -> Interval:
    if len(inputs) != 1:
        raise InternalError("the box of an Input is the region's: pass it as the one argument")
    return Interval(inputs[0].lower.reshape(node.shape), inputs[0].upper.reshape(node.shape))


@box_image.register
def _(node: Constant, *inputs: Interval) -> Interval:
    """The point itself, except for integers beyond 2^53, which need not be float64 numbers."""
    value = real(node.value).reshape(node.shape)
    if node.value.dtype.kind in "iu":
        inexact = value.abs() > 2.0**53
        return Interval(value.where(~inexact, down(value)), value.where(~inexact, up(value)))
    return Interval(value, value)
