"""Values and slopes of the functions of `Elementwise` against plain float evaluations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcheck import functions
from lipcheck.errors import Rejected
from lipcheck.nodes import Node

S, A = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
erf = np.vectorize(math.erf)
sigmoid = lambda x: 0.5 * (1 + np.tanh(x / 2))  # noqa: E731
softplus = lambda x: np.logaddexp(0, x)  # noqa: E731

CASES: dict[str, tuple[str, dict[str, float], Any]] = {
    "relu": ("relu", {}, lambda x: np.maximum(x, 0)),
    "leaky": ("leaky_relu", {"negative_slope": 0.1}, lambda x: np.where(x >= 0, x, 0.1 * x)),
    "leaky3": ("leaky_relu", {"negative_slope": 3.0}, lambda x: np.where(x >= 0, x, 3 * x)),
    "leaky-": ("leaky_relu", {"negative_slope": -0.7}, lambda x: np.where(x >= 0, x, -0.7 * x)),
    "abs": ("abs", {}, np.abs),
    "clip": ("clip", {"low": -1.0, "high": 2.0}, lambda x: np.clip(x, -1, 2)),
    "clip-inf": ("clip", {"low": -math.inf, "high": 0.5}, lambda x: np.minimum(x, 0.5)),
    "clip-point": ("clip", {"low": 1.0, "high": 1.0}, lambda x: 0 * x + 1),
    "sigmoid": ("sigmoid", {}, sigmoid),
    "tanh": ("tanh", {}, np.tanh),
    "sin": ("sin", {}, np.sin),
    "cos": ("cos", {}, np.cos),
    "exp": ("exp", {}, np.exp),
    "arctan": ("arctan", {}, np.arctan),
    "erf": ("erf", {}, erf),
    "softsign": ("softsign", {}, lambda x: x / (1 + np.abs(x))),
    "softplus": ("softplus", {"beta": 1.0}, softplus),
    "softplus5": ("softplus", {"beta": 5.0}, lambda x: softplus(5 * x) / 5),
    "gelu": ("gelu", {}, lambda x: x * (1 + erf(x / math.sqrt(2))) / 2),
    "gelu_tanh": ("gelu_tanh", {}, lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    "silu": ("silu", {"beta": 1.0}, lambda x: x * sigmoid(x)),
    "silu.3": ("silu", {"beta": 0.3}, lambda x: x * sigmoid(0.3 * x)),
    "elu": ("elu", {"alpha": 1.0}, lambda x: np.where(x >= 0, x, np.expm1(np.minimum(x, 0)))),
    "elu4": ("elu", {"alpha": 4.0}, lambda x: np.where(x >= 0, x, 4 * np.expm1(np.minimum(x, 0)))),
    "elu-": ("elu", {"alpha": -2.0}, lambda x: np.where(x >= 0, x, -2 * np.expm1(np.minimum(x, 0)))),
    "celu": ("celu", {"alpha": 0.3}, lambda x: np.where(x >= 0, x, 0.3 * np.expm1(np.minimum(x, 0) / 0.3))),
    "selu": ("selu", {}, lambda x: S * np.where(x >= 0, x, A * np.expm1(np.minimum(x, 0)))),
    "mish": ("mish", {}, lambda x: x * np.tanh(softplus(x))),
    "hardswish": ("hardswish", {}, lambda x: x * np.clip(x + 3, 0, 6) / 6),
    "tanhshrink": ("tanhshrink", {}, lambda x: x - np.tanh(x)),
    "softshrink": ("softshrink", {"lambd": 0.5}, lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0)),
    "softshrink0": ("softshrink", {"lambd": 0.0}, lambda x: x),
    "square": ("square", {}, np.square),
    "power3": ("power", {"exponent": 3.0}, lambda x: x**3),
    "power4": ("power", {"exponent": 4.0}, lambda x: x**4),
    "sqrt": ("sqrt", {}, np.sqrt),
    "log": ("log", {}, np.log),
    "reciprocal": ("reciprocal", {}, np.reciprocal),
}
POSITIVE = {"sqrt", "log", "reciprocal"}
UNBOUNDED = {"exp", "square", "power3", "power4", "sqrt", "log", "reciprocal"}

WHOLE_LINE = {
    "relu": (0, 1), "leaky": (0.1, 1), "leaky3": (1, 3), "leaky-": (-0.7, 1), "abs": (-1, 1), "clip": (0, 1),
    "clip-inf": (0, 1), "clip-point": (0, 0), "sigmoid": (0, 0.25), "tanh": (0, 1), "sin": (-1, 1), "cos": (-1, 1),
    "arctan": (0, 1), "erf": (0, 2 / math.sqrt(math.pi)), "softsign": (0, 1), "softplus": (0, 1), "softplus5": (0, 1),
    "gelu": (-0.128904145185155, 1.128904145185155), "gelu_tanh": (-0.12899306865877178, 1.12899306865877178),
    "silu": (-0.099839320128867, 1.099839320128867), "silu.3": (-0.099839320128867, 1.099839320128867),
    "elu": (0, 1), "elu4": (0, 4), "elu-": (-2, 1), "celu": (0, 1), "selu": (0, 1.758099340847377),
    "mish": (-0.112526122389463, 1.088498161251728), "hardswish": (-0.5, 1.5), "tanhshrink": (0, 1),
    "softshrink": (0, 1), "softshrink0": (1, 1),
}  # fmt: skip


def node_of(case: str, slope: Any = None) -> Node:
    name, arguments, _ = CASES[case]
    fields = {"function": name, "arguments": tuple(arguments.items()), "slope": slope}
    return Node("Elementwise", (0,), (1,), "f", fields)


@pytest.mark.parametrize("case", sorted(CASES))
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_enclosures_hold_and_are_tight(case: str, data: Any) -> None:
    low = 0.5 if case in POSITIVE else -12.0
    # Kinks and critical points are often ends of an interval.
    point = st.one_of(
        # On a grid of 2^-20: an interval that ends 1e-300 behind a kink has slopes that no sample can see.
        st.floats(low, 12.0).map(lambda v: round(v * 2**20) / 2**20),
        st.sampled_from([x for x in (-3.0, -1.0, -0.5, 0.5, 0.0, 1.0, 2.0, 3.0) if x >= low]),
    )
    a, b = sorted((data.draw(point), data.draw(point)))
    function = CASES[case][2]
    lo, hi = np.array([a]), np.array([b])
    values = functions.values(node_of(case), lo, hi)
    x = np.unique(
        np.concatenate(
            [np.linspace(a, b, 2001), [v for v in (-3.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0) if a <= v <= b]]
        )
    )
    y = function(x)
    scale = 1 + np.abs(y).max()
    assert values[0][0] <= y.min() + 4e-15 * scale and values[1][0] >= y.max() - 4e-15 * scale
    step = (b - a) / 2000
    assert (
        y.min() - values[0][0] <= 1e-9 + 40 * step**2 * scale * 10
        and values[1][0] - y.max() <= 1e-9 + 400 * step**2 * scale
    )
    if b - a < 1e-3:
        return
    lower, upper = functions.slopes(node_of(case), lo, hi)
    quotients = np.diff(y) / np.diff(x)
    noise = 8e-16 * scale / np.diff(x).min()
    assert lower[0] <= quotients.min() + noise and upper[0] >= quotients.max() - noise
    # Tight: the derivative range differs from that of the quotients by second derivatives times the step.
    slack = noise + 2 * step * (1 + np.abs(np.diff(quotients)).max() / step * (case not in UNBOUNDED) + scale * 100)
    assert quotients.min() - lower[0] <= slack and upper[0] - quotients.max() <= slack


@pytest.mark.parametrize("case", sorted(WHOLE_LINE))
def test_slopes_on_the_whole_line(case: str) -> None:
    low, high = functions.slopes(node_of(case), np.array([-np.inf]), np.array([np.inf]))
    assert low[0] == pytest.approx(WHOLE_LINE[case][0], abs=1e-14)
    assert high[0] == pytest.approx(WHOLE_LINE[case][1], abs=1e-14)
    if case not in ("gelu", "gelu_tanh", "silu", "silu.3", "mish", "erf", "selu"):
        assert (low[0], high[0]) == WHOLE_LINE[case]


@pytest.mark.parametrize("case", sorted(UNBOUNDED))
def test_no_slope_on_the_whole_line(case: str) -> None:
    with pytest.raises(Rejected):
        functions.slopes(node_of(case), np.array([-np.inf]), np.array([np.inf]))


@pytest.mark.parametrize(
    "case", ["gelu", "gelu_tanh", "silu", "mish", "sigmoid", "tanh", "elu4", "celu", "softplus", "erf"]
)
def test_local_slopes_to_a_millionth(case: str) -> None:
    """Against central differences in higher resolution, on short intervals."""
    function = CASES[case][2]
    for a in np.linspace(-6, 6, 49) + 0.013:
        b = a + 1e-3 if not -1e-3 < a < 0 else a + 2e-3
        low, high = functions.slopes(node_of(case), np.array([a]), np.array([b]))
        quotient = (function(np.array([b])) - function(np.array([a])))[0] / (b - a)
        assert low[0] - 1e-11 <= quotient <= high[0] + 1e-11
        assert high[0] - low[0] <= 4e-3 or (a < 0 < b)


def test_one_sided_kinks() -> None:
    lo, hi = np.array([0.0, -2.0, -1.0, 0.0]), np.array([2.0, 0.0, 1.0, 0.0])
    low, high = functions.slopes(node_of("relu"), lo, hi)
    assert low[:3].tolist() == [1, 0, 0] and high[:3].tolist() == [1, 0, 1]
    assert low[3] == np.inf and high[3] == -np.inf  # no difference quotients at all


def test_prelu() -> None:
    name = {"function": "prelu", "arguments": (), "slope": np.array([[-2.0], [3.0]])}
    node = Node("Elementwise", (0,), (2, 2), "f", name)
    lo, hi = np.full((2, 2), -1.0), np.array([[1.0, -0.5], [1.0, 0.0]])
    low, high = functions.slopes(node, lo, hi)
    assert low.tolist() == [[-2, -2], [1, 3]] and high.tolist() == [[1, -2], [3, 3]]
    low, high = functions.values(node, lo, hi)
    assert np.all(np.abs(low - [[0, 1], [-3, -3]]) < 1e-14) and np.all(np.abs(high - [[2, 2], [1, 0]]) < 1e-14)
    assert low[0, 0] <= 0 and high[0, 0] >= 2


@pytest.mark.parametrize("case", sorted(set(CASES) - UNBOUNDED))
def test_huge_arguments(case: str) -> None:
    for a, b in ((-1e300, 1e300), (1e200, 1e300), (-1e300, -1e200), (-1e300, -1e-300), (5e-324, 1e-300)):
        low, high = functions.slopes(node_of(case), np.array([a]), np.array([b]))
        assert -3 <= low[0] <= high[0] <= 5
        values = functions.values(node_of(case), np.array([a]), np.array([b]))
        assert values[0][0] <= values[1][0]


def test_undefined() -> None:
    for case, a, b in (("log", 0.0, 1.0), ("sqrt", -1.0, 1.0), ("reciprocal", -1.0, 1.0), ("reciprocal", 0.0, 1.0)):
        with pytest.raises(Rejected):
            functions.values(node_of(case), np.array([a]), np.array([b]))
        with pytest.raises(Rejected):
            functions.slopes(node_of(case), np.array([a]), np.array([b]))
    with pytest.raises(Rejected):
        functions.slopes(node_of("sqrt"), np.array([0.0]), np.array([1.0]))
