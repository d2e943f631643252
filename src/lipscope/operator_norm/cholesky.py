"""Deterministic bounds of the l2 norm: `t^2 I - G` is positive semidefinite, G = L^T L or L L^T.

Unknowns are taken in one block, or in slabs along an axis such that G couples only equal and neighbouring slabs; then
`t^2 I - G` is block-tridiagonal and is eliminated slab by slab.

Rounding. Let A be the matrix that is eliminated, with computed entries `fl(t^2 - G_ii - c)` and `fl(-G_ij)`.

*Assembly*: the matrix of G formed from unit vectors is off by at most `gamma_{f+a} n1 ninf` in norm (`gram.py`); t^2
is rounded downward and the two subtractions on the diagonal cost less than `8 u t^2`.

*Elimination*: S_1 = A_1, S_i = L_i L_i^T, X_i = L_i^{-1} C_i, S_{i+1} = A_{i+1} - X_i^T X_i. The rows of L_i^T and
X_i together are the rows of the Cholesky factor R of the whole of A, and each entry is computed as `(a_ij - sum_k
r_ki r_kj)/r_ii`, with the sum over k taken in some order: first the k of the slab before, in the matrix product, then
those of the own slab, in LAPACK's factorisation or (entries of X_i) in the substitution. Sums over k of earlier slabs
are empty: those r_ki are 0. So this *is* a Cholesky factorisation of A with inner products of at most b_i + b_{i+1}
terms in some order of evaluation, and the bound of `claims/definite.py` holds with this number in place of n: `|R^T R
- A|_2 <= gamma_{b+b'+1}/(1-gamma) tr(A)`, `tr(A) <= N t^2`.

c is SLACK times the sum of these, see `proof.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipscope.claims.definite import factorisation_error, shifted_cholesky
from lipscope.claims.rounding import UNIT_ROUNDOFF, down, gamma, up
from lipscope.operator_norm.gram import Gram
from lipscope.operator_norm.proof import SLACK, Proof
from lipscope.operator_norm.sums import CHUNK_ENTRIES

SMALL = 600
"""Up to this order one block is always taken, without a look at the cost."""

MARGINS = (1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
"""How far above the lower bound t is tried, relatively, in addition to what the rounding errors ask for.

The first is what an independent checker of one or two unknowns may spend on its own roundings."""

GRAM_SPEED = 8.0
"""How much slower an operation is in a convolution than in a matrix product, about."""


@dataclass(frozen=True)
class Plan:
    """An order of elimination.

    Attributes:
        gram: G, scaled.
        axis: the axis of the unknowns' shape along which the slabs lie; None for one block.
        bounds: where the slabs begin and end along the axis; empty for one block.
    """

    gram: Gram
    axis: int | None = None
    bounds: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of unknowns in each slab."""
        if self.axis is None:
            return (self.gram.size,)
        rest = self.gram.size // self.gram.shape[self.axis]
        return tuple((stop - start) * rest for start, stop in zip(self.bounds, self.bounds[1:], strict=False))

    @property
    def flops(self) -> float:
        """About how many operations assembly and one elimination take."""
        sizes = self.sizes
        total = sum(b**3 / 3 for b in sizes) + sum(b * b * d + 2.0 * b * d * d for b, d in itertools.pairwise(sizes))
        return total + GRAM_SPEED * self.gram.flops * min(3, len(sizes)) * max(sizes)

    @property
    def memory(self) -> float:
        """About how many bytes assembly and elimination take."""
        sizes = self.sizes
        stored = sum(b * b for b in sizes) + sum(b * d for b, d in itertools.pairwise(sizes))
        return 8.0 * (stored + 4 * max(sizes) ** 2)

    @property
    def evidence(self) -> dict[str, object]:
        """What the checker needs to repeat it."""
        return {"kind": "cholesky", "side": self.gram.side, "axis": self.axis, "bounds": list(self.bounds)}


def plan(grams: tuple[Gram, ...], flops: float, memory: float) -> Plan | None:
    """The cheapest order of elimination on any of the sides, or None if all of them take more than is allowed."""
    smallest = min(grams, key=lambda g: g.size)
    if smallest.size <= SMALL:
        return Plan(smallest)
    plans = [Plan(g) for g in grams]
    for operator in grams:
        for axis, length in enumerate(operator.shape):
            rest = operator.size // length
            hopeless = length * rest**3 / 3 > flops or 8.0 * length * rest * rest > memory
            if length > 1 and not hopeless and GRAM_SPEED * length * operator.flops <= flops / 2:
                bounds = slabs(operator, axis)
                if len(bounds) > 2:
                    plans.append(Plan(operator, axis, bounds))
    affordable = [p for p in plans if p.flops <= flops and p.memory <= memory]
    return min(affordable, key=lambda p: p.flops, default=None)


def slabs(operator: Gram, axis: int) -> tuple[int, ...]:
    """The narrowest slabs along an axis such that G couples only equal and neighbouring ones."""
    reach = _reach(operator, axis)
    bounds = [0, 1]
    while bounds[-1] < operator.shape[axis]:
        bounds.append(max(bounds[-1] + 1, max(reach[: bounds[-1]]) + 1))
    return tuple(bounds)


def _reach(operator: Gram, axis: int) -> list[int]:
    """For each position along the axis the last one that G couples with it, from the pattern of G."""
    shape, length = operator.shape, operator.shape[axis]
    couples = torch.zeros(length, length, dtype=torch.bool)
    step = max(1, CHUNK_ENTRIES // operator.size)
    for start in range(0, length, step):
        positions = torch.arange(start, min(start + step, length))
        probes = torch.zeros(len(positions), *shape, dtype=torch.bool).movedim(axis + 1, 1)
        probes[torch.arange(len(positions)), positions] = True
        images = operator.pattern(probes.movedim(1, axis + 1).reshape(len(positions), -1))
        moved = images.reshape(-1, *shape).movedim(axis + 1, 1).reshape(len(positions), length, -1)
        couples[positions] = moved.any(dim=2)
    couples |= couples.T.clone()
    return [int(row.nonzero().max()) if bool(row.any()) else index for index, row in enumerate(couples)]


@dataclass(frozen=True)
class Blocks:
    """The blocks of G in its scaling: `diagonals[i]` is (b_i, b_i), `couplings[i]` is (b_i, b_{i+1})."""

    diagonals: list[Tensor]
    couplings: list[Tensor]


def assemble(order: Plan) -> Blocks:
    """The blocks of G, from its action on unit vectors.

    Slabs i, i + 3, i + 6, .. share their probes: no entry of `L x` and no slab is touched by two of them, so that
    each computed value is that of a single unit vector.
    """
    sizes = order.sizes
    starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    diagonals = [torch.empty(b, b, dtype=torch.float64) for b in sizes]
    couplings = [torch.empty(b, d, dtype=torch.float64) for b, d in itertools.pairwise(sizes)]
    step = max(1, CHUNK_ENTRIES // order.gram.size)
    for colour in range(min(3, len(sizes))):
        mine = range(colour, len(sizes), 3)
        for first in range(0, max(sizes[i] for i in mine), step):
            members = [(i, min(step, sizes[i] - first)) for i in mine if sizes[i] > first]
            probes = torch.zeros(max(count for _, count in members), order.gram.size, dtype=torch.float64)
            for i, count in members:
                probes[torch.arange(count), starts[i] + first + torch.arange(count)] = 1.0
            images = _ordered(order, order.gram, probes)
            for i, count in members:
                diagonals[i][first : first + count] = images[:count, starts[i] : starts[i + 1]]
                if i + 1 < len(sizes):
                    couplings[i][first : first + count] = images[:count, starts[i + 1] : starts[i + 2]]
    return Blocks(diagonals, couplings)


def _ordered(order: Plan, operator: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The operator in the order of unknowns of the plan: the slabs' axis first."""
    if order.axis is None:
        return operator(x)
    shape = list(order.gram.shape)
    moved = [shape[order.axis], *shape[: order.axis], *shape[order.axis + 1 :]]
    natural = x.reshape(-1, *moved).movedim(1, order.axis + 1).reshape(x.shape)
    return operator(natural).reshape(-1, *shape).movedim(order.axis + 1, 1).reshape(x.shape)


def prove_cholesky(
    order: Plan, blocks: Blocks, lower: float, give_up: Callable[[], bool] = lambda: False
) -> Proof | None:
    """A bound close above `lower`, or None.

    Args:
        order: the order of elimination.
        blocks: G in this order.
        lower: a positive lower bound of the norm of L; the closer, the better.
        give_up: asked before each attempt but the first.
    """
    for attempt, margin in enumerate(MARGINS):
        if attempt > 0 and give_up():
            return None
        t = order.gram.scaled(lower) * (1.0 + margin)
        t = math.sqrt(t * t + room(order, t)) * (1.0 + 4 * UNIT_ROUNDOFF)
        if eliminates(order, blocks, t):
            return Proof(order.gram.unscaled(t), order.evidence)
    return None


def error_bound(order: Plan, t: float) -> float:
    """The shift c of the module's derivation, with its slack, for the scaled value t."""
    sizes = order.sizes
    terms = max((b + d for b, d in itertools.pairwise(sizes)), default=sizes[0])
    square = up(t * t)
    assembly = up(order.gram.error + 8 * UNIT_ROUNDOFF * square)
    return up(SLACK * up(assembly + factorisation_error(terms, up(order.gram.size * square))))


def room(order: Plan, t: float) -> float:
    """How far t^2 is kept above the largest eigenvalue, so that the proof succeeds here and in a checker's arithmetic.

    Scaling by powers of two (`claims/definite.py`) and the growth of c with t ask for 7/4 of c here. A checker that
    bounds residuals slab by slab, for slabs of at most b unknowns, sets aside `12 gamma_{b+4} b t^2` for elimination.
    """
    widest = max(order.sizes)
    elsewhere = 15 * gamma(widest + 4) * widest * t * t + SLACK * order.gram.error + 80 * UNIT_ROUNDOFF * t * t
    return max(1.75 * error_bound(order, t), elsewhere)


def eliminates(order: Plan, blocks: Blocks, t: float) -> bool:
    """Whether `t^2 I - G` (scaled) is proved to be positive semidefinite by elimination in the given order."""
    shift = error_bound(order, t)
    square = down(t * t)
    if not math.isfinite(shift):
        return False
    if order.axis is None:
        # One block: the general routine scales by powers of two; it adds its own term, which is within `shift` already.
        matrix = -blocks.diagonals[0]
        matrix.diagonal().add_(square)
        return shifted_cholesky(matrix, shift)
    schur_complement = torch.zeros(1)
    for i, diagonal in enumerate(blocks.diagonals):
        matrix = -diagonal
        matrix.diagonal().add_(square).sub_(shift)
        if i > 0:
            matrix -= schur_complement
        factor, info = torch.linalg.cholesky_ex(matrix)
        if bool(info.any()) or not bool(torch.isfinite(factor.diagonal()).all()):
            return False
        if i < len(blocks.couplings):
            solved = torch.linalg.solve_triangular(factor, blocks.couplings[i], upper=False)
            schur_complement = solved.T @ solved
    return True


def top_vector(blocks: Blocks) -> Tensor:
    """The eigenvector of G's largest eigenvalue, in floating point, for a plan of one block."""
    _, vectors = torch.linalg.eigh(blocks.diagonals[0])
    top: Tensor = vectors[:, -1]
    return top
