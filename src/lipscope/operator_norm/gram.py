"""The symmetric operator M = L^T L (or L L^T), scaled by a power of two, and lower bounds attained at explicit vectors.

With `y = fl(L x)` and `z = fl(L^T y)`: `|y - L x| <= gamma_f |L| |x|`, `|z - L^T y| <= gamma_a |L|^T |y|` entrywise, so
`|z - L^T L x| <= (gamma_f + gamma_a + gamma_f gamma_a) |L|^T |L| |x| <= gamma_{f+a} |L|^T |L| |x|`, whose l2 norm is
at most `gamma_{f+a} n1 ninf |x|` (Schur). The same entrywise bound holds for the matrix of M formed from unit
vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lipscope.claims.rounding import UNIT_ROUNDOFF, down, gamma, up
from lipscope.operator_norm.schur import geometric_mean_up
from lipscope.rules.linear_map import LinearMap

Side = Literal["input", "output"]

UNDERFLOW = 1e-30
"""Allowance for underflow in scaled arithmetic: far above `k N 2^-1074/SMALLEST_SUM`, far below every other term."""


@dataclass(frozen=True)
class Gram:
    """M = 4^-exponent L^T L (side input) or L L^T (side output), acting on rows of `(B, size)`.

    Attributes:
        linear_map: L.
        side: whose entries are the unknowns.
        exponent: the scaling, chosen so that `bound` is in [1/4, 1].
        bound: upper bound of the norm of |L|^T |L| after scaling, and so of M's largest eigenvalue.
    """

    linear_map: LinearMap
    side: Side
    exponent: int
    bound: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the unknowns."""
        return self.linear_map.input_shape if self.side == "input" else self.linear_map.output_shape

    @property
    def size(self) -> int:
        """The number of unknowns."""
        return math.prod(self.shape)

    @property
    def error(self) -> float:
        """Upper bound of `|fl(M x) - M x| / |x|`, and of the norm of the error of M's matrix formed from unit
        vectors.
        """
        counts = self.linear_map.roundings
        return up(up(gamma(counts.forward + counts.adjoint) * self.bound) + UNDERFLOW)

    @property
    def flops(self) -> float:
        """About how many operations one application takes."""
        counts = self.linear_map.roundings
        forward = (counts.forward + 1) * self.linear_map.output_size
        return 2.0 * (forward + (counts.adjoint + 1) * self.linear_map.input_size)

    def __call__(self, x: Tensor) -> Tensor:
        """M applied to the rows of x."""
        first, second = self.linear_map.apply, self.linear_map.adjoint
        if self.side == "output":
            first, second = second, first
        scale = math.ldexp(1.0, -self.exponent)
        middle = first(x.reshape(-1, *self.shape)) * scale
        return (second(middle) * scale).reshape(x.shape)

    def pattern(self, x: Tensor) -> Tensor:
        """Where M applied to vectors with the given non-zero entries can be different from 0; `(B, size)` booleans."""
        first, second = self.linear_map.absolute, self.linear_map.absolute_adjoint
        if self.side == "output":
            first, second = second, first
        middle = first(x.to(torch.float64).reshape(-1, *self.shape)) != 0
        return (second(middle.to(torch.float64)) != 0).reshape(x.shape)

    def scaled(self, value: float) -> float:
        """A norm of L in units of this operator; exact."""
        return math.ldexp(value, -self.exponent)

    def unscaled(self, value: float) -> float:
        """The inverse of `scaled`."""
        return math.ldexp(value, self.exponent)

    def input_vector(self, x: Tensor) -> Tensor:
        """The vector at L's input that belongs to a vector of unknowns: itself, or its image under L^T."""
        if self.side == "input":
            return x
        return self.linear_map.adjoint(x.reshape(1, *self.shape)).flatten()


def gram(linear_map: LinearMap, side: Side, sums: tuple[float, float]) -> Gram:
    """The scaled Gram operator of L on one side, given the sums of |L| (both positive)."""
    schur = geometric_mean_up(*sums)
    exponent = math.frexp(schur)[1]
    scaled = math.ldexp(schur, -exponent)
    return Gram(linear_map, side, exponent, up(scaled * scaled))


def attained(linear_map: LinearMap, x: Tensor, exponent: int) -> float:
    """At most `|L x|_2/|x|_2` for the given flat vector of finite numbers; 0 for the vector 0.

    The computed image is off by at most `gamma_f |L| |x|` entrywise, which is evaluated at this x.
    """
    size = float(torch.linalg.vector_norm(x, ord=math.inf))
    if size == 0 or not math.isfinite(size):
        return 0.0
    x = (x * math.ldexp(1.0, -math.frexp(size)[1])).reshape(1, *linear_map.input_shape)  # exact; entries at most 1
    scale = math.ldexp(1.0, -exponent)
    relative = gamma(linear_map.roundings.forward)
    error = 0.0
    if relative > 0:
        spread = up(_norm(linear_map.absolute(x.abs()) * scale) * (1.0 + NORM_ERROR))
        error = up(up(spread * relative) / down(1.0 - relative))
    image = down(_norm(linear_map.apply(x) * scale) * (1.0 - NORM_ERROR))
    length = up(_norm(x) * (1.0 + NORM_ERROR))
    return max(0.0, down(math.ldexp(down(down(image - up(error + UNDERFLOW)) / length), exponent)))


NORM_ERROR = 8 * UNIT_ROUNDOFF
"""Relative error of `_norm`: one rounding for each square, one for the correctly rounded sum, one for the root."""


def _norm(x: Tensor) -> float:
    return math.sqrt(math.fsum((x * x).flatten().tolist()))
