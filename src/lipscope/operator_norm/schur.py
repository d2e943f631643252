"""Schur's bound of the l2 norm: `|L|_2 <= sqrt(|L|_1 |L|_inf)`, attained by rearrangements, copies and diagonal
maps.
"""

from __future__ import annotations

import math

from lipscope.claims.rounding import product_up, sqrt_up
from lipscope.operator_norm.proof import Proof


def prove_schur(sums: tuple[float, float]) -> Proof:
    """The bound from the largest column and row sums of |L|; exact where the root of the product is a number."""
    return Proof(geometric_mean_up(*sums), {"kind": "schur"})


def geometric_mean_up(first: float, second: float) -> float:
    """At least `sqrt(first second)`, without overflow or underflow in between."""
    if first == 0 or second == 0:
        return 0.0
    (m, e), (n, f) = math.frexp(first), math.frexp(second)
    odd = (e + f) % 2
    return math.ldexp(sqrt_up(product_up(math.ldexp(m, odd), n)), (e + f - odd) // 2)
