"""The inequality of a chain at a point: factors, the inverse's blocks, derivatives; all at the cost of `sum n_k^3`.

M is block tridiagonal, and of T no more is ever needed than the blocks on the diagonal and next to it. With `B_k = M_{k+1,k}` and

    S_k = M_kk - B_k^T S_{k+1}^{-1} B_k,    G_k = S_{k+1}^{-1} B_k,    T_00 = S_0^{-1},    T_{k+1,k} = -G_k T_kk,    T_{k+1,k+1} = S_{k+1}^{-1} - T_{k+1,k} G_k^T,

which costs `sum n_k^3`; so does the derivative of this recursion along a direction, that is the Hessian's product with it:
`<A_j, T dM T> = -<A_j, dT>`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.linalg import LinAlgError

from lipscope.bounds.quadratic.chain_sweep import own_curvature
from lipscope.bounds.quadratic.cholesky import cholesky, inverse
from lipscope.bounds.quadratic.closed_form import chain_weights
from lipscope.bounds.quadratic.stacked import Matrix, Stacked, Vector


@dataclass(frozen=True, eq=False)
class State:
    """A strictly feasible `y = (s, lambda)`: log det M, the blocks of the factorisation and of T on and below the diagonal."""

    y: Vector
    log_det: float
    inverse: list[Matrix]
    g: list[Matrix]
    t: list[Matrix]
    below: list[Matrix]


class Chain:
    """The chain's matrices, and what is computed from them at a point."""

    def __init__(self, network: Stacked) -> None:
        weights = chain_weights(network)
        assert weights is not None
        self.network = network
        self.weights, self.output = weights[:-1], weights[-1]
        self.units = [network.units_of(k) for k in range(len(network.layers))]
        self.sum, self.product = network.lower + network.upper, network.lower * network.upper
        self.guarded = bool((self.product > 0).any())
        self.square = self.output.T @ self.output

    def blocks(self, y: Vector) -> tuple[list[Matrix], list[Matrix]]:
        """The linear part of M at y: its blocks on the diagonal, and `B_k` below it."""
        own = [y[1:][u] for u in self.units]
        diagonal = [np.zeros((len(self.weights[0].T),) * 2), *(np.diag(2 * v) for v in own)]
        below = []
        for k, (w, u, v) in enumerate(zip(self.weights, self.units, own, strict=True)):
            below.append((-self.sum[u] * v)[:, None] * w)
            if self.product[u].any():
                diagonal[k] += w.T @ ((2 * self.product[u] * v)[:, None] * w)
        diagonal[-1] -= y[0] * self.square
        return diagonal, below

    def state(self, y: Vector) -> State | None:
        """The state at y; None where M is not positive definite in floating point."""
        factors = self._factors(y)
        if factors is None:
            return None
        inverses, g, log_det = factors
        t, lower = [inverses[0]], []
        for k, gain in enumerate(g):
            lower.append(-gain @ t[k])
            t.append(inverses[k + 1] - lower[k] @ gain.T)
        return State(y, log_det, inverses, g, t, lower)

    def _factors(self, y: Vector) -> tuple[list[Matrix], list[Matrix], float] | None:
        if not (y > 0).all():
            return None
        diagonal, below = self.blocks(y)
        diagonal[0][np.diag_indices_from(diagonal[0])] += 1
        count = len(diagonal)
        inverses, g, log_det = [np.zeros((0, 0))] * count, [np.zeros((0, 0))] * (count - 1), 0.0
        for k in reversed(range(count)):
            s = diagonal[k]
            if k < count - 1:
                g[k] = inverses[k + 1] @ below[k]
                s = s - below[k].T @ g[k]
            try:
                root = cholesky(s)
            except LinAlgError:
                return None
            log_det += 2 * float(np.log(root.diagonal()).sum())
            inverses[k] = inverse(root)
        return inverses, g, log_det

    def traces(self, t: list[Matrix], below: list[Matrix]) -> Vector:
        """`-<C, T>` and `<A_j, T>` from the blocks of a symmetric matrix T."""
        result = np.empty(self.network.units + 1)
        result[0] = -np.vdot(self.square, t[-1])
        for k, (w, u) in enumerate(zip(self.weights, self.units, strict=True)):
            own = t[k + 1].diagonal() - self.sum[u] * np.einsum("ij,ij->i", w, below[k])
            if self.product[u].any():
                own = own + self.product[u] * np.einsum("ij,ij->i", w @ t[k], w)
            result[1:][u] = 2 * own
        return result

    def gradient(self, state: State, q: float) -> Vector:
        """Of what is maximised, by (s, lambda)."""
        result = self.traces(state.t, state.below)
        result[0] += q / state.y[0]
        if self.guarded:
            result[1:] += 1 / state.y[1:]
        return result

    def curvature(self, state: State, q: float, v: Vector) -> Vector:
        """The negative Hessian of what is maximised times v: minus the traces of dT for dM along v."""
        diagonal, below = self.blocks(v)
        ds, dg = diagonal[-1], [np.zeros((0, 0))] * len(below)
        change = [ds] * len(diagonal)
        for k in reversed(range(len(below))):
            g = state.g[k]
            pushed = below[k] - ds @ g
            dg[k] = state.inverse[k + 1] @ pushed
            # d(B^T S^-1 B) = dB^T G + G^T dB - G^T dS G
            ds = diagonal[k] - below[k].T @ g - g.T @ pushed
            change[k] = ds
        t, lower = [-state.inverse[0] @ change[0] @ state.inverse[0]], []
        for k, g in enumerate(state.g):
            lower.append(-dg[k] @ state.t[k] - g @ t[k])
            inner = state.inverse[k + 1] @ change[k + 1] @ state.inverse[k + 1]
            t.append(-inner - lower[k] @ g.T - state.below[k] @ dg[k].T)
        result = -self.traces(t, lower)
        result[0] += q * v[0] / state.y[0] ** 2
        if self.guarded:
            result[1:] += v[1:] / state.y[1:] ** 2
        return result

    def own_curvature(self, state: State, k: int) -> Matrix:
        """The block of the negative Hessian that belongs to layer k (from 0)."""
        layer, w, u = self.network.layers[k], self.weights[k], self.units[k]
        t, cross, inner = state.t[k + 1], state.below[k] @ w.T, w @ state.t[k] @ w.T
        result = own_curvature(layer, t, cross, inner)
        if self.guarded:
            result[np.diag_indices_from(result)] += 1 / state.y[1:][u] ** 2
        return result
