"""A box cut into boxes, each with a bound of its own.

A segment between two points of a convex region meets each of finitely many closed boxes that cover the region in an interval, so with constant K_b
on each box b, `|f(x) - f(y)| <= (largest K_b) |x - y|`. On smaller boxes fewer slopes are open, and patterns that no point has drop out.
The box with the largest bound is halved until the bound is near a quotient that is attained, or the effort is spent; at every moment the boxes
cover the region.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lipscope.bounds.local.jacobian import Part, Rows
from lipscope.bounds.lower import lower_bound
from lipscope.bounds.method import Candidate, Cover, Effort, Proof
from lipscope.bounds.problem import Problem, pose
from lipscope.claims.regions import Ball, Box, Vector
from lipscope.network.nodes import Elementwise
from lipscope.rules.questions import absolute, evaluate, linear_part

MOST_BOXES = 500
"""Boxes that a cover may have: each has its own arrays in the bundle."""

MOST_INPUTS = 64
MOST_NUMBERS = 3000
"""Entries of all functions together: beyond these one box costs too much."""

CLOSE = 1.05
"""A bound within this factor of an attained quotient needs no more boxes."""

WORSE = 1.3
"""Halves whose bound is so many times that of the whole (lines and multipliers are chosen anew) end the search."""

QUICK = 0.5
"""Seconds for an attained quotient, at most."""

Bounding = Callable[[Problem, Effort, float], Candidate]
"""Of a claim, with what may be spent, and a bound that needs no improvement."""


@dataclass(eq=False)
class _Cell:
    """A box with its bound; once it is cut, where (coordinate, place) and the halves.

    Both are set at once, so that the cells cover the region whenever the user stops the search.
    """

    problem: Problem
    found: Candidate
    bound: float
    cut: tuple[tuple[int, float], tuple[_Cell, ...]] | None = None


def covered(problem: Problem, root: Candidate, bounding: Bounding, effort: Effort, most: int = MOST_BOXES) -> Candidate:
    """The bound over a cover, or `root` where nothing is gained.

    Args:
        problem: the claim.
        root: its bound on the whole region.
        bounding: bounds the same network on another box.
        effort: what may be spent in all.
        most: boxes.
    """
    region = problem.claim.region
    box = (
        region
        if isinstance(region, Box)
        else region.box()
        if isinstance(region, Ball) and problem.norm == "linf"
        else None
    )
    if box is None or root.value is None or not _small(problem) or most < 2 or effort.expired or root.interrupted:
        return root
    now = time.monotonic()
    quick = now + min(QUICK, 0.05 * (effort.deadline - now))
    witness = lower_bound(problem, replace(effort, deadline=quick, progress=lambda message, share: None))
    if witness is not None and witness.interrupted:
        return replace(root, interrupted=True)
    target = CLOSE * (0.0 if witness is None else witness.value)
    if min(root.value, effort.known) <= target:
        return root
    # The root's own box may be narrowed on a ball; its parts are boxes.
    top = _Cell(replace(problem, claim=replace(problem.claim, region=box)), root, root.value)
    try:
        interrupted = _halve(top, bounding, effort, target, most)
    except KeyboardInterrupt:
        interrupted = True
    splits, leaves = _collected(top)
    if len(leaves) < 2 or not max(cell.bound for cell in leaves) < root.value:
        return replace(root, interrupted=interrupted)
    proofs = tuple((cell.problem, cell.found.proof) for cell in leaves if cell.found.proof is not None)
    value = max(cell.bound for cell in leaves)
    row = (
        replace(
            root.layers[0],
            name="the whole network",
            kind=f"{len(leaves)} boxes",
            lower=None,
            upper=value,
            evidence="cover",
        )
        if root.layers
        else None
    )
    return replace(
        root, value=value, proof=Proof(root.method, (), Cover(splits, proofs)), layers=() if row is None else (row,),
        note="; ".join(filter(None, (f"over {len(leaves)} boxes that cover the region", root.note))), interrupted=interrupted,
    )  # fmt: skip


def _small(problem: Problem) -> bool:
    functions = sum(problem.graph.nodes[i].size for i in problem.slopes)
    return problem.graph.input_size <= MOST_INPUTS and functions <= MOST_NUMBERS


def _halve(top: _Cell, bounding: Bounding, effort: Effort, target: float, most: int) -> bool:
    """Halve the box with the largest bound, again and again; whether the user stopped a bound on the way."""
    heap, count, leaves = [(-top.bound, 0, top)], 0, 1
    while not effort.expired and leaves < most and -heap[0][0] > target:
        cell = heap[0][2]
        cut = _cut(cell.problem)
        if cut is None:
            return False
        parts: list[_Cell] = []
        for box in _halves(cell.problem, cut):
            posed = pose(cell.problem.stored, replace(cell.problem.claim, region=box))
            found = bounding(posed, effort, target)
            if found.value is None or found.failure > 0 or found.interrupted:
                return found.interrupted
            parts.append(_Cell(posed, found, found.value))
        if max(part.bound for part in parts) >= cell.bound * WORSE:
            return False
        heapq.heappop(heap)
        cell.cut = cut, tuple(parts)
        for part in parts:
            count += 1
            heapq.heappush(heap, (-part.bound, count, part))
        leaves += 1
        effort.progress(f"local: {leaves} boxes, bound {-heap[0][0]:.6g}", leaves / most)
    return False


def _halves(problem: Problem, cut: tuple[int, float]) -> tuple[Box, Box]:
    box = problem.claim.region.box()
    assert box is not None
    index, place = cut
    low, high = box.lower.copy(), box.upper.copy()
    low[index], high[index] = place, place
    return Box(box.lower, high), Box(low, box.upper)


def _cut(problem: Problem) -> tuple[int, float] | None:
    """The coordinate whose width moves the open units most, and its middle; None where no box can be cut."""
    box = problem.claim.region.box()
    assert box is not None
    middle = box.lower / 2 + box.upper / 2
    inside = (box.lower < middle) & (middle < box.upper)
    if not inside.any():
        return None
    scores = np.where(inside, (box.upper - box.lower) * _pull(problem), -1.0)
    index = int(np.argmax(scores))
    return index, float(middle[index])


def _pull(problem: Problem) -> Vector:
    """About how much of the bound hangs on each input coordinate, through the units that are open."""
    graph, size = problem.graph, problem.graph.input_size
    pulls = torch.full((size,), 1e-9, dtype=torch.float64)
    found: dict[int, Tensor] = {0: torch.eye(size, dtype=torch.float64).reshape(size, *graph.nodes[0].shape)}
    weights = _weights(problem)
    for index in sorted(problem.reaching - {0}):
        node = graph.nodes[index]
        before = [found.get(i, torch.zeros((size, *graph.nodes[i].shape), dtype=torch.float64)) for i in node.inputs]
        if isinstance(node, Elementwise):
            low, high = problem.slopes[index]
            stake = ((high - low) * weights.get(index, torch.ones_like(low))).nan_to_num(posinf=1.0)
            pulls += (before[0] * stake).reshape(size, -1).sum(1)
            found[index] = torch.maximum(low.abs(), high.abs()).nan_to_num(posinf=1.0) * before[0]
        elif node.affine and before:
            found[index] = evaluate(absolute(linear_part(node)), *before)
        elif before:
            found[index] = (
                before[0].amax(tuple(range(1, before[0].ndim)), keepdim=True).sum(0).expand(size, *node.shape).clone()
            )
    return np.asarray(pulls.numpy())


def _weights(problem: Problem) -> dict[int, Tensor]:
    """The largest sizes of rows of the Jacobian at functions, where the whole network is made of these."""
    if any(
        not (node.affine or isinstance(node, Elementwise))
        for i, node in enumerate(problem.graph.nodes)
        if i in problem.reaching and i
    ):
        return {}
    part = Part(problem, 0, problem.graph.output)
    rows = Rows(part, [], part.ends({}), 1)
    return {i: rows.found[i].magnitude.amax(0) for i in part.slopes if i in rows.found}


def _collected(top: _Cell) -> tuple[tuple[tuple[int, float] | None, ...], list[_Cell]]:
    """Cuts in preorder (None for a leaf), the half below a cut first; and the leaves in that order."""
    cuts: list[tuple[int, float] | None] = []
    leaves: list[_Cell] = []
    stack = [top]
    while stack:
        cell = stack.pop()
        if cell.cut is None:
            cuts.append(None)
            leaves.append(cell)
            continue
        cuts.append(cell.cut[0])
        stack += reversed(cell.cut[1])
    return tuple(cuts), leaves
