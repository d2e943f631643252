"""Which parts of a network one inequality bounds: between nodes that every path passes, as long as memory allows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from lipscope.bounds.method import Step
from lipscope.bounds.problem import Problem
from lipscope.bounds.quadratic.forms import dimension, entries, open_units, refusal
from lipscope.bounds.segments import anchors, between
from lipscope.network.nodes import Elementwise, Node, Sort

MEMORY = 4_000_000_000
"""Bytes for the matrices of one part where the user says nothing and twice as much is free."""


def affordable(memory: int | None) -> int:
    """Bytes for the matrices of one part: what the user says, otherwise `MEMORY` or half of what is free."""
    if memory is not None:
        return memory
    names = ("SC_AVPHYS_PAGES", "SC_PAGE_SIZE")
    if not all(name in getattr(os, "sysconf_names", {}) for name in names):  # not on every system
        return MEMORY
    return min(MEMORY, os.sysconf(names[0]) * os.sysconf(names[1]) // 2)


@dataclass(frozen=True)
class Window:
    """A part of the network between two nodes that every path passes."""

    start: int
    end: int


def gates(problem: Problem, anchor: tuple[int, ...]) -> list[int]:
    """Where parts may begin and end: nodes that every path from the input to the output passes.

    Of these the input and the output, nonlinear nodes and joins, and what a node reads that no part may contain.
    """
    output, live = problem.graph.output, sorted(problem.reaching)
    readers = {i: [r for r in problem.graph.readers[i] if r in problem.reaching] for i in live}
    found, crossing = [], 0  # the last reader of everything so far: where it lies behind a node, paths lead around it
    for index in live:
        if problem.constant[index]:
            continue
        cut = any(not _may_contain(problem.graph.nodes[r]) for r in readers[index])
        if crossing <= index and (index in (0, output) or anchor[index] == index or cut):
            found.append(index)
        crossing = max(crossing, *readers[index], index)
    return found


def _may_contain(node: Node) -> bool:
    return node.affine or isinstance(node, (Elementwise, Sort))


def windows(problem: Problem, limit: int, memory: int | None = None) -> list[Window]:
    """Parts that do not overlap, each as long as it can be, with units in each.

    Args:
        problem: the claim.
        limit: the largest size of an inequality.
        memory: bytes for the matrices of one part.
    """
    passed, allowed = gates(problem, anchors(problem)), affordable(memory)
    found, i = [], 0
    while i < len(passed) - 1:
        last = len(passed) - 1
        if not _fits(
            problem, passed[i], passed[last], limit, allowed
        ):  # a longer part never fits where a shorter one does not
            last = i
            while _fits(problem, passed[i], passed[last + 1], limit, allowed):
                last += 1
        if last > i and any(open_units(problem, k) for k in between(problem, passed[i], passed[last])):
            found.append(Window(passed[i], passed[last]))
        i = max(last, i + 1)
    return found


def cubes(problem: Problem, part: Window) -> float:
    """About what multipliers and proof of a part cost, up to a factor: cubes of the sizes of what they have in hand at a time.

    Behind a function none of whose units is affine nothing reads what comes before it: there the inequality falls into blocks that only
    meet their neighbours. Everywhere else this is the cube of the size.
    """
    passed = [i for i in gates(problem, anchors(problem)) if part.start <= i <= part.end]
    total, size = 0.0, problem.graph.nodes[part.start].size
    for before, gate in pairwise(passed):
        size += sum(open_units(problem, i) for i in between(problem, before, gate))
        if gate == part.end or 0 < problem.graph.nodes[gate].size == open_units(problem, gate):
            total, size = total + float(size) ** 3, problem.graph.nodes[gate].size
    return total


def _fits(problem: Problem, start: int, end: int, limit: int, memory: int) -> bool:
    return (
        refusal(problem, start, end) is None
        and dimension(problem, start, end) <= limit
        and entries(problem, start, end) * 8 <= memory
    )


def cheapest(passed: list[int], product: dict[int, float], found: Mapping[tuple[int, int], Step]) -> list[Window]:
    """The parts that together with products of norms between them give the smallest constant, in order.

    Args:
        passed: where parts begin and end; the first is the input, the last the output.
        product: the product of norms up to each of them, > 0.
        found: the parts' bounds, by start and end.
    """
    best: dict[int, tuple[float, list[Window]]] = {passed[0]: (1.0, [])}
    for before, node in pairwise(passed):
        value, parts = best[before]
        ways = [(value * (product[node] / product[before]), parts)] if product[before] > 0 else [(0.0, parts)]
        for (start, end), step in found.items():
            if end == node and start in best:
                ways.append((best[start][0] * step.constant, [*best[start][1], Window(start, end)]))
        best[node] = min(ways, key=lambda way: way[0])
    return best[passed[-1]][1]
