"""A part made of convolutions on a torus: what its units and its output read, as matrix polynomials in the shifts.

The image (and every value after it) is put on a circle for each axis, so long that no convolution reads around it. Where a
value is 0 outside its image, the convolution on the torus gives inside the next image what the network's gives. A unit
outside its image is one with slope 0, so slopes are widened to contain 0; a maximum of two is `(a + b)/2 + |a - b|/2`, and of an
entry inside and one outside it is the former: a slope 1 or -1 of the unit |.|.

With S the product of the strides on the way, a value has `S/s` positions for each of the coarsest grid; these phases are
channels. A polynomial is a dictionary from shifts (on the coarsest grid) to real matrices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from lipcheck.errors import Rejected
from lipcheck.linear import absolute, batch_norm_scale, factor, signed
from lipcheck.nodes import Network, Node
from lipcheck.rounding import TINY, Floats, finite
from lipcheck.segments import Slopes

Shift = tuple[int, ...]
Polynomial = dict[Shift, Floats]

SMALLEST, LARGEST = 1e-90, 1e45
"""What the nonzero entries of `size` have to lie between: then underflow on the way is far below every rounding error."""

MOST_LOST = 1e-170
"""Of an entry to underflow, with all that later layers make of it; `torus.FLOOR` covers it."""

MOST_SLOPE = 1e9
MOST_CHANNELS = 4000
"""Units at one position of the coarsest grid."""


@dataclass
class Read:
    """A value: a polynomial of each block; the composition of absolute values, summed over shifts; roundings of an entry.

    `inside` says that it is 0 outside its image; `lost` is what underflow may have taken from an entry, at most.
    """

    terms: dict[int, Polynomial]
    size: dict[int, Floats]
    roundings: int
    inside: bool
    lost: float = 0.0


@dataclass(frozen=True)
class Taps:
    """Windows on one axis: position p reads entries `stride p + dilation t - low`, t = 0 .. kernel - 1, of an axis of `entries`."""

    entries: int
    positions: int
    kernel: int
    stride: int
    dilation: int
    low: int

    def circle(self) -> int:
        """The shortest circle on which entries behind the image, read at its end or before its beginning, are not entries of it."""
        last = self.stride * (self.positions - 1) + self.dilation * (self.kernel - 1) - self.low
        return max(self.entries + self.low, last + 1)

    def ends_inside(self) -> bool:
        """Whether all windows from position `positions` on lie outside the image."""
        wide = self.dilation * (self.kernel - 1) + 1
        return self.low == 0 and wide <= self.stride and self.positions * self.stride >= self.entries


def taps(node: Node, shape: tuple[int, ...]) -> list[Taps]:
    """The windows of a `Conv`, `AveragePool` or `MaxPool` on every axis.

    Raises:
        Rejected: they are not regular.
    """
    found = []
    if node.kind == "Conv":
        for a, (n, m) in enumerate(zip(shape[2:], node.shape[2:], strict=True)):
            found.append(
                Taps(n, m, node["weight"].shape[2 + a], node["stride"][a], node["dilation"][a], node["padding"][a][0])
            )
        return found
    if len(node["windows"]) != len(shape) - 2:
        raise Rejected(f"torus: expected {node.kind} {node.name!r} to pool all axes but the first two")
    for n, rows in zip(shape[2:], node["windows"], strict=True):
        begin, end, last = np.asarray(rows, dtype=np.int64).T
        kernel = int(np.max(end - begin))
        low = 0 if int(end[0]) >= n else kernel - int(end[0])
        step = kernel if len(begin) == 1 else int(begin[1]) + low
        places = np.arange(len(begin)) * step - low
        good = (
            step > 0 <= low and (begin == np.maximum(places, 0)).all() and (end == np.minimum(places + kernel, n)).all()
        )
        if not (good and (last == (1 if node.kind == "MaxPool" else last[0])).all()):
            raise Rejected(f"torus: expected the windows of {node.kind} {node.name!r} to be regular")
        found.append(Taps(n, len(begin), kernel, step, 1, low))
    return found


@dataclass
class TorusWalk:
    """The walk from node `source` to node `target`.

    Attributes:
        counts: positions of the coarsest grid on each axis, as the certificate has them.
        units: for each block from 1 on its node, what it reads, and its slopes.
        output: what the target reads, of blocks' coefficients at all frequencies or, behind a mean, at 0 alone.
    """

    network: Network
    slopes: Slopes
    source: int
    target: int
    counts: tuple[int, ...]
    units: list[tuple[int, Read, Floats, Floats]] = field(default_factory=list)
    mean: int | None = None

    def __post_init__(self) -> None:
        shape = self.network.nodes[self.source].shape
        if len(shape) < 3 or shape[0] != 1 or len(self.counts) != len(shape) - 2:
            raise Rejected(
                "torus: expected a part that begins with an image (1, C, ..), and a count for each of its axes"
            )
        inside = self._nodes()
        self.strides: dict[int, Shift] = {self.source: (1,) * len(self.counts)}
        circles: list[tuple[Shift, Shift]] = [(self.strides[self.source], shape[2:])]
        for index in inside:
            self._stride(index, circles)
        top = tuple(math.lcm(*(s[a] for s in self.strides.values())) for a in range(len(self.counts)))
        self.top = top
        for stride, needed in circles:
            if any(c * t < n * s for c, t, n, s in zip(self.counts, top, needed, stride, strict=True)):
                raise Rejected(f"torus: counts {self.counts} are too few, the part would read around the circle")
        self.input_size = shape[1] * math.prod(top)
        reads: dict[int, Read] = {self.source: self._block(0, self.input_size)}
        for index in inside:
            reads[index] = self._visit(index, reads)
            for size in reads[index].size.values():
                used = finite(size, "torus: a composition of layers")[size != 0]
                if not reads[index].lost <= MOST_LOST:
                    raise Rejected(f"torus: underflow before node {index} may be enlarged to {reads[index].lost:.3g}")
                if used.size and not (used.min() >= SMALLEST and used.max() <= LARGEST):
                    raise Rejected(f"torus: the weights up to node {index} multiply to numbers out of range")
            if sum(len(u[2]) for u in self.units) + self.input_size > MOST_CHANNELS:
                raise Rejected("torus: too many units at one position to check")
        self.output = reads[self.target]

    def _nodes(self) -> list[int]:
        found: set[int] = set()
        stack = [self.target]
        while stack:
            index = stack.pop()
            if index == self.source or index in found:
                continue
            if not self.network.dependent[index] or index < self.source:
                raise Rejected(f"torus: node {index} is read from around the part")
            found.add(index)
            stack.extend(self.network.nodes[index].inputs)
        return sorted(found)

    def _stride(self, index: int, circles: list[tuple[Shift, Shift]]) -> None:
        node = self.network.nodes[index]
        before = self.network.nodes[node.inputs[0]]
        if self.mean is not None:
            if not node.affine or len(node.inputs) != 1 or (node.inputs[0] in self.strides):
                raise Rejected(f"torus: node {index} ({node.kind} {node.name!r}) is not affine behind the mean")
            return
        stride = self.strides[node.inputs[0]]
        if any(self.strides[i] != stride for i in node.inputs):
            raise Rejected(f"torus: node {index} joins values of different strides")
        if self._is_mean(node, before):
            self.mean = index
            return
        if node.kind in ("Conv", "AveragePool", "MaxPool"):
            windows = taps(node, before.shape)
            circles.append((stride, tuple(w.circle() for w in windows)))
            stride = tuple(s * w.stride for s, w in zip(stride, windows, strict=True))
        elif any(self.network.nodes[i].shape != node.shape for i in node.inputs):
            raise Rejected(f"torus: node {index} ({node.kind} {node.name!r}) changes the shape")
        self.strides[index] = stride
        circles.append((stride, node.shape[2:]))

    @staticmethod
    def _is_mean(node: Node, before: Node) -> bool:
        if node.kind == "Mean":
            return tuple(node["axes"]) == tuple(range(2, len(before.shape)))
        if node.kind != "AveragePool" or len(node["windows"]) != len(before.shape) - 2:
            return False
        return all(
            np.asarray(w).tolist() == [[0, n, n]] for w, n in zip(node["windows"], before.shape[2:], strict=True)
        )

    def _phases(self, index: int) -> Shift:
        return tuple(t // s for t, s in zip(self.top, self.strides[index], strict=True))

    def _block(self, number: int, size: int) -> Read:
        eye = np.eye(size)
        return Read({number: {(0,) * len(self.counts): eye}}, {number: eye}, 0, True)

    def _add(self, index: int, read: Read, lower: Floats, upper: Floats) -> Read:
        self.units.append((index, read, lower, upper))
        return self._block(len(self.units), len(lower))

    def _visit(self, index: int, reads: Mapping[int, Read]) -> Read:
        node = self.network.nodes[index]
        source = node.inputs[0]
        before, operand = self.network.nodes[source], reads[source]
        if index == self.mean:
            return self._mean(source, before, operand)
        if self.mean is not None and index > self.mean:
            return self._affine(node, before, operand)
        if node.kind == "Conv":
            return self._correlate(index, source, _plain(node), taps(node, before.shape), operand)
        if node.kind == "AveragePool":
            windows = taps(node, before.shape)
            kernel = np.zeros((node.shape[1],) * 2 + tuple(w.kernel for w in windows))
            kernel[np.arange(node.shape[1]), np.arange(node.shape[1])] = 1.0
            divisor = math.prod(int(np.asarray(w)[0, 2]) for w in node["windows"])
            return _times(self._correlate(index, source, kernel, windows, operand), np.full(1, 1.0 / divisor), 2)
        if node.kind == "MaxPool":
            return self._maximum(index, source, operand)
        if node.kind == "Elementwise":
            return self._function(index, node, operand)
        if node.kind == "Add":
            return _add([reads[i] for i in node.inputs])
        return _times(operand, np.repeat(self._scale(node), math.prod(self._phases(index))), 6)

    def _scale(self, node: Node) -> Floats:
        """What a node multiplies every channel by."""
        if node.kind == "BatchNorm" and node["axis"] == 1:
            return batch_norm_scale(node)
        if node.kind in ("AddConstant", "Reshape"):
            return np.ones(node.shape[1])
        if node.kind not in ("MulConstant", "DivConstant"):
            raise Rejected(f"torus: {node.kind} {node.name!r} does not commute with shifts")
        full = np.broadcast_to(node["value"], node.shape)[0].reshape(node.shape[1], -1)
        if not (full == full[:, :1]).all():
            raise Rejected(f"torus: {node.kind} {node.name!r} is not the same at all positions")
        return np.asarray(full[:, 0] if node.kind == "MulConstant" else 1.0 / full[:, 0], dtype=np.float64)

    def _function(self, index: int, node: Node, operand: Read) -> Read:
        if index not in self.slopes:
            raise Rejected(f"expected slopes of node {index} ({node['function']} {node.name!r}), there are none")
        lower, upper = (s.reshape(node.shape[1], -1) for s in self.slopes[index])
        low, high = np.minimum(lower.min(axis=1), 0.0), np.maximum(upper.max(axis=1), 0.0)
        if not ((np.abs(low) <= MOST_SLOPE) & (np.abs(high) <= MOST_SLOPE)).all():
            raise Rejected(f"torus: node {index} ({node['function']} {node.name!r}) has slopes that are too large")
        copies = math.prod(self._phases(index))
        return self._add(index, operand, np.repeat(low, copies), np.repeat(high, copies))

    def _correlate(self, index: int, source: int, weight: Floats, windows: list[Taps], operand: Read) -> Read:
        if not operand.inside:
            raise Rejected(f"torus: node {index} reads a value that is not 0 outside its image")
        kernel = _polyphase(weight, windows, self._phases(index), self._phases(source))
        heavy = np.sum([np.abs(k) for k in kernel.values()], axis=0)
        found: dict[int, Polynomial] = {}
        longest = 0
        for block, terms in operand.terms.items():
            target = found.setdefault(block, {})
            for (a, k), (b, m) in product(kernel.items(), terms.items()):
                place = tuple(x + y for x, y in zip(a, b, strict=True))
                target[place] = target[place] + k @ m if place in target else k @ m
            longest = max(longest, len(terms))
        count = operand.roundings + heavy.shape[1] + weight[0, 0].size + len(kernel) * longest + 2
        size = {b: heavy @ s for b, s in operand.size.items()}
        lost = 2 * operand.lost * float(heavy.sum(axis=1).max()) + count * TINY
        return Read(found, size, count, operand.inside and all(w.ends_inside() for w in windows), lost)

    def _maximum(self, index: int, source: int, operand: Read) -> Read:
        """Row by row of the window; the first with the second, the third with the fourth, and so on, a last one left as it is."""
        windows = taps(self.network.nodes[index], self.network.nodes[source].shape)
        channels, shape = self.network.nodes[index].shape[1], tuple(w.kernel for w in windows)
        values = []
        for place in np.ndindex(*shape):
            kernel = np.zeros((channels, channels, *shape))
            kernel[(np.arange(channels), np.arange(channels), *place)] = 1.0
            values.append(self._correlate(index, source, kernel, windows, operand))
        while len(values) > 1:
            merged = []
            for a, b in zip(values[0::2], values[1::2], strict=False):
                rows = len(next(iter(a.size.values())))
                half, other = _times(a, np.full(1, 0.5), 1), _times(b, np.full(1, -0.5), 1)
                unit = self._add(index, _add([half, other]), -np.ones(rows), np.ones(rows))
                joined = _add([half, _times(b, np.full(1, 0.5), 1), unit])
                merged.append(Read(joined.terms, joined.size, joined.roundings, a.inside and b.inside, joined.lost))
            values = merged + ([values[-1]] if len(values) % 2 else [])
        return values[0]

    def _mean(self, source: int, before: Node, operand: Read) -> Read:
        """The mean over all positions, without the factor sqrt(positions of the coarsest grid) of the frequency 0."""
        if not operand.inside:
            raise Rejected("torus: the mean reads a value that is not 0 outside its image")
        copies = math.prod(self._phases(source))
        pick = np.kron(np.eye(before.shape[1]), np.full((1, copies), 1.0 / math.prod(before.shape[2:])))
        zero = (0,) * len(self.counts)
        terms = {b: {zero: pick @ np.sum(list(t.values()), axis=0)} for b, t in operand.terms.items()}
        size = {b: pick @ s for b, s in operand.size.items()}
        longest = max(len(t) for t in operand.terms.values())
        count = operand.roundings + copies + longest + 4
        return Read(terms, size, count, True, 2 * operand.lost * copies * longest + count * TINY)

    def _affine(self, node: Node, before: Node, operand: Read) -> Read:
        zero = (0,) * len(self.counts)
        plain, heavy = (factor(node, [before.shape], convert) for convert in (signed, absolute))

        def push(run: object, matrix: Floats) -> Floats:
            return np.asarray(run.apply([matrix.T.reshape(-1, *before.shape)]).reshape(matrix.shape[1], -1).T)  # type: ignore[attr-defined]

        terms = {b: {zero: push(plain, t[zero])} for b, t in operand.terms.items()}
        size = {b: push(heavy, s) for b, s in operand.size.items()}
        rows = float(finite(heavy.apply([np.ones((1, *before.shape))]), "a layer behind a mean").max())
        return Read(terms, size, operand.roundings + plain.forward, True, 2 * operand.lost * rows + plain.terms * TINY)


def _plain(node: Node) -> Floats:
    """The weights of a convolution as if it had one group."""
    weight, groups = np.asarray(node["weight"], dtype=np.float64), node["groups"]
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    full = np.zeros((weight.shape[0], columns * groups, *weight.shape[2:]))
    for g in range(groups):
        full[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] = weight[g * rows : (g + 1) * rows]
    return full


def _polyphase(weight: Floats, windows: list[Taps], after: Shift, before: Shift) -> Polynomial:
    """Position `P j + r` of the value reads entry `s (P j + r) + d t - low = Q (j + a) + q`: phase q, shifted by a; Q = s P."""
    rows, columns = weight.shape[:2]
    found: Polynomial = {}
    for r in np.ndindex(*after):
        to = int(np.ravel_multi_index(r, after))
        for t in np.ndindex(*weight.shape[2:]):
            entry = [w.stride * i + w.dilation * j - w.low for w, i, j in zip(windows, r, t, strict=True)]
            shift, phase = zip(*(divmod(e, n) for e, n in zip(entry, before, strict=True)), strict=True)
            at = int(np.ravel_multi_index(phase, before))
            matrix = found.setdefault(tuple(shift), np.zeros((rows * math.prod(after), columns * math.prod(before))))
            matrix[to :: math.prod(after), at :: math.prod(before)] += weight[(slice(None), slice(None), *t)]
    return found


def _times(read: Read, scale: Floats, roundings: int) -> Read:
    rows = scale[:, None]
    terms = {b: {a: m * rows for a, m in t.items()} for b, t in read.terms.items()}
    return Read(
        terms, {b: s * np.abs(rows) for b, s in read.size.items()}, read.roundings + roundings, read.inside,
        2 * read.lost * float(np.abs(scale).max()) + TINY,
    )  # fmt: skip


def _add(reads: list[Read]) -> Read:
    terms: dict[int, Polynomial] = {}
    size: dict[int, Floats] = {}
    for read in reads:
        for block, polynomial in read.terms.items():
            target = terms.setdefault(block, {})
            for shift, matrix in polynomial.items():
                target[shift] = target[shift] + matrix if shift in target else matrix
            size[block] = size[block] + read.size[block] if block in size else read.size[block]
    return Read(
        terms,
        size,
        max(r.roundings for r in reads) + len(reads),
        all(r.inside for r in reads),
        2 * sum(r.lost for r in reads),
    )
