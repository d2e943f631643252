"""Numbers as people read them, rounded so that what is shown stays true: upper bounds up, lower bounds down."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
DIGITS = 4


def up(value: float, digits: int = DIGITS) -> str:
    """The value with so many significant digits, never below it.

    >>> up(9.80001), up(2.0), up(1.23456e-9)
    ('9.801', '2', '1.235 × 10⁻⁹')
    """
    return _written(value, digits, ROUND_CEILING)


def down(value: float, digits: int = DIGITS) -> str:
    """The value with so many significant digits, never above it.

    >>> down(9.53999), down(0.0), down(123456789.0)
    ('9.539', '0', '1.234 × 10⁸')
    """
    return _written(value, digits, ROUND_FLOOR)


def about(value: float, digits: int = DIGITS) -> str:
    """The value with so many significant digits, rounded to nearest: for numbers that prove nothing.

    >>> about(1.09619)
    '1.096'
    """
    return _written(value, digits, ROUND_HALF_EVEN)


def _written(value: float, digits: int, rounding: str) -> str:
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    rounded = Context(prec=digits, rounding=rounding).plus(Decimal(value)).normalize()
    if rounded == 0:
        return "0"
    exponent = rounded.adjusted()
    if -4 <= exponent < 6:
        return f"{rounded:f}".replace("-", "−")
    return f"{rounded.scaleb(-exponent):f} × {power_of_ten(exponent)}".replace("-", "−")


def power_of_ten(exponent: int) -> str:
    """10 to an integer power, in typeset form.

    >>> power_of_ten(-12)
    '10⁻¹²'
    """
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def digits_for(ratio: float | None) -> int:
    """How many digits show both ends of an interval without widening it much: 4, more for a narrow one, at most 10.

    >>> digits_for(1.5), digits_for(1.00001), digits_for(1.0), digits_for(None)
    (4, 7, 10, 4)
    """
    if ratio is None or not math.isfinite(ratio):
        return DIGITS
    return 10 if ratio <= 1 + 1e-9 else min(10, max(DIGITS, 2 - math.floor(math.log10(ratio - 1))))


def seconds(value: float) -> str:
    """A duration.

    >>> seconds(0.0004), seconds(0.25), seconds(75.0), seconds(7500.0)
    ('< 1 ms', '250 ms', '1 min 15 s', '2 h 5 min')
    """
    if value < 0.001:
        return "< 1 ms" if value > 0 else "0 s"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def count(value: int | None) -> str:
    """An integer with narrow spaces between thousands; a question mark where it is not known.

    >>> count(1234567).split(), count(None)
    (['1', '234', '567'], '?')
    """
    return "?" if value is None else f"{value:,}".replace(",", "\u202f")


def shape(sizes: tuple[int, ...]) -> str:
    """A shape.

    >>> shape((1, 28, 28)), shape(())
    ('1 × 28 × 28', 'scalar')
    """
    return " × ".join(map(str, sizes)) or "scalar"
