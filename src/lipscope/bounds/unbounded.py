"""Proofs that a network has no finite constant. Without one of them the answer is *no-bound*, never *unbounded*."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipscope.bounds.jumps import find_jump
from lipscope.bounds.lower import SEED, inside
from lipscope.bounds.method import Proof
from lipscope.bounds.problem import Problem, propagate
from lipscope.claims.regions import Vector
from lipscope.claims.rounding import down, up
from lipscope.network.nodes import Discontinuous, Elementwise, MatMul, Multiply
from lipscope.rules.graph_value import evaluate_graph
from lipscope.rules.questions import Interval

UNCOUNTABLE = ("where", "threshold", "hardshrink", "modulo")
"""Operations with jumps whose values are not countable."""


@dataclass(frozen=True)
class Unbounded:
    """A proof that no finite constant exists.

    Attributes:
        node: the operation that causes it.
        reason: why, in a sentence.
        method: countable, polynomial or jump, see docs/certificate.md.
        points: the two vectors of the proof.
        calm: for a jump the network without its jumps, and the proof of its constant.
    """

    node: int
    reason: str
    method: str
    points: tuple[Vector, Vector]
    calm: tuple[Problem, Proof] | None = None


def prove_unbounded(problem: Problem) -> Unbounded | None:
    """A proof that the network is not Lipschitz on the region, if one of ours applies."""
    return _countable(problem) or _polynomial(problem) or _jump(problem)


def _samples(problem: Problem, count: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    size = problem.graph.input_size
    box = problem.claim.region.box()
    noise = torch.rand((count, size), generator=generator, dtype=torch.float64)
    if box is not None:
        low, high = torch.from_numpy(box.lower), torch.from_numpy(box.upper)
        return torch.cat([problem.data.clamp(low, high), low + (high - low) * noise])
    scale = 10.0 ** (4 * torch.rand((count, 1), generator=generator, dtype=torch.float64) - 2)
    return torch.cat([problem.data, scale * (2 * noise - 1)])


def _image(problem: Problem, x: Tensor) -> Interval:
    point = x.reshape(problem.graph.nodes[0].shape)
    return propagate(problem.graph, Interval(point, point), [problem.graph.output])[problem.graph.output]


def _apart(a: Interval, b: Interval) -> bool:
    return bool(((a.lower > b.upper) | (b.lower > a.upper)).any())


def _countable(problem: Problem) -> Unbounded | None:
    """The network takes countably many values, and two of them: it jumps somewhere between.

    Continuous functions map connected sets to connected sets, and a countable connected set of vectors is one point.
    """
    if problem.claim.region.kind == "ball":
        return None
    continuous = [True]  # whether the node can take uncountably many values
    for index, node in enumerate(problem.graph.nodes[1:], start=1):
        jumps = isinstance(node, Discontinuous) and node.operator not in UNCOUNTABLE
        continuous.append(not jumps and not problem.constant[index] and any(continuous[i] for i in node.inputs))
    if continuous[problem.graph.output]:
        return None
    with torch.no_grad():
        points = _samples(problem)
        values = evaluate_graph(problem.graph, points)
        for i in range(1, len(points)):
            if bool((values[i] != values[0]).any()) and _apart(_image(problem, points[0]), _image(problem, points[i])):
                at, operator = _last_jump(problem)
                reason = f"{operator} jumps: the network takes countably many values, and more than one"
                return Unbounded(at, reason, "countable", (points[0].numpy(), points[i].numpy()))
    return None


def _jump(problem: Problem) -> Unbounded | None:
    """The network moves further between two near points than it can without a jump between them."""
    jumps = [i for i in problem.reaching if isinstance(problem.graph.nodes[i], Discontinuous)]
    if not jumps:
        return None
    points = inside(problem.claim.region, problem.norm, _samples(problem))
    with torch.no_grad():
        found = find_jump(problem, points)
    if found is None:
        return None
    x, y, calm, proof = found
    at, operator = _last_jump(problem)
    reason = f"{operator} jumps, and the output jumps with it between two near points"
    return Unbounded(at, reason, "jump", (x, y), (calm, proof))


def _last_jump(problem: Problem) -> tuple[int, str]:
    """The last operation with jumps that reaches the output."""
    jumps = [
        (index, node.operator)
        for index, node in enumerate(problem.graph.nodes)
        if isinstance(node, Discontinuous) and index in problem.reaching
    ]
    return jumps[-1]


def _polynomial(problem: Problem) -> Unbounded | None:
    """The network is a polynomial of degree two or more along some line, so its slope there has no bound."""
    if problem.claim.region.kind != "everywhere":
        return None
    products = []
    for index, node in enumerate(problem.graph.nodes[1:], start=1):
        if index not in problem.reaching:
            continue
        power = isinstance(node, Elementwise) and node.function in ("square", "power")
        if isinstance(node, (Multiply, MatMul)) or power:
            products.append(index)
        elif not node.affine and not problem.constant[index]:
            return None
    if not products:
        return None
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for _ in range(16):
            x, d = torch.randint(-8, 9, (2, problem.graph.input_size), generator=generator, dtype=torch.float64)
            ends = [_image(problem, x + k * d) for k in range(3)]
            low = down(down(ends[0].lower + ends[2].lower) - 2 * ends[1].upper)
            high = up(up(ends[0].upper + ends[2].upper) - 2 * ends[1].lower)
            if bool(((low > 0) | (high < 0)).any()):
                reason = "a product of two values that grow with the input: the network is a polynomial of degree >= 2"
                return Unbounded(products[-1], reason, "polynomial", (x.numpy(), d.numpy()))
    return None
