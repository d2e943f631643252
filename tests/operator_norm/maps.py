"""Linear maps with explicit adjoints, and their matrices by slow loops that share nothing with them."""

from __future__ import annotations

import itertools
from fractions import Fraction

import flint
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lipscope.network.nodes import Conv
from lipscope.rules.linear_map import LinearMap
from lipscope.rules.questions import Roundings

PAIR = tuple[int, int]


def dense(weight: Tensor) -> LinearMap:
    """x -> W x."""
    m, n = weight.shape
    size = weight.abs()
    return LinearMap(
        (n,),
        (m,),
        lambda x: x @ weight.T,
        lambda y: y @ weight,
        lambda x: x @ size.T,
        lambda y: y @ size,
        Roundings(n, m),
    )


def product(left: Tensor, right: Tensor) -> LinearMap:
    """x -> B (A x)."""
    b, a = dense(left), dense(right)
    count = left.shape[1] + right.shape[1]
    return LinearMap(
        a.input_shape,
        b.output_shape,
        lambda x: b.apply(a.apply(x)),
        lambda y: a.adjoint(b.adjoint(y)),
        lambda x: b.absolute(a.absolute(x)),
        lambda y: a.absolute_adjoint(b.absolute_adjoint(y)),
        Roundings(count, left.shape[0] + right.shape[0]),
    )


def conv(
    weight: Tensor, size: PAIR, stride: PAIR = (1, 1), padding: PAIR = (0, 0), dilation: PAIR = (1, 1), groups: int = 1
) -> LinearMap:
    """A zero-padded convolution on `(1, C, *size)`."""
    outputs, inputs, *kernel = weight.shape
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    full = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    out = [(f - e) // s + 1 for f, e, s in zip(full, spans, stride, strict=True)]
    missing = [f - (m - 1) * s - e for f, m, s, e in zip(full, out, stride, spans, strict=True)]

    def forward(w: Tensor) -> object:
        return lambda x: F.conv2d(x.flatten(0, 1), w, None, stride, padding, dilation, groups)[:, None]

    def backward(w: Tensor) -> object:
        # output_padding has to be smaller than the stride or the dilation; the rest is cut off anyway, being zero.
        return lambda y: F.conv_transpose2d(y.flatten(0, 1), w, None, stride, padding, missing, groups, dilation)[
            :, None
        ]

    size_of = weight.abs()
    taps = kernel[0] * kernel[1]
    node = Conv(
        inputs=(0,),
        shape=(1, outputs, *out),
        weight=weight.numpy(),
        stride=stride,
        padding=tuple((p, p) for p in padding),
        dilation=dilation,
        groups=groups,
    )
    counts = Roundings(inputs * taps, outputs // groups * taps)
    shapes = (1, inputs * groups, *size), (1, outputs, *out)
    return LinearMap(*shapes, forward(weight), backward(weight), forward(size_of), backward(size_of), counts, node)


def padded_conv(weight: Tensor, size: PAIR, mode: str, padding: int, stride: int = 1) -> LinearMap:
    """Padding by copies of entries, then a convolution; adjoints by automatic differentiation."""
    outputs, inputs, *kernel = weight.shape
    pads = (padding,) * 4

    def forward(w: Tensor) -> object:
        return lambda x: F.conv2d(F.pad(x.flatten(0, 1), pads, mode=mode), w, None, stride)[:, None]

    def backward(w: Tensor) -> object:
        def pull(y: Tensor) -> Tensor:
            with torch.enable_grad():
                x = torch.zeros(len(y), 1, inputs, *size, dtype=torch.float64, requires_grad=True)
                (result,) = torch.autograd.grad(forward(w)(x), x, y)
            return result

        return pull

    out = [(n + 2 * padding - k) // stride + 1 for n, k in zip(size, kernel, strict=True)]
    taps = kernel[0] * kernel[1]
    size_of = weight.abs()
    counts = Roundings(inputs * taps, outputs * taps + (2 * padding + 1) ** 2 + 4)
    shapes = (1, inputs, *size), (1, outputs, *out)
    return LinearMap(*shapes, forward(weight), backward(weight), forward(size_of), backward(size_of), counts)


def conv_matrix(weight: Tensor, size: PAIR, stride: PAIR, padding: PAIR, dilation: PAIR, groups: int) -> np.ndarray:
    """The matrix of `conv` by its definition, one coefficient at a time."""
    w = weight.numpy()
    outputs, inputs, kh, kw = w.shape
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, (kh, kw), stride, strict=True)
    ]
    result = np.zeros((outputs, *out, inputs * groups, *size))
    for o, i, j in itertools.product(range(outputs), range(out[0]), range(out[1])):
        first = o // (outputs // groups) * inputs
        for c, a, b in itertools.product(range(inputs), range(kh), range(kw)):
            y, x = i * stride[0] + a * dilation[0] - padding[0], j * stride[1] + b * dilation[1] - padding[1]
            if 0 <= y < size[0] and 0 <= x < size[1]:
                result[o, i, j, first + c, y, x] += w[o, c, a, b]
    return result.reshape(outputs * out[0] * out[1], -1)


def impulse_matrix(linear_map: LinearMap) -> np.ndarray:
    """The matrix of a map by its impulse responses."""
    eye = torch.eye(linear_map.input_size, dtype=torch.float64).reshape(-1, *linear_map.input_shape)
    return linear_map.apply(eye).detach().reshape(linear_map.input_size, -1).numpy().T


def spectral_norm(matrix: np.ndarray) -> tuple[float, float]:
    """An enclosure of the l2 norm: the value of LAPACK's SVD is accurate to a modest multiple of the unit roundoff."""
    value = float(np.linalg.svd(matrix, compute_uv=False)[0]) if matrix.size else 0.0
    return value * (1 - 1e-12), value * (1 + 1e-12)


def is_semidefinite(matrix: list[list[Fraction]]) -> bool:
    """Whether a symmetric rational matrix is positive semidefinite: exact elimination with diagonal pivots."""
    rows = [[flint.fmpq(x.numerator, x.denominator) for x in row] for row in matrix]
    left = list(range(len(rows)))
    while left:
        if any(rows[i][i] < 0 for i in left):
            return False
        pivot = next((i for i in left if rows[i][i] > 0), None)
        if pivot is None:
            return all(rows[i][j] == 0 for i in left for j in left)
        left.remove(pivot)
        for i in left:
            factor = rows[i][pivot] / rows[pivot][pivot]
            for j in left:
                rows[i][j] -= factor * rows[pivot][j]
    return True


def exceeds(value: float, matrix: np.ndarray) -> bool:
    """Whether `value >= |matrix|_2` in exact arithmetic."""
    a = [[Fraction(float(x)) for x in row] for row in (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T)]
    square = Fraction(value) ** 2
    return is_semidefinite(
        [
            [(square if i == j else 0) - sum(x * y for x, y in zip(r, s, strict=True)) for j, s in enumerate(a)]
            for i, r in enumerate(a)
        ]
    )
