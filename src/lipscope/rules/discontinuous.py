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
            # Its derivative, 0, is not known to torch.
            return torch.heaviside(x.detach(), _number(argument["at_zero"]))
        case "modulo":
            return torch.remainder(x, argument["divisor"])
    raise InternalError(
        f"expected a discontinuous operation of the table in nodes.py, got {node.operator!r} at {node.name!r}"
    )


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@box_image.register
def _(node: Discontinuous, *inputs: Interval) -> Interval:
    """Exact for increasing steps and for decisions that the box settles; otherwise all that the operation may yield."""
    box, rest, argument = inputs[0], inputs[1:], node.argument
    match node.operator:
        case operator if operator in STEPS:
            return Interval(value(node, box.lower), value(node, box.upper))
        case operator if operator in TRUTHS:
            return _truth(node, box, *rest)
        case "argmax":
            return _extreme(node, box)
        case "argmin":
            return _extreme(node, Interval(-box.upper, -box.lower))
        case "one_hot":
            return _one_hot(node, box, argument["off"], argument["on"])
        case "heaviside":
            return _between(node, 0.0, 1.0, argument["at_zero"])
        case "where":
            settled = (box.lower > 0) | (box.upper < 0), (box.lower == 0) & (box.upper == 0)
            return _choose(*settled, *rest)
        case "threshold":
            other = _between(node, argument["value"])
            limit = argument["threshold"]
            return _choose(box.lower > limit, box.upper <= limit, box, other)
        case "hardshrink":
            limit = argument["lambd"]
            outside = (box.lower > limit) | (box.upper < -limit)
            return _choose(outside, (box.lower >= -limit) & (box.upper <= limit), box, _between(node, 0.0))
        case "modulo":
            return _between(node, 0.0, argument["divisor"])
    raise InternalError(
        f"expected a discontinuous operation of the table in nodes.py, got {node.operator!r} at {node.name!r}"
    )


def _truth(node: Discontinuous, box: Interval, *rest: Interval) -> Interval:
    """0 or 1 where the boxes decide, [0, 1] where they do not."""
    a, b = box, rest[0] if rest else box
    false = {
        "equal": lambda: (a.upper < b.lower) | (b.upper < a.lower),
        "less": lambda: a.lower >= b.upper,
        "less_equal": lambda: a.lower > b.upper,
        "greater": lambda: a.upper <= b.lower,
        "greater_equal": lambda: a.upper < b.lower,
        "logical_not": lambda: _nonzero(a),
        "logical_and": lambda: _zero(a) | _zero(b),
        "logical_or": lambda: _zero(a) & _zero(b),
    }[node.operator]()
    true = {
        "equal": lambda: (a.lower == a.upper) & (b.lower == b.upper) & (a.lower == b.lower),
        "less": lambda: a.upper < b.lower,
        "less_equal": lambda: a.upper <= b.lower,
        "greater": lambda: a.lower > b.upper,
        "greater_equal": lambda: a.lower >= b.upper,
        "logical_not": lambda: _zero(a),
        "logical_and": lambda: _nonzero(a) & _nonzero(b),
        "logical_or": lambda: _nonzero(a) | _nonzero(b),
    }[node.operator]()
    return Interval(true.to(torch.float64).reshape(node.shape), (~false).to(torch.float64).reshape(node.shape))


def _zero(box: Interval) -> Tensor:
    return (box.lower == 0) & (box.upper == 0)


def _nonzero(box: Interval) -> Tensor:
    return (box.lower > 0) | (box.upper < 0)


def _extreme(node: Discontinuous, box: Interval) -> Interval:
    """The smallest and the largest index that may hold the first maximum: no other entry is certainly larger."""
    largest = box.lower.amax(node.axis, keepdim=True)
    may = (box.upper >= largest).to(torch.float64)
    length = box.lower.shape[node.axis]
    first = may.argmax(node.axis)
    last = length - 1 - may.flip(node.axis).argmax(node.axis)
    return Interval(first.to(torch.float64).reshape(node.shape), last.to(torch.float64).reshape(node.shape))


def _one_hot(node: Discontinuous, box: Interval, off: float, on: float) -> Interval:
    axis = node.axis % len(node.shape)
    places = torch.arange(node.shape[axis], dtype=torch.float64).reshape(-1, *(1,) * (len(node.shape) - 1 - axis))
    low, high = box.lower.unsqueeze(axis), box.upper.unsqueeze(axis)
    never, always = (places < low) | (places > high), (low == places) & (high == places)
    return _choose(always, never, _between(node, on), _between(node, off))


def _choose(first: Tensor, second: Tensor, a: Interval, b: Interval) -> Interval:
    """`a` where `first` is settled, `b` where `second` is, otherwise the smallest box around both."""
    either = hull(a, b)
    ends = (
        torch.where(first, x, torch.where(second, y, z))
        for x, y, z in ((a.lower, b.lower, either.lower), (a.upper, b.upper, either.upper))
    )
    return Interval(*ends)


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
