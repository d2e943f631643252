"""A proof that a network jumps: two near points whose outputs differ by more than the network can move without a jump.

Freeze what every operation with jumps decides: those with countably many values become constants, `where` picks entry by
entry from one operand or the other, `threshold`, `hardshrink` and `modulo` are the identity plus a constant, or a constant.
Let K be a constant, valid everywhere, that holds for every way to freeze. Along the segment between two points the values of all
nodes stay bounded, so finitely many ways M occur: the segment is the union of sets S_1 .. S_M, on each of which f is K-Lipschitz.

If f were continuous on the segment, it would be K-Lipschitz on the closures of the S_i. Begin at one end, t = 0, in some
closure; go to its last point t'; by continuity f moves by at most K (t' - t) times the length. Points just behind t' lie in other
sets, one of which comes arbitrarily near t', so t' is in its closure: go on from there. No set is used twice, so after at most M
steps the other end is reached, and |f(x) - f(y)| <= K |x - y|. Where the difference is proved to be larger, f is not continuous on
the segment, and a network that is not continuous on a convex region has no finite constant there.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lipscope.bounds.lengths import vector_norm
from lipscope.bounds.lower import quotient
from lipscope.bounds.method import Effort, Proof
from lipscope.bounds.problem import NoBound, Problem, pose
from lipscope.bounds.product import Product
from lipscope.claims.claim import Claim
from lipscope.claims.regions import Vector
from lipscope.network.graph import Graph
from lipscope.network.nodes import Constant, Discontinuous, Elementwise, Maximum, Node
from lipscope.rules.graph_value import evaluate_graph

SELECTION = "where"

PIECES = ("threshold", "hardshrink", "modulo")
"""Operations that are the identity plus a constant, or a constant, between their jumps."""

HALVINGS = 60
"""How often a segment is halved: the half with the larger quotient holds a jump if the whole one does."""


def frozen(graph: Graph) -> Graph:
    """A graph without jumps every constant of which, valid everywhere, holds for each way to freeze the jumps of `graph`.

    A selection moves an entry at most as far as the larger of the moves of its operands', which is all that is used of
    a maximum; a piece has slopes 0 and 1, which lie in the slope range of a relu.
    """
    return replace(graph, nodes=tuple(map(_without_jump, graph.nodes)))


def _without_jump(node: Node) -> Node:
    if not isinstance(node, Discontinuous):
        return node
    if node.operator == SELECTION:
        return Maximum(inputs=node.inputs[1:], shape=node.shape, name=node.name)
    if node.operator in PIECES:
        return Elementwise(inputs=node.inputs, shape=node.shape, name=node.name, function="relu")
    return Constant(inputs=(), shape=node.shape, name=node.name, value=np.zeros(node.shape))


def find_jump(problem: Problem, points: Tensor) -> tuple[Vector, Vector, Problem, Proof] | None:
    """Two points of the region between which the network is proved to jump, and the proof of K; None if none is found.

    Args:
        problem: whose region holds `points` and, being convex, the segments between them.
        points: (B, n).
    """
    calm = pose(frozen(problem.stored), Claim(problem.norm, output=problem.claim.output))
    try:
        candidate = Product().search(calm, Effort())
    except NoBound:
        return None
    if candidate.value is None or candidate.proof is None or candidate.failure > 0:
        return None
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(len(points)))
    for x, y in _narrowed(problem, points, points[order], candidate.value):
        if quotient(problem, x, y) > 1.5 * candidate.value:
            return x, y, calm, candidate.proof
    return None


def _narrowed(problem: Problem, x: Tensor, y: Tensor, needed: float) -> list[tuple[Vector, Vector]]:
    """The pairs whose computed quotient rises above `needed` when their segments are halved, as soon as it does."""
    found = []
    value = {name: evaluate_graph(problem.graph, p) for name, p in (("x", x), ("y", y))}
    for _ in range(HALVINGS):
        run = vector_norm(x - y, problem.norm)
        rise = vector_norm(value["x"] - value["y"], problem.norm)
        found += [(x[i].numpy(), y[i].numpy()) for i in torch.nonzero(rise > 2 * needed * run)[:4, 0].tolist()]
        if len(found) >= 4 or not bool((run > 0).any()):
            break
        middle = x / 2 + y / 2
        centre = evaluate_graph(problem.graph, middle)
        first = vector_norm(value["x"] - centre, problem.norm) / vector_norm(x - middle, problem.norm)
        second = vector_norm(value["y"] - centre, problem.norm) / vector_norm(y - middle, problem.norm)
        left = (torch.nan_to_num(first) >= torch.nan_to_num(second))[:, None]
        x, y = torch.where(left, x, middle), torch.where(left, middle, y)
        value = {"x": torch.where(left, value["x"], centre), "y": torch.where(left, centre, value["y"])}
    return found
