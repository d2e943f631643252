"""Vector norms: computed ones for searching, and rounded ones for proofs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lipscope.claims.norms import Norm
from lipscope.claims.rounding import norm_down, norm_up, sum_down, sum_up

Length = Callable[[list[float]], float]
LENGTH_UP: dict[Norm, Length] = {"l1": sum_up, "l2": norm_up, "linf": max}
LENGTH_DOWN: dict[Norm, Length] = {"l1": sum_down, "l2": norm_down, "linf": max}


def vector_norm(x: Tensor, norm: Norm) -> Tensor:
    """Norms of the rows of (B, n), in floating point."""
    order = {"l1": 1.0, "l2": 2.0, "linf": math.inf}[norm]
    norms: Tensor = torch.linalg.vector_norm(x, order, dim=1)
    return norms
