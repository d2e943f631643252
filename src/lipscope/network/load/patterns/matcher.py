"""What pattern rules see: the graph rebuilt so far, with questions about how a value comes about."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from lipscope.network import nodes as n
from lipscope.network.load.lowering import Lowering, Ref
from lipscope.network.nodes import Array, Node, Shape

FLOAT32 = 2.0**-22
"""Relative distance within which a constant counts as the float32 rounding of another (a product of two roundings)."""

Polynomial = dict[int, float]


def near(value: float, target: float) -> bool:
    """Whether a constant is `target` as an exporter writes it."""
    return abs(value - target) <= FLOAT32 * abs(target)


def uniform(array: Array) -> float | None:
    """The one number of which all entries consist."""
    flat = np.reshape(array, -1)
    return float(flat[0]) if flat.size and (flat == flat[0]).all() else None


class Matcher:
    """A graph under construction.

    Attributes:
        lowering: where nodes are added.
        scaled: nodes that a rule added to scale a recognised function (factor, operand, whether the factor that undoes
            it is a float32 rounding): a scaling behind them is merged with them.
    """

    def __init__(self) -> None:
        self.lowering = Lowering()
        self.scaled: dict[int, tuple[float, int, bool]] = {}

    def node(self, index: int) -> Node:
        """The node of that index."""
        return self.lowering.nodes[index]

    def ref(self, index: int) -> Ref:
        """A handle for the vocabulary of `Lowering`."""
        return Ref(index, self.node(index).shape)

    def function(self, index: int, name: str) -> int | None:
        """The operand, if the node is that entrywise function."""
        node = self.node(index)
        return node.inputs[0] if isinstance(node, n.Elementwise) and node.function == name else None

    def factor(self, index: int) -> tuple[float, int] | None:
        """(c, x) where the node is c x for one number c."""
        node = self.node(index)
        if isinstance(node, n.MulConstant) and (c := uniform(node.value)) is not None:
            return c, node.inputs[0]
        if isinstance(node, n.DivConstant) and (c := uniform(node.value)) is not None:
            return 1.0 / c, node.inputs[0]
        return None

    def term(self, index: int) -> tuple[float, int] | None:
        """(c, x) where the node is x + c for one number c."""
        node = self.node(index)
        if isinstance(node, n.AddConstant) and (c := uniform(node.value)) is not None:
            return c, node.inputs[0]
        return None

    def affine(self, index: int) -> Iterator[tuple[float, float, int]]:
        """(a, b, x) such that the node is a x + b: itself first, then further and further back."""
        a, b = 1.0, 0.0
        yield a, b, index
        while True:
            if found := self.factor(index):
                a, index = a * found[0], found[1]
            elif found := self.term(index):
                b, index = b + a * found[0], found[1]
            else:
                return
            yield a, b, index

    def scaling(self, index: int) -> Iterator[tuple[float, int]]:
        """(a, x) such that the node is a x, one number a."""
        yield from ((a, x) for a, b, x in self.affine(index) if b == 0.0)

    def weighted(self, index: int) -> Iterator[tuple[NDArray[np.float64], int]]:
        """(w, x) such that the node is w x entrywise, w an array that broadcasts to its shape."""
        w: NDArray[np.float64] = np.ones(())
        yield w, index
        while isinstance(node := self.node(index), (n.MulConstant, n.DivConstant)):
            value = np.asarray(node.value, dtype=np.float64)
            w = w * value if isinstance(node, n.MulConstant) else w / value
            index = node.inputs[0]
            yield w, index

    def polynomial(self, index: int, x: int, depth: int = 12) -> Polynomial | None:
        """The coefficients by degree, if the node is a polynomial of degree at most 4 in the entries of x."""
        if index == x:
            return {1: 1.0}
        node = self.node(index)
        if depth == 0:
            return None
        if found := self.factor(index):
            inner = self.polynomial(found[1], x, depth - 1)
            return None if inner is None else {k: found[0] * c for k, c in inner.items()}
        if found := self.term(index):
            inner = self.polynomial(found[1], x, depth - 1)
            return None if inner is None else inner | {0: inner.get(0, 0.0) + found[0]}
        if isinstance(node, n.Add):
            return _sum([self.polynomial(i, x, depth - 1) for i in node.inputs])
        if isinstance(node, n.Multiply):
            a, b = (self.polynomial(i, x, depth - 1) for i in node.inputs)
            return _product(a, b)
        if isinstance(node, n.Elementwise) and node.function in ("square", "power"):
            inner = self.polynomial(node.inputs[0], x, depth - 1)
            result: Polynomial | None = {0: 1.0}
            for _ in range(int(node.argument.get("exponent", 2.0))):
                result = _product(result, inner)
            return result
        return None

    def is_polynomial(self, index: int, x: int, coefficients: Polynomial) -> bool:
        """Whether the node is that polynomial of x, up to the rounding of its coefficients."""
        found = self.polynomial(index, x)
        if found is None:
            return False
        actual = {k: c for k, c in found.items() if c != 0.0}
        return actual.keys() == coefficients.keys() and all(near(actual[k], c) for k, c in coefficients.items())

    def spread(self, index: int) -> tuple[int, Shape]:
        """What the node is before it is broadcast, and the shape that is broadcast; reshapes in between are passed."""
        node = self.node(index)
        if isinstance(node, n.Expand):
            index, shape = node.inputs[0], self.node(node.inputs[0]).shape
        else:
            shape = node.shape
        while isinstance(self.node(index), n.Reshape):
            index = self.node(index).inputs[0]
        return index, shape

    def same_over(self, index: int, kind: type[Node], x: int) -> tuple[int, ...] | None:
        """The axes, if the node is the reduction of kind `kind` of x, broadcast back along them."""
        inner, shape = self.spread(index)
        node = self.node(inner)
        if not isinstance(node, kind) or node.inputs != (x,):
            return None
        axes: tuple[int, ...] = node.axes  # type: ignore[attr-defined]
        kept = tuple(1 if a in axes else s for a, s in enumerate(self.node(x).shape))
        return axes if shape == kept else None

    def scale(self, x: Ref, factor: float, rounded: bool = False) -> Ref:
        """Factor x, nothing for a factor of 1 (within float32 rounding of 1, if it is known to be `rounded`)."""
        if factor == 1.0 or (rounded and near(factor, 1.0)):
            return x
        y = self.lowering.times(x, np.asarray(factor, dtype=np.float64))
        self.scaled[y.index] = (factor, x.index, rounded)
        return y


Rule = Callable[[Matcher, int], Ref | None]
"""Looks at the node that was added last; the tensor to use in its place, or None."""


def _sum(parts: list[Polynomial | None]) -> Polynomial | None:
    total: Polynomial = {}
    for part in parts:
        if part is None:
            return None
        for degree, c in part.items():
            total[degree] = total.get(degree, 0.0) + c
    return total


def _product(a: Polynomial | None, b: Polynomial | None) -> Polynomial | None:
    if a is None or b is None:
        return None
    result: Polynomial = {}
    for i, c in a.items():
        for j, d in b.items():
            result[i + j] = result.get(i + j, 0.0) + c * d
    return result if max(result) <= 4 else None
