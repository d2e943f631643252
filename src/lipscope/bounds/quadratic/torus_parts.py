"""Which parts of a network are bounded on a torus, and the search for their multipliers within the time and memory there is."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lipscope.bounds.method import Effort, Step
from lipscope.bounds.problem import Problem
from lipscope.bounds.quadratic.stacked import Vector
from lipscope.bounds.quadratic.torus import Torus
from lipscope.bounds.quadratic.torus_axes import NoTorus
from lipscope.bounds.quadratic.torus_proof import proved_constant, smallest_rho
from lipscope.bounds.quadratic.torus_search import BATCH, blocks, improve, searched, start
from lipscope.bounds.quadratic.windows import affordable
from lipscope.network.nodes import Elementwise, MaxPool

SEARCHED, DIMENSION = 3, 260
"""Frequencies on half an axis that the search begins with; the largest order of the matrices at one frequency."""

ROUNDS, WORSE, ADDED = 3, 1.01, 6
"""The search is repeated with the worst frequencies added while they are worse than those it has seen by so much in rho."""

FLOPS = 8e9
"""About how many operations a second are counted on."""

ITERATION, PASS = 120, 60
"""Operations of an iteration of the search, and of a pass over the frequencies, for each of them, times the cube of the order."""


def torus_windows(problem: Problem, passed: list[int], effort: Effort) -> list[Torus]:
    """Parts between nodes that every path passes: from each of them as far as it goes, none of them within another.

    Args:
        problem: the claim.
        passed: the nodes.
        effort: what may be spent.
    """
    found: list[Torus] = []
    for first in range(len(passed) - 1):
        longest: Torus | None = None
        for last in range(first + 1, len(passed)):
            try:
                torus = Torus(problem, passed[first], passed[last])
                if not fits(torus, effort):
                    break
            except NoTorus:
                # A value that is not an image may be followed by one that is: the mean behind it.
                continue
            longest = torus
        if longest is not None and sum(_units(longest)) > 0 and not (found and found[-1].end >= longest.end):
            found.append(longest)
    return found


def _units(torus: Torus) -> list[int]:
    """Units at one position of the coarsest grid, by node."""
    nodes = torus.problem.graph.nodes
    found: list[int] = []
    for index in torus.path:
        if index in torus.levels:
            copies = nodes[index].shape[1] * math.prod(torus.phases(index))
            if isinstance(nodes[index], Elementwise):
                found.append(copies)
            elif nodes[index].kind == "MaxPool":
                found.append(copies * (_window(torus, index) - 1))
    return found


def _window(torus: Torus, index: int) -> int:
    node = torus.problem.graph.nodes[index]
    assert isinstance(node, MaxPool)
    rows = [np.asarray(w, dtype=np.int64) for w in node.windows]
    return int(np.prod([int((r[:, 1] - r[:, 0]).max()) for r in rows]))


def dimension(torus: Torus) -> int:
    """The order of the matrices at one frequency."""
    image = torus.problem.graph.nodes[torus.start].shape[1] * math.prod(torus.stride)
    return image + sum(_units(torus))


def fits(torus: Torus, effort: Effort) -> bool:
    """Whether the matrices of the search and of a batch fit into memory, and some twenty of its iterations and two passes into the time."""
    order, points = dimension(torus), len(searched(torus, SEARCHED))
    memory = 16 * (16 * (points + ROUNDS * ADDED) * order**2 + 8 * max(BATCH, order**2))
    seconds = 25 * points * ITERATION * order**3 / FLOPS + 2 * pass_seconds(torus)
    left = effort.deadline - time.monotonic()
    return order <= DIMENSION and memory <= affordable(effort.memory) and seconds <= max(left, 0)


def pass_seconds(torus: Torus) -> float:
    """About what one pass over all frequencies takes: for what multipliers prove there, or for the proof."""
    half = math.prod(torus.counts) / 2 + math.prod(torus.counts[1:])
    return half * PASS * dimension(torus) ** 3 / FLOPS


def bound_part(torus: Torus, effort: Effort) -> Step | None:
    """The step that bounds a part, if its multipliers can be proved."""
    order, points = dimension(torus), searched(torus, SEARCHED)
    one = pass_seconds(torus)
    until = effort.deadline - 2 * one  # what comes after the search: what its multipliers prove, and the proof
    best: tuple[float, Vector] = (math.inf, np.zeros(0))
    values: Vector | None = None
    for _ in range(ROUNDS):
        spectrum = torus.walk(points)
        parts = blocks(spectrum, len(points))
        if values is None:
            ends = np.cumsum([0, *(b.size for b in spectrum.bands)])
            values = start(parts, [slice(int(a), int(b)) for a, b in pairwise(ends)])
            seen = parts.smallest_rho(values)
            best = min(best, (smallest_rho(torus, order, values), values), key=lambda pair: pair[0])
        else:
            seen = best[0]
        if not 0 < seen < math.inf:
            break
        values, _ = improve(parts, seen * 1.05, values, until, lambda _: None)
        seen = parts.smallest_rho(values)
        rho, worst = worst_frequencies(torus, order, values)
        best = min(best, (rho, values), key=lambda pair: pair[0])
        if not WORSE * seen < rho < math.inf or time.monotonic() > until - one:
            break
        values = best[1]
        points = np.unique(np.concatenate([points, worst]), axis=0)
    t = proved_constant(torus, order, best[1], best[0]) if 0 < best[0] < math.inf else None
    if t is None:
        return None
    evidence: dict[str, object] = {
        "kind": "torus", "counts": list(torus.counts), "multipliers": _by_node(torus, best[1]),
    }  # fmt: skip
    return Step(torus.end, "quadratic", t, torus.start, t, evidence)


def worst_frequencies(torus: Torus, order: int, values: Vector) -> tuple[float, NDArray[np.int64]]:
    """The smallest rho that the multipliers prove, and the frequencies that demand the most."""
    demands = []
    step = max(1, BATCH // order**2)
    for first in range(0, len(torus.frequencies), step):
        points = torus.frequencies[first : first + step]
        demands.append(blocks(torus.walk(points), len(points)).demands(values))
    demand = np.concatenate(demands)
    return float(demand.max()), torus.frequencies[np.argsort(-demand)[:ADDED]]


def _by_node(torus: Torus, values: Vector) -> dict[str, Vector]:
    """The multipliers of each node, bands of one node one after the other."""
    found: dict[str, list[Vector]] = {}
    first = 0
    for band in torus.walk(torus.frequencies[:1]).bands:
        found.setdefault(str(band.owner), []).append(values[first : first + band.size])
        first += band.size
    return {node: np.concatenate(parts) for node, parts in found.items()}
