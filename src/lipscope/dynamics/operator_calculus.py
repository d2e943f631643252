"""Derivatives of the operator norm `sigma_1(W)` (l2) in a direction `G`, to third order, without forming a Hessian.

For a simple `sigma = sigma_1 > 0` with singular vectors `u`, `v` everything depends on `G` only through
`p = G v` and `q = G^H u`. With `a_i = u_i^H p` and `b_i = v_i^H q`:

    D sigma[G]   = Re(u^H p)
    H(G, G)      = sum_{i>=2} |a_i + b_i|^2 / (2 (sigma - sigma_i)) + |a_i - b_i|^2 / (2 (sigma + sigma_i))
                   + (|p - U U^H p|^2 + |q - V V^H q|^2 + Im(u^H p)^2) / sigma

This is second order perturbation theory of the Hermitian dilation `[[0, W], [W^H, 0]]`, whose top eigenvector is
`(u; v) / sqrt 2`. Its other eigenvectors are `(u_i; +-v_i) / sqrt 2` to `+-sigma_i`, `(u; -v) / sqrt 2` to `-sigma` (which
gives the imaginary part, because `v^H q = conj(u^H p)`; it counts for complex matrices such as Fourier blocks of a
convolution) and null vectors (which give the terms with U and V, the part that a matrix that is not square adds).
The full (formed) Hessian of a real matrix is in arXiv 2506.03764.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipscope.claims.errors import UsageError


@dataclass(frozen=True)
class ThinSVD:
    """`W = U diag(S) V^H` with `r = min(m, n)` columns.

    Attributes:
        left: `U`, (m, r).
        values: `S`, (r,), real, falling.
        right: `V`, (n, r).
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def norm(self) -> float:
        """The largest singular value."""
        return float(self.values[0])

    @property
    def gap(self) -> float:
        """`sigma_1 - sigma_2`; `sigma_1` where there is no second one. The derivatives need it to be positive."""
        return float(self.values[0] - self.values[1]) if len(self.values) > 1 else float(self.values[0])

    def images(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """`p = G v` (.., m) and `q = G^H u` (.., n) of directions (.., m, n)."""
        return direction @ self.right[:, 0], direction.mH @ self.left[:, 0]


def thin_svd(weight: Tensor) -> ThinSVD:
    """The thin singular value decomposition of a real or complex matrix, in the matrix' own precision.

    Raises:
        UsageError: it is not a matrix, or has no entries.
    """
    if weight.ndim != 2 or not weight.numel():
        raise UsageError(f"expected a matrix with entries, got the shape {tuple(weight.shape)}")
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return ThinSVD(u, s, vh.mH)


def first_form(svd: ThinSVD, p: Tensor) -> Tensor:
    """`D sigma[G] = Re(u^H G v)` from `p = G v` (.., m)."""
    along: Tensor = p @ svd.left[:, 0].conj()
    return along.real


def second_form(svd: ThinSVD, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """`H(G, F)` from `(p, q)` of `G` and of `F` (of `G` twice without the second); (..,), real, exact where `gap > 0`.

    Where the largest singular value is not simple the result is inf or nan.
    """
    other = first if second is None else second
    (a, b, p, q), (c, d, s, t) = _coordinates(svd, *first), _coordinates(svd, *other)
    sigma, rest = svd.values[0], svd.values[1:]
    plus = _real_dot(a[..., 1:] + b[..., 1:], (c[..., 1:] + d[..., 1:]) / (2 * (sigma - rest)))
    minus = _real_dot(a[..., 1:] - b[..., 1:], (c[..., 1:] - d[..., 1:]) / (2 * (sigma + rest)))
    outside = _real_dot(p, s) + _real_dot(q, t)
    turned = a[..., 0].imag * c[..., 0].imag if a.is_complex() else 0.0
    return plus + minus + (outside + turned) / sigma


def _coordinates(svd: ThinSVD, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Coordinates of `p` and `q` in the singular vectors, and what of them lies outside."""
    a, b = p @ svd.left.conj(), q @ svd.right.conj()
    return a, b, p - a @ svd.left.mT, q - b @ svd.right.mT


def _real_dot(x: Tensor, y: Tensor) -> Tensor:
    product: Tensor = (x.conj() * y).sum(-1)
    return product.real


def crossing_ratio(svd: ThinSVD, p: Tensor, q: Tensor) -> float:
    """`|a_2 + b_2| / (2 (sigma_1 - sigma_2))`: how far `G` turns the top pair towards the second; above .5 Taylor is not valid."""
    if len(svd.values) < 2:
        return 0.0
    turn = float((p @ svd.left[:, 1].conj() + q @ svd.right[:, 1].conj()).abs())
    return turn / (2 * svd.gap) if svd.gap > 0 else (0.0 if turn == 0 else torch.inf)


def first_derivative(weight: Tensor, direction: Tensor) -> Tensor:
    """`D sigma_1(W)[G]`, a scalar tensor."""
    svd = thin_svd(weight)
    return first_form(svd, svd.images(_same_shape(weight, direction))[0])


def second_derivative(weight: Tensor, direction: Tensor, other: Tensor | None = None) -> Tensor:
    """`D^2 sigma_1(W)[G, F]` (`[G, G]` without `F`), a scalar tensor; for real and complex matrices."""
    svd = thin_svd(weight)
    first = svd.images(_same_shape(weight, direction))
    return second_form(svd, first, None if other is None else svd.images(_same_shape(weight, other)))


def third_derivative(weight: Tensor, direction: Tensor) -> Tensor:
    """`D^3 sigma_1(W)[G, G, G]`, a scalar tensor; for real and complex matrices."""
    return derivative(weight, direction, 3)


def gap(weight: Tensor) -> float:
    """`sigma_1 - sigma_2` of a matrix, `sigma_1` if it has one row or column."""
    return thin_svd(weight).gap


def q_ratio(weight: Tensor, direction: Tensor) -> float:
    """`crossing_ratio` of a matrix and a direction."""
    svd = thin_svd(weight)
    return crossing_ratio(svd, *svd.images(_same_shape(weight, direction)))


def derivative(weight: Tensor, direction: Tensor, order: int) -> Tensor:
    """`D^k sigma_1(W)[G, .., G]` for k = 1, 2, 3, by perturbation of the dilation (not needing any second singular vector apart).

    With the dilations `A` of `W` and `E` of `G`, the top eigenvector `w` of `A` and the reduced resolvent
    `S = sum_{j not top} w_j w_j^H / (lambda_j - sigma)`, the Taylor coefficients are `l1 = w'Ew`, `l2 = -w'ESEw`,
    `l3 = w'ESESEw - (w'ES^2Ew) l1`, and the derivative is `k! l_k`. Costs an eigendecomposition of size m + n.

    Raises:
        UsageError: another order, or shapes that differ.
    """
    if order not in (1, 2, 3):
        raise UsageError(f"expected the order 1, 2 or 3, got {order}")
    values, vectors = torch.linalg.eigh(_dilation(weight))
    moved = _dilation(_same_shape(weight, direction))
    top, others = vectors[:, -1], vectors[:, :-1]
    image = moved @ top
    slope: Tensor = torch.vdot(top, image).real
    if order == 1:
        return slope
    coordinates = others.mH @ image
    weights = 1 / (values[:-1] - values[-1])
    if order == 2:
        bend: Tensor = -2 * (weights * coordinates.abs() ** 2).sum()
        return bend
    resolved = others @ (weights * coordinates).to(vectors.dtype)
    inner: Tensor = torch.vdot(resolved, moved @ resolved).real
    torsion: Tensor = 6 * (inner - (resolved.abs() ** 2).sum() * slope)
    return torsion


def _dilation(matrix: Tensor) -> Tensor:
    m, n = matrix.shape
    big = matrix.new_zeros(m + n, m + n)
    big[:m, m:], big[m:, :m] = matrix, matrix.mH
    return big


def _same_shape(weight: Tensor, direction: Tensor) -> Tensor:
    if direction.shape != weight.shape:
        raise UsageError(
            f"expected a direction of the matrix' shape {tuple(weight.shape)}, got {tuple(direction.shape)}"
        )
    return direction


class GramForm:
    """The same first and second derivatives of a real matrix from the eigenvectors of its smaller Gram matrix.

    Much cheaper than a singular value decomposition of a wide matrix. For `m <= n`, with the eigenvectors `u_i` of
    `W W^T` (complete, so that nothing of `p` lies outside), `a_i = u_i^T p`, `c_i = u_i^T W q` (which is `sigma_i b_i`):

        H(G, G) = sum_{i>=2} (sigma a_i + c_i)^2 / (sigma (sigma^2 - sigma_i^2)) + (|q|^2 - (v^T q)^2) / sigma

    (put `b_i = c_i / sigma_i` into the formula above and collect; no small `sigma_i` is divided by). Taller matrices are
    transposed, which swaps `p` and `q`.

    Attributes:
        norm: `sigma_1`.
        gap: `sigma_1 - sigma_2`.
        left: `u`, (m,).
        right: `v`, (n,).
    """

    def __init__(self, weight: Tensor) -> None:
        self.tall = weight.shape[0] > weight.shape[1]
        self._matrix = weight.mT if self.tall else weight
        values, vectors = torch.linalg.eigh(self._matrix @ self._matrix.mT)
        top = vectors[:, -1]
        image = self._matrix.mT @ top
        self.norm = float(image.norm())
        self._short: Tensor = top
        self._long: Tensor = image / self.norm if self.norm > 0 else image
        self._vectors = vectors[:, :-1]
        # sigma^2 - sigma_i^2 with the same rounding on both sides, so that equal values differ by exactly 0.
        self._differences = values[-1] - values[:-1]
        self._second = float(values[-2].clamp(min=0)) ** 0.5 if len(values) > 1 else 0.0
        several = len(values) > 1 and self.norm > 0
        self.gap = float(values[-1] - values[-2]) / (self.norm + self._second) if several else self.norm

    @property
    def left(self) -> Tensor:
        """`u`."""
        return self._long if self.tall else self._short

    @property
    def right(self) -> Tensor:
        """`v`."""
        return self._short if self.tall else self._long

    def first(self, p: Tensor) -> Tensor:
        """`u^T p` of (.., m)."""
        along: Tensor = p @ self.left
        return along

    def second(self, p: Tensor, q: Tensor) -> Tensor:
        """`H(G_i, G_i)` of a batch `(.., m)`, `(.., n)`."""
        turns, rest = self._parts(p, q)
        total: Tensor = (((turns**2) / self._differences).sum(-1) + (rest**2).sum(-1)) / self.norm
        return total

    def matrix(self, p: Tensor, q: Tensor) -> Tensor:
        """`H(G_i, G_j)` of k directions, (k, k), from `p` (k, m) and `q` (k, n)."""
        turns, rest = self._parts(p, q)
        total: Tensor = ((turns / self._differences) @ turns.mT + rest @ rest.mT) / self.norm
        return total

    def crossing_ratio(self, p: Tensor, q: Tensor) -> float:
        """As the function of that name, of one direction; 0 where the second singular value vanishes."""
        if self._second == 0:
            return 0.0
        short, long = (q, p) if self.tall else (p, q)
        vector = self._vectors[:, -1]
        turn = abs(float(short @ vector) + float(long @ (self._matrix.mT @ vector)) / self._second)
        return turn / (2 * self.gap) if self.gap > 0 else (0.0 if turn == 0 else torch.inf)

    def _parts(self, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """`sigma a_i + c_i`, i >= 2, and the part of the longer image across its singular vector."""
        short, long = (q, p) if self.tall else (p, q)
        turns = (self.norm * short + long @ self._matrix.mT) @ self._vectors
        return turns, long - (long @ self._long).unsqueeze(-1) * self._long
