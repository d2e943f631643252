"""What units read and what the network returns inside one cell, exactly: affine functions of x and of the open units.

A unit whose piece is known is `slope v + shift` and disappears; the others, the *open* ones, keep a column. Of the open
units only those count whose argument moves at all and whose value reaches the output; they are *live*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from flint import fmpq, fmpq_mat

from lipscope.bounds.branch.exact import Matrix, Row, in_range, nearest_or_nan
from lipscope.bounds.branch.skeleton import Affine, Cell, Skeleton


@dataclass(frozen=True, eq=False)
class Forms:
    """A cell of a skeleton.

    Attributes:
        skeleton: the network.
        cell: the cell.
        columns: the column of every open unit; the input has the columns before them, the constant the last one.
        rows: for every unit its argument as a row.
        output: the network's value, row by row.
    """

    skeleton: Skeleton
    cell: Cell
    columns: dict[int, int]
    rows: tuple[Row, ...]
    output: tuple[Row, ...]

    @property
    def inputs(self) -> int:
        """How many columns the input has."""
        return self.skeleton.inputs

    @cached_property
    def live(self) -> list[int]:
        """The open units whose argument moves and whose value reaches the output, in order."""
        return self.live_between(range(self.inputs), range(len(self.output)))

    @cached_property
    def _read(self) -> dict[int, frozenset[int]]:
        """For each open unit the columns that it reads."""
        return {u: _columns(self.rows[u]) for u in self.columns}

    @cached_property
    def _returned(self) -> list[frozenset[int]]:
        """For each row of the output the columns that it reads."""
        return [_columns(row) for row in self.output]

    def waits(self, unit: int) -> list[int]:
        """The open units that a unit reads."""
        row = self.rows[unit]
        return [u for u, column in self.columns.items() if row[column]]

    def live_between(self, inputs: Sequence[int], outputs: Sequence[int]) -> list[int]:
        """The open units that move with one of these entries of the input and reach one of these rows of the output, in order."""
        moving, reached = set(inputs), set[int]()
        for unit, column in self.columns.items():
            if self._read[unit] & moving:
                moving.add(column)
        for k in outputs:
            reached |= self._returned[k]
        found = []
        for unit, column in reversed(self.columns.items()):
            if column in moving and column in reached:
                reached |= self._read[unit]
                found.append(unit)
        return found[::-1]

    def slopes(self, unit: int) -> tuple[fmpq, fmpq]:
        """The smallest and the largest slope that a unit can have in the cell."""
        found = self.skeleton.pieces_of_unit[unit].slopes[self.cell.low[unit] : self.cell.high[unit] + 1]
        return min(found), max(found)

    def plain(self, row: Row) -> bool:
        """Whether a row reads no open unit: it is affine in x on the cell."""
        return all(v == 0 for v in row[self.inputs : -1])

    @cached_property
    def reads(self) -> Matrix:
        """What open units read, by the input and the open units: rounded to nearest, NaN where that is out of range."""
        return nearest_or_nan([self.rows[u][:-1] for u in self.columns], self.inputs + len(self.columns))

    @cached_property
    def result(self) -> Matrix:
        """The network's value in the same way."""
        return nearest_or_nan([row[:-1] for row in self.output], self.inputs + len(self.columns))

    def inequality(self, inputs: Sequence[int], units: Sequence[int], outputs: Sequence[int]) -> tuple[Matrix, Matrix]:
        """What some open units read and some rows of the output, by entries of the input and these units, rounded to nearest.

        Raises:
            OutOfRange: a coefficient leaves the range in which rounding is accounted for.
        """
        places = [*inputs, *(self.columns[u] for u in units)]
        own = [self.columns[u] - self.inputs for u in units]
        return in_range(self.reads[np.ix_(own, places)]), in_range(self.result[np.ix_(list(outputs), places)])

    def inequality_of_all(self) -> tuple[Matrix, Matrix]:
        """`inequality` of the whole input, the live units and the whole output."""
        return self.inequality(range(self.inputs), self.live, range(len(self.output)))

    def slope_ends(self, units: Sequence[int]) -> Matrix:
        """`slopes` of each unit, rounded to nearest, (units, 2)."""
        return np.array([[float(s) for s in self.slopes(u)] for u in units]).reshape(-1, 2)


def _columns(row: Row) -> frozenset[int]:
    return frozenset(i for i, v in enumerate(row[:-1]) if v)


def forms_in(skeleton: Skeleton, cell: Cell) -> Forms:
    """The forms of a cell."""
    inputs = skeleton.inputs
    columns = {u: inputs + i for i, u in enumerate(skeleton.undecided(cell))}
    width = inputs + len(columns) + 1
    start = fmpq_mat(inputs, width)
    for i in range(inputs):
        start[i, i] = fmpq(1)
    values = [start]
    rows: list[Row] = []
    for layer in skeleton.layers:
        arguments = _composed(layer.reads, values, width)
        result = []
        for unit, argument in zip(layer.units, arguments, strict=True):
            if unit in columns:
                row = [fmpq(0)] * width
                row[columns[unit]] = fmpq(1)
            else:
                pieces, p = skeleton.pieces_of_unit[unit], cell.low[unit]
                row = [pieces.slopes[p] * v for v in argument]
                row[-1] += pieces.shifts[p]
            result.append(row)
        rows += arguments
        values.append(fmpq_mat(result))
    return Forms(skeleton, cell, columns, tuple(rows), tuple(_composed(skeleton.output, values, width)))


def _composed(affine: Affine, values: list[fmpq_mat], width: int) -> list[Row]:
    total = fmpq_mat(affine.size, width)
    for block, matrix in affine.parts.items():
        if matrix.ncols():
            total = total + matrix * values[block]
    rows: list[Row] = total.tolist()
    for row, constant in zip(rows, affine.constant.entries(), strict=True):
        row[-1] += constant
    return rows
