"""Rule `branch`: the network in rational arithmetic, as units that read earlier units.

Block 0 holds the input's coordinates that vary on the region, block k the units of the k-th nonlinear node; every argument
of a unit, and the output, is an affine function of blocks with rational coefficients. An affine node's matrix is read off its
values at unit vectors, which are exact: each entry is one coefficient times 1, and sums with zeros.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flint import fmpq, fmpq_mat

from lipcheck.boxes import Boxes
from lipcheck.errors import Rejected
from lipcheck.linear import factor
from lipcheck.nodes import Network, Node
from lipcheck.region import Region
from lipcheck.rounding import Floats

KINDS = frozenset(
    "Dense Conv ConvTranspose AddConstant MulConstant DivConstant Add Concat Sum Mean AveragePool Reshape Transpose Slice Pad Gather Expand".split()
)
"""Affine kinds whose coefficients are rational."""

MOST_UNITS = 400
MOST_INPUTS = 4000
MOST_ENTRIES = 4_000_000
"""Of one node's matrix."""

MOST_WORK = 1e10
"""Multiplications of rationals, about, for the whole network."""

MOST_BITS = 100_000
"""Of a coefficient's numerator and denominator: long chains of affine nodes make long numbers."""

Row = list[fmpq]


def exact(values: Floats) -> Row:
    """The numbers that floats stand for."""
    return [fmpq(*v.as_integer_ratio()) for v in np.asarray(values, dtype=np.float64).ravel().tolist()]


@dataclass(frozen=True)
class Pieces:
    """`slopes[p] v + shifts[p]` between thresholds p - 1 and p."""

    thresholds: Row
    slopes: Row
    shifts: Row


@dataclass(frozen=True)
class Form:
    """An affine function of blocks, with values in a space of `size` dimensions."""

    size: int
    parts: Mapping[int, fmpq_mat]
    offset: fmpq_mat

    def after(self, matrix: fmpq_mat) -> Form:
        """A matrix applied to it."""
        return Form(matrix.nrows(), {b: matrix * part for b, part in self.parts.items()}, matrix * self.offset)

    def __add__(self, other: Form) -> Form:
        parts = dict(self.parts)
        for b, part in other.parts.items():
            parts[b] = parts[b] + part if b in parts else part
        return Form(self.size, parts, self.offset + other.offset)


@dataclass(frozen=True)
class Domain:
    """The region, exactly, in the coordinates that vary.

    Attributes:
        kind: `everywhere`, `box`, or the norm of a ball.
        free: the coordinates that vary.
        low, high: ends of a box, or center and (one entry) radius of a ball.
    """

    kind: str
    free: list[int]
    low: Row
    high: Row

    def highest(self, slope: Row, offset: fmpq) -> int:
        """At least the sign of the largest value of `slope x + offset`: what is not above 0 is proved not to be."""
        zero = fmpq(0)
        if self.kind == "everywhere":
            return 1 if any(a != zero for a in slope) else _sign(offset)
        if self.kind == "box":
            for a, low, high in zip(slope, self.low, self.high, strict=True):
                offset = offset + a * (high if a > zero else low)
            return _sign(offset)
        for a, center in zip(slope, self.low, strict=True):
            offset = offset + a * center
        radius = self.high[0]
        if self.kind == "l2":  # offset + radius |slope| <= 0
            square = radius * radius * sum((a * a for a in slope), zero)
            return 1 if offset > zero else _sign(square - offset * offset)
        sizes = [abs(a) for a in slope]
        return _sign(offset + radius * (sum(sizes, zero) if self.kind == "linf" else max(sizes, default=zero)))


def _sign(value: fmpq) -> int:
    return 1 if value > 0 else -1 if value < 0 else 0


@dataclass(frozen=True)
class Units:
    """The units of one node, numbered from `first`: what they read, their pieces, and which of these the boxes leave."""

    first: int
    reads: Form
    pieces: list[Pieces]
    left: list[tuple[int, int]]


class Split:
    """The network of a claim, ready to be split."""

    def __init__(self, network: Network, region: Region, boxes: Boxes | None) -> None:
        self.domain, start = _domain(network.nodes[0].size, region)
        self.layers: list[Units] = []
        self._boxes = boxes
        self._count = 0
        self._spent = 0
        forms: dict[int, Form] = {0: start}
        if network.nodes[0].size > MOST_INPUTS:
            raise Rejected(f"expected at most {MOST_INPUTS} inputs to split on")
        for index in sorted(network.ancestors(network.output) - {0}):
            node = network.nodes[index]
            try:
                forms[index] = self._value(network, node, [forms[i] for i in node.inputs])
            except Rejected as error:
                raise Rejected(f"node {index} ({node.kind} {node.name!r}): {error}") from None
        self.output = forms[network.output]
        self.pieces = [p for layer in self.layers for p in layer.pieces]
        self.left = [pair for layer in self.layers for pair in layer.left]

    def _value(self, network: Network, node: Node, operands: list[Form]) -> Form:
        if node.kind == "Elementwise":
            pieces = _pieces(node)
            left = [(0, len(p.thresholds)) for p in pieces]
            if self._boxes is not None:
                box = self._boxes[node.inputs[0]]
                ends = zip(pieces, exact(box.lo), exact(box.hi), strict=True)
                left = [_reached(p, low, high) for p, low, high in ends]
            return self._units(operands[0], pieces, left)
        if node.kind == "Sort":
            return self._sorted(node, operands[0])
        if node.kind == "Constant":
            return Form(node.size, {}, fmpq_mat(node.size, 1, exact(node["value"])))
        if node.kind not in KINDS:
            raise Rejected("it has no rational coefficients to split with")
        shapes = [network.nodes[i].shape for i in node.inputs]
        if node.size * sum(math.prod(s) for s in shapes) > MOST_ENTRIES:
            raise Rejected("its matrix is too large to check")
        self._spent += node.size * sum(math.prod(s) for s in shapes) * (len(self.domain.free) + self._count + 1)
        if self._spent > MOST_WORK:
            raise Rejected("the network is too large to be split")
        total = Form(node.size, {}, fmpq_mat(node.size, 1, _offset(node)))
        for place, operand in enumerate(operands):
            total = total + (operand if node.kind == "Reshape" else operand.after(_matrix(node, shapes, place)))
        if max(map(longest, (*total.parts.values(), total.offset))) > MOST_BITS:
            raise Rejected(f"its coefficients have more than {MOST_BITS} bits")
        return total

    def _units(self, reads: Form, pieces: list[Pieces], left: list[tuple[int, int]]) -> Form:
        if self._count + len(pieces) > MOST_UNITS:
            raise Rejected(f"expected at most {MOST_UNITS} units to split on")
        self.layers.append(Units(self._count, reads, pieces, left))
        self._count += len(pieces)
        return Form(reads.size, {len(self.layers): _eye(reads.size)}, fmpq_mat(reads.size, 1))

    def _sorted(self, node: Node, operand: Form) -> Form:
        """`min(a, b), max(a, b) = (a + b)/2 -+ |a - b|/2`: the pairs' differences are units."""
        if node.shape[node["axis"]] != 2:
            raise Rejected("only pairs can be split")
        pairs = np.moveaxis(np.arange(node.size).reshape(node.shape), node["axis"], -1).reshape(-1, 2).tolist()
        minus, mean = fmpq_mat(len(pairs), node.size), fmpq_mat(node.size, node.size)
        back = fmpq_mat(node.size, len(pairs))
        for k, (a, b) in enumerate(pairs):
            minus[k, a], minus[k, b] = fmpq(1), fmpq(-1)
            smaller, larger = (b, a) if node["descending"] else (a, b)
            back[smaller, k], back[larger, k] = fmpq(-1, 2), fmpq(1, 2)
            for i in (a, b):
                mean[i, a] = mean[i, b] = fmpq(1, 2)
        size = Pieces(exact(np.zeros(1)), exact(np.array([-1.0, 1.0])), exact(np.zeros(2)))
        absolute = self._units(operand.after(minus), [size] * len(pairs), [(0, 1)] * len(pairs))
        return operand.after(mean) + absolute.after(back)


def _domain(size: int, region: Region) -> tuple[Domain, Form]:
    """The region, and the network's input as a function of block 0."""
    every = list(range(size))
    values = [fmpq(0)] * size
    if region.kind == "everywhere" or region.box is None:
        domain = Domain("everywhere", every, [], [])
    elif region.kind == "ball" and region.center is not None and region.radius > 0:
        domain = Domain(region.norm, every, exact(region.center), exact(np.array([region.radius])))
    else:
        ends = (region.box.lo.ravel(), region.box.hi.ravel())
        if region.kind == "ball" and region.center is not None:
            ends = region.center, region.center
        low, high = exact(ends[0]), exact(ends[1])
        free = [i for i in every if low[i] < high[i]]
        values = [v if low[i] == high[i] else fmpq(0) for i, v in enumerate(low)]
        domain = Domain("box", free, [low[i] for i in free], [high[i] for i in free])
    matrix = fmpq_mat(size, len(domain.free))
    for column, i in enumerate(domain.free):
        matrix[i, column] = fmpq(1)
    return domain, Form(size, {0: matrix}, fmpq_mat(size, 1, values))


def longest(matrix: fmpq_mat) -> int:
    """The most bits of an entry, numerator and denominator together."""
    return max((int(v.p).bit_length() + int(v.q).bit_length() for v in matrix.entries()), default=0)


def _eye(size: int) -> fmpq_mat:
    eye = fmpq_mat(size, size)
    for i in range(size):
        eye[i, i] = fmpq(1)
    return eye


def _pieces(node: Node) -> list[Pieces]:
    name, argument = node["function"], node.argument
    if name in ("relu", "leaky_relu", "abs", "prelu"):
        negative = {"relu": 0.0, "abs": -1.0}.get(name, argument.get("negative_slope"))
        slopes = np.broadcast_to(node["slope"] if name == "prelu" else np.float64(negative), node.shape)
        zero, one = fmpq(0), fmpq(1)
        return [Pieces([zero], [s, one], [zero, zero]) for s in exact(slopes)]
    if name == "clip":
        return [_clip(argument["low"], argument["high"])] * node.size
    raise Rejected(f"{name} is not split into linear pieces")


def _clip(low: float, high: float) -> Pieces:
    """`min(max(v, low), high)`."""
    if low >= high:
        if not math.isfinite(high):
            raise Rejected("a clip without a finite value")
        return Pieces([], [fmpq(0)], exact(np.array([high])))
    thresholds = [t for t in (low, high) if math.isfinite(t)]
    slopes = [0.0] * math.isfinite(low) + [1.0] + [0.0] * math.isfinite(high)
    shifts = [low] * math.isfinite(low) + [0.0] + [high] * math.isfinite(high)
    return Pieces(exact(np.array(thresholds)), exact(np.array(slopes)), exact(np.array(shifts)))


def _reached(pieces: Pieces, low: fmpq, high: fmpq) -> tuple[int, int]:
    """The pieces that arguments in `[low, high]` need; where an end is a threshold the pieces agree there."""
    first = sum(t <= low for t in pieces.thresholds)
    return first, max(first, sum(t < high for t in pieces.thresholds))


def _offset(node: Node) -> Row:
    """What an affine node adds."""
    zero = np.zeros(node.shape)
    if node.kind == "AddConstant":
        return exact(np.broadcast_to(node["value"], node.shape))
    if node.kind == "Pad" and node["mode"] == "constant":
        inside = tuple(slice(low, n - high) for (low, high), n in zip(node["pads"], node.shape, strict=True))
        zero = np.full(node.shape, float(node["value"]))
        zero[inside] = 0.0
    bias = node.fields.get("bias")
    if bias is not None:
        axis = node.fields.get("axis", 1)
        zero = zero + bias.reshape([-1 if a == axis else 1 for a in range(len(node.shape))])
    return exact(zero)


def _matrix(node: Node, shapes: Sequence[tuple[int, ...]], place: int) -> fmpq_mat:
    """The exact matrix of an affine node by its input at `place`."""
    size = math.prod(shapes[place])
    plain = {"Mean": "Sum", "DivConstant": "MulConstant"}.get(node.kind)
    fields, divisors = dict(node.fields), None
    if node.kind == "Mean":
        divisors = [fmpq(math.prod(shapes[0][a] for a in node["axes"]))] * node.size
    elif node.kind == "AveragePool":  # sums over the windows, then divided by their counts
        counts = functools.reduce(np.multiply.outer, [rows[:, 2].astype(np.float64) for rows in node["windows"]])
        divisors = exact(np.broadcast_to(counts, node.shape))
        fields = {"windows": tuple(rows * [1, 1, 0] + [0, 0, 1] for rows in node["windows"])}
    elif node.kind == "DivConstant":
        divisors = exact(np.broadcast_to(node["value"], node.shape))
        fields = {"value": np.ones(node.shape)}
    map_ = factor(Node(plain or node.kind, node.inputs, node.shape, node.name, fields), shapes)
    units = np.eye(size).reshape(size, *shapes[place])
    operands = [units if i == place else None for i in range(len(shapes))]
    columns = np.asarray(map_.apply(operands), dtype=np.float64).reshape(size, node.size)
    matrix = fmpq_mat(node.size, size, exact(columns.T))
    if divisors is None:
        return matrix
    return fmpq_mat([[v / d for v in row] for row, d in zip(matrix.tolist(), divisors, strict=True)])
