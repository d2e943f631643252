"""Boxes that hold the values of nodes: interval arithmetic in double precision, rounded outward, never infinite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lipcheck import functions, jumps
from lipcheck.errors import Rejected
from lipcheck.linear import absolute, batch_norm_scale, factor
from lipcheck.nodes import Network, Node
from lipcheck.reductions import REDUCTIONS, separable_max
from lipcheck.rounding import TINY, Floats, U, downs, finite, gamma, ups


@dataclass(frozen=True)
class Box:
    """`lo <= value <= hi` entrywise; finite, of the node's shape."""

    lo: Floats
    hi: Floats

    @property
    def magnitude(self) -> Floats:
        """The largest absolute value, entrywise."""
        return np.maximum(np.abs(self.lo), np.abs(self.hi))

    @property
    def smallest(self) -> Floats:
        """The smallest absolute value, entrywise."""
        return np.maximum(np.maximum(self.lo, -self.hi), 0.0)


class Boxes:
    """Boxes of the nodes of a network over a box of its input, each computed when first asked for."""

    def __init__(self, network: Network, region: Box) -> None:
        self._network = network
        shape = network.nodes[0].shape
        self._known: dict[int, Box] = {0: Box(region.lo.reshape(shape), region.hi.reshape(shape))}

    def __getitem__(self, index: int) -> Box:
        """The box of a node.

        Raises:
            Rejected: overflow, or an operation that is not defined on its operand's box; the message names the node.
        """
        for ancestor in sorted(self._network.ancestors(index) - set(self._known)):
            node = self._network.nodes[ancestor]
            self._known[ancestor] = image(node, [self._known[i] for i in node.inputs])
        return self._known[index]

    def narrow(self, index: int, box: Box) -> None:
        """Put a box that lies inside the node's in its place, before any later node is asked for."""
        self._known[index] = box


def image(node: Node, inputs: Sequence[Box]) -> Box:
    """A box that contains the node's value whenever its inputs lie in theirs.

    Raises:
        Rejected: see `Boxes`.
    """
    try:
        with np.errstate(all="ignore"):
            lo, hi = _IMAGES[node.kind](node, inputs)
        finite(lo, "a lower end")
        finite(hi, "an upper end")
    except Rejected as error:
        raise Rejected(f"the values of {node.kind} {node.name!r} cannot be enclosed: {error}") from None
    if lo.shape != node.shape or hi.shape != node.shape or not (lo <= hi).all():
        raise Rejected(f"internal: the box of {node.kind} {node.name!r} is not one")
    return Box(np.asarray(lo, dtype=np.float64), np.asarray(hi, dtype=np.float64))


Range = tuple[Floats, Floats]


def _share(part: float, x: Floats) -> Floats:
    """At least `part |x|`, about twice that; it is 0 for x = 0 only, a tiny product must not vanish: what it is
    multiplied by may be huge.
    """
    return np.where(x == 0, 0.0, ups(2 * part * np.abs(x)))


def _affine(node: Node, inputs: Sequence[Box]) -> Range:
    """Centre and radius: `|A x - fl(A c)| <= |A| r + gamma_k |A| |c| + m TINY`, the right side with its own
    k roundings (factor 1 + 2 gamma_k) and those of its assembly.
    """
    shapes = [box.lo.shape for box in inputs]
    map_, size = factor(node, shapes), factor(node, shapes, absolute)
    k = max(map_.forward, 1)
    centres = [(box.lo / 2 + box.hi / 2)[None] for box in inputs]
    radii = [
        ups(np.maximum(ups(box.hi - c[0]), ups(c[0] - box.lo)))[None] * ((box.lo != c[0]) | (box.hi != c[0]))
        for box, c in zip(inputs, centres, strict=True)
    ]
    widths = [r + _share(gamma(k), c) for r, c in zip(radii, centres, strict=True)]
    radius = size.apply(list(widths))[0] * (1 + 4 * gamma(k) + 8 * U) + 4 * (map_.terms + 2) * TINY
    value = map_.apply(list(centres))[0]
    bias = node.fields.get("bias")
    lo, hi = downs(value - radius), ups(value + radius)
    if bias is None:
        return lo, hi
    axis = node.fields.get("axis", 1)
    bias = bias.reshape([-1 if a == axis else 1 for a in range(len(node.shape))])
    return downs(lo + bias), ups(hi + bias)


def _exact(node: Node, inputs: Sequence[Box]) -> Range:
    """Rearrangements: no arithmetic at all."""
    map_ = factor(node, [box.lo.shape for box in inputs])
    return map_.apply([box.lo[None] for box in inputs])[0], map_.apply([box.hi[None] for box in inputs])[0]


def _pad(node: Node, inputs: Sequence[Box]) -> Range:
    lo, hi = _exact(node, inputs)
    if node["mode"] != "constant":
        return lo, hi
    outside = np.pad(np.zeros(inputs[0].lo.shape, bool), node["pads"], constant_values=True)
    return np.where(outside, node["value"], lo), np.where(outside, node["value"], hi)


def product(a: Range, b: Range) -> Range:
    """The interval product; exact where a factor is 0."""
    ends = [x * y for x in a for y in b]
    zero = ((a[0] == 0) & (a[1] == 0)) | ((b[0] == 0) & (b[1] == 0))
    lo, hi = np.minimum.reduce(ends), np.maximum.reduce(ends)
    return np.where(zero, 0.0, downs(lo)), np.where(zero, 0.0, ups(hi))


def quotient(a: Range, b: Range) -> Range:
    """The interval quotient, b not containing 0."""
    if not ((b[0] > 0) | (b[1] < 0)).all():
        raise Rejected("the divisor may be 0")
    ends = [x / y for x in a for y in b]
    return downs(np.minimum.reduce(ends)), ups(np.maximum.reduce(ends))


def _batch_norm(node: Node, inputs: Sequence[Box]) -> Range:
    shape = [-1 if a == node["axis"] else 1 for a in range(len(node.shape))]
    mean, scale, bias = (v.reshape(shape) for v in (node["mean"], batch_norm_scale(node), node["bias"]))
    slack = np.abs(scale) * (2 * gamma(5))
    centred = downs(inputs[0].lo - mean), ups(inputs[0].hi - mean)
    lo, hi = product(centred, (downs(scale - slack) * (scale != 0), ups(scale + slack) * (scale != 0)))
    return downs(lo + bias), ups(hi + bias)


def _add(node: Node, inputs: Sequence[Box]) -> Range:
    lo, hi = inputs[0].lo, inputs[0].hi
    for box in inputs[1:]:
        lo, hi = downs(lo + box.lo), ups(hi + box.hi)
    return lo, hi


def _matmul(node: Node, inputs: Sequence[Box]) -> Range:
    """`A B` with `A = c1 +- r1`, `B = c2 +- r2`: `|AB - c1 c2| <= |c1| r2 + r1 (|c2| + r2)`, and n roundings each."""
    (a, b), n = inputs, inputs[0].lo.shape[-1]
    c1, c2 = a.lo / 2 + a.hi / 2, b.lo / 2 + b.hi / 2
    r1, r2 = (
        ups(np.maximum(ups(x.hi - c), ups(c - x.lo))) * ((x.lo != c) | (x.hi != c)) for x, c in ((a, c1), (b, c2))
    )
    wide = ups(np.abs(c2) + r2)
    radius = np.matmul(np.abs(c1), r2 + _share(gamma(n + 1), c2)) + np.matmul(r1, wide)
    radius = radius * (1 + 4 * gamma(n + 8)) + 8 * (n + 2) * TINY
    value = np.matmul(c1, c2)
    return downs(value - radius), ups(value + radius)


def _maximum(node: Node, inputs: Sequence[Box]) -> Range:
    return np.maximum.reduce([box.lo for box in inputs]), np.maximum.reduce([box.hi for box in inputs])


def _value(node: Node) -> Range:
    return node["value"], node["value"]


def _one(function: Callable[[Node, Floats, Floats], Range]) -> Callable[[Node, Sequence[Box]], Range]:
    return lambda node, inputs: function(node, inputs[0].lo, inputs[0].hi)


def _sort(node: Node, lo: Floats, hi: Floats) -> Range:
    """The k-th smallest entry is monotone in every entry."""
    lo, hi = np.sort(lo, axis=node["axis"]), np.sort(hi, axis=node["axis"])
    return (np.flip(lo, node["axis"]), np.flip(hi, node["axis"])) if node["descending"] else (lo, hi)


_IMAGES: Mapping[str, Callable[[Node, Sequence[Box]], Range]] = {
    "Constant": lambda node, inputs: _value(node),
    **dict.fromkeys(("Dense", "Conv", "ConvTranspose", "Sum", "Mean", "AveragePool"), _affine),
    **dict.fromkeys(("Reshape", "Transpose", "Slice", "Gather", "Expand", "Concat"), _exact),
    "Pad": _pad, "BatchNorm": _batch_norm, "Add": _add, "MatMul": _matmul, "Maximum": _maximum,
    "AddConstant": lambda n, x: (downs(x[0].lo + n["value"]), ups(x[0].hi + n["value"])),
    "MulConstant": lambda n, x: product((x[0].lo, x[0].hi), _value(n)),
    "DivConstant": lambda n, x: quotient((x[0].lo, x[0].hi), _value(n)),
    "Multiply": lambda n, x: product((x[0].lo, x[0].hi), (x[1].lo, x[1].hi)),
    "Divide": lambda n, x: quotient((x[0].lo, x[0].hi), (x[1].lo, x[1].hi)),
    "Elementwise": _one(functions.values), "Sort": _one(_sort),
    "MaxPool": lambda n, x: (separable_max(n, x[0].lo), separable_max(n, x[0].hi)),
    "Discontinuous": lambda n, x: jumps.image(n, [(b.lo, b.hi) for b in x]),
    **{kind: _one(rule) for kind, rule in REDUCTIONS.items()},
}  # fmt: skip
