"""What gradients do to operator norms, in two scalars for each: `D sigma[g]` and `H(g, g)`, of samples, micro-batches or ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lipscope.claims.errors import UsageError
from lipscope.dynamics.expansions import Expansion
from lipscope.dynamics.factors import Factor
from lipscope.dynamics.operators import Operator
from lipscope.dynamics.shadow import untouched

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class LayerProjections:
    """What the gradients of M units (samples, micro-batches or ranks) do to one layer's norm.

    Attributes:
        layer: its name.
        calls: how often the network uses it.
        norm: its operator norm.
        first: `D sigma[g_i]`, (M,).
        curvature: `H(g_i, g_i)`, (M,); nan where only larger units can tell.
        mean_curvature: `H(gbar, gbar)` of the units' mean.
        note: why something is nan, or empty.
    """

    layer: str
    calls: int
    norm: float
    first: Tensor
    curvature: Tensor
    mean_curvature: float
    note: str = ""


@dataclass(frozen=True)
class Projections:
    """Of all layers, for the same units in the same order.

    Attributes:
        layers: in the order of the network.
        units: M.
        unit_size: samples in a unit.
        reduction: how the loss joins the samples of a batch.
    """

    layers: tuple[LayerProjections, ...]
    units: int
    unit_size: int
    reduction: Reduction


@dataclass(frozen=True)
class Around:
    """A layer with weights and its expansion around them."""

    factor: Factor
    operator: Operator
    expansion: Expansion


def expand_factors(factors: Sequence[Factor]) -> tuple[Around, ...]:
    """The expansions around the present weights, of every factor with weights of its own, a simple norm and a gradient."""
    with untouched(), torch.no_grad():
        found = []
        for factor in factors:
            operator = factor.operator
            if operator is None or operator.parameter is None or not operator.parameter.requires_grad:
                continue
            snapshot = operator.snapshot()
            if all(bool(torch.isfinite(part).all()) for part in snapshot):
                expansion = operator.expand(snapshot)
                if expansion.simple:
                    found.append(Around(factor, operator, expansion))
        return tuple(found)


def gradient_projections(
    around: Sequence[Around], gradients: Mapping[int, Tensor], unit_size: int = 1, reduction: Reduction = "mean"
) -> Projections:
    """One gradient (of a micro-batch, of a rank, or `.grad` itself) as one unit.

    Args:
        around: from `expand_factors`.
        gradients: by `id` of the parameter; a parameter without one counts as 0.
        unit_size: samples that it is the mean of.
        reduction: of the loss; the gradients of a sum are divided by `unit_size`, so that units are means in both cases.
    """
    layers = []
    scale = 1 / unit_size if reduction == "sum" else 1.0
    for one in around:
        gradient = gradients.get(id(one.operator.parameter))
        change = torch.zeros_like(one.expansion.direction)
        if gradient is not None:
            change = scale * gradient.detach().to("cpu", torch.float64).reshape(change.shape)
        bend = _curvature(one.expansion, change)
        first = torch.tensor([one.expansion.first(change)], dtype=torch.float64)
        layers.append(
            LayerProjections(one.factor.name, one.factor.calls, one.expansion.norm, first,
                             torch.tensor([bend], dtype=torch.float64), bend)
        )  # fmt: skip
    return Projections(tuple(layers), 1, unit_size, reduction)


def _curvature(expansion: Expansion, change: Tensor) -> float:
    return float(expansion.second(expansion.image(change)[None])[0, 0]) if bool(change.any()) else 0.0


def pooled(parts: Sequence[Projections], mean: Projections) -> Projections:
    """Units of equal size from several places (ranks, accumulated micro-batches) together.

    Args:
        parts: for the same layers around the same weights.
        mean: `gradient_projections` of the mean of all the units' gradients (what data parallel training has anyway).

    Raises:
        UsageError: the parts differ in layers, size or reduction.
    """
    kinds = {(tuple(layer.layer for layer in p.layers), p.unit_size, p.reduction) for p in parts}
    if len(kinds) != 1 or [layer.layer for layer in mean.layers] != list(next(iter(kinds))[0]):
        raise UsageError("expected projections of the same layers in units of one size, got different ones or none")
    layers = tuple(
        replace(
            whole,
            first=torch.cat([p.layers[i].first for p in parts]),
            curvature=torch.cat([p.layers[i].curvature for p in parts]),
        )
        for i, whole in enumerate(mean.layers)
    )
    return Projections(layers, sum(p.units for p in parts), parts[0].unit_size, parts[0].reduction)
