"""The pathwise identity: what moved the log of a layer's norm at one step of training.

For the update `Delta` that was really made, with the norm `sigma`, its derivative `D` and its Hessian `H` before the step,

    log sigma(W + Delta) - log sigma(W) = D[Delta]/sigma + H(Delta, Delta)/(2 sigma) - (D[Delta]/sigma)^2 / 2 + O(|Delta|^3).

`Delta` is a sum of parts, `D` linear and `H` bilinear in it, so that every part has its share. For plain stochastic gradient
descent, `Delta = -eta (grad L + xi)`, the parts are the flow and the noise, drivers that the abstract of arXiv
2506.18588 names; the curvature of the flow and the cross term have no counterpart in a stochastic differential equation and
are kept here.
Nothing but a few projections is formed: no covariance, no Hessian.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipscope.dynamics.alerts import CROSSING
from lipscope.dynamics.expansions import Expansion

SPLIT_TERMS = ("flow", "noise", "noise_curvature", "flow_curvature", "cross", "log_correction", "remainder")
"""Plain SGD with a reference gradient."""
UPDATE_TERMS = ("gradient", "momentum", "decay", "curvature", "log_correction", "remainder")
"""Any optimizer: first order by parts, curvature of the whole; `remainder` is what no part explains (rounding, or all of it)."""


@dataclass(frozen=True)
class LayerTerms:
    """One step of one layer; changes are in units of log norm, times the number of calls.

    Attributes:
        layer: its name.
        kind: its class.
        norm: before the step, in float64 but not enclosed.
        norm_after: after it.
        gap: distance of the largest singular value to the next, before the step.
        change: of the log norm.
        terms: the parts, by name.
        residual: the change less the sum of the terms.
        q_ratio: how far the update goes towards another singular vector; above `CROSSING` the terms are not valid.
        note: what a reader must know, or empty.
        calls: how often the network uses it.
    """

    layer: str
    kind: str
    norm: float
    norm_after: float
    gap: float
    change: float
    terms: Mapping[str, float]
    residual: float
    q_ratio: float
    note: str = ""
    calls: int = 1


@dataclass(frozen=True)
class Update:
    """The update of one layer's weights, and what it is made of.

    Attributes:
        delta: what was really added to the weights, float64.
        parts: gradient, momentum and decay, as far as known.
        flow: the part of the reference gradient, for plain SGD with a reference.
    """

    delta: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    flow: Tensor | None = None


def moves(change: Tensor) -> bool:
    """Whether any entry is not 0; the norm tells nearly always, and is cheaper."""
    return float(change.norm()) != 0 or bool(change.any())


def finite(values: Tensor) -> bool:
    """Whether all entries are; if their sum is, they are."""
    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())


def explain(expansion: Expansion, update: Update) -> tuple[dict[str, float], float]:
    """The terms of one layer's step at once, without the number of calls, and the `q_ratio` of its update.

    Without derivatives (a norm that is zero or not simple, weights that are not finite) all terms are nan.
    """
    names = UPDATE_TERMS if update.flow is None else SPLIT_TERMS
    if not moves(update.delta):
        return dict.fromkeys(names, 0.0), 0.0
    if not (expansion.simple and math.isfinite(expansion.norm)):
        return dict.fromkeys(names, math.nan), math.inf
    terms = _update_terms(expansion, update) if update.flow is None else _split_terms(expansion, update, update.flow)
    return {name: terms[name] for name in names}, expansion.crossing(update.delta)


def _split_terms(expansion: Expansion, update: Update, flow: Tensor) -> dict[str, float]:
    sigma, delta = expansion.norm, update.delta
    gradient = update.parts.get("gradient", delta)
    whole, drawn, mean = (expansion.image(g) for g in (delta, gradient, flow))
    h = expansion.second(torch.stack([mean, drawn - mean, whole - drawn]))  # flow, noise, and what neither explains
    first, of_gradient, of_flow = (expansion.first(g) / sigma for g in (delta, gradient, flow))
    within = float(h[:2, :2].sum())
    return {
        "flow": of_flow,
        "noise": of_gradient - of_flow,
        "noise_curvature": float(h[1, 1]) / (2 * sigma),
        "flow_curvature": float(h[0, 0]) / (2 * sigma),
        "cross": float(h[0, 1]) / sigma,
        "log_correction": -(first**2) / 2,
        "remainder": first - of_gradient + (float(h.sum()) - within) / (2 * sigma),
    }


def _update_terms(expansion: Expansion, update: Update) -> dict[str, float]:
    sigma, delta = expansion.norm, update.delta
    first = expansion.first(delta) / sigma
    linear = {name: expansion.first(part) / sigma for name, part in update.parts.items()}
    curvature = float(expansion.second(expansion.image(delta)[None])[0, 0]) / (2 * sigma)
    return {
        **dict.fromkeys(("gradient", "momentum", "decay"), 0.0),
        **linear,
        "curvature": curvature,
        "log_correction": -(first**2) / 2,
        "remainder": first - sum(linear.values()),
    }


def log_change(before: float, after: float) -> float:
    """`log after - log before`; nan where one of them is not positive and finite."""
    if not (0 < before < math.inf and 0 < after < math.inf):
        return math.nan
    return math.log(after / before)


def layer_terms(
    layer: str,
    kind: str,
    calls: int,
    expansion: Expansion,
    after: float,
    update: Update,
    note: str = "",
    explained: tuple[dict[str, float], float] | None = None,
) -> LayerTerms:
    """`explain` with the change that was seen and its residual, times the number of calls.

    Args:
        layer: name of the layer.
        kind: its class.
        calls: how often the network uses it.
        expansion: before the step.
        after: the norm after it.
        update: what was done.
        note: what is already known.
        explained: what `explain` says of the update, where that was asked already.
    """
    terms, ratio = explained or explain(expansion, update)
    terms = {name: calls * value for name, value in terms.items()}
    change = calls * log_change(expansion.norm, after) if moves(update.delta) else 0.0
    notes = [n for n in (note, expansion.note) if n]
    if ratio > CROSSING:
        notes.append("the update reaches another singular vector: the terms are not valid at this step")
    return LayerTerms(
        layer, kind, expansion.norm, after, expansion.gap, change, terms, change - sum(terms.values()), ratio,
        "; ".join(notes), calls,
    )  # fmt: skip


@dataclass(frozen=True)
class StepTerms:
    """One step of the network: sums over its layers.

    Attributes:
        layers: those with weights that are followed.
        log_product: log of the product of all factors before the step; inf if one of them has no finite constant.
        log_product_after: after it.
        change: of the log product, over the followed layers.
        terms: sums of the layers' terms; layers whose terms are not defined do not count in them.
        residual: the change less the sum of the terms.
        outside: what changed between the end of the last observed step and this one's beginning.
        notes: what a reader must know.
    """

    layers: tuple[LayerTerms, ...]
    log_product: float
    log_product_after: float
    change: float
    terms: Mapping[str, float]
    residual: float
    outside: float = 0.0
    notes: tuple[str, ...] = ()


def sum_layers(layers: Sequence[LayerTerms]) -> tuple[float, dict[str, float], float]:
    """Change, terms and residual of the network. A layer without terms puts its whole change into the residual.

    Layers whose change itself is not defined (weights that are not finite) make the sums nan.
    """
    terms: dict[str, float] = {}
    for layer in layers:
        known = all(math.isfinite(v) for v in layer.terms.values())
        for name, value in layer.terms.items():
            terms[name] = terms.get(name, 0.0) + (value if known else 0.0)
    change = sum(layer.change for layer in layers)
    return change, terms, change - sum(terms.values())


@dataclass
class Totals:
    """Sums over the observed steps of a run.

    Attributes:
        steps: optimizer steps, observed or not.
        observed: those of them whose terms are in the sums.
        undefined: observed steps whose change was not a number; they are in no sum.
        change: of the log product.
        terms: by name.
        residual: what the terms leave.
        outside: changes between observed steps.
        absolute_change: sum of absolute changes of the layers, step by step.
        absolute_residual: sum of absolute residuals of the layers, step by step.
    """

    steps: int = 0
    observed: int = 0
    undefined: int = 0
    change: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    residual: float = 0.0
    outside: float = 0.0
    absolute_change: float = 0.0
    absolute_residual: float = 0.0

    @property
    def share(self) -> float:
        """The share of the steps that was observed; the closure is a statement about these."""
        return self.observed / self.steps if self.steps else 0.0

    @property
    def closure(self) -> float:
        """Sum of absolute residuals over sum of absolute changes; nan before anything changed."""
        return self.absolute_residual / self.absolute_change if self.absolute_change else math.nan

    def add(self, step: StepTerms) -> None:
        """Count one observed step."""
        self.steps += 1
        self.observed += 1
        if not math.isfinite(step.change):
            self.undefined += 1
            return
        self.change += step.change
        self.residual += step.residual
        if math.isfinite(step.outside):
            self.outside += step.outside
        for name, value in step.terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value
        for layer in step.layers:
            self.absolute_change += abs(layer.change)
            self.absolute_residual += abs(layer.residual if math.isfinite(layer.residual) else layer.change)
