"""The operator of a rule `segment`: found by walking backward, applied node by node, its rounding counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lipcheck.errors import Rejected
from lipcheck.linear import Factor, absolute, factor, pattern, signed
from lipcheck.nodes import Network, Node
from lipcheck.rounding import TINY, Floats, finite, gamma
from lipcheck.shapes import Shape

Slopes = Mapping[int, tuple[Floats, Floats]]


def is_linear(slopes: Slopes, index: int) -> bool:
    """Whether an `Elementwise` node multiplies by known slopes (and adds a constant)."""
    return index in slopes and bool((slopes[index][0] == slopes[index][1]).all())


def walk(network: Network, slopes: Slopes, start: int, source: int) -> list[int]:
    """The nodes between `source` (excluded) and `start` (included) that depend on the input, in order.

    Raises:
        Rejected: a way back from `start` meets a node that is not affine before `source`.
    """
    seen: set[int] = set()
    stack = [start]
    while stack:
        index = stack.pop()
        if index == source or index in seen or not network.dependent[index]:
            continue
        node = network.nodes[index]
        if not node.affine and not (node.kind == "Elementwise" and is_linear(slopes, index)):
            raise Rejected(f"node {index} ({node.kind} {node.name!r}) is not affine and lies inside the segment")
        seen.add(index)
        stack.extend(node.inputs)
    return sorted(seen)


@dataclass(frozen=True)
class Operator:
    """The linear map L of a segment, times `2^-exponent`.

    With `(f, e_f) = forward(), (b, e_b) = backward()`: `|apply(x) - L x| <= gamma_f |L| |x| + e_f` entrywise, where
    |L| is the composition of entrywise absolute values, for entries of x up to 2^500 or so that overflow nowhere;
    `adjoint` likewise with b and e_b; so do `kind="absolute"` for |L| itself. `kind="pattern"` holds 1 where an
    entry of |L| can be nonzero.
    """

    network: Network
    source: int
    end: int
    between: tuple[int, ...]
    linear_slopes: Mapping[int, Floats]
    columns: Floats | None = None
    rows: Floats | None = None
    exponent: int = 0
    _factors: dict[tuple[str, int], Factor] = field(default_factory=dict)

    @property
    def shapes(self) -> tuple[Shape, Shape]:
        """Shapes of what it takes and of what it returns."""
        return self.network.nodes[self.source].shape, self.network.nodes[self.end].shape

    def _factor(self, kind: str, index: int) -> Factor:
        key = kind, index
        if key not in self._factors:
            node = self.network.nodes[index]
            convert = {"signed": signed, "absolute": absolute, "pattern": pattern}[kind]
            if node.kind == "Elementwise":
                node = Node("MulConstant", node.inputs, node.shape, node.name, {"value": self.linear_slopes[index]})
            shapes = [self.network.nodes[i].shape for i in node.inputs]
            self._factors[key] = factor(node, shapes, convert)
        return self._factors[key]

    def _outer(self, kind: str, values: Floats | None, x: Floats) -> Floats:
        if values is None:
            return x
        return x * (pattern(values) if kind == "pattern" else values)

    def _start(self, kind: str, x: Floats) -> Floats:
        return x if kind == "pattern" else np.ldexp(x, -self.exponent)

    def apply(self, x: Floats, kind: str = "signed", offset: bool = False) -> Floats:
        """`(B, *input shape) -> (B, *output shape)`. With `offset`, x is an error already made (not scaled) and every
        node adds what its underflow may lose.
        """
        with np.errstate(all="ignore"):
            first = x if offset else self._start(kind, x)
            values = {self.source: self._outer(kind, self.columns, first) + (TINY if offset else 0.0)}
            last = {i: index for index in self.between for i in self.network.nodes[index].inputs}
            for index in self.between:
                inputs = self.network.nodes[index].inputs
                value = self._factor(kind, index).apply([values.get(i) for i in inputs])
                if offset:
                    value = 2 * value + self._factor(kind, index).terms * TINY
                values[index] = np.sign(value) if kind == "pattern" else value
                for i in set(inputs):
                    if last[i] == index and i != self.end:
                        values.pop(i, None)
            return finite(self._outer(kind, self.rows, values[self.end]), "the image of a vector")

    def adjoint(self, y: Floats, kind: str = "signed", offset: bool = False) -> Floats:
        """`(B, *output shape) -> (B, *input shape)`: the transpose."""
        with np.errstate(all="ignore"):
            first = y if offset else self._start(kind, y)
            pending = {self.end: self._outer(kind, self.rows, first) + (TINY if offset else 0.0)}
            for index in reversed(self.between):
                parts = self._factor(kind, index).adjoint(pending.pop(index))
                for i, part in zip(self.network.nodes[index].inputs, parts, strict=True):
                    if i == self.source or i in self.between_set:
                        if offset:
                            part = 2 * part + self._factor(kind, index).terms * TINY
                        total = pending[i] + part if i in pending else part
                        pending[i] = np.sign(total) if kind == "pattern" else total
            return finite(self._outer(kind, self.columns, pending[self.source]), "the image of a vector")

    @property
    def between_set(self) -> frozenset[int]:
        """The nodes between, as a set."""
        return frozenset(self.between)

    def forward(self) -> tuple[int, float]:
        """Roundings on the longest way, and the bound of what underflow loses: e -> 2 |A| e + m TINY at each node,
        the 2 being far above `1 + gamma`.
        """
        count = {self.source: 2}
        for index in self.between:
            before = [count[i] for i in self.network.nodes[index].inputs if i in count]
            count[index] = max(before) + self._factor("signed", index).forward
        ones = np.full((1, *self.shapes[0]), TINY)
        offset = float(2 * self.apply(ones, "absolute", offset=True).max() + TINY)
        return count[self.end] + 2, offset

    def backward(self) -> tuple[int, float]:
        """The same of the adjoint; a node that several nodes read adds their contributions up."""
        count = {self.end: 2}
        readers: dict[int, int] = {}
        for index in reversed(self.between):
            roundings = count[index] + self._factor("signed", index).backward
            for i in self.network.nodes[index].inputs:
                if i == self.source or i in self.between_set:
                    readers[i] = readers.get(i, 0) + 1
                    count[i] = max(count.get(i, 0), roundings)
            for i in self.network.nodes[index].inputs:
                if i in count and i != self.source and readers[i] > 1:
                    count[i] += 1
        ones = np.full((1, *self.shapes[1]), TINY)
        offset = float(2 * self.adjoint(ones, "absolute", offset=True).max() + TINY)
        return count[self.source] + readers.get(self.source, 0) + 2, offset

    def sums(self) -> tuple[float, float]:
        """Upper bounds of the largest column sum and of the largest row sum of |L|; exactly 0 if its pattern is."""
        columns = self.adjoint(np.ones((1, *self.shapes[1])), "pattern")
        if not columns.any():
            return 0.0, 0.0
        found = []
        for (k, offset), call, shape in (
            (self.backward(), self.adjoint, self.shapes[1]),
            (self.forward(), self.apply, self.shapes[0]),
        ):
            g = gamma(k)
            if g > 0.01:
                raise Rejected(f"too many roundings ({k}) on one way through a segment")
            value = float(call(np.ones((1, *shape)), "absolute").max())
            found.append((value + offset) * (1 + 2 * g) * (1 + 1e-15))
        return found[0], found[1]


def build(network: Network, slopes: Slopes, source: int, target: int) -> Operator:
    """The operator of the segment from node `source` to node `target`.

    Raises:
        Rejected: the segment is not affine, or a slope is missing.
    """
    if not 0 <= source < target:
        raise Rejected(f"expected a segment to start before node {target}, got {source}")
    node = network.nodes[target]
    start, rows = target, None
    if node.kind == "Elementwise" and not is_linear(slopes, target):
        if target not in slopes:
            raise Rejected(f"expected slopes of node {target} ({node['function']} {node.name!r}), there are none")
        rows = np.maximum(np.abs(slopes[target][0]), np.abs(slopes[target][1]))
        start = node.inputs[0]
    between = walk(network, slopes, start, source)
    if start != source and not between:
        raise Rejected(f"the segment to node {target} does not reach node {source}")
    reached = {i for index in between for i in network.nodes[index].inputs} | {start}
    if source not in reached:
        raise Rejected(f"the segment to node {target} does not reach node {source}")
    columns = None
    if network.nodes[source].kind == "Elementwise" and source in slopes:
        dead = (slopes[source][0] == 0) & (slopes[source][1] == 0)
        columns = (~dead).astype(np.float64) if dead.any() else None
    linear = {i: slopes[i][0] for i in between if network.nodes[i].kind == "Elementwise"}
    return Operator(network, source, start, tuple(between), linear, columns, rows)
