"""Evidence for a segment's norm: `sums`, `dense`, `schur` and `cholesky`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from lipcheck.bundle import integer
from lipcheck.errors import Rejected
from lipcheck.rounding import Floats, U, frobenius_up, gamma, up
from lipcheck.segments import Operator

MEMORY = 2**31
"""Bytes that the blocks of a Gram matrix may take before they are recomputed one by one."""


def scaled(operator: Operator, t: float) -> tuple[Operator, float]:
    """Operator and bound divided by the power of two that brings the bound to [1, 2); exact."""
    mantissa, exponent = math.frexp(t)
    return replace(operator, exponent=exponent - 1), 2 * mantissa


def prove_sums(operator: Operator, norm: str, t: float) -> None:
    """`|L|` in l1 or linf is at most the largest column or row sum of |L|."""
    columns, rows = operator.sums()
    found = columns if norm == "l1" else rows
    if not found <= t:
        raise Rejected(f"the largest {'column' if norm == 'l1' else 'row'} sum is {found!r}, above {t!r}")


def prove_schur(operator: Operator, t: float) -> None:
    """`|L|_2^2 <= n1 ninf` (Schur)."""
    columns, rows = operator.sums()
    if columns == 0:
        return
    found = up(up(math.sqrt(columns)) * up(math.sqrt(rows)))
    if not found <= t:
        raise Rejected(f"the Schur bound is {found!r}, above {t!r}")


def _units(size: int, first: int, last: int) -> Floats:
    units = np.zeros((last - first, size))
    units[np.arange(last - first), np.arange(first, last)] = 1.0
    return units


def _batch(operator: Operator) -> int:
    widest = max(operator.network.nodes[i].size for i in (operator.source, operator.end, *operator.between))
    return max(1, 4_000_000 // widest)


def prove_dense(operator: Operator, norm: str, t: float) -> None:
    """The matrix, formed column by column (or row by row, whichever are fewer).

    An entry differs from the exact one by at most `gamma_k |L|_ij + e`; summed over a column of m entries that is at
    most `gamma_k n1 + m e`, over a row of n entries `gamma_k ninf + n e`; the sum of n computed absolute values has n
    more roundings.
    """
    columns, rows = operator.sums()
    if columns == 0:
        return
    shape_in, shape_out = operator.shapes
    n, m = math.prod(shape_in), math.prod(shape_out)
    by_columns = n <= m
    k, offset = operator.forward() if by_columns else operator.backward()
    size = n if by_columns else m
    want_columns = norm == "l1"
    best, running = 0.0, np.zeros(m if by_columns else n)
    batch = _batch(operator)
    for first in range(0, size, batch):
        units = _units(size, first, min(size, first + batch))
        if by_columns:
            image = np.abs(operator.apply(units.reshape(-1, *shape_in))).reshape(len(units), -1)
        else:
            image = np.abs(operator.adjoint(units.reshape(-1, *shape_out))).reshape(len(units), -1)
        if want_columns == by_columns:
            best = max(best, float(image.sum(axis=1).max()))
        else:
            running += image.sum(axis=0)
    value = max(best, float(running.max()))
    terms = m if want_columns else n
    total = value * (1 + 2 * gamma(terms + 2)) + 2 * gamma(k) * (columns if want_columns else rows) + 2 * terms * offset
    if not up(total * (1 + 8 * U)) <= t:
        raise Rejected(f"the largest sum of the matrix is {total!r}, above {t!r}")


# ------------------------------------------------------------------------------------------------------ cholesky


class Gram:
    """G = L^T L or L L^T in slabs, block tridiagonal (proved from the pattern), each block within `error` in norm.

    Probing: one product gives a column of several slabs i, i + 3, i + 6, ... at once. Slab i's image under |L|^T |L|
    stays in slabs i - 1 .. i + 1, so what slab i + 3 contributes there is exactly 0, and so is its rounding.

    Error: `|fl(L^T fl(L x)) - G x| <= gamma_{f+b} |L|^T |L| |x| + (2 n1 e_f + e_b)` entrywise, and
    `| |L|^T |L| |_2 <= n1 ninf`; a matrix of N columns with entries at most h has norm at most N h. Only the lower
    triangle is used; both bounds are symmetric.
    """

    def __init__(self, operator: Operator, side: str, axis: int | None, bounds: list[int]) -> None:
        self._forward = operator.apply if side == "input" else operator.adjoint
        self._backward = operator.adjoint if side == "input" else operator.apply
        self._shape = operator.shapes[0 if side == "input" else 1]
        self.size = math.prod(self._shape)
        places = np.arange(self.size).reshape(self._shape)
        if axis is None:
            self.slabs = [places.ravel()]
        else:
            pairs = itertools.pairwise(bounds)
            self.slabs = [np.take(places, np.arange(a, b), axis).ravel() for a, b in pairs]
        self._batch = _batch(operator)
        self._known: dict[int, tuple[Floats, Floats | None]] = {}
        self._prove_tridiagonal()
        (f, e_f), (b, e_b) = operator.forward(), operator.backward()
        if side == "output":
            e_f, e_b = e_b, e_f
        n1, ninf = operator.sums()
        own = n1 if side == "input" else ninf
        self.error = 2 * gamma(f + b) * n1 * ninf + 2 * self.size * (2 * own * e_f + e_b)

    def _prove_tridiagonal(self) -> None:
        if len(self.slabs) < 3:
            return
        for i, slab in enumerate(self.slabs):
            x = np.zeros((1, self.size))
            x[0, slab] = 1.0
            y = self._backward(self._forward(x.reshape(1, *self._shape), "pattern"), "pattern").reshape(-1)
            near = np.concatenate(self.slabs[max(i - 1, 0) : i + 2])
            if np.count_nonzero(y) != np.count_nonzero(y[near]):
                raise Rejected(f"slab {i} couples with slabs that are not its neighbours")

    def _assemble(self, group: list[int]) -> None:
        widths = [len(self.slabs[i]) for i in group]
        blocks: dict[int, tuple[Floats, Floats | None]] = {}
        for i in group:
            n = len(self.slabs[i])
            lower = np.empty((len(self.slabs[i + 1]), n)) if i + 1 < len(self.slabs) else None
            blocks[i] = np.empty((n, n)), lower
        for first in range(0, max(widths), self._batch):
            columns = range(first, min(max(widths), first + self._batch))
            x = np.zeros((len(columns), self.size))
            for row, column in enumerate(columns):
                x[row, [self.slabs[i][column] for i in group if column < len(self.slabs[i])]] = 1.0
            y = self._backward(self._forward(x.reshape(-1, *self._shape))).reshape(len(columns), -1)
            for i in group:
                count = min(len(columns), len(self.slabs[i]) - first)
                if count > 0:
                    here = slice(first, first + count)
                    blocks[i][0][:, here] = y[:count, self.slabs[i]].T
                    below = blocks[i][1]
                    if below is not None:
                        below[:, here] = y[:count, self.slabs[i + 1]].T
        self._known.update(blocks)

    def blocks(self) -> Iterator[tuple[Floats, Floats | None]]:
        """The diagonal block of each slab and the one below it (None for the last)."""
        count = len(self.slabs)
        cheap = sum(16 * len(s) ** 2 for s in self.slabs) <= MEMORY
        for i in range(count):
            if i not in self._known:
                for first in range(min(3, count)) if cheap else [i]:
                    self._assemble(list(range(first, count, 3)) if cheap else [i])
            yield self._known.pop(i)


def solve_lower(lower: Floats, right: Floats) -> Floats:
    """About `lower^-1 right` for a lower triangular matrix, by halves; whoever uses it bounds the residual."""
    n = len(lower)
    if n <= 64:
        return np.asarray(np.linalg.solve(lower, right))
    h = n // 2
    top = solve_lower(lower[:h, :h], right[:h])
    return np.concatenate([top, solve_lower(lower[h:, h:], right[h:] - lower[h:, :h] @ top)])


def cholesky(matrix: Floats) -> Floats:
    """The lower Cholesky factor of the matrix whose lower triangle is given.

    Raises:
        Rejected: the factorisation breaks down.
    """
    if not np.isfinite(matrix).all():
        raise Rejected("a Gram matrix is not finite")
    try:
        factor = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        raise Rejected("t^2 I - G is not proved positive semidefinite: the bound is too small") from None
    if not np.isfinite(factor).all():
        raise Rejected("a Cholesky factor is not finite")
    return np.asarray(factor)


def prove_cholesky(operator: Operator, t: float, evidence: dict[str, Any]) -> None:
    """`t^2 I - G` is positive semidefinite, by a block Cholesky factorisation with an error bound found afterwards.

    With t in [1, 2) let B = fl((t^2 - c) I - Ghat), lower triangle. The algorithm computes, block row by block row,
    `S_i` (float), `L_i = chol(S_i)`, `Y_i` ~ `C_i L_i^-T` (C_i the block below) and `S_{i+1} = fl(B_{i+1} - Y_i Y_i^T)`.
    With the residuals
        R1_i = S_i - L_i L_i^T:            |R1_i| <= gamma_{n+1} |L_i| |L_i^T| (Higham, Theorem 10.3, any order of
                                           summation), so |R1_i|_2 <= gamma_{n+1} |L_i|_F^2;
        R2_i = C_i - Y_i L_i^T:            its norm is computed, plus gamma_{n+2} (|C|_F + |Y|_F |L|_F);
        R3_i = B_{i+1} - Y Y^T - S_{i+1}:  |R3_i|_2 <= gamma_{n+2} (|B_{i+1}|_F + |Y|_F^2);
    B = M M^T + E with M block bidiagonal, E = diag(R1 + R3) + off-diagonal R2, so
    `B >= -(max_i (|R1_i| + |R3_i|) + 2 max_i |R2_i|) I`. B differs from `(t^2 - c) I - G` by the assembly error
    and by the roundings of the diagonal, 16 u in all while its entries are below 8. The claim holds if c covers all
    of this, which is tested in the end; c is chosen beforehand from the block sizes.

    Raises:
        Rejected: not proved.
    """
    side = evidence["side"]
    if side not in ("input", "output"):
        raise Rejected("expected side input or output")
    shape = operator.shapes[0 if side == "input" else 1]
    axis, bounds = _slabs(evidence, shape)
    if t == 0:
        return prove_sums(operator, "l1", 0.0)
    small, t = scaled(operator, t)
    gram = Gram(small, side, axis, bounds)
    widest = max(len(s) for s in gram.slabs)
    c = gram.error + 64 * U + 12 * gamma(widest + 4) * widest * t * t
    tau = t * t - c
    if not tau > 0:
        raise Rejected("rounding errors are larger than the bound itself")
    worst, off, carried = 0.0, 0.0, None
    extra = 0.0
    for diagonal, below in gram.blocks():
        n = len(diagonal)
        if np.abs(np.diagonal(diagonal)).max() > 8:
            raise Rejected("a column of the operator is longer than the bound")
        matrix = -diagonal
        matrix[np.arange(n), np.arange(n)] += tau
        if carried is not None:
            extra = gamma(carried.shape[1] + n + 4) * (_lower_norm(matrix) + frobenius_up(carried) ** 2)
            matrix = matrix - carried @ carried.T
        factor = cholesky(matrix)
        size = frobenius_up(factor)
        worst = max(worst, gamma(n + 1) * size * size + extra)
        if below is not None:
            solved = solve_lower(factor, -below.T).T
            residual = frobenius_up(-below - solved @ factor.T)
            slack = gamma(n + 4) * (frobenius_up(below) + frobenius_up(solved) * size)
            off = max(off, residual + slack)
            carried = solved
    proved = (worst + 2 * off) * (1 + 1e-9) + gram.error + 32 * U + 1e-290
    if not proved <= c:
        raise Rejected(f"the rounding error {proved!r} of the factorisation exceeds what was set aside, {c!r}")


def _lower_norm(matrix: Floats) -> float:
    """Upper bound of the Frobenius norm of the symmetric matrix with this lower triangle."""
    return math.sqrt(2) * frobenius_up(np.tril(matrix)) * (1 + 4 * U)


def _slabs(evidence: dict[str, Any], shape: tuple[int, ...]) -> tuple[int | None, list[int]]:
    axis, bounds = evidence["axis"], evidence["bounds"]
    if not isinstance(bounds, list) or len(bounds) > 100_000:
        raise Rejected("expected bounds as a list")
    if axis is None:
        if bounds:
            raise Rejected("expected no bounds without an axis")
        return None, []
    axis = integer(axis, "axis", 0, len(shape) - 1)
    bounds = [integer(b, "bound", 0, shape[axis]) for b in bounds]
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != shape[axis] or any(np.diff(bounds) <= 0):
        raise Rejected(f"expected bounds that rise from 0 to {shape[axis]}")
    return axis, bounds
