"""The tree of cells, and how a leaf of it grows: some cells at a time, wherever that is done.

The bound of the whole is the largest over the leaves of the smallest over each leaf's ancestors: a cell inherits what is
proved of the cells around it, so splitting never makes the bound worse and it may stop at any time.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from lipscope.bounds.branch.exact import Matrix
from lipscope.bounds.branch.examine import Finding, Task, examine
from lipscope.bounds.branch.points import Evaluator
from lipscope.bounds.branch.skeleton import Cell, Skeleton
from lipscope.claims.norms import Norm

CLOSE = 2e-4
"""Relative gap to the best point at which a cell, and so the search, is done."""

SPLITS = 3
"""How often a leaf and what grows from it are split in one go: less to send to other processes and back, less waiting for the others."""


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

    def open_leaves(self) -> Iterator[Branch]:
        """The leaves that are not empty."""
        return (branch for branch in self.walk() if not branch.parts and branch.finding.kind != "empty")

    def take(self, parts: tuple[Branch, Branch]) -> None:
        """Its parts, which have taken over what is needed of it to go on."""
        self.parts, self.finding = parts, self.finding.settled()


@dataclass(eq=False)
class Growth:
    """What has grown from one leaf.

    Attributes:
        parts: what the leaf is split into; None for one that was examined only.
        cells: how many were examined.
        reached: the best computed norm of a Jacobian on the way.
        point: where.
    """

    parts: tuple[Branch, Branch] | None = None
    cells: int = 0
    reached: float = 0.0
    point: Matrix | None = None

    def met(self, finding: Finding) -> None:
        """Count a cell."""
        self.cells += 1 + len(finding.voids)
        if finding.reached > self.reached:
            self.reached, self.point = finding.reached, finding.point


@dataclass(frozen=True, eq=False)
class Gardener:
    """Examines the cells of one skeleton."""

    skeleton: Skeleton
    norm: Norm
    evaluator: Evaluator = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "evaluator", Evaluator(self.skeleton, self.norm))

    def root(self, target: float, deadline: float) -> tuple[Branch, Growth]:
        """The whole domain."""
        growth = Growth()
        return self._examined(Task(self.skeleton.root, None, target, deadline), np.inf, growth), growth

    def grow(self, leaf: Branch, target: float, deadline: float) -> Growth:
        """What becomes of a leaf when it, and then the one with the largest bound below it, are split a few times.

        Args:
            leaf: with a split; it stays as it is.
            target: a bound that needs no improvement.
            deadline: `time.monotonic()` after which only the leaf itself is split.
        """
        growth, top = Growth(), leaf
        heap: list[tuple[float, int, Branch]] = []
        pushed = itertools.count()
        for number in range(SPLITS):
            parts = self._split(top, target, deadline, growth)
            if number == 0:
                growth.parts = parts
            else:
                top.take(parts)
            for branch in (b for part in parts for b in part.open_leaves()):
                heapq.heappush(heap, (-branch.bound, next(pushed), branch))
            target = max(target, growth.reached * (1 + CLOSE))
            if not heap or time.monotonic() > deadline:
                break
            top = heapq.heappop(heap)[2]
            if top.bound <= target or top.finding.split is None:
                break
        return growth

    def _split(self, leaf: Branch, target: float, deadline: float, growth: Growth) -> tuple[Branch, Branch]:
        assert leaf.finding.split is not None
        cells = (leaf.cell.below(*leaf.finding.split), leaf.cell.above(*leaf.finding.split))
        below, above = (self._examined(Task(c, leaf.finding, target, deadline), leaf.bound, growth) for c in cells)
        return below, above

    def _examined(self, task: Task, inherited: float, growth: Growth) -> Branch:
        """The branch of a cell: what is known of it, below the empty parts that were taken from it."""
        finding = examine(self.skeleton, self.norm, self.evaluator, task)
        growth.met(finding)
        top = branch = Branch(task.cell, finding, min(finding.bound, inherited))
        for void in finding.voids:
            branch.finding = Finding("nothing", np.inf, split=(void.unit, void.threshold))
            below, above = (part(void.unit, void.threshold) for part in (branch.cell.below, branch.cell.above))
            rest = Branch(above if void.side == "below" else below, finding, branch.bound)
            none = Branch(below if void.side == "below" else above, Finding("empty", 0.0, empty=void.proof), 0.0)
            branch.parts = (none, rest) if void.side == "below" else (rest, none)
            branch = rest
        return top
