"""Slow, obvious oracles: enclosures of the exact Lipschitz constant of tiny networks.

`lo` is never above the exact constant and `hi` never below it, the oracle's own rounding included, so that a test
compares an upper bound with `lo` and a lower bound with `hi`, both with zero slack.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

ROUNDING = 1e-10
"""Relative allowance for float64 linear algebra on matrices of a few dozen rows (LAPACK's errors are near 1e-15)."""


@dataclass(frozen=True)
class Exact:
    """lo <= exact constant <= hi"""

    lo: float
    hi: float


def matrix_norm(matrix: np.ndarray, norm: str) -> float:
    """The operator norm of a matrix."""
    return float(np.linalg.norm(matrix, {"l1": 1, "l2": 2, "linf": np.inf}[norm]))


def value_at(module: nn.Module, shape: tuple[int, ...], points: Tensor) -> Tensor:
    """Outputs (B, m) at flat points (B, n), one example at a time: no mixing of examples can hide."""
    with torch.no_grad():
        return torch.stack([module(p.reshape(1, *shape)).reshape(-1) for p in points])


def jacobian(module: nn.Module, shape: tuple[int, ...], x: Tensor) -> np.ndarray:
    """The derivative (m, n) at one flat point."""
    return torch.autograd.functional.jacobian(lambda p: module(p.reshape(1, *shape)).reshape(-1), x).detach().numpy()


def slope_patterns(node_slopes: list[tuple[float, float]]) -> Iterator[np.ndarray]:
    """All vectors of extreme slopes."""
    for choice in itertools.product((0, 1), repeat=len(node_slopes)):
        yield np.array([pair[c] for pair, c in zip(node_slopes, choice, strict=True)])


def one_hidden_layer(first: np.ndarray, second: np.ndarray, slopes: tuple[float, float], norm: str) -> Exact:
    """`second phi(first x + b)`, phi piecewise linear with two slopes, all patterns reachable (first of full row rank)."""
    singular = np.linalg.svd(first, compute_uv=False)
    assert len(first) <= first.shape[1] and singular[-1] > 1e-8, "patterns are only all reachable at full row rank"
    assert len(first) <= 14, "too many patterns"
    best = max(matrix_norm(second @ (s[:, None] * first), norm) for s in slope_patterns([slopes] * len(first)))
    return Exact(best * (1 - ROUNDING), best * (1 + ROUNDING))


def linear_map(module: nn.Module, shape: tuple[int, ...]) -> np.ndarray:
    """The matrix of an affine module, column by column."""
    size = math.prod(shape)
    eye = torch.eye(size, dtype=torch.float64)
    origin = value_at(module, shape, torch.zeros(1, size, dtype=torch.float64))
    return (value_at(module, shape, eye) - origin).T.numpy()


def sampled_lower(
    module: nn.Module, shape: tuple[int, ...], norm: str, box: tuple[np.ndarray, np.ndarray] | None, count: int = 400
) -> float:
    """A number that the exact constant is not below: the largest difference quotient of many pairs, less its rounding."""
    generator = torch.Generator().manual_seed(5)
    size = math.prod(shape)
    noise = torch.rand((count, size), generator=generator, dtype=torch.float64)
    if box is None:
        scale = 10.0 ** (3 * torch.rand((count, 1), generator=generator, dtype=torch.float64) - 1)
        points = scale * (2 * noise - 1)
    else:
        low, high = torch.from_numpy(box[0]), torch.from_numpy(box[1])
        points = low + (high - low) * noise
    best = 0.0
    order = {"l1": 1.0, "l2": 2.0, "linf": math.inf}[norm]
    for x in points:
        matrix = np.nan_to_num(jacobian(module, shape, x))
        direction = torch.from_numpy(_attaining(matrix, norm))
        for t in (1e-4, 1e-2, 1.0):
            ends = torch.stack([x + t * direction, x - t * direction])
            if box is not None:
                ends = ends.clamp(torch.from_numpy(box[0]), torch.from_numpy(box[1]))
            rise = value_at(module, shape, ends)
            run = float(torch.linalg.vector_norm(ends[0] - ends[1], order))
            noise_floor = 1e-13 * float(rise.abs().sum() + 1)
            if run > 0:
                best = max(best, (float(torch.linalg.vector_norm(rise[0] - rise[1], order)) - noise_floor) / run)
    return best * (1 - ROUNDING)


def _attaining(matrix: np.ndarray, norm: str) -> np.ndarray:
    if norm == "l2":
        return np.linalg.svd(matrix)[2][0]
    if norm == "linf":
        return np.where(matrix[np.abs(matrix).sum(1).argmax()] >= 0, 1.0, -1.0)
    return np.eye(matrix.shape[1])[np.abs(matrix).sum(0).argmax()]


def one_dimensional(module: nn.Module, low: float, high: float, norm: str, pieces: int = 20001) -> Exact:
    """The largest slope of a piecewise linear network of one input, from the chords of a fine grid.

    A chord is never steeper than the network, so `lo` holds. `hi` holds if every piece spans a cell of the grid: a shorter one
    would be steeper than all chords, and then only a right lower bound above `hi` could be accused, never a wrong one excused.
    """
    grid = torch.linspace(low, high, pieces, dtype=torch.float64)
    values = value_at(module, (1,), grid[:, None])
    slopes = (values[1:] - values[:-1]) / (grid[1:] - grid[:-1])[:, None]
    best = max(matrix_norm(s[:, None].numpy(), norm) for s in slopes)
    return Exact(best * (1 - 1e-8), best * (1 + 1e-8))
