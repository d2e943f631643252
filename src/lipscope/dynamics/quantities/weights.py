"""Norms of weights, gradients and updates, and the length of the path: of every layer, and of the network."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lipscope.claims.quantity import Reading
from lipscope.dynamics.quantities.scene import Scene


class WeightNorms:
    """Frobenius norms per layer (all its own parameters together), in the parameters' precision.

    `path_length` adds up the distances between observed moments, a lower value of the true length if steps between them
    were not observed. `effective_step` is the update's norm over the weights'.
    """

    name = "weights"

    def __init__(self, model: nn.Module) -> None:
        self._layers: dict[str, list[nn.Parameter]] = {}
        seen: set[int] = set()
        for name, parameter in model.named_parameters():
            if id(parameter) not in seen and (parameter.is_floating_point() or parameter.is_complex()):
                seen.add(id(parameter))
                self._layers.setdefault(name.rpartition(".")[0], []).append(parameter)
        self._parameters = [p for group in self._layers.values() for p in group]
        self._before: list[Tensor] = [p.detach().clone() for p in self._parameters]
        self._path = dict.fromkeys(self._layers, 0.0)
        self._gradients: list[float] | None = None
        self._drift: list[float] = []

    def before(self, closure: bool) -> None:
        """Keep the weights; what they moved since the last observed step belongs to the path, too."""
        with torch.no_grad():
            live = [p.detach() for p in self._parameters]
            self._drift = self._moved(live)
            grads = [p.grad for p in self._parameters]
            dense = [torch.zeros(()) if g is None or g.is_sparse else g.detach() for g in grads]
            self._gradients = None if closure or all(g is None for g in grads) else self._norms(dense)

    def jumped(self) -> None:
        """The weights are about to be read at a later checkpoint: what they moved is one update."""
        self._drift, self._gradients = [0.0] * len(self._parameters), None

    def _moved(self, live: list[Tensor]) -> list[float]:
        """How far the weights are from those that were kept; then they are kept."""
        if live:
            torch._foreach_sub_(self._before, live)
        norms = self._norms(self._before)
        if live:
            torch._foreach_copy_(self._before, live)
        return norms

    @staticmethod
    def _norms(tensors: list[Tensor]) -> list[float]:
        if not tensors:
            return []
        return torch.stack([torch.linalg.vector_norm(t).double().cpu() for t in tensors]).tolist()

    def read(self, scene: Scene) -> Iterable[Reading]:
        """The norms of this moment; update and path only after a step that was seen from its beginning."""
        with torch.no_grad():
            live = [p.detach() for p in self._parameters]
            weights = self._norms(live)
            moved = self._moved(live)
        totals = {"weight_norm": 0.0, "gradient_norm": 0.0, "update_norm": 0.0}
        begun = bool(self._drift)
        at = 0
        for layer, parameters in self._layers.items():
            part = slice(at, at + len(parameters))
            at += len(parameters)
            weight, update = math.hypot(*weights[part]), math.hypot(*moved[part])
            yield Reading("weight_norm", weight, "measured", layer)
            if begun:
                self._path[layer] += update + math.hypot(*self._drift[part])
                yield Reading("update_norm", update, "measured", layer)
                yield Reading("effective_step", update / weight if weight else math.nan, "measured", layer)
                yield Reading("path_length", self._path[layer], "measured", layer)
            if begun and self._gradients is not None:
                gradient = math.hypot(*self._gradients[part])
                totals["gradient_norm"] = math.hypot(totals["gradient_norm"], gradient)
                yield Reading("gradient_norm", gradient, "measured", layer)
            totals["weight_norm"] = math.hypot(totals["weight_norm"], weight)
            totals["update_norm"] = math.hypot(totals["update_norm"], update)
        for name, value in totals.items():
            if name == "weight_norm" or (begun and (name == "update_norm" or self._gradients is not None)):
                yield Reading(name, value, "measured")
        self._drift, self._gradients = [], None
