"""The functions of `Elementwise` nodes: value, and exact ranges of value and derivative over an interval.

A difference quotient of a continuous, piecewise differentiable function over an interval is a mean of its derivative, so
the range of the derivative (one-sided limits at kinks) is the range of the quotients. Each row says where value and
derivative change direction; the numbers are roots of the next derivative to 17 digits, and a test computes them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from lipscope.rules.curves import CANCELLATION, Curve, Parameters, Real, Turn, no_turns

Piece = tuple[Real, Real, Real]


def _no_pieces(parameters: Parameters) -> tuple[Piece, ...]:
    return ()


@dataclass(frozen=True)
class Function:
    """A function of one real variable.

    Attributes:
        value: the function; its `right` is also how it is evaluated (differentiable, no NaN at large arguments).
        slope: its derivative.
        parameters: names of its parameters.
        start: where its domain begins; `-inf` for the whole line.
        pieces: (start, stop, slope) of intervals on which it is exactly linear with a slope that is a float64 number.
    """

    value: Curve
    slope: Curve
    parameters: tuple[str, ...] = ()
    start: float = -math.inf
    pieces: Callable[[Parameters], tuple[Piece, ...]] = _no_pieces


def _limits(minus: float, plus: float) -> Callable[[Parameters], tuple[Real, Real]]:
    return lambda p: (minus, plus)


def _turns(*turns: tuple[float, float, float]) -> Callable[[Parameters], tuple[Turn, ...]]:
    found = tuple(Turn(*t) for t in turns)
    return lambda p: found


def _extremum(location: float, value: float) -> tuple[float, float, float]:
    return location, value, value


_INCREASING = _limits(-math.inf, math.inf)
_VALLEY = _limits(math.inf, math.inf)
_ROOT_HALF = math.sqrt(0.5)
_TWO_OVER_ROOT_PI = 2 / math.sqrt(math.pi)
_DENSITY = 1 / math.sqrt(2 * math.pi)
_TANH_SCALE = math.sqrt(2 / math.pi)
SELU_SCALE = 1.0507009873554804934193349852946
SELU_ALPHA = 1.6732632423543772848170429916717


def _step(condition: Tensor) -> Tensor:
    return condition.to(torch.float64)


def _exact(
    right: Callable[[Tensor, Parameters], Tensor],
    limits: Callable[[Parameters], tuple[Real, Real]],
    turns: Callable[[Parameters], tuple[Turn, ...]] = no_turns,
    left: Callable[[Tensor, Parameters], Tensor] | None = None,
) -> Curve:
    return Curve(right, limits, turns, left, relative=0.0, absolute=0.0)


# ------------------------------------------------------------------------------------------------ piecewise linear


def _hull(location: Real, a: Real, b: Real) -> Turn:
    first, second = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return Turn(location, torch.minimum(first, second), torch.maximum(first, second))


def _scaled_infinity(a: Tensor) -> Tensor:
    """The limit of `a x` at minus infinity."""
    return torch.where(a == 0, 0.0, -a * math.inf)


def _leaky(name: str) -> Function:
    return Function(
        Curve(
            lambda x, p: torch.where(x >= 0, x, p[name] * x),
            lambda p: (_scaled_infinity(p[name]), math.inf),
            _turns(_extremum(0.0, 0.0)),
        ),
        _exact(
            lambda x, p: torch.where(x >= 0, 1.0, p[name]),
            lambda p: (p[name], 1.0),
            lambda p: (_hull(0.0, p[name], 1.0),),
            lambda x, p: torch.where(x > 0, 1.0, p[name]),
        ),
        (name,),
    )


_PIECEWISE_LINEAR = {
    "relu": Function(
        _exact(lambda x, p: x.clamp(min=0), _limits(0, math.inf)),
        _exact(lambda x, p: _step(x >= 0), _limits(0, 1), _turns((0, 0, 1)), lambda x, p: _step(x > 0)),
    ),
    "leaky_relu": _leaky("negative_slope"),
    "prelu": _leaky("slope"),
    "abs": Function(
        _exact(lambda x, p: x.abs(), _VALLEY, _turns((0, 0, 0))),
        _exact(
            lambda x, p: 2 * _step(x >= 0) - 1, _limits(-1, 1), _turns((0, -1, 1)), lambda x, p: 2 * _step(x > 0) - 1
        ),
    ),
    "clip": Function(
        _exact(lambda x, p: x.maximum(p["low"]).minimum(p["high"]), lambda p: (p["low"].minimum(p["high"]), p["high"])),
        _exact(
            lambda x, p: _step((x >= p["low"]) & (x < p["high"])),
            lambda p: (_step((p["low"] == -math.inf) & (p["high"] > -math.inf)), _step(p["high"] == math.inf)),
            lambda p: (Turn(p["low"], 0.0, 1.0), Turn(p["high"], 0.0, 1.0)),
            lambda x, p: _step((x > p["low"]) & (x <= p["high"])),
        ),
        ("low", "high"),
    ),
    "softshrink": Function(
        Curve(lambda x, p: x - x.maximum(-p["lambd"]).minimum(p["lambd"]), _INCREASING, absolute=CANCELLATION),
        _exact(
            lambda x, p: _step((x >= p["lambd"]) | (x < -p["lambd"])),
            _limits(1, 1),
            lambda p: (Turn(-p["lambd"], 0.0, 1.0), Turn(p["lambd"], 0.0, 1.0)),
            lambda x, p: _step((x > p["lambd"]) | (x <= -p["lambd"])),
        ),
        ("lambd",),
    ),
    "hardswish": Function(
        Curve(lambda x, p: x * (x + 3).clamp(0, 6) / 6, _limits(0, math.inf), _turns(_extremum(-1.5, -0.375))),
        Curve(
            lambda x, p: torch.where(x >= 3, 1.0, torch.where(x < -3, 0.0, (2 * x + 3) / 6)),
            _limits(0, 1),
            _turns((-3, -0.5, 0), (3, 1, 1.5)),
            lambda x, p: torch.where(x > 3, 1.0, torch.where(x <= -3, 0.0, (2 * x + 3) / 6)),
            absolute=CANCELLATION,
        ),
        pieces=lambda p: ((-math.inf, -3.0, 0.0), (3.0, math.inf, 1.0)),
    ),
}

# ---------------------------------------------------------------------------------------------------- exponentials


def _exponential_unit(
    alpha: Callable[[Parameters], Tensor], rate: Callable[[Parameters], Tensor], scale: float
) -> Function:
    """`scale (x if x >= 0 else alpha (exp(x / rate) - 1))`: elu has rate 1, celu rate alpha, selu a scale."""

    def steep(p: Parameters) -> Tensor:
        return scale * (alpha(p) / rate(p))

    def value(x: Tensor, p: Parameters) -> Tensor:
        return scale * torch.where(x >= 0, x, alpha(p) * torch.expm1(x.clamp(max=0) / rate(p)))

    def at_minus_infinity(p: Parameters, of_value: bool) -> Tensor:
        if of_value:
            return torch.where(rate(p) > 0, -scale * alpha(p), -math.inf)
        return torch.where(rate(p) > 0, 0.0, math.inf)

    return Function(
        Curve(value, lambda p: (at_minus_infinity(p, True), math.inf), _turns(_extremum(0.0, 0.0))),
        Curve(
            lambda x, p: torch.where(x >= 0, scale, steep(p) * torch.exp(x.clamp(max=0) / rate(p))),
            lambda p: (at_minus_infinity(p, False), scale),
            lambda p: (_hull(0.0, steep(p), scale),),
            lambda x, p: torch.where(x > 0, scale, steep(p) * torch.exp(x.clamp(max=0) / rate(p))),
        ),
        pieces=(lambda p: ((0.0, math.inf, 1.0),)) if scale == 1 else _no_pieces,
    )


def _constant(value: float) -> Callable[[Parameters], Tensor]:
    return lambda p: torch.tensor(value, dtype=torch.float64)


def _named(name: str, function: Function) -> Function:
    return Function(function.value, function.slope, (name,), function.start, function.pieces)


_sigmoid = torch.sigmoid


def _swish_slope(z: Tensor) -> Tensor:
    return _sigmoid(z) * (1 + z * _sigmoid(-z))


def _softplus_tanh(x: Tensor) -> Tensor:
    """tanh(log(1 + exp(x))) without overflow or cancellation."""
    return torch.tanh(torch.logaddexp(x, torch.zeros_like(x)))


def _gelu_inner(x: Tensor) -> Tensor:
    return 2 * _TANH_SCALE * (x + 0.044715 * x**3)


def _gelu_tanh_slope(x: Tensor, p: Parameters) -> Tensor:
    x = x.clamp(-100, 100)  # beyond, the slope is 0 or 1 to far below an ulp
    u = _gelu_inner(x)
    return _sigmoid(u) * (1 + x * _sigmoid(-u) * 2 * _TANH_SCALE * (1 + 3 * 0.044715 * x**2))


def _mish_slope(x: Tensor, p: Parameters) -> Tensor:
    t = _softplus_tanh(x)
    return t + x * ((1 - t) * (1 + t)) * _sigmoid(x)


_SIGMOIDAL = {
    "sigmoid": Function(
        Curve(lambda x, p: _sigmoid(x), _limits(0, 1)),
        Curve(lambda x, p: _sigmoid(x) * _sigmoid(-x), _limits(0, 0), _turns(_extremum(0, 0.25))),
    ),
    "tanh": Function(
        Curve(lambda x, p: torch.tanh(x), _limits(-1, 1)),
        Curve(lambda x, p: 4 * _sigmoid(2 * x) * _sigmoid(-2 * x), _limits(0, 0), _turns(_extremum(0, 1))),
    ),
    "erf": Function(
        Curve(lambda x, p: torch.erf(x), _limits(-1, 1)),
        Curve(
            lambda x, p: _TWO_OVER_ROOT_PI * torch.exp(-(x**2)), _limits(0, 0), _turns(_extremum(0, _TWO_OVER_ROOT_PI))
        ),
    ),
    "arctan": Function(
        Curve(lambda x, p: torch.arctan(x), _limits(-math.pi / 2, math.pi / 2)),
        Curve(lambda x, p: 1 / (1 + x**2), _limits(0, 0), _turns(_extremum(0, 1))),
    ),
    "softsign": Function(
        Curve(lambda x, p: x / (1 + x.abs()), _limits(-1, 1)),
        Curve(lambda x, p: 1 / (1 + x.abs()) ** 2, _limits(0, 0), _turns(_extremum(0, 1))),
    ),
    "tanhshrink": Function(
        Curve(lambda x, p: x - torch.tanh(x), _INCREASING, absolute=CANCELLATION),
        Curve(lambda x, p: torch.tanh(x) ** 2, _limits(1, 1), _turns(_extremum(0, 0))),
    ),
}

_SWISH_ZERO, _SWISH_LEAST = -1.2784645427610738, -0.2784645427610738
_SWISH_TURN, _SWISH_STEEPEST = 2.3993572805154676, 1.0998393201288668

_RECTIFYING = {
    "softplus": Function(
        Curve(lambda x, p: torch.logaddexp(p["beta"] * x, torch.zeros_like(x)) / p["beta"], _limits(0, math.inf)),
        Curve(lambda x, p: _sigmoid(p["beta"] * x), _limits(0, 1)),
        ("beta",),
    ),
    "gelu": Function(
        Curve(
            lambda x, p: 0.5 * x * torch.erfc(-_ROOT_HALF * x),
            _limits(0, math.inf),
            _turns(_extremum(-0.75179152469356446, -0.16997120747990366)),
        ),
        Curve(
            lambda x, p: 0.5 * torch.erfc(-_ROOT_HALF * x) + x * _DENSITY * torch.exp(-0.5 * x**2),
            _limits(0, 1),
            _turns(
                _extremum(-1.414213562373095, -0.12890414518515479), _extremum(1.414213562373095, 1.1289041451851548)
            ),
            absolute=CANCELLATION,
        ),
    ),
    "gelu_tanh": Function(
        Curve(
            lambda x, p: x * _sigmoid(_gelu_inner(x)),
            _limits(0, math.inf),
            _turns(_extremum(-0.75246142207101626, -0.17004075057125405)),
        ),
        Curve(
            _gelu_tanh_slope,
            _limits(0, 1),
            _turns(
                _extremum(-1.4185040087908284, -0.12899306865877177), _extremum(1.4185040087908284, 1.1289930686587718)
            ),
            absolute=CANCELLATION,
        ),
    ),
    "silu": Function(
        Curve(
            lambda x, p: x * _sigmoid(p["beta"] * x),
            _limits(0, math.inf),
            lambda p: (Turn(_SWISH_ZERO / p["beta"], _SWISH_LEAST / p["beta"], _SWISH_LEAST / p["beta"]),),
        ),
        Curve(
            lambda x, p: _swish_slope(p["beta"] * x),
            _limits(0, 1),
            lambda p: (
                Turn(-_SWISH_TURN / p["beta"], 1 - _SWISH_STEEPEST, 1 - _SWISH_STEEPEST),
                Turn(_SWISH_TURN / p["beta"], _SWISH_STEEPEST, _SWISH_STEEPEST),
            ),
            absolute=CANCELLATION,
        ),
        ("beta",),
    ),
    "mish": Function(
        Curve(
            lambda x, p: x * _softplus_tanh(x),
            _limits(0, math.inf),
            _turns(_extremum(-1.1924312145154952, -0.30884341301725041)),
        ),
        Curve(
            _mish_slope,
            _limits(0, 1),
            _turns(
                _extremum(-2.2563763963607931, -0.11252612238946256), _extremum(1.4905711794854285, 1.0884981612517279)
            ),
            absolute=CANCELLATION,
        ),
    ),
    "elu": _named("alpha", _exponential_unit(lambda p: p["alpha"], _constant(1.0), 1.0)),
    "celu": _named("alpha", _exponential_unit(lambda p: p["alpha"], lambda p: p["alpha"], 1.0)),
    "selu": _exponential_unit(_constant(SELU_ALPHA), _constant(1.0), SELU_SCALE),
}

# --------------------------------------------------------------------------------------------- unbounded or periodic


def _odd(p: Parameters) -> Tensor:
    return p["exponent"] % 2 == 1


def _power_slope(x: Tensor, p: Parameters) -> Tensor:
    return p["exponent"] * x ** (p["exponent"] - 1)


_OTHER = {
    "sin": Function(
        Curve(
            lambda x, p: torch.sin(x),
            _limits(0, 0),
            _turns(_extremum(math.pi / 2, 1), _extremum(-math.pi / 2, -1)),
            period=2 * math.pi,
            absolute=CANCELLATION,
        ),
        Curve(
            lambda x, p: torch.cos(x),
            _limits(0, 0),
            _turns(_extremum(0, 1), _extremum(math.pi, -1)),
            period=2 * math.pi,
            absolute=CANCELLATION,
        ),
    ),
    "cos": Function(
        Curve(
            lambda x, p: torch.cos(x),
            _limits(0, 0),
            _turns(_extremum(0, 1), _extremum(math.pi, -1)),
            period=2 * math.pi,
            absolute=CANCELLATION,
        ),
        Curve(
            lambda x, p: -torch.sin(x),
            _limits(0, 0),
            _turns(_extremum(math.pi / 2, -1), _extremum(-math.pi / 2, 1)),
            period=2 * math.pi,
            absolute=CANCELLATION,
        ),
    ),
    "exp": Function(
        Curve(lambda x, p: torch.exp(x), _limits(0, math.inf)), Curve(lambda x, p: torch.exp(x), _limits(0, math.inf))
    ),
    "square": Function(
        Curve(lambda x, p: x**2, _VALLEY, _turns(_extremum(0, 0))), Curve(lambda x, p: 2 * x, _INCREASING)
    ),
    "power": Function(
        Curve(
            lambda x, p: x ** p["exponent"],
            lambda p: (torch.where(_odd(p), -math.inf, math.inf), math.inf),
            _turns(_extremum(0, 0)),
        ),
        Curve(_power_slope, lambda p: (torch.where(_odd(p), math.inf, -math.inf), math.inf), _turns(_extremum(0, 0))),
        ("exponent",),
    ),
    "sqrt": Function(
        Curve(lambda x, p: torch.sqrt(x), _INCREASING),
        Curve(lambda x, p: 0.5 / torch.sqrt(x), _limits(math.inf, 0)),
        start=0.0,
    ),
    "log": Function(
        Curve(lambda x, p: torch.log(x), _INCREASING),
        Curve(lambda x, p: 1 / x, _limits(math.inf, 0)),
        start=0.0,
    ),
    "reciprocal": Function(
        Curve(
            lambda x, p: torch.where(x == 0, math.inf, 1 / x),
            _limits(0, 0),
            _turns((0, -math.inf, math.inf)),
            lambda x, p: torch.where(x == 0, -math.inf, 1 / x),
        ),
        Curve(lambda x, p: -1 / x**2, _limits(0, 0), _turns((0, -math.inf, math.inf))),
    ),
}

FUNCTIONS: Mapping[str, Function] = MappingProxyType(_PIECEWISE_LINEAR | _SIGMOIDAL | _RECTIFYING | _OTHER)
"""Every function of `Elementwise` by name, as in `docs/certificate.md`."""
