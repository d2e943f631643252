"""Singular values of Jacobians in float64, of the network and of every layer's output, and the dimension of features."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lipscope.claims.quantity import Reading
from lipscope.dynamics.pointwise import jacobians
from lipscope.dynamics.quantities.scene import Scene

PROBES = 8
"""Points of the probe whose Jacobians are decomposed."""

SHOWN = 10
"""Singular values that are logged, from the largest."""

WIDEST = 512
"""Layers with more outputs are left out: a Jacobian costs one backward pass an output."""

WIDE = 128
"""Layers with more outputs than this get a quarter of the probes."""

TOLERANCES = (1e-2, 1e-4, 1e-6)
"""Relative to the largest singular value, for the rank."""


class JacobianSpectrum:
    """The spectrum of the Jacobian with respect to the input, averaged over probes, in float64.

    `rank_eps` counts singular values above eps times the largest, `stable_rank` is `|J|_F^2 / |J|_2^2`, `entropy_rank` the
    exponential of the entropy of the normalised singular values. Without a layer: of the network; with one: of the map
    from the input to that layer's output.
    """

    name = "spectrum"

    def read(self, scene: Scene) -> Iterable[Reading]:
        """The network's spectrum, then the layers' in the order of the forward pass."""
        model = scene.subject.view.double()
        inputs = scene.inputs[:PROBES].double().cpu()
        note = scene.about(len(inputs), "float64")
        yield from spectrum_readings(jacobians(model, inputs), "", note)
        modules = dict(model.named_modules())
        for layer in scene.subject.layers:
            output = output_of(model, modules[layer.name])
            with torch.no_grad():
                first = output(inputs[:1])
            if first.ndim and first.shape[0] == 1 and 0 < first.numel() <= WIDEST:
                few = inputs if first.numel() <= WIDE else inputs[: max(PROBES // 4, 1)]
                yield from spectrum_readings(jacobians(output, few), layer.name, scene.about(len(few), "float64"))


def spectrum_readings(matrices: Tensor, layer: str, note: str) -> Iterable[Reading]:
    """The readings of Jacobians (n, outputs, inputs); none where an entry is not finite."""
    count = len(matrices)
    if not bool(matrices.isfinite().all()):
        return
    values = _singular_values(matrices.double())
    largest = values[:, :1]
    for index, value in enumerate(values.mean(0)[:SHOWN].tolist(), start=1):
        yield Reading(f"singular_value_{index}", value, "measured", layer, count, note)
    for tolerance in TOLERANCES:
        rank = ((values > tolerance * largest) & (values > 0)).sum(1).double().mean()
        name = f"rank_1e-{round(-torch.log10(torch.tensor(tolerance)).item())}"
        yield Reading(name, float(rank), "measured", layer, count, note)
    safe = largest.clamp_min(torch.finfo(torch.float64).tiny)
    stable = ((values / safe) ** 2).sum(1).mean()
    shares = values / values.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    entropy = torch.special.entr(shares).sum(1).exp()
    zero = largest[:, 0] == 0
    yield Reading("stable_rank", float(stable), "measured", layer, count, note)
    yield Reading("entropy_rank", float(torch.where(zero, 0.0, entropy).mean()), "measured", layer, count, note)


def _singular_values(matrices: Tensor) -> Tensor:
    """All singular values, largest first; of large matrices from the Gram matrix, good to 1e-7 of the largest."""
    if min(matrices.shape[1:]) <= WIDE:
        values: Tensor = torch.linalg.svdvals(matrices)
        return values
    gram = matrices @ matrices.mT if matrices.shape[1] <= matrices.shape[2] else matrices.mT @ matrices
    squares: Tensor = torch.linalg.eigvalsh(gram)
    return squares.flip(1).clamp_min(0.0).sqrt()


def output_of(model: nn.Module, module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function from the model's input to the output of one of its modules (of its first call)."""

    def call(x: Tensor) -> Tensor:
        found: list[Tensor] = []
        handle = module.register_forward_hook(lambda m, i, out: found.append(out))
        try:
            model(x)
        finally:
            handle.remove()
        return found[0]

    return call


class FeatureDimension:
    """How many dimensions the probe's features fill at every layer: `(sum v)^2 / sum v^2` of their variances v.

    The participation ratio of the eigenvalues of the covariance of a layer's outputs over the probe, between 1 and the
    number of points less one; features that do not vary have none.
    """

    name = "features"

    def read(self, scene: Scene) -> Iterable[Reading]:
        """One value a layer."""
        count = len(scene.inputs)
        modules = dict(scene.model.named_modules())
        for layer in scene.subject.layers:
            with torch.no_grad():
                features = output_of(scene.model, modules[layer.name])(scene.inputs)
                if features.ndim < 2 or len(features) != count or count < 2:
                    continue
                flat = features.double().flatten(1)
                centred = flat - flat.mean(0)
                gram = centred @ centred.T
                trace, squares = float(gram.trace()), float(gram.square().sum())
            if squares > 0:
                yield Reading(
                    "feature_dimension", trace**2 / squares, "measured", layer.name, count, scene.about(count)
                )
