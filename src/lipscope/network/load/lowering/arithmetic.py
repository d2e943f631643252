"""Arithmetic, reductions and functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lipscope.claims.errors import ModelError
from lipscope.network import nodes as n
from lipscope.network.load.lowering.rearranging import Operand, Rearranging, Ref, stored
from lipscope.network.nodes import Array


class Arithmetic(Rearranging):
    """Adds operations on entries and along axes."""

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

    def discontinuous(
        self, operator: str, operands: Sequence[Operand], shape: Sequence[int], axis: int = -1, **arguments: float
    ) -> Ref:
        """An operation with jumps, see `nodes.Discontinuous`; operands are broadcast to each other unless it has an axis."""
        refs = [self.as_ref(x) for x in operands] if axis >= 0 else self._common(operands)
        pairs = tuple(sorted((k, float(v)) for k, v in arguments.items()))
        return self.put(n.Discontinuous, refs, shape, operator=operator, axis=axis, arguments=pairs)
