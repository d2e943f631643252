"""The independent checker computes the same boxes, slopes and gains with other code: its enclosures lie inside ours."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lipcheck.boxes import Box, image
from lipcheck.errors import Rejected
from lipcheck.functions import slopes as checker_slopes
from lipcheck.gains import gain as checker_gain
from lipcheck.gains import join as checker_join
from lipcheck.nodes import Node as CheckerNode
from lipscope.claims.norms import NORMS
from lipscope.network.nodes import Node
from lipscope.rules import Interval, NoRule, box_image, gain, join, slopes
from rules.rule_cases import CASES
from rules.test_boxes import boxes_of
from rules.test_slopes import INTERVALS, ROWS, function_node, in_domain


def checker_node(node: Node) -> CheckerNode:
    fields = node.parameters()
    for key, value in fields.items():
        if isinstance(value, np.ndarray):
            fields[key] = value.astype(np.float64 if value.dtype.kind == "f" else np.int64)
    return CheckerNode(node.kind, node.inputs, node.shape, node.name, fields)


def checker_box(box: Interval) -> Box:
    return Box(box.lower.numpy(), box.upper.numpy())


def assert_inside(low: np.ndarray, high: np.ndarray, lower: Tensor, upper: Tensor) -> None:
    assert (lower.numpy() <= low).all()
    assert (high <= upper.numpy()).all()


@pytest.mark.parametrize("width", [0.0, 1e-9, 0.3, 5.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 100.0])
@pytest.mark.parametrize("name", [n for n in CASES if n != "Input"])
def test_boxes(name: str, scale: float, width: float) -> None:
    case = CASES[name]
    boxes = boxes_of(case, 7, width, scale)
    ours = box_image(case.node, *boxes)
    try:
        theirs = image(checker_node(case.node), [checker_box(b) for b in boxes])
    except Rejected:
        assert name in {"Divide", "Elementwise exp"}, "the checker refuses an operation that ours encloses"
        return
    assert_inside(theirs.lo, theirs.hi, ours.lower, ours.upper)


@pytest.mark.parametrize("count", [3, 1000, 20000])
@pytest.mark.parametrize("name", ["Sum", "Mean"])
def test_long_sums(name: str, count: int) -> None:
    node = type(CASES[name].node)(inputs=(0,), shape=(), axes=(0,))
    centre = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = box_image(node, Interval(centre, centre + 0.1))
    theirs = image(checker_node(node), [checker_box(Interval(centre, centre + 0.1))])
    assert_inside(theirs.lo, theirs.hi, ours.lower, ours.upper)


@pytest.mark.parametrize(("name", "arguments"), ROWS, ids=[f"{n}-{dict(a)}" for n, a in ROWS])
def test_slopes(name: str, arguments: tuple[tuple[str, float], ...]) -> None:
    inside = [i for i in INTERVALS if in_domain(name, i[0]) and not (name == "sqrt" and i[0] == 0)]
    low, high = (torch.tensor(ends, dtype=torch.float64) for ends in zip(*inside, strict=True))
    node = function_node(name, (len(inside),), arguments)
    ours = slopes(node, Interval(low, high))
    assert_inside(*checker_slopes(checker_node(node), low.numpy(), high.numpy()), *ours)
    everything = torch.full((len(inside),), math.inf, dtype=torch.float64)
    ours = slopes(node, None)
    if torch.isfinite(ours[0]).all() and torch.isfinite(ours[1]).all():
        assert_inside(*checker_slopes(checker_node(node), -everything.numpy(), everything.numpy()), *ours)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "name", ["MaxPool", "MaxPool dilated", "Softmax", "LogSoftmax", "LayerNorm", "RMSNorm", "ReduceL2"]
)
def test_gains(name: str, norm: str) -> None:
    case = CASES[name]
    for width in (None, 1e-3, 0.1):
        box = boxes_of(case, 9, 1.0, 1.0)[0] if width is None else boxes_of(case, 9, width, 5.0)[0]
        region = box if width is not None or name == "ReduceL2" else None
        ours = gain(case.node, norm, region)
        theirs = checker_gain(
            checker_node(case.node), case.shapes[0], norm, region is None, lambda i, box=box: checker_box(box)
        )
        assert theirs <= ours * (1 + 1e-15)
        assert ours <= theirs * (1 + 1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["Add", "Concat", "Maximum", "Multiply", "Divide", "MatMul"])
def test_joins(name: str, norm: str) -> None:
    case = CASES[name]
    boxes = boxes_of(case, 2, 0.3, 2.0)
    constants = (0.7, 1.3, 2.9)[: len(boxes)]
    ours = join(case.node, norm, constants, tuple(boxes))
    theirs = checker_join(checker_node(case.node), norm, constants, lambda i: checker_box(boxes[i]))
    assert ours == pytest.approx(theirs, rel=1e-13)


def test_both_refuse_alike() -> None:
    case = CASES["Discontinuous sign"]
    with pytest.raises(NoRule):
        gain(case.node, "l2", None)
    with pytest.raises(Rejected):
        checker_gain(checker_node(case.node), (2, 4), "l2", True, lambda i: checker_box(boxes_of(case, 0, 1.0, 1.0)[i]))
