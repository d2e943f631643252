"""Gradient noise as it acts on operator norms: drift, variance and curvature of a training batch's gradient, as estimates.

They follow from two scalars for each sample, micro-batch or rank. Nothing else of a gradient is kept and no covariance matrix
is formed; the covariance between layers is in the variance of the summed projections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipscope.claims.errors import UsageError
from lipscope.dynamics.factors import Factor
from lipscope.dynamics.projections import LayerProjections, Projections
from lipscope.dynamics.sampling import Loss, micro_batch_projections, per_sample_projections


@dataclass(frozen=True)
class NoiseLevel:
    """Of one layer, for the gradient `g = grad L + xi` of a training batch.

    Attributes:
        layer: its name.
        calls: how often the network uses it.
        norm: its operator norm.
        drift: estimate of `D sigma[grad L]`.
        variance: estimate of the variance of `D sigma[g]`.
        curvature: estimate of `E H(xi, xi)`.
        flow_curvature: estimate of `H(grad L, grad L)`, which may come out below 0.
        note: why something is nan, or empty.
    """

    layer: str
    calls: int
    norm: float
    drift: float
    variance: float
    curvature: float
    flow_curvature: float
    note: str = ""


@dataclass(frozen=True)
class NoiseLevels:
    """Of the network.

    Attributes:
        layers: in order.
        cross_variance: of the network's log norm, `sum_l calls_l D sigma_l[g] / sigma_l`, with all covariances between layers.
        samples: how many samples the estimates come from.
        batch_size: of the batches that they are about.
        note: why something is nan, or empty.
    """

    layers: tuple[NoiseLevel, ...]
    cross_variance: float
    samples: int
    batch_size: int
    note: str = ""


def noise_levels(projections: Projections, batch_size: int, population: int | None = None) -> NoiseLevels:
    """Unbiased estimates for batches of `batch_size` samples, from units that are independent or drawn without replacement.

    With the sample variance `s^2` over units of size k, a batch of B has `s^2 k / B`. Batches drawn without replacement from
    a population of N have that times `1 - B/N` (which is `(N-B)/(N-1)` for a covariance that divides by N). If the loss is
    a sum over the batch, gradients are B times larger.

    Raises:
        UsageError: fewer than two units, or a batch larger than the population.
    """
    count = projections.units
    if count < 2:
        raise UsageError(f"expected at least 2 samples or micro-batches to tell their noise, got {count}")
    if population is not None and not 0 < batch_size <= population:
        raise UsageError(f"expected a batch of 1 to {population} samples, got {batch_size}")
    share = projections.unit_size / batch_size * (1.0 if population is None else 1 - batch_size / population)
    scale = float(batch_size) if projections.reduction == "sum" else 1.0
    levels = tuple(_level(part, count, share, scale, projections.unit_size) for part in projections.layers)
    joint = sum(
        (part.calls / part.norm) * part.first for part in projections.layers if bool(torch.isfinite(part.first).all())
    )
    variance = float(joint.var()) * share * scale**2 if isinstance(joint, Tensor) else math.nan
    note = "; ".join(f"{level.layer!r}: {level.note}" for level in levels if level.note)
    return NoiseLevels(levels, variance, count * projections.unit_size, batch_size, note)


def _level(part: LayerProjections, count: int, share: float, scale: float, unit_size: int) -> NoiseLevel:
    # H is a quadratic form: mean of H(g_i - gbar) is mean H(g_i) - H(gbar), and M/(M-1) makes it unbiased.
    spread = (float(part.curvature.mean()) - part.mean_curvature) * count / (count - 1)
    return NoiseLevel(
        part.layer, part.calls, part.norm,
        drift=scale * float(part.first.mean()),
        variance=scale**2 * share * float(part.first.var()),
        curvature=scale**2 * share * spread,
        flow_curvature=scale**2 * (part.mean_curvature - spread / count),
        note=part.note,
    )  # fmt: skip


def per_sample_noise(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss: Loss,
    factors: Sequence[Factor] | None = None,
    *,
    batch_size: int | None = None,
    population: int | None = None,
) -> NoiseLevels:
    """`noise_levels` of `per_sample_projections`, for batches of `batch_size` (of as many samples as there are inputs)."""
    found = per_sample_projections(model, inputs, targets, loss, factors)
    return noise_levels(found, batch_size or len(inputs), population)


def micro_batch_noise(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss: Loss,
    parts: int,
    factors: Sequence[Factor] | None = None,
    *,
    batch_size: int | None = None,
    population: int | None = None,
) -> NoiseLevels:
    """`noise_levels` of `micro_batch_projections`, for batches of `batch_size` (of as many samples as there are inputs)."""
    found = micro_batch_projections(model, inputs, targets, loss, parts, factors)
    return noise_levels(found, batch_size or len(inputs), population)
