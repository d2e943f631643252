"""How local sensitivity is spread over frequencies: an exact split of the squared gradient (arXiv 2301.13514 for losses).

The unitary discrete Fourier transform keeps lengths (Parseval), so `|J|_F^2` is the sum over frequencies of the power of the
transformed rows, and over the bands of a partition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipscope.claims.errors import UsageError
from lipscope.frequency.bands import Bands, band_masks
from lipscope.frequency.evaluation import Model, check_dtype, check_gradients, check_inputs, check_model
from lipscope.frequency.jacobian import pullback, rows
from lipscope.frequency.statistics import number, numbers, standard_error

RINGS = 32
"""How many rings a radial profile has at most."""


@dataclass(frozen=True, eq=False)
class GradientSpectrum:
    """The power of gradients by band, over n examples.

    Attributes:
        power: mean of the power in each band, (M,); it sums to the mean of `|J|_F^2` (or of the squared gradient).
        power_se: its standard error.
        share: mean over the examples with a gradient of the share of each band, (M,); sums to 1. nan if there are none.
        share_se: its standard error.
        total: mean of `|J|_F^2`.
        total_se: its standard error.
        samples: n.
        zeros: how many examples have gradient 0; they count in `power`, and cannot in `share`.
        exact: whether powers are exact up to rounding, or estimated from random projections of the outputs.
    """

    power: Tensor
    power_se: Tensor
    share: Tensor
    share_se: Tensor
    total: Tensor
    total_se: Tensor
    samples: int
    zeros: int
    exact: bool = True

    def to_json(self) -> dict[str, object]:
        """The same as plain numbers."""
        return {
            "power": numbers(self.power), "power_se": numbers(self.power_se), "share": numbers(self.share),
            "share_se": numbers(self.share_se), "total": number(self.total), "total_se": number(self.total_se),
            "samples": self.samples, "zero_gradients": self.zeros, "exact": self.exact,
        }  # fmt: skip


def split(power: Tensor, bands: Bands, exact: bool = True) -> GradientSpectrum:
    """The spectrum of examples whose power at every frequency is known, (n, *grid)."""
    by_band = power.flatten(1) @ bands.masks.flatten(1).to(power.dtype).T
    total = power.flatten(1).sum(dim=1)
    alive = total > 0
    shares = by_band[alive] / total[alive].unsqueeze(1)
    nothing = torch.full((bands.count,), torch.nan, dtype=power.dtype)
    return GradientSpectrum(
        by_band.mean(dim=0), standard_error(by_band), shares.mean(dim=0) if bool(alive.any()) else nothing,
        standard_error(shares) if bool(alive.any()) else nothing, total.mean(), standard_error(total),
        power.shape[0], int((~alive).sum()), exact,
    )  # fmt: skip


def by_class(power: Tensor, labels: Tensor, bands: Bands, exact: bool = True) -> dict[int, GradientSpectrum]:
    """The spectrum of the examples of each class."""
    return {int(c): split(power[labels == c], bands, exact) for c in torch.unique(labels)}


def loss_gradient_power(
    model: Model, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor], bands: Bands, batch: int = 128
) -> Tensor:
    """The power of the input gradient of a loss at every frequency, (n, *grid), summed over channels: one backward pass.

    Args:
        model: in eval mode.
        x: (n, C, *grid).
        y: targets, (n, ...).
        loss: of outputs and targets, one number for each example or their sum (not their mean).
        bands: of the grid.
        batch: how many examples are looked at together.

    Raises:
        ModelError: the model is in train mode.
        UsageError: x is not on the grid of the bands, or there are not as many targets as examples.
    """
    check_model(model)
    check_inputs(x, bands.grid)
    check_dtype(model, x)
    if x.shape[0] != y.shape[0]:
        raise UsageError(f"expected a target for each of {x.shape[0]} examples, got {y.shape[0]}")
    found: list[Tensor] = []
    for part, targets in zip(torch.split(x, batch), torch.split(y, batch), strict=True):
        points, outputs = rows(model, part)
        with torch.enable_grad():
            value = loss(outputs, targets).sum()
        gradient = pullback(points, value, torch.ones_like(value))
        check_gradients(gradient, sum(map(len, found)))
        found.append(bands.spectrum(gradient).abs().square().sum(dim=1))
    return torch.cat(found)


def radial_profile(power: Tensor, grid: tuple[int, ...], rings: int = RINGS) -> list[dict[str, object]]:
    """Mean power per coefficient in thin round rings, with standard errors over the examples (n, *grid).

    Each ring has `low`, `high` (cycles per sample), `power`, `power_se` and `frequencies`, how many coefficients it has.
    """
    thin = band_masks(grid, min(rings, max(1, max(grid) // 2)), "round")
    means = power.flatten(1) @ thin.masks.flatten(1).to(power.dtype).T / torch.tensor(thin.sizes, dtype=power.dtype)
    mean, error = means.mean(dim=0), standard_error(means)
    return [
        {
            "low": thin.low[i], "high": thin.high[i], "power": number(mean[i]), "power_se": number(error[i]),
            "frequencies": thin.sizes[i],
        }
        for i in range(thin.count)
    ]  # fmt: skip
