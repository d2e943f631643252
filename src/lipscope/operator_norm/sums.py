"""The l1 and linf norms: largest absolute column and row sums.

`|L|` is the composition of the entrywise absolute values of L's factors, so its sums are upper bounds, and exact
where L has one factor. Where products cancel, the matrix of L itself is formed, if it is small enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lipscope.claims.errors import ModelError
from lipscope.claims.norms import Norm
from lipscope.claims.rounding import down, gamma, product_up, up
from lipscope.operator_norm.proof import SLACK, Proof
from lipscope.rules.linear_map import Apply, LinearMap

DENSE_ENTRIES = 10_000_000
"""Matrices with at most so many entries are formed."""

SMALLEST_SUM, LARGEST_SUM = 1e-270, 1e290
"""Outside of this range the arithmetic of the map itself would underflow or overflow."""

EXTRA_ROUNDINGS = 8
"""Another program may count a few more roundings on the way, even where there are none."""

CANDIDATES = 8
"""How many columns (rows) with the largest sum of |L| are tried for a lower bound."""

CHUNK_ENTRIES = 4_000_000
"""How many numbers a batch of vectors holds at most."""


def absolute_sums(linear_map: LinearMap) -> tuple[float, float]:
    """Upper bounds of the largest column sum (l1 norm) and the largest row sum (linf norm) of |L|; (0, 0) if L is 0.

    The computed sums f of numbers that are not negative satisfy `f >= (1 - gamma_k) exact`, unless they underflow.

    Raises:
        ModelError: a sum is not a finite number, or so small or large that the products on the way leave float64.
    """
    columns = linear_map.absolute_adjoint(torch.ones(1, *linear_map.output_shape, dtype=torch.float64))
    rows = linear_map.absolute(torch.ones(1, *linear_map.input_shape, dtype=torch.float64))
    counts = linear_map.roundings
    result = _enlarge(_largest(columns), counts.adjoint), _enlarge(_largest(rows), counts.forward)
    if not all(map(math.isfinite, result)):
        raise ModelError(
            f"expected a linear map with finite coefficients, got absolute column and row sums {result}; "
            "look for NaN, infinite or overflowing weights"
        )
    if 0.0 in result and _is_zero(linear_map):
        return 0.0, 0.0
    if not all(SMALLEST_SUM <= s <= LARGEST_SUM for s in result):
        raise ModelError(
            f"expected a linear map with absolute sums between {SMALLEST_SUM} and {LARGEST_SUM}, got {result}; "
            "rescale the layer, float64 cannot represent its products"
        )
    return result


def _is_zero(linear_map: LinearMap) -> bool:
    """Whether all coefficients of |L| are 0. The vector is so large that coefficients down to 1e-600 would be seen."""
    rows = linear_map.absolute(torch.full((1, *linear_map.input_shape), 2.0**1000, dtype=torch.float64))
    return bool((rows == 0).all())


def prove_sums(sums: tuple[float, float], norm: Norm) -> Proof:
    """The bound of the l1 or linf norm by the sums of |L|."""
    return Proof(sums[0] if norm == "l1" else sums[1], {"kind": "sums"})


def matrix_sums(linear_map: LinearMap) -> tuple[Tensor, Tensor]:
    """The absolute column sums and row sums of the matrix of L, computed from its unit vectors (or those of its
    adjoint).
    """
    along = linear_map.input_size <= linear_map.output_size
    apply, shape = (
        (linear_map.apply, linear_map.input_shape) if along else (linear_map.adjoint, linear_map.output_shape)
    )
    others = torch.zeros(linear_map.output_size if along else linear_map.input_size, dtype=torch.float64)
    probes = []
    for images in unit_images(apply, shape):
        probes.append(images.abs().sum(dim=1))
        others += images.abs().sum(dim=0)
    return (torch.cat(probes), others) if along else (others, torch.cat(probes))


def enclose_by_matrix(linear_map: LinearMap, norm: Norm, sums: tuple[float, float]) -> tuple[float, Proof]:
    """Bounds of the l1 or linf norm by the matrix of L, whose computed entries are off by at most `gamma_k |L|`."""
    columns, rows = matrix_sums(linear_map)
    values, bound = (columns, sums[0]) if norm == "l1" else (rows, sums[1])
    terms = linear_map.output_size if norm == "l1" else linear_map.input_size
    roundings = max(linear_map.roundings.forward, linear_map.roundings.adjoint)
    error = product_up(SLACK, gamma(roundings), bound)
    proof = Proof(up(_enlarge(float(values.max()), terms) + error), {"kind": "dense"})
    return _attained_at(linear_map, norm, int(values.argmax()), bound)[0], proof


def attained_sum(linear_map: LinearMap, norm: Norm, sums: tuple[float, float]) -> float:
    """A lower bound of the l1 or linf norm, attained at an explicit vector.

    In l1 the vector is a unit vector, in linf the signs of a row. Columns and rows are tried that have the largest sums
    of |L| (there at once if L has one factor), and those that Hager's iteration leads to.
    """
    heavy, other = (
        (linear_map.absolute_adjoint, linear_map.output_shape)
        if norm == "l1"
        else (linear_map.absolute, linear_map.input_shape)
    )
    bound = sums[0] if norm == "l1" else sums[1]
    weights = heavy(torch.ones(1, *other, dtype=torch.float64)).flatten()
    largest = (weights >= weights.max() * (1 - 1e-12)).nonzero().flatten()
    # Among equal ones those in the middle: at the border of an image entries of L may cancel that |L| adds.
    queue = [int(largest[len(largest) * i // CANDIDATES]) for i in range(CANDIDATES)]
    queue = [int(weights.argmax()), *queue]
    best, seen = 0.0, set[int]()
    while queue and len(seen) < 2 * CANDIDATES:
        index = queue.pop()
        if index not in seen:
            seen.add(index)
            value, following = _attained_at(linear_map, norm, index, bound)
            if value > best:
                best, queue = value, [*queue, following]
    return best


def _attained_at(linear_map: LinearMap, norm: Norm, index: int, bound: float) -> tuple[float, int]:
    """What the column (row) of L attains, and the index that Hager's iteration takes next."""
    if norm == "l1":
        apply, adjoint = linear_map.apply, linear_map.adjoint
        shape, count = linear_map.input_shape, linear_map.roundings.forward
    else:
        apply, adjoint = linear_map.adjoint, linear_map.apply
        shape, count = linear_map.output_shape, linear_map.roundings.adjoint
    column = apply(_unit(shape, index))
    following = adjoint(torch.where(column < 0, -1.0, 1.0).to(torch.float64)).abs().flatten().argmax()
    return _column_sum(column, count, bound), int(following)


def _column_sum(column: Tensor, roundings: int, bound: float) -> float:
    """At most the exact absolute sum of a computed column.

    For linf the value is what the row attains at its vector of signs: exact row times exact signs of the *computed*
    row is at least the computed absolute sum minus the same error.
    """
    total = math.fsum(column.abs().flatten().tolist())  # correctly rounded
    error = product_up(gamma(roundings), bound)
    return max(0.0, down(down(total) - error) if error > 0 else _exact_or_down(column, total))


def _exact_or_down(column: Tensor, total: float) -> float:
    remainder = math.fsum([*column.abs().flatten().tolist(), -total])
    return total if remainder >= 0 else down(total)


def unit_images(apply: Apply, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """The images of all unit vectors, flattened, in batches `(B, m)`."""
    size = math.prod(shape)
    step = max(1, CHUNK_ENTRIES // size)
    for start in range(0, size, step):
        count = min(step, size - start)
        probes = torch.zeros(count, size, dtype=torch.float64)
        probes[torch.arange(count), torch.arange(start, start + count)] = 1.0
        yield apply(probes.reshape(count, *shape)).reshape(count, -1)


def _unit(shape: tuple[int, ...], index: int) -> Tensor:
    vector = torch.zeros(math.prod(shape), dtype=torch.float64)
    vector[index] = 1.0
    return vector.reshape(1, *shape)


def _largest(values: Tensor) -> float:
    """The largest entry, NaN if there is one."""
    return float(values.max()) if bool(torch.isfinite(values).all()) else math.nan


def _enlarge(value: float, roundings: int) -> float:
    """At least the exact value of a number that went through so many roundings, with room for another order of them."""
    return up(value * up(1.0 + SLACK * gamma(roundings + EXTRA_ROUNDINGS))) if value > 0 else value
