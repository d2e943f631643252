"""Boxes hold every value, touch the extreme ones where the rule says so, and hold the checker's boxes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lipscope.network.nodes import LayerNorm
from lipscope.rules import Interval, NoRule, box_image, evaluate
from rules.rule_cases import CASES, Case, function_node

names = pytest.mark.parametrize("name", CASES)
EXACT = {
    "Reshape", "Transpose", "Slice", "Pad", "Gather", "Expand", "Concat", "Maximum", "MaxPool", "ReduceMax", "Sort", "Input",
    "Constant",
}  # fmt: skip


def boxes_of(case: Case, seed: int, width: float, scale: float) -> list[Interval]:
    centres = [x[0] for x in case.inputs(seed, 1, scale)]
    radii = [x[0].abs() * width for x in case.inputs(seed + 1, 1, scale)]
    floor = 1e-3 * scale if case.positive else -math.inf
    return [Interval((c - r).clamp(min=floor), c + r) for c, r in zip(centres, radii, strict=True)]


def points_in(boxes: list[Interval], count: int, seed: int) -> list[Tensor]:
    """Random points, then corners."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for box in boxes:
        t = torch.rand(count, *box.lower.shape, generator=generator, dtype=torch.float64)
        t[count // 2 :] = t[count // 2 :].round()
        t[-1], t[-2] = 0, 1
        found.append((box.lower * (1 - t) + box.upper * t).clamp(box.lower, box.upper))
    return found


def assert_holds(box: Interval, values: Tensor) -> None:
    assert not (box.lower.isnan() | box.upper.isnan()).any()
    assert (box.lower <= box.upper).all()
    outside = ~((box.lower <= values) & (values <= box.upper))
    assert not outside.any(), f"{int(outside.sum())} values outside"


@pytest.mark.parametrize("width", [0.0, 1e-9, 0.3, 5.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
@names
def test_box_holds_sampled_values(name: str, scale: float, width: float) -> None:
    case = CASES[name]
    for seed in range(2):
        boxes = boxes_of(case, 7 * seed, width, scale)
        image = box_image(case.node, *boxes)
        assert image.lower.shape == image.upper.shape == case.node.shape
        assert_holds(image, evaluate(case.node, *points_in(boxes, 200, seed)))


def test_the_containment_check_can_fail() -> None:
    with pytest.raises(AssertionError, match="outside"):
        assert_holds(Interval(torch.zeros(1), torch.ones(1)), torch.tensor([1.0000001]))
    with pytest.raises(AssertionError):
        assert_holds(Interval(torch.tensor([math.nan]), torch.ones(1)), torch.tensor([0.5]))


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.node.kind in EXACT or n in
                                  {"Elementwise relu", "Elementwise abs", "Elementwise clip"}])  # fmt: skip
def test_exact_boxes_are_not_widened(name: str) -> None:
    case = CASES[name]
    boxes = boxes_of(case, 3, 0.0, 1.0)
    image = box_image(case.node, *boxes)
    value = evaluate(case.node, *(b.lower.unsqueeze(0) for b in boxes))[0]
    assert torch.equal(image.lower, value)
    assert torch.equal(image.upper, value)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.node.affine])
def test_affine_boxes_are_tight(name: str) -> None:
    """Each end is attained at the corner that the signs of the coefficients tell."""
    case = CASES[name]
    boxes = boxes_of(case, 11, 0.7, 1.0)
    image = box_image(case.node, *boxes)
    inputs = [((b.lower + b.upper) / 2).unsqueeze(0).requires_grad_() for b in boxes]
    value = evaluate(case.node, *inputs).reshape(-1)
    for i in range(len(value)):
        slopes = torch.autograd.grad(value[i], inputs, retain_graph=True)
        top = [torch.where(g > 0, b.upper, b.lower) for g, b in zip(slopes, boxes, strict=True)]
        reached = evaluate(case.node, *top).reshape(-1)[i]
        assert image.upper.reshape(-1)[i] == pytest.approx(float(reached), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "RMSNorm", "LogSumExp", "ReduceL2", "Multiply", "Divide"])
def test_nonlinear_boxes_are_attained(name: str) -> None:
    """Their rules are exact ranges: gradient signs lead to the corner that attains an end."""
    case = CASES[name]
    boxes = boxes_of(case, 5, 0.2, 3.0)
    image = box_image(case.node, *boxes)
    best = torch.full(case.node.shape, -math.inf, dtype=torch.float64)
    for i in range(best.numel()):
        start = [p.requires_grad_() for p in points_in(boxes, 40, 0)]
        for _ in range(5):
            value = evaluate(case.node, *start).reshape(40, -1)[:, i].sum()
            slopes = torch.autograd.grad(value, start)
            start = [torch.where(g > 0, b.upper, b.lower).requires_grad_() for g, b in zip(slopes, boxes, strict=True)]
        best.reshape(-1)[i] = evaluate(case.node, *start).reshape(40, -1)[:, i].max().detach()
    gap = image.upper - best
    assert (gap >= 0).all()
    width = float((image.upper - image.lower).max())
    # The sign iteration may stop at another corner for a few entries; most reach the end.
    assert (gap <= 1e-9 * width).double().mean() > 0.7


@pytest.mark.parametrize("bad", [(-math.inf, math.inf), (0.5, math.inf), (-math.inf, -0.5)])
@names
def test_infinite_ends_give_infinite_boxes_and_no_nan(name: str, bad: tuple[float, float]) -> None:
    case = CASES[name]
    if not case.shapes or (case.positive and bad[1] < 0):
        return
    boxes = boxes_of(case, 1, 0.5, 1.0)
    first = Interval(boxes[0].lower.clone(), boxes[0].upper.clone())
    first.lower.reshape(-1)[0], first.upper.reshape(-1)[0] = bad
    image = box_image(case.node, first, *boxes[1:])
    points = points_in(boxes, 100, 2)
    far = torch.logspace(-3, 12, 100, dtype=torch.float64)
    places = points[0].reshape(100, -1)
    low, high = max(bad[0], -1e12), min(bad[1], 1e12)
    places[:, 0] = torch.where(torch.arange(100) % 2 == 0, far, -far).clamp(low, high)
    if case.positive:
        places[:, 0] = places[:, 0].abs()
    values = evaluate(case.node, *points)
    assert_holds(image, values[~values.isnan().reshape(100, -1).any(1)])


def test_overflow_stays_an_enclosure() -> None:
    huge = torch.full((1,), 1e200, dtype=torch.float64)
    box = box_image(function_node("square", (1,)), Interval(huge, 2 * huge))
    assert box.lower < math.inf
    assert box.upper == math.inf
    x = torch.full((3, 5), 1e200, dtype=torch.float64)
    box = box_image(CASES["ReduceL2"].node, *[Interval(x, x)])
    assert (box.lower <= math.sqrt(5) * 1e200).all()
    assert (box.upper >= math.sqrt(5) * 1e200).all()


def test_domains() -> None:
    wide = Interval(torch.tensor([-1.0], dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64))
    assert_holds(box_image(function_node("sqrt", (1,)), wide), torch.tensor([0.0, 2.0]))
    assert box_image(function_node("log", (1,)), wide).lower == -math.inf
    around = box_image(function_node("reciprocal", (1,)), wide)
    assert (float(around.lower), float(around.upper)) == (-math.inf, math.inf)
    with pytest.raises(NoRule, match="sqrt is defined from 0 on, and its operand reaches -1"):
        box_image(function_node("sqrt", (1,)), Interval(wide.lower, wide.lower))


def test_layer_norm_at_a_constant_input_without_eps() -> None:
    node = LayerNorm(inputs=(0,), shape=(4,), axes=(0,), eps=0.0)
    flat = torch.ones(4, dtype=torch.float64)
    image = box_image(node, Interval(flat - 0.1, flat + 0.1))
    assert_holds(image, torch.tensor([[-math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3), math.sqrt(3)]]))
    assert (image.magnitude <= 2.000001).all()
