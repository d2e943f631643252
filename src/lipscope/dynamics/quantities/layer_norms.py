"""Operator norms of dense layers and convolutions: followed by warm power iteration, and bounded between rare proofs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import vjp

from lipscope.claims.errors import LipscopeError
from lipscope.claims.quantity import Reading
from lipscope.claims.rounding import sum_up
from lipscope.dynamics.factors import Factor
from lipscope.dynamics.layers import WatchedLayer, perturbation_bound
from lipscope.dynamics.quantities.scene import Scene
from lipscope.operator_norm import enclose

SWEEP = 6.0
"""Seconds for one sweep; a sweep that does not get round goes on with the other layers next time."""

COLD = 20
"""Iterations when a layer is first met: the estimate is then a few per mille below the norm of a random matrix."""

SECONDS = 2.0
"""For the proof of one layer's norm; then the best bound so far is taken."""


@dataclass
class _Proved:
    """A norm that was proved, and the weights it was proved for."""

    weight: Tensor
    upper: float
    note: str
    step: int


class LayerNorms:
    """For every watched layer `norm`, an estimate from below by one warm power iteration, and `norm_upper`, a proved bound.

    The bound is the one that was proved for the weights W0 at the last sweep plus a bound of the norm of `W - W0`
    (triangle inequality), rounded upward. The estimated product is infinite if something else in the network has no finite
    factor of its own, which its note names.
    """

    name = "layer-norms"

    def __init__(self, layers: list[WatchedLayer], factors: Sequence[Factor] = (), unknown: str = "") -> None:
        self._layers = layers
        watched = {layer.name for layer in layers}
        self._calls = {f.name: f.calls for f in factors}
        self._others = [f for f in factors if f.name not in watched]
        self._unknown = unknown or "; ".join(f"{f.name!r}: {f.reason}" for f in factors if f.reason)
        self._vectors: dict[str, Tensor] = {}
        self.proved: dict[str, _Proved] = {}

    def read(self, scene: Scene) -> Iterable[Reading]:
        """The norms of this moment, and the logarithm of their product with the factors of everything else."""
        product = sum(f.calls * _log(_norm(f)) for f in self._others)
        for layer in self._layers:
            norm = self._iterate(layer, scene)
            product += self._calls.get(layer.name, 1) * _log(norm)
            yield Reading("norm", norm, "estimate", layer.name, note="power iteration, from below")
            known = self.proved.get(layer.name)
            if known is not None:
                with torch.no_grad():
                    moved = perturbation_bound(layer, layer.weight - known.weight) if layer.spreads else math.inf
                if math.isnan(moved) or not (layer.spreads or torch.equal(layer.weight, known.weight)):
                    moved = math.inf
                yield Reading("norm_upper", sum_up([known.upper, moved]), "computed", layer.name, note=known.note)
        if self._unknown:
            product = math.inf if not math.isnan(product) else product
        note = f"no finite product: {self._unknown}" if self._unknown else ""
        yield Reading("log_product", product, "estimate", note=note)

    @torch.no_grad()
    def _iterate(self, layer: WatchedLayer, scene: Scene) -> float:
        weight = layer.weight
        vector = self._vectors.get(layer.name)
        times = 1
        if vector is None or not bool(torch.isfinite(vector).all()):
            shape = (1, weight.shape[1]) if isinstance(layer.module, nn.Linear) else layer.input_shape
            vector = torch.randn(shape, generator=scene.generator).to(weight)
            vector, times = vector / torch.linalg.vector_norm(vector), COLD
        norm = math.nan
        for _ in range(times):
            if isinstance(layer.module, nn.Linear):
                image = vector @ weight.T
                back = image @ weight
            else:
                image, pull = vjp(layer.apply, vector)[:2]
                (back,) = pull(image)
            # |W v| <= norm and |W^T W v|/|W v| <= norm for a unit vector v; the second is the better one.
            length, back_length = float(torch.linalg.vector_norm(image)), float(torch.linalg.vector_norm(back))
            norm = back_length / length if length > 0 else length
            vector = back / back_length if back_length > 0 else vector
        self._vectors[layer.name] = vector
        return norm


def _log(norm: float) -> float:
    return math.log(norm) if norm > 0 else -math.inf if norm == 0 else math.nan


def _norm(factor: Factor) -> float:
    """Of a factor that is not followed by iteration: a normalization's scale, a function's constant."""
    if factor.operator is None:
        return factor.constant
    with torch.no_grad():
        snapshot = factor.operator.snapshot()
        finite = all(bool(part.isfinite().all()) for part in snapshot)
        return factor.operator.expand(snapshot).norm if finite else math.nan


class NormProofs:
    """Proved two-sided bounds of the operator norms of all watched layers, from which `LayerNorms` carries on."""

    name = "norm-proofs"

    def __init__(self, followed: LayerNorms, layers: list[WatchedLayer]) -> None:
        self._followed = followed
        self._layers = list(layers)

    def read(self, scene: Scene) -> Iterable[Reading]:
        """Enclosures of this moment."""
        end = time.monotonic() + SWEEP
        for done, layer in enumerate(list(self._layers)):
            if done and time.monotonic() >= end:
                self._layers = [*self._layers[done:], *self._layers[:done]]
                return
            weight = layer.weight.clone()
            if not bool(torch.isfinite(weight).all()):
                self._followed.proved.pop(layer.name, None)
                continue
            exact = weight if weight.dtype in (torch.float32, torch.float64) else weight.float()
            linear_map = layer.linear_map(exact)
            if linear_map is None:
                continue
            try:
                found = enclose(linear_map, "l2", tolerance=1e-2, deadline=time.monotonic() + SECONDS)
            except LipscopeError as error:
                yield Reading("norm_upper", math.inf, "computed", layer.name, note=str(error))
                continue
            note = "proved" if not found.failure else f"proved with probability 1 - {found.failure:g}"
            self._followed.proved[layer.name] = _Proved(
                weight, found.upper, f"{note}, carried from step {scene.step}", scene.step
            )
            yield Reading("norm_upper", found.upper, "computed", layer.name, note=note)
            yield Reading("norm_lower", found.lower, "computed", layer.name, note="attained by an explicit vector")
