"""The Jacobian at a point, in float64: how good a lower bound can be expected. It steers the search, it proves nothing."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flint import fmpq, fmpq_mat
from numpy.typing import NDArray

from lipscope.bounds.branch.exact import Matrix
from lipscope.bounds.branch.skeleton import Affine, Cell, Skeleton
from lipscope.claims.norms import Norm

ORDER = {"l1": 1, "l2": 2, "linf": np.inf}
MARGIN = 1e-9
"""Points nearer to a kink, relatively, say nothing: the pattern there may not exist."""

ROUNDS = 60
"""Steps from points to better ones, at most."""

WIDTH = 4
"""Points followed at once."""

PATIENCE = 4
"""Steps that improve nothing, after which a climb ends: the way to a better cell often leads through worse ones."""

BEYOND = (1e-3, 0.1)
"""How far beyond a kink the next point is, in terms of the way to it."""

SHAKEN = 64
"""Random points in each round."""


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
        return sum((m @ values[b] for b, m in self.parts.items()), np.zeros((len(self.constant), values[0].shape[1])))


@dataclass(frozen=True, eq=False)
class _Step:
    """A layer at some points.

    Attributes:
        arguments: what its units read, (units, points).
        slopes: of its units there.
        plain: whether all of them are off their kinks, (points,).
    """

    arguments: Matrix
    slopes: Matrix
    plain: NDArray[np.bool_]


class Evaluator:
    """A skeleton in float64."""

    def __init__(self, skeleton: Skeleton, norm: Norm) -> None:
        self.norm: Norm = norm
        self.skeleton = skeleton
        self.inputs = skeleton.inputs
        self.domain = skeleton.domain
        self.layers = [_Plain.of(layer.reads) for layer in skeleton.layers]
        self.output = _Plain.of(skeleton.output)
        self.tables = [
            (
                _table([p.thresholds for p in layer.pieces], np.inf),
                _table([p.slopes for p in layer.pieces], 0.0),
                _table([p.shifts for p in layer.pieces], 0.0),
            )
            for layer in skeleton.layers
        ]

    def gain(self, x: Matrix) -> float:
        """The norm of the Jacobian at x; 0 too near a kink."""
        return float(self.gains(x[:, None])[0])

    def cell(self, x: Matrix) -> Cell:
        """The cell of all units' pieces at x."""
        steps = self._followed(x[:, None])
        places = [(s.arguments > table[0]).sum(-1).tolist() for s, table in zip(steps, self.tables, strict=True)]
        pieces = tuple(itertools.chain(*places))
        return Cell(pieces, pieces)

    def arguments(self, cell: Cell) -> list[tuple[NDArray[np.bool_], Matrix]]:
        """For each layer which units' arguments are affine in x on a cell, and those as rows: by x, and the value at the domain's middle."""
        undecided = set(self.skeleton.undecided(cell))
        values = [np.column_stack([np.eye(self.inputs), self.domain.middle])]
        waits, found = [np.zeros(self.inputs)], []
        for layer, own, (_, steps, shifts) in zip(self.layers, self.skeleton.layers, self.tables, strict=True):
            argument = sum(
                (m @ values[b] for b, m in layer.parts.items()), np.zeros((len(own.pieces), self.inputs + 1))
            )
            argument[:, -1] += layer.constant
            waiting = sum((abs(m) @ waits[b] for b, m in layer.parts.items()), np.zeros(len(own.pieces))) > 0
            found.append((~waiting, argument))
            low = np.array([cell.low[u] for u in own.units])[:, None]
            still_open = np.array([u in undecided for u in own.units])
            slopes = np.where(still_open, 0.0, np.take_along_axis(steps, low, 1)[:, 0])
            value = slopes[:, None] * argument
            value[:, -1] += np.take_along_axis(shifts, low, 1)[:, 0]
            values.append(value)
            waits.append((still_open | waiting & (slopes != 0)).astype(np.float64))
        return found

    def gains(self, points: Matrix) -> Matrix:
        """`gain` of every column."""
        steps = self._followed(points)
        jacobians = self._backward(steps) if len(self.output.constant) < self.inputs else self._forward(steps)[1]
        if not jacobians[0].size:
            return np.zeros(points.shape[1])
        found: Matrix = np.linalg.norm(jacobians, ORDER[self.norm], axis=(1, 2))
        return np.where(np.all([s.plain for s in steps], axis=0), found, 0.0)

    def _followed(self, points: Matrix) -> list[_Step]:
        """What the units of each layer read at all points, and their slopes there."""
        values, found = [points], []
        for layer, (thresholds, slopes, shifts) in zip(self.layers, self.tables, strict=True):
            v = layer.apply(values) + layer.constant[:, None]
            size = 1 + np.abs(layer.constant)[:, None]
            for b, m in layer.parts.items():
                size = size + np.abs(m) @ np.abs(values[b])
            away = np.abs(v[..., None] - thresholds[:, None]) > MARGIN * size[..., None]
            place = (v[..., None] > thresholds[:, None]).sum(-1)
            step = _Step(v, np.take_along_axis(slopes, place, 1), np.asarray(away.all(axis=(0, 2))))
            values.append(step.slopes * v + np.take_along_axis(shifts, place, 1))
            found.append(step)
        return found

    def _forward(self, steps: Sequence[_Step]) -> tuple[list[Matrix], Matrix]:
        """The Jacobians of what each layer reads, and those of the network, at all points."""
        count = len(steps[0].plain)
        jacobians, moved = [np.broadcast_to(np.eye(self.inputs), (count, self.inputs, self.inputs))], []
        for layer, step in zip(self.layers, steps, strict=True):
            moved.append(_through(layer, jacobians, (count, len(step.slopes), self.inputs)))
            jacobians.append(step.slopes.T[:, :, None] * moved[-1])
        return moved, _through(self.output, jacobians, (count, len(self.output.constant), self.inputs))

    def _backward(self, steps: Sequence[_Step]) -> Matrix:
        """The Jacobians of the network, from its outputs on: the faster way where these are few."""
        count, outputs = len(steps[0].plain), len(self.output.constant)
        sizes = [self.inputs, *(len(step.slopes) for step in steps)]
        adjoints = [np.zeros((count, outputs, size)) for size in sizes]
        for b, m in self.output.parts.items():
            adjoints[b] += m
        for k in reversed(range(len(steps))):
            pulled = adjoints[k + 1] * steps[k].slopes.T[:, None]
            for b, m in self.layers[k].parts.items():
                adjoints[b] += pulled @ m
        return adjoints[0]

    def climb(self, x: Matrix, until: float = math.inf) -> Matrix:
        """A point of the domain, from x by steps over the kink of one unit, or small ones at random; no steps after `until` (`time.monotonic()`).

        Each step goes to the `WIDTH` best points in cells that were not met before, told apart by their gains.
        """
        generator = np.random.default_rng(0)
        points, best, found, in_vain = x[:, None], self.gain(x), x, 0
        met = {float(f"{best:.9g}")}
        for _ in range(ROUNDS):
            if time.monotonic() > until:
                break
            with np.errstate(all="ignore"):  # a unit that hardly moves has its kink out of reach; the gain there is 0
                trials = [t for p in points.T for t in (self._crossings(p), self._shaken(p, generator))]
                tried = self.domain.pulled(np.concatenate(trials, axis=1))
                gains = self.gains(tried)
            chosen = self._new(gains, met)
            if not chosen:
                break
            points = tried[:, chosen]
            if gains[chosen[0]] > best * (1 + 1e-9):
                best, found, in_vain = float(gains[chosen[0]]), points[:, 0], 0
            elif in_vain == PATIENCE:
                break
            else:
                in_vain += 1
        return found

    @staticmethod
    def _new(gains: Matrix, met: set[float]) -> list[int]:
        """The places of the largest gains that were not met before, which they are from now on."""
        chosen = []
        for i in np.argsort(-gains, kind="stable").tolist():
            gain = float(f"{gains[i]:.9g}")
            if gain not in met:
                met.add(gain)
                chosen.append(i)
            if len(chosen) == WIDTH:
                break
        return chosen

    def _crossings(self, x: Matrix) -> Matrix:
        """Points a little beyond every threshold of every unit, as if x stayed in its cell until there."""
        steps = self._followed(x[:, None])
        found = [x[:, None]]
        for step, (slope,), (thresholds, _, _) in zip(steps, self._forward(steps)[0], self.tables, strict=True):
            v = step.arguments
            square = np.einsum("ij,ij->i", slope, slope)
            for column in thresholds.T:
                usable = np.isfinite(column) & (square > 0)
                away = (column[usable] - v[usable, 0]) / square[usable]
                found += [x[:, None] + slope[usable].T * (away * (1 + beyond)) for beyond in BEYOND]
        return np.concatenate(found, axis=1)

    def _shaken(self, x: Matrix, generator: np.random.Generator) -> Matrix:
        """Points around x, at many scales, some of their coordinates changed."""
        shape = (len(x), SHAKEN)
        scale = 10 ** generator.uniform(-2, 0.5, SHAKEN) * (1e-3 + np.abs(x).max(initial=0.0))
        trials: Matrix = x[:, None] + scale * generator.standard_normal(shape) * (generator.random(shape) < 0.5)
        return trials


def _table(rows: Sequence[Sequence[fmpq]], filler: float) -> Matrix:
    table = np.full((len(rows), max((len(row) for row in rows), default=0)), filler)
    for own, row in zip(table, rows, strict=True):
        own[: len(row)] = [float(v) for v in row]
    return table


def _through(layer: _Plain, jacobians: Sequence[Matrix], shape: tuple[int, int, int]) -> Matrix:
    total = np.zeros(shape)
    for b, m in layer.parts.items():
        total = total + m @ jacobians[b]
    return total
