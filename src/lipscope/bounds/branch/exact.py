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


def nearest_rows(rows: Sequence[Row], width: int) -> Matrix:
    """The nearest float64 of each number (a quotient of two integers is rounded correctly), as an array (len(rows), width).

    Raises:
        OutOfRange: one is not 0 and not between `SMALLEST` and `LARGEST` in absolute value.
    """
    return in_range(nearest_or_nan(rows, width))


def nearest_or_nan(rows: Sequence[Row], width: int) -> Matrix:
    """`nearest_rows`, NaN where that raises."""
    try:
        found = np.array([[int(v.p) / int(v.q) if v else 0.0 for v in row] for row in rows]).reshape(len(rows), width)
    except OverflowError:
        found = np.array([[_nearest(v) for v in row] for row in rows]).reshape(len(rows), width)
    sizes = np.abs(found)
    outside = (sizes < SMALLEST) | (sizes > LARGEST)
    for i, j in np.argwhere(outside).tolist():
        if rows[i][j]:
            found[i, j] = np.nan
    return found


def in_range(found: Matrix) -> Matrix:
    """The numbers themselves.

    Raises:
        OutOfRange: one is NaN.
    """
    if np.isnan(found).any():
        raise OutOfRange
    return found


def _nearest(value: fmpq) -> float:
    try:
        return int(value.p) / int(value.q)
    except OverflowError:
        return np.nan
