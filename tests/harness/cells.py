"""Exact constants of tiny piecewise linear networks: all cells of the input space, one linear program each.

Slow and obvious: the cells of the first layer are found one unit after the other, then inside each those of the second, ..
A cell counts if some ball fits into it. `lo` is the largest norm over cells that certainly exist, `hi` also counts those
that are too thin to tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from torch import nn

from harness.exact import ROUNDING, Exact, matrix_norm

THIN = 1e-6


@dataclass(frozen=True)
class Where:
    """everywhere, a box (`low`, `high`), or a ball in a norm (`center`, `radius`)."""

    kind: str
    first: np.ndarray | None = None
    second: np.ndarray | float | None = None

    def room(self, a: np.ndarray, b: np.ndarray) -> float:
        """How far `a x + b > 0` can be satisfied (rows of a have length 1), at most 1; negative if not at all."""
        n = a.shape[1]
        if self.kind == "l2":
            return self._round(a, b)
        limits = [(None, None)] * n
        if self.kind == "box":
            limits = list(zip(self.first, self.second, strict=True))
        if self.kind == "linf":
            limits = [(c - self.second, c + self.second) for c in self.first]
        if self.kind == "l1":  # every corner of the dual ball
            corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * n)).reshape(n, -1).T
            rows, sides = [np.hstack([corners, np.zeros((len(corners), 1))])], [self.second + corners @ self.first]
        else:
            rows, sides = [np.zeros((0, n + 1))], [np.zeros(0)]
        rows.append(np.hstack([-a, np.ones((len(a), 1))]))
        sides.append(b)
        goal = np.zeros(n + 1)
        goal[-1] = -1
        found = linprog(goal, np.vstack(rows), np.concatenate(sides), bounds=[*limits, (None, 1.0)])
        assert found.status == 0, found.message
        return float(found.x[-1])

    def _round(self, a: np.ndarray, b: np.ndarray) -> float:
        """For a Euclidean ball: the nearest point with room t (a least-distance program), for the largest t that fits."""
        low, high = -2.0, 1.0
        for _ in range(30):
            t = (low + high) / 2
            if self._distance(a, t - b - a @ self.first) <= self.second:
                low = t
            else:
                high = t
        return low

    @staticmethod
    def _distance(g: np.ndarray, h: np.ndarray) -> float:
        """The smallest |y| with g y >= h (Lawson and Hanson, chapter 23)."""
        if (h <= 0).all():
            return 0.0
        e = np.vstack([g.T, h])
        f = np.zeros(len(e))
        f[-1] = 1
        u, _ = nnls(e, f)
        r = e @ u - f
        # -r[-1] is 1/(1 + |y|^2), and 0 up to rounding if there is no y.
        return float(np.linalg.norm(-r[:-1] / r[-1])) if abs(r[-1]) > 1e-6 else np.inf


def layers_of(module: nn.Sequential) -> list[tuple[np.ndarray, np.ndarray, tuple[float, float]]]:
    """Weight, bias and the slopes of the activation after it, layer by layer; the last one has slopes (1, 1)."""
    found = []
    parts = list(module)
    for i, part in enumerate(parts):
        if isinstance(part, nn.Linear):
            bias = np.zeros(part.out_features) if part.bias is None else part.bias.detach().double().numpy()
            after = parts[i + 1] if i + 1 < len(parts) else None
            slopes = (1.0, 1.0)
            if isinstance(after, nn.ReLU):
                slopes = (0.0, 1.0)
            elif isinstance(after, nn.LeakyReLU):
                slopes = (after.negative_slope, 1.0)
            elif isinstance(after, nn.PReLU):
                slopes = (float(after.weight.detach()[0]), 1.0)
            elif type(after).__name__ == "Abs":
                slopes = (-1.0, 1.0)
            found.append((part.weight.detach().double().numpy(), bias, slopes))
    return found


class Abs(nn.Module):
    """|x|"""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs()


def cells(layers: list[tuple[np.ndarray, np.ndarray, tuple[float, float]]], where: Where, size: int) -> Iterator[tuple[np.ndarray, float]]:  # fmt: skip
    """The Jacobian and the room of every cell that is not certainly empty."""

    def visit(k: int, unit: int, linear: np.ndarray, offset: np.ndarray, gates: list[float], a: list, b: list, room: float) -> Iterator[tuple[np.ndarray, float]]:  # fmt: skip
        weight, bias, slopes = layers[k]
        if k == len(layers) - 1:
            yield weight @ linear, room
            return
        if unit == len(weight):
            g = np.array(gates)
            yield from visit(k + 1, 0, g[:, None] * (weight @ linear), g * (weight @ offset + bias), [], a, b, room)
            return
        row, constant = weight[unit] @ linear, weight[unit] @ offset + bias[unit]
        length = np.linalg.norm(row)
        for sign, slope in ((1.0, slopes[1]), (-1.0, slopes[0])):
            if length < 1e-12:  # the argument is constant: one side, or for 0 either (its derivative is 0)
                if sign * constant >= 0:
                    yield from visit(k, unit + 1, linear, offset, [*gates, slope], a, b, room)
                continue
            inside = [*a, sign * row / length], [*b, sign * constant / length]
            left = where.room(np.array(inside[0]), np.array(inside[1]))
            if left > -THIN:
                yield from visit(k, unit + 1, linear, offset, [*gates, slope], *inside, min(room, left))

    yield from visit(0, 0, np.eye(size), np.zeros(size), [], [], [], 1.0)


def enumerated(module: nn.Sequential, size: int, norm: str, where: Where) -> Exact:
    """The exact constant of a chain of dense layers and two-piece activations."""
    found = [(matrix_norm(j, norm), room) for j, room in cells(layers_of(module), where, size)]
    lo = max(n for n, room in found if room > THIN)
    return Exact(lo * (1 - ROUNDING), max(n for n, _ in found) * (1 + ROUNDING))
