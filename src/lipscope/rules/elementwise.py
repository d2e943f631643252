"""`Elementwise`: functions of single entries, by the table in `functions`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipscope.claims.errors import ModelError
from lipscope.network.nodes import Elementwise
from lipscope.rules.curves import Curve
from lipscope.rules.functions import FUNCTIONS, Function
from lipscope.rules.questions import Interval, NoRule, box_image, evaluate, slopes
from lipscope.rules.tensors import real


def function_of(node: Elementwise) -> Function:
    """The row of the table that the node names.

    Raises:
        ModelError: there is none, or the node's parameters are not the function's.
    """
    function = FUNCTIONS.get(node.function)
    if function is None:
        raise ModelError(
            f"expected a function out of {', '.join(FUNCTIONS)}, got {node.function!r} at layer {node.name!r}; "
            "write it with functions of the table"
        )
    given = set(node.argument) | ({"slope"} if node.slope is not None else set())
    if given != set(function.parameters):
        raise ModelError(
            f"expected {node.function} to have the parameters {sorted(function.parameters)}, got {sorted(given)} "
            f"at layer {node.name!r}; give exactly these"
        )
    return function


def _parameters(node: Elementwise) -> dict[str, Tensor]:
    parameters = {name: torch.tensor(value, dtype=torch.float64) for name, value in node.arguments}
    return parameters if node.slope is None else parameters | {"slope": real(node.slope)}


@evaluate.register
def _(node: Elementwise, *inputs: Tensor) -> Tensor:
    return function_of(node).value.right(inputs[0], _parameters(node))


@box_image.register
def _(node: Elementwise, *inputs: Interval) -> Interval:
    """The range of the function on the interval and its domain."""
    function, (box,) = function_of(node), inputs
    lower, upper = _in_domain(node, function, box, "box_image")
    return Interval(*_range(function.value, node, lower, upper))


@slopes.register
def _(node: Elementwise, region: Interval | None) -> tuple[Tensor, Tensor]:
    """The range of the derivative between the ends, one-sided limits at kinks included.

    It is the exact range of the difference quotients for continuous, piecewise differentiable functions. Where an interval
    is one point there are no two values to compare; the one-sided derivatives there are returned.
    """
    function = function_of(node)
    if region is None:
        everything = torch.full(node.shape, math.inf, dtype=torch.float64)
        region = Interval(-everything, everything)
    lower, upper = _in_domain(node, function, region, "slopes")
    low, high = _range(function.slope, node, lower, upper)
    for start, stop, slope in function.pieces(_parameters(node)):
        inside = (lower >= start) & (upper <= stop) & (lower < upper)
        low, high = torch.where(inside, slope, low), torch.where(inside, slope, high)
    return low, high


def _range(curve: Curve, node: Elementwise, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    return curve.range(lower, upper, _parameters(node))


def _in_domain(node: Elementwise, function: Function, box: Interval, question: str) -> tuple[Tensor, Tensor]:
    """The part of the interval on which the function is defined: wherever the network has a value, the operand is there."""
    if function.start == -math.inf:
        return box.lower, box.upper
    if (box.upper < function.start).any():
        raise NoRule(
            node,
            question,
            f"{node.function} is defined from {function.start:g} on, and its operand reaches {float(box.upper.min()):g}",
        )
    return box.lower.clamp(min=function.start), box.upper
