"""Spectral bias: which frequencies of a target a network has learned, and when.

A network that is trained on `sum_k A_k sin(2 pi k t + phi_k)` usually fits small k first (Rahaman et al., arXiv
1806.08734; Xu et al., arXiv 1901.06523). Three views of it: the amplitude of the output at each frequency, the error at
the peaks of the target's spectrum, and the energies of a low-pass and a high-pass part of the residual. All of them come
from outputs on a fixed probe, so they are measurements of that probe: nothing here bounds what happens between its points.

On a grid `t_0, .., t_{N-1}` the transform is `c_k = (1/N) sum_n y_n exp(-2 pi i k n/N)` for `0 <= k <= N/2`: a component
`A sin(2 pi k n/N + phi)` with `0 < k < N/2` has `|c_k| = A/2`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipscope.claims.errors import UsageError

THRESHOLD = 0.8
"""The amplitude ratio at which a frequency counts as learned, as in the experiments of arXiv 1806.08734."""

PEAK_SHARE = 0.1
"""A frequency is a peak of a target if its coefficient is a local maximum of at least this share of the largest one."""


def coefficients(values: Tensor) -> Tensor:
    """The coefficients `c_k`, `0 <= k <= N/2`, of each column.

    Args:
        values: (N, outputs) or (N,), on an even grid in its order.

    Returns:
        (N // 2 + 1, outputs), complex128.

    Raises:
        UsageError: there are fewer than two points, or some values are not finite.
    """
    columns = values.detach().to(torch.float64).reshape(len(values), -1) if values.ndim else values.reshape(0, 1)
    if len(columns) < 2:
        raise UsageError(f"expected at least 2 points for a spectrum, got {len(columns)}")
    if not bool(columns.isfinite().all()):
        raise UsageError(
            f"expected finite values for a spectrum, got {int((~columns.isfinite()).sum())} that are not; "
            "the training may have diverged"
        )
    transformed: Tensor = torch.fft.rfft(columns, dim=0, norm="forward")
    return transformed


def amplitude_ratio(output: Tensor, target: Tensor, frequencies: Sequence[int]) -> Tensor:
    """`|c_k(output)| / |c_k(target)|` for each frequency; 1 where the output has the target's amplitude.

    The phase does not enter; `peak_error` does compare phases.

    Args:
        output: (N,) or (N, outputs), on an even grid.
        target: of the same shape.
        frequencies: whole numbers from 0 to N/2 of periods on the grid.

    Returns:
        (frequencies,), float64. Several outputs count by the root of the sum of their squares.

    Raises:
        UsageError: shapes differ, a frequency does not exist on the grid, or the target has none of it: a ratio to an
            amplitude of rounding size would mean nothing.
    """
    found, wanted = _compared(output, target, frequencies)
    ratio: Tensor = torch.linalg.vector_norm(found, dim=1) / torch.linalg.vector_norm(wanted, dim=1)
    return ratio


def peak_error(output: Tensor, target: Tensor, frequencies: Sequence[int] | None = None) -> Tensor:
    """`|c_k(output) - c_k(target)| / |c_k(target)|` at the peaks of the target's spectrum (arXiv 1901.06523).

    Args:
        output: (N,) or (N, outputs), on an even grid.
        target: of the same shape.
        frequencies: where to compare; `target_peaks(target)` if None.

    Returns:
        (frequencies,), float64.

    Raises:
        UsageError: as `amplitude_ratio`.
    """
    chosen = target_peaks(target) if frequencies is None else frequencies
    found, wanted = _compared(output, target, chosen)
    error: Tensor = torch.linalg.vector_norm(found - wanted, dim=1) / torch.linalg.vector_norm(wanted, dim=1)
    return error


def target_peaks(target: Tensor, share: float = PEAK_SHARE) -> tuple[int, ...]:
    """The frequencies k >= 1 where the target's spectrum has a local maximum of at least `share` of its largest one.

    Args:
        target: (N,) or (N, outputs), on an even grid.
        share: in (0, 1].

    Raises:
        UsageError: the target is constant, so that there is no peak.
    """
    sizes = torch.linalg.vector_norm(coefficients(target), dim=1)
    sizes[0] = 0.0
    largest = float(sizes.max())
    if largest <= _noise(target):
        raise UsageError("expected a target that varies over the grid, got a constant one: its spectrum has no peak")
    padded = [-1.0, *sizes[1:].tolist(), -1.0]
    return tuple(
        k for k in range(1, len(sizes)) if padded[k] >= share * largest and padded[k - 1] < padded[k] >= padded[k + 1]
    )


def _noise(target: Tensor) -> float:
    """What rounding can leave in a coefficient of a target: N ulps of its largest value, generously."""
    precision = torch.finfo(target.dtype).eps if target.dtype.is_floating_point else torch.finfo(torch.float64).eps
    return float(target.detach().abs().max()) * precision * 8 * math.log2(2 + len(target))


def _compared(output: Tensor, target: Tensor, frequencies: Sequence[int]) -> tuple[Tensor, Tensor]:
    if output.shape != target.shape:
        raise UsageError(
            f"expected output and target of one shape, got {tuple(output.shape)} and {tuple(target.shape)}"
        )
    found, wanted = coefficients(output), coefficients(target)
    outside = [k for k in frequencies if not 0 <= k < len(wanted)]
    if outside or not frequencies:
        raise UsageError(
            f"expected frequencies from 0 to {len(wanted) - 1}, the highest that {len(output)} points resolve, "
            f"got {outside or 'none'}"
        )
    index = torch.tensor(list(frequencies))
    empty = [k for k in frequencies if float(wanted[k].norm()) <= _noise(target)]
    if empty:
        raise UsageError(
            f"expected frequencies that the target has, got {empty}, where its coefficient is of rounding size; "
            "compare at the peaks of the target only"
        )
    return found[index], wanted[index]


@dataclass(frozen=True)
class FirstPassage:
    """When each frequency was learned.

    Attributes:
        frequencies: as they were given.
        reached: the first recorded step at which the ratio was at least the threshold; None if it never was (censored).
        before: the recorded step before it, so that the true step lies in `(before, reached]`; for a censored frequency
            the last recorded step, after which it would have been. -1 if the first record was enough.
        last: the last recorded step.
        threshold: of the ratio.
    """

    frequencies: tuple[float, ...]
    reached: tuple[int | None, ...]
    before: tuple[int, ...]
    last: int
    threshold: float

    @property
    def censored(self) -> tuple[float, ...]:
        """The frequencies that were never reached; they stay in every figure."""
        return tuple(f for f, step in zip(self.frequencies, self.reached, strict=True) if step is None)

    def spearman(self) -> float:
        """Rank correlation of frequency and first passage, in [-1, 1]; nan if it is undefined.

        Censored frequencies count as later than all others and as tied with each other, with the mean of their ranks.
        """
        return _spearman(self.frequencies, [math.inf if s is None else float(s) for s in self.reached])

    def spearman_range(self) -> tuple[float, float]:
        """The smallest and largest rank correlation over all orders in which censored frequencies could be reached later.

        Whoever waits long enough finds a value in here, provided that no two are reached at the same record.
        """
        ends = []
        for sign in (-1.0, 1.0):
            late = sorted(self.censored, key=lambda f: sign * f)
            times = [
                float(s) if s is not None else float(self.last + 1 + late.index(f))
                for f, s in zip(self.frequencies, self.reached, strict=True)
            ]
            ends.append(_spearman(self.frequencies, times))
        return ends[0], ends[1]


def first_passage(
    steps: Sequence[int], ratios: Tensor, frequencies: Sequence[float], threshold: float = THRESHOLD
) -> FirstPassage:
    """The first recorded step at which each frequency's ratio reached the threshold; it may fall below it again later.

    Args:
        steps: increasing steps of the records.
        ratios: (records, frequencies); nan counts as not reached.
        frequencies: distinct, one per column.
        threshold: above 0.

    Raises:
        UsageError: sizes differ, steps do not increase, or frequencies repeat.
    """
    if tuple(ratios.shape) != (len(steps), len(frequencies)) or not steps:
        raise UsageError(
            f"expected ratios of shape ({len(steps)}, {len(frequencies)}), records by frequencies, with at least one "
            f"record, got {tuple(ratios.shape)}"
        )
    if any(a >= b for a, b in pairwise(steps)):
        raise UsageError("expected increasing steps")
    if len(set(frequencies)) != len(frequencies):
        raise UsageError(f"expected distinct frequencies, got {list(frequencies)}")
    reached: list[int | None] = []
    before: list[int] = []
    for column in (ratios >= threshold).T.tolist():
        first = column.index(True) if True in column else None
        reached.append(None if first is None else steps[first])
        before.append(steps[-1] if first is None else steps[first - 1] if first else -1)
    return FirstPassage(tuple(map(float, frequencies)), tuple(reached), tuple(before), steps[-1], threshold)


def _spearman(first: Sequence[float], second: Sequence[float]) -> float:
    from scipy.stats import rankdata

    ranks: list[NDArray[np.float64]] = [np.asarray(rankdata(x), dtype=np.float64) for x in (first, second)]
    centred = [r - r.mean() for r in ranks]
    size = float(np.linalg.norm(centred[0]) * np.linalg.norm(centred[1]))
    return float(centred[0] @ centred[1]) / size if size > 0 else math.nan
