"""All methods by name, and `auto`: every method that accepts, cheapest first; the smallest bound is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from math import inf

from lipscope.bounds.absolute import Absolute
from lipscope.bounds.branch.method import BranchAndBound
from lipscope.bounds.differences import from_all_outputs
from lipscope.bounds.local.method import LocalJacobian
from lipscope.bounds.method import Candidate, Effort, Method
from lipscope.bounds.problem import Problem
from lipscope.bounds.product import Product
from lipscope.bounds.quadratic.method import Eclipse, EclipseFast, LipSDP
from lipscope.claims.errors import UsageError

METHODS: tuple[Method, ...] = (
    Product(), Absolute(), EclipseFast(), LocalJacobian(), LipSDP(), Eclipse(), BranchAndBound(),
)  # fmt: skip
"""Every method, cheapest first, and what is only a substitute after what it stands in for."""

AUTO: tuple[Method, ...] = (
    *(replace(m, boxes=1) if isinstance(m, LocalJacobian) else m for m in METHODS), LocalJacobian(),
)  # fmt: skip
"""The order of `auto`: on small networks `branch` closes in a second what many boxes only approach, so these come last."""

SUBSTITUTES = {"eclipse": "lipsdp"}
"""Methods that `auto` leaves out once another has a bound: its multipliers are the best of all."""


def methods(name: str) -> tuple[Method, ...]:
    """The methods that `name` stands for: one, or all for `auto`.

    Raises:
        UsageError: there is no method of that name.
    """
    if name == "auto":
        return AUTO
    chosen = tuple(method for method in METHODS if method.name == name)
    if not chosen:
        names = ", ".join(["auto", *(method.name for method in METHODS)])
        raise UsageError(f"expected a method out of {names}, got {name!r}")
    return chosen


def candidates(problem: Problem, effort: Effort, name: str = "auto") -> Iterator[Candidate]:
    """What each method comes to, one after the other, after what a bound of all outputs says; none is begun after the deadline once there is a bound."""
    known = inf
    bounded: set[str] = set()
    said: set[tuple[str, float | None]] = set()
    given = from_all_outputs(problem, effort)
    if given is not None and given.value is not None:
        known = given.value
        yield given
    for method in methods(name):
        if known < inf and effort.expired:
            if not any(other == method.name for other, _ in said):
                yield Candidate(method.name, None, 0.0, note="not begun: the budget was spent")
            said.add((method.name, None))
            continue
        if name == "auto" and SUBSTITUTES.get(method.name) in bounded:
            note = f"not begun: {SUBSTITUTES[method.name]} has the best multipliers of all"
            yield Candidate(method.name, None, 0.0, note=note)
            continue
        candidate = method.run(problem, replace(_portion(effort, name, method), known=known))
        bounded |= {method.name} if candidate.value is not None else set()
        known = known if candidate.value is None else min(known, candidate.value)
        if (method.name, candidate.value) not in said or candidate.interrupted:  # once for a method that comes twice
            yield candidate
        said.add((method.name, candidate.value))
        problem = problem.with_points(candidate.points)
        if candidate.interrupted:
            return


def _portion(effort: Effort, name: str, method: Method) -> Effort:
    """What a method may spend; in `auto` the product of norms leaves a third of the time to what improves on it, and
    `branch`, which tells late that it cannot close, half to a cover by boxes.
    """
    if name != "auto" or not isinstance(method, Product | BranchAndBound):
        return effort
    now = time.monotonic()
    share = 2 / 3 if isinstance(method, Product) else 1 / 2
    return replace(effort, deadline=now + (effort.deadline - now) * share)


def gathered(problem: Problem, effort: Effort, name: str = "auto") -> tuple[list[Candidate], bool]:
    """All `candidates`, and whether the user stopped them.

    Raises:
        KeyboardInterrupt: stopped before there was a bound.
    """
    found: list[Candidate] = []
    try:
        for candidate in candidates(problem, effort, name):
            found.append(candidate)
    except KeyboardInterrupt:
        if best(found) is None:
            raise
        return found, True
    return found, any(c.interrupted for c in found)


def best(found: list[Candidate]) -> Candidate | None:
    """The candidate with the smallest bound; a deterministic proof wins over a random one at equal value."""
    valued = [c for c in found if c.value is not None]
    return min(valued, key=lambda c: (c.value, c.failure), default=None)
