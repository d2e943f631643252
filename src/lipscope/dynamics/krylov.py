"""The derivatives of a large real matrix' norm from a Krylov space: no decomposition of the whole matrix.

With `A = W W^T` of the shorter side, `sigma^2` and `u` are its largest eigenpair. Lanczos from an earlier `u` finds them in
few products; the error of `sigma^2` is at most the square of the pair's residual over its distance to the rest of the
spectrum. What `GramForm` sums over eigenvectors, with `t = sigma p + W q`,

    H(G, F) = t_F^T (sigma^2 I - A)^+ t_G / sigma + <q_F - v v^T q_F, q_G - v v^T q_G> / sigma,

is one solve for each direction by conjugate gradients, whose error here is of the square of its residual, too. `u` after a
small change of `W` is `u + (sigma^2 I - A)^+ t` up to second order; further corrections of that kind (Davidson) sharpen it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from lipscope.dynamics.operator_calculus import GramForm

SMALLEST = 96
"""Shorter sides up to this are decomposed."""
FORMED = 1500
"""Shorter sides up to this have `W W^T` written down: beyond, two products with `W` are cheaper."""
STEPS = 200
"""Lanczos steps and conjugate gradient iterations that are tried; `GramForm` is for what needs more."""
CHECKED = 4
"""Lanczos steps between two looks at the residuals."""
NORM_ERROR = 1e-15
"""Relative error of `sigma^2` by its residual; the vector's own error is of the square root, and `D` feels that."""
AFTER_ERROR = 1e-14
"""The same after a change, where nothing but the norm is asked for."""
CORRECTIONS = 8
"""Corrections of a predicted vector that are tried."""
SECOND_ERROR = 1e-4
"""Error of the second eigenvalue, relative to its distance to the first, by its residual."""
SOLVED = 1e-6
"""Relative residual of a solve."""
PREDICTED = 3e-2
"""Of a solve that only says where to look."""
KEPT = 16
"""Ritz vectors that precondition the solves."""
STIRRED = 0.05
"""How much of a vector that is orthogonal to nothing is put into a start, so that another vector on top is found."""

Product = Callable[[Tensor], Tensor]


class NotFoundError(ArithmeticError):
    """The Krylov space does not tell the top pair from others, or a solve does not converge."""


@dataclass(frozen=True)
class Ritz:
    """The top of a symmetric matrix.

    Attributes:
        values: falling; the first two are eigenvalues, the others approach them from below.
        vectors: orthonormal rows, (k, size).
    """

    values: Tensor
    vectors: Tensor


def lanczos(product: Product, start: Tensor) -> Ritz:
    """The two largest eigenvalues of a positive semidefinite matrix, with full reorthogonalisation.

    Args:
        product: of the matrix and a vector.
        start: not orthogonal to the vector that is looked for.

    Raises:
        NotFoundError: residuals do not fall as far as they must, within `STEPS`.
    """
    size = len(start)
    steps = min(STEPS, size - 1)
    basis = start.new_zeros(steps + 1, size)
    basis[0] = start / start.norm()
    alphas: list[float] = []
    betas: list[float] = []
    for k in range(steps):
        moved = product(basis[k])
        known = basis[: k + 1]
        shares = known @ moved
        alphas.append(float(shares[k]))
        moved = moved - shares @ known
        moved = moved - (known @ moved) @ known  # twice is enough
        beta = float(moved.norm())
        if not (math.isfinite(beta) and beta > 1e-14 * abs(alphas[0])):
            raise NotFoundError("the start lies in an invariant subspace")
        if k >= 2 and k % CHECKED == 0:
            values, vectors = eigh_tridiagonal(np.array(alphas), np.array(betas))
            if _settled(values[-1], values[-1] - values[-2], beta * np.abs(vectors[-1, -2:])):
                top = torch.from_numpy(np.ascontiguousarray(vectors[:, ::-1][:, :KEPT].T))
                return Ritz(torch.from_numpy(values[::-1][:KEPT].copy()), top @ known)
        betas.append(beta)
        basis[k + 1] = moved / beta
    raise NotFoundError("the largest singular values lie too close together")


def _settled(top: float, gap: float, residuals: np.ndarray) -> bool:
    if not (top > 0 and gap > 0):
        return False
    # As long as the second has not settled, another may be between it and the first.
    return bool(residuals[1] ** 2 <= NORM_ERROR * top * gap and residuals[0] <= math.sqrt(SECOND_ERROR) * gap)


class KrylovForm:
    """What `GramForm` gives, for matrices whose shorter side is long.

    Attributes:
        norm: `sigma_1`.
        gap: `sigma_1 - sigma_2`.
        left: `u`, (m,).
        right: `v`, (n,).
    """

    def __init__(self, weight: Tensor, start: Tensor | None = None) -> None:
        """Of a real matrix.

        Args:
            weight: in float64.
            start: an earlier singular vector of the shorter side.

        Raises:
            NotFoundError: decompose it instead.
        """
        self.tall = weight.shape[0] > weight.shape[1]
        self._matrix = weight.mT if self.tall else weight
        self._product = _gram(self._matrix)
        size = len(self._matrix)
        # Fixed, and without symmetry, so that it is not orthogonal to a symmetric top vector.
        stir = torch.cos(torch.arange(size, dtype=weight.dtype) ** 1.5) + 0.1
        usable = start is not None and len(start) == size and bool(torch.isfinite(start).all())
        begin = stir if start is None or not usable else start + STIRRED * stir / stir.norm()
        found = lanczos(self._product, begin)
        self.short: Tensor = found.vectors[0] / found.vectors[0].norm()
        image = self._matrix.mT @ self.short
        self.norm = float(image.norm())
        second = float(found.values[1])
        self._square, self._apart = float(found.values[0]), float(found.values[0]) - second
        self._second = math.sqrt(max(second, 0.0))
        self.gap = self._apart / (self.norm + self._second)
        if not self.gap > 1e-7 * self.norm:
            raise NotFoundError("the largest singular values lie too close together")
        self._long: Tensor = image / self.norm
        self._other, self._known = found.vectors[1], found.vectors[1:]
        # Where the matrix of the solves is small the Ritz values know it; all the rest is taken as the last of them.
        small = self._square - found.values[1:]
        self._weights = small[-1] / small - 1

    @property
    def left(self) -> Tensor:
        """`u`."""
        return self._long if self.tall else self.short

    @property
    def right(self) -> Tensor:
        """`v`."""
        return self.short if self.tall else self._long

    def second(self, p: Tensor, q: Tensor) -> Tensor:
        """`H(G_i, G_i)` of k directions, (k,), from `p` (k, m) and `q` (k, n).

        Raises:
            NotFoundError: the solves do not converge.
        """
        turns, rest = self._parts(p, q)
        total: Tensor = ((self._solve(turns, SOLVED) * turns).sum(-1) + (rest**2).sum(-1)) / self.norm
        return total

    def matrix(self, p: Tensor, q: Tensor) -> Tensor:
        """`H(G_i, G_j)` of k directions, (k, k), from `p` (k, m) and `q` (k, n).

        Raises:
            NotFoundError: the solves do not converge.
        """
        turns, rest = self._parts(p, q)
        total: Tensor = (self._solve(turns, SOLVED) @ turns.mT + rest @ rest.mT) / self.norm
        return (total + total.mT) / 2

    def crossing_ratio(self, p: Tensor, q: Tensor) -> float:
        """As the function of that name, of one direction; 0 where the second singular value vanishes."""
        if self._second == 0:
            return 0.0
        short, long = (q, p) if self.tall else (p, q)
        turn = abs(float(short @ self._other) + float(long @ (self._matrix.mT @ self._other)) / self._second)
        return turn / (2 * self.gap)

    def norm_after(self, change: Tensor) -> float:
        """The norm of the matrix plus a change of which `crossing_ratio` is small.

        Raises:
            NotFoundError: expand the sum instead.
        """
        matrix = self._matrix + (change.mT if self.tall else change)
        basis = self.short[None]
        images = (matrix.mT @ self.short)[None]
        for _ in range(CORRECTIONS):
            top = torch.linalg.eigh(images @ images.mT)[1][:, -1]
            long, vector = top @ images, top @ basis
            back = matrix @ long
            square = float(long @ long)
            residual = back - square * vector
            if float(residual @ residual) <= AFTER_ERROR * square * self._apart / 2:
                return math.sqrt(square)
            # Newton's correction with the matrix before the change: the error falls by the size of the change each time.
            new = self._solve(self._across(residual)[None], PREDICTED)[0]
            for _ in range(2):
                new = new - (basis @ new) @ basis
            new = new / new.norm()
            basis = torch.cat([basis, new[None]])
            images = torch.cat([images, (matrix.mT @ new)[None]])
        raise NotFoundError("the change is too large to be followed")

    def _parts(self, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """`t` of the heading without its part along `u`, and the longer image without its part along `v`."""
        short, long = (q, p) if self.tall else (p, q)
        along: Tensor = long @ self._long
        return self._across(self.norm * short + long @ self._matrix.mT), long - along.unsqueeze(-1) * self._long

    def _across(self, x: Tensor) -> Tensor:
        along: Tensor = x @ self.short
        return x - along.unsqueeze(-1) * self.short

    def _preconditioned(self, r: Tensor) -> Tensor:
        shares: Tensor = (r @ self._known.mT) * self._weights
        return r + shares @ self._known

    def _solve(self, turns: Tensor, tolerance: float) -> Tensor:
        """`(sigma^2 I - A)^+ t` of rows; conjugate gradients side by side."""
        z, r = torch.zeros_like(turns), turns
        d = y = self._preconditioned(r)
        size = (r * y).sum(-1)
        goal = tolerance * r.norm(dim=-1)
        for _ in range(STEPS):
            live = r.norm(dim=-1) > goal
            if not bool(live.any()):
                return z
            moved = self._across(self._square * d - self._product(d.mT).mT)
            bend = (d * moved).sum(-1)
            if not bool((bend > 0)[live].all()):
                raise NotFoundError("another singular value is larger")
            step = torch.where(live, size / bend, 0.0).unsqueeze(-1)
            z, r = z + step * d, r - step * moved
            y = self._preconditioned(r)
            size, before = (r * y).sum(-1), size
            d = y + torch.where(live, size / before, 0.0).unsqueeze(-1) * d
        raise NotFoundError("conjugate gradients did not converge")


def _gram(matrix: Tensor) -> Product:
    if len(matrix) > FORMED:
        return lambda x: matrix @ (matrix.mT @ x)
    gram = matrix @ matrix.mT
    return lambda x: gram @ x


def best_form(weight: Tensor, start: Tensor | None = None) -> GramForm | KrylovForm:
    """The cheaper form that works for a real matrix.

    Args:
        weight: in float64.
        start: an earlier singular vector of the shorter side.
    """
    if min(weight.shape) > SMALLEST:
        try:
            return KrylovForm(weight, start)
        except NotFoundError:
            pass
    return GramForm(weight)
