"""The vocabulary that importers speak: each method adds the nodes of one framework operation.

An importer walks its source graph and keeps for every name a `Ref` (a tensor that depends on the input) or a numpy
array (a constant). It sets `layer` before each operation, so that nodes carry the user's names. At least one operand
of a method is a `Ref`; what only reads constants is folded by the importer with its own framework.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from lipscope.claims.errors import ModelError
from lipscope.network import nodes as n
from lipscope.network.graph import Graph, GraphBuilder
from lipscope.network.load.windows import adaptive_windows, average_windows, max_windows
from lipscope.network.nodes import Array, Shape


@dataclass(frozen=True)
class Ref:
    """A tensor of the graph under construction: its node and its shape for one example (batch axis included)."""

    index: int
    shape: Shape


Operand = Ref | Array


def stored(array: Array) -> Array:
    """A constant in the dtype in which graphs keep it: float32 and float64 as they are, the rest widened exactly."""
    values = np.asarray(array)
    if values.dtype in (np.float32, np.float64):
        return values
    if values.dtype.kind in "biu":
        wide = values.astype(np.float64)
        if values.dtype.kind != "b" and (wide.astype(values.dtype) != values).any():
            raise ModelError("expected integer constants that float64 holds exactly, got larger ones")
        return wide
    return values.astype(np.float32)  # float16 and bfloat16: exact


class Lowering(GraphBuilder):
    """Builds a graph from framework operations. Axes may be negative; they are resolved here."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = ""

    # ------------------------------------------------------------------------------------------------ plumbing

    def put(self, kind: type[n.Node], inputs: Sequence[Ref], shape: Sequence[int], **fields: object) -> Ref:
        """Add a node of `kind` named after the current layer."""
        node = kind(
            inputs=tuple(x.index for x in inputs),
            shape=tuple(map(int, shape)),
            name=self.layer,
            **fields,
        )
        return Ref(self.add(node), node.shape)

    def inputs(self, shapes: Sequence[Shape]) -> list[Ref]:
        """The graph's input, once, cut into the model's inputs of the given shapes (with their batch axes)."""
        self.layer = "input"
        if len(shapes) == 1:
            return [self.put(n.Input, [], shapes[0])]
        whole = self.put(n.Input, [], (sum(prod(s) for s in shapes),))
        found, start = [], 0
        for shape in shapes:
            part = self.slice(whole, 0, start, start + prod(shape))
            found.append(self.reshape(part, shape))
            start += prod(shape)
        return found

    def finish(
        self, outputs: Sequence[Operand], input_shapes: Sequence[Shape], output_shapes: Sequence[Shape], source: str
    ) -> Graph:
        """The graph of the outputs, several of them flattened and concatenated in order."""
        self.layer = "output"
        refs = [self.as_ref(x) for x in outputs]
        if len(refs) > 1:
            refs = [self.concat([self.reshape(x, (prod(x.shape),)) for x in refs], 0)]
        return self.build(refs[0].index, input_shapes, output_shapes, source)

    def as_ref(self, x: Operand) -> Ref:
        """`x` as a tensor of the graph; an array becomes a `Constant`."""
        return x if isinstance(x, Ref) else self.put(n.Constant, [], np.shape(x), value=stored(x))

    def expand(self, x: Ref, shape: Sequence[int]) -> Ref:
        """`x` broadcast to `shape`; -1 keeps a length."""
        full = [x.shape[i - len(shape)] if s == -1 else s for i, s in enumerate(shape)]
        target = np.broadcast_shapes(x.shape, tuple(full))
        return x if target == x.shape else self.put(n.Expand, [x], target)

    # --------------------------------------------------------------------------------------------- arithmetic

    def _with_constant(self, kind: type[n.Node], x: Ref, value: Array) -> Ref:
        x = self.expand(x, np.broadcast_shapes(x.shape, value.shape))
        return self.put(kind, [x], x.shape, value=stored(value))

    def _common(self, operands: Sequence[Operand]) -> list[Ref]:
        refs = [self.as_ref(x) for x in operands]
        shape = np.broadcast_shapes(*(x.shape for x in refs))
        return [self.expand(x, shape) for x in refs]

    def plus(self, a: Operand, b: Operand) -> Ref:
        """A + b"""
        if isinstance(a, Ref) and isinstance(b, Ref):
            refs = self._common([a, b])
            return self.put(n.Add, refs, refs[0].shape)
        x, c = (a, b) if isinstance(a, Ref) else (b, a)
        assert isinstance(x, Ref) and not isinstance(c, Ref)
        return self._with_constant(n.AddConstant, x, c)

    def minus(self, a: Operand, b: Operand) -> Ref:
        """A - b"""
        return self.plus(a, self.negative(b) if isinstance(b, Ref) else np.asarray(np.negative(stored(b))))

    def negative(self, x: Ref) -> Ref:
        """-x"""
        return self._with_constant(n.MulConstant, x, np.asarray(-1.0))

    def times(self, a: Operand, b: Operand) -> Ref:
        """A * b"""
        if isinstance(a, Ref) and isinstance(b, Ref):
            if a == b:
                return self.elementwise(a, "square")
            refs = self._common([a, b])
            return self.put(n.Multiply, refs, refs[0].shape)
        x, c = (a, b) if isinstance(a, Ref) else (b, a)
        assert isinstance(x, Ref) and not isinstance(c, Ref)
        return self._with_constant(n.MulConstant, x, c)

    def over(self, a: Operand, b: Operand) -> Ref:
        """A / b

        Raises:
            ModelError: b is a constant with a zero.
        """
        if isinstance(b, Ref):
            if isinstance(a, Ref):
                refs = self._common([a, b])
                return self.put(n.Divide, refs, refs[0].shape)
            return self.times(self.elementwise(b, "reciprocal"), a)
        if (stored(b) == 0).any():
            raise ModelError(
                f"expected a divisor without zeros at layer {self.layer!r}; the model divides by zero there"
            )
        assert isinstance(a, Ref)
        return self._with_constant(n.DivConstant, a, b)

    def maximum(self, a: Operand, b: Operand) -> Ref:
        """max(a, b); with a constant c it is `c + relu(x - c)`, or a clip for a single number."""
        if isinstance(a, Ref) and isinstance(b, Ref):
            refs = self._common([a, b])
            return self.put(n.Maximum, refs, refs[0].shape)
        x, c = (a, b) if isinstance(a, Ref) else (b, a)
        assert isinstance(x, Ref) and not isinstance(c, Ref)
        if np.size(c) == 1:
            x = self.expand(x, np.broadcast_shapes(x.shape, np.shape(c)))
            return self.clip(x, low=float(np.reshape(stored(c), ())))
        return self.plus(self.elementwise(self.minus(x, c), "relu"), c)

    def minimum(self, a: Operand, b: Operand) -> Ref:
        """min(a, b) = -max(-a, -b)"""
        for x, c in ((a, b), (b, a)):
            if isinstance(x, Ref) and not isinstance(c, Ref) and np.size(c) == 1:
                x = self.expand(x, np.broadcast_shapes(x.shape, np.shape(c)))
                return self.clip(x, high=float(np.reshape(stored(c), ())))
        flipped = [self.negative(x) if isinstance(x, Ref) else np.asarray(np.negative(stored(x))) for x in (a, b)]
        return self.negative(self.maximum(*flipped))

    def select(self, mask: Array, a: Operand, b: Operand) -> Ref:
        """`numpy.where` with a constant mask."""
        chosen, other = np.asarray(mask, dtype=np.float64), 1.0 - np.asarray(mask, dtype=np.float64)
        parts = [
            self.times(x, m) if isinstance(x, Ref) else np.where(m != 0, stored(x), 0.0)
            for x, m in ((a, chosen), (b, other))
        ]
        return self.plus(parts[0], parts[1])

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

    # --------------------------------------------------------------------------------------------- reductions

    def _reduce(self, kind: type[n.Node], x: Ref, axes: Sequence[int] | None, keep: bool) -> Ref:
        chosen = tuple(sorted({a % len(x.shape) for a in (range(len(x.shape)) if axes is None else axes)}))
        shape = [1 if i in chosen else s for i, s in enumerate(x.shape) if keep or i not in chosen]
        return self.put(kind, [x], shape, axes=chosen)

    def sum(self, x: Ref, axes: Sequence[int] | None, keep: bool) -> Ref:
        """The sum over axes (None: all)."""
        return self._reduce(n.Sum, x, axes, keep)

    def mean(self, x: Ref, axes: Sequence[int] | None, keep: bool) -> Ref:
        """The mean over axes (None: all)."""
        return self._reduce(n.Mean, x, axes, keep)

    def reduce_max(self, x: Ref, axes: Sequence[int] | None, keep: bool) -> Ref:
        """The maximum over axes (None: all)."""
        return self._reduce(n.ReduceMax, x, axes, keep)

    def reduce_min(self, x: Ref, axes: Sequence[int] | None, keep: bool) -> Ref:
        """The minimum over axes (None: all)."""
        return self.negative(self.reduce_max(self.negative(x), axes, keep))

    def reduce_l2(self, x: Ref, axes: Sequence[int] | None, keep: bool) -> Ref:
        """The Euclidean norm over axes (None: all)."""
        return self._reduce(n.ReduceL2, x, axes, keep)

    def reduce_l1(self, x: Ref, axes: Sequence[int] | None, keep: bool) -> Ref:
        """The sum of absolute values over axes (None: all)."""
        return self.sum(self.elementwise(x, "abs"), axes, keep)

    def log_sum_exp(self, x: Ref, axes: Sequence[int] | None, keep: bool) -> Ref:
        """Log sum exp over axes (None: all)."""
        return self._reduce(n.LogSumExp, x, axes, keep)

    # ----------------------------------------------------------------------------------------- rearrangements

    def reshape(self, x: Ref, shape: Sequence[int]) -> Ref:
        """Row-major reshape; one entry may be -1."""
        known = prod(s for s in shape if s != -1)
        full = tuple(prod(x.shape) // max(known, 1) if s == -1 else int(s) for s in shape)
        if prod(full) != prod(x.shape):
            raise ModelError(
                f"cannot reshape {list(x.shape)} to {list(shape)} at layer {self.layer!r}; if the model was exported "
                "with a fixed batch size, export it with batch size 1 or a dynamic batch axis"
            )
        return x if full == x.shape else self.put(n.Reshape, [x], full)

    def transpose(self, x: Ref, permutation: Sequence[int]) -> Ref:
        """Axes permuted."""
        order = tuple(int(p) % len(x.shape) for p in permutation)
        if order == tuple(range(len(order))):
            return x
        return self.put(n.Transpose, [x], [x.shape[p] for p in order], permutation=order)

    def slice(self, x: Ref, axis: int, start: int, stop: int, step: int = 1) -> Ref:
        """`x[start:stop:step]` along one axis, with Python's meaning of negative numbers, any step but 0."""
        axis %= len(x.shape)
        taken = range(x.shape[axis])[start:stop:step]
        if len(taken) == x.shape[axis] and step == 1:
            return x
        if step < 0 or not len(taken):
            return self.take(x, np.array(taken, dtype=np.int64), axis)
        ranges = [(0, s, 1) for s in x.shape]
        ranges[axis] = (taken.start, taken[-1] + 1, step)
        shape = [len(taken) if i == axis else s for i, s in enumerate(x.shape)]
        return self.put(n.Slice, [x], shape, ranges=tuple(ranges))

    def take(self, x: Ref, indices: Array, axis: int) -> Ref:
        """`numpy.take` along one axis; indices of any shape, negative ones counted from the end."""
        axis %= len(x.shape)
        flat = np.asarray(indices, dtype=np.int64).reshape(-1)
        flat = np.where(flat < 0, flat + x.shape[axis], flat)
        if flat.size and not (0 <= flat.min() and flat.max() < x.shape[axis]):
            raise ModelError(f"an index is outside 0..{x.shape[axis] - 1} at layer {self.layer!r}")
        y = self.put(n.Gather, [x], (*x.shape[:axis], flat.size, *x.shape[axis + 1 :]), indices=flat, axis=axis)
        return self.reshape(y, (*x.shape[:axis], *np.shape(indices), *x.shape[axis + 1 :]))

    def pad(self, x: Ref, pads: Sequence[tuple[int, int]], mode: str = "constant", value: float = 0.0) -> Ref:
        """(low, high) for every axis; negative numbers crop. Modes as `numpy.pad`: constant, reflect, edge, wrap."""
        for axis, (low, high) in enumerate(pads):
            if low < 0 or high < 0:
                x = self.slice(x, axis, max(-low, 0), x.shape[axis] - max(-high, 0))
        widths = tuple((max(int(low), 0), max(int(high), 0)) for low, high in pads)
        if not any(map(any, widths)):
            return x
        shape = [s + low + high for s, (low, high) in zip(x.shape, widths, strict=True)]
        return self.put(n.Pad, [x], shape, pads=widths, mode=mode, value=float(value))

    def _cropped(self, x: Ref, padding: Sequence[tuple[int, int]]) -> tuple[Ref, list[tuple[int, int]]]:
        """Negative convolution padding as a crop."""
        if all(p >= 0 for pair in padding for p in pair):
            return x, list(padding)
        x = self.pad(x, [(0, 0), (0, 0), *((min(lo, 0), min(hi, 0)) for lo, hi in padding)])
        return x, [(max(lo, 0), max(hi, 0)) for lo, hi in padding]

    def concat(self, operands: Sequence[Operand], axis: int) -> Ref:
        """The operands joined along an axis."""
        refs = [self.as_ref(x) for x in operands]
        refs = [x for x in refs if prod(x.shape)] or refs[:1]
        if len(refs) == 1:
            return refs[0]
        axis %= len(refs[0].shape)
        shape = list(refs[0].shape)
        shape[axis] = sum(x.shape[axis] for x in refs)
        return self.put(n.Concat, refs, shape, axis=axis)

    def stack(self, operands: Sequence[Operand], axis: int) -> Ref:
        """The operands joined along a new axis."""
        refs = [self.as_ref(x) for x in operands]
        axis %= len(refs[0].shape) + 1
        return self.concat([self.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:])) for x in refs], axis)

    def split(self, x: Ref, sizes: Sequence[int], axis: int) -> list[Ref]:
        """The pieces of the given lengths along an axis."""
        ends = np.cumsum([0, *sizes])
        return [self.slice(x, axis, int(a), int(b)) for a, b in itertools.pairwise(ends)]

    # ---------------------------------------------------------------------------------------------- nonlinear

    def elementwise(self, x: Ref, function: str, **arguments: float) -> Ref:
        """An entrywise function of `lipscope.rules.functions`."""
        pairs = tuple(sorted((k, float(v)) for k, v in arguments.items()))
        return self.put(n.Elementwise, [x], x.shape, function=function, arguments=pairs)

    def prelu(self, x: Ref, slope: Array, axis: int | None = None) -> Ref:
        """PReLU; `slope` has one entry a channel of `axis`, or broadcasts to x where `axis` is None."""
        if axis is not None and slope.size > 1:
            slope = slope.reshape([-1 if i == axis % len(x.shape) else 1 for i in range(len(x.shape))])
        spread = np.broadcast_to(stored(slope.reshape(()) if slope.size == 1 else slope), x.shape)
        return self.put(n.Elementwise, [x], x.shape, function="prelu", slope=np.ascontiguousarray(spread))

    def clip(self, x: Ref, low: float = -np.inf, high: float = np.inf) -> Ref:
        """min(max(x, low), high); with low > high the value is `high`, as in torch and ONNX."""
        if low == 0.0 and high == np.inf:
            return self.elementwise(x, "relu")
        return self.elementwise(x, "clip", low=min(low, high), high=high)

    def hard_sigmoid(self, x: Ref, alpha: float, beta: float) -> Ref:
        """clip(alpha x + beta, 0, 1)"""
        scaled = self.times(x, np.asarray(alpha, dtype=np.float64))
        return self.clip(self.plus(scaled, np.asarray(beta, dtype=np.float64)), 0.0, 1.0)

    def softmax(self, x: Ref, axis: int) -> Ref:
        """Softmax along an axis."""
        return self.put(n.Softmax, [x], x.shape, axis=axis % len(x.shape))

    def log_softmax(self, x: Ref, axis: int) -> Ref:
        """LogSoftmax along an axis."""
        return self.put(n.LogSoftmax, [x], x.shape, axis=axis % len(x.shape))

    def sort(self, x: Ref, axis: int, descending: bool = False) -> Ref:
        """Entries sorted along an axis."""
        return self.put(n.Sort, [x], x.shape, axis=axis % len(x.shape), descending=bool(descending))

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

    def discontinuous(
        self, operator: str, operands: Sequence[Operand], shape: Sequence[int], axis: int = -1, **arguments: float
    ) -> Ref:
        """An operation with jumps, see `nodes.Discontinuous`; operands are broadcast to each other unless it has an axis."""
        refs = [self.as_ref(x) for x in operands] if axis >= 0 else self._common(operands)
        pairs = tuple(sorted((k, float(v)) for k, v in arguments.items()))
        return self.put(n.Discontinuous, refs, shape, operator=operator, axis=axis, arguments=pairs)

    # -------------------------------------------------------------------------------------------------- resize

    def resize_nearest(self, x: Ref, indices: Sequence[Array | None]) -> Ref:
        """Copies along each axis: `indices[a]` says which input position each output position copies (None: untouched)."""
        for axis, chosen in enumerate(indices):
            if chosen is not None:
                x = self.take(x, chosen, axis)
        return x

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
