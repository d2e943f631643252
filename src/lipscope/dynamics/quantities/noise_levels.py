"""Levels of the gradient noise seen by the operator norms: projections of per-sample gradients, never the gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from lipscope.claims.quantity import Reading
from lipscope.dynamics.quantities.scene import Scene, dtype_of, scale_of


class NoiseLevels:
    """Drift, variance and curvature of the projected gradient noise, estimated on fixed data with the mean loss.

    `drift` is `u^T g v` of the mean gradient g, `diffusion` the variance of that projection for a batch as large as the data
    that is looked at, `noise_curvature_level` the mean of the operator norm's second derivative along the noise; see
    `lipscope.dynamics.noise`. These are levels at a moment; adding them up over sparse moments forecasts nothing.
    """

    name = "noise"

    def __init__(
        self, inputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor], points: str = "probe points"
    ) -> None:
        self._inputs, self._targets, self._loss, self._points = inputs, targets, loss, points

    def read(self, scene: Scene) -> Iterable[Reading]:
        """One set of values a layer, and the variance across layers."""
        from lipscope.dynamics.noise import per_sample_noise

        model, inputs = scene.precise(self._inputs)
        with scene.subject.view.differentiable(model):
            levels = per_sample_noise(model, inputs, self._targets, self._loss)
        count = levels.samples
        about = scene.about(count, dtype_of(inputs), f"for batches of {count}", self._points, scale_of(self._inputs))
        note = "; ".join(filter(None, (about, levels.note)))
        for level in levels.layers:
            values = {"drift": level.drift, "diffusion": level.variance, "noise_curvature_level": level.curvature}
            for name, value in values.items():
                yield Reading(name, value, "estimate", level.layer, levels.samples, note)
        yield Reading("diffusion", levels.cross_variance, "estimate", samples=levels.samples, note=note)
