"""Multipliers for the live units of a cell, and what they say about its worst slopes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lipscope.bounds.branch.barrier import Start, descend
from lipscope.bounds.branch.exact import Matrix
from lipscope.bounds.branch.forms import Forms
from lipscope.bounds.branch.leaf import quadratic_form, quadratic_holds
from lipscope.bounds.quadratic.elimination import Infeasible, norm_start, smallest_rho
from lipscope.bounds.quadratic.stacked import Layer, Stacked
from lipscope.bounds.quadratic.wanted import Wanted
from lipscope.claims.rounding import sqrt_up

TOLERANCE = 2e-5
"""Relative gap of rho at which the barrier method stops: what is left is closed by splitting."""

COARSE = 6e-3
"""The same where the cell will be split anyway."""

WARM = 0.005
"""The least gap at which a cell's parts begin: a point nearer to the optimum is too near the boundary to be moved."""


@dataclass(frozen=True, eq=False)
class Centre:
    """A strictly feasible point of a cell, multipliers by unit: it stays feasible on parts of the cell, which are subspaces."""

    rho: float
    values: dict[int, float]
    gap: float


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The inequality of a cell in float64, and what solves it.

    Attributes:
        reads: what the live units read.
        output: the network's value.
        slopes: (units, 2).
        values: multipliers that are proved to give the bound.
        bound: the proved bound.
        shares: between 0 and 1 for each unit, where its slope lies in its range at the worst differences.
        weights: how much is at stake at each unit.
        centre: where the search on parts of the cell begins.
    """

    reads: Matrix
    output: Matrix
    slopes: Matrix
    values: Matrix
    bound: float
    shares: Matrix
    weights: Matrix
    centre: Centre


def stacked(forms: Forms, units: Sequence[int], reads: Matrix, output: Matrix, slopes: Matrix) -> Stacked:
    """The inequality of some live units, in order, layer by layer."""
    inputs = reads.shape[1] - len(units)
    blocks = [[i for i, u in enumerate(units) if u in layer.units] for layer in forms.skeleton.layers]
    blocks = [block for block in blocks if block]
    places = [list(range(inputs)), *([inputs + i for i in block] for block in blocks)]
    layers = tuple(
        Layer(
            {b: w for b in range(k + 1) if (w := reads[np.ix_(block, places[b])]).any()},
            slopes[block, 0],
            slopes[block, 1],
        )
        for k, block in enumerate(blocks)
    )
    return Stacked(inputs, layers, {b: f for b, p in enumerate(places) if (f := output[:, p]).any()})


def quadratic(forms: Forms, inherited: Centre | None, enough: float, deadline: float) -> Quadratic | None:
    """Proved multipliers for a cell with live units; None if none are found.

    Args:
        forms: the cell.
        inherited: where to begin: a centre of the cell's parent.
        enough: a rho that needs no improvement.
        deadline: `time.monotonic()` at which the search stops.

    Raises:
        OutOfRange: coefficients leave the range of float64.
    """
    live = forms.live
    reads, output = forms.inequality_of_all()
    slopes = forms.slope_ends(live)
    start = _start(forms, reads, output, slopes, inherited)
    if start is None:
        return None
    small_reads, small_output = _reduced(reads, output)
    try:
        path = descend(small_reads, small_output, slopes, start, Wanted(deadline, enough, TOLERANCE, COARSE))
    except np.linalg.LinAlgError:
        path = []
    for offer in [*reversed(path[-3:]), start]:
        rho, values = offer.rho, offer.values
        if np.isfinite(rho) and quadratic_holds(reads, output, slopes, values, rho):
            shares, weights = stakes(reads, output, slopes, values, rho)
            warm = min([p for p in path if p.gap >= WARM], key=lambda p: p.gap, default=start)
            centre = Centre(warm.rho, dict(zip(live, warm.values.tolist(), strict=True)), warm.gap)
            return Quadratic(reads, output, slopes, values, sqrt_up(rho), shares, weights, centre)
    return None


def _start(forms: Forms, reads: Matrix, output: Matrix, slopes: Matrix, inherited: Centre | None) -> Start | None:
    """The parent's point, or that of the product of norms."""
    live = forms.live
    if inherited is not None and all(u in inherited.values for u in live):
        return Start(inherited.rho, np.array([inherited.values[u] for u in live]), inherited.gap)
    network = stacked(forms, live, reads, output, slopes).reduced_input()
    try:
        values = norm_start(network)
    except (Infeasible, np.linalg.LinAlgError, ValueError):
        return None
    rho = 1.05 * smallest_rho(network, values)
    return Start(rho, values) if np.isfinite(rho) and rho > 0 else None


def _reduced(reads: Matrix, output: Matrix) -> tuple[Matrix, Matrix]:
    """The same on a smaller input, where fewer rows read it than it has entries: with `X^T = Q R`, `|Q^T x| <= |x|`."""
    count, inputs = len(reads), reads.shape[1] - len(reads)
    if count + len(output) >= inputs:
        return reads, output
    triangle: Matrix = np.linalg.qr(np.concatenate([reads[:, :inputs], output[:, :inputs]]).T)[1]
    return np.hstack([triangle.T[:count], reads[:, inputs:]]), np.hstack([triangle.T[count:], output[:, inputs:]])


def stakes(reads: Matrix, output: Matrix, slopes: Matrix, values: Matrix, rho: float | Matrix) -> tuple[Matrix, Matrix]:
    """With the inverse of M as second moments: where u_j lies between its slopes, and `lambda <v^2> (b - a)^2`."""
    matrix, _ = quadratic_form(reads, output, slopes, values, rho)
    inverse = np.linalg.inv(matrix)
    inputs = reads.shape[1] - len(reads)
    pulled = reads @ inverse
    square = np.einsum("ij,ij->i", pulled, reads)
    mean = np.einsum("ii->i", pulled[:, inputs:])
    width = slopes[:, 1] - slopes[:, 0]
    share = np.clip((mean / np.maximum(square, 1e-300) - slopes[:, 0]) / np.maximum(width, 1e-300), 0.0, 1.0)
    return share, values * width**2 * np.maximum(square, 0.0)
