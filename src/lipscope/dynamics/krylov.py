"""The derivatives of a large operator's norm from a Krylov space: no decomposition, and nothing written down but vectors.

With `A = W W^T` of the shorter side, `sigma^2` and `u` are its largest eigenpair. Lanczos from an earlier `u` finds them in
few products; the error of `sigma^2` is at most the square of the pair's residual over its distance to the rest of the
spectrum. What `GramForm` sums over eigenvectors, with `t = sigma p + W q`,

    H(G, F) = t_F^T (sigma^2 I - A)^+ t_G / sigma + <q_F - v v^T q_F, q_G - v v^T q_G> / sigma,

is one solve `(sigma^2 I - A) z = t` for each direction by conjugate gradients. With the residuals `r = t - (sigma^2 I - A) z`,

    t_F^T (sigma^2 I - A)^+ t_G = t_F^T z_G + z_F^T r_G + r_F^T (sigma^2 I - A)^+ r_G,

and without its last term the sum has an error of the square of the residuals, too. `u` after a small change of `W` is `u + z`
up to second order; further corrections of that kind (Davidson) sharpen it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lipscope.dynamics.operator_calculus import GramForm

SMALLEST = 96
"""Shorter sides up to this are decomposed."""
FORMED = 1500
"""Shorter sides up to this have `W W^T` written down: beyond, two products with `W` are cheaper."""
BLOCKS = 4
"""`W W^T` is symmetric: in so many strips of rows, of which only the parts up to the diagonal are computed."""
STEPS = 200
"""Lanczos steps and conjugate gradient iterations that are tried; `GramForm` is for what needs more."""
CHECKED = 4
"""Lanczos steps between two looks at the residuals."""
NORM_ERROR = 1e-14
"""Relative error of `sigma^2` by its residual; the vector's own error is of the square root, and `D` feels that."""
AFTER_ERROR = 1e-14
"""The same after a change, where nothing but the norm is asked for."""
CORRECTIONS = 8
"""Corrections of a predicted vector that are tried."""
SECOND_ERROR = 1e-4
"""Error of the second eigenvalue, relative to its distance to the first, by its residual."""
SOLVED = 1e-4
"""Relative residual of a solve, of the longest of the vectors that are solved for together."""
PREDICTED = 3e-2
"""Of a solve that only says where to look."""
KEPT = 16
"""Ritz vectors that precondition the solves."""
WARM = 8
"""Of those, so many begin the next search."""
STIRRED = 1e-3
"""How much of a vector that is orthogonal to nothing is put into a start, so that another vector on top is found."""

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Action:
    """A real linear map `K` by what it does to rows.

    Attributes:
        outputs: m.
        inputs: n.
        forward: `K x` of the rows of (k, n), (k, m).
        adjoint: `K^T y` of the rows of (k, m), (k, n).
    """

    outputs: int
    inputs: int
    forward: Product
    adjoint: Product

    @staticmethod
    def of(matrix: Tensor) -> Action:
        """Of a matrix (m, n)."""
        return Action(len(matrix), matrix.shape[1], lambda x: x @ matrix.mT, lambda y: y @ matrix)


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

    From one vector this is Lanczos' method. From several, the Rayleigh-Ritz method in their span and a Krylov space that
    begins anew, every few steps, with the residual that is furthest from where it must be: eigenvalues that lie close
    together, and were told apart before, are told apart at once.

    Args:
        product: of the matrix and rows.
        start: rows, (k, size), whose span is not orthogonal to the vector that is looked for.

    Raises:
        NotFoundError: residuals do not fall as far as they must, within `STEPS`.
    """
    size = start.shape[1]
    first = torch.linalg.qr(start.mT)[0].mT
    count = len(first)
    steps = min(STEPS + count, size)
    basis, images = start.new_zeros(steps, size), start.new_zeros(steps, size)
    basis[:count], images[:count] = first, product(first)
    shares = np.zeros((steps, steps))  # the matrix in the basis, lower triangle
    shares[:count, :count] = (images[:count] @ first.mT).numpy()
    new, passes = images[count - 1], 2  # twice is enough
    for k in range(count, steps + 1):
        known, moved = basis[:k], images[:k]
        if k > max(count, 2) and ((k - count) % CHECKED == 0 or k == size):
            values, vectors = np.linalg.eigh(shares[:k, :k])
            top = torch.from_numpy(np.ascontiguousarray(vectors[:, ::-1][:, :KEPT].T))
            values = values[::-1][:KEPT].copy()
            residuals = top[:2] @ moved - torch.from_numpy(values[:2, None]) * (top[:2] @ known)
            excess = _excess(values, residuals.norm(dim=1).numpy())
            if max(excess) <= 1:
                return Ritz(torch.from_numpy(values), top @ known)
            new, passes = residuals[int(np.argmax(excess))], 2
        if k == steps:
            break
        basis[k] = _across(known, new, passes)
        images[k] = product(basis[k : k + 1])[0]
        row = basis[: k + 1] @ images[k]
        shares[k, : k + 1] = row.numpy()
        new, passes = images[k] - row @ basis[: k + 1], 1
    raise NotFoundError("the largest singular values lie too close together")


def _across(basis: Tensor, new: Tensor, passes: int = 2) -> Tensor:
    """The direction of a vector across orthonormal rows; one pass is enough for a vector that has been through one.

    Raises:
        NotFoundError: it lies in their span.
    """
    for _ in range(passes):
        length = float(new.norm())
        if not (math.isfinite(length) and length > 1e-13):
            raise NotFoundError("the start lies in an invariant subspace")
        new = new / length
        new = new - (basis @ new) @ basis
    found: Tensor = new / new.norm()
    return found


def _excess(values: np.ndarray, residuals: np.ndarray) -> tuple[float, float]:
    """How many times too large the residuals of the first and the second pair are.

    Both lie across all Ritz vectors, so that what separates them from the truth is the distance to the third value: the
    error of a value is its squared residual over that, and the residuals' product over it is what turns one into the other.
    """
    top, gap, apart = float(values[0]), float(values[0] - values[1]), float(values[0] - values[2])
    if not (top > 0 and gap > 0):
        return (math.inf, math.inf)
    first, second = (float(r) for r in residuals)
    turn = first * second / (apart * math.sqrt(NORM_ERROR * top * gap))
    # As long as the second has not settled, another may be between it and the first.
    return max(first / math.sqrt(NORM_ERROR * top * apart), turn), second / math.sqrt(SECOND_ERROR * gap * apart)


class KrylovForm:
    """What `GramForm` gives, for matrices and other linear maps whose shorter side is long.

    Attributes:
        norm: `sigma_1`.
        gap: `sigma_1 - sigma_2`.
        left: `u`, (m,).
        right: `v`, (n,).
        short: that of the two which is shorter.
        warm: approximate singular vectors of the shorter side in rows, from which a search nearby begins.
    """

    def __init__(self, weight: Tensor | Action, start: Tensor | None = None) -> None:
        """Of a real matrix or another map.

        Args:
            weight: in float64.
            start: earlier singular vectors of the shorter side, the largest first, as a vector or as rows.

        Raises:
            NotFoundError: decompose it instead.
        """
        action = Action.of(weight) if isinstance(weight, Tensor) else weight
        self.tall = action.outputs > action.inputs
        self._action = action
        self._gram = self._formed(weight) if isinstance(weight, Tensor) else None
        size = min(action.outputs, action.inputs)
        # Fixed, and without symmetry, so that it is not orthogonal to a symmetric top vector.
        stir = torch.cos(torch.arange(size, dtype=torch.float64) ** 1.5) + 0.1
        begin = stir[None]
        if start is not None and start.shape[-1] == size and bool(torch.isfinite(start).all()):
            begin = start.reshape(-1, size).clone()
            begin[0] += STIRRED * stir / stir.norm()
        found = lanczos(self._product, begin)
        self.short: Tensor = found.vectors[0] / found.vectors[0].norm()
        self.warm: Tensor = found.vectors[:WARM]
        image = self._up(self.short[None])[0]
        self.norm = float(image.norm())
        second = float(found.values[1])
        self._square, apart = float(found.values[0]), float(found.values[0]) - second
        self._third = float(found.values[0] - found.values[2])
        self._second = math.sqrt(max(second, 0.0))
        self.gap = apart / (self.norm + self._second)
        if not self.gap > 1e-7 * self.norm:
            raise NotFoundError("the largest singular values lie too close together")
        self._long: Tensor = image / self.norm
        self._other, self._known = found.vectors[1], found.vectors[1:]
        # Where the matrix of the solves is small the Ritz values know it; all the rest is taken as the last of them.
        small = self._square - found.values[1:]
        self._weights = small[-1] / small - 1
        self._turned: Tensor | None = None

    def _formed(self, matrix: Tensor) -> Tensor | None:
        short = matrix.mT if self.tall else matrix
        size = len(short)
        if size > FORMED:
            return None
        gram = short.new_empty(size, size)
        width = -(-size // BLOCKS)
        for first in range(0, size, width):
            last = first + width
            gram[first:last, :last] = short[first:last] @ short[:last].mT
            gram[:first, first:last] = gram[first:last, :first].mT
        return gram

    def _up(self, x: Tensor) -> Tensor:
        """From the shorter side to the longer one, rows."""
        return self._action.forward(x) if self.tall else self._action.adjoint(x)

    def _down(self, x: Tensor) -> Tensor:
        """From the longer side to the shorter one, rows."""
        return self._action.adjoint(x) if self.tall else self._action.forward(x)

    def _product(self, x: Tensor) -> Tensor:
        """`A x` of rows."""
        return x @ self._gram if self._gram is not None else self._down(self._up(x))

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
        z, r = self._solve(turns, SOLVED)
        total: Tensor = ((z * (turns + r)).sum(-1) + (rest**2).sum(-1)) / self.norm
        return total

    def matrix(self, p: Tensor, q: Tensor) -> Tensor:
        """`H(G_i, G_j)` of k directions, (k, k), from `p` (k, m) and `q` (k, n).

        Raises:
            NotFoundError: the solves do not converge.
        """
        turns, rest = self._parts(p, q)
        z, r = self._solve(turns, SOLVED)
        self._turned = z.sum(0)
        total: Tensor = (z @ (turns + r).mT + rest @ rest.mT) / self.norm
        return (total + total.mT) / 2

    def crossing_ratio(self, p: Tensor, q: Tensor) -> float:
        """As the function of that name, of one direction; 0 where the second singular value vanishes."""
        if self._second == 0:
            return 0.0
        short, long = (q, p) if self.tall else (p, q)
        turn = abs(float(short @ self._other) + float(long @ self._up(self._other[None])[0]) / self._second)
        return turn / (2 * self.gap)

    def norm_after(self, change: Tensor | Action) -> float:
        """The norm of the map plus a change of which `crossing_ratio` is small.

        It is quicker right after `matrix` of directions that sum to the change, whose turn of `u` is then known; with any other
        it is right, too.

        Raises:
            NotFoundError: expand the sum instead.
        """
        moved = Action.of(change) if isinstance(change, Tensor) else change
        up, down = (moved.forward, moved.adjoint) if self.tall else (moved.adjoint, moved.forward)

        def lifted(x: Tensor) -> Tensor:
            return self._up(x) + up(x)

        basis = _extended(self.short[None], self._other)  # within the two a small gap does no harm
        if self._turned is not None and float(self._turned.norm()) > 0:
            basis = _extended(basis, self._turned)
        images = lifted(basis)
        for _ in range(CORRECTIONS):
            top = torch.linalg.eigh(images @ images.mT)[1][:, -1]
            long, vector = (top @ images)[None], top @ basis
            square = float((long**2).sum())
            residual = (self._down(long) + down(long))[0] - square * vector
            if float(residual @ residual) <= AFTER_ERROR * square * self._third / 2:
                return math.sqrt(square)
            # Newton's correction with the matrix before the change: the error falls by the size of the change each time.
            basis = _extended(basis, self._solve(self._across(residual)[None], PREDICTED)[0][0])
            images = torch.cat([images, lifted(basis[-1:])])
        raise NotFoundError("the change is too large to be followed")

    def _parts(self, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """`t` of the heading without its part along `u`, and the longer image without its part along `v`."""
        short, long = (q, p) if self.tall else (p, q)
        along: Tensor = long @ self._long
        return self._across(self.norm * short + self._down(long)), long - along.unsqueeze(-1) * self._long

    def _across(self, x: Tensor) -> Tensor:
        along: Tensor = x @ self.short
        return x - along.unsqueeze(-1) * self.short

    def _preconditioned(self, r: Tensor) -> Tensor:
        shares: Tensor = (r @ self._known.mT) * self._weights
        return r + shares @ self._known

    def _solve(self, turns: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """`(sigma^2 I - A)^+ t` of rows, by conjugate gradients side by side, and what is left of `t`."""
        z, r = torch.zeros_like(turns), turns
        d = y = self._preconditioned(r)
        size = (r * y).sum(-1)
        goal = tolerance * r.norm(dim=-1).max()
        for _ in range(STEPS):
            live = r.norm(dim=-1) > goal
            if not bool(live.any()):
                return z, r
            moved = self._across(self._square * d - self._product(d))
            bend = (d * moved).sum(-1)
            if not bool((bend > 0)[live].all()):
                raise NotFoundError("another singular value is larger")
            step = torch.where(live, size / bend, 0.0).unsqueeze(-1)
            z, r = z + step * d, r - step * moved
            y = self._preconditioned(r)
            size, before = (r * y).sum(-1), size
            d = y + torch.where(live, size / before, 0.0).unsqueeze(-1) * d
        raise NotFoundError("conjugate gradients did not converge")


def _extended(basis: Tensor, new: Tensor) -> Tensor:
    """One more orthonormal row."""
    return torch.cat([basis, _across(basis, new)[None]])


def best_form(weight: Tensor, start: Tensor | None = None) -> GramForm | KrylovForm:
    """The cheaper form that works for a real matrix.

    Args:
        weight: in float64.
        start: earlier singular vectors of the shorter side, the largest first.
    """
    if min(weight.shape) > SMALLEST:
        try:
            return KrylovForm(weight, start)
        except NotFoundError:
            pass
    return GramForm(weight)
