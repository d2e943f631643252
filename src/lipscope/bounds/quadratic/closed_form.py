"""ECLipsE-Fast (Xu and Sivaranjani, arXiv 2404.04375): multipliers of a chain in closed form, one a layer.

Forward convention, multipliers divided by rho/2: `M_0 = I`, `M_i = L' - 1/4 s L' W_i M_{i-1}^{-1} W_i^T L' s` (for slopes of one sign the
term with `alpha beta >= 0` may be left out), `L' = 1/(2 m^2 lambda_max(W_i M_{i-1}^{-1} W_i^T))`, m = (alpha + beta)/2.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from lipscope.bounds.quadratic.stacked import Matrix, Stacked, Vector


def chain_weights(network: Stacked) -> list[Matrix] | None:
    """W_1, .., W_d if every layer reads the one before it and nothing else; None otherwise."""
    reads = [*(layer.reads for layer in network.layers), network.output]
    if any(set(r) - {k} for k, r in enumerate(reads)):
        return None
    return [r[k] for k, r in enumerate(reads)] if all(k in r for k, r in enumerate(reads)) else None


def eclipse_fast(network: Stacked) -> Vector | None:
    """The closed-form multipliers; None where the form does not hold (no chain, slopes of both signs, a vanishing layer)."""
    weights = chain_weights(network)
    if weights is None or ((network.lower * network.upper) < 0).any():
        return None
    inverse_root: Matrix = np.eye(network.input_size)
    forward = []
    for layer, w in zip(network.layers, weights, strict=False):
        half = ((layer.lower + layer.upper) / 2)[:, None] * (w @ inverse_root.T)
        top = float(np.linalg.norm(half, 2)) ** 2
        if not top > 0:
            return None
        values = np.full(layer.size, 1 / (2 * top))
        forward.append(values)
        scaled = values[:, None] * half
        try:
            factor = cholesky(np.diag(values) - scaled @ scaled.T, lower=True)
        except LinAlgError:
            return None
        inverse_root = solve_triangular(factor, np.eye(layer.size), lower=True)
    rho = float(np.linalg.norm(weights[-1] @ inverse_root.T, 2)) ** 2
    return np.concatenate(forward) * (rho / 2) * (1 + 1e-9) if rho > 0 else None
