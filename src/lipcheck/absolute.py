"""The rule `absolute`: a composition bounded by the absolute values of its factors, entry by entry.

linf, forward from the start a: numbers s >= 0 with `|v_i(x) - v_i(y)| <= s_i |a(x) - a(y)|_inf`; 1 at a.
l1, backward from the end: numbers t >= 0 with `|end(x) - end(y)|_1 <= sum over the nodes reached of t . |v(x) - v(y)|`; 1 at the end.
l2: the end is `|P|` applied to the start's absolute difference, P the composition of |L| and largest slopes; for every x > 0
`|P|^2 <= max_i (P^T P x)_i/x_i` (Collatz, Wielandt: x is a positive eigenvector's upper test).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lipcheck.boxes import Boxes
from lipcheck.bundle import Bundle, keys
from lipcheck.errors import Rejected
from lipcheck.gains import gain, join
from lipcheck.linear import absolute, factor
from lipcheck.nodes import Network, Node
from lipcheck.reductions import separable_max
from lipcheck.rounding import TINY, Floats, finite, gamma, up, ups
from lipcheck.segments import Slopes


def prove_absolute(
    network: Network, slopes: Slopes, boxes: Boxes | None, source: int, target: int, norm: str, t: float,
    evidence: object, bundle: Bundle,
) -> None:  # fmt: skip
    """The map from node `source` to node `target` has constant at most t.

    Raises:
        Rejected: not proved.
    """
    stored = keys(evidence, {"kind", "vector"} if norm == "l2" else {"kind"}, "evidence absolute")
    if stored["kind"] != "absolute":
        raise Rejected("expected evidence of kind absolute")
    part = _Part(network, slopes, boxes, source, target)
    with np.errstate(all="ignore"):
        if norm == "linf":
            found = float(part.forward(np.ones(network.nodes[source].shape)).max())
        elif norm == "l1":
            found = float(part.backward(np.ones(network.nodes[target].shape)).max())
        else:
            found = part.perron(bundle.vector(stored["vector"], network.nodes[source].size, "the vector"))
    if not found <= t:
        raise Rejected(f"the composition of absolute values has norm {found!r}, above {t!r}")


class _Part:
    """The nodes between two others, every way back from the target ending at the source."""

    def __init__(self, network: Network, slopes: Slopes, boxes: Boxes | None, source: int, target: int) -> None:
        self.network, self.slopes, self.boxes = network, slopes, boxes
        self.source, self.target = source, target
        seen: set[int] = set()
        stack = [target]
        while stack:
            index = stack.pop()
            if index == source or index in seen or not network.dependent[index]:
                continue
            if index == 0:
                raise Rejected(f"a way back from node {target} passes by node {source}")
            seen.add(index)
            stack.extend(network.nodes[index].inputs)
        self.inside = sorted(seen)

    def _steepest(self, index: int) -> Floats:
        node = self.network.nodes[index]
        if index not in self.slopes:
            raise Rejected(f"expected slopes of node {index} ({node['function']} {node.name!r}), there are none")
        return np.asarray(np.maximum(np.abs(self.slopes[index][0]), np.abs(self.slopes[index][1])))

    def _shapes(self, node: Node) -> list[tuple[int, ...]]:
        return [self.network.nodes[i].shape for i in node.inputs]

    def forward(self, start: Floats) -> Floats:
        """The numbers s of the target."""
        found = {self.source: start}
        for index in self.inside:
            node = self.network.nodes[index]
            zero = [np.zeros(shape) for shape in self._shapes(node)]
            before = [found.get(i, z) for i, z in zip(node.inputs, zero, strict=True)]
            found[index] = finite(ups(self._after(index, node, before)) + TINY, "a product of absolute values")
        return found[self.target]

    def _after(self, index: int, node: Node, s: list[Floats]) -> Floats:
        if node.affine:
            map_ = factor(node, self._shapes(node), absolute)
            value = map_.apply([x[None] for x in s])[0]
            return np.asarray(value * (1 + 4 * gamma(map_.forward + 2)) + 4 * (map_.terms + 2) * TINY)
        match node.kind:
            case "Elementwise":
                return self._steepest(index) * s[0]
            case "MaxPool":
                return separable_max(node, s[0])
            case "Maximum":
                return np.asarray(np.maximum.reduce(s))
            case "ReduceMax" | "LogSumExp":
                return np.asarray(s[0].max(axis=tuple(node["axes"])).reshape(node.shape))
            case "Sort":
                return np.broadcast_to(s[0].max(axis=node["axis"], keepdims=True), node.shape)
        most = [float(x.max()) for x in s]
        return np.full(node.shape, self._gain(node, "linf", most))

    def backward(self, end: Floats) -> Floats:
        """The numbers t of the source."""
        found = {self.target: end}
        for index in reversed(self.inside):
            if index not in found:
                continue
            node = self.network.nodes[index]
            parts = self._before(index, node, found.pop(index))
            for i, part in zip(node.inputs, parts, strict=True):
                if i == self.source or self.network.dependent[i]:
                    total = ups(part) + (found[i] if i in found else 0.0)
                    found[i] = finite(ups(total) + TINY, "a product of absolute values")
        return found.get(self.source, np.zeros(self.network.nodes[self.source].shape))

    def _before(self, index: int, node: Node, t: Floats) -> list[Floats]:
        shapes = self._shapes(node)
        if node.affine:
            map_ = factor(node, shapes, absolute)
            room = 1 + 4 * gamma(map_.backward + 2)
            return [np.asarray(p)[0] * room + 4 * (map_.terms + 2) * TINY for p in map_.adjoint(t[None])]
        match node.kind:
            case "Elementwise":
                return [self._steepest(index) * t]
            case "Maximum":
                return [t] * len(shapes)
            case "ReduceMax" | "LogSumExp":
                kept = [1 if a in node["axes"] else n for a, n in enumerate(shapes[0])]
                return [np.broadcast_to(t.reshape(kept), shapes[0])]
            case "Sort":
                return [np.broadcast_to(t.max(axis=node["axis"], keepdims=True), node.shape)]
        most, units = float(t.max()), np.eye(len(shapes))
        return [np.full(s, up(most * self._gain(node, "l1", u.tolist()))) for s, u in zip(shapes, units, strict=True)]

    def _gain(self, node: Node, norm: str, constants: list[float]) -> float:
        """The node's constant if its inputs have these."""
        boxes = self.boxes
        if boxes is None:

            def box(i: int) -> Any:
                raise Rejected("this rule needs a bounded region, the claim is about everywhere")
        else:
            known = boxes

            def box(i: int) -> Any:
                return known[node.inputs[i]]

        if len(node.inputs) == 1:
            own = gain(node, self.network.nodes[node.inputs[0]].shape, norm, boxes is None, box)
            return up(own * constants[0])
        return join(node, norm, constants, box)

    def perron(self, vector: Floats) -> float:
        """The bound in l2 that a positive vector proves."""
        for index in self.inside:
            node = self.network.nodes[index]
            if not node.affine and node.kind != "Elementwise":
                raise Rejected(f"in l2 the rule is for affine nodes and functions, got {node.kind} {node.name!r}")
        if not (vector > 0).all():
            raise Rejected("expected a vector with entries above 0")
        x = vector.reshape(self.network.nodes[self.source].shape)
        square = float(ups(self.backward(self.forward(x)) / x).max())
        return up(math.sqrt(up(square)))
