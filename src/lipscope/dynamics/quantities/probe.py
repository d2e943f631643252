"""On the fixed probe: Jacobian norms (mean, quantiles, largest), loss, accuracy and margins."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations

import torch
from torch import Tensor

from lipscope.claims.quantity import Reading
from lipscope.dynamics.pointwise import pointwise_norms
from lipscope.dynamics.quantities.scene import POINTS, Scene, dtype_of, scale_of

PASSES = 64 * POINTS
"""Backward passes of one point for a reading."""


class ProbeLipschitz:
    """The l2 norm of the Jacobian at the probe's points: `lower` is the largest (`C_lower` of arXiv 2302.10886)."""

    name = "probe-lipschitz"

    def __init__(self) -> None:
        self.latest = math.nan

    def read(self, scene: Scene) -> Iterable[Reading]:
        """The largest norm, mean, root mean square, median and 99th percentile."""
        model, inputs = scene.precise(scene.inputs[: affordable(scene)])
        norms = pointwise_norms(model, inputs)
        self.latest = norms.lower
        note = scene.about(norms.samples, dtype_of(inputs))
        values = {
            "lower": norms.lower, "mean": norms.mean, "rms": norms.rms, "p50": norms.quantile(0.5),
            "p99": norms.quantile(0.99),
        }  # fmt: skip
        for name, value in values.items():
            yield Reading(name, value, "measured", samples=norms.samples, note=note)


def affordable(scene: Scene) -> int:
    """How many points of the probe have their Jacobians computed: fewer where the network has many outputs, at least two."""
    with torch.no_grad():
        outputs = int(scene.model(scene.inputs[:1]).numel())
    return max(2, min(POINTS, PASSES // max(outputs, 1)))


class Margins:
    """Loss, accuracy and margins on the whole probe; a margin is the true class's output minus the largest other one.

    `margin_per_lipschitz` is the median margin over `sqrt(2)` times the probe's Lipschitz value: how far, at most, an input
    is from the decision boundary if the network were as steep everywhere as it is on the probe. It is no certificate.
    """

    name = "margins"

    def __init__(self, lipschitz: ProbeLipschitz) -> None:
        self._lipschitz = lipschitz

    def read(self, scene: Scene) -> Iterable[Reading]:
        """What the targets and the loss allow."""
        count = len(scene.inputs)
        note = scene.about(count)
        with torch.no_grad():
            outputs = scene.model(scene.inputs)
            if scene.loss is not None and scene.targets is not None:
                loss = float(scene.loss(outputs, scene.targets).double().mean())
                yield Reading("probe_loss", loss, "measured", samples=count, note=note)
            margin = class_margins(outputs, scene.targets)
        if margin is None:
            return
        yield Reading("accuracy", float((margin > 0).double().mean()), "measured", samples=count, note=note)
        yield Reading("margin_mean", float(margin.mean()), "measured", samples=count, note=note)
        median = float(margin.quantile(0.5))
        yield Reading("margin_p10", float(margin.quantile(0.1)), "measured", samples=count, note=note)
        yield Reading("margin_p50", median, "measured", samples=count, note=note)
        steepness = math.sqrt(2) * self._lipschitz.latest
        if steepness > 0:
            yield Reading("margin_per_lipschitz", median / steepness, "estimate", samples=count, note=note)


def class_margins(outputs: Tensor, targets: Tensor | None) -> Tensor | None:
    """Margins in float64, (B,), for outputs (B, K) with K >= 2 and class numbers (B,); None for anything else."""
    fits = targets is not None and outputs.ndim == 2 and outputs.shape[1] >= 2 and targets.shape == outputs.shape[:1]
    if (
        targets is None
        or not fits
        or targets.is_floating_point()
        or targets.is_complex()
        or targets.dtype == torch.bool
    ):
        return None
    if not bool(((targets >= 0) & (targets < outputs.shape[1])).all()):
        return None
    exact = outputs.double()
    own = exact.gather(1, targets.long()[:, None])[:, 0]
    return own - exact.scatter(1, targets.long()[:, None], -math.inf).amax(1)


class PairMidpoints:
    """`lower_pairs`: the largest Jacobian norm at midpoints of pairs of the probe's points with the largest length.

    Convex combinations of data find steeper places than data does (arXiv 2302.10886, the set S*).
    """

    name = "convex"
    ENDS = 9

    def read(self, scene: Scene) -> Iterable[Reading]:
        """The largest norm over all pairs of `ENDS` points."""
        lengths = scene.inputs.flatten(1).double().norm(dim=1)
        longest = lengths.argsort(descending=True)[: self.ENDS].tolist()
        middles = [(scene.inputs[i] + scene.inputs[j]) / 2 for i, j in combinations(sorted(longest), 2)]
        if middles:
            model, inputs = scene.precise(torch.stack(middles[: affordable(scene)]))
            norms = pointwise_norms(model, inputs)
            points = f"midpoints of pairs of the {len(longest)} longest probe points"
            note = scene.about(norms.samples, dtype_of(inputs), points=points, scale=scale_of(inputs))
            yield Reading("lower_pairs", norms.lower, "measured", samples=norms.samples, note=note)
