"""Deterministic bounds of a convolution's l2 norm by its symbol at finitely many frequencies.

With the polyphase kernel K_m (stride s, extent e = dilation (k-1) + 1, q = ceil(e/s) taps per axis, s_1 s_2 .. C
inputs; for stride 1 the dilation only moves the symbol in frequency and is dropped), a zero-padded convolution is a
restriction of the operator on the infinite grid, whose norm is `S = sup_w |K(w)|_2`, `K(w) = sum_m K_m exp(-i w m)`.
Let S be attained at w* with singular vectors u, v. Along one axis `Re(u^H K v)` is, up to a phase, a real
trigonometric polynomial of degree d = (q-1)/2; by M. Riesz it stays above `S cos(d h)` at distance h <= pi/(2d) from
its maximum. The nearest of N > q-1 equidistant points is within pi/N; one axis after the other:

    S <= max over the grid of |K(w)|_2 * prod 1/cos(pi (q-1)/(2 N)).

A convolution that goes round an image with N s entries on an axis is the block circulant matrix of the same kernel: it is
K(w) at the frequencies `2 pi j/N`, exactly, and its norm is the largest of theirs.

Real kernels have `K(-w)` conjugate to `K(w)`: half of the first axis suffices.

Rounding. A = sum_m |K_m|, a^2 = |A|_1 |A|_inf (per group). Phases `exp(-2 pi i r/N)` are off by at most 20 u, their
products over n axes by 24 n u; a complex inner product of T terms by 2 gamma_{T+2}; computed weights by gamma_k. So
`|fl(K(w)) - K(w)| <= eps |K|-sums`, eps = 2 gamma_{2T+24n+k+8}, with norm at most `eps a`. The Gram matrix H of order
c, from inner products of length m: at most `(3 eps + 4 gamma_{m+2}) a^2` off. Complex Cholesky: as in
`claims/definite.py` with gamma tripled (a complex product costs sqrt2 gamma_2), 4 gamma_{c+3} c s^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipscope.claims.rounding import UNIT_ROUNDOFF, down, gamma, up
from lipscope.network.nodes import Conv
from lipscope.operator_norm.proof import SLACK, Proof
from lipscope.operator_norm.schur import geometric_mean_up

BATCH_ENTRIES = 2_000_000
"""How many complex numbers a batch of symbols holds at most."""

COARSE = 4
"""Points per tap of the grid that decides whether the fine one is worth its cost."""

BEAM = 8
"""How many of the best points are refined when the supremum is estimated."""

MIN_SHARE = 0.2
"""The least part of the tolerance that must be left for the distance between grid points."""


class Symbol:
    """The symbol of a convolution's polyphase kernel, scaled by 2^-exponent.

    Args:
        convolution: the convolution; its weights may be off by `gamma_roundings` relatively.
        exponent: the scaling.
        roundings: see above.
    """

    def __init__(self, convolution: Conv, exponent: int, roundings: int) -> None:
        kernel = polyphase(convolution) * math.ldexp(1.0, -exponent)
        self.exponent = exponent
        self.taps: tuple[int, ...] = tuple(kernel.shape[3:])
        self.groups, self.rows, self.columns = (int(n) for n in kernel.shape[:3])
        self._complex = kernel.reshape(-1, math.prod(self.taps)).T.to(torch.complex128)
        total = kernel.abs().flatten(3).sum(dim=3)
        count = len(self.taps)
        enlarge = 1.0 + 2 * gamma(math.prod(self.taps) + self.rows + self.columns + roundings)
        sums = [float(total.sum(dim=d).max()) * enlarge for d in (1, 2)]
        self.bound = up(geometric_mean_up(up(sums[0]), up(sums[1])) ** 2)  # a^2
        self._epsilon = 2 * gamma(2 * math.prod(self.taps) + 24 * count + roundings + 8)

    @property
    def order(self) -> int:
        """The order of the Gram matrices."""
        return min(self.rows, self.columns)

    def error(self, square: float) -> float:
        """The shift c: everything that assembly and factorisation can be off by, for t^2 = `square` (scaled), with
        slack.
        """
        length = max(self.rows, self.columns)
        assembly = (3 * self._epsilon + 4 * gamma(length + 2)) * self.bound
        factorisation = 4 * gamma(self.order + 3) * self.order * square
        return SLACK * (assembly + factorisation + 8 * UNIT_ROUNDOFF * square + 1e-30) * (1 + 1e-9)

    def room(self, square: float) -> float:
        """How far t^2 is kept above the largest eigenvalue: for the proof here, and for one with real matrices of
        order 2c.
        """
        order, length = self.order, max(self.rows, self.columns)
        return 1.75 * self.error(square) + (80 + 10 * length * order + 20 * order * order) * UNIT_ROUNDOFF * square

    def flops(self, counts: tuple[int, ...]) -> float:
        """About how many operations the proof on this grid takes."""
        frequencies = (counts[0] // 2 + 1) * math.prod(counts[1:])
        length = max(self.rows, self.columns)
        each = (
            8.0 * self.order**2 * length + 4.0 * self.order**3 + 8.0 * self.rows * self.columns * math.prod(self.taps)
        )
        return frequencies * self.groups * each

    def gram_at(self, points: NDArray[np.float64], counts: tuple[int, ...]) -> Tensor:
        """The Gram matrices `(B, groups, c, c)` at points of the grid (rows; fractions of a grid step are allowed)."""
        values = (self._phases(points, counts) @ self._complex).reshape(-1, self.groups, self.rows, self.columns)
        return values.mH @ values if self.columns <= self.rows else values @ values.mH

    def estimate(self) -> float:
        """The supremum of the largest singular value, in floating point: a coarse grid, refined around its best
        point.
        """
        counts = tuple(1 if q == 1 else COARSE * q for q in self.taps)
        points = _half_grid(counts).astype(np.float64)
        moves = np.stack(
            np.meshgrid(*([[0.0]] if q == 1 else [[-1.0, 0.0, 1.0]] for q in self.taps), indexing="ij"), -1
        )
        width = 0.5
        while True:
            norms = torch.cat([torch.linalg.eigvalsh(g)[..., -1].amax(dim=1) for g in self._batches(points, counts)])
            if width < 1e-3 or len(points) == 1:
                return math.sqrt(max(0.0, float(norms.max())))
            best = torch.topk(norms, min(BEAM, len(norms))).indices.numpy()
            points = (points[best][:, None, :] + width * moves.reshape(1, -1, len(counts))).reshape(-1, len(counts))
            width /= 2

    def grams(self, counts: tuple[int, ...]) -> Iterator[Tensor]:
        """Batches `(B, c, c)` of the Gram matrices at all frequencies of half the grid and all groups."""
        for batch in self._batches(_half_grid(counts), counts):
            yield batch.flatten(0, 1)

    def _batches(self, points: NDArray[np.float64], counts: tuple[int, ...]) -> Iterator[Tensor]:
        step = max(1, BATCH_ENTRIES // self._complex.shape[1])
        for start in range(0, len(points), step):
            yield self.gram_at(points[start : start + step], counts)

    def _phases(self, points: NDArray[np.float64], counts: tuple[int, ...]) -> Tensor:
        """`exp(-i w m)` for the given grid points (rows) and all taps (columns)."""
        result = np.ones((len(points), 1), dtype=np.complex128)
        for axis, (count, taps) in enumerate(zip(counts, self.taps, strict=True)):
            turns = points[:, axis, None] * np.arange(taps)[None, :] % count  # exact: integers in the proof
            angle = turns * (2 * math.pi / count)
            factor = np.cos(angle) - 1j * np.sin(angle)
            result = (result[:, :, None] * factor[:, None, :]).reshape(len(points), -1)
        return torch.from_numpy(result)


def _half_grid(counts: tuple[int, ...]) -> NDArray[np.float64]:
    """The points of a grid up to conjugation, one a row, in units of its step."""
    half = [counts[0] // 2 + 1, *counts[1:]]
    points = np.stack(np.meshgrid(*(np.arange(float(h)) for h in half), indexing="ij"), axis=-1)
    return points.reshape(-1, len(half))


def polyphase(convolution: Conv) -> Tensor:
    """The polyphase kernel in float64, `(groups, O/groups, C/groups * phases, *taps)`."""
    weight = np.asarray(convolution.weight, dtype=np.float64)
    outputs, inputs, *kernel = weight.shape
    axes = len(kernel)
    strides = convolution.stride
    spaced = any(s > 1 for s in strides)  # without strides dilation only moves the symbol in frequency
    places = [np.arange(k) * (d if spaced else 1) for k, d in zip(kernel, convolution.dilation, strict=True)]
    taps = [int(p[-1]) // s + 1 for p, s in zip(places, strides, strict=True)]
    spread = np.zeros((outputs, inputs, *(q * s for q, s in zip(taps, strides, strict=True))))
    spread[np.ix_(np.arange(outputs), np.arange(inputs), *places)] = weight
    split = torch.from_numpy(spread).reshape(
        outputs, inputs, *(n for pair in zip(taps, strides, strict=True) for n in pair)
    )
    order = [0, 1, *(3 + 2 * a for a in range(axes)), *(2 + 2 * a for a in range(axes))]
    groups = convolution.groups
    return split.permute(order).reshape(groups, outputs // groups, -1, *taps)


def grid_factor(taps: tuple[int, ...], counts: tuple[int, ...]) -> float:
    """At least `prod 1/cos(pi (q-1)/(2 N))`; exactly 1 for one tap everywhere."""
    factor = 1.0
    for q, count in zip(taps, counts, strict=True):
        if count <= q - 1:
            return math.inf
        if q > 1:  # the cosine is good to an ulp, its argument to two
            factor = up(factor * up((1.0 / math.cos(math.pi * (q - 1) / (2 * count))) * (1.0 + 1e-14)))
    return (
        factor
        if all(math.cos(math.pi * (q - 1) / (2 * n)) > 1e-3 for q, n in zip(taps, counts, strict=True))
        else math.inf
    )


def grid_counts(taps: tuple[int, ...], tolerance: float) -> tuple[int, ...]:
    """Numbers of grid points per axis that cost at most `tolerance` relatively."""
    axes = sum(q > 1 for q in taps)
    if axes == 0:
        return tuple(1 for _ in taps)
    angle = math.acos((1.0 + tolerance) ** (-1.0 / axes))
    return tuple(1 if q == 1 else max(q, math.ceil(math.pi * (q - 1) / (2 * angle))) for q in taps)


def prove_grid(
    symbol: Symbol, lower: float, tolerance: float, flops: float, give_up: Callable[[], bool] = lambda: False
) -> Proof | None:
    """A bound of the convolution's norm within `tolerance` of `lower`, or None if the symbol is too large or costs
    too much.
    """
    coarse = math.prod(1 if q == 1 else COARSE * q for q in symbol.taps)
    if (
        symbol.flops(grid_counts(symbol.taps, tolerance)) > flops
        or symbol.order**3 * coarse * symbol.groups * 50.0 > flops
    ):
        return None
    supremum = symbol.estimate()
    room = math.ldexp(lower, -symbol.exponent) * (1.0 + tolerance) / supremum - 1.0 if supremum > 0 else 0.0
    if any(q > 1 for q in symbol.taps) and room < MIN_SHARE * tolerance:
        return None
    counts = grid_counts(symbol.taps, max(MIN_SHARE * tolerance, 0.9 * room))
    if symbol.flops(counts) > flops:
        return None
    return prove_on_grid(symbol, counts, supremum * (1 - 1e-6 if any(q > 1 for q in symbol.taps) else 1.0), give_up)


def prove_circle(
    symbol: Symbol, counts: tuple[int, ...], flops: float, give_up: Callable[[], bool] = lambda: False
) -> Proof | None:
    """The norm of a convolution that goes round, with so many output positions; None if it costs too much."""
    if symbol.flops(counts) > flops:
        return None
    largest = 0.0
    for matrices in symbol.grams(counts):
        if give_up():
            return None
        largest = max(largest, float(torch.linalg.eigvalsh(matrices)[:, -1].max()))
    return prove_on_grid(symbol, counts, math.sqrt(max(largest, 0.0)), give_up, circle=True)


def prove_on_grid(
    symbol: Symbol,
    counts: tuple[int, ...],
    guess: float,
    give_up: Callable[[], bool] = lambda: False,
    circle: bool = False,
) -> Proof | None:
    """The bound of the module's derivation on the given grid; None if it is too coarse, or if it was asked to give up.

    Args:
        symbol: the convolution's symbol.
        counts: the number of grid points on each axis.
        guess: about the largest singular value on the grid (scaled); the bound is not below it, and close to the truth.
        give_up: asked before each batch of frequencies.
        circle: whether the convolution goes round, and the grid has all its frequencies.
    """
    factor = 1.0 if circle else grid_factor(symbol.taps, counts)
    if math.isinf(factor):
        return None
    square = guess**2 * (1 + 1e-15)
    square += symbol.room(square)
    for matrices in symbol.grams(counts):
        if give_up():
            return None
        square = _raise_to(symbol, matrices, square)
    value = up(up(math.sqrt(square)) * factor)
    evidence: dict[str, object] = {"kind": "circle"} if circle else {"kind": "grid", "counts": list(counts)}
    return Proof(math.ldexp(value, symbol.exponent), evidence)


def _raise_to(symbol: Symbol, matrices: Tensor, square: float) -> float:
    """The given value, or the next larger one for which `value I - H` is proved to be positive semidefinite for the
    batch.

    What was proved for other batches with a smaller value holds with the larger one too.
    """
    pending = matrices
    for attempt in range(40):
        shifted = -pending
        shifted.diagonal(dim1=1, dim2=2).add_(down(down(square) - symbol.error(square)))
        factors, info = torch.linalg.cholesky_ex(shifted)
        finite = torch.isfinite(torch.view_as_real(factors)).flatten(1).all(dim=1)
        failed = (info != 0) | ~finite
        if not bool(failed.any()):
            return square
        pending = pending[failed]
        largest = float(torch.linalg.eigvalsh(pending)[:, -1].max())
        square = max(square, largest) * (1 + 1e-15 * 4.0**attempt)
        square += symbol.room(square) if largest + symbol.error(square) >= square else 0.0
    raise ArithmeticError("expected the symbols to be finite, got a Gram matrix that no value bounds")
