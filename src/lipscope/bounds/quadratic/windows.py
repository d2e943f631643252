"""Which parts of a network one inequality bounds: between nodes that every path passes, as long as memory allows."""

from __future__ import annotations

import os
from dataclasses import dataclass

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
        j = i + 1
        while j < len(passed) and _fits(problem, passed[i], passed[j], limit, allowed):
            j += 1
        last = j - 1
        if last > i and any(open_units(problem, k) for k in between(problem, passed[i], passed[last])):
            found.append(Window(passed[i], passed[last]))
        i = max(last, i + 1)
    return found


def _fits(problem: Problem, start: int, end: int, limit: int, memory: int) -> bool:
    return (
        refusal(problem, start, end) is None
        and dimension(problem, start, end) <= limit
        and entries(problem, start, end) * 8 <= memory
    )
