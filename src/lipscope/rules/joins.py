"""Nodes with several inputs: `Add`, `Maximum`, `Multiply`, `Divide`, `MatMul`; the constant of `Concat` is here too."""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor

from lipscope.claims.errors import InternalError
from lipscope.claims.norms import Norm
from lipscope.claims.rounding import down, gamma, norm_up, product_up, quotient_up, sqrt_up, sum_up, up
from lipscope.network.nodes import Add, Concat, Divide, MatMul, Maximum, Multiply, Node
from lipscope.rules.affine import UNDERFLOW, midpoint_radius, widen
from lipscope.rules.boxes import product, reciprocal, smallest_magnitude
from lipscope.rules.questions import (
    Interval,
    NoRule,
    Roundings,
    absolute,
    box_image,
    evaluate,
    join,
    linear_part,
    roundings,
)


@evaluate.register
def _(node: Add, *inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs)


@evaluate.register
def _(node: Maximum, *inputs: Tensor) -> Tensor:
    return reduce(torch.maximum, inputs)


@evaluate.register
def _(node: Multiply, *inputs: Tensor) -> Tensor:
    a, b = inputs
    return a * b


@evaluate.register
def _(node: Divide, *inputs: Tensor) -> Tensor:
    a, b = inputs
    return a / b


@evaluate.register
def _(node: MatMul, *inputs: Tensor) -> Tensor:
    a, b = inputs
    return a @ b


@linear_part.register
def _(node: Add) -> Add:
    return node


@absolute.register
def _(node: Add) -> Add:
    return node


@roundings.register
def _(node: Add) -> Roundings:
    return Roundings(len(node.inputs) - 1, 0)


@box_image.register
def _(node: Maximum, *inputs: Interval) -> Interval:
    """Exact: increasing in every input."""
    return Interval(reduce(torch.maximum, (b.lower for b in inputs)), reduce(torch.maximum, (b.upper for b in inputs)))


@box_image.register
def _(node: Multiply, *inputs: Interval) -> Interval:
    """The exact range of a product of two independent numbers."""
    return product(*inputs)


@box_image.register
def _(node: Divide, *inputs: Interval) -> Interval:
    """The exact range of a quotient of two independent numbers; the whole line where the divisor may be 0."""
    dividend, divisor = inputs
    return product(dividend, reciprocal(divisor))


@box_image.register
def _(node: MatMul, *inputs: Interval) -> Interval:
    """Midpoint and radius: `|A B - a b| <= |a| R + r (|b| + R)` with midpoints a, b and radii r, R.

    Where an operand is unbounded, so is everything.
    """
    if not all(torch.isfinite(b.lower).all() and torch.isfinite(b.upper).all() for b in inputs):
        everything = torch.full(node.shape, math.inf, dtype=torch.float64)
        return Interval(-everything, everything)
    (a, r), (b, s) = (midpoint_radius(box) for box in inputs)
    centre, radius = a @ b, a.abs() @ s + r @ (b.abs() + s)
    largest = (a.abs() + r) @ (b.abs() + s)
    # Rounding of sums of k products, for us and for the checker's other order of summation (see affine.py).
    error = 8 * gamma(a.shape[-1] + 6) * largest + UNDERFLOW
    return widen(down(centre - radius), up(centre + radius), error)


# ---------------------------------------------------------------------------------------------------------- constants


@join.register
def _(node: Add, norm: Norm, constants: tuple[float, ...], regions: tuple[Interval, ...] | None) -> float:
    """The triangle inequality."""
    return sum_up(constants)


@join.register(Concat)
@join.register(Maximum)
def _(node: Node, norm: Norm, constants: tuple[float, ...], regions: tuple[Interval, ...] | None) -> float:
    """The norm of the vector of constants; a maximum moves at most as the largest of its inputs, entrywise."""
    if norm == "linf":
        return max(constants)
    return sum_up(constants) if norm == "l1" else norm_up(constants)


@join.register
def _(node: Multiply, norm: Norm, constants: tuple[float, ...], regions: tuple[Interval, ...] | None) -> float:
    """`K_1 M_2 + K_2 M_1`: |a b - a' b'| <= |a - a'| |b| + |a'| |b - b'|."""
    left, right = _bounded(node, constants, regions, "a product of two values that both depend on the input")
    first, second = (float(box.magnitude.max()) for box in (left, right))
    return sum_up((product_up(constants[0], second), product_up(constants[1], first)))


@join.register
def _(node: Divide, norm: Norm, constants: tuple[float, ...], regions: tuple[Interval, ...] | None) -> float:
    """`K_1/m_2 + K_2 M_1/m_2^2`: |a/b - a'/b'| <= |a - a'|/|b| + |a'| |b - b'|/(|b| |b'|)."""
    left, right = _bounded(node, constants, regions, "a quotient by a value that depends on the input")
    smallest = float(smallest_magnitude(right).min())
    if smallest == 0:
        raise NoRule(node, "join", "the divisor may be 0 on the region; give a smaller region, or add a constant to it")
    largest = float(left.magnitude.max())
    return sum_up(
        (
            quotient_up(constants[0], smallest),
            quotient_up(quotient_up(product_up(constants[1], largest), smallest), smallest),
        )
    )


@join.register
def _(node: MatMul, norm: Norm, constants: tuple[float, ...], regions: tuple[Interval, ...] | None) -> float:
    """The norms of `X -> X B` and of `X -> A X` on the entries of X, as largest sums of absolute values.

    `X B` acts on rows: its norm in l1 is the largest row sum of |B|, in linf the largest column sum, in l2 at most the
    root of their product (Schur); `A X` acts on columns: in l1 the largest column sum of |A|, in linf the largest row sum.
    """
    left, right = _bounded(node, constants, regions, "a matrix product of two values that both depend on the input")
    rows_a, columns_a = _sums(left)
    rows_b, columns_b = _sums(right)
    if norm == "l1":
        by_b, by_a = float(rows_b.max()), float(columns_a.max())
    elif norm == "linf":
        by_b, by_a = float(columns_b.max()), float(rows_a.max())
    else:
        by_b, by_a = _schur(rows_b, columns_b), _schur(rows_a, columns_a)
    return sum_up((product_up(constants[0], by_b), product_up(constants[1], by_a)))


def _bounded(
    node: Node, constants: tuple[float, ...], regions: tuple[Interval, ...] | None, what: str
) -> tuple[Interval, Interval]:
    """The two regions, if they tell how large each factor is that a change of the other is multiplied by."""
    if len(constants) != 2:
        raise InternalError(f"expected two constants for {node.kind} at {node.name!r}, got {len(constants)}")
    if regions is None:
        raise NoRule(node, "join", f"{what} is not Lipschitz on the whole space; give a box region")
    left, right = regions
    if not all(torch.isfinite(box.magnitude).all() for box in regions):
        raise NoRule(
            node, "join", f"{what} is not Lipschitz where its operands are unbounded; give a smaller box region"
        )
    return left, right


def _sums(box: Interval) -> tuple[Tensor, Tensor]:
    """Row sums and column sums of the entrywise largest absolute value, rounded upward, per leading block."""
    size = box.magnitude
    rows, columns = size.sum(-1), size.sum(-2)
    return up(rows * (1 + 2 * gamma(size.shape[-1] + 1))), up(columns * (1 + 2 * gamma(size.shape[-2] + 1)))


def _schur(rows: Tensor, columns: Tensor) -> float:
    """The largest root of (largest row sum x largest column sum) over the leading blocks, rounded upward."""
    return sqrt_up(float(up(rows.amax(-1) * columns.amax(-1)).max()))
