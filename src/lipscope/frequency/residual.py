"""The residual of a regression in a low-pass and a high-pass part: on a grid by its transform, on scattered points by a kernel.

The variants for scattered, multi-dimensional data follow the idea of Kiessling and Thor (AAAI 2022): the part of the
residual below a frequency is its convolution with a kernel, a Monte Carlo sum over the points weighted by one over their
density. The formulas below are worked out here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipscope.claims.errors import UsageError
from lipscope.frequency.spectral_bias import coefficients

KERNELS = ("gaussian", "sinc")
"""Low-pass kernels of `scattered_split`."""

BLOCK = 1 << 22
"""How many entries of the kernel matrix are in memory at once."""


@dataclass(frozen=True)
class Split:
    """Energies of a residual below and above a frequency.

    Attributes:
        low: mean square of the low-pass part.
        high: mean square of the high-pass part.
        total: mean square of the residual. On a grid it is `low + high` exactly; a kernel is no projector, so that for
            scattered points the sum differs, most of all for the Gaussian one.
        points: how many there are.
    """

    low: float
    high: float
    total: float
    points: int

    @property
    def contrast(self) -> float:
        """`(high - low) / (high + low)`: 1 if all error is at high frequencies, -1 if all is at low ones, nan if there is none."""
        both = self.low + self.high
        return (self.high - self.low) / both if both > 0 else math.nan


def grid_split(residual: Tensor, cutoff: float) -> Split:
    """The split by the transform over a grid.

    Args:
        residual: (N,) or (N, outputs), on an even grid in its order; outputs are summed.
        cutoff: frequencies k <= cutoff are low, in periods on the grid.

    Raises:
        UsageError: values are not finite, there are fewer than 2 points, or the cutoff is negative.
    """
    if not cutoff >= 0:
        raise UsageError(f"expected a cutoff >= 0, got {cutoff}")
    points = len(residual)
    power = coefficients(residual).abs().square().sum(1)
    # A real signal has c_{-k} = conj(c_k): all but 0 and N/2 occur twice (Parseval: mean square = sum over all k).
    power[1 : (points + 1) // 2] *= 2
    low = torch.arange(len(power)) <= cutoff
    total = residual.detach().to(torch.float64).square().sum() / points
    return Split(float(power[low].sum()), float(power[~low].sum()), float(total), points)


def scattered_split(
    inputs: Tensor, residual: Tensor, cutoff: float, kernel: str = "gaussian", density: Tensor | None = None
) -> Split:
    """The split of a residual on scattered points by convolution with a low-pass kernel; an estimate.

    The low part at x is `sum_j g(x - x_j) r_j / p_j` with weights p_j of the density at the points. The Gaussian
    kernel has standard deviation `1/(2 pi cutoff)`, so that its transfer function is exp(-1/2) at the cutoff, and is
    normalised by `sum_j g(x - x_j) / p_j`, which keeps constants and corrects ends of the domain. The sinc kernel, the
    product over coordinates of `sin(2 pi cutoff t)/(pi t)`, cuts each coordinate's frequency off sharply, but near the
    ends of the domain it mixes low and high; its sum is divided by the number of points. Mean squares are over the domain (weights 1/p), not over the points.

    Args:
        inputs: (N, ...), flattened to N points of d coordinates.
        residual: (N,) or (N, outputs).
        cutoff: in periods per unit of the inputs, above 0.
        kernel: `gaussian` or `sinc`.
        density: (N,) values > 0 of the points' density, up to a factor for the Gaussian kernel; if None it is estimated
            by Gaussian kernels of Scott's width (`scipy.stats.gaussian_kde`), which smears ends of the domain.

    Raises:
        UsageError: sizes or values do not make sense; also coordinates that do not vary, if a density is to be estimated.
    """
    points = inputs.detach().to(torch.float64).reshape(len(inputs), -1)
    values = residual.detach().to(torch.float64).reshape(len(residual), -1)
    _check(points, values, cutoff, kernel)
    density = _estimated_density(points) if density is None else density.detach().to(torch.float64).reshape(-1)
    if density.shape != (len(points),) or not bool(((density > 0) & density.isfinite()).all()):
        raise UsageError("expected one finite density above 0 for each point")
    weights = 1 / density
    low = torch.empty_like(values)
    rows = max(1, BLOCK // (len(points) * points.shape[1]))
    for start in range(0, len(points), rows):
        part = slice(start, start + rows)
        matrix = _kernel(points[part, None, :] - points[None], cutoff, kernel) * weights
        scale = matrix.sum(1, keepdim=True) if kernel == "gaussian" else len(points)
        low[part] = (matrix @ values) / scale
    share = (weights / weights.sum())[:, None]
    low_energy, high_energy, total = (float((share * part.square()).sum()) for part in (low, values - low, values))
    return Split(low_energy, high_energy, total, len(points))


def _kernel(differences: Tensor, cutoff: float, kernel: str) -> Tensor:
    if kernel == "gaussian":
        return torch.exp(-0.5 * (2 * math.pi * cutoff * differences).square().sum(-1))
    return (2 * cutoff * torch.sinc(2 * cutoff * differences)).prod(-1)


def _check(points: Tensor, values: Tensor, cutoff: float, kernel: str) -> None:
    if len(points) != len(values) or len(points) < 2:
        raise UsageError(f"expected as many residuals as points, at least 2, got {len(values)} and {len(points)}")
    if not (math.isfinite(cutoff) and cutoff > 0):
        raise UsageError(f"expected a finite cutoff above 0, got {cutoff}")
    if kernel not in KERNELS:
        raise UsageError(f"expected a kernel out of {', '.join(KERNELS)}, got {kernel!r}")
    if not bool(points.isfinite().all() and values.isfinite().all()):
        raise UsageError("expected finite points and residuals; the training may have diverged")


def _estimated_density(points: Tensor) -> Tensor:
    import numpy as np
    from scipy.stats import gaussian_kde

    try:
        estimate = gaussian_kde(points.numpy().T)
        return torch.from_numpy(np.asarray(estimate(points.numpy().T), dtype=np.float64))
    except (np.linalg.LinAlgError, ValueError) as error:
        raise UsageError(
            f"expected points whose density can be estimated, got {len(points)} in {points.shape[1]} dimensions ({error}); "
            "give their density"
        ) from None
