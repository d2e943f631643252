"""`branch`: the constant of a piecewise linear network, as closely as its cells are worth splitting."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, replace

import numpy as np

from lipscope.bounds.branch.search import Search, certificate
from lipscope.bounds.branch.skeleton import refusal, skeleton
from lipscope.bounds.branch.tree import CLOSE
from lipscope.bounds.lower import lower_bound
from lipscope.bounds.method import Candidate, Effort, LayerRow, Method, Proof, Step
from lipscope.bounds.problem import Problem
from lipscope.bounds.product import with_room
from lipscope.claims.regions import Vector

QUICK = 0.5
"""Seconds for a first lower bound, at most; and at most this share of what is left:"""
QUICK_SHARE = 0.05

MOST_PROCESSES = 8

ALONG = np.linspace(0.02, 0.98, 25)[:, None]
"""Where a pair of points is looked at: somewhere between them the Jacobian is at least as large as their quotient."""


@dataclass(frozen=True)
class BranchAndBound(Method):
    """Splits the domain by the signs of units and bounds the Jacobian on each part; in l1, l2 and linf.

    For piecewise linear networks of a few dozen units it comes as near to the exact constant as it has time for.

    Attributes:
        jobs: processes that examine cells; None for as many as this one may use, at most `MOST_PROCESSES`.
    """

    jobs: int | None = None
    name = "branch"

    def accepts(self, problem: Problem) -> str | None:
        """Piecewise linear networks with rational coefficients and not too many units."""
        return refusal(problem)

    def search(self, problem: Problem, effort: Effort) -> Candidate:
        """The bound that the tree proves when the gap is closed, the time is up or the user has had enough."""
        began = time.monotonic()
        try:
            return self._search(problem, effort, began)
        except KeyboardInterrupt:  # before there was anything to keep
            note = "stopped before it had a bound"
            return Candidate(self.name, None, time.monotonic() - began, note=note, interrupted=True)

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # what is not finite is not proved
    def _search(self, problem: Problem, effort: Effort, began: float) -> Candidate:
        left = max(effort.deadline - began, 0.0)
        quick = replace(effort, deadline=began + min(QUICK, QUICK_SHARE * left))
        witness = lower_bound(problem, quick)
        if witness is not None and witness.interrupted:
            raise KeyboardInterrupt
        reached = 0.0 if witness is None else witness.value
        if effort.known <= reached * (1 + CLOSE):
            note = f"not needed: the best bound is within {CLOSE:.0e} of a lower bound"
            return Candidate(self.name, None, time.monotonic() - began, note=note)
        search = Search(skeleton(problem), problem.norm, effort, self._processes(), reached)
        if witness is not None:
            search.offer(witness.x + ALONG * (witness.y - witness.x))
        search.run()
        bound, tree, values, leaves = certificate(search.root)
        if not math.isfinite(bound):
            note = "the coefficients leave the range in which rounding is accounted for"
            return Candidate(self.name, None, time.monotonic() - began, note=note)
        evidence: dict[str, object] = {"kind": "branch", "tree": tree, "multipliers": np.array(values)}
        value = with_room(bound, 1)
        output = problem.graph.output
        seconds = time.monotonic() - began
        row = LayerRow("the whole network", f"{leaves} cells", search.reached, bound, "branch", seconds)
        return Candidate(
            self.name, value, seconds, Proof(self.name, (Step(output, "branch", value, 0, bound, evidence),)),
            layers=(row,), note=_note(search, bound, leaves), interrupted=search.interrupted, points=_points(search),
        )  # fmt: skip

    def _processes(self) -> int:
        if self.jobs is not None:
            return self.jobs
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(available, MOST_PROCESSES)


def _points(search: Search) -> tuple[Vector, ...]:
    """Where the best norm was found, as inputs of the network."""
    domain = search.skeleton.domain
    x = np.array([float(domain.fixed.get(i, 0)) for i in range(domain.size)])
    found = []
    for point in search.points():
        found.append(x.copy())
        found[-1][list(domain.free)] = point
    return tuple(found)


def _note(search: Search, bound: float, leaves: int) -> str:
    gap = bound / search.reached - 1 if search.reached > 0 else math.inf
    slow = "; given up, since at this pace it would take far too long" if search.hopeless else ""
    return f"{leaves} of {search.cells} cells in the proof, {gap:.1e} above the best point found{slow}"
