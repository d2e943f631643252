"""Layers: linear ones, pooling, normalisation, interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from lipscope.claims.errors import ModelError
from lipscope.network import nodes as n
from lipscope.network.load.lowering.arithmetic import Arithmetic
from lipscope.network.load.lowering.rearranging import Operand, Ref, stored
from lipscope.network.load.windows import adaptive_windows, average_windows, max_windows
from lipscope.network.nodes import Array


class Lowering(Arithmetic):
    """Builds a graph from framework operations. Axes may be negative; they are resolved here."""

    # ------------------------------------------------------------------------------------------ linear layers

    def dense(self, x: Ref, weight: Array, bias: Array | None = None, axis: int = -1) -> Ref:
        """`weight (m, n)` applied along `axis`; a bias that is not one number per output is added separately."""
        axis %= len(x.shape)
        rows, columns = weight.shape
        if x.shape[axis] != columns:
            raise ModelError(
                f"expected {columns} features on axis {axis} at layer {self.layer!r}, got shape {list(x.shape)}"
            )
        shape = (*x.shape[:axis], rows, *x.shape[axis + 1 :])
        late = None
        if bias is not None and not (bias.ndim == 1 and bias.shape == (rows,)):
            flat = bias.reshape(-1)
            plain = bias.shape[-1:] in ((rows,), (1,)) and bias.size == bias.shape[-1] and axis == len(x.shape) - 1
            late, bias = (None, np.broadcast_to(flat, (rows,)).copy()) if plain else (bias, None)
        fields = {"weight": stored(weight), "bias": None if bias is None else stored(bias)}
        y = self.put(n.Dense, [x], shape, axis=axis, **fields)
        return y if late is None else self.plus(y, late)

    def matmul(self, a: Operand, b: Operand) -> Ref:
        """`numpy.matmul` of two operands, constants included."""
        if not isinstance(b, Ref) and isinstance(a, Ref):
            return self._times_matrix(a, np.asarray(b))
        if not isinstance(a, Ref) and isinstance(b, Ref):
            if len(b.shape) == 1:
                return self._times_matrix(b, np.swapaxes(a, -1, -2) if np.ndim(a) > 1 else a)
            if np.ndim(a) == 2:
                return self.dense(b, a, axis=-2)
            flipped = self.matmul(self._swapped(b), np.swapaxes(a, -1, -2) if np.ndim(a) > 1 else a)
            return self._swapped(flipped) if np.ndim(a) > 1 else flipped
        assert isinstance(a, Ref) and isinstance(b, Ref)
        left = self.reshape(a, (1, *a.shape)) if len(a.shape) == 1 else a
        right = self.reshape(b, (*b.shape, 1)) if len(b.shape) == 1 else b
        lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        left, right = self.expand(left, (*lead, *left.shape[-2:])), self.expand(right, (*lead, *right.shape[-2:]))
        y = self.put(n.MatMul, [left, right], (*lead, left.shape[-2], right.shape[-1]))
        rows = () if len(a.shape) == 1 else (left.shape[-2],)
        columns = () if len(b.shape) == 1 else (right.shape[-1],)
        return self.reshape(y, (*lead, *rows, *columns))

    def _swapped(self, x: Ref) -> Ref:
        axes = list(range(len(x.shape)))
        axes[-2:] = axes[:-3:-1]
        return self.transpose(x, axes)

    def _times_matrix(self, x: Ref, matrix: Array) -> Ref:
        """X @ matrix for a constant matrix, vector or stack of matrices."""
        if matrix.ndim == 1:
            y = self.dense(x, matrix[None, :])
            return self.reshape(y, y.shape[:-1])
        if prod(matrix.shape[:-2]) == 1:
            y = self.dense(x, np.swapaxes(matrix.reshape(matrix.shape[-2:]), 0, 1))
            missing = matrix.ndim - max(len(x.shape), 2)
            return self.reshape(y, (*(1,) * missing, *y.shape)) if missing > 0 else y
        lead = np.broadcast_shapes(x.shape[:-2], matrix.shape[:-2])
        rows = x.shape[-2:] if len(x.shape) > 1 else (1, *x.shape)
        stack = np.broadcast_to(matrix, (*lead, *matrix.shape[-2:])).reshape(-1, *matrix.shape[-2:])
        flat = self.reshape(self.expand(self.reshape(x, (*x.shape[:-2], *rows)), (*lead, *rows)), (len(stack), *rows))
        parts = [self.dense(self.slice(flat, 0, i, i + 1), np.swapaxes(m, 0, 1)) for i, m in enumerate(stack)]
        y = self.reshape(self.concat(parts, 0), (*lead, rows[0], matrix.shape[-1]))
        return y if len(x.shape) > 1 else self.reshape(y, (*lead, matrix.shape[-1]))

    def conv(
        self, x: Ref, weight: Array, bias: Array | None, stride: Sequence[int], padding: Sequence[tuple[int, int]],
        dilation: Sequence[int], groups: int = 1, mode: str = "constant",
    ) -> Ref:  # fmt: skip
        """A convolution over (N, C, *spatial); a padding mode other than zeros becomes a `Pad` before it."""
        if mode != "constant" and any(map(any, padding)):
            x = self.pad(x, [(0, 0), (0, 0), *padding], mode)
            padding = [(0, 0)] * len(padding)
        x, padding = self._cropped(x, padding)
        kernel = weight.shape[2:]
        spatial = [
            (size + lo + hi - d * (k - 1) - 1) // s + 1
            for size, k, s, (lo, hi), d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
        ]
        if x.shape[1] != weight.shape[1] * groups or min(spatial) < 1:
            raise ModelError(
                f"expected an input of {weight.shape[1] * groups} channels, at least as large as the kernel "
                f"{list(kernel)}, at layer {self.layer!r}; got shape {list(x.shape)}"
            )
        return self.put(
            n.Conv, [x], (x.shape[0], weight.shape[0], *spatial), weight=stored(weight),
            bias=None if bias is None else stored(bias), stride=_ints(stride),
            padding=tuple(_ints(p) for p in padding), dilation=_ints(dilation), groups=int(groups),
        )  # fmt: skip

    def conv_transpose(
        self, x: Ref, weight: Array, bias: Array | None, stride: Sequence[int], padding: Sequence[tuple[int, int]],
        output_padding: Sequence[int], dilation: Sequence[int], groups: int = 1,
    ) -> Ref:  # fmt: skip
        """A transposed convolution over (N, C, *spatial)."""
        spatial = [
            (size - 1) * s - lo - hi + d * (k - 1) + extra + 1
            for size, k, s, (lo, hi), d, extra in zip(
                x.shape[2:], weight.shape[2:], stride, padding, dilation, output_padding, strict=True
            )
        ]
        return self.put(
            n.ConvTranspose, [x], (x.shape[0], weight.shape[1] * groups, *spatial), weight=stored(weight),
            bias=None if bias is None else stored(bias), stride=_ints(stride),
            padding=tuple(_ints(p) for p in padding), dilation=_ints(dilation), groups=int(groups),
        )  # fmt: skip

    def batch_norm(
        self, x: Ref, mean: Array, variance: Array, weight: Array | None, bias: Array | None, eps: float
    ) -> Ref:
        """BatchNorm with running statistics on axis 1."""
        if (np.asarray(variance, dtype=np.float64) + eps <= 0).any():
            raise ModelError(
                f"expected variance + eps > 0 at layer {self.layer!r}, got a smallest variance of "
                f"{float(np.min(variance))} with eps {eps}; the layer divides by zero"
            )
        weight = np.ones_like(mean) if weight is None else weight
        bias = np.zeros_like(mean) if bias is None else bias
        arrays = {"mean": mean, "variance": variance, "weight": weight, "bias": bias}
        return self.put(n.BatchNorm, [x], x.shape, eps=float(eps), axis=1, **{k: stored(v) for k, v in arrays.items()})

    # ------------------------------------------------------------------------------------------------ pooling

    def average_pool(
        self, x: Ref, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[int, int]],
        ceil_mode: bool = False, count_include_pad: bool = True,
    ) -> Ref:  # fmt: skip
        """Average pooling over the last `len(kernel)` axes."""
        lead, spatial = x.shape[: -len(kernel)], x.shape[-len(kernel) :]
        windows = tuple(
            average_windows(size, k, s, p, ceil_mode, count_include_pad)
            for size, k, s, p in zip(spatial, kernel, stride, padding, strict=True)
        )
        return self.put(n.AveragePool, [x], (*lead, *map(len, windows)), windows=windows)

    def adaptive_average_pool(self, x: Ref, outputs: Sequence[int]) -> Ref:
        """Adaptive average pooling of the last `len(outputs)` axes to the given lengths."""
        lead, spatial = x.shape[: -len(outputs)], x.shape[-len(outputs) :]
        windows = tuple(
            np.array([(a, b, b - a) for a, b in adaptive_windows(size, m)], dtype=np.int64)
            for size, m in zip(spatial, outputs, strict=True)
        )
        return self.put(n.AveragePool, [x], (*lead, *outputs), windows=windows)

    def max_pool(
        self, x: Ref, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[int, int]],
        dilation: Sequence[int], ceil_mode: bool = False,
    ) -> Ref:  # fmt: skip
        """Max pooling over the last `len(kernel)` axes."""
        lead, spatial = x.shape[: -len(kernel)], x.shape[-len(kernel) :]
        windows = tuple(
            max_windows(size, k, s, p, d, ceil_mode)
            for size, k, s, p, d in zip(spatial, kernel, stride, padding, dilation, strict=True)
        )
        return self.put(n.MaxPool, [x], (*lead, *map(len, windows)), windows=windows)

    def adaptive_max_pool(self, x: Ref, outputs: Sequence[int]) -> Ref:
        """Adaptive max pooling of the last `len(outputs)` axes to the given lengths."""
        lead, spatial = x.shape[: -len(outputs)], x.shape[-len(outputs) :]
        windows = tuple(
            np.array([(a, b, 1) for a, b in adaptive_windows(size, m)], dtype=np.int64)
            for size, m in zip(spatial, outputs, strict=True)
        )
        return self.put(n.MaxPool, [x], (*lead, *outputs), windows=windows)

    # ------------------------------------------------------------------------------------------ normalisation

    def layer_norm(self, x: Ref, axes: Sequence[int], weight: Operand | None, bias: Operand | None, eps: float) -> Ref:
        """LayerNorm over the last axes, with its affine part."""
        y = self.put(n.LayerNorm, [x], x.shape, axes=_axes(axes, x), eps=float(eps))
        return self._affine(y, weight, bias)

    def rms_norm(self, x: Ref, axes: Sequence[int], weight: Operand | None, eps: float) -> Ref:
        """RMSNorm over the given axes, with its scale."""
        return self._affine(self.put(n.RMSNorm, [x], x.shape, axes=_axes(axes, x), eps=float(eps)), weight, None)

    def group_norm(self, x: Ref, groups: int, weight: Array | None, bias: Array | None, eps: float) -> Ref:
        """GroupNorm over (N, C, *spatial) with one scale and shift a channel; InstanceNorm has as many groups as channels."""
        flat = self.reshape(x, (x.shape[0], groups, -1))
        y = self.reshape(self.layer_norm(flat, [2], None, None, eps), x.shape)
        column = (-1, *(1,) * (len(x.shape) - 2))
        return self._affine(
            y, None if weight is None else weight.reshape(column), None if bias is None else bias.reshape(column)
        )

    def _affine(self, y: Ref, weight: Operand | None, bias: Operand | None) -> Ref:
        if weight is not None:
            y = self.times(y, weight)
        return y if bias is None else self.plus(y, bias)

    def resize_linear(self, x: Ref, matrices: Sequence[Array | None]) -> Ref:
        """Separable interpolation: `matrices[a]` (out, in) is applied along axis a (None: untouched)."""
        for axis, matrix in enumerate(matrices):
            if matrix is not None:
                x = self.dense(x, matrix, None, axis)
        return x


def _ints(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def _axes(axes: Sequence[int], x: Ref) -> tuple[int, ...]:
    return tuple(sorted(a % len(x.shape) for a in axes))
