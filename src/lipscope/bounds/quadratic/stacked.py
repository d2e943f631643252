"""The inequality on the stacked vector (input, units of all layers), for any network whose units read earlier blocks.

Block 0 is the input, block k the units of the k-th nonlinear layer. With differences `u_k` of the blocks' values,

    v_k = sum_b W_kb u_b   (b < k),      output = sum_b F_b u_b,

and multipliers lambda, M(rho, lambda) = rho I_0 + sum_j lambda_j (a_j c_j^T + c_j a_j^T) - F^T F with `a_j = e_j - alpha_j w_j`,
`c_j = e_j - beta_j w_j`, w_j the row that yields v_j. If `M >= 0` then `|output|^2 <= rho |u_0|^2`, because u^T M u is
`rho |u_0|^2 - |F u|^2` minus `2 sum lambda_j (u_j - alpha_j v_j)(beta_j v_j - u_j) >= 0` (Fazlyab et al., arXiv 1906.04893).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
Reads = dict[int, Matrix]
"""A linear function of the stacked vector: for each block that it reads, a matrix."""


@dataclass(frozen=True, eq=False)
class Layer:
    """Units of one nonlinear layer.

    Attributes:
        reads: v as a function of earlier blocks.
        lower: alpha, one a unit.
        upper: beta, one a unit.
        group: units that share one multiplier have equal numbers; None where each has its own.
    """

    reads: Reads
    lower: Vector
    upper: Vector
    group: NDArray[np.int64] | None = None

    @property
    def size(self) -> int:
        """The number of units."""
        return len(self.lower)


@dataclass(frozen=True, eq=False)
class Stacked:
    """A network as the inequality sees it.

    Attributes:
        input_size: length of block 0.
        layers: blocks 1, 2, ..
        output: F.
    """

    input_size: int
    layers: tuple[Layer, ...]
    output: Reads

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each block begins in the stacked vector; the last entry is the vector's length."""
        return tuple(np.cumsum([0, self.input_size, *(layer.size for layer in self.layers)]).tolist())

    @property
    def dimension(self) -> int:
        """Length of the stacked vector."""
        return self.starts[-1]

    @property
    def units(self) -> int:
        """The number of units."""
        return self.dimension - self.input_size

    @cached_property
    def lower(self) -> Vector:
        """Alpha of all units."""
        return np.concatenate([np.zeros(0), *(layer.lower for layer in self.layers)])

    @cached_property
    def upper(self) -> Vector:
        """Beta of all units."""
        return np.concatenate([np.zeros(0), *(layer.upper for layer in self.layers)])

    @cached_property
    def variables(self) -> NDArray[np.int64]:
        """For each unit the number of its multiplier: its own, or that of its group."""
        found: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        count = 0
        for layer in self.layers:
            own = np.arange(layer.size) if layer.group is None else np.unique(layer.group, return_inverse=True)[1]
            found.append(own + count)
            count += int(own.max(initial=-1)) + 1
        return np.concatenate(found)

    def block(self, index: int) -> slice:
        """The entries of block `index` in the stacked vector."""
        return slice(self.starts[index], self.starts[index + 1])

    def units_of(self, index: int) -> slice:
        """The entries of layer `index` (from 0) among all units."""
        return slice(self.starts[index + 1] - self.input_size, self.starts[index + 2] - self.input_size)

    def matrix(self, rho: float, values: Vector) -> Matrix:
        """M(rho, lambda), symmetric."""
        m = np.zeros((self.dimension, self.dimension))
        diagonal = np.einsum("ii->i", m)
        diagonal[: self.input_size] = rho
        for b, left in self.output.items():
            for c, right in self.output.items():
                m[self.block(b), self.block(c)] -= left.T @ right
        for k, layer in enumerate(self.layers):
            own, weight = self.block(k + 1), values[self.units_of(k)]
            diagonal[own] += 2 * weight
            cross, inner = weight * (layer.lower + layer.upper), 2 * weight * layer.lower * layer.upper
            for b, left in layer.reads.items():
                coupling = cross[:, None] * left
                m[own, self.block(b)] -= coupling
                m[self.block(b), own] -= coupling.T
                if inner.any():
                    for c, right in layer.reads.items():
                        m[self.block(b), self.block(c)] += left.T @ (inner[:, None] * right)
        return m

    def pull(self, columns: Matrix) -> Matrix:
        """`columns @ V^T`: for (m, dimension) the (m, units) combinations that v reads; V has the rows w_j."""
        result = np.empty((len(columns), self.units))
        for k, layer in enumerate(self.layers):
            result[:, self.units_of(k)] = sum(
                (columns[:, self.block(b)] @ w.T for b, w in layer.reads.items()), np.zeros(1)
            )
        return result

    def push(self, columns: Matrix) -> Matrix:
        """`columns @ V`: the transpose of `pull`, (m, units) to (m, dimension)."""
        result = np.zeros((len(columns), self.dimension))
        for k, layer in enumerate(self.layers):
            for b, w in layer.reads.items():
                result[:, self.block(b)] += columns[:, self.units_of(k)] @ w
        return result

    def scaled_blocks(self, factors: Vector) -> Stacked:
        """The same inequality in variables `u_b = factors[b] u_b'`, v scaled like its own block.

        Multipliers become `lambda factors[k]^2`; `factors[0]` must be 1, so that rho stays what it is.
        """
        layers = tuple(
            replace(layer, reads={b: w * (factors[b] / factors[k + 1]) for b, w in layer.reads.items()})
            for k, layer in enumerate(self.layers)
        )
        return Stacked(self.input_size, layers, {b: w * factors[b] for b, w in self.output.items()})

    def scaled_output(self, factor: float) -> Stacked:
        """The network's output multiplied by `factor`; rho and the multipliers become `factor^2` times as large."""
        return replace(self, output={b: w * factor for b, w in self.output.items()})

    def reduced_input(self) -> Stacked:
        """The same inequality on a smaller input where fewer rows read it than it has entries.

        All that reads the input are the rows of X; with `X^T = Q R` they read `R^T (Q^T u_0)`, and `|Q^T u_0| <= |u_0|`.
        """
        parts = [r[0] for r in (*(layer.reads for layer in self.layers), self.output) if 0 in r]
        rows = sum(len(p) for p in parts)
        if not parts or rows >= self.input_size:
            return self
        triangle: Matrix = np.linalg.qr(np.concatenate(parts).T)[1]
        small = triangle.T
        pieces = iter(np.split(small, np.cumsum([len(p) for p in parts])[:-1]))
        layers = tuple(
            replace(layer, reads={**layer.reads, 0: next(pieces)}) if 0 in layer.reads else layer
            for layer in self.layers
        )
        output = {**self.output, 0: next(pieces)} if 0 in self.output else self.output
        return Stacked(small.shape[1], layers, output)
