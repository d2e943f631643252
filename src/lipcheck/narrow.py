"""Boxes narrowed by linear bounds: backward from a node to the input, with the lines that a bundle stores.

A sum `sum_v A_v . v + constant`, first one entry of the node, is replaced step by step by something that is not smaller:

* `v = L u + b` by `(A L) u + A b`. A computed `A L` differs from the exact one by at most `gamma_k |A| |L|` and underflow; whatever it is, it is
  what the next step uses, and the difference times u is at most `gamma_k |A| (|L| |u|)`, a number that is added;
* `v = f(u)` by the line above f where A > 0 and by the one below where A < 0;
* other nodes by the better end of their box;
* the input by the largest value on the region: on a ball of radius r around c it is `A c + r |A|*` with the dual norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipcheck.boxes import Box, Boxes, image
from lipcheck.bundle import Bundle, keys
from lipcheck.errors import Rejected
from lipcheck.linear import absolute, factor
from lipcheck.lines import Lines, prove_lines, read_lines
from lipcheck.nodes import Network, Node
from lipcheck.region import Region
from lipcheck.rounding import TINY, Floats, finite, gamma, norm_up, ups

CHUNK = 4_000_000


@dataclass
class _Sum:
    rows: dict[int, Floats]
    constant: Floats
    error: Floats


class Narrowing:
    """Narrows `boxes` by what is stored; lines are proved when they are first met, on boxes that are narrow by then."""

    def __init__(self, network: Network, boxes: Boxes, region: Region, bundle: Bundle) -> None:
        self.network = network
        self.boxes = boxes
        self.region = region
        self.bundle = bundle
        self.stored: dict[int, object] = {}
        self.lines: dict[int, Lines] = {}
        self._sizes: dict[int, tuple[Box, Floats, float, int]] = {}

    def run(self, lines: Mapping[int, object], narrowed: Mapping[int, object]) -> None:
        """Narrow the boxes of all stored nodes, in topological order.

        Raises:
            Rejected: a line is not proved, or something does not fit the specification.
        """
        self.stored = dict(lines)
        for index in sorted(narrowed):
            node = self.network.nodes[index]
            entries = self._entries(narrowed[index], node)
            own = self.boxes[index]
            before = self.network.ancestors(index)
            for i in sorted(before & set(self.stored)):
                self._prove(i)
            lo, hi = own.lo.reshape(-1).copy(), own.hi.reshape(-1).copy()
            for part in np.array_split(entries, -(-len(entries) * self._widest(before) // CHUNK) or 1):
                lo[part] = np.maximum(lo[part], -self._above(index, part, -1.0))
                hi[part] = np.minimum(hi[part], self._above(index, part, 1.0))
            if not (lo <= hi).all():
                raise Rejected(f"internal: the narrowed box of node {index} is empty")
            self.boxes.narrow(index, Box(lo.reshape(node.shape), hi.reshape(node.shape)))

    def _widest(self, before: set[int]) -> int:
        return max(self.network.nodes[i].size for i in before)

    def _entries(self, value: object, node: Node) -> Any:
        array = self.bundle.array(keys(value, {"entries"}, f"narrowed of {node.name!r}")["entries"])
        if array.dtype != np.int64 or array.ndim != 1 or not len(array):
            raise Rejected("expected the narrowed entries as int64 numbers")
        if not ((array >= 0) & (array < node.size)).all() or not (np.diff(array) > 0).all():
            raise Rejected(f"expected narrowed entries that rise within 0..{node.size - 1}")
        return array

    def _prove(self, index: int) -> None:
        if index in self.lines:
            return
        node = self.network.nodes[index]
        lines = read_lines(self.stored[index], node, self.bundle)
        box = self.boxes[node.inputs[0]]
        prove_lines(node, box.lo, box.hi, lines)
        self.lines[index] = lines

    def _above(self, index: int, entries: Any, sign: float) -> Floats:
        """At least sign times each entry."""
        node = self.network.nodes[index]
        rows = np.zeros((len(entries), node.size))
        rows[np.arange(len(entries)), entries] = sign
        total = _Sum({index: rows.reshape(-1, *node.shape)}, np.zeros(len(entries)), np.zeros(len(entries)))
        with np.errstate(all="ignore"):
            for i in range(index, 0, -1):
                if i in total.rows:
                    self._replace(i, total.rows.pop(i), total)
            if 0 in total.rows:
                self._concretise(_flat(total.rows.pop(0)), total)
            return finite(ups(total.constant + total.error), f"a linear bound of node {index}")

    def _replace(self, index: int, a: Floats, total: _Sum) -> None:
        node = self.network.nodes[index]
        if node.affine:
            self._affine(index, node, a, total)
        elif index in self.lines:
            self._function(node, self.lines[index], a, total)
        else:
            self._box(a, self.boxes[index], total)

    def _box(self, a: Floats, box: Box, total: _Sum) -> None:
        """The largest `a v` with v in the box."""
        flat = _flat(a)
        constant = np.maximum(flat, 0.0) @ box.hi.reshape(-1) + np.minimum(flat, 0.0) @ box.lo.reshape(-1)
        _add(total, constant, np.abs(flat) @ box.magnitude.reshape(-1), flat.shape[1])

    def _affine(self, index: int, node: Node, a: Floats, total: _Sum) -> None:
        bias, largest, tiny, count = self._size(index, node)
        flat = np.abs(_flat(a))
        map_ = factor(node, [self.network.nodes[i].shape for i in node.inputs])
        for i, part in zip(node.inputs, map_.adjoint(a), strict=True):
            self._accumulate(i, np.asarray(part), total)
        total.error = total.error + 2 * gamma(count) * (flat @ largest) + tiny
        self._box(a, bias, total)

    def _size(self, index: int, node: Node) -> tuple[Box, Floats, float, int]:
        """The constant part, `|L| |u|` rounded upward, what underflow loses, and the roundings of a transposed step; kept."""
        if index not in self._sizes:
            shapes = [self.network.nodes[i].shape for i in node.inputs]
            origin = [Box(np.zeros(shape), np.zeros(shape)) for shape in shapes]
            map_ = factor(node, shapes, absolute)
            magnitudes = [self.boxes[i].magnitude for i in node.inputs]
            largest = map_.apply([m[None] for m in magnitudes])[0] * (1 + 4 * gamma(map_.forward + 2))
            largest = ups(largest) + 4 * (map_.terms + 2) * TINY
            tiny = 4 * (map_.terms + 2) * TINY * (1 + sum(float(m.sum()) for m in magnitudes))
            count = map_.backward + node.size + 4
            self._sizes[index] = image(node, origin), finite(largest, "a layer's size").reshape(-1), tiny, count
        return self._sizes[index]

    def _function(self, node: Node, lines: Lines, a: Floats, total: _Sum) -> None:
        (s, b), (t, d) = lines.below, lines.above
        up, down = np.maximum(a, 0.0), np.minimum(a, 0.0)
        operand = self.boxes[node.inputs[0]].magnitude
        self._accumulate(node.inputs[0], up * t + down * s, total)
        constant = _flat(up) @ d.reshape(-1) + _flat(down) @ b.reshape(-1)
        size = np.maximum(np.abs(s), np.abs(t)) * operand + np.maximum(np.abs(b), np.abs(d))
        _add(total, constant, np.abs(_flat(a)) @ size.reshape(-1), node.size + 2)
        total.error = total.error + TINY * (1 + float(operand.sum()))

    def _accumulate(self, index: int, part: Floats, total: _Sum) -> None:
        if index not in total.rows:
            total.rows[index] = part
            return
        both = total.rows[index] + part
        total.rows[index] = both
        lost = np.abs(_flat(both)) @ self.boxes[index].magnitude.reshape(-1)
        total.error = total.error + 2 * gamma(2) * lost * (1 + gamma(both[0].size + 4))

    def _concretise(self, a: Floats, total: _Sum) -> None:
        if self.region.center is None:
            self._box(a, self.boxes[0], total)
            return
        dual = {"l1": "linf", "l2": "l2", "linf": "l1"}[self.region.norm]
        reach = ups(np.array([norm_up(row, dual) for row in np.abs(a)]) * self.region.radius)
        size = np.abs(a) @ np.abs(self.region.center) + reach
        _add(total, a @ self.region.center + reach, size, a.shape[1] + 2)


def _flat(a: Floats) -> Floats:
    return a.reshape(a.shape[0], -1)


def _add(total: _Sum, constant: Floats, size: Floats, count: int) -> None:
    """Add a sum of terms with absolute values `size` together; `count` roundings, and what underflows."""
    total.constant = total.constant + constant
    total.error = total.error + 2 * gamma(count + 4) * size + 2 * gamma(2) * np.abs(total.constant)
    total.error = ups(total.error * (1 + 2 * gamma(4))) + 4 * (count + 4) * TINY
