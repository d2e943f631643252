"""The kinds of node a graph is made of.

Every kind is a frozen dataclass; what is known of it (its value, slopes, norms, image of a box) lives in
`lipscope.rules`. This module is also the meaning of a stored graph: the independent checker implements the same
sentences from `docs/certificate.md`.

Conventions
-----------
* `inputs` are indices of earlier nodes, `shape` is the shape of the node's value **for one example**, including
  whatever leading axis the source model keeps for the batch (then of length 1). Tensors are row-major.
* Arrays are numpy arrays that nobody writes to. Weights keep the dtype in which they were stored (float32 or
  float64, half precision is widened to float32, which is exact); their value is the real number the bits stand for.
* All arithmetic is meant in real numbers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """One operation of the network.

    Attributes:
        inputs: indices of the nodes that it reads.
        shape: shape of its value for one example.
        name: the layer in the user's model that it comes from, for messages.
    """

    inputs: tuple[int, ...]
    shape: Shape
    name: str = ""

    affine: ClassVar[bool] = False
    """Whether the value is an affine function of each input tuple (jointly, where there are several inputs)."""

    @property
    def kind(self) -> str:
        """The node's kind, as in the stored graph."""
        return type(self).__name__

    @property
    def size(self) -> int:
        """How many numbers the value has."""
        return int(np.prod(self.shape, dtype=np.int64))

    def parameters(self) -> dict[str, object]:
        """The fields that belong to this kind alone, by name."""
        common = {"inputs", "shape", "name"}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in common}


@dataclass(frozen=True, eq=False, kw_only=True)
class AffineNode(Node):
    """A node whose value is an affine function of its inputs."""

    affine: ClassVar[bool] = True


# ---------------------------------------------------------------------------------------------------- sources


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Node):
    """The network's input. A graph has exactly one, node 0; several inputs are slices of it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Constant(Node):
    """A value that does not depend on the input."""

    value: Array


# ------------------------------------------------------------------------------------------ affine, with weights


@dataclass(frozen=True, eq=False, kw_only=True)
class Dense(AffineNode):
    """`y[.., o, ..] = sum_i weight[o, i] x[.., i, ..] + bias[o]` along `axis` (counted from 0)."""

    weight: Array
    bias: Array | None = None
    axis: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv(AffineNode):
    """Cross-correlation of `x (N, C, *spatial)` with `weight (O, C/groups, *kernel)`, zero padding.

    `y[n, o, p] = bias[o] + sum_{c, t} weight[o, c, t] x[n, c + first channel of o's group, stride p + dilation t - low]`,
    where entries outside the image are 0. `padding` holds (low, high) per spatial axis, both >= 0.
    """

    weight: Array
    bias: Array | None = None
    stride: Shape
    padding: tuple[tuple[int, int], ...]
    dilation: Shape
    groups: int = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class ConvTranspose(AffineNode):
    """The adjoint of `Conv` with the same stride, padding, dilation and groups, plus `bias`.

    `x (N, C, *spatial)`, `weight (C, O/groups, *kernel)`. The output's spatial size is `shape[2:]`: full size is
    `stride (in - 1) + dilation (k - 1) + 1`, of which `low` entries are cut at the start; entries past the end of
    the full size are 0 (output padding), entries past `shape` are cut.
    """

    weight: Array
    bias: Array | None = None
    stride: Shape
    padding: tuple[tuple[int, int], ...]
    dilation: Shape
    groups: int = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class BatchNorm(AffineNode):
    """`y = (x - mean) / sqrt(variance + eps) * weight + bias` per channel, on `axis`; all arrays have one entry a channel."""

    mean: Array
    variance: Array
    weight: Array
    bias: Array
    eps: float
    axis: int = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class AddConstant(AffineNode):
    """`y = x + value`; `value` broadcasts to the shape of `x`."""

    value: Array


@dataclass(frozen=True, eq=False, kw_only=True)
class MulConstant(AffineNode):
    """`y = x * value`; `value` broadcasts to the shape of `x`."""

    value: Array


@dataclass(frozen=True, eq=False, kw_only=True)
class DivConstant(AffineNode):
    """`y = x / value`; `value` broadcasts to the shape of `x` and has no zero."""

    value: Array


# ------------------------------------------------------------------------------------- affine, without weights


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(AffineNode):
    """The sum of two or more inputs of one shape."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(AffineNode):
    """The inputs joined along `axis` (counted from 0)."""

    axis: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Sum(AffineNode):
    """The sum over `axes` (counted from 0); the shape tells whether the axes are kept with length 1."""

    axes: Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Mean(AffineNode):
    """The mean over `axes` (counted from 0); the shape tells whether the axes are kept with length 1."""

    axes: Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class AveragePool(AffineNode):
    """Averages over windows along the last `len(windows)` axes.

    `windows[a]` is an integer array with a row (start, stop, count) for each output position along that axis; the
    value is the sum over the product of the ranges start:stop, divided by the product of the counts. Strides,
    padding, `ceil_mode`, `count_include_pad` and adaptive pooling are all resolved into these numbers.
    """

    windows: tuple[Array, ...]


# ------------------------------------------------------- rearrangements: each output entry is one input entry


@dataclass(frozen=True, eq=False, kw_only=True)
class Reshape(AffineNode):
    """The same numbers, row-major, in another shape."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Transpose(AffineNode):
    """Axes permuted: `y.shape[a] = x.shape[permutation[a]]`."""

    permutation: Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Slice(AffineNode):
    """`x[start:stop:step]` on every axis, `ranges` being one (start, stop, step) an axis, all >= 0, step >= 1."""

    ranges: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Pad(AffineNode):
    """`pads` holds (low, high) >= 0 an axis. `mode` is constant (filled with `value`), reflect, edge or wrap, as `numpy.pad`."""

    pads: tuple[tuple[int, int], ...]
    mode: str = "constant"
    value: float = 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Gather(AffineNode):
    """`numpy.take(x, indices, axis)` with a 1-D integer array: flips, upsampling by copies, shuffles, splits."""

    indices: Array
    axis: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Expand(AffineNode):
    """`numpy.broadcast_to(x, shape)`."""


# ---------------------------------------------------------------------------------------------------- nonlinear


@dataclass(frozen=True, eq=False, kw_only=True)
class Elementwise(Node):
    """A function of one real variable applied to every entry.

    `function` is a row of `lipscope.rules.functions`; `arguments` are its parameters by name; `slope` is the learned
    negative slope of `prelu`, broadcast to the shape of `x`, and None elsewhere.
    """

    function: str
    arguments: tuple[tuple[str, float], ...] = ()
    slope: Array | None = None

    @property
    def argument(self) -> dict[str, float]:
        """The function's parameters by name."""
        return dict(self.arguments)


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Node):
    """Maxima over windows along the last `len(windows)` axes.

    `windows[a]` has a row (start, stop, step) for each output position along that axis; the window is the product
    of the ranges start:stop:step, none of them empty. Padding never wins a maximum, so it is not represented.
    """

    windows: tuple[Array, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class ReduceMax(Node):
    """The maximum over `axes`; the shape tells whether the axes are kept with length 1."""

    axes: Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Maximum(Node):
    """The entrywise maximum of two or more inputs of one shape."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Sort(Node):
    """Entries sorted along `axis`, ascending or descending. MaxMin and GroupSort are this on a reshaped tensor."""

    axis: int
    descending: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Softmax(Node):
    """`exp(x) / sum exp(x)` over `axis`."""

    axis: int


@dataclass(frozen=True, eq=False, kw_only=True)
class LogSoftmax(Node):
    """`x - log sum exp(x)` over `axis`."""

    axis: int


@dataclass(frozen=True, eq=False, kw_only=True)
class LogSumExp(Node):
    """`log sum exp(x)` over `axes`; the shape tells whether the axes are kept with length 1."""

    axes: Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerNorm(Node):
    """`(x - mean) / sqrt(variance + eps)` over `axes`, variance with divisor n; no learned scale (that is a `MulConstant`)."""

    axes: Shape
    eps: float


@dataclass(frozen=True, eq=False, kw_only=True)
class RMSNorm(Node):
    """`x / sqrt(mean(x^2) + eps)` over `axes`; no learned scale (that is a `MulConstant`)."""

    axes: Shape
    eps: float


@dataclass(frozen=True, eq=False, kw_only=True)
class ReduceL2(Node):
    """`sqrt(sum x^2)` over `axes`; the shape tells whether the axes are kept with length 1."""

    axes: Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Multiply(Node):
    """The entrywise product of two inputs of one shape. Bounded on bounded regions only."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Divide(Node):
    """The entrywise quotient of two inputs of one shape."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MatMul(Node):
    """`numpy.matmul` of two inputs whose leading axes agree exactly. Bounded on bounded regions only."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Discontinuous(Node):
    """An operation with jumps: no finite constant wherever its jumps reach the output.

    `operator` is one of sign, round, floor, ceil, truncate, argmax, argmin, one_hot, equal, less, less_equal,
    greater, greater_equal, logical_not, logical_and, logical_or, where, threshold, hardshrink, heaviside, modulo;
    truth values are 0 and 1. `axis` belongs to argmax, argmin and one_hot (the new axis, whose length is in
    `shape`); `arguments` holds numbers by name (`threshold`: threshold, value; `hardshrink`: lambd; `one_hot`: off,
    on; `modulo`: divisor, the result having the divisor's sign; `heaviside`: at_zero). `where` reads (condition, a, b)
    and takes a where the condition is not 0. Ties in argmax and argmin take the first index. round is half to even.
    """

    operator: str
    axis: int = -1
    arguments: tuple[tuple[str, float], ...] = ()

    @property
    def argument(self) -> dict[str, float]:
        """The operation's numbers by name."""
        return dict(self.arguments)


KINDS: dict[str, type[Node]] = {
    kind.__name__: kind
    for kind in (
        Input, Constant, Dense, Conv, ConvTranspose, BatchNorm, AddConstant, MulConstant, DivConstant,
        Add, Concat, Sum, Mean, AveragePool, Reshape, Transpose, Slice, Pad, Gather, Expand,
        Elementwise, MaxPool, ReduceMax, Maximum, Sort, Softmax, LogSoftmax, LogSumExp, LayerNorm, RMSNorm,
        ReduceL2, Multiply, Divide, MatMul, Discontinuous,
    )
}  # fmt: skip
"""Every kind of node by name."""
