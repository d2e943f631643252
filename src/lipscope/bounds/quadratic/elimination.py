"""Eliminating the units from the last layer to the first: from multipliers to the smallest rho that they prove.

With Q_k the quadratic form of the output in the blocks before and including k (at the start `F^T F`), the units of block k
contribute `S = 2 L_k - (Q_k)_kk`, which has to be positive definite, and eliminating them leaves on earlier blocks b, c

    (Q_{k-1})_bc = (Q_k)_bc + R_b^T S^{-1} R_c - 2 W_b^T p L_k W_c,    R_b = s L_k W_b + (Q_k)_kb,

`s = alpha + beta`, `p = alpha beta`, `L_k` the diagonal of multipliers. What is left on block 0 is a matrix whose largest eigenvalue is rho.
For a chain only one block is alive at a time and this is the recursion `A_i = W^T (L S^{-1} L) W`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.linalg import LinAlgError

from lipscope.bounds.quadratic.cholesky import cholesky, solved
from lipscope.bounds.quadratic.stacked import Layer, Matrix, Stacked, Vector
from lipscope.bounds.threads import threads_for

Form = dict[tuple[int, int], Matrix]
"""A symmetric quadratic form by pairs of blocks (b, c), both orders stored."""

Choice = Callable[[int, Matrix], Vector]
"""Multipliers of a layer (from 0) once the form on its own units is known."""


GROWTH = 1.01
"""Steps in which multipliers are enlarged that are too small."""


class Infeasible(Exception):
    """The multipliers of layer `layer` (from 0) are too small."""

    def __init__(self, layer: int) -> None:
        super().__init__(layer)
        self.layer = layer


def eliminate(network: Stacked, choose: Choice) -> tuple[Matrix, Vector]:
    """The form left on block 0, and the multipliers that `choose` gave, layer by layer from the last.

    Raises:
        Infeasible: S is not positive definite in floating point.
    """
    form: Form = {(b, c): fb.T @ fc for b, fb in network.output.items() for c, fc in network.output.items()}
    values = np.empty(network.units)
    for k in reversed(range(len(network.layers))):
        layer, own = network.layers[k], k + 1
        inner = form.pop((own, own), np.zeros((layer.size, layer.size)))
        chosen = choose(k, inner)
        values[network.units_of(k)] = chosen
        with threads_for(layer.size):
            _eliminate_layer(form, layer, own, inner, chosen)
    zero = np.zeros((network.input_size, network.input_size))
    return form.get((0, 0), zero), values


def _eliminate_layer(form: Form, layer: Layer, own: int, inner: Matrix, values: Vector) -> None:
    try:
        factor = cholesky(2 * np.diag(values) - inner)
    except LinAlgError:
        raise Infeasible(own - 1) from None
    coupled = {c: form.pop((own, c)) for b, c in list(form) if b == own}
    for c in coupled:
        form.pop((c, own))
    reads = {b: ((layer.lower + layer.upper) * values)[:, None] * w for b, w in layer.reads.items()}
    rows = dict(reads)
    for b, extra in coupled.items():
        rows[b] = rows[b] + extra if b in rows else extra
    product = 2 * layer.lower * layer.upper * values
    through = {b: solved(factor, r) for b, r in rows.items()}
    for b, left in rows.items():
        for c in rows:
            update = left.T @ through[c]
            if product.any() and b in layer.reads and c in layer.reads:
                update = update - layer.reads[b].T @ (product[:, None] * layer.reads[c])
            form[b, c] = form.get((b, c), 0) + update


def smallest_rho(network: Stacked, values: Vector) -> float:
    """The smallest rho that the multipliers prove, up to rounding; inf if they prove none."""
    try:
        left, _ = eliminate(network, lambda k, inner: values[network.units_of(k)])
    except Infeasible:
        return float("inf")
    return _largest(left)


def _largest(form: Matrix) -> float:
    if not np.isfinite(form).all():
        return float("inf")
    return max(0.0, float(np.linalg.eigvalsh((form + form.T) / 2)[-1]))


def norm_start(network: Stacked, room: float = 1.05) -> Vector:
    """Strictly feasible multipliers: `room` times the largest eigenvalue of each layer's form, one a layer.

    For a chain with slopes in [0, 1] and room 1 they prove the product of the norms. Always feasible: a layer's own S is
    positive definite whatever the other layers are.
    """
    # A layer that the output does not see still needs multipliers above 0; small ones do.
    scale = max((float(np.abs(f).max(initial=0.0)) for f in network.output.values()), default=1.0) or 1.0

    def choose(k: int, inner: Matrix) -> Vector:
        top = float(np.linalg.eigvalsh((inner + inner.T) / 2)[-1])
        return np.full(network.layers[k].size, room * max(top, 1e-9 * scale * scale))

    return eliminate(network, choose)[1]


def repaired(network: Stacked, values: Vector, room: float = 0.01) -> tuple[float, Vector]:
    """The multipliers, each layer's enlarged until its S is positive definite, and then by `room`, relatively; and before them `smallest_rho`.

    Raises:
        Infeasible: a layer would need more than 1e6 times its multipliers.
    """

    def choose(k: int, inner: Matrix) -> Vector:
        current, factor = values[network.units_of(k)], 1.0
        while factor < 1e6:
            try:
                cholesky(2 * factor * np.diag(current) - inner)
                return factor * (1 + room) * current
            except LinAlgError:
                factor *= GROWTH if factor < 1.5 else 2.0
        raise Infeasible(k)

    left, chosen = eliminate(network, choose)
    return _largest(left), chosen
