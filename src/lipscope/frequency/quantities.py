"""Spectral bias as quantities that the training observer can watch, so that a run shows which frequencies are learned when.

Run them beside a Lipschitz quantity, and the same run says at what constant each frequency was learned. All readings are
*measured*: they are facts about the outputs on the probe and need targets there. Readings are in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipscope.claims.errors import UsageError
from lipscope.claims.quantity import Certainty, Moment, Reading
from lipscope.frequency.residual import Split, grid_split, scattered_split
from lipscope.frequency.spectral_bias import (
    THRESHOLD,
    FirstPassage,
    amplitude_ratio,
    first_passage,
    peak_error,
    target_peaks,
)

EVEN = 1e-4
"""How far grid spacings may differ, relative to their mean: float32 grids are only so even."""


@dataclass(frozen=True)
class AmplitudeRatio:
    """The output's amplitude at each frequency over the target's (`spectral_bias.amplitude_ratio`).

    The probe must be an even grid of one coordinate, in order. One series `ratio at K` for each frequency.

    Attributes:
        frequencies: periods on the grid that are watched; the target must have them.
    """

    frequencies: tuple[int, ...]
    name: str = "amplitude-ratio"

    def read(self, moment: Moment) -> Iterable[Reading]:
        """One reading for each frequency."""
        output, target = _outputs(self.name, moment)
        _demand_grid(self.name, moment.inputs)
        ratios = amplitude_ratio(output, target, self.frequencies).tolist()
        return [
            Reading(self.series(k), ratio, "measured", samples=len(output))
            for k, ratio in zip(self.frequencies, ratios, strict=True)
        ]

    @staticmethod
    def series(frequency: int) -> str:
        """The name of a frequency's series."""
        return f"ratio at {frequency}"

    def first_passage(
        self, history: Iterable[tuple[int, Iterable[Reading]]], threshold: float = THRESHOLD
    ) -> FirstPassage:
        """When each frequency was learned, from what was read at each step.

        Args:
            history: steps in order, each with readings of this quantity (others among them are passed over).
            threshold: of the ratio.

        Raises:
            UsageError: there is no record, or one lacks a frequency.
        """
        steps, rows = [], []
        for step, readings in history:
            found = {reading.name: reading.value for reading in readings}
            missing = [k for k in self.frequencies if self.series(k) not in found]
            if missing:
                raise UsageError(f"expected readings of {self.name} at step {step}, got none at frequencies {missing}")
            steps.append(step)
            rows.append([found[self.series(k)] for k in self.frequencies])
        ratios = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(self.frequencies))
        return first_passage(steps, ratios, self.frequencies, threshold)


@dataclass(frozen=True)
class PeakError:
    """The relative error at the peaks of the target's spectrum (`spectral_bias.peak_error`).

    The probe must be an even grid of one coordinate, in order. One series `error at K` for each peak.

    Attributes:
        frequencies: where to compare; the target's peaks if None.
    """

    frequencies: tuple[int, ...] | None = None
    name: str = "peak-error"

    def read(self, moment: Moment) -> Iterable[Reading]:
        """One reading for each peak."""
        output, target = _outputs(self.name, moment)
        _demand_grid(self.name, moment.inputs)
        chosen = target_peaks(target) if self.frequencies is None else self.frequencies
        errors = peak_error(output, target, chosen).tolist()
        return [
            Reading(f"error at {k}", error, "measured", samples=len(output))
            for k, error in zip(chosen, errors, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class ResidualSplit:
    """Energies of the residual's low-pass and high-pass parts: series `low`, `high` and `contrast`.

    Attributes:
        cutoff: without a kernel in periods on the probe's grid, with one in periods per unit of the inputs.
        kernel: None for a grid of one coordinate, in order; `gaussian` or `sinc` for scattered points, where the
            readings are estimates.
        density: of the scattered points; estimated if None.
    """

    cutoff: float
    kernel: str | None = None
    density: Tensor | None = None
    name: str = "residual-split"

    def read(self, moment: Moment) -> Iterable[Reading]:
        """The two energies, and their contrast in [-1, 1]."""
        output, target = _outputs(self.name, moment)
        parts: Sequence[tuple[str, float]]
        split: Split
        if self.kernel is None:
            _demand_grid(self.name, moment.inputs)
            split = grid_split(output - target, self.cutoff)
        else:
            split = scattered_split(moment.inputs, output - target, self.cutoff, self.kernel, self.density)
        parts = [("low", split.low), ("high", split.high), ("contrast", split.contrast)]
        certainty: Certainty = "measured" if self.kernel is None else "estimate"
        return [Reading(name, value, certainty, samples=split.points) for name, value in parts]


def _outputs(name: str, moment: Moment) -> tuple[Tensor, Tensor]:
    """Outputs and targets of the probe, in float64 and of one shape (N, outputs)."""
    if moment.targets is None:
        raise UsageError(f"expected a probe with targets for {name}, got inputs alone")
    with torch.no_grad():
        output = moment.model(moment.inputs)
    output = output.detach().to("cpu", torch.float64).reshape(len(moment.inputs), -1)
    target = moment.targets.detach().to("cpu", torch.float64).reshape(len(moment.targets), -1)
    if output.shape != target.shape:
        raise UsageError(
            f"expected as many outputs as targets for {name}, a quantity of regressions, got "
            f"{tuple(output.shape)} and {tuple(target.shape)}"
        )
    return output, target


def _demand_grid(name: str, inputs: Tensor) -> None:
    points = inputs.detach().to("cpu", torch.float64).reshape(len(inputs), -1)
    advice = "for scattered points use ResidualSplit with a kernel"
    if points.shape[1] != 1:
        raise UsageError(f"expected a probe of one coordinate for {name}, got {points.shape[1]}; {advice}")
    spacings = points[:, 0].diff()
    mean = spacings.mean()
    if len(points) < 2 or mean == 0 or bool(((spacings - mean).abs() > EVEN * mean.abs()).any()):
        raise UsageError(f"expected a probe on an even grid, in its order, for {name}; {advice}")
