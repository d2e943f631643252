"""All methods by name, and `auto`: every method that accepts, cheapest first; the smallest bound is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf

from lipscope.bounds.absolute import Absolute
from lipscope.bounds.branch.method import BranchAndBound
from lipscope.bounds.local.method import LocalJacobian
from lipscope.bounds.method import Candidate, Effort, Method
from lipscope.bounds.problem import Problem
from lipscope.bounds.product import Product
from lipscope.bounds.quadratic.method import Eclipse, EclipseFast, LipSDP
from lipscope.claims.errors import UsageError

METHODS: tuple[Method, ...] = (
    Product(), Absolute(), EclipseFast(), LocalJacobian(), LipSDP(), Eclipse(), BranchAndBound(),
)  # fmt: skip
"""Every method, in the order of `auto`: cheapest first, and what is only a substitute after what it stands in for."""

SUBSTITUTES = {"eclipse": "lipsdp"}
"""Methods that `auto` leaves out once another has a bound: its multipliers are the best of all."""


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
    known = inf
    bounded: set[str] = set()
    for method in methods(name):
        if known < inf and effort.expired:
            yield Candidate(method.name, None, 0.0, note="not begun: the budget was spent")
            continue
        if name == "auto" and SUBSTITUTES.get(method.name) in bounded:
            note = f"not begun: {SUBSTITUTES[method.name]} has the best multipliers of all"
            yield Candidate(method.name, None, 0.0, note=note)
            continue
        candidate = method.run(problem, replace(effort, known=known))
        bounded |= {method.name} if candidate.value is not None else set()
        known = known if candidate.value is None else min(known, candidate.value)
        yield candidate
        if candidate.interrupted:
            return


def best(found: list[Candidate]) -> Candidate | None:
    """The candidate with the smallest bound; a deterministic proof wins over a random one at equal value."""
    valued = [c for c in found if c.value is not None]
    return min(valued, key=lambda c: (c.value, c.failure), default=None)
