"""Numbers without rounding: float64 arrays as rationals, rationals as the nearest float64."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from flint import fmpq, fmpq_mat
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Row = list[fmpq]

SMALLEST, LARGEST = 1e-60, 1e60
"""Between which nonzero rationals lie that are rounded: products of a few of them neither underflow nor overflow."""


class OutOfRange(Exception):
    """A coefficient leaves the range in which rounding is accounted for."""


def rational(value: float) -> fmpq:
    """The number that a finite float64 stands for."""
    return fmpq(*float(value).as_integer_ratio())


def rationals(values: Iterable[float]) -> Row:
    """`rational`, entrywise."""
    return [rational(v) for v in values]


def rational_matrix(values: Matrix) -> fmpq_mat:
    """The matrix whose entries the float64 numbers stand for."""
    rows, columns = values.shape
    return fmpq_mat(rows, columns, rationals(values.ravel().tolist()))


def nearest(value: fmpq) -> float:
    """The nearest float64 (a quotient of two integers is rounded correctly); 0 only for 0.

    Raises:
        OutOfRange: it is not 0 and not between `SMALLEST` and `LARGEST` in absolute value.
    """
    if value == 0:
        return 0.0
    p, q = int(value.p), int(value.q)
    if p.bit_length() - q.bit_length() > 190:
        raise OutOfRange
    result = p / q
    if not SMALLEST <= abs(result) <= LARGEST:
        raise OutOfRange
    return result


def nearest_rows(rows: Sequence[Row], width: int) -> Matrix:
    """`nearest`, entrywise, as an array (len(rows), width)."""
    result = np.empty((len(rows), width))
    for i, row in enumerate(rows):
        result[i] = [nearest(v) for v in row]
    return result
