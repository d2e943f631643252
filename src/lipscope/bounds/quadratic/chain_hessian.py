"""Newton's step for a chain, exactly: the whole Hessian, from blocks of the inverse, and its Cholesky factor.

With `A_j = a_j c_j^T + c_j a_j^T`, `a_j = e_j - alpha_j w_j`, `c_j = e_j - beta_j w_j` the negative Hessian of log det M is

    <A_j, T A_k T> = 2 (a_j^T T a_k) (c_j^T T c_k) + 2 (a_j^T T c_k) (c_j^T T a_k),    T = M^{-1}.

Blocks of T below its diagonal follow one from the other, `T_{i+1,k} = -G_i T_ik` for i >= k, and so do their products with W_k^T: all pairs of layers
cost `sum_k sum_{i > k} n_i n_{i-1} n_k`, and the factor `N^3/3` for N multipliers. In long chains that is less than what conjugate gradients
need for a direction, and far from the maximum, where M is nearly singular, exact steps are the only ones that get on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from lipscope.bounds.quadratic.chain_point import Chain, State
from lipscope.bounds.quadratic.cholesky import Equations
from lipscope.bounds.quadratic.stacked import Matrix, Vector
from lipscope.bounds.threads import threads_for


@dataclass(frozen=True, eq=False)
class Newton:
    """Newton's step.

    Attributes:
        step: by (s, lambda), one entry a unit.
        decrement: its length in the norm of the Hessian.
        rise: the derivative of `log s` by `log q` along the path of maxima; about by what share s is below its largest value, where the
            path goes like `s (1 + rise)` with rise falling like 1/q. An estimate, no bound.
    """

    step: Vector
    decrement: float
    rise: float


def hessian_bytes(units: int) -> int:
    """Memory that `newton_step` takes."""
    return 8 * 4 * (units + 1) ** 2


def newton_step(chain: Chain, state: State, q: float) -> Newton:
    """Newton's step for `q log s + log det M` and, where that is added, `sum log lambda_j`.

    Raises:
        LinAlgError: the Hessian is not positive definite in floating point, whatever is added to its diagonal.
    """
    places = np.concatenate([[0], chain.network.variables + 1])
    slope = np.asarray(np.bincount(places, chain.gradient(state, q)), dtype=np.float64)
    with threads_for(len(slope)):
        bend = hessian(chain, state, q)
        if len(slope) < len(bend):  # units that share a multiplier
            bend = np.tril(bend) + np.tril(bend, -1).T
            sums = csr_array((np.ones(len(places)), (places, np.arange(len(places)))))
            bend = np.ascontiguousarray(sums @ (sums @ bend).T)
        step, path = Equations.of(bend).solve(np.stack([slope, np.eye(1, len(slope))[0]], axis=1)).T
    rise = float(q * path[0] / state.y[0] / state.y[0])
    return Newton(step[places], float(np.sqrt(max(slope @ step, 0.0))), rise)


def hessian(chain: Chain, state: State, q: float) -> Matrix:
    """The lower triangle (and more, of blocks on the diagonal) of the negative Hessian by (s, lambda), one row a unit."""
    size = chain.network.units + 1
    result = np.zeros((size, size))
    result[0, 0] = q / state.y[0] ** 2 + float(np.sum((chain.output @ state.t[-1] @ chain.output.T) ** 2))
    for k, own in enumerate(chain.units):
        columns = slice(own.start + 1, own.stop + 1)
        result[columns, columns] = chain.own_curvature(state, k)
        _fill_below(result, chain, state, k)
    return result


def _fill_below(result: Matrix, chain: Chain, state: State, k: int) -> None:
    """The columns of layer k (from 0) below its own block, and its entries in the row of s."""
    own, count = chain.units[k], len(chain.weights[k])
    columns, lower, upper = slice(own.start + 1, own.stop + 1), chain.network.lower, chain.network.upper
    # a block's rows of `T e_j` and `T w_j`, for all units j of the layer
    rows = np.concatenate([state.t[k + 1], state.below[k] @ chain.weights[k].T], axis=1)

    def parts(z: Matrix) -> tuple[Matrix, Matrix]:
        return z[:, :count] - z[:, count:] * lower[own], z[:, :count] - z[:, count:] * upper[own]

    for i in range(k + 1, len(chain.units)):
        at = chain.units[i]
        alpha, beta = lower[at][:, None], upper[at][:, None]
        (read_a, read_c), rows = parts(chain.weights[i] @ rows), -state.g[i] @ rows
        unit_a, unit_c = parts(rows)
        same = (unit_a - alpha * read_a) * (unit_c - beta * read_c)
        mixed = (unit_c - alpha * read_c) * (unit_a - beta * read_a)
        result[at.start + 1 : at.stop + 1, columns] = 2 * (same + mixed)
    out_a, out_c = parts(chain.output @ rows)
    result[columns, 0] = -2 * np.einsum("ij,ij->j", out_a, out_c)
