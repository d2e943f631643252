"""A part made of convolutions as a network on a torus, where the inequality falls apart into one small inequality a frequency.

A convolution with zero padding is one on a longer circle, read where the image is: put the image into a torus so long that nothing
goes round into it, and let units outside be 0. Those are units with slope 0, which is allowed where 0 is a slope: with slopes
`alpha <= 0 <= beta` every pair of inputs of the network is one of the torus network under some slopes, and what is proved for all slopes of the torus network
holds for the network. The torus network commutes with shifts, so with multipliers that do too the inequality of `stacked.py` is block diagonal after
a discrete Fourier transform. (Best multipliers of a network with a symmetry have it: averaging over shifts keeps the inequality.)

Strides. With S the product of all strides, a value with stride s so far has `S/s` positions for each of the coarsest grid, on each axis. These *phases* count as channels.

Which values are 0 outside their image: the start, units, and what is made of such values entry by entry, or in windows that do not
overlap and reach the end of the image. Only these may be read by a convolution or by a pooling.

Maxima over windows are trees of maxima of two, `max(a, b) = (a + b)/2 + |a - b|/2` with units of slopes [-1, 1]; an entry outside the image, which takes
no part, is a unit with slope 1 or -1.

The mean over all positions is the frequency 0: with N positions of the coarsest grid and P phases, the sum over positions is `sqrt(N)` times the sum of
the phases' coefficients at frequency 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lipscope.bounds.problem import Problem
from lipscope.bounds.quadratic.stacked import Matrix, Vector
from lipscope.bounds.quadratic.torus_axes import NoTorus, Window, conv_windows, covers, pool_windows
from lipscope.bounds.segments import between
from lipscope.network.nodes import AveragePool, BatchNorm, Conv, Elementwise, MaxPool, Node, Reshape
from lipscope.rules.questions import evaluate, linear_part, roundings

Symbols = NDArray[Any]
"""Complex numbers, `(frequencies, rows, columns)`."""

Counts = tuple[int, ...]

LARGEST_SLOPE = 1e8
MOST_LAYERS, LARGEST_WEIGHT = 12, 1e6
"""Affine layers one after the other, and their coefficients: what underflows (2^-1074) then stays below 1e-150 whatever enlarges it."""

SMALLEST, LARGEST = 1e-80, 1e40
"""Between which the nonzero entries of composed absolute values have to lie: products that underflow are far from what counts."""


@dataclass(frozen=True, eq=False)
class Band:
    """Units of one nonlinear node, or of one level of a maximum's tree.

    Attributes:
        owner: the node.
        lower: alpha, one a channel and phase.
        upper: beta.
    """

    owner: int
    lower: Vector
    upper: Vector

    @property
    def size(self) -> int:
        """The number of units at one position of the coarsest grid."""
        return len(self.lower)


@dataclass(frozen=True, eq=False)
class Value:
    """A node's value: what it reads of every block, at each frequency.

    Attributes:
        symbols: by block, `(frequencies, rows, columns)`; rows are channels, and of each the phases.
        sizes: by block, `(rows, columns)`: at least the absolute values of the symbols' sums, composed.
        roundings: a computed symbol differs from the exact one by at most `gamma_roundings` of the sizes.
        inside: whether it is 0 outside its image.
    """

    symbols: dict[int, Symbols]
    sizes: dict[int, Matrix]
    roundings: int
    inside: bool


@dataclass(eq=False)
class Torus:
    """The part from `start` to `end` on its torus.

    Raises:
        NoTorus: see there.
    """

    problem: Problem
    start: int
    end: int
    levels: dict[int, Counts] = field(default_factory=dict)
    counts: Counts = ()

    def __post_init__(self) -> None:
        shape = self.problem.graph.nodes[self.start].shape
        if len(shape) < 3 or shape[0] != 1:
            raise NoTorus("the part does not begin with an image")
        self.path = between(self.problem, self.start, self.end)
        axes = len(shape) - 2
        self.levels = {self.start: (1,) * axes}
        needed: list[tuple[Counts, Counts]] = [((1,) * axes, shape[2:])]
        self.pooled: int | None = None
        self.depths = {self.start: 0}
        for index in self.path:
            self._measure(index, needed)
        self.stride = tuple(math.lcm(*(level[a] for level in self.levels.values())) for a in range(axes))
        self.counts = tuple(
            max(-(-length[a] * level[a] // self.stride[a]) for level, length in needed) for a in range(axes)
        )

    def _measure(self, index: int, needed: list[tuple[Counts, Counts]]) -> None:
        """The stride of a node's value, and how long the circles have to be for it."""
        graph = self.problem.graph
        node = graph.nodes[index]
        live = [i for i in node.inputs if not self.problem.constant[i]]
        own = 0 if node.kind == "Add" else 1
        self.depths[index] = own + max((self.depths.get(i, 0) for i in live), default=0) if node.affine else 0
        if self.depths[index] > MOST_LAYERS:
            raise NoTorus(f"more than {MOST_LAYERS} affine layers follow each other up to {node.name!r}")
        if self.pooled is not None or (self.start < index and any(i not in self.levels for i in live)):
            if not (node.affine and self.pooled is not None):
                raise NoTorus(f"{node.name!r} does not belong to the part")
            return
        before = graph.nodes[live[0]]
        level = self.levels[live[0]]
        if covers(node, before):
            self.pooled = index
            return
        windows: list[Window] = []
        if isinstance(node, Conv):
            windows = conv_windows(node, before)
        elif isinstance(node, (AveragePool, MaxPool)):
            windows = pool_windows(node, before)
        elif any(self.levels[i] != level for i in live) or node.shape != before.shape:
            raise NoTorus(f"{node.name!r} joins or reshapes images")
        if windows:
            needed.append((level, tuple(w.needed for w in windows)))
            level = tuple(s * w.stride for s, w in zip(level, windows, strict=True))
        self.levels[index] = level
        needed.append((level, node.shape[2:]))

    def phases(self, index: int) -> Counts:
        """How many positions of a value there are for each of the coarsest grid, on each axis."""
        return tuple(s // own for s, own in zip(self.stride, self.levels[index], strict=True))

    @cached_property
    def frequencies(self) -> NDArray[np.int64]:
        """All frequencies up to conjugation, one a row; 0 is the first."""
        half = [self.counts[0] // 2 + 1, *self.counts[1:]]
        return np.stack(np.meshgrid(*(np.arange(h) for h in half), indexing="ij"), axis=-1).reshape(-1, len(half))

    def walk(self, frequencies: NDArray[np.int64]) -> Spectrum:
        """What every unit and the output read, at the given frequencies (rows)."""
        return Walk(self, frequencies).run()


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The inequality at some frequencies.

    Attributes:
        bands: blocks 1, 2, ..
        reads: what the units of each block read.
        output: what the output reads.
        input_size: length of block 0.
    """

    bands: tuple[Band, ...]
    reads: tuple[Value, ...]
    output: Value
    input_size: int


class Walk:
    """One walk from start to end at some frequencies."""

    def __init__(self, torus: Torus, frequencies: NDArray[np.int64]) -> None:
        self.torus = torus
        self.problem = torus.problem
        self.frequencies = frequencies
        self.bands: list[Band] = []
        self.reads: list[Value] = []

    def run(self) -> Spectrum:
        """The spectrum."""
        torus, nodes = self.torus, self.problem.graph.nodes
        size = nodes[torus.start].shape[1] * math.prod(torus.stride)
        values = {torus.start: self._own(0, size)}
        for index in torus.path:
            node = nodes[index]
            live = [i for i in node.inputs if i in values]
            values[index] = self._visit(index, node, live, values)
            for matrix in values[index].sizes.values():
                entries = matrix[matrix != 0]
                if entries.size and not SMALLEST <= float(entries.min()) <= float(entries.max()) <= LARGEST:
                    raise NoTorus(f"weights up to {node.name!r} multiply to numbers out of range")
        return Spectrum(tuple(self.bands), tuple(self.reads), values[torus.end], size)

    def _own(self, block: int, size: int) -> Value:
        eye = np.eye(size)
        return Value({block: eye[None].astype(np.complex128)}, {block: eye}, 0, inside=True)

    def _visit(self, index: int, node: Node, live: Sequence[int], values: dict[int, Value]) -> Value:
        torus = self.torus
        operand, before = values[live[0]], self.problem.graph.nodes[live[0]]
        if torus.pooled is not None and index >= torus.pooled:
            return self._mean(live[0], before, operand) if index == torus.pooled else self._head(index, before, operand)
        if isinstance(node, Conv):
            return self._conv(index, live[0], _dense_weight(node), conv_windows(node, before), operand)
        if isinstance(node, AveragePool):
            windows = pool_windows(node, before)
            count = math.prod(int(rows[0][2]) for rows in node.windows)
            weight = np.zeros((node.shape[1], node.shape[1], *(w.kernel for w in windows)))
            weight[np.arange(node.shape[1]), np.arange(node.shape[1])] = 1 / count
            return self._conv(index, live[0], weight, windows, operand)
        if isinstance(node, MaxPool):
            return self._maximum(index, live[0], pool_windows(node, before), operand)
        if isinstance(node, Elementwise):
            return self._function(index, node, operand)
        if node.affine and len(live) == 1:
            return self._scaled(index, operand, _channel_scale(node), roundings(linear_part(node)).forward)
        if node.kind == "Add" and len(live) == len(node.inputs):
            return _sum([values[i] for i in node.inputs])
        raise NoTorus(f"{node.kind} at {node.name!r} does not commute with shifts")

    def _scaled(self, index: int, operand: Value, scale: Vector, count: int) -> Value:
        self._demand_weights(index, scale)
        rows = np.repeat(scale, math.prod(self.torus.phases(index)))[:, None]
        return Value(
            {b: s * rows for b, s in operand.symbols.items()}, {b: s * np.abs(rows) for b, s in operand.sizes.items()},
            operand.roundings + count, operand.inside,
        )  # fmt: skip

    def _function(self, index: int, node: Elementwise, operand: Value) -> Value:
        lower, upper = (s.numpy().reshape(node.shape[1], -1) for s in self.problem.slopes[index])
        alpha, beta = np.minimum(lower.min(1), 0.0), np.maximum(upper.max(1), 0.0)
        if not (np.abs(alpha).max() <= LARGEST_SLOPE and np.abs(beta).max() <= LARGEST_SLOPE):
            raise NoTorus(f"{node.function} at {node.name!r} has unbounded slope")
        copies = math.prod(self.torus.phases(index))
        return self._units(index, operand, np.repeat(alpha, copies), np.repeat(beta, copies))

    def _units(self, index: int, operand: Value, lower: Vector, upper: Vector) -> Value:
        self.bands.append(Band(index, lower, upper))
        self.reads.append(operand)
        return self._own(len(self.bands), len(lower))

    def _conv(self, index: int, source: int, weight: Matrix, windows: Sequence[Window], operand: Value) -> Value:
        shifts, kernel = self._kernel(index, source, weight, windows, operand)
        symbol = np.tensordot(self._turns(shifts), kernel, axes=(1, 0))
        count = 24 * len(windows) + 2 * len(shifts) + 2 * kernel.shape[2] + 16
        size = np.abs(kernel).sum(0)
        self._demand_weights(index, size)
        contained = operand.inside and all(w.contained for w in windows)
        return Value(
            {b: symbol @ s for b, s in operand.symbols.items()}, {b: size @ s for b, s in operand.sizes.items()},
            operand.roundings + count, contained,
        )  # fmt: skip

    def _demand_weights(self, index: int, weights: Matrix) -> None:
        if not float(np.abs(weights).max(initial=0.0)) <= LARGEST_WEIGHT:
            raise NoTorus(f"the weights of {self.problem.graph.nodes[index].name!r} are above {LARGEST_WEIGHT:g}")

    def _turns(self, shifts: NDArray[np.int64]) -> Symbols:
        """`exp(i w a)` for all frequencies (rows) and shifts (columns)."""
        result = np.ones((len(self.frequencies), len(shifts)), dtype=np.complex128)
        for axis, count in enumerate(self.torus.counts):
            angle = np.outer(self.frequencies[:, axis], shifts[:, axis]) % count * (2 * math.pi / count)
            result *= np.cos(angle) + 1j * np.sin(angle)
        return result

    def _kernel(
        self, index: int, source: int, weight: Matrix, windows: Sequence[Window], operand: Value
    ) -> tuple[NDArray[np.int64], Matrix]:
        """Shifts on the coarsest grid (rows), and for each the matrix from phases to phases that acts over that distance.

        Position `P_out j + r` reads `P_in j + e`, `e = s r + d t - low = P_in a + q`: phase q, a positions further on.
        """
        if not operand.inside:
            raise NoTorus(
                f"{self.problem.graph.nodes[index].name!r} reads what a layer before it has written outside the image"
            )
        after, before = self.torus.phases(index), self.torus.phases(source)
        places: dict[tuple[int, ...], Matrix] = {}
        outputs, inputs = weight.shape[:2]
        for tap in np.ndindex(*weight.shape[2:]):
            for r in np.ndindex(*after):
                ends = [w.stride * p + w.dilation * t - w.low for w, p, t in zip(windows, r, tap, strict=True)]
                shift = tuple(e // p for e, p in zip(ends, before, strict=True))
                phase = tuple(e % p for e, p in zip(ends, before, strict=True))
                shape = (outputs, math.prod(after), inputs, math.prod(before))
                target = places.setdefault(shift, np.zeros(shape))
                target[:, np.ravel_multi_index(r, after), :, np.ravel_multi_index(phase, before)] += weight[:, :, *tap]
        kernel = np.stack([m.reshape(outputs * math.prod(after), -1) for m in places.values()])
        return np.array(list(places), dtype=np.int64), kernel

    def _maximum(self, index: int, source: int, windows: Sequence[Window], operand: Value) -> Value:
        """The maximum over a window by maxima of two, level by level."""
        channels, kernel = self.problem.graph.nodes[index].shape[1], tuple(w.kernel for w in windows)
        entries = []
        for tap in np.ndindex(*kernel):
            weight = np.zeros((channels, channels, *kernel))
            weight[np.arange(channels), np.arange(channels), *tap] = 1
            entries.append(self._conv(index, source, weight, windows, operand))
        while len(entries) > 1:
            pairs = list(zip(entries[::2], entries[1::2], strict=False))
            merged = [self._larger(index, a, b) for a, b in pairs]
            entries = [*merged, *entries[2 * len(pairs) :]]
        return entries[0]

    def _larger(self, index: int, a: Value, b: Value) -> Value:
        """`(a + b)/2 + |a - b|/2`; the unit is |a - b|/2, and reads (a - b)/2."""
        rows = len(next(iter(a.sizes.values())))
        half = [Value({k: s / 2 for k, s in v.symbols.items()}, {k: s / 2 for k, s in v.sizes.items()}, v.roundings, v.inside) for v in (a, b)]  # fmt: skip
        negative = Value({k: -s for k, s in half[1].symbols.items()}, half[1].sizes, b.roundings, b.inside)
        unit = self._units(index, _sum([half[0], negative]), -np.ones(rows), np.ones(rows))
        total = _sum([half[0], half[1], unit])
        return Value(total.symbols, total.sizes, total.roundings, a.inside and b.inside)

    def _mean(self, source: int, before: Node, operand: Value) -> Value:
        """The mean over all positions: at the frequency 0, and nothing at others."""
        if not operand.inside:
            raise NoTorus("the mean reads what a layer before it has written outside the image")
        copies = math.prod(self.torus.phases(source))
        factor = math.sqrt(math.prod(self.torus.counts)) / math.prod(before.shape[2:])
        pick = np.kron(np.eye(before.shape[1]), np.full((1, copies), factor))
        constant = (self.frequencies == 0).all(1)[:, None, None]
        return Value(
            {b: (pick @ s) * constant for b, s in operand.symbols.items()},
            {b: pick @ s for b, s in operand.sizes.items()}, operand.roundings + 2 * copies + 16, inside=True,
        )  # fmt: skip

    def _head(self, index: int, before: Node, operand: Value) -> Value:
        """An affine node behind the mean."""
        linear = linear_part(self.problem.graph.nodes[index])
        columns = torch.eye(before.size, dtype=torch.float64).reshape(-1, *before.shape)
        with torch.no_grad():
            matrix: Matrix = evaluate(linear, columns).reshape(before.size, -1).numpy().T
        self._demand_weights(index, matrix)
        count = roundings(linear).forward + 2 * before.size + 8
        return Value(
            {b: matrix @ s for b, s in operand.symbols.items()}, {b: np.abs(matrix) @ s for b, s in operand.sizes.items()},
            operand.roundings + count, inside=True,
        )  # fmt: skip


def _sum(values: Sequence[Value]) -> Value:
    blocks = sorted({b for v in values for b in v.symbols})
    symbols = {b: sum((v.symbols[b] for v in values if b in v.symbols), np.zeros(1)) for b in blocks}
    sizes = {b: sum((v.sizes[b] for v in values if b in v.sizes), np.zeros(1)) for b in blocks}
    return Value(
        symbols, sizes, max(v.roundings for v in values) + len(values) + 1, inside=all(v.inside for v in values)
    )


def _dense_weight(node: Conv) -> Matrix:
    """The weights without groups: (outputs, inputs, *kernel)."""
    weight = np.asarray(node.weight, dtype=np.float64)
    outputs, inputs, *kernel = weight.shape
    if node.groups == 1:
        return weight
    full = np.zeros((outputs, inputs * node.groups, *kernel))
    own = outputs // node.groups
    for g in range(node.groups):
        full[g * own : (g + 1) * own, g * inputs : (g + 1) * inputs] = weight[g * own : (g + 1) * own]
    return full


def _channel_scale(node: Node) -> Vector:
    """What an affine node multiplies each channel by.

    Raises:
        NoTorus: it does something else.
    """
    if not (isinstance(node, (BatchNorm, Reshape)) or node.kind in ("AddConstant", "MulConstant", "DivConstant")):
        raise NoTorus(f"{node.kind} at {node.name!r} does not commute with shifts")
    if isinstance(node, BatchNorm) and node.axis != 1:
        raise NoTorus(f"{node.name!r} does not scale channels")
    with torch.no_grad():
        values = evaluate(linear_part(node), torch.ones((1, *node.shape), dtype=torch.float64))[0].numpy()
    flat = values.reshape(node.shape[1], -1)
    if not (flat == flat[:, :1]).all():
        raise NoTorus(f"{node.name!r} does not scale all positions alike")
    scale: Vector = flat[:, 0].copy()
    return scale
