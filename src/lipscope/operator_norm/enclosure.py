r"""Two-sided bounds of the norm of one linear map: which strategy is asked when.

| norm | strategies, in this order |
|---|---|
| l1, linf | sums of \\|L\\|; sums of the matrix where products cancel and it is small enough |
| l2 | Schur's bound if it is attained; the symbol for 1x1 convolutions; Cholesky if affordable; the symbol if it is within the tolerance; Lanczos |
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipscope.claims.errors import UsageError
from lipscope.claims.norms import Norm
from lipscope.operator_norm import sums as absolute
from lipscope.operator_norm.cholesky import SMALL, assemble, plan, prove_cholesky, top_vector
from lipscope.operator_norm.gram import Gram, attained, gram
from lipscope.operator_norm.grid import Symbol, prove_circle, prove_grid
from lipscope.operator_norm.lanczos import Recurrence, converge, prove_lanczos, starts_for
from lipscope.operator_norm.proof import Proof
from lipscope.operator_norm.schur import prove_schur
from lipscope.rules.linear_map import LinearMap

EXACT = 1e-12
"""Bounds that are closer than this, relatively, are not improved any further."""

FLOPS = 2e11
"""What a deterministic strategy may cost; on one core some ten seconds."""

MEMORY = 4_000_000_000
"""Bytes, unless the caller says otherwise."""

MAX_STEPS = 1000
"""Steps of Lanczos' recurrence."""

FIRST_STEPS = 60
"""Steps after which a lower bound is good enough to judge the symbol by."""


@dataclass(frozen=True)
class Enclosure:
    """Bounds of the norm of a linear map L.

    Attributes:
        lower: a number that `|L x|/|x|` of an explicit x is proved to reach.
        upper: a proved upper bound, deterministic or with probability at least `1 - failure`.
        evidence: the `evidence` of `docs/certificate.md`, ready for JSON.
        failure: 0 if deterministic.
        seconds: wall time.
    """

    lower: float
    upper: float
    evidence: dict[str, object]
    failure: float
    seconds: float


def enclose(
    linear_map: LinearMap,
    norm: Norm,
    *,
    tolerance: float = 1e-3,
    failure: float = 1e-9,
    deadline: float | None = None,
    memory: int | None = None,
) -> Enclosure:
    """Bounds of the operator norm of a linear map.

    Args:
        linear_map: the map.
        norm: the norm on both sides.
        tolerance: relative width that satisfies the caller, for l2 maps too large for a direct proof; dense layers,
        small
            convolutions and the other two norms come out much tighter.
        failure: the probability with which a randomised upper bound may be wrong.
        deadline: value of `time.monotonic()` after which no further strategy is begun and the best bound so far is
            returned; there always is one.
        memory: bytes that may be used, 4e9 if None.

    Raises:
        UsageError: an option is out of its range.
        ModelError: the map has coefficients that are not finite, or so small or large that float64 cannot multiply
        them.
    """
    if not 0 < tolerance < 1 or not 0 < failure <= 0.5 or not (memory is None or memory > 0):
        raise UsageError(
            f"expected tolerance in (0, 1), failure in (0, 0.5] and memory > 0, got {tolerance}, {failure}, {memory}"
        )
    begin = time.monotonic()
    with torch.no_grad():
        sums = absolute.absolute_sums(linear_map)
        if sums == (0.0, 0.0):
            lower, proof = 0.0, prove_schur((0.0, 0.0)) if norm == "l2" else absolute.prove_sums((0.0, 0.0), norm)
        elif norm == "l2":
            search = _Search(linear_map, sums, tolerance, failure, deadline, memory or MEMORY)
            lower, proof = search.run()
        else:
            lower, proof = _enclose_sum(linear_map, norm, sums)
    return Enclosure(lower, proof.upper, proof.evidence, proof.failure, time.monotonic() - begin)


def lower_bound(linear_map: LinearMap, norm: Norm, *, steps: int = 20) -> float:
    """A lower bound of the operator norm, attained at an explicit vector; for l2 after `steps` (x starts) of Lanczos'
    recurrence.

    Raises:
        ModelError: as `enclose`.
    """
    with torch.no_grad():
        sums = absolute.absolute_sums(linear_map)
        if sums == (0.0, 0.0):
            return 0.0
        if norm != "l2":
            return absolute.attained_sum(linear_map, norm, sums)
        operator = _smaller(linear_map, sums)
        vector = converge(Recurrence(operator, seed=0), EXACT, steps, lambda: False)
        return attained(linear_map, operator.input_vector(vector), operator.exponent)


def _enclose_sum(linear_map: LinearMap, norm: Norm, sums: tuple[float, float]) -> tuple[float, Proof]:
    lower = absolute.attained_sum(linear_map, norm, sums)
    proof = absolute.prove_sums(sums, norm)
    small = linear_map.input_size * linear_map.output_size <= absolute.DENSE_ENTRIES
    if proof.upper > lower * (1 + EXACT) and small:
        other, dense = absolute.enclose_by_matrix(linear_map, norm, sums)
        lower, proof = max(lower, other), min(proof, dense, key=_upper)
    return lower, proof


def _smaller(linear_map: LinearMap, sums: tuple[float, float]) -> Gram:
    """The Gram operator on the smaller side."""
    return gram(linear_map, "input" if linear_map.input_size <= linear_map.output_size else "output", sums)


def _upper(proof: Proof) -> float:
    return proof.upper


class _Search:
    """The search for a bound of one map's l2 norm; keeps the best lower bound and the best proof."""

    def __init__(
        self,
        linear_map: LinearMap,
        sums: tuple[float, float],
        tolerance: float,
        failure: float,
        deadline: float | None,
        memory: int,
    ) -> None:
        self._map = linear_map
        self._sums = sums
        self._tolerance = tolerance
        self._failure = failure
        self._deadline = math.inf if deadline is None else deadline
        self._memory = memory
        self._operator = _smaller(linear_map, sums)
        self._lower = 0.0
        self._proof = prove_schur(sums)

    def run(self) -> tuple[float, Proof]:
        """The best lower bound and the best proof."""
        self._try_unit_vector()
        for strategy in self._strategies():
            if self._within(EXACT) or self._late():
                break
            if strategy():
                break
        return self._lower, self._proof

    def _strategies(self) -> tuple[Callable[[], bool], ...]:
        """What to try after Schur's bound; each says whether its answer is final."""
        if self._map.convolution is not None and all(n == 1 for n in self._map.convolution.weight.shape[2:]):
            return self._pointwise, self._cholesky, self._large
        if self._map.circle is not None:
            return self._circle, self._cholesky, self._large
        return self._cholesky, self._large

    def _late(self) -> bool:
        return time.monotonic() > self._deadline

    def _within(self, width: float) -> bool:
        return self._proof.upper <= self._lower * (1 + width)

    def _offer(self, proof: Proof | None) -> None:
        if proof is not None:
            self._proof = min(self._proof, proof, key=_upper)

    def _raise_lower(self, vector: Tensor) -> None:
        """The lower bound that a vector of unknowns of the smaller side gives."""
        x = self._operator.input_vector(vector)
        self._lower = max(self._lower, attained(self._map, x, self._operator.exponent))

    def _try_unit_vector(self) -> None:
        """The heaviest column: it attains Schur's bound for rearrangements and diagonal maps."""
        ones = torch.ones(1, *self._map.output_shape, dtype=torch.float64)
        unit = torch.zeros(self._map.input_size, dtype=torch.float64)
        unit[int(self._map.absolute_adjoint(ones).flatten().argmax())] = 1.0
        self._lower = attained(self._map, unit, self._operator.exponent)

    def _pointwise(self) -> bool:
        """The symbol of a convolution without extent does not depend on the frequency: it is the norm."""
        recurrence = Recurrence(self._operator, seed=0, basis_bytes=self._memory / 4)
        self._raise_lower(converge(recurrence, 1e-6, FIRST_STEPS, self._late))
        self._offer(self._grid())
        return self._within(1e-9)

    def _circle(self) -> bool:
        """The symbol at all frequencies of the circle: exact up to rounding."""
        recurrence = Recurrence(self._operator, seed=0, basis_bytes=self._memory / 4)
        self._raise_lower(converge(recurrence, 1e-6, FIRST_STEPS, self._late))
        symbol = self._symbol()
        if symbol is not None and self._map.circle is not None:
            self._offer(prove_circle(symbol, self._map.circle, FLOPS, self._late))
        return self._within(self._tolerance)

    def _symbol(self) -> Symbol | None:
        conv = self._map.convolution
        return None if conv is None else Symbol(conv, self._operator.exponent, self._map.roundings.forward)

    def _grid(self) -> Proof | None:
        symbol = self._symbol()
        if symbol is None or self._map.circle is not None:
            return None
        return prove_grid(symbol, self._lower, self._tolerance, FLOPS, self._late)

    def _cholesky(self) -> bool:
        """Deterministic, and tight to rounding errors."""
        grams = (gram(self._map, "input", self._sums), gram(self._map, "output", self._sums))
        order = plan(grams, FLOPS, self._memory / 2)
        if order is None:
            return False
        blocks = None
        if order.axis is None and order.gram.size <= SMALL:
            blocks = assemble(order)
            self._operator = order.gram
            self._raise_lower(top_vector(blocks))
        else:
            recurrence = Recurrence(self._operator, seed=0, basis_bytes=self._memory / 4)
            steps = max(FIRST_STEPS, min(MAX_STEPS, int(order.flops / self._operator.flops)))
            self._raise_lower(converge(recurrence, 1e-7, steps, self._late))
        if self._within(EXACT) or self._late() or self._lower == 0:
            return True
        self._offer(prove_cholesky(order, blocks or assemble(order), self._lower, self._late))
        return self._within(self._tolerance)

    def _large(self) -> bool:
        """The symbol if it is close enough to the norm, otherwise Lanczos."""
        recurrence = Recurrence(self._operator, starts_for(self._failure), basis_bytes=self._memory / 4)
        self._raise_lower(converge(recurrence, 1e-5, FIRST_STEPS, self._late))
        if self._within(EXACT) or self._late():
            return True
        self._offer(self._grid())
        if self._within(self._tolerance):
            return True
        self._offer(prove_lanczos(recurrence, self._failure, self._tolerance, MAX_STEPS, self._late))
        self._raise_lower(recurrence.ritz_vector()[0])
        return True
