"""Noise of the gradient that training itself computes: from its micro-batches, or from one rank against the mean of all.

**Micro-batches.** A step's gradient `g` is the sum of what c backward passes left. The parts `c g_j` have the mean `g`, so the
variance of a projection of `g` is the sample variance of the parts' divided by c, and by c R if R ranks are averaged.

**Ranks.** Where every rank runs one backward pass, rank 0 knows its own gradient `g_0` and the mean `g` of all R. With
independent ranks of equal size `E (g_0 - g)(g_0 - g)^T = (R - 1) Cov g`, so one difference divided by R - 1 is unbiased, with
one degree of freedom. Nothing is sent between ranks: an observer that only one of them runs must never start a collective.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lipscope.claims.quantity import Reading
from lipscope.dynamics.factors import Factor
from lipscope.dynamics.noise import NoiseLevel, NoiseLevels, noise_levels
from lipscope.dynamics.projections import Around, Projections, expand_factors, gradient_projections, pooled
from lipscope.dynamics.quantities.scene import Scene

PARALLEL = 1e-4
"""How far, as `1 - cos^2`, two gradients may be from parallel: clipping and unscaling change the length alone."""

LOOKS = 2
"""After so many steps with one backward pass on one rank, none is looked for any more."""

Gradients = dict[int, Tensor]


class BatchNoise:
    """`batch_drift`, `batch_diffusion` and `batch_noise_curvature` of the training batch, where its parts can be told apart.

    Tensor hooks listen to the gradients of one step, and are gone before the optimizer's step. The gradients of the parts are
    scaled as the step's own is (by clipping, by a loss scaler). Silent where a step has one backward pass on one rank, where the
    weights moved between two passes, and where the step's gradient is not what the passes left. On one rank the first steps are
    listened to for the number of their passes alone, which costs nothing.

    Attributes:
        ranks: whose gradients are averaged in the backward pass.
        several: whether a step is known to have parts that can be told apart; None before a step was listened to.
        seconds: spent in hooks since `arm`, by `clock`.
        armed: whether hooks are listening.
    """

    name = "batch-noise"

    def __init__(self, factors: Sequence[Factor], clock: Callable[[], float] = time.perf_counter) -> None:
        self.ranks, self.seconds, self.armed = 1, 0.0, False
        self.several: bool | None = None
        self.clock, self._factors = clock, factors
        self._parameters = {
            id(f.operator.parameter): f.operator.parameter
            for f in factors
            if f.operator is not None and f.operator.parameter is not None and f.operator.parameter.requires_grad
        }
        self._looks = LOOKS
        self._handles: list[Any] = []
        self._found: tuple[NoiseLevels, int, str] | None = None
        self._around: tuple[Around, ...] = ()
        self._versions: list[int] = []
        self._forget()

    @property
    def wanted(self) -> bool:
        """Whether another step should be listened to."""
        return self._looks > 0 and bool(self._parameters)

    def arm(self) -> None:
        """Listen to the gradients of the step that comes next."""
        self.disarm()
        self._found = None
        self._counting = self.ranks == 1 and not self.several
        self._around = () if self._counting else expand_factors(self._factors)
        held = {id(one.operator.parameter) for one in self._around}
        for key, parameter in self._parameters.items():
            if self._counting or key in held:
                listener = self._count if self._counting else self._listener(key)
                self._handles.append(parameter.register_hook(listener))  # type: ignore[no-untyped-call]
        self._versions = self._moved()
        self.armed = True

    def disarm(self) -> None:
        """Stop listening, and forget what was heard."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.armed, self.seconds = [], False, 0.0
        self._forget()

    def give_up(self) -> None:
        """Never listen again."""
        self.disarm()
        self._looks = 0

    def finish(self) -> None:
        """Right before the step: what the parts say of its gradient."""
        try:
            if not self.armed or self._versions != self._moved():
                return
            if self._counting:
                self.several = self._passes > 1
                self._looks -= self._passes
                return
            self._fold()
            count = len(self._units)
            if count == 0 or (count == 1 and self.ranks == 1):
                self._looks -= count
                return
            self._looks = LOOKS
            self._found = self._levels(count)
        finally:
            self.disarm()

    def read(self, scene: Scene) -> Iterable[Reading]:
        """The levels of the step that was just made; nothing at other moments."""
        del scene
        found, self._found = self._found, None
        if found is None:
            return
        levels, count, note = found
        for level in levels.layers:
            values = {
                "batch_drift": level.drift, "batch_diffusion": level.variance, "batch_noise_curvature": level.curvature
            }  # fmt: skip
            for name, value in values.items():
                yield Reading(name, value, "estimate", level.layer, note=note)
        yield Reading("batch_diffusion", levels.cross_variance, "estimate", note=note)
        yield Reading("micro_batches", float(count), "measured", note=f"backward passes, on each of {self.ranks} ranks")

    # ------------------------------------------------------------------------------------------------- listening

    def _forget(self) -> None:
        self._around, self._versions = (), []
        self._counting, self._passes = False, 0
        self._units: list[Projections] = []
        self._total: Gradients = {}
        self._heard: Gradients = {}
        self._after: Gradients = {}
        self._inside = False

    def _count(self, gradient: Tensor) -> None:
        del gradient
        if not self._inside:
            self._inside = True
            self._passes += 1
            torch.autograd.Variable._execution_engine.queue_callback(self._pause)

    def _pause(self) -> None:
        self._inside = False

    def _listener(self, key: int) -> Callable[[Tensor], None]:
        def listen(gradient: Tensor) -> None:
            with self._timed():
                if not self._inside:
                    self._begin()
                new = gradient.detach().to("cpu", torch.float64, copy=True)
                self._heard[key] = new if key not in self._heard else self._heard[key] + new

        return listen

    def _begin(self) -> None:
        """The first gradient of a backward pass: gradients of earlier passes count if nobody has thrown them away."""
        self._inside = True
        self._fold()
        empty = not any(bool(g.any()) for g in self._present().values())
        if empty:
            self._units, self._total = [], {}
        elif not self._units:
            raise ValueError("there are gradients of an earlier step, which are no part of this batch")
        # Wrappers average over ranks at the end of the pass, in a callback that is put into the queue during it; one that
        # is put there by a callback comes after.
        queue = torch.autograd.Variable._execution_engine.queue_callback
        queue(lambda: queue(self._end))

    def _end(self) -> None:
        with self._timed():
            self._inside = False
            if self.ranks > 1:
                self._after = self._present()

    def _fold(self) -> None:
        """What was heard becomes a unit."""
        if not self._heard:
            return
        with torch.no_grad():
            self._units.append(gradient_projections(self._around, self._heard))
        for key, gradient in self._heard.items():
            self._total[key] = gradient + self._total[key] if key in self._total else gradient
        self._heard = {}

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = self.clock()
        try:
            yield
        except Exception:  # noqa: BLE001 - a hook that raises would stop the user's backward pass
            self._heard, self._units, self._inside = {}, [], False
            self._versions = []
        finally:
            self.seconds += self.clock() - began

    # --------------------------------------------------------------------------------------------------- levels

    def _levels(self, count: int) -> tuple[NoiseLevels, int, str] | None:
        present = self._present()
        scale = ratio(present, self._after if self.ranks > 1 else self._total)
        if scale is None:
            return None
        change = {key: scale * g for key, g in self._total.items()}
        if count > 1:
            share = "" if self.ranks == 1 else f" of rank 0, for the mean of {self.ranks} ranks"
            units = [scaled(unit, scale * count) for unit in self._units]
            mean = gradient_projections(self._around, change)
            note = f"from {count} micro-batches{share}, taken as equally large"
            return noise_levels(pooled(units, mean), count * self.ranks), count, note
        apart = {key: change.get(key, torch.zeros(())) - g for key, g in present.items()}
        return (
            rank_levels(
                gradient_projections(self._around, present), gradient_projections(self._around, apart), self.ranks
            ),
            count,
            f"from rank 0 against the mean of {self.ranks} ranks, taken as equally large: one degree of freedom",
        )

    def _present(self) -> Gradients:
        held = {id(one.operator.parameter) for one in self._around}
        return {
            key: p.grad.detach().to("cpu", torch.float64, copy=True)
            for key, p in self._parameters.items()
            if key in held and p.grad is not None
        }

    def _moved(self) -> list[int]:
        return [p._version for p in self._parameters.values()]


def rank_levels(mean: Projections, apart: Projections, ranks: int) -> NoiseLevels:
    """Levels of the mean gradient of R ranks from one rank's difference to it: unbiased, with one degree of freedom."""
    levels, joint = [], 0.0
    for whole, part in zip(mean.layers, apart.layers, strict=True):
        first, bend = float(part.first[0]), float(part.curvature[0]) / (ranks - 1)
        drift, flow = float(whole.first[0]), float(whole.curvature[0]) - bend
        levels.append(NoiseLevel(whole.layer, whole.calls, whole.norm, drift, first**2 / (ranks - 1), bend, flow))
        joint += whole.calls * first / whole.norm
    return NoiseLevels(tuple(levels), joint**2 / (ranks - 1), ranks, ranks)


def scaled(unit: Projections, factor: float) -> Projections:
    """The projections of a multiple of the gradients: the first is linear, the curvature a quadratic form."""
    layers = tuple(
        type(layer)(layer.layer, layer.calls, layer.norm, factor * layer.first, factor**2 * layer.curvature,
                    factor**2 * layer.mean_curvature, layer.note)
        for layer in unit.layers
    )  # fmt: skip
    return Projections(layers, unit.units, unit.unit_size, unit.reduction)


def ratio(now: Gradients, then: Gradients) -> float | None:
    """`now` as a multiple of `then`; None if it is none."""
    if not now.keys() >= then.keys():
        return None
    # A layer that no pass has reached keeps what was there before, which is no part of this batch.
    if any(bool(now[key].any()) for key in now.keys() - then.keys()):
        return None
    inner = sum(float((now[key] * g).sum()) for key, g in then.items())
    old = sum(float(g.square().sum()) for g in then.values())
    new = sum(float(g.square().sum()) for g in now.values())
    if not (0 < old < float("inf") and 0 < new < float("inf")) or inner <= 0:
        return None
    return inner / old if 1 - inner**2 / (old * new) <= PARALLEL else None


def averaged_ranks(model: nn.Module) -> int:
    """Whose gradients the model's wrapper averages in the backward pass: 1 without `DistributedDataParallel`."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return torch.distributed.get_world_size(model.process_group)
    return 1
