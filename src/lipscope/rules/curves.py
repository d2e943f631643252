"""Ranges of piecewise monotone functions over intervals, rounded outward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lipscope.claims.rounding import LARGEST, down, up

Parameters = Mapping[str, Tensor]
"""A function's parameters by name, float64 tensors that broadcast to its operand."""

Real = float | Tensor

RELATIVE = 1e-12
"""Relative widening of computed values.

Ours are off by less than 6e-13: functions of libm by 16 ulp (`LIBM_ULPS`), arguments of exponentials (below 750 where the
result is not 0) by a few ulp. The independent checker encloses the same values with ball arithmetic, widened outward by an
ulp; it proves the claim, and its enclosure has to lie inside ours, so ours never stops short at a value that is known."""

TINY = 1e-300
"""Absolute widening, for results that underflow."""

CANCELLATION = 1e-13
"""Absolute widening of differences of numbers of size 1, each computed to 16 ulp."""


@dataclass(frozen=True)
class Turn:
    """A place where a curve changes its direction or jumps.

    Attributes:
        location: where.
        lowest: the smallest of the value and the one-sided limits there.
        highest: the largest of them.
    """

    location: Real
    lowest: Real
    highest: Real


def no_turns(parameters: Parameters) -> tuple[Turn, ...]:
    """The turns of a monotone curve."""
    return ()


@dataclass(frozen=True)
class Curve:
    """A function of one variable that is monotone between its turns.

    Attributes:
        right: its value, at a jump the limit from the right; finite arguments.
        limits: its limits at minus and plus infinity.
        turns: where it changes direction or jumps.
        left: where there are jumps: its value, at a jump the limit from the left.
        period: if not 0, the turns repeat with it.
        relative, absolute: computed values are widened by `relative |value| + absolute`; 0 and 0: they are exact.
    """

    right: Callable[[Tensor, Parameters], Tensor]
    limits: Callable[[Parameters], tuple[Real, Real]]
    turns: Callable[[Parameters], tuple[Turn, ...]] = no_turns
    left: Callable[[Tensor, Parameters], Tensor] | None = None
    period: float = 0.0
    relative: float = RELATIVE
    absolute: float = TINY

    def range(self, lower: Tensor, upper: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Enclosure of the smallest and the largest value between `lower` and `upper`.

        At the ends only the limit from within counts; both do where `lower == upper`.
        """
        minus, plus = (torch.as_tensor(v, dtype=lower.dtype) for v in self.limits(parameters))
        ends = []
        for x, curve in ((lower, self.right), (upper, self.left or self.right)):
            at = curve(x.masked_fill(x.isinf(), 0.0), parameters)
            ends.append(torch.where(x == -math.inf, minus, torch.where(x == math.inf, plus, at)))
        lowest, highest = torch.minimum(*ends), torch.maximum(*ends)
        for turn in self.turns(parameters):
            inside = self._inside(turn.location, lower, upper)
            lowest = torch.where(inside, lowest.minimum(torch.as_tensor(turn.lowest, dtype=lower.dtype)), lowest)
            highest = torch.where(inside, highest.maximum(torch.as_tensor(turn.highest, dtype=lower.dtype)), highest)
        if self.relative == 0 == self.absolute:
            return lowest, highest
        # A computed infinity may be a large number: only the outer end may stay infinite.
        lowest, highest = lowest.clamp(max=LARGEST), highest.clamp(min=-LARGEST)
        return (
            down(lowest - (self.relative * lowest.abs() + self.absolute)),
            up(highest + (self.relative * highest.abs() + self.absolute)),
        )

    def _inside(self, location: Real, lower: Tensor, upper: Tensor) -> Tensor:
        """Whether a turn lies between; a turn just outside may be counted where its location is rounded."""
        if not self.period:
            slack = 0.0 if self.absolute == 0 else torch.as_tensor(location).abs() * 1e-14
            return (lower < location + slack) & (location - slack < upper)
        # Beyond 1e6 the reduction by the period is not trusted to the slack any more: every turn counts.
        first = torch.ceil((lower - SLACK - location) / self.period)
        last = torch.floor((upper + SLACK - location) / self.period)
        return (first <= last) | (torch.maximum(lower.abs(), upper.abs()) > 1e6)


SLACK = 1e-8
"""How far outside an interval a periodic turn counts as inside. At a smooth turn a curve differs by the square of that from
its extreme value, so that nothing is lost; rounding of locations is far smaller for arguments below 1e6."""
