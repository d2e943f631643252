"""The linear part of every affine kind of node: how to apply it and its transpose, and with how many roundings.

`Factor.apply` and `Factor.adjoint` act on batches, arrays of shape `(B, *shape)`. With `k = forward` (`backward`) and
`m = terms`, the computed value differs from the exact one by at most `gamma_k |A| |x| + m 2^-1000` entrywise, in any
order of summation: each product-sum of n terms adds n roundings, each computed coefficient its own. Products with 0
and sums with 0 are exact, so padding does not count.

The coefficients go through `convert` first: the identity, the absolute value (for |A|) or "is it nonzero" (for the
pattern). `apply` also works on object arrays of balls, where nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flint import arb_mat
from numpy.typing import NDArray

from lipcheck.errors import Rejected
from lipcheck.nodes import Node
from lipcheck.rounding import Floats
from lipcheck.shapes import Shape

Array = Any
"""A float64 array, or an object array of balls."""
Convert = Callable[[Floats], Array]


@dataclass(frozen=True)
class Factor:
    """The linear part of one node; see the module. An input that is None is zero."""

    apply: Callable[[Sequence[Array | None]], Array]
    adjoint: Callable[[Array], list[Array]]
    forward: int
    backward: int
    terms: int


def signed(coefficients: Floats) -> Array:
    """The coefficients themselves."""
    return coefficients


def absolute(coefficients: Floats) -> Array:
    """Their absolute values."""
    return np.abs(coefficients)


def pattern(coefficients: Floats) -> Array:
    """1 where they are not 0."""
    return (coefficients != 0).astype(np.float64)


def factor(node: Node, inputs: Sequence[Shape], convert: Convert = signed) -> Factor:
    """The linear part of an affine node.

    Raises:
        Rejected: its coefficients leave the range of double precision.
    """
    return _FACTORS[node.kind](node, inputs, convert)


def _single(apply: Callable[[Array], Array], adjoint: Callable[[Array], Array], forward: int, backward: int,
            terms: int) -> Factor:  # fmt: skip
    def first(xs: Sequence[Array | None]) -> Array:
        x = xs[0]
        if x is None:
            raise Rejected("internal: a node without a value was used")
        return apply(x)

    return Factor(first, lambda y: [adjoint(y)], forward, backward, terms)


def matmul(a: Array, b: Array) -> Array:
    """`numpy.matmul`; matrices of balls are multiplied by their own library, a hundred times faster than entry by entry."""
    if a.dtype != object and b.dtype != object:
        return np.matmul(a, b)
    leading = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    left = np.broadcast_to(a, (*leading, m, k)).reshape(-1, m * k)
    right = np.broadcast_to(b, (*leading, k, n)).reshape(-1, k * n)
    result = np.empty((len(left), m * n), dtype=object)
    for i, (x, y) in enumerate(zip(left, right, strict=True)):
        result[i] = (arb_mat(m, k, x.tolist()) * arb_mat(k, n, y.tolist())).entries()
    return result.reshape(*leading, m, n)


def _like(shape: tuple[int, ...], x: Array) -> Array:
    return np.zeros(shape, dtype=x.dtype)


# -------------------------------------------------------------------------------------------------- with weights


def _dense(node: Node, inputs: Sequence[Shape], convert: Convert) -> Factor:
    weight, axis = convert(node["weight"]), node["axis"] + 1

    def along(matrix: Array, x: Array) -> Array:
        return np.moveaxis(matmul(np.moveaxis(x, axis, -1), matrix), -1, axis)

    m, n = weight.shape
    return _single(lambda x: along(weight.T, x), lambda y: along(weight, y), n, m, m + n)


@dataclass(frozen=True)
class _Correlation:
    """`y[o, p] = sum_{c, t} w[o, c, t] x[c, stride p + dilation t - low]` between fixed shapes, zeros outside."""

    weight: Array
    x: Shape
    y: Shape
    stride: Shape
    dilation: Shape
    low: Shape
    groups: int

    def _full(self) -> Shape:
        kernel = self.weight.shape[2:]
        rows = zip(self.x[2:], self.y[2:], kernel, self.stride, self.dilation, self.low, strict=True)
        return tuple(max(low + n, s * (m - 1) + d * (k - 1) + 1) for n, m, k, s, d, low in rows)

    def _inside(self) -> tuple[slice, ...]:
        return (slice(None),) * 2 + tuple(slice(p, p + n) for p, n in zip(self.low, self.x[2:], strict=True))

    def _taps(self) -> list[tuple[Array, tuple[slice, ...]]]:
        """For each tap its matrices (groups, O/g, C/g) and the part of the padded image that meets it."""
        out, channels, *kernel = self.weight.shape
        blocks = self.weight.reshape(self.groups, out // self.groups, channels, *kernel)
        found = []
        for tap in np.ndindex(*kernel):
            rows = zip(tap, self.stride, self.dilation, self.y[2:], strict=True)
            where = tuple(slice(d * t, d * t + s * (m - 1) + 1, s) for t, s, d, m in rows)
            matrices = blocks[(slice(None), slice(None), slice(None), *tap)]
            if (matrices != 0).any():
                found.append((matrices, (slice(None), slice(None), *where)))
        return found

    def apply(self, x: Array) -> Array:
        batch, groups = x.shape[0] * x.shape[1], self.groups
        full = _like((batch, self.x[1], *self._full()), x)
        full[self._inside()] = x.reshape(batch, *self.x[1:])
        places = int(np.prod(self.y[2:]))
        total = _like((batch, groups, self.y[1] // groups, places), x)
        for matrices, where in self._taps():
            total = total + matmul(matrices, full[where].reshape(batch, groups, self.x[1] // groups, places))
        return total.reshape(x.shape[0], *self.y)

    def adjoint(self, y: Array) -> Array:
        batch, groups = y.shape[0] * y.shape[1], self.groups
        flat = y.reshape(batch, groups, self.y[1] // groups, -1)
        full = _like((batch, self.x[1], *self._full()), y)
        for matrices, where in self._taps():
            part = matmul(matrices.transpose(0, 2, 1), flat)
            full[where] = full[where] + part.reshape(batch, self.x[1], *self.y[2:])
        return np.ascontiguousarray(full[self._inside()]).reshape(y.shape[0], *self.x)


def _correlation(node: Node, x: Shape, y: Shape, convert: Convert) -> tuple[_Correlation, int, int, int]:
    """The map with the rounding counts (of itself, of its adjoint) and the number of terms: a tap's matrix product
    has one rounding a channel, and the taps are added up.
    """
    weight = convert(node["weight"])
    low = tuple(p for p, _ in node["padding"])
    map_ = _Correlation(weight, x, y, node["stride"], node["dilation"], low, node["groups"])
    taps = int(np.prod(weight.shape[2:]))
    channels, out = weight.shape[1], weight.shape[0] // node["groups"]
    return map_, channels + taps, out + taps, (channels + out) * taps


def _conv(node: Node, inputs: Sequence[Shape], convert: Convert) -> Factor:
    map_, forward, backward, terms = _correlation(node, inputs[0], node.shape, convert)
    return _single(map_.apply, map_.adjoint, forward, backward, terms)


def _conv_transpose(node: Node, inputs: Sequence[Shape], convert: Convert) -> Factor:
    map_, forward, backward, terms = _correlation(node, node.shape, inputs[0], convert)
    return _single(map_.adjoint, map_.apply, backward, forward, terms)


def _scale(value: Array, forward: int) -> Factor:
    return _single(lambda x: x * value, lambda y: y * value, forward, forward, forward + 1)


def batch_norm_scale(node: Node) -> Floats:
    """`weight/sqrt(variance + eps)`, within a relative `gamma_4`: sum, root and quotient, none of them underflowing.

    Raises:
        Rejected: a coefficient is too large, or too small to be known to that accuracy.
    """
    with np.errstate(all="ignore"):
        scale = node["weight"] / np.sqrt(node["variance"] + node["eps"])
    if not np.isfinite(scale).all() or (np.abs(scale[node["weight"] != 0]) < 2.0**-1000).any():
        raise Rejected(f"the scale of {node.name!r} leaves the range of double precision")
    return np.asarray(scale, dtype=np.float64)


def _batch_norm(node: Node, inputs: Sequence[Shape], convert: Convert) -> Factor:
    shape = [1] * len(node.shape)
    shape[node["axis"]] = -1
    return _scale(convert(batch_norm_scale(node)).reshape(shape), 5)


def _mul_constant(node: Node, inputs: Sequence[Shape], convert: Convert) -> Factor:
    return _scale(convert(node["value"]), 1)


def _div_constant(node: Node, inputs: Sequence[Shape], convert: Convert) -> Factor:
    value = convert(node["value"])
    return _single(lambda x: x / value, lambda y: y / value, 1, 1, 2)


# --------------------------------------------------------------------------------------------- sums and averages


def _add(node: Node, inputs: Sequence[Shape], convert: Convert) -> Factor:
    def apply(xs: Sequence[Array | None]) -> Array:
        present = [x for x in xs if x is not None]
        total = present[0]
        for x in present[1:]:
            total = total + x
        return total

    return Factor(apply, lambda y: [y] * len(inputs), len(inputs) - 1, 0, 1)


def _sum(node: Node, inputs: Sequence[Shape], convert: Convert, mean: bool = False) -> Factor:
    axes, shape = node["axes"], inputs[0]
    kept = tuple(1 if a in axes else n for a, n in enumerate(shape))
    n = int(np.prod([shape[a] for a in axes]))
    divisor = n if mean else 1

    def apply(x: Array) -> Array:
        return x.sum(axis=tuple(a + 1 for a in axes)).reshape(x.shape[0], *node.shape) / divisor

    def adjoint(y: Array) -> Array:
        return np.broadcast_to((y / divisor).reshape(y.shape[0], *kept), (y.shape[0], *shape))

    return _single(apply, adjoint, n, 1, 2)


def _mean(node: Node, inputs: Sequence[Shape], convert: Convert) -> Factor:
    return _sum(node, inputs, convert, mean=True)


def _average_pool(node: Node, inputs: Sequence[Shape], convert: Convert) -> Factor:
    windows, first = node["windows"], len(inputs[0]) - len(node["windows"]) + 1
    members, divisor = [], np.ones((1,) * len(windows))
    for a, (n, rows) in enumerate(zip(inputs[0][first - 1 :], windows, strict=True)):
        place = np.arange(n)
        members.append(((place >= rows[:, :1]) & (place < rows[:, 1:2])).astype(np.float64))
        count = rows[:, 2].astype(np.float64)  # products of counts stay below 2^53: exact
        divisor = divisor * count.reshape([-1 if b == a else 1 for b in range(len(windows))])

    def along(x: Array, transposed: bool) -> Array:
        for a, member in enumerate(members):
            matrix = member if transposed else member.T
            x = np.moveaxis(matmul(np.moveaxis(x, first + a, -1), _cast(matrix, x)), -1, first + a)
        return x

    forward = sum(int(m.sum(axis=1).max()) for m in members) + 1
    backward = sum(int(m.sum(axis=0).max()) for m in members) + 1
    return _single(
        lambda x: along(x, False) / divisor, lambda y: along(y / divisor, True), forward, backward, 2 * backward
    )


def _cast(matrix: Array, x: Array) -> Array:
    return matrix.astype(int).astype(object) if x.dtype == object else matrix


# ------------------------------------------------------------------------------------------------ rearrangements


def _reshape(node: Node, inputs: Sequence[Shape], convert: Convert) -> Factor:
    shape = inputs[0]
    return _single(lambda x: x.reshape(x.shape[0], *node.shape), lambda y: y.reshape(y.shape[0], *shape), 0, 0, 0)


def _transpose(node: Node, inputs: Sequence[Shape], convert: Convert) -> Factor:
    order = (0, *(p + 1 for p in node["permutation"]))
    back = tuple(int(i) for i in np.argsort(order))
    return _single(lambda x: x.transpose(order), lambda y: y.transpose(back), 0, 0, 0)


def _slice(node: Node, inputs: Sequence[Shape], convert: Convert) -> Factor:
    where = (slice(None), *(slice(*r) for r in node["ranges"]))

    def adjoint(y: Array) -> Array:
        x = _like((y.shape[0], *inputs[0]), y)
        x[where] = y
        return x

    return _single(lambda x: x[where], adjoint, 0, 0, 0)


def _concat(node: Node, inputs: Sequence[Shape], convert: Convert) -> Factor:
    axis = node["axis"] + 1
    ends = np.cumsum([shape[axis - 1] for shape in inputs])

    def apply(xs: Sequence[Array | None]) -> Array:
        like = next(x for x in xs if x is not None)
        parts = [_like((like.shape[0], *s), like) if x is None else x for x, s in zip(xs, inputs, strict=True)]
        return np.concatenate(parts, axis=axis)

    return Factor(apply, lambda y: np.split(y, ends[:-1], axis=axis), 0, 0, 0)


def _copies(
    axis: int, indices: NDArray[np.int64], size: int
) -> tuple[Callable[[Array], Array], Callable[[Array], Array], int]:
    """`take` along an axis, its adjoint, and the adjoint's roundings: one fewer than copies of one entry."""
    order = np.argsort(indices, kind="stable")
    targets, starts, counts = np.unique(indices[order], return_index=True, return_counts=True)

    def adjoint(y: Array) -> Array:
        moved = np.moveaxis(y, axis, 0)
        x = _like((size, *moved.shape[1:]), y)
        if len(indices):
            x[targets] = np.add.reduceat(moved[order], starts, axis=0)
        return np.moveaxis(x, 0, axis)

    return lambda x: np.take(x, indices, axis=axis), adjoint, int(counts.max(initial=1))


def _gather(node: Node, inputs: Sequence[Shape], convert: Convert) -> Factor:
    axis = node["axis"]
    apply, adjoint, copies = _copies(axis + 1, node["indices"], inputs[0][axis])
    return _single(apply, adjoint, 0, copies, 1)


def _pad(node: Node, inputs: Sequence[Shape], convert: Convert) -> Factor:
    shape, pads = inputs[0], node["pads"]
    if node["mode"] == "constant":
        inside = (slice(None), *(slice(low, low + n) for (low, _), n in zip(pads, shape, strict=True)))

        def apply(x: Array) -> Array:
            y = _like((x.shape[0], *node.shape), x)
            y[inside] = x
            return y

        return _single(apply, lambda y: y[inside], 0, 0, 0)
    steps = []
    for axis, (n, pad) in enumerate(zip(shape, pads, strict=True)):
        if pad != (0, 0):
            steps.append(_copies(axis + 1, np.pad(np.arange(n), pad, mode=node["mode"]), n))

    def forward(x: Array) -> Array:
        for step in steps:
            x = step[0](x)
        return x

    def backward(y: Array) -> Array:
        for step in reversed(steps):
            y = step[1](y)
        return y

    return _single(forward, backward, 0, sum(step[2] for step in steps), 1)


def _expand(node: Node, inputs: Sequence[Shape], convert: Convert) -> Factor:
    shape = (1,) * (len(node.shape) - len(inputs[0])) + tuple(inputs[0])
    axes = tuple(a + 1 for a, (n, m) in enumerate(zip(shape, node.shape, strict=True)) if n != m)
    copies = node.size // int(np.prod(shape))

    def apply(x: Array) -> Array:
        return np.broadcast_to(x.reshape(x.shape[0], *shape), (x.shape[0], *node.shape))

    return _single(apply, lambda y: y.sum(axis=axes).reshape(y.shape[0], *inputs[0]), 0, copies, 1)


_FACTORS: dict[str, Callable[[Node, Sequence[Shape], Convert], Factor]] = {
    "Dense": _dense, "Conv": _conv, "ConvTranspose": _conv_transpose, "BatchNorm": _batch_norm,
    "MulConstant": _mul_constant, "DivConstant": _div_constant, "Add": _add, "Sum": _sum, "Mean": _mean,
    "AveragePool": _average_pool, "Reshape": _reshape, "Transpose": _transpose, "Slice": _slice, "Concat": _concat,
    "Gather": _gather, "Pad": _pad, "Expand": _expand,
    "AddConstant": lambda node, inputs, convert: _single(lambda x: x, lambda y: y, 0, 0, 0),
}  # fmt: skip
