"""All methods by name, and `auto`: every method that accepts, cheapest first; the smallest bound is kept."""

from __future__ import annotations

from collections.abc import Iterator

from lipscope.bounds.method import Candidate, Effort, Method
from lipscope.bounds.problem import Problem
from lipscope.bounds.product import Product
from lipscope.bounds.quadratic.method import EclipseFast, LipSDP
from lipscope.claims.errors import UsageError

METHODS: tuple[Method, ...] = (Product(), EclipseFast(), LipSDP())
"""Every method, cheapest first."""


def methods(name: str) -> tuple[Method, ...]:
    """The methods that `name` stands for: one, or all for `auto`.

    Raises:
        UsageError: there is no method of that name.
    """
    if name == "auto":
        return METHODS
    chosen = tuple(method for method in METHODS if method.name == name)
    if not chosen:
        names = ", ".join(["auto", *(method.name for method in METHODS)])
        raise UsageError(f"expected a method out of {names}, got {name!r}")
    return chosen


def candidates(problem: Problem, effort: Effort, name: str = "auto") -> Iterator[Candidate]:
    """What each method comes to, one after the other; none is begun after the deadline once there is a bound."""
    found = False
    for method in methods(name):
        if found and effort.expired:
            yield Candidate(method.name, None, 0.0, note="not begun: the budget was spent")
            continue
        candidate = method.run(problem, effort)
        found = found or candidate.value is not None
        yield candidate
        if candidate.interrupted:
            return


def best(found: list[Candidate]) -> Candidate | None:
    """The candidate with the smallest bound; a deterministic proof wins over a random one at equal value."""
    valued = [c for c in found if c.value is not None]
    return min(valued, key=lambda c: (c.value, c.failure), default=None)
