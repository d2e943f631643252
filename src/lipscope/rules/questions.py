"""The questions that can be asked of a node. A rule is an answer, registered beside the node's family.

A question is a `functools.singledispatch` function of the node. Where a kind has no rule, the question raises
`NoRule`: for a kind that only the user knows it says how to add one, for one of ours it says why there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from lipscope.claims.errors import LipscopeError
from lipscope.claims.norms import Norm
from lipscope.network.nodes import KINDS, Node


class NoRule(LipscopeError):
    """A question without an answer for a node. Methods turn it into a refusal that names the node."""

    def __init__(self, node: Node, question: str, reason: str = "") -> None:
        self.node = node
        if not reason:
            ours = node.kind in KINDS
            reason = (
                f"there is no finite {question} for {node.kind}"
                if ours
                else f"register a rule with lipscope.rules.questions.{question}.register({node.kind})"
            )
        self.reason = reason
        super().__init__(f"{node.kind} at {node.name!r} has no {question}: {reason}")


@dataclass(frozen=True)
class Interval:
    """A box of values: float64 tensors with `lower <= upper` entrywise, of the node's shape. Ends may be infinite."""

    lower: Tensor
    upper: Tensor

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value, entrywise."""
        return torch.maximum(self.lower.abs(), self.upper.abs())


@dataclass(frozen=True)
class Roundings:
    """How many rounded operations lie on the longest way from an input entry to an output entry.

    With u = 2^-53, a computed linear map differs from the exact one by at most `gamma_k |L| |x|` entrywise,
    `gamma_k = k u/(1 - k u)`, k = `forward` (of the map) or `adjoint` (of its transpose); both counts include the
    roundings of coefficients that are themselves computed (a BatchNorm's scale, 1/9 of an average).
    """

    forward: int
    adjoint: int


@singledispatch
def evaluate(node: Node, *inputs: Tensor) -> Tensor:
    """The value of the node: inputs and result are float64 tensors of shape `(B, *shape)`, differentiable by autograd."""
    raise NoRule(node, "evaluate")


@singledispatch
def linear_part(node: Node) -> Node:
    """An affine node without its constant part, so that `evaluate` of it is linear (jointly in several inputs)."""
    raise NoRule(node, "linear_part", "it is not an affine map")


@singledispatch
def absolute(node: Node) -> Node:
    """For the linear part of an affine node: the node whose coefficients are the absolute values, rounded upward where computed."""
    raise NoRule(node, "absolute", "it is not an affine map")


@singledispatch
def roundings(node: Node) -> Roundings:
    """The number of rounded operations in `evaluate` of an affine node's linear part and in its adjoint."""
    raise NoRule(node, "roundings", "it is not an affine map")


@singledispatch
def slopes(node: Node, region: Interval | None) -> tuple[Tensor, Tensor]:
    """Enclosure (lower, upper) of all difference quotients of an entrywise function, of the node's shape, rounded outward.

    `region` is an interval that contains every value of the operand, or None for the whole line. Entries may be
    infinite where the function is not Lipschitz there.
    """
    raise NoRule(node, "slopes", "it is not a function of single entries")


@singledispatch
def box_image(node: Node, *inputs: Interval) -> Interval:
    """A box that contains the node's value whenever its inputs lie in theirs, rounded outward."""
    raise NoRule(node, "box_image")


@singledispatch
def gain(node: Node, norm: Norm, region: Interval | None) -> float:
    """Upper bound of the Lipschitz constant of a node with one input that is not affine, in `norm`, rounded upward.

    `region` is a box that contains the operand, or None for the whole space.

    Raises:
        NoRule: there is no finite constant there; the reason says why.
    """
    raise NoRule(node, "gain")


@singledispatch
def join(node: Node, norm: Norm, constants: tuple[float, ...], regions: tuple[Interval, ...] | None) -> float:
    """Upper bound of the Lipschitz constant of a node with several inputs, given those of its inputs, rounded upward.

    Raises:
        NoRule: there is no finite constant on the given regions (None: the whole space); the reason says why.
    """
    raise NoRule(node, "join")
