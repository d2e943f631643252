"""Comparisons that raise, never a bool that can be dropped."""

from __future__ import annotations

import math


def expect_upper(value: float | None, truth: float, what: str = "") -> None:
    """`value` is an upper bound of `truth`: zero slack."""
    if value is None or math.isnan(value) or not value >= truth:
        raise AssertionError(f"{what}: upper bound {value!r} is below {truth!r}")


def expect_lower(value: float, truth: float, what: str = "") -> None:
    """`value` is a lower bound of `truth`: zero slack."""
    if math.isnan(value) or not value <= truth:
        raise AssertionError(f"{what}: lower bound {value!r} is above {truth!r}")


def expect_close(value: float, truth: float, relative: float, what: str = "") -> None:
    """The two agree to a relative error."""
    if not abs(value - truth) <= relative * abs(truth):
        raise AssertionError(
            f"{what}: {value!r} differs from {truth!r} by {abs(value / truth - 1) if truth else value:.2e}, allowed {relative:.0e}"
        )
