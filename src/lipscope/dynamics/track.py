"""Following one training run step by step: the driver of the pathwise identity around an optimizer's step."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lipscope.claims.errors import UsageError
from lipscope.claims.quantity import Reading
from lipscope.dynamics.alerts import CROSSING
from lipscope.dynamics.expansions import Expansion
from lipscope.dynamics.factors import Factor, list_factors
from lipscope.dynamics.identity import (
    LayerTerms,
    StepTerms,
    Totals,
    Update,
    explain,
    finite,
    layer_terms,
    moves,
    sum_layers,
)
from lipscope.dynamics.operators import Operator, Snapshot
from lipscope.dynamics.shadow import as_inputs, call, shadow, untouched, unwrapped
from lipscope.dynamics.updates import Before, before, parts

Loss = Callable[[Tensor, Tensor], Tensor]

REHEARSED = 1e-3
"""How far beside the present weights a rehearsed step begins, relatively."""


BY_REFERENCE = ("flow", "noise", "noise_curvature", "flow_curvature", "cross")
"""Terms that need the gradient of the reference."""

CLOSURE = (
    "gradients of this step were not known before it: the update is not split, its first order is in the remainder"
)
"""What the readings of such a step say."""


@dataclass(frozen=True)
class _Start:
    """One layer right before a step."""

    snapshot: Snapshot
    update: Before | None
    flow: Tensor | None
    note: str = ""


class IdentityTracker:
    """Splits the change of every layer's log norm, at the steps that it is shown.

    Call `before_step` right before `optimizer.step()` (after clipping and unscaling) and `after_step` right after it, or
    `skip_step` for a step that is not looked at. Weights, gradients, buffers, random states and the optimizer's state are
    read and never written. Norms are computed in float64 on the CPU and are estimates, not bounds.

    Attributes:
        factors: of the network's product.
        totals: sums over the observed steps.
        notes: what a reader of the numbers must know.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        probe: Tensor | tuple[Tensor, ...],
        loss: Loss | None = None,
        reference: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Looks at the model once; nothing is attached to it.

        Args:
            model: the user's model.
            optimizer: the user's optimizer.
            probe: inputs that the model takes, to find the layers that are called.
            loss: of outputs and targets, needed with a reference.
            reference: inputs and targets whose gradient stands for the full gradient, at every observed step. With plain
                SGD it splits the update into flow and noise.

        Raises:
            ModelError: the model cannot be copied, or does not take the probe.
            UsageError: a reference without a loss.
        """
        self._model, self._optimizer, self._loss = unwrapped(model), optimizer, loss
        self.factors = list_factors(model, probe)
        self._followed = tuple((f, f.operator) for f in self.factors if f.operator is not None)
        self._reference: tuple[Tensor, Tensor] | None = None
        self._twin: nn.Module | None = None
        if reference is not None:
            if loss is None:
                raise UsageError("expected a loss with a reference, got none; pass loss=")
            (inputs,) = as_inputs(reference[0], self._model)
            self._reference, self._twin = (inputs, reference[1].detach()), shadow(model)
        self._about = "" if self._reference is None else _about(self._reference[0], self._model)
        self.totals = Totals()
        self._constant = sum(f.calls * _log(f.constant) for f in self.factors if f.operator is None)
        self._starts: dict[str, _Start] | None = None
        self._known: dict[str, tuple[Snapshot, Expansion]] = {}
        self._last: float | None = None
        self.notes = tuple(self._remarks())

    def before_step(self, closure: bool = False) -> None:
        """Copy what the step starts from.

        Args:
            closure: the gradients of the step are not there yet, because the optimizer computes them itself or they are still
                to be clipped: the step's update is taken as a whole, all of its first order is in the term `remainder`.
        """
        if closure:
            self._starts = {f.name: _Start(o.snapshot(), None, None, CLOSURE) for f, o in self._followed}
            return
        flows = self._reference_gradient()
        self._starts = {}
        for factor, operator in self._followed:
            parameter = operator.parameter
            snapshot = operator.snapshot()
            update = None if parameter is None else before(self._optimizer, parameter, snapshot[0])
            flow = None
            if parameter is not None and update is not None and update.plain and id(parameter) in flows:
                flow = -update.rate * flows[id(parameter)]
            self._starts[factor.name] = _Start(snapshot, update, flow)

    def after_step(self) -> StepTerms:
        """The terms of the step that was made since `before_step`.

        Raises:
            UsageError: there was no `before_step`.
        """
        if self._starts is None:
            raise UsageError("expected before_step() before the optimizer's step, got after_step() alone; call both")
        starts, self._starts = self._starts, None
        with untouched(), torch.no_grad():
            layers = tuple(self._layer(factor, operator, starts[factor.name]) for factor, operator in self._followed)
        change, terms, residual = sum_layers(layers)
        calls = {factor.name: factor.calls for factor, _ in self._followed}
        start = self._constant + sum(calls[t.layer] * _log(t.norm) for t in layers)
        stop = self._constant + sum(calls[t.layer] * _log(t.norm_after) for t in layers)
        outside = 0.0 if self._last is None else start - self._last
        step = StepTerms(
            layers, start, stop, change, terms, residual, outside if math.isfinite(outside) else math.nan, self.notes
        )
        self._last = stop
        self.totals.add(step)
        return step

    def rehearse(self) -> None:
        """Look at a step that was never made, so that its cost is known; what was counted stays as it was.

        It begins at weights a little beside the present ones, in a direction that says nothing of their top singular
        vectors: a step without an update, or from weights that are known already, would cost next to nothing.
        """
        totals, last = copy.deepcopy(self.totals), self._last
        size = -REHEARSED if self._known else REHEARSED
        self.before_step()
        self._starts = {
            name: replace(start, snapshot=(start.snapshot[0] + size * start.snapshot[0].flip(0), *start.snapshot[1:]))
            for name, start in (self._starts or {}).items()
        }
        self.after_step()
        self.totals, self._last = totals, last

    def skip_step(self) -> None:
        """Count a step that nobody looked at."""
        self._starts = None
        self.totals.steps += 1

    def _layer(self, factor: Factor, operator: Operator, start: _Start) -> LayerTerms:
        weight = operator.weight().to("cpu", torch.float64, copy=True)
        delta = weight - start.snapshot[0]
        stop = (weight, *start.snapshot[1:])  # statistics as before the step: what moves them is not the step
        parameter = operator.parameter
        pieces = parts(start.update, self._optimizer, parameter) if start.update and parameter is not None else {}
        update = Update(delta, pieces, start.flow)
        try:
            expansion = self._expansion(factor.name, operator, start.snapshot, delta)
            explained = explain(
                expansion, update
            )  # first: what it finds out about the update makes the norm after cheap
            norm_after = self._norm_after(factor.name, operator, expansion, stop, delta, explained[1])
        except (RuntimeError, ValueError) as error:
            return _undefined(factor, str(error).splitlines()[0])
        note = start.note
        if start.update is not None and start.update.gradient is None:
            note = "no gradient at this step"
        return layer_terms(factor.name, factor.kind, factor.calls, expansion, norm_after, update, note, explained)

    def _norm_after(
        self, name: str, operator: Operator, expansion: Expansion, stop: Snapshot, delta: Tensor, crossing: float
    ) -> float:
        if not moves(delta):
            return expansion.norm
        near = expansion.simple and finite(delta) and crossing < CROSSING
        norm = expansion.norm_after(delta) if near else None
        return self._expansion(name, operator, stop, None).norm if norm is None else norm

    def _expansion(self, name: str, operator: Operator, snapshot: Snapshot, towards: Tensor | None) -> Expansion:
        """Around a snapshot; the last one is kept, since most steps start where the one before ended."""
        if not all(finite(part) for part in snapshot):
            raise ValueError("the weights are not finite")
        kept = self._known.get(name)
        same = kept is not None and all(torch.equal(a, b) for a, b in zip(kept[0], snapshot, strict=True))
        if kept is not None and same and not kept[1].note:
            return kept[1]
        found = operator.expand(snapshot, None if kept is None else kept[1], towards)
        self._known[name] = (snapshot, found)
        return found

    def _reference_gradient(self) -> dict[int, Tensor]:
        """The reference's gradient by the identity of the live parameters, float64."""
        if self._reference is None or self._twin is None or self._loss is None:
            return {}
        wanted = {id(o.parameter) for _, o in self._followed if o.parameter is not None and o.parameter.requires_grad}
        for twin, live in zip(self._twin.modules(), self._model.modules(), strict=True):
            twin.training = live.training
        named = dict(self._model.named_parameters())
        leaves = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in named.items()}
        chosen = [name for name, p in named.items() if id(p) in wanted]
        if not chosen:
            return {}
        with untouched():
            inputs, targets = self._reference
            value = self._loss(call(self._twin, self._model, (inputs,), leaves), targets)
            found = torch.autograd.grad(value, [leaves[name] for name in chosen], allow_unused=True)
        return {
            id(named[name]): (torch.zeros_like(named[name]) if g is None else g).to("cpu", torch.float64)
            for name, g in zip(chosen, found, strict=True)
        }

    def _remarks(self) -> list[str]:
        found = [f"{f.name!r}: {f.reason}" for f in self.factors if f.reason]
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        for factor, operator in self._followed:
            parameter = operator.parameter
            if operator.frozen or (parameter is not None and id(parameter) not in held):
                found.append(f"{factor.name!r} is frozen")
            elif parameter is None and any(True for _ in operator.module.parameters()):
                found.append(f"{factor.name!r}: its weights are computed from parameters; its update is not split")
        if not self._followed:
            found.append("no layer with weights is followed")
        if self._reference is not None and not all(
            b.plain
            for _, o in self._followed
            if o.parameter is not None and (b := before(self._optimizer, o.parameter))
        ):
            found.append("the optimizer is not plain SGD: the update is split by gradient, momentum and decay")
        return found

    def readings(self, step: StepTerms) -> list[Reading]:
        """The step as values to log. Norms and products are estimates; changes and terms are what this step did."""
        found = []
        for layer in step.layers:
            note = "; ".join(filter(None, ("float64", layer.note)))
            found.append(Reading("norm", layer.norm_after, "estimate", layer.layer, note=note))
            found.append(Reading("gap", layer.gap, "estimate", layer.layer, note="float64"))
            found.append(Reading("q_ratio", layer.q_ratio, "measured", layer.layer, note=note))
            parts = {"change": layer.change, **layer.terms, "residual": layer.residual}
            found += [self._part(name, value, layer.layer, note) for name, value in parts.items()]
        unknown = "; ".join(f"{f.name!r}: {f.reason}" for f in self.factors if f.reason)
        found.append(Reading("log_product", step.log_product_after, "estimate", note=unknown))
        network = {"change": step.change, **step.terms, "residual": step.residual, "outside": step.outside}
        totals = {
            "change": self.totals.change, **self.totals.terms, "residual": self.totals.residual,
            "outside": self.totals.outside,
        }  # fmt: skip
        found += [self._part(name, value) for name, value in network.items()]
        added = "added up over the observed steps, float64"
        found += [Reading(f"total_{name}", value, "measured", note=added) for name, value in totals.items()]
        found.append(Reading("observed_share", self.totals.share, "measured", note="of the optimizer steps of the run"))
        return found

    def _part(self, name: str, value: float, layer: str = "", note: str = "float64") -> Reading:
        """A part of a change; those that compare with the reference's gradient say what that is of."""
        if name not in BY_REFERENCE or self._reference is None:
            return Reading(name, value, "measured", layer, note=note)
        return Reading(name, value, "measured", layer, len(self._reference[0]), f"{note}; {self._about}")

    def state_dict(self) -> dict[str, Any]:
        """The totals and the last log product, as plain numbers, to go on from later."""
        known = self._last is not None and math.isfinite(self._last)
        return {**dataclasses.asdict(self.totals), "last": self._last if known else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from earlier totals; what changed since counts as outside of the observed steps.

        Raises:
            UsageError: it is not what `state_dict` gave.
        """
        try:
            totals = {key: value for key, value in state.items() if key != "last"}
            self.totals = Totals(**{**totals, "terms": dict(state["terms"])})
            if state.get("last") is not None:
                self._last = float(state["last"])
        except (TypeError, KeyError, ValueError) as error:
            raise UsageError(f"expected the state of an IdentityTracker, got something else: {error}") from error


def _about(inputs: Tensor, model: nn.Module) -> str:
    """Of which data the reference's gradient is, and in which mode of the model."""
    exact, mode = inputs.double(), "train" if model.training else "eval"
    return (
        f"gradient of {len(inputs)} points of reference= in the model's own mode ({mode} at first), "
        f"{str(inputs.dtype).removeprefix('torch.')}, inputs in [{exact.min():.4g}, {exact.max():.4g}] with mean {exact.mean():.4g}"
    )


def _undefined(factor: Factor, reason: str) -> LayerTerms:
    nan = math.nan
    return LayerTerms(factor.name, factor.kind, nan, nan, nan, nan, {}, nan, nan, reason)


def _log(value: float) -> float:
    """The logarithm, -inf at 0 and nan where there is none."""
    if math.isnan(value) or value < 0:
        return math.nan
    return -math.inf if value == 0 else math.log(value)
