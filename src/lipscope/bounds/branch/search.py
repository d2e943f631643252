"""Best-first branch and bound: which leaves of the tree grow next, and what of it goes into a proof."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lipscope.bounds.branch.empty import inequalities, solve
from lipscope.bounds.branch.exact import Matrix
from lipscope.bounds.branch.forms import forms_in
from lipscope.bounds.branch.points import Evaluator
from lipscope.bounds.branch.skeleton import Skeleton
from lipscope.bounds.branch.tree import CLOSE, Branch, Growth
from lipscope.bounds.branch.workers import Workers
from lipscope.bounds.method import Effort
from lipscope.claims.norms import Norm

TOGETHER = 16
"""Leaves that grow in one round, whatever the number of processes: the tree does not depend on it."""

MOST_CELLS = 60_000
"""Cells after which the search gives up: the checker has to go through them."""

TRIAL = 0.1
"""After this share of the time and `CELLS_TRIED` cells (or a quarter of the time) a search that is to improve on other methods is given up"""
CELLS_TRIED = 100
PACE = 4.0
"""if at its pace so far it would take so many times longer than it has; the pace only ever falls."""

STEP = 5e-10
"""Relative room above the largest leaf, for the checker."""


@dataclass(eq=False)
class Search:
    """The search on one network.

    Attributes:
        root: the tree.
        reached: the best computed norm of a Jacobian.
        point: where it was found (free coordinates), None for what came from outside.
        cells: how many were examined.
        interrupted: whether the user stopped it.
        hopeless: whether it was given up.
    """

    skeleton: Skeleton
    norm: Norm
    effort: Effort
    jobs: int = 1
    reached: float = 0.0
    point: Matrix | None = None
    cells: int = 0
    interrupted: bool = False
    hopeless: bool = False
    root: Branch = field(init=False)

    def run(self) -> None:
        """Until the gap is closed, nothing is left to split, or the effort is spent; the root is always examined."""
        self._began = time.monotonic()
        with Workers(self.skeleton, self.norm, self.jobs) as workers:
            heap: list[tuple[float, int, Branch]] = []
            self.root, growth = workers.here.root(self._target, self.effort.deadline)
            self._count(growth)
            self._push(heap, [self.root])
            try:
                self._improve(heap, workers)
            except KeyboardInterrupt:
                self.interrupted = True

    def offer(self, inputs: Matrix) -> None:
        """Inputs of the network, one a row, near which the Jacobian may be large; the search climbs from the best of them."""
        evaluator = Evaluator(self.skeleton, self.norm)
        points = inputs[:, list(self.skeleton.domain.free)].T
        point = evaluator.climb(points[:, int(np.argmax(evaluator.gains(points)))])
        self._attained(evaluator.gain(point), point)

    def points(self) -> list[Matrix]:
        """Where the best norm was found: a point of its cell with room around it, and the one that was found.

        The point with the most room to the hyperplanes may lie on the domain's boundary, and the other way round: the one between has both.
        """
        if self.point is None:
            return []
        evaluator = Evaluator(self.skeleton, self.norm)
        forms = forms_in(self.skeleton, evaluator.cell(self.point))
        roomy = solve(self.skeleton.domain, inequalities(forms)).point
        between = self.point if roomy is None else (roomy + self.point) / 2
        return [between, self.point] if evaluator.gain(between) >= self.reached * (1 - 1e-9) else [self.point]

    def _attained(self, value: float, point: Matrix | None) -> None:
        if value >= self.reached:
            self.reached, self.point = value, point

    def _improve(self, heap: list[tuple[float, int, Branch]], workers: Workers) -> None:
        while heap and not self.effort.expired and self.cells < MOST_CELLS:
            chosen = self._chosen(heap)
            if not chosen or self._given_up(chosen[0].bound):
                return
            self._expand(heap, chosen, workers)

    @property
    def _target(self) -> float:
        return self.reached * (1 + CLOSE)

    def _count(self, growth: Growth) -> None:
        self.cells += growth.cells
        if growth.reached > self.reached:
            self._attained(growth.reached, growth.point)

    def _push(self, heap: list[tuple[float, int, Branch]], branches: Iterable[Branch]) -> None:
        for leaf in (leaf for branch in branches for leaf in branch.open_leaves()):
            self._pushed += 1  # leaves with equal bounds are split in the order in which they came
            heapq.heappush(heap, (-leaf.bound, self._pushed, leaf))

    _pushed: int = 0

    def _chosen(self, heap: list[tuple[float, int, Branch]]) -> list[Branch]:
        """The leaves with the largest bounds; none if the largest of all is close to what is reached, or is final."""
        chosen: list[Branch] = []
        while heap and len(chosen) < TOGETHER:
            bound, _, branch = heap[0]
            if -bound <= self._target or branch.finding.split is None:
                break
            heapq.heappop(heap)
            chosen.append(branch)
        return chosen

    def _expand(self, heap: list[tuple[float, int, Branch]], chosen: Sequence[Branch], workers: Workers) -> None:
        for leaf, growth in zip(chosen, workers(chosen, self._target, self.effort.deadline), strict=True):
            assert growth.parts is not None
            leaf.take(growth.parts)
            self._count(growth)
            self._push(heap, growth.parts)
        top = -heap[0][0] if heap else self.reached
        self.effort.progress(f"branch: {self.cells} cells, between {self.reached:.6g} and {top:.6g}", self._share(top))

    def _given_up(self, top: float) -> bool:
        """Whether other methods have a bound, and closing the gap to the best point would take far too long."""
        spent, whole = time.monotonic() - self._began, self.effort.deadline - self._began
        tried = spent > TRIAL * whole and (self.cells >= CELLS_TRIED or spent > whole / 4)
        if self.effort.known < np.inf and np.isfinite(whole) and tried:
            self.hopeless = spent > PACE * whole * self._share(top)
        return self.hopeless

    def _share(self, top: float) -> float:
        """How much of the gap is closed, in logarithms."""
        first, target = self.root.bound, max(self._target, 1e-300)
        if not (np.isfinite(first) and first > target):
            return 1.0
        return float(np.clip(1 - np.log(max(top, target) / target) / np.log(first / target), 0.0, 1.0))


def certificate(root: Branch) -> tuple[float, list[object], list[float], int]:
    """The bound that a tree proves, the tree without what the bound does not need, its multipliers, and its leaves."""
    bound = root.value() * (1 + STEP)
    tree: list[object] = []
    values: list[float] = []
    leaves = 0
    for branch in root.walk(bound):
        finding = branch.finding
        if branch.parts and finding.bound > bound:
            assert finding.split is not None
            tree.append(["split", *finding.split])
            continue
        leaves += 1
        if finding.kind == "empty":
            tree.append(
                ["empty", [[unit, side, hex(weight)] for (unit, side), weight in sorted(finding.empty.items())]]
            )
        elif finding.kind == "rows":
            listed = [k for k, size in enumerate(finding.intervals) if size > bound]
            tree.append(["quadratic", listed] if listed else ["norm"])
            values += [v for k in listed for v in finding.rows[k].numbers]
        else:
            tree.append([finding.kind])
            values += [finding.values[unit] for unit in sorted(finding.values)]
    return bound, tree, values, leaves
