"""From the graph to the stacked inequality: what every unit reads, as matrices.

Walking from a node `start` to a node `end`, each value is kept as a linear function of blocks: block 0 the value of `start`, a new
block for the units of every nonlinear function. On the region units whose slopes are both 0 are constant and disappear; units whose
slope is fixed are a multiplication. Sorting along an axis is nonexpansive on each group and keeps its sum, so with Z an orthonormal
basis of the complement of (1, .., 1)/sqrt(g), `sort(v) = mean part of v + Z s`, where s is a function of `Z^T v` with slopes in [-1, 1] taken as a
whole: its entries share one multiplier (for pairs: one entry, `+-|.|`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lipscope.bounds.problem import Problem
from lipscope.bounds.quadratic.stacked import Layer, Matrix, Reads, Stacked
from lipscope.bounds.segments import between
from lipscope.network.nodes import Elementwise, Node, Sort
from lipscope.rules.questions import absolute, evaluate, linear_part, roundings

SMALLEST, LARGEST = 1e-80, 1e40
"""Between which the nonzero entries of composed layers have to lie."""

CHUNK_BYTES = 200_000_000
"""Columns are pushed through an operation in batches of at most this size."""


class OutOfRange(Exception):
    """Composed layers leave the range in which rounding is accounted for."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of the network between two nodes as the inequality sees it.

    Attributes:
        start: the node that the part begins at.
        end: the node that it ends at.
        stacked: the inequality.
        absolute: the same with all matrices composed of absolute values, for rounding bounds.
        roundings: a computed matrix differs from the exact one by at most `gamma(roundings)` times the absolute one.
        owners: for each layer of `stacked` the node whose units it holds, and how many.
    """

    start: int
    end: int
    stacked: Stacked
    absolute: Stacked
    roundings: int
    owners: tuple[tuple[int, int], ...]


def refusal(problem: Problem, start: int, end: int) -> str | None:
    """Why the part from `start` to `end` is not made of affine nodes, entrywise functions and sorts; None if it is."""
    inside = set(between(problem, start, end)) | {start}
    for index in sorted(inside - {start}):
        node = problem.graph.nodes[index]
        if any(i not in inside and not problem.constant[i] for i in node.inputs):
            return f"{node.name!r} reads around the start of the part"
        if not (node.affine or isinstance(node, (Elementwise, Sort))):
            return f"{node.kind} at {node.name!r} is not a function with bounded slopes"
        if isinstance(node, Elementwise) and not all(bool(s.isfinite().all()) for s in problem.slopes[index]):
            return f"{node.function} at {node.name!r} has unbounded slope"
    return None


def open_units(problem: Problem, index: int) -> int:
    """How many units of a node have a slope that is not fixed."""
    node = problem.graph.nodes[index]
    if isinstance(node, Sort):
        length = node.shape[node.axis]
        return node.size // length * (length - 1)
    if not isinstance(node, Elementwise):
        return 0
    lower, upper = problem.slopes[index]
    return int((lower != upper).sum())


def dimension(problem: Problem, start: int, end: int) -> int:
    """The size of the inequality's matrix for the part."""
    return problem.graph.nodes[start].size + sum(open_units(problem, i) for i in between(problem, start, end))


def entries(problem: Problem, start: int, end: int) -> int:
    """An upper estimate of how many numbers `piece` keeps at a time."""
    columns, most = problem.graph.nodes[start].size, 0
    for index in between(problem, start, end):
        columns += open_units(problem, index)
        most = max(most, problem.graph.nodes[index].size * columns)
    return 4 * most


def piece(problem: Problem, start: int, end: int) -> Piece:
    """The part from `start` to `end`, where `refusal` has nothing against it."""
    plain = _Walk(problem, start, end, exact=True)
    positive = _Walk(problem, start, end, exact=False)
    return Piece(start, end, plain.stacked(), positive.stacked(), plain.roundings, tuple(plain.owners))


class _Walk:
    """One walk from `start` to `end`; `exact` chooses between the matrices and their absolute compositions."""

    def __init__(self, problem: Problem, start: int, end: int, *, exact: bool) -> None:
        self.problem = problem
        self.end = end
        self.size = problem.graph.nodes[start].size
        self.exact = exact
        self.layers: list[Layer] = []
        self.owners: list[tuple[int, int]] = []
        self.forms: dict[int, Reads] = {start: {0: _live(problem, start, self.size)}}
        self.roundings = 0
        path = between(problem, start, end)
        counts = {start: 0}
        for index in path:
            self._visit(index, counts)
            self._forget(index, path)

    def stacked(self) -> Stacked:
        """The inequality of the whole walk."""
        return Stacked(self.size, tuple(self.layers), self.forms[self.end])

    def _visit(self, index: int, counts: dict[int, int]) -> None:
        node = self.problem.graph.nodes[index]
        before = max((counts[i] for i in node.inputs if i in counts), default=0)
        if node.affine:
            self.forms[index] = self._affine(node)
            counts[index] = before + roundings(linear_part(node)).forward
        else:
            self.forms[index] = self._sorted(index, node) if isinstance(node, Sort) else self._function(index)
            # A unit's own value starts afresh; what passes by it linearly keeps its count, plus the multiplication.
            counts[index] = before + (node.shape[node.axis] + 8 if isinstance(node, Sort) else 1)
        self.roundings = max(self.roundings, counts[index])
        if not self.exact:
            self._demand_range(node, self.forms[index])

    def _demand_range(self, node: Node, reads: Reads) -> None:
        """Products that underflow lose more than the rounding bounds allow for; what is near it is left to other methods."""
        for matrix in reads.values():
            entries = matrix[matrix != 0]
            if entries.size and not SMALLEST <= float(entries.min()) <= float(entries.max()) <= LARGEST:
                raise OutOfRange(f"weights up to {node.name!r} multiply to numbers outside [{SMALLEST:g}, {LARGEST:g}]")

    def _forget(self, index: int, path: tuple[int, ...]) -> None:
        readers = self.problem.graph.readers
        for i in self.problem.graph.nodes[index].inputs:
            if i in self.forms and i != self.end and all(r <= index for r in readers[i] if r in path):
                del self.forms[i]

    def _affine(self, node: Node) -> Reads:
        """The node's linear part applied to every column of its operands."""
        linear = linear_part(node) if self.exact else absolute(linear_part(node))
        blocks = sorted({b for i in node.inputs for b in self.forms.get(i, {})})
        widest = max(node.size, *(self.problem.graph.nodes[i].size for i in node.inputs))
        step = max(1, CHUNK_BYTES // (8 * widest))
        result = {}
        for block in blocks:
            columns = next(self.forms[i][block].shape[1] for i in node.inputs if block in self.forms.get(i, {}))
            parts = [self._push(linear, block, slice(a, min(a + step, columns))) for a in range(0, columns, step)]
            result[block] = np.concatenate(parts, axis=1)
        return result

    def _push(self, linear: Node, block: int, columns: slice) -> Matrix:
        operands = []
        for i in linear.inputs:
            shape = self.problem.graph.nodes[i].shape
            if block in self.forms.get(i, {}):
                part = np.ascontiguousarray(self.forms[i][block][:, columns].T)
                operands.append(torch.from_numpy(part).reshape(-1, *shape))
            else:
                operands.append(torch.zeros((columns.stop - columns.start, *shape), dtype=torch.float64))
        with torch.no_grad():
            pushed: Matrix = evaluate(linear, *operands).reshape(columns.stop - columns.start, -1).numpy().T
        return pushed

    def _function(self, index: int) -> Reads:
        operand = self.forms[self.problem.graph.nodes[index].inputs[0]]
        lower, upper = (s.numpy().reshape(-1) for s in self.problem.slopes[index])
        fixed, loose = np.where(lower == upper, lower, 0.0), np.flatnonzero(lower != upper)
        if not self.exact:
            fixed = np.abs(fixed)
        result = {b: w * fixed[:, None] for b, w in operand.items()} if fixed.any() else {}
        if len(loose):
            self.layers.append(Layer({b: w[loose] for b, w in operand.items()}, lower[loose], upper[loose]))
            self.owners.append((index, len(loose)))
            scatter = np.zeros((len(lower), len(loose)))
            scatter[loose, np.arange(len(loose))] = 1
            result[len(self.layers)] = scatter
        return result

    def _sorted(self, index: int, node: Sort) -> Reads:
        size = node.shape[node.axis]
        where = np.moveaxis(np.arange(node.size).reshape(node.shape), node.axis, -1).reshape(-1, size)
        basis, groups = group_basis(size), len(where)
        if not self.exact:
            basis = np.abs(basis)
        result: Reads = {}
        reads: Reads = {}
        for b, w in self.forms[node.inputs[0]].items():
            grouped = w[where]  # (groups, size, columns)
            spread = np.empty_like(w)
            spread[where.reshape(-1)] = np.repeat(grouped.mean(1, keepdims=True), size, 1).reshape(-1, w.shape[1])
            result[b] = spread
            reads[b] = np.einsum("sk,gsc->gkc", basis, grouped).reshape(groups * (size - 1), w.shape[1])
        if size == 1:
            return result
        units = groups * (size - 1)
        shared = np.repeat(np.arange(groups), size - 1)
        self.layers.append(Layer(reads, -np.ones(units), np.ones(units), shared))
        self.owners.append((index, units))
        scatter = np.zeros((node.size, units))
        for k in range(size - 1):
            scatter[where, np.arange(groups)[:, None] * (size - 1) + k] = basis[:, k : k + 1].T
        result[len(self.layers)] = scatter
        return result


def _live(problem: Problem, index: int, size: int) -> Matrix:
    eye = np.eye(size)
    if index in problem.slopes:
        lower, upper = (s.numpy().reshape(-1) for s in problem.slopes[index])
        eye[(lower == 0) & (upper == 0)] = 0
    return eye


def group_basis(size: int) -> Matrix:
    """Z: (size, size - 1), orthonormal columns orthogonal to (1, .., 1) (Helmert's matrix)."""
    z = np.zeros((size, size - 1))
    for j in range(1, size):
        z[:j, j - 1], z[j, j - 1] = 1, -j
        z[:, j - 1] /= np.sqrt(j * (j + 1))
    return z
