"""`absolute`: the bound of a composition by the absolute values of its factors, entry by entry.

In linf every node v gets numbers s with `|v_i(x) - v_i(y)| <= s_i |x - y|` for all x, y of the region: s = 1 at the input, `|L| s` after an
affine node, `max(|alpha|, |beta|) s` after a function with slopes [alpha, beta], the largest entry of a window after a maximum.
The bound is the largest s of the output. In l1 numbers t go backward, with `|f(x) - f(y)| <= sum over nodes of t . |v(x) - v(y)|`:
t = 1 at the output, `|L|^T t` before an affine node, and so on; the bound is the largest t of the input. For other
nodes the gain of the product bound stands in. Never above the product of the layers' norms where every layer is one linear map.

In l2, for affine nodes and functions: with P the composition of all `|L|` and largest slopes, the bound is the norm of P, which is at most
`sqrt(max_i (P^T P x)_i / x_i)` for every x > 0 (Collatz and Wielandt); x comes from power iteration.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lipscope.bounds.local.pull import pull
from lipscope.bounds.method import Candidate, Effort, Method, Proof, Step
from lipscope.bounds.problem import NoBound, Problem
from lipscope.bounds.product import with_room
from lipscope.claims.norms import Norm
from lipscope.claims.rounding import gamma, sqrt_up, up
from lipscope.network.nodes import Elementwise, LogSumExp, Maximum, MaxPool, Node, ReduceMax, Sort
from lipscope.rules.affine import UNDERFLOW
from lipscope.rules.questions import Interval, NoRule, absolute, evaluate, gain, join, linear_part, roundings

STEPS = 40
"""Steps of the power iteration."""


LEAST = 1e-130
"""Added to a bound in l2."""


class Absolute(Method):
    """Products of entrywise absolute values. Exact where all weights have one sign, loose where signs would cancel."""

    name = "absolute"

    def accepts(self, problem: Problem) -> str | None:
        """Every network in l1 and linf; in l2 those made of affine nodes and functions of single entries."""
        if problem.claim.directions is not None:
            return "it knows no directions"
        if problem.norm == "l2":
            for index in sorted(problem.reaching - {0}):
                node = problem.graph.nodes[index]
                if not (node.affine or isinstance(node, Elementwise) or problem.constant[index]):
                    return f"in l2 it takes affine layers and functions of single entries, not {node.kind} at {node.name!r}"
        return None

    def search(self, problem: Problem, effort: Effort) -> Candidate:
        """The bound; a few passes through the network."""
        began = time.monotonic()
        effort.progress("absolute", 0.0)
        walk = _Walk(problem)
        evidence: dict[str, object] = {"kind": "absolute"}
        with torch.no_grad():
            if problem.norm == "linf":
                value = float(walk.forward(torch.ones(problem.graph.nodes[0].shape, dtype=torch.float64)).max())
            elif problem.norm == "l1":
                value = float(walk.backward(walk.ones()).max())
            else:
                value, vector = walk.perron()
                evidence["vector"] = vector.numpy().reshape(-1)
        # What underflow may add to a square is far below LEAST^2.
        value = up(value * (1 + 8 * gamma(walk.roundings()))) + (LEAST if problem.norm == "l2" else UNDERFLOW)
        output = problem.graph.output
        if not np.isfinite(value):
            raise NoBound(
                output, problem.graph.nodes[output].name, "the product of absolute values exceeds the range of float64"
            )
        step = Step(output, "absolute", value, 0, value, evidence)
        return Candidate(self.name, with_room(value, 1), time.monotonic() - began, Proof(self.name, (step,)))


class _Walk:
    """Passes through the network with numbers that only grow by rounding less than `roundings` allows for."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.nodes = problem.graph.nodes
        self.path = [i for i in sorted(problem.reaching - {0}) if not problem.constant[i]]
        self.slopes: dict[int, Tensor] = {}
        for index in self.path:
            if isinstance(self.nodes[index], Elementwise):
                low, high = problem.slopes[index]
                self.slopes[index] = torch.maximum(low.abs(), high.abs())
                if not bool(self.slopes[index].isfinite().all()):
                    raise NoBound(
                        index, self.nodes[index].name, "it has unbounded slope there; give a box that keeps it away"
                    )

    def ones(self) -> Tensor:
        """Weights of the output's entries."""
        return torch.ones(self.nodes[self.problem.graph.output].shape, dtype=torch.float64)

    def roundings(self) -> int:
        """Of a pass there and back, ours and the checker's, generously."""
        count = 0
        for index in self.path:
            node = self.nodes[index]
            shapes = [self.nodes[i].size for i in node.inputs]
            if node.affine:
                own = roundings(linear_part(node))
                count += own.forward + own.adjoint + sum(shapes) // node.size + node.size // min(shapes)
            count += 16 + len(self.problem.graph.readers[index])
        return 2 * count + 32

    def forward(self, start: Tensor) -> Tensor:
        """The numbers s of the output."""
        found = {0: start}
        for index in self.path:
            node = self.nodes[index]
            before = [found.get(i, torch.zeros(self.nodes[i].shape, dtype=torch.float64)) for i in node.inputs]
            found[index] = self._after(index, node, before)
        output = self.problem.graph.output
        return found.get(output, torch.zeros(self.nodes[output].shape, dtype=torch.float64))

    def _after(self, index: int, node: Node, before: list[Tensor]) -> Tensor:
        if node.affine:
            return evaluate(absolute(linear_part(node)), *(s.unsqueeze(0) for s in before)).squeeze(0)
        if isinstance(node, Elementwise):
            return self.slopes[index] * before[0]
        if isinstance(node, (MaxPool, ReduceMax, Maximum)):
            return evaluate(node, *(s.unsqueeze(0) for s in before)).squeeze(0)
        if isinstance(node, LogSumExp):
            return before[0].amax(node.axes).reshape(node.shape)
        if isinstance(node, Sort):
            return before[0].amax(node.axis, keepdim=True).expand(node.shape)
        most = [float(s.max()) for s in before]
        if len(before) == 1:
            factor = self._gain(index, node, "linf") * most[0]
        else:
            factor = self._join(index, node, "linf", most)
        return torch.full(node.shape, factor, dtype=torch.float64)

    def backward(self, end: Tensor) -> Tensor:
        """The numbers t of the input."""
        found: dict[int, Tensor] = {self.problem.graph.output: end}
        for index in reversed(self.path):
            if index not in found:
                continue
            node = self.nodes[index]
            after = found.pop(index)
            for i, part in zip(node.inputs, self._before(index, node, after), strict=True):
                if not self.problem.constant[i]:
                    found[i] = found[i] + part if i in found else part
        return found.get(0, torch.zeros(self.nodes[0].shape, dtype=torch.float64))

    def _before(self, index: int, node: Node, after: Tensor) -> Sequence[Tensor]:
        shapes = [self.nodes[i].shape for i in node.inputs]
        if node.affine:
            return [p.squeeze(0) for p in pull(absolute(linear_part(node)), after.unsqueeze(0), shapes)]
        if isinstance(node, Elementwise):
            return [self.slopes[index] * after]
        if isinstance(node, Maximum):
            return [after] * len(node.inputs)
        if isinstance(node, (ReduceMax, LogSumExp)):
            kept = [1 if a in node.axes else n for a, n in enumerate(shapes[0])]
            return [after.reshape(kept).expand(shapes[0])]
        if isinstance(node, Sort):
            return [after.amax(node.axis, keepdim=True).expand(node.shape)]
        most = float(after.max())
        if len(shapes) == 1:
            factors = [self._gain(index, node, "l1")]
        else:
            units = np.eye(len(shapes))
            factors = [self._join(index, node, "l1", unit.tolist()) for unit in units]
        return [torch.full(s, most * f, dtype=torch.float64) for s, f in zip(shapes, factors, strict=True)]

    def _gain(self, index: int, node: Node, norm: Norm) -> float:
        known = self.problem.operand(node)
        ends = torch.full(self.nodes[node.inputs[0]].shape, torch.inf, dtype=torch.float64)
        try:
            return gain(node, norm, Interval(-ends, ends) if known is None else known)
        except NoRule as missing:
            raise NoBound(index, node.name, missing.reason) from None

    def _join(self, index: int, node: Node, norm: Norm, constants: Sequence[float]) -> float:
        regions = self.problem.intervals
        boxes = None if regions is None else tuple(regions[i] for i in node.inputs)
        try:
            return join(node, norm, tuple(constants), boxes)
        except NoRule as missing:
            raise NoBound(index, node.name, missing.reason) from None

    def perron(self) -> tuple[float, Tensor]:
        """The bound in l2, and the positive vector that proves it."""
        x = torch.ones(self.nodes[0].shape, dtype=torch.float64)
        best, vector = torch.inf, x
        for _ in range(STEPS):
            image = self.backward(self.forward(x))
            found = float((image / x).max())
            if found < best:
                best, vector = found, x
            largest = float(image.max())
            if not 0 < largest < torch.inf:
                break
            x = image / largest + 1e-9
        return sqrt_up(best), vector
