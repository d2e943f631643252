"""`Discontinuous`: operations with jumps. They have values and boxes, and no constant."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lipscope.claims.errors import InternalError
from lipscope.claims.norms import Norm
from lipscope.network.nodes import Discontinuous
from lipscope.rules.affine import value
from lipscope.rules.boxes import hull
from lipscope.rules.questions import Interval, NoRule, box_image, evaluate, gain, join

Operator = Callable[..., Tensor]

STEPS: dict[str, Operator] = {
    "sign": torch.sign,
    "round": torch.round,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "truncate": torch.trunc,
}
"""Increasing functions of single entries without parameters."""

TRUTHS: dict[str, Operator] = {
    "equal": torch.eq,
    "less": torch.lt,
    "less_equal": torch.le,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "logical_not": torch.logical_not,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
}
"""Operations whose values are 0 and 1."""


@evaluate.register
def _(node: Discontinuous, *inputs: Tensor) -> Tensor:
    return _evaluate(node, *inputs).to(torch.float64).reshape(-1, *node.shape)


def _evaluate(node: Discontinuous, *inputs: Tensor) -> Tensor:
    x, rest, argument = inputs[0], inputs[1:], node.argument
    axis = node.axis + 1 if node.axis >= 0 else node.axis
    match node.operator:
        case operator if operator in STEPS:
            return STEPS[operator](x)
        case operator if operator in TRUTHS:
            return TRUTHS[operator](x, *rest)
        case "argmax":
            return torch.argmax(x, axis)
        case "argmin":
            return torch.argmin(x, axis)
        case "one_hot":
            length = node.shape[node.axis]
            places = torch.arange(length).reshape(-1, *(1,) * (len(node.shape) - 1 - node.axis % len(node.shape)))
            return torch.where(x.unsqueeze(axis) == places, _number(argument["on"]), _number(argument["off"]))
        case "where":
            return torch.where(x != 0, rest[0], rest[1])
        case "threshold":
            return torch.where(x > argument["threshold"], x, argument["value"])
        case "hardshrink":
            return torch.where(x.abs() > argument["lambd"], x, 0.0)
        case "heaviside":
            return torch.heaviside(x, _number(argument["at_zero"]))
        case "modulo":
            return torch.remainder(x, argument["divisor"])
    raise InternalError(
        f"expected a discontinuous operation of the table in nodes.py, got {node.operator!r} at {node.name!r}"
    )


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@box_image.register
def _(node: Discontinuous, *inputs: Interval) -> Interval:
    """Exact for increasing steps; otherwise everything that the operation yields anywhere, and the box that it passes on."""
    box, rest, argument = inputs[0], inputs[1:], node.argument
    match node.operator:
        case operator if operator in STEPS:
            return Interval(value(node, box.lower), value(node, box.upper))
        case operator if operator in TRUTHS:
            return _between(node, 0.0, 1.0)
        case "argmax" | "argmin":
            return _between(node, 0.0, float(box.lower.shape[node.axis] - 1))
        case "one_hot":
            return _between(node, argument["off"], argument["on"])
        case "heaviside":
            return _between(node, 0.0, 1.0, argument["at_zero"])
        case "where":
            return hull(*rest)
        case "threshold":
            return hull(box, _between(node, argument["value"]))
        case "hardshrink":
            return hull(box, _between(node, 0.0))
        case "modulo":
            return _between(node, 0.0, argument["divisor"])
    raise InternalError(
        f"expected a discontinuous operation of the table in nodes.py, got {node.operator!r} at {node.name!r}"
    )


def _between(node: Discontinuous, *values: float) -> Interval:
    """The same interval everywhere, from the smallest to the largest of the values."""
    return Interval(*(torch.full(node.shape, end, dtype=torch.float64) for end in (min(values), max(values))))


def _reason(node: Discontinuous) -> str:
    return f"{node.operator} jumps, so no finite constant holds across a jump; remove it or bound the part before it"


@gain.register
def _(node: Discontinuous, norm: Norm, region: Interval | None) -> float:
    raise NoRule(node, "gain", _reason(node))


@join.register
def _(node: Discontinuous, norm: Norm, constants: tuple[float, ...], regions: tuple[Interval, ...] | None) -> float:
    raise NoRule(node, "join", _reason(node))
