"""The Jacobian at a point, in float64: how good a lower bound can be expected. It steers the search, it proves nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flint import fmpq_mat

from lipscope.bounds.branch.exact import Matrix
from lipscope.bounds.branch.skeleton import Affine, Skeleton
from lipscope.claims.norms import Norm

ORDER = {"l1": 1, "l2": 2, "linf": np.inf}
MARGIN = 1e-9
"""Points nearer to a kink, relatively, say nothing: the pattern there may not exist."""


def operator_norm(matrix: Matrix, norm: Norm) -> float:
    """The operator norm, computed."""
    return float(np.linalg.norm(matrix, ORDER[norm])) if matrix.size else 0.0


def _floats(matrix: fmpq_mat) -> Matrix:
    return np.array([float(v) for v in matrix.entries()]).reshape(matrix.nrows(), matrix.ncols())


@dataclass(frozen=True, eq=False)
class _Plain:
    """An affine function in float64."""

    parts: dict[int, Matrix]
    constant: Matrix

    @classmethod
    def of(cls, affine: Affine) -> _Plain:
        return cls({b: _floats(m) for b, m in affine.parts.items()}, _floats(affine.constant)[:, 0])

    def apply(self, values: list[Matrix]) -> Matrix:
        return sum((m @ values[b] for b, m in self.parts.items()), np.zeros((len(self.constant), 1)))


class Evaluator:
    """A skeleton in float64."""

    def __init__(self, skeleton: Skeleton, norm: Norm) -> None:
        self.norm: Norm = norm
        self.inputs = skeleton.inputs
        self.layers = [_Plain.of(layer.reads) for layer in skeleton.layers]
        self.output = _Plain.of(skeleton.output)
        self.tables = [
            [tuple(np.array([float(v) for v in values]) for values in (p.thresholds, p.slopes, p.shifts)) for p in layer.pieces]
            for layer in skeleton.layers
        ]  # fmt: skip

    def gain(self, x: Matrix) -> float:
        """The norm of the Jacobian at x; 0 too near a kink."""
        values, jacobians = [x[:, None]], [np.eye(self.inputs)]
        for layer, tables in zip(self.layers, self.tables, strict=True):
            v = layer.apply(values)[:, 0] + layer.constant
            size = 1 + sum(
                (np.abs(m) @ np.abs(values[b])[:, 0] for b, m in layer.parts.items()), np.abs(layer.constant)
            )
            u, slopes = np.empty(len(v)), np.empty(len(v))
            for i, (thresholds, steps, shifts) in enumerate(tables):
                if (np.abs(v[i] - thresholds) <= MARGIN * size[i]).any():
                    return 0.0
                p = int(np.searchsorted(thresholds, v[i]))
                u[i], slopes[i] = steps[p] * v[i] + shifts[p], steps[p]
            jacobians.append(slopes[:, None] * (layer.apply(jacobians) + np.zeros((1, self.inputs))))
            values.append(u[:, None])
        return operator_norm(self.output.apply(jacobians), self.norm)
