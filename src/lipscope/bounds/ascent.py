"""Pulling pairs apart: gradient ascent on the difference quotient itself.

The Jacobian of a piecewise linear network is piecewise constant, so its norm has no gradient to climb. The quotient
of two distant points has one, and it carries both ends into the regions of large slope between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipscope.bounds.lengths import vector_norm
from lipscope.bounds.method import Effort
from lipscope.claims.norms import Norm
from lipscope.network.graph import Graph
from lipscope.rules.graph_value import evaluate_graph


@dataclass(frozen=True)
class Pairs:
    """Pairs of points and their difference quotients, computed, not proved.

    Attributes:
        x: (k, n).
        y: (k, n).
        value: (k,).
    """

    x: Tensor
    y: Tensor
    value: Tensor


def ascend(
    graph: Graph, norm: Norm, x: Tensor, y: Tensor, inside: Callable[[Tensor], Tensor], effort: Effort, steps: int
) -> Pairs:
    """The pairs after at most `steps` steps, each kept only if it raised its quotient.

    A step moves both ends along the gradient of `log |f(x) - f(y)| - log |x - y|` by a share of their distance; the
    share grows after a success and is halved after a failure. `inside` moves points into the region.
    """
    x, y = inside(x), inside(y)
    value, pull = _quotients(graph, norm, x, y)
    rate = torch.full((len(x), 1), 0.3, dtype=torch.float64)
    for done in range(steps):
        if effort.expired or float(rate.max()) < 1e-4:
            break
        effort.progress("lower bound: pulling pairs apart", done / steps)
        reach = rate * torch.linalg.vector_norm(x - y, dim=1, keepdim=True)
        ends = [inside(end + reach * _direction(p)) for end, p in zip((x, y), pull, strict=True)]
        trial, trial_pull = _quotients(graph, norm, *ends)
        better = (trial > value)[:, None]
        value = torch.maximum(trial, value)
        x, y = torch.where(better, ends[0], x), torch.where(better, ends[1], y)
        pull = (torch.where(better, trial_pull[0], pull[0]), torch.where(better, trial_pull[1], pull[1]))
        rate = torch.where(better, rate * 1.2, rate * 0.5)
    return Pairs(x, y, value)


def _direction(pull: Tensor) -> Tensor:
    return pull / vector_norm(pull, "l2").clamp_min(1e-300)[:, None]


def _quotients(graph: Graph, norm: Norm, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Difference quotients (k,) and the gradients of their logarithms by both ends."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    rise = vector_norm(evaluate_graph(graph, x) - evaluate_graph(graph, y), norm)
    run = vector_norm(x - y, norm)
    value = torch.where(run > 0, rise / run.clamp_min(1e-300), 0.0)
    found = torch.autograd.grad(torch.log(value.clamp_min(1e-300)).sum(), (x, y))
    value = torch.nan_to_num(value.detach(), nan=0.0, posinf=0.0)
    return value, (torch.nan_to_num(found[0], nan=0.0), torch.nan_to_num(found[1], nan=0.0))
