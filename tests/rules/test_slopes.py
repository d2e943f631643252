"""Slopes hold every difference quotient (in 50 digits) and are tight; the constants of the table are computed again."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import mpmath
import pytest
import torch

from lipscope.rules import Interval, slopes
from lipscope.rules.functions import FUNCTIONS, SELU_ALPHA, SELU_SCALE
from rules.rule_cases import FUNCTION_ARGUMENTS, FUNCTION_NAMES, function_node

mp = mpmath.MPContext()
mp.dps = 50
Arguments = dict[str, float]
SCALE, ALPHA = mp.mpf("1.0507009873554804934193349852946"), mp.mpf("1.6732632423543772848170429916717")


def side(x, left):
    return x if x >= 0 else left


ORACLE: dict[str, Callable] = {
    "relu": lambda x, a: max(x, 0),
    "leaky_relu": lambda x, a: side(x, mp.mpf(a["negative_slope"]) * x),
    "prelu": lambda x, a: side(x, x / 4),
    "abs": lambda x, a: abs(x),
    "clip": lambda x, a: min(max(x, a["low"]), a["high"]),
    "sigmoid": lambda x, a: 1 / (1 + mp.exp(-x)),
    "tanh": lambda x, a: mp.tanh(x),
    "sin": lambda x, a: mp.sin(x),
    "cos": lambda x, a: mp.cos(x),
    "exp": lambda x, a: mp.exp(x),
    "arctan": lambda x, a: mp.atan(x),
    "erf": lambda x, a: mp.erf(x),
    "softsign": lambda x, a: x / (1 + abs(x)),
    "softplus": lambda x, a: mp.log1p(mp.exp(a["beta"] * x)) / a["beta"],
    "gelu": lambda x, a: x * mp.erfc(-x / mp.sqrt(2)) / 2,
    "gelu_tanh": lambda x, a: x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))),
    "silu": lambda x, a: x / (1 + mp.exp(-a["beta"] * x)),
    "elu": lambda x, a: side(x, mp.mpf(a["alpha"]) * mp.expm1(x)),
    "celu": lambda x, a: side(x, mp.mpf(a["alpha"]) * mp.expm1(x / mp.mpf(a["alpha"]))),
    "selu": lambda x, a: SCALE * side(x, ALPHA * mp.expm1(x)),
    "mish": lambda x, a: x * mp.tanh(mp.log1p(mp.exp(x))),
    "hardswish": lambda x, a: x * min(max(x + 3, 0), 6) / 6,
    "tanhshrink": lambda x, a: x - mp.tanh(x),
    "softshrink": lambda x, a: mp.sign(x) * max(abs(x) - mp.mpf(a["lambd"]), 0),
    "square": lambda x, a: x**2,
    "power": lambda x, a: x ** int(a["exponent"]),
    "sqrt": lambda x, a: mp.sqrt(x),
    "log": lambda x, a: mp.log(x),
    "reciprocal": lambda x, a: 1 / x,
}
INTERVALS = [
    (-4.0, 4.0), (-0.5, 0.5), (0.0, 1.0), (-1.0, 0.0), (1.0, 2.0), (-2.0, -1.0), (2.0, 7.0), (-7.0, -2.5), (-0.3, 1e-9),
    (1e-12, 1e-6), (-1e-9, 0.2), (-3.0, -3.0 + 1e-6), (2.9999, 3.0), (-40.0, -3.0), (5.0, 30.0), (0.0, 1e-8), (100.0, 101.0),
]  # fmt: skip
VARIANTS: dict[str, tuple[tuple[tuple[str, float], ...], ...]] = {
    "leaky_relu": ((("negative_slope", 1.5),), (("negative_slope", -0.5),), (("negative_slope", 0.0),)),
    "elu": ((("alpha", 2.0),), (("alpha", -0.5),), (("alpha", 1.0),)),
    "celu": ((("alpha", 0.1),), (("alpha", 3.0),)),
    "softplus": ((("beta", 0.5),),),
    "silu": ((("beta", 1.0),), (("beta", 20.0),)),
    "power": ((("exponent", 2.0),), (("exponent", 4.0),), (("exponent", 5.0),)),
    "softshrink": ((("lambd", 0.0),),),
    "clip": ((("high", math.inf), ("low", 0.0)), (("high", 1.0), ("low", -math.inf)), (("high", -1.0), ("low", 1.0))),
}
ROWS = [(n, a) for n in FUNCTION_NAMES for a in (FUNCTION_ARGUMENTS.get(n, ()), *VARIANTS.get(n, ()))]
rows = pytest.mark.parametrize(("name", "arguments"), ROWS, ids=[f"{n}-{dict(a)}" for n, a in ROWS])


def enclosure(name: str, arguments: tuple, low: float, high: float) -> tuple[float, float]:
    box = Interval(*(torch.tensor([v], dtype=torch.float64) for v in (low, high)))
    return tuple(float(v) for v in slopes(function_node(name, (1,), arguments), box))


def in_domain(name: str, low: float) -> bool:
    return low >= 0 if name == "sqrt" else low > 0 if name in {"log", "reciprocal"} else True


@rows
def test_slopes_hold_difference_quotients(name: str, arguments: tuple) -> None:
    rng = random.Random(0)
    for low, high in INTERVALS:
        if not in_domain(name, low):
            continue
        below, above = enclosure(name, arguments, low, high)
        points = [low, high, *(rng.uniform(low, high) for _ in range(8))]
        points += [p + (high - p) * 2.0**-20 for p in points[:4]] + [p for p in (0.0, -3.0, 3.0) if low < p < high]
        with mp.workdps(250):  # far out, slopes are as small as exp(-400)
            values = {mp.mpf(p): ORACLE[name](mp.mpf(p), dict(arguments)) for p in points}
            listed = sorted(values)
            pairs = itertools.pairwise(listed)
            quotients = [(values[t] - values[s]) / (t - s) for s, t in pairs]
        for quotient in quotients:
            assert below <= quotient <= above, f"[{low}, {high}]: {below} <= {mp.nstr(quotient, 20)} <= {above}"


@rows
def test_slopes_are_tight(name: str, arguments: tuple) -> None:
    """Against one-sided derivatives on a grid: nothing wider than the grid explains."""
    for low, high in INTERVALS:
        if not in_domain(name, low) or (name == "clip" and dict(arguments)["high"] < dict(arguments)["low"]):
            continue
        if name == "softshrink" and dict(arguments)["lambd"] == 0:
            continue  # two jumps of opposite sign at one place: [0, 1] is not tight there, nor meant to be
        below, above = enclosure(name, arguments, low, high)
        step = mp.mpf(10) ** -30
        grid = [mp.mpf(low) + (mp.mpf(high) - mp.mpf(low)) * i / 64 for i in range(65)]
        grid += [mp.mpf(p) for p in (0, -3, 3, *dict(arguments).values(), -dict(arguments).get("lambd", 0))
                 if abs(p) < 1e9 and low <= p <= high]  # fmt: skip
        found = []
        for x in grid:
            for d in (step, -step):
                if low <= x + d <= high:
                    with mp.workdps(90):
                        f = ORACLE[name]
                        found.append((f(x + d, dict(arguments)) - f(x, dict(arguments))) / d)
        if math.isinf(above) or math.isinf(below):
            assert name in {"sqrt", "log"}
            continue
        # Between grid points a smooth derivative rises by the square of the spacing (at a maximum) at most.
        spacing = (high - low) / 64
        slack = 1e-9 * (1 + max(abs(above), abs(below))) + min(2.0, spacing) ** 2 * 400
        assert above - max(found) <= slack, f"[{low}, {high}]: {above} against {mp.nstr(max(found), 12)}"
        assert min(found) - below <= slack, f"[{low}, {high}]: {below} against {mp.nstr(min(found), 12)}"


GLOBAL = {
    "relu": (0, 1), "abs": (-1, 1), "clip": (0, 1), "sigmoid": (0, 0.25), "tanh": (0, 1), "sin": (-1, 1), "cos": (-1, 1),
    "arctan": (0, 1), "softsign": (0, 1), "softplus": (0, 1), "tanhshrink": (0, 1), "softshrink": (0, 1),
    "erf": (0, 2 / math.sqrt(math.pi)), "leaky_relu": (0.1, 1), "prelu": (0.25, 1), "elu": (0, 1), "celu": (0, 1),
    "selu": (0, SELU_SCALE * SELU_ALPHA), "gelu": (-0.128904145185155, 1.128904145185155),
    "gelu_tanh": (-0.128993068658718, 1.128993068658718), "silu": (-0.099839320128867, 1.099839320128867),
    "mish": (-0.112526122389463, 1.088498161251728), "hardswish": (-0.5, 1.5), "exp": (0, math.inf), "sqrt": (0, math.inf),
    "log": (0, math.inf), "square": (-math.inf, math.inf), "power": (0, math.inf), "reciprocal": (-math.inf, math.inf),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTION_NAMES)
def test_slopes_on_the_whole_line(name: str) -> None:
    below, above = (float(v) for v in slopes(function_node(name, (1,)), None))
    wanted = GLOBAL[name]
    assert (below, above) == pytest.approx(wanted, abs=2e-12)
    rounded = 1e-14 if name in {"gelu", "gelu_tanh", "silu", "mish"} else 0.0  # printed to 15 digits
    assert below <= wanted[0] + rounded
    assert above >= wanted[1] - rounded
    if name in {"relu", "abs", "clip", "leaky_relu", "prelu", "softshrink"}:
        assert (below, above) == wanted


def test_kinks() -> None:
    assert enclosure("relu", (), 0.0, 2.0) == (1.0, 1.0)
    assert enclosure("relu", (), -2.0, 0.0) == (0.0, 0.0)
    assert enclosure("relu", (), -2.0, 1e-300) == (0.0, 1.0)
    assert enclosure("leaky_relu", (("negative_slope", 3.0),), -1.0, 1.0) == (1.0, 3.0)
    assert enclosure("elu", (("alpha", 2.0),), 0.0, 5.0) == (1.0, 1.0)
    assert enclosure("hardswish", (), 3.0, 9.0) == (1.0, 1.0)
    assert enclosure("hardswish", (), -9.0, -3.0) == (0.0, 0.0)
    assert enclosure("hardswish", (), 2.0, 3.0) == pytest.approx((7 / 6, 1.5), abs=1e-11)
    assert enclosure("hardswish", (), 3.0 - 1e-12, 4.0)[1] >= 1.5 - 1e-11
    assert enclosure("clip", (("high", 1.0), ("low", -1.0)), -1.0, 1.0) == (1.0, 1.0)
    assert enclosure("sin", (), 1e7, 1e7 + 0.1) == pytest.approx((-1.0, 1.0), abs=1e-11)
    assert enclosure("reciprocal", (), -1.0, 1.0) == (-math.inf, math.inf)


@pytest.mark.parametrize(("name", "starts"), [
    ("gelu", (-1.4, 1.4)), ("gelu_tanh", (-1.4, 1.4)), ("silu", (-2.4, 2.4)), ("mish", (-2.2, 1.5)),
])  # fmt: skip
def test_turning_points_of_the_table(name: str, starts: tuple[float, float]) -> None:
    """Roots of f'' and f' to 40 digits against the stored numbers, and no other sign change of f''."""
    with mp.workdps(60):
        f = lambda x: ORACLE[name](x, {"beta": 1.0})  # noqa: E731
        parameters = {"beta": torch.tensor(1.0, dtype=torch.float64)}
        for start, turn in zip(starts, FUNCTIONS[name].slope.turns(parameters), strict=True):
            root = mp.findroot(lambda x: mp.diff(f, x, 2), start)
            assert abs(float(turn.location) - root) < 1e-15
            assert float(turn.highest) == float(turn.lowest)
            assert abs(float(turn.lowest) - mp.diff(f, root)) < 3e-16
        (turn,) = FUNCTIONS[name].value.turns(parameters)
        root = mp.findroot(lambda x: mp.diff(f, x), -1.0)
        assert abs(float(turn.location) - root) < 3e-16
        assert abs(float(turn.lowest) - f(root)) < 1e-16
        signs = [mp.sign(mp.diff(f, mp.mpf(2 * k + 1) / 16, 2)) for k in range(-80, 80)]
        assert sum(a != b for a, b in itertools.pairwise(signs)) == 2
