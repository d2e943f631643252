"""A linear map given by what it does: the form in which `operator_norm` receives the linear part of a segment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lipscope.network.nodes import Conv, Shape
from lipscope.rules.questions import Roundings

Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LinearMap:
    """A linear map L between tensors of fixed shapes, in float64, with its rounding accounted for.

    Attributes:
        input_shape: shape of what it takes, for one example.
        output_shape: shape of what it returns.
        apply: `(B, *input_shape) -> (B, *output_shape)`; computed L differs from exact L by at most
            `gamma_k |L| |x|` entrywise with k = `roundings.forward`.
        adjoint: the transpose, `(B, *output_shape) -> (B, *input_shape)`, likewise with `roundings.adjoint`.
        absolute: like `apply` for |L|, the composition of the entrywise absolute values of L's factors (>= the
            entrywise absolute value of L). Computed with the same number of roundings, not yet rounded upward.
        absolute_adjoint: the transpose of `absolute`.
        roundings: see above.
        convolution: if L is one convolution followed by a scaling of each output channel, that convolution with the
            (computed) scaling in its weights; the coefficient roundings are within `roundings`. It is zero-padded, or
        circle: it goes round: `circle` is then the number of output positions on each axis, of which the input has
            `stride` times as many, and the convolution's own padding is 0.
    """

    input_shape: Shape
    output_shape: Shape
    apply: Apply
    adjoint: Apply
    absolute: Apply
    absolute_adjoint: Apply
    roundings: Roundings
    convolution: Conv | None = None
    circle: Shape | None = None

    @property
    def input_size(self) -> int:
        """How many entries the input has."""
        return int(np.prod(self.input_shape, dtype=np.int64))

    @property
    def output_size(self) -> int:
        """How many entries the output has."""
        return int(np.prod(self.output_shape, dtype=np.int64))
