"""What an optimizer's step was made of: the update of a parameter as a sum of parts that are linear in gradient, momentum and decay.

Read from the optimizer's own state around the step; an optimizer that is not in the table has no parts, only its update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

Parts = dict[str, Tensor]


@dataclass(frozen=True)
class Before:
    """What a step starts from, copied.

    Attributes:
        kind: the optimizer's class.
        settings: the parameter's group, without its parameters.
        weight: the parameter, float64.
        gradient: the gradient that the optimizer is about to use, float64, or None.
        state: tensors of the optimizer's state for it, float64.
    """

    kind: type[Optimizer]
    settings: Mapping[str, Any]
    weight: Tensor
    gradient: Tensor | None
    state: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """The learning rate."""
        return float(self.settings["lr"])

    @property
    def plain(self) -> bool:
        """Whether the step is `-rate gradient` and nothing else."""
        extras = ("momentum", "weight_decay", "dampening", "nesterov", "maximize")
        return self.kind is SGD and not any(self.settings.get(name) for name in extras)


def before(optimizer: Optimizer, parameter: nn.Parameter, weight: Tensor | None = None) -> Before | None:
    """What the next step of a parameter starts from; None if the optimizer does not hold it.

    Args:
        optimizer: of the training.
        parameter: whose step it is.
        weight: a copy of the parameter in float64 where there is one already; it is kept.
    """
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            settings = {key: _number(value) for key, value in group.items() if key != "params"}
            gradient = None if parameter.grad is None else _double(parameter.grad)
            copied = _double(parameter) if weight is None else weight
            return Before(type(optimizer), settings, copied, gradient, _tensors(optimizer, parameter))
    return None


def parts(start: Before, optimizer: Optimizer, parameter: nn.Parameter) -> Parts:
    """The parts of the step that was just made, by name; empty for optimizers that are not understood and without gradient.

    With the update they agree up to the rounding of the optimizer's own arithmetic.
    """
    row = _ROWS.get(start.kind)
    if row is None or start.gradient is None or start.gradient.is_sparse:
        return {}
    return row(start, _tensors(optimizer, parameter))


def _sgd(start: Before, after: Mapping[str, Tensor]) -> Parts:
    s, rate = start.settings, -start.rate
    assert start.gradient is not None
    gradient = -start.gradient if s["maximize"] else start.gradient
    decay = float(s["weight_decay"]) * start.weight
    momentum, old = float(s["momentum"]), start.state.get("momentum_buffer")
    if momentum == 0:
        fresh, kept = 1.0, 0.0
    else:
        # buffer' = momentum buffer + (1 - dampening) g, the first one g; the step is buffer', or g + momentum buffer' (Nesterov)
        fresh = 1.0 if old is None else 1.0 - float(s["dampening"])
        kept = momentum
        if s["nesterov"]:
            fresh, kept = 1.0 + momentum * fresh, momentum * momentum
    found = {"gradient": rate * fresh * gradient}
    if float(s["weight_decay"]):
        found["decay"] = rate * fresh * decay
    if momentum and old is not None:
        found["momentum"] = rate * kept * old
    return found


def _adam(start: Before, after: Mapping[str, Tensor]) -> Parts:
    s, rate = start.settings, -start.rate
    assert start.gradient is not None
    if not {"exp_avg_sq", "step"} <= set(after):
        return {}
    gradient = -start.gradient if s["maximize"] else start.gradient
    first, second = (float(b) for b in s["betas"])
    count = float(after["step"])
    moment = after["max_exp_avg_sq"] if s["amsgrad"] else after["exp_avg_sq"]
    # step = -rate m'/(1 - b1^t) / (sqrt(v'/(1 - b2^t)) + eps), m' = b1 m + (1 - b1) g, elementwise linear in m and g
    scale = rate / (1 - first**count) / ((moment / (1 - second**count)).sqrt() + float(s["eps"]))
    found = {"gradient": scale * (1 - first) * gradient}
    if "exp_avg" in start.state:
        found["momentum"] = scale * first * start.state["exp_avg"]
    decay = float(s["weight_decay"])
    if decay:
        decoupled = start.kind is AdamW or bool(s.get("decoupled_weight_decay"))
        found["decay"] = rate * decay * start.weight if decoupled else scale * (1 - first) * decay * start.weight
    return found


_ROWS: Mapping[type[Optimizer], Callable[[Before, Mapping[str, Tensor]], Parts]] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adam,
}


def _tensors(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    state = optimizer.state.get(parameter, {})  # get: looking a parameter up would make an entry
    return {
        key: _double(value) if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)
        for key, value in state.items()
        if isinstance(value, (Tensor, int, float)) and not isinstance(value, bool)
    }


def _double(value: Tensor) -> Tensor:
    detached = value.detach()
    if detached.is_sparse:
        detached = detached.to_dense()
    if detached.is_complex() or not detached.dtype.is_floating_point:
        return detached.to("cpu", copy=True)
    return detached.to("cpu", torch.float64, copy=True)


def _number(value: object) -> object:
    """A tensor setting (a capturable learning rate) as the number that it is now."""
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 else value
