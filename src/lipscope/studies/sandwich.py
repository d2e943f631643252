"""Both sides of a trained network's Lipschitz constant in l2, as several studies report them."""

from __future__ import annotations

import copy

from torch import Tensor, nn

import lipscope
from lipscope.bounds.auto import best, candidates
from lipscope.bounds.method import Effort
from lipscope.bounds.problem import pose
from lipscope.claims.claim import Claim
from lipscope.claims.errors import InternalError
from lipscope.dynamics.pointwise import PointwiseNorms, pointwise_norms


def norms_at(model: nn.Module, inputs: Tensor) -> PointwiseNorms:
    """The Jacobian's norms at the inputs, in float64, from a copy of the model in eval mode."""
    return pointwise_norms(copy.deepcopy(model).double().eval(), inputs.double())


def proved_upper(model: nn.Module, input_shape: tuple[int, ...], method: str = "product") -> float:
    """`C_upper`: an upper bound on the whole space, proved with rounding accounted for.

    It is of status *computed*: the independent checker is not asked, see `lipscope bound` for that.

    Args:
        model: taken in eval mode; it stays as it is.
        input_shape: of one example without its batch.
        method: `product`, the product of the layers' spectral norms, or another method of `lipscope.bounds`.

    Raises:
        UsageError: there is no method of that name.
        InternalError: there is no finite bound; the networks of the studies have one.
    """
    graph = lipscope.load(copy.deepcopy(model).eval(), input_shape=input_shape).graph
    found = list(candidates(pose(graph, Claim()), Effort(), method))  # without the lower bound of `lipscope.bound`
    winner = best(found)
    if winner is None or winner.value is None or winner.failure:
        raise InternalError(f"expected a finite bound without chance, got {'; '.join(c.note for c in found)}")
    return winner.value


def sandwich(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """`c_avg` and `c_lower` over the inputs (estimates, see `lipscope.dynamics.pointwise`) and the proved `c_upper`."""
    found = norms_at(model, inputs)
    return {"c_avg": found.mean, "c_lower": found.lower, "c_upper": proved_upper(model, tuple(inputs.shape[1:]))}
