"""A piecewise linear network in one normal form, with exact coefficients.

Block 0 is the input (its free coordinates), block k the units of the k-th nonlinear node: `u = phi(v)` with v an affine
function of earlier blocks, phi from `pieces`. A pair that is sorted is a unit too: `min, max = (a + b)/2 -+ |a - b|/2`.
The matrix of an affine node comes from its values at unit vectors: one product with 1 and sums with 0, which are exact.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from flint import fmpq, fmpq_mat

from lipscope.bounds.branch.exact import Matrix, Row, rational_matrix, rationals
from lipscope.bounds.branch.pieces import ABSOLUTE, SPLIT, Pieces, pieces_of
from lipscope.bounds.branch.region import Domain, domain_of
from lipscope.bounds.problem import Problem
from lipscope.network.nodes import AveragePool, DivConstant, Elementwise, Mean, MulConstant, Node, Sort, Sum
from lipscope.rules.questions import evaluate, linear_part

EXACT = frozenset(
    "Dense Conv ConvTranspose AddConstant MulConstant DivConstant Add Concat Sum Mean AveragePool Reshape Transpose Slice Pad Gather Expand".split()
)
"""Affine kinds whose coefficients are rational numbers that we know."""

MOST_UNITS = 200
MOST_INPUTS = 2000
MOST_ENTRIES = 2_000_000
"""Of one node's matrix."""


@dataclass(frozen=True, eq=False)
class Affine:
    """A vector as an affine function of blocks: for each block that it reads a matrix, and a constant column."""

    size: int
    parts: dict[int, fmpq_mat]
    constant: fmpq_mat

    def mapped(self, matrix: fmpq_mat) -> Affine:
        """The image under a matrix."""
        return Affine(matrix.nrows(), {b: matrix * m for b, m in self.parts.items()}, matrix * self.constant)

    def plus(self, other: Affine) -> Affine:
        """The sum."""
        parts = dict(self.parts)
        for block, matrix in other.parts.items():
            parts[block] = parts[block] + matrix if block in parts else matrix
        return Affine(self.size, parts, self.constant + other.constant)


@dataclass(frozen=True, eq=False)
class Layer:
    """The units of one nonlinear node: what they read, and their pieces. Units are numbered from `first`, over all layers."""

    node: int
    first: int
    reads: Affine
    pieces: tuple[Pieces, ...]

    @property
    def units(self) -> range:
        """The units' numbers."""
        return range(self.first, self.first + len(self.pieces))


@dataclass(frozen=True)
class Cell:
    """For every unit the first and the last of its pieces that are still possible."""

    low: tuple[int, ...]
    high: tuple[int, ...]

    def below(self, unit: int, threshold: int) -> Cell:
        """The part where the unit's argument is below its threshold of that number."""
        return replace(self, high=(*self.high[:unit], threshold, *self.high[unit + 1 :]))

    def above(self, unit: int, threshold: int) -> Cell:
        """The part where it is above."""
        return replace(self, low=(*self.low[:unit], threshold + 1, *self.low[unit + 1 :]))


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A network in normal form on a domain.

    Attributes:
        domain: where x lies; block 0 holds its free coordinates.
        layers: block k holds the units of layer k - 1.
        output: the value of the network.
        root: the pieces that the intervals of the problem leave.
    """

    domain: Domain
    layers: tuple[Layer, ...]
    output: Affine
    root: Cell

    @property
    def inputs(self) -> int:
        """The length of block 0."""
        return len(self.domain.free)

    @cached_property
    def pieces_of_unit(self) -> list[Pieces]:
        """The pieces of all units."""
        return [p for layer in self.layers for p in layer.pieces]

    @cached_property
    def _alike(self) -> list[list[int]]:
        """For every piece of every unit the last one until which all are the same affine function."""
        found = []
        for pieces in self.pieces_of_unit:
            functions = list(zip(pieces.slopes, pieces.shifts, strict=True))
            last = list(range(len(functions)))
            for p in reversed(last[:-1]):
                last[p] = last[p + 1] if functions[p] == functions[p + 1] else p
            found.append(last)
        return found

    def undecided(self, cell: Cell) -> list[int]:
        """The units that are not one affine function in the cell, in order."""
        ends = zip(cell.low, cell.high, self._alike, strict=True)
        return [unit for unit, (low, high, alike) in enumerate(ends) if high > alike[low]]

    def __reduce__(self) -> tuple[object, ...]:
        """Matrices of rationals do not pickle by themselves."""
        layers = [(layer.node, layer.first, _plain(layer.reads), layer.pieces) for layer in self.layers]
        return _rebuild, (self.domain, layers, _plain(self.output), self.root)


PlainAffine = tuple[int, dict[int, list[Row]], list[Row]]


def _plain(affine: Affine) -> PlainAffine:
    return affine.size, {b: m.tolist() for b, m in affine.parts.items()}, affine.constant.tolist()


def _affine(plain: PlainAffine) -> Affine:
    size, parts, constant = plain
    return Affine(size, {b: fmpq_mat(rows) for b, rows in parts.items()}, fmpq_mat(constant))


def _rebuild(
    domain: Domain, layers: Sequence[tuple[int, int, PlainAffine, tuple[Pieces, ...]]], output: PlainAffine, root: Cell
) -> Skeleton:
    made = tuple(Layer(node, first, _affine(reads), pieces) for node, first, reads, pieces in layers)
    return Skeleton(domain, made, _affine(output), root)


def refusal(problem: Problem) -> str | None:
    """Why the network is not one that can be split, in words; None if it is."""
    graph, units = problem.graph, 0
    if problem.claim.directions is not None:
        return "it bounds the network in all directions, not in a band of them"
    if graph.input_size > MOST_INPUTS:
        return f"it splits networks of at most {MOST_INPUTS} inputs, this one has {graph.input_size}"
    for index in sorted(problem.reaching):
        node = graph.nodes[index]
        if index == 0 or node.kind == "Constant":
            continue
        if isinstance(node, Elementwise) and node.function in SPLIT:
            units += node.size
            if not all(math.isfinite(v) for v in _numbers(node)):
                return f"{node.function} at {node.name!r} has parameters that are not finite"
        elif isinstance(node, Sort) and node.shape[node.axis] == 2:
            units += node.size // 2
        elif isinstance(node, Elementwise):
            return (
                f"it splits piecewise linear functions ({', '.join(SPLIT)}), {node.function} at {node.name!r} is none"
            )
        elif isinstance(node, Sort):
            return f"it splits sorted pairs, {node.name!r} sorts {node.shape[node.axis]} entries"
        elif node.kind not in EXACT:
            return f"it needs rational coefficients, and {node.kind} at {node.name!r} does not offer them" + _advice(
                node
            )
        elif node.size * sum(graph.nodes[i].size for i in node.inputs) > MOST_ENTRIES:
            return f"the matrix of {node.name!r} is too large"
    if units > MOST_UNITS:
        return f"it splits networks of at most {MOST_UNITS} units, this one has {units}"
    return None if units else "there is nothing to split: the network is affine"


def _numbers(node: Elementwise) -> list[float]:
    """The parameters that have to be finite; the ends of a clip may be infinite, unless nothing is between them."""
    argument = node.argument
    if node.function == "clip":
        return [argument["high"]] if argument["low"] >= argument["high"] else []
    return list(argument.values())


def _advice(node: Node) -> str:
    return "; fold it into the layer before it" if node.kind == "BatchNorm" else ""


def skeleton(problem: Problem) -> Skeleton:
    """The normal form of a network that `refusal` has nothing against."""
    graph = problem.graph
    domain = domain_of(problem.claim.region, graph.input_size, problem.norm)
    forms: dict[int, Affine] = {0: _input(domain)}
    layers: list[Layer] = []
    low: list[int] = []
    high: list[int] = []
    for index in sorted(problem.reaching - {0}):
        node = graph.nodes[index]
        if isinstance(node, Elementwise):
            layer = Layer(index, len(low), forms[node.inputs[0]], tuple(pieces_of(node)))
            reached = _reached(problem, node, layer.pieces)
            forms[index] = _selected(len(layers) + 1, node.size)
        elif isinstance(node, Sort):
            layer, forms[index] = _sorted(node, index, len(low), len(layers) + 1, forms[node.inputs[0]])
            reached = [(0, 1)] * len(layer.pieces)
        else:
            forms[index] = _image(node, [forms[i] for i in node.inputs], [graph.nodes[i].shape for i in node.inputs])
            continue
        layers.append(layer)
        low += [r[0] for r in reached]
        high += [r[1] for r in reached]
    return Skeleton(domain, tuple(layers), forms[graph.output], Cell(tuple(low), tuple(high)))


def _input(domain: Domain) -> Affine:
    matrix = fmpq_mat(domain.size, len(domain.free))
    for column, i in enumerate(domain.free):
        matrix[i, column] = fmpq(1)
    constant = fmpq_mat(domain.size, 1, [domain.fixed.get(i, fmpq(0)) for i in range(domain.size)])
    return Affine(domain.size, {0: matrix}, constant)


def _selected(block: int, size: int) -> Affine:
    eye = fmpq_mat(size, size)
    for i in range(size):
        eye[i, i] = fmpq(1)
    return Affine(size, {block: eye}, fmpq_mat(size, 1))


def _reached(problem: Problem, node: Elementwise, pieces: Sequence[Pieces]) -> list[tuple[int, int]]:
    box = problem.operand(node)
    if box is None:
        return [(0, len(p.thresholds)) for p in pieces]
    ends = zip(pieces, box.lower.ravel().tolist(), box.upper.ravel().tolist(), strict=True)
    return [p.reached(lower, upper) for p, lower, upper in ends]


def _sorted(node: Sort, index: int, first: int, block: int, operand: Affine) -> tuple[Layer, Affine]:
    """The units |a - b| of the pairs (a, b), and the sorted pairs in terms of them."""
    where = np.moveaxis(np.arange(node.size).reshape(node.shape), node.axis, -1).reshape(-1, 2).tolist()
    difference, mean = fmpq_mat(len(where), node.size), fmpq_mat(node.size, node.size)
    spread = fmpq_mat(node.size, len(where))
    half = fmpq(1, 2)
    for unit, pair in enumerate(where):
        difference[unit, pair[0]], difference[unit, pair[1]] = fmpq(1), fmpq(-1)
        for i, j in itertools.product(pair, pair):
            mean[i, j] = half
        for i, sign in zip(pair, (1, -1) if node.descending else (-1, 1), strict=True):
            spread[i, unit] = sign * half
    value = operand.mapped(mean).plus(Affine(node.size, {block: spread}, fmpq_mat(node.size, 1)))
    return Layer(index, first, operand.mapped(difference), (ABSOLUTE,) * len(where)), value


def _image(node: Node, operands: Sequence[Affine], shapes: Sequence[tuple[int, ...]]) -> Affine:
    """The value of an affine node; constants come from its value at 0, coefficients from unit vectors."""
    if node.kind == "Constant":
        return Affine(node.size, {}, _column(node))
    zeros = [torch.zeros((1, *shape), dtype=torch.float64) for shape in shapes]
    with torch.no_grad():
        offset = evaluate(node, *zeros).reshape(-1).tolist()
    total = Affine(node.size, {}, fmpq_mat(node.size, 1, rationals(offset)))
    if node.kind == "Reshape":
        return operands[0]
    for position, operand in enumerate(operands):
        total = total.plus(operand.mapped(_coefficients(node, position, shapes)))
    return total


def _column(node: Node) -> fmpq_mat:
    values = np.asarray(node.parameters()["value"], dtype=np.float64).ravel().tolist()
    return fmpq_mat(node.size, 1, rationals(values))


def _coefficients(node: Node, position: int, shapes: Sequence[tuple[int, ...]]) -> fmpq_mat:
    """The exact matrix of an affine node by one of its operands."""
    size = math.prod(shapes[position])
    linear, divisor = linear_part(node), None
    if isinstance(linear, Mean):
        divisor = [fmpq(math.prod(shapes[0][a] for a in linear.axes))] * node.size
        linear = Sum(inputs=linear.inputs, shape=linear.shape, name=linear.name, axes=linear.axes)
    elif isinstance(linear, AveragePool):
        counts = functools.reduce(np.multiply.outer, (rows[:, 2].astype(np.float64) for rows in linear.windows))
        divisor = rationals(np.broadcast_to(counts, node.shape).ravel().tolist())
        linear = replace(linear, windows=tuple(rows * [1, 1, 0] + [0, 0, 1] for rows in linear.windows))
    elif isinstance(linear, DivConstant):
        value = np.broadcast_to(np.asarray(linear.value, dtype=np.float64), node.shape)
        divisor = rationals(value.ravel().tolist())
        linear = MulConstant(inputs=linear.inputs, shape=linear.shape, name=linear.name, value=np.ones(node.shape))
    units = [torch.zeros((size, *shape), dtype=torch.float64) for shape in shapes]
    units[position] = torch.eye(size, dtype=torch.float64).reshape(size, *shapes[position])
    with torch.no_grad():
        columns: Matrix = evaluate(linear, *units).reshape(size, -1).numpy().T
    exact = rational_matrix(columns)
    if divisor is not None:
        exact = fmpq_mat([[v / d for v in row] for row, d in zip(exact.tolist(), divisor, strict=True)])
    return exact
