"""The smooth functions of `Elementwise`: value, derivative, and where these turn, in ball arithmetic.

For each function two facts are used: `turning`, the zeros of f'' (f' is monotone between two neighbours), and
`stationary`, the zeros of f'. The proofs that there are no others are beside each function; the zeros themselves are
enclosed by bisection with proved signs. Every value and derivative is written so that it neither overflows nor
cancels for large arguments; each formula holds for all reals, the branch only picks the stable one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from flint import arb, ctx

from lipcheck.errors import Rejected

PRECISION = 160
Function = Callable[[arb], arb]
Points = Callable[[], tuple[arb, ...]]


def _nowhere() -> tuple[arb, ...]:
    return ()


def _zero() -> tuple[arb, ...]:
    return (arb(0),)


@dataclass(frozen=True)
class Smooth:
    """A differentiable function.

    Attributes:
        value, derivative: enclosures at a ball.
        turning: all zeros of f'' (or more points), enclosed.
        stationary: all zeros of f' (or more points), enclosed.
        limits: f' at -inf and +inf, or None if f' is unbounded or f is not defined on the whole line.
        domain: "all", "positive" (x > 0), "nonnegative" or "nonzero".
    """

    value: Function
    derivative: Function
    turning: Points = _nowhere
    stationary: Points = _nowhere
    limits: tuple[float, float] | None = None
    domain: str = "all"


def root(h: Function, low: float, high: float) -> arb:
    """An enclosure of a zero of the continuous function h, which has opposite proved signs at the ends.

    Raises:
        Rejected: the signs are not proved; a bug here, not in a bundle.
    """
    with ctx.workprec(PRECISION):
        a, b = arb(low), arb(high)
        positive = bool(h(b) > 0)
        if not (h(a) < 0 if positive else (h(a) > 0 and h(b) < 0)):
            raise Rejected("internal: the bracket of a critical point is not proved")
        for _ in range(130):
            middle = ((a + b) / 2).mid()
            sign = h(middle)
            if sign > 0:
                a, b = (a, middle) if positive else (middle, b)
            elif sign < 0:
                a, b = (middle, b) if positive else (a, middle)
            else:
                break
        return a.union(b)


def _decay(x: arb) -> arb:
    """exp(-|x|), an enclosure also where x straddles 0."""
    return (-abs(x)).exp()


def _negative(x: arb) -> bool:
    return bool(x.mid() < 0)


def sigmoid(x: arb) -> arb:
    """1/(1 + exp(-x))."""
    if _negative(x):
        e = x.exp()
        return e / (1 + e)
    return 1 / (1 + (-x).exp())


def _sigmoid_slope(x: arb) -> arb:
    e = _decay(x)
    return e / (1 + e) ** 2


def _sech_squared(x: arb) -> arb:
    e = _decay(2 * x)
    return 4 * e / (1 + e) ** 2


def _softplus(x: arb) -> arb:
    return x.exp().log1p() if _negative(x) else x + (-x).exp().log1p()


def _normal(x: arb) -> arb:
    """The normal distribution function."""
    return (-x / arb(2).sqrt()).erfc() / 2


def _density(x: arb) -> arb:
    return (-x * x / 2).exp() / (2 * arb.pi()).sqrt()


def _gelu_slope(x: arb) -> arb:
    return _normal(x) + x * _density(x)


def _inner(x: arb) -> tuple[arb, arb]:
    """G = sqrt(2/pi) (x + a x^3), a = 0.044715, and g'."""
    a, k = arb(44715) / 1_000_000, (2 / arb.pi()).sqrt()
    return k * x * (1 + a * x * x), k * (1 + 3 * a * x * x)


def _gelu_tanh(x: arb) -> arb:
    return x * sigmoid(2 * _inner(x)[0])  # (1 + tanh g)/2 = sigmoid(2 g)


def _gelu_tanh_slope(x: arb) -> arb:
    g, dg = _inner(x)
    return sigmoid(2 * g) + x * dg * _sech_squared(g) / 2


def _silu(x: arb) -> arb:
    return x * sigmoid(x)


def _silu_slope(x: arb) -> arb:
    return sigmoid(x) + x * _sigmoid_slope(x)


def _mish_parts(x: arb) -> tuple[arb, arb]:
    """T = tanh(log(1 + u)) with u = exp(x), and its derivative 4 u (u + 1)/q^2, q = u^2 + 2u + 2."""
    if _negative(x):
        u = x.exp()
        q = u * u + 2 * u + 2
        return u * (u + 2) / q, 4 * u * (u + 1) / q**2
    w = (-x).exp()
    q = 1 + 2 * w + 2 * w * w
    return (1 + 2 * w) / q, 4 * w * w * (1 + w) / q**2


def _mish_slope(x: arb) -> arb:
    t, dt = _mish_parts(x)
    return t + x * dt


@cache
def _gelu_turning() -> tuple[arb, ...]:
    """F'' = density(x) (2 - x^2): exactly +-sqrt 2."""
    with ctx.workprec(PRECISION):
        return -arb(2).sqrt(), arb(2).sqrt()


@cache
def _gelu_tanh_turning() -> tuple[arb, ...]:
    """f''/sech^2(g) = k (1 + 6 a x^2) - k^2 x (1 + 3 a x^2)^2 tanh(g) is even; divided by k (1 + 6 a x^2) it is
    `1 - k x (1 + 9 a^2 x^4/(1 + 6 a x^2)) tanh(g)`, decreasing on x > 0: one positive zero and its mirror image.
    """

    def h(x: arb) -> arb:
        a, k = arb(44715) / 1_000_000, (2 / arb.pi()).sqrt()
        return 1 - k * x * (1 + 9 * a * a * x**4 / (1 + 6 * a * x * x)) * _inner(x)[0].tanh()

    z = root(h, 1.0, 2.0)
    return -z, z


@cache
def _silu_turning() -> tuple[arb, ...]:
    """F'' = sigmoid'(x) (2 - x tanh(x/2)), and x tanh(x/2) is even and increasing on x > 0."""
    z = root(lambda x: 2 - x * (x / 2).tanh(), 1.0, 4.0)
    return -z, z


def mish_sign(x: arb) -> arb:
    """With the sign of mish'': `2 (u + 1) q + x (2 + 2u - 3u^2 - 2u^3)`, u = exp(x), q = u^2 + 2u + 2.

    f'' = 2 T' + x T'' with T' = 4 u (u+1)/q^2 and T'' = 4 u (2 + 2u - 3u^2 - 2u^3)/q^3.
    """
    u = x.exp()
    return 2 * (u + 1) * (u * u + 2 * u + 2) + x * (2 + u * (2 - u * (3 + 2 * u)))


def _mish_sign_slope(x: arb) -> arb:
    u = x.exp()
    return 8 * u + 12 * u**2 + 6 * u**3 + (2 + 2 * u - 3 * u**2 - 2 * u**3) + x * (2 * u - 6 * u**2 - 6 * u**3)


@cache
def _mish_turning() -> tuple[arb, ...]:
    """Two zeros of `mish_sign`, h: none on x <= -3, where u <= 0.05 makes the bracket at least 2 and
    h <= 2.1 * 2.2 + 2x < 0; none on x >= 2, where u >= 7.3 makes the bracket negative and
    h <= -2u^3 + 12u + 8 < 0; between, cells of length 1/64 in which h or h' has a proved sign.
    """
    brackets: list[tuple[float, float]] = []
    with ctx.workprec(PRECISION):
        for cell in range(-3 * 64, 2 * 64):
            ball = arb((2 * cell + 1) / 128, 1 / 128)
            h = mish_sign(ball)
            if h > 0 or h < 0:
                continue
            dh = _mish_sign_slope(ball)
            if not (dh > 0 or dh < 0):
                raise Rejected("internal: the turning points of mish are not proved")
            low, high = cell / 64, (cell + 1) / 64
            ends = mish_sign(arb(low)), mish_sign(arb(high))
            if any(not (end < 0 or end > 0) for end in ends):
                raise Rejected("internal: the turning points of mish are not proved")
            if bool(ends[0] < 0) != bool(ends[1] < 0):
                brackets.append((low, high))
    return tuple(root(mish_sign, low, high) for low, high in brackets)


def _hump(slope: Function, turning: Points) -> Points:
    """The one zero of f' where f' falls from 0 to its minimum, rises past 0 to its maximum and falls to 1."""

    @cache
    def points() -> tuple[arb, ...]:
        low, high = turning()
        return (root(slope, float(low.mid()), float(high.mid())),)

    return points


def _expm1(x: arb) -> arb:
    return x.expm1()


SMOOTH: dict[str, Smooth] = {
    # Even derivatives that fall on both sides of 0 (tanhshrink': rises).
    "sigmoid": Smooth(sigmoid, _sigmoid_slope, _zero, limits=(0, 0)),
    "tanh": Smooth(lambda x: x.tanh(), _sech_squared, _zero, limits=(0, 0)),
    "arctan": Smooth(lambda x: x.atan(), lambda x: 1 / (1 + x * x), _zero, limits=(0, 0)),
    "erf": Smooth(lambda x: x.erf(), lambda x: 2 * (-x * x).exp() / arb.pi().sqrt(), _zero, limits=(0, 0)),
    "softsign": Smooth(lambda x: x / (1 + abs(x)), lambda x: 1 / (1 + abs(x)) ** 2, _zero, limits=(0, 0)),
    "tanhshrink": Smooth(lambda x: x - x.tanh(), lambda x: x.tanh() ** 2, _zero, _zero, limits=(1, 1)),
    # Monotone derivative.
    "softplus": Smooth(_softplus, sigmoid, limits=(0, 1)),
    "expm1": Smooth(_expm1, lambda x: x.exp()),
    "exp": Smooth(lambda x: x.exp(), lambda x: x.exp()),
    "sqrt": Smooth(lambda x: x.sqrt(), lambda x: 1 / (2 * x.sqrt()), domain="nonnegative"),
    "log": Smooth(lambda x: x.log(), lambda x: 1 / x, domain="positive"),
    "reciprocal": Smooth(lambda x: 1 / x, lambda x: -1 / (x * x), domain="nonzero"),
    # f' falls, rises, falls; f has one minimum between the turning points.
    "gelu": Smooth(lambda x: x * _normal(x), _gelu_slope, _gelu_turning, _hump(_gelu_slope, _gelu_turning), (0, 1)),
    "gelu_tanh": Smooth(
        _gelu_tanh, _gelu_tanh_slope, _gelu_tanh_turning, _hump(_gelu_tanh_slope, _gelu_tanh_turning), (0, 1)
    ),
    "silu": Smooth(_silu, _silu_slope, _silu_turning, _hump(_silu_slope, _silu_turning), (0, 1)),
    "mish": Smooth(
        lambda x: x * _mish_parts(x)[0], _mish_slope, _mish_turning, _hump(_mish_slope, _mish_turning), (0, 1)
    ),
}
"""By name; `softplus` and `silu` for beta = 1, `expm1` for the negative side of the elu family."""


def power(n: int) -> Smooth:
    """x^n, n >= 2: f' = n x^(n-1) turns at 0 if n is odd, f if n is even; 0 is listed for both."""
    return Smooth(lambda x: x**n, lambda x: n * x ** (n - 1), _zero, _zero)
