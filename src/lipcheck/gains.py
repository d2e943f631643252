"""The closed forms of the rules `gain` and `join`, rounded upward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from flint import arb, ctx

from lipcheck.boxes import Box
from lipcheck.errors import Rejected
from lipcheck.functions import arb_up
from lipcheck.nodes import Node
from lipcheck.reductions import mean_square_down
from lipcheck.rounding import Floats, norm_up, sum_up, up

GetBox = Callable[[int], Box]
"""The box of the i-th input of the node; raises `Rejected` where the region is everywhere."""


JOINED = frozenset({"Add", "Concat", "Maximum", "Multiply", "MatMul", "Divide"})
"""The kinds with a rule `join`."""


def _root(n: int) -> float:
    with ctx.workprec(120):
        return arb_up(arb(n).sqrt())


def overlap(node: Node, size: tuple[int, ...]) -> int:
    """The largest number of windows of a `MaxPool` that hold one entry: the product over the axes."""
    total = 1
    for n, rows in zip(size[len(size) - len(node["windows"]) :], node["windows"], strict=True):
        counts = np.zeros(n, dtype=np.int64)
        for start, stop, step in rows:
            counts[start:stop:step] += 1
        total *= int(counts.max())
    return total


def _normalisation(node: Node, norm: str, n: int, everywhere: bool, box: GetBox) -> float:
    least = 0.0
    if not everywhere:
        operand = box(0)
        least = mean_square_down(node, operand.lo, operand.hi)
    with ctx.workprec(120):
        spread = arb(least) + arb(node["eps"])
        if not spread > 0:
            raise Rejected("there is no finite gain where the variance and eps may both be 0")
        root = arb(n).sqrt()
        if norm == "l2":
            factor = arb(1)
        elif node.kind == "RMSNorm":
            factor = (1 + root) / 2
        else:
            factor = (2 * (1 - arb(1) / n) + (root - 1) / 2).min(root)
        return arb_up(factor / spread.sqrt())


def gain(node: Node, operand: tuple[int, ...], norm: str, everywhere: bool, box: GetBox) -> float:
    """An upper bound of the Lipschitz constant of a node with one input that is not affine.

    Raises:
        Rejected: the kind has no closed form, or not on this region.
    """
    kind = node.kind
    if kind == "MaxPool":
        count = overlap(node, operand)
        return {"l1": float(count), "l2": _root(count), "linf": 1.0}[norm]
    if kind in ("ReduceMax", "LogSumExp", "Sort"):
        return 1.0
    if kind not in ("Softmax", "LogSoftmax", "ReduceL2", "LayerNorm", "RMSNorm"):
        raise Rejected(f"there is no closed form for the gain of {kind}")
    axes = (node["axis"],) if "axis" in node.fields else node.fields.get("axes", ())
    n = math.prod(operand[a] for a in axes)
    if kind == "Softmax":
        return 0.5 if n > 1 else 0.0
    if kind == "LogSoftmax":
        return {"l1": float(max(1, n - 1)), "l2": _root(n), "linf": 2.0}[norm] if n > 1 else 0.0
    if kind == "ReduceL2":
        return _root(n) if norm == "linf" else 1.0
    if kind == "LayerNorm" and n == 1:
        return 0.0
    return _normalisation(node, norm, n, everywhere, box)


def _sum(values: Sequence[float]) -> float:
    """Upper bound of a sum of numbers that are not negative: zeros cost nothing, one number is its own sum."""
    return norm_up(np.array(values), "l1")


def _times(a: float, b: float) -> float:
    """`a b` rounded upward, 0 if a is 0 (b is finite)."""
    return 0.0 if a == 0 or b == 0 else up(a * b)


def _sums(magnitude: Floats) -> tuple[float, float]:
    """The largest column sum and row sum of the leading blocks."""
    return float(sum_up(magnitude, -2).max()), float(sum_up(magnitude, -1).max())


def _blocks(magnitude: Floats) -> float:
    columns, rows = sum_up(magnitude, -2).max(axis=-1), sum_up(magnitude, -1).max(axis=-1)
    return max(up(up(math.sqrt(c)) * up(math.sqrt(r))) for c, r in zip(columns.ravel(), rows.ravel(), strict=True))


def join(node: Node, norm: str, constants: Sequence[float], box: GetBox) -> float:
    """An upper bound of the constant of a node with several inputs, given those of its inputs.

    Raises:
        Rejected: the kind has no rule, or needs boxes and there are none.
    """
    kind = node.kind
    if kind == "Divide" and not (box(1).smallest > 0).all():
        raise Rejected("the divisor may be 0")
    if kind in JOINED and not any(constants):
        return 0.0
    if kind == "Add":
        return _sum(constants)
    if kind in ("Concat", "Maximum"):
        return norm_up(np.array(constants), norm)
    if kind in ("Multiply", "MatMul", "Divide"):
        a, b = constants
        first, second = box(0), box(1)
        if kind == "Multiply":
            return _sum([_times(a, float(second.magnitude.max())), _times(b, float(first.magnitude.max()))])
        if kind == "MatMul":
            left, right = first.magnitude, second.magnitude
            if norm == "l2":
                return _sum([_times(a, _blocks(right)), _times(b, _blocks(left))])
            columns, rows = (1, 0) if norm == "l1" else (0, 1)
            return _sum([_times(a, _sums(right)[columns]), _times(b, _sums(left)[rows])])
        least = float(second.smallest.min())
        square = math.nextafter(least * least, 0.0)
        if not square > 0:
            raise Rejected("the divisor is too close to 0")
        return _sum([up(a / least) if a else 0.0, up(_times(b, float(first.magnitude.max())) / square) if b else 0.0])
    raise Rejected(f"there is no rule to join the inputs of {kind}")
