"""Best-first branch and bound: the tree of cells, and what of it goes into a proof.

The bound of the whole is the largest over the leaves of the smallest over each leaf's ancestors: a cell inherits what is
proved of the cells around it, so splitting never makes the bound worse and it may stop at any time.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from lipscope.bounds.branch.empty import inequalities, solve
from lipscope.bounds.branch.exact import Matrix
from lipscope.bounds.branch.examine import Finding, Task
from lipscope.bounds.branch.forms import forms_in
from lipscope.bounds.branch.points import Evaluator
from lipscope.bounds.branch.skeleton import Cell, Skeleton
from lipscope.bounds.branch.workers import Workers
from lipscope.bounds.method import Effort
from lipscope.claims.norms import Norm

TOGETHER = 4
"""Leaves that are split in one round, whatever the number of processes: the tree does not depend on it."""

MOST_CELLS = 20_000
"""Cells after which the search gives up: the checker has to go through them."""

CLOSE = 2e-4
"""Relative gap to the best point at which the search is done."""

TRIAL = 0.1
"""After this share of the time and `CELLS_TRIED` cells (or a quarter of the time) a search that is to improve on other methods is given up"""
CELLS_TRIED = 100
PACE = 4.0
"""if at its pace so far it would take so many times longer than it has; the pace only ever falls."""

STEP = 5e-10
"""Relative room above the largest leaf, for the checker."""


@dataclass(eq=False)
class Branch:
    """One cell of the tree.

    Attributes:
        cell: the cell.
        finding: what is known of it.
        bound: the smaller of its own bound and its parent's.
        parts: the cells below and above `finding.split`, once it is split.
    """

    cell: Cell
    finding: Finding
    bound: float
    parts: tuple[Branch, Branch] | None = None

    def value(self) -> float:
        """The bound that the tree from here on proves (without recursion: trees may be deep)."""
        known: dict[int, float] = {}
        for branch in reversed(list(self.walk())):
            below = max(known[id(part)] for part in branch.parts) if branch.parts else np.inf
            known[id(branch)] = min(branch.finding.bound, below)
        return known[id(self)]

    def walk(self, above: float = -np.inf) -> Iterator[Branch]:
        """This cell and all below, each before its parts; not into cells whose own bound is at most `above`."""
        stack = [self]
        while stack:
            branch = stack.pop()
            yield branch
            if branch.parts and branch.finding.bound > above:
                stack += reversed(branch.parts)


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
            task = Task(self.skeleton.root, None, self._target, self.effort.deadline)
            heap: list[tuple[float, int, Branch]] = []
            self.root = self._grown(heap, workers([task])[0], np.inf, self.skeleton.root)
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

    def _grown(self, heap: list[tuple[float, int, Branch]], finding: Finding, inherited: float, cell: Cell) -> Branch:
        """The branch of a cell: what is known of it, below the empty parts that were taken from it."""
        if finding.reached > self.reached:
            self._attained(finding.reached, finding.point)
        top = branch = Branch(cell, finding, min(finding.bound, inherited))
        for void in finding.voids:
            branch.finding = Finding("nothing", np.inf, split=(void.unit, void.threshold))
            below, above = (part(void.unit, void.threshold) for part in (branch.cell.below, branch.cell.above))
            rest = Branch(above if void.side == "below" else below, finding, branch.bound)
            none = Branch(below if void.side == "below" else above, Finding("empty", 0.0, empty=void.proof), 0.0)
            branch.parts = (none, rest) if void.side == "below" else (rest, none)
            branch = rest
        self.cells += 1 + len(finding.voids)
        if finding.kind != "empty":
            self._pushed += 1  # leaves with equal bounds are split in the order in which they came
            heapq.heappush(heap, (-branch.bound, self._pushed, branch))
        return top

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
        tasks, places = [], []
        for branch in chosen:
            assert branch.finding.split is not None
            unit, threshold = branch.finding.split
            for cell in (branch.cell.below(unit, threshold), branch.cell.above(unit, threshold)):
                tasks.append(Task(cell, branch.finding, self._target, self.effort.deadline))
                places.append(branch)
        findings = workers(tasks)
        for first in range(0, len(tasks), 2):
            parent = places[first]
            below, above = (self._grown(heap, findings[i], parent.bound, tasks[i].cell) for i in (first, first + 1))
            parent.parts = below, above
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
