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

WARM = 4
"""Iterations of a later reading, at most: it ends with the one that adds less than `SETTLED`."""

SETTLED = 1e-3
"""A relative growth of the estimate that is not worth another iteration."""

FRESH = 1e-2
"""The length of what is drawn and added to the unit vector of the last reading: in a converged vector nothing is left of a
direction that takes over later."""

SECONDS = 2.0
"""For the proof of one layer's norm; then the best bound so far is taken."""

LOOSE = 1.15
"""A carried bound that is so many times the estimate is proved anew, where the budget allows it."""


@dataclass
class Proved:
    """A norm that was proved, the weights it was proved for, and the seconds that it took."""

    weight: Tensor
    upper: float
    note: str
    seconds: float


class LayerNorms:
    """For every watched layer `norm`, an estimate by warm power iteration, and `norm_upper`, a proved bound.

    The estimate lies below the norm up to rounding. The bound is the last one that was proved, for weights W0, plus a bound of
    the norm of `W - W0` (triangle inequality), rounded upward. The estimated product is infinite if something else in the
    network has no finite factor of its own, which its note names.
    """

    name = "layer-norms"

    def __init__(self, layers: list[WatchedLayer], factors: Sequence[Factor] = (), unknown: str = "") -> None:
        self._layers = layers
        watched = {layer.name for layer in layers}
        self._calls = {f.name: f.calls for f in factors}
        self._others = [f for f in factors if f.name not in watched]
        self._unknown = unknown or "; ".join(f"{f.name!r}: {f.reason}" for f in factors if f.reason)
        self._vectors: dict[str, Tensor] = {}
        self._latest: dict[str, float] = {}
        self.proved: dict[str, Proved] = {}

    def read(self, scene: Scene) -> Iterable[Reading]:
        """The norms of this moment, and the logarithm of their product with the factors of everything else."""
        product = sum(f.calls * _log(_norm(f)) for f in self._others)
        for layer in self._layers:
            norm = self._iterate(layer, scene)
            product += self._calls.get(layer.name, 1) * _log(norm)
            precision = str(working(layer.weight).dtype).removeprefix("torch.")
            yield Reading("norm", norm, "estimate", layer.name, note=f"power iteration in {precision}, from below")
            known = self.proved.get(layer.name)
            if known is not None:
                upper = sum_up([known.upper, self.moved(layer)])
                yield Reading("norm_upper", upper, "computed", layer.name, note=known.note)
        if self._unknown:
            product = math.inf if not math.isnan(product) else product
        note = f"no finite product: {self._unknown}" if self._unknown else "eval mode"
        yield Reading("log_product", product, "estimate", note=note)

    def moved(self, layer: WatchedLayer) -> float:
        """Upper bound of the norm of the layer's change since its norm was proved; inf where nothing is known of it."""
        known = self.proved.get(layer.name)
        if known is None:
            return math.inf
        with torch.no_grad():
            if not layer.spreads:
                return 0.0 if torch.equal(layer.weight, known.weight) else math.inf
            found = perturbation_bound(layer, layer.weight - known.weight)
        return math.inf if math.isnan(found) else found

    def looseness(self, layer: WatchedLayer) -> float:
        """How many times the estimated norm the carried bound is, at least; 1 where a new proof would not help.

        The bound's own part in it counts only as far as the weights have moved: a norm that cannot be proved more tightly
        is not proved again and again.
        """
        known, norm = self.proved.get(layer.name), self._latest.get(layer.name, 0.0)
        moved = self.moved(layer)
        if known is None or not norm > 0 or not moved > (LOOSE - 1) * norm:
            return 1.0
        return (known.upper + moved) / norm

    @torch.no_grad()
    def _iterate(self, layer: WatchedLayer, scene: Scene) -> float:
        weight = working(layer.weight)
        vector = self._vectors.get(layer.name)
        times = WARM
        shape = (1, weight.shape[1]) if isinstance(layer.module, nn.Linear) else layer.input_shape
        drawn = torch.randn(shape, generator=scene.generator).to(weight)
        drawn = drawn / torch.linalg.vector_norm(drawn)
        if vector is None or not bool(torch.isfinite(vector).all()):
            vector, times = drawn, COLD
        else:
            vector = vector + FRESH * drawn
            vector = vector / torch.linalg.vector_norm(vector)
        norm = math.nan
        for _ in range(times):
            before = norm
            if isinstance(layer.module, nn.Linear):
                image = vector @ weight.T
                back = image @ weight
            else:
                image, pull = vjp(lambda x: layer.apply(x, weight), vector)[:2]
                (back,) = pull(image)
            # |W v| <= norm and |W^T W v|/|W v| <= norm for a unit vector v; the second is the better one.
            length, back_length = float(torch.linalg.vector_norm(image)), float(torch.linalg.vector_norm(back))
            norm = back_length / length if length > 0 else length
            vector = back / back_length if back_length > 0 else vector
            if times == WARM and norm <= before * (1 + SETTLED):
                break
        self._vectors[layer.name], self._latest[layer.name] = vector, norm
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
            yield from prove(self._followed, layer, scene.step)


class NormRenewals:
    """A new proof of the one norm whose carried bound is loosest, if it is loose and its proof can be paid.

    Attributes:
        allowance: seconds that a reading may take.
    """

    name = "norm-renewals"

    def __init__(self, followed: LayerNorms, layers: list[WatchedLayer]) -> None:
        self.allowance = math.inf
        self._followed, self._layers = followed, layers

    @property
    def dearest(self) -> float:
        """Seconds of the longest proof of one norm so far."""
        return max((known.seconds for known in self._followed.proved.values()), default=0.0)

    def read(self, scene: Scene) -> Iterable[Reading]:
        """The enclosure of one layer's norm, or nothing."""
        known = self._followed.proved
        payable = [x for x in self._layers if x.name in known and known[x.name].seconds <= self.allowance]
        loose = {layer: self._followed.looseness(layer) for layer in payable}
        if loose:
            layer = max(loose, key=lambda one: loose[one])
            if loose[layer] > LOOSE:
                yield from prove(self._followed, layer, scene.step)


def prove(followed: LayerNorms, layer: WatchedLayer, step: int) -> Iterable[Reading]:
    """The enclosure of the layer's norm for the weights of this step, from which `followed` carries on; or nothing."""
    weight, began = layer.weight.clone(), time.monotonic()
    if not bool(torch.isfinite(weight).all()):
        followed.proved.pop(layer.name, None)
        return
    linear_map = layer.linear_map(working(weight))
    if linear_map is None:
        return
    try:
        found = enclose(linear_map, "l2", tolerance=1e-2, deadline=began + SECONDS)
    except LipscopeError as error:
        yield Reading("norm_upper", math.inf, "computed", layer.name, note=str(error))
        return
    note = "proved in float64" if not found.failure else f"proved in float64 with probability 1 - {found.failure:g}"
    seconds = time.monotonic() - began
    followed.proved[layer.name] = Proved(weight, found.upper, f"{note}, carried from step {step}", seconds)
    yield Reading("norm_upper", found.upper, "computed", layer.name, note=note)
    yield Reading("norm_lower", found.lower, "computed", layer.name, note="attained by an explicit vector, float64")


def working(weight: Tensor) -> Tensor:
    """The same numbers in a precision that is computed in: float32 for what is narrower."""
    return weight if weight.dtype in (torch.float32, torch.float64) else weight.float()
