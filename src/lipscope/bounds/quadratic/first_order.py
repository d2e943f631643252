"""The optimal multipliers of a chain by L-BFGS on their logarithms, where the interior-point method's matrices do not fit.

In the forward recursion of `closed_form.py`, which costs `sum n_i^3` and has no matrix over all units, let `G = W_d M_{d-1}^{-1} W_d^T` with eigenvalues
mu_k: their largest is rho. It is smoothed to `log rho_p = (1/p) log sum mu_k^p >= log rho`, p growing. For a unit eigenvector y of G put

    u_{d-1} = M_{d-1}^{-1} W_d^T y,    v_i = W_i u_{i-1},    u_{i-1} = (M_{i-1} + W_i^T alpha beta L'_i W_i)^{-1} W_i^T m L'_i u_i,

the points at which the forms M_i attain their minima. By the envelope theorem `d mu/d L'_j = (u_j - alpha_j v_j)(beta_j v_j - u_j)`. A barrier
`-(w/N) sum_i log det(L'_i^{-1/2} M_i L'_i^{-1/2})`, w falling, keeps the path away from the boundary, where it would get stuck; with `M_i = R R^T` its
derivative is the same expression for the columns of `R^{-T}` as `u_i`.
"""

from __future__ import annotations

import time

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from lipscope.bounds.quadratic.closed_form import chain_weights
from lipscope.bounds.quadratic.stacked import Layer, Matrix, Stacked, Vector

PATH = ((8, 1e-1, 100), (32, 1e-2, 150), (128, 1e-3, 250), (512, 1e-4, 300), (2048, 1e-5, 300))
"""p, the barrier's weight w, and how many iterations they get."""

GAIN = 1e-5
"""What a step of the path from the fourth on has to gain, relatively, for the next to be taken."""

BARRED = 1e10
"""The objective where the multipliers are not feasible: the line search backs off."""


def descend(network: Stacked, values: Vector, deadline: float = float("inf")) -> list[Vector]:
    """Multipliers on the way down from `values`, the best last; none where the network is no chain of layers.

    Args:
        network: the inequality.
        values: feasible multipliers, > 0.
        deadline: `time.monotonic()` at which the search stops.
    """
    weights = chain_weights(network)
    if weights is None or not (values > 0).all():
        return []
    objective = _Objective(network, weights, deadline)
    rho = objective.start(values)
    if rho is None:
        return []
    try:
        for number, (power, barrier, iterations) in enumerate(PATH):
            before = objective.best[0]
            objective.power, objective.barrier = power, barrier
            minimize(
                objective, objective.best[1], jac=True, method="L-BFGS-B",
                options={"maxiter": iterations, "maxcor": 30, "ftol": 1e-11, "gtol": 1e-9, "maxls": 40},
            )  # fmt: skip
            if number >= 3 and objective.best[0] > before - GAIN:
                break
    except _Late:
        pass
    top, z = objective.best
    return [np.exp(z + top) / 2 * (1 + 1e-9)]


class _Late(Exception):
    """The deadline has passed."""


class _Objective:
    """`log rho_p` and its gradient by `z = log L'`; `best` keeps the smallest `log rho` and its z."""

    def __init__(self, network: Stacked, weights: list[Matrix], deadline: float) -> None:
        self.layers = network.layers
        self.units = [network.units_of(k) for k in range(len(network.layers))]
        self.weights = weights
        self.deadline = deadline
        self.power, self.barrier, _ = PATH[0]
        self.best: tuple[float, Vector] = (float("inf"), np.zeros(network.units))

    def start(self, values: Vector) -> float | None:
        """Take multipliers of the stacked inequality as the start; its rho, or None if none is found."""
        # They are feasible for their own rho and all larger ones, in units of which they are L'.
        rho = float(np.linalg.norm(self.weights[-1], 2)) ** 2
        scale = 2 / rho
        for _ in range(400):
            top = self._spectrum(np.log(values * scale))
            if top is not None and 2 / scale >= top[0][-1]:
                break
            scale /= 1.05 if top is not None or scale < 1e-30 else 2.0
        if self.best[0] == float("inf"):
            return None
        return float(np.exp(self.best[0]))

    def __call__(self, z: Vector) -> tuple[float, Vector]:
        """The objective and its gradient; infeasible points are barred."""
        if time.monotonic() > self.deadline:
            raise _Late
        found = self._spectrum(z)
        if found is None:
            return BARRED, np.zeros_like(z)
        mu, y, trail = found
        ratio = (np.maximum(mu, 0) / mu[-1]) ** self.power
        total = float(ratio.sum())
        # d log rho_p = sum mu_k^(p-1) d mu_k / sum mu_k^p
        weight = (np.maximum(mu, 0) / mu[-1]) ** (self.power - 1) / (mu[-1] * total)
        used = weight > 1e-14 * weight[-1]
        share = self.barrier / len(z)
        gradient = self._gradient(z, y[:, used] * np.sqrt(weight[used]), trail, share) + share
        inside = 2 * sum(float(np.log(stage.root.diagonal()).sum()) for stage in trail) - float(z.sum())
        return float(np.log(mu[-1]) + np.log(total) / self.power) - share * inside, gradient

    def _spectrum(self, z: Vector) -> tuple[Vector, Matrix, list[_Stage]] | None:
        """Eigenvalues (ascending) and eigenvectors of G, and the recursion that led there; None where some M_i is not definite."""
        trail, h = [], self.weights[0]
        with np.errstate(all="ignore"):
            values = np.exp(z)
        for layer, own, after in zip(self.layers, self.units, self.weights[1:], strict=True):
            stage = _stage(layer, h, values[own])
            if stage is None:
                return None
            trail.append(stage)
            h = solve_triangular(stage.root, after.T, lower=True, check_finite=False).T
        small = h @ h.T if len(h) <= h.shape[1] else h.T @ h
        if not np.isfinite(small).all():
            return None
        mu, y = np.linalg.eigh(small)
        if mu[-1] <= 0:
            return None
        if len(h) > h.shape[1]:
            kept = mu > 1e-12 * mu[-1]
            mu, y = mu[kept], h @ (y[:, kept] / np.sqrt(mu[kept]))
        if np.log(mu[-1]) < self.best[0]:
            self.best = float(np.log(mu[-1])), z.copy()
        return mu, y, trail

    def _gradient(self, z: Vector, y: Matrix, trail: list[_Stage], share: float) -> Vector:
        """Of `sum_k mu_k` over the columns of y, each of which counts with its squared length, minus `share sum_i log det M_i`."""
        result = np.empty_like(z)
        push = self.weights[-1].T @ y
        for k in reversed(range(len(trail))):
            layer, stage = self.layers[k], trail[k]
            push = np.concatenate([push, np.sqrt(share) * np.tril(stage.root)], axis=1)
            triangle: Matrix = np.linalg.qr(push.T, mode="r")  # type: ignore[assignment]
            push = triangle.T  # the columns count by their Gram matrix alone
            u = cho_solve((stage.root, True), push, check_finite=False)
            inner = stage.h.T @ (stage.center[:, None] * u)
            if stage.inner is not None:
                inner = cho_solve((stage.inner, True), inner, check_finite=False)
            v = stage.h @ inner
            own = self.units[k]
            slack = (u - layer.lower[:, None] * v) * (layer.upper[:, None] * v - u)
            result[own] = np.exp(z[own]) * slack.sum(axis=1)
            if k:
                # u_{i-1} = L^{-T} inner with M_{i-1} = L L^T; what the next round solves with M_{i-1} is L inner.
                push = trail[k - 1].root @ inner
        return result


class _Stage:
    """One layer of the recursion: `H`, `m L'`, the factor of M_i, and that of `I + H^T alpha beta L' H` unless it is I."""

    def __init__(self, h: Matrix, center: Vector, root: Matrix, inner: Matrix | None) -> None:
        self.h = h
        self.center = center
        self.root = root
        self.inner = inner


def _stage(layer: Layer, h: Matrix, values: Vector) -> _Stage | None:
    both, center = layer.lower * layer.upper, (layer.lower + layer.upper) / 2 * values
    inner = None
    try:
        if both.any():
            form = h.T @ ((both * values)[:, None] * h)
            form[np.diag_indices_from(form)] += 1
            inner = cholesky(form, lower=True)
            left = solve_triangular(inner, h.T * center, lower=True)
            rest = left.T @ left
        else:
            rest = center[:, None] * (h @ h.T) * center
        root = cholesky(np.diag(values) - rest, lower=True)
    except (LinAlgError, ValueError):
        return None
    return _Stage(h, center, root, inner)
