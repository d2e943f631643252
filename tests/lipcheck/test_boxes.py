"""Boxes contain sampled values, gains and joins bound sampled difference quotients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flint import ctx
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcheck import precise
from lipcheck.boxes import Box, image
from lipcheck.errors import Rejected
from lipcheck.gains import gain, join
from lipcheck.nodes import Node
from lipcheck.shapes import RULES


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def layer_norm(x: np.ndarray, axes: tuple[int, ...], eps: float) -> np.ndarray:
    z = x - x.mean(axis=axes, keepdims=True)
    return z / np.sqrt((z**2).mean(axis=axes, keepdims=True) + eps)


def max_pool(x: np.ndarray) -> np.ndarray:
    rows = [slice(0, 3, 2), slice(1, 3, 1)]
    return np.stack([np.stack([x[:, a, b].max(axis=(1, 2)) for b in rows], -1) for a in rows], -2)


WINDOWS = (np.array([[0, 3, 2], [1, 3, 1]]),) * 2
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...], Any]] = {
    "Softmax": ({"axis": 1}, (2, 3, 4), lambda x: softmax(x, 1)),
    "LogSoftmax": ({"axis": 2}, (2, 3, 4), lambda x: np.log(softmax(x, 2))),
    "LogSumExp": ({"axes": (0, 2)}, (3,), lambda x: np.log(np.exp(x).sum(axis=(0, 2)))),
    "LayerNorm": ({"axes": (1, 2), "eps": 0.01}, (2, 3, 4), lambda x: layer_norm(x, (1, 2), 0.01)),
    "RMSNorm": ({"axes": (1,), "eps": 0.1}, (2, 3, 4), lambda x: x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 0.1)),
    "ReduceL2": ({"axes": (2,)}, (2, 3, 1), lambda x: np.sqrt((x**2).sum(axis=2, keepdims=True))),
    "ReduceMax": ({"axes": (0,)}, (3, 4), lambda x: x.max(axis=0)),
    "Sort": ({"axis": 2, "descending": True}, (2, 3, 4), lambda x: np.sort(x, axis=2)[..., ::-1]),
    "MaxPool": ({"windows": WINDOWS}, (2, 2, 2), max_pool),
}


def node_of(kind: str) -> Node:
    fields, shape, _ = CASES[kind]
    node = Node(kind, (0,), shape, kind, fields)
    RULES[kind](fields, [operand(kind)], shape)
    return node


def operand(kind: str) -> tuple[int, ...]:
    return (2, 3, 3) if kind == "MaxPool" else (2, 3, 4)


@pytest.mark.parametrize("kind", sorted(CASES))
@given(
    seed=st.integers(0, 10_000),
    width=st.sampled_from([0.0, 1e-6, 0.1, 1.0, 5.0]),
    size=st.sampled_from([0.1, 1.0, 30.0]),
)
@settings(max_examples=15, deadline=None)
def test_boxes_of_reductions(kind: str, seed: int, width: float, size: float) -> None:
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal(operand(kind)) * size
    box = Box(centre - width * rng.uniform(0, 1, centre.shape), centre + width)
    found = image(node_of(kind), [box])
    function = CASES[kind][2]
    for corner in range(30):
        t = rng.integers(0, 2, centre.shape) if corner % 2 else rng.uniform(0, 1, centre.shape)
        value = function(box.lo + t * (box.hi - box.lo))
        slack = 1e-12 * (1 + np.abs(value))
        assert (found.lo <= value + slack).all() and (value - slack <= found.hi).all()
    if width == 0:
        value = function(centre)
        assert np.abs(found.hi - value).max() <= 1e-11 * (1 + np.abs(value).max())
        balls = np.frompyfunc(precise.arb, 1, 1)(centre)
        with ctx.workprec(precise.BITS):
            exact = precise._value(node_of(kind), [balls])
        exact = np.array([float(v.mid()) for v in np.ravel(exact)]).reshape(found.lo.shape)
        assert ((found.lo <= exact) & (exact <= found.hi)).all()


@pytest.mark.parametrize("kind", sorted(CASES))
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("everywhere", [True, False])
def test_gains_bound_difference_quotients(kind: str, norm: str, everywhere: bool) -> None:
    rng = np.random.default_rng(3)
    order = {"l1": 1, "l2": 2, "linf": np.inf}[norm]
    centre = rng.standard_normal(operand(kind)) * 3
    box = Box(centre - 0.3, centre + 0.3)
    bound = gain(node_of(kind), operand(kind), norm, everywhere, lambda i: box)
    function, best = CASES[kind][2], 0.0
    for trial in range(3000):
        size = rng.choice([0.01, 0.1, 1.0, 3.0])
        x = rng.standard_normal(operand(kind)) * size if everywhere else rng.uniform(box.lo, box.hi)
        if everywhere and trial % 3 == 0:
            x = x * rng.integers(0, 2, x.shape)
        d = rng.standard_normal(x.shape) * (rng.random(x.shape) < rng.choice([0.1, 0.5, 1.0]))
        d[tuple(rng.integers(0, n) for n in x.shape)] += 1
        y = x + 1e-3 * d if everywhere else np.clip(x + 1e-3 * d, box.lo, box.hi)
        if (y == x).all():
            continue
        quotient = np.linalg.norm((function(x) - function(y)).ravel(), order) / np.linalg.norm((x - y).ravel(), order)
        best = max(best, quotient)
    assert best <= bound * (1 + 1e-9)
    assert best > 0.05 * bound or not everywhere


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
def test_normalisation_without_eps(kind: str) -> None:
    node = Node(kind, (0,), (3,), kind, {"axes": (0,), "eps": 0.0})
    box = Box(np.array([-1.0, -1, -1]), np.array([1.0, 1, 1]))
    for everywhere in (True, False):
        with pytest.raises(Rejected):
            gain(node, (3,), "l2", everywhere, lambda i: box)
    away = Box(np.array([1.0, 3, -1]), np.array([1.1, 3.1, -0.9]))
    assert 0.3 < gain(node, (3,), "l2", False, lambda i: away) < 2


@pytest.mark.parametrize("kind", ["Multiply", "MatMul", "Divide", "Add", "Concat", "Maximum"])
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_joins(kind: str, norm: str) -> None:
    """Two random affine maps of one input, joined; sampled quotients stay below the rule's value."""
    rng = np.random.default_rng(5)
    order = {"l1": 1, "l2": 2, "linf": np.inf}[norm]
    shapes = ((2, 3), (3, 2)) if kind == "MatMul" else ((2, 3), (2, 3))
    a, b = rng.standard_normal((6, 4)), rng.standard_normal((6, 4))
    shift = 9.0 if kind == "Divide" else 0.5
    function = {
        "Multiply": np.multiply, "MatMul": np.matmul, "Divide": np.divide, "Add": np.add, "Maximum": np.maximum,
        "Concat": lambda u, v: np.concatenate([u, v], axis=0),
    }[kind]  # fmt: skip
    fields = {"axis": 0} if kind == "Concat" else {}
    shape = function(np.ones(shapes[0]), np.ones(shapes[1])).shape
    node = Node(kind, (0, 1), shape, kind, fields)
    RULES[kind](fields, list(shapes), shape)
    radius = [np.abs(m).sum(axis=1) for m in (a, b)]
    boxes = [Box((s - r).reshape(h), (s + r).reshape(h)) for r, h, s in zip(radius, shapes, (0.5, shift), strict=True)]
    constants = [float(np.linalg.norm(m, order)) for m in (a, b)]
    bound = join(node, norm, constants, lambda i: boxes[i])
    outer = image(node, boxes)

    def value(x: np.ndarray) -> np.ndarray:
        return function((a @ x + 0.5).reshape(shapes[0]), (b @ x + shift).reshape(shapes[1]))

    best = 0.0
    for _ in range(2000):
        x = rng.choice([-1, 1, rng.uniform(-1, 1)], 4)
        y = x.copy()
        y[rng.integers(4)] *= 0.999
        z = x * 0.999 if rng.random() < 0.5 else y
        assert (outer.lo <= value(x)).all() and (value(x) <= outer.hi).all()
        if (x != z).any():
            best = max(best, np.linalg.norm((value(x) - value(z)).ravel(), order) / np.linalg.norm(x - z, order))
    assert 0.05 * bound < best <= bound * (1 + 1e-11)  # quotients of steps of 1e-3 carry that much rounding


def test_divide_by_an_interval_with_zero() -> None:
    node = Node("Divide", (0, 1), (1,), "d", {})
    boxes = [Box(np.array([1.0]), np.array([2.0])), Box(np.array([-1.0]), np.array([1.0]))]
    with pytest.raises(Rejected):
        image(node, boxes)
    with pytest.raises(Rejected):
        join(node, "l2", [1.0, 1.0], lambda i: boxes[i])


OPERATORS: dict[str, tuple[dict[str, float], Any]] = {
    "sign": ({}, np.sign), "round": ({}, np.rint), "floor": ({}, np.floor), "ceil": ({}, np.ceil),
    "truncate": ({}, np.trunc), "logical_not": ({}, lambda x: x == 0),
    "threshold": ({"threshold": 0.3, "value": -2.0}, lambda x: np.where(x > 0.3, x, -2.0)),
    "hardshrink": ({"lambd": 0.4}, lambda x: np.where(np.abs(x) > 0.4, x, 0)),
    "modulo": ({"divisor": 0.7}, lambda x: np.mod(x, 0.7)), "heaviside": ({"at_zero": 0.25}, lambda x: np.heaviside(x, 0.25)),
    "argmax": ({}, lambda x: x.argmax()), "argmin": ({}, lambda x: x.argmin()),
}  # fmt: skip


@pytest.mark.parametrize("operator", sorted(OPERATORS))
@given(seed=st.integers(0, 10_000), width=st.sampled_from([0.0, 0.1, 2.0]))
@settings(max_examples=20, deadline=None)
def test_boxes_of_jumps(operator: str, seed: int, width: float) -> None:
    rng = np.random.default_rng(seed)
    arguments, function = OPERATORS[operator]
    lo = np.round(rng.uniform(-2, 2, 5), 1)
    hi = lo + width
    shape = () if operator.startswith("arg") else (5,)
    node = Node(
        "Discontinuous", (0,), shape, "d", {"operator": operator, "axis": 0, "arguments": tuple(arguments.items())}
    )
    found = image(node, [Box(lo, hi)])
    for trial in range(40):
        t = rng.integers(0, 2, 5) if trial % 2 else rng.uniform(0, 1, 5)
        value = function(np.clip(lo + t * width, lo, hi))
        assert (found.lo <= value).all() and (value <= found.hi).all()


@pytest.mark.parametrize(
    "operator", ["equal", "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or", "where"]
)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_boxes_of_comparisons(operator: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lows = [rng.integers(-1, 2, 6).astype(float) for _ in range(3 if operator == "where" else 2)]
    boxes = [Box(lo, lo + rng.integers(0, 2, 6)) for lo in lows]
    node = Node("Discontinuous", (0, 1), (6,), "d", {"operator": operator, "axis": -1, "arguments": ()})
    found = image(node, boxes)
    function = {"where": lambda c, a, b: np.where(c != 0, a, b)}.get(operator) or getattr(np, operator)
    for _ in range(40):
        value = function(*(rng.integers(b.lo, b.hi + 1).astype(float) for b in boxes))
        assert (found.lo <= value).all() and (value <= found.hi).all()
