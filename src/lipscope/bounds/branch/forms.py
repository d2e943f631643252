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

from lipscope.bounds.branch.exact import Matrix, Row, nearest_rows
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

    def reads(self, row: Row, units: list[int]) -> list[int]:
        """Those of the open units that a row reads."""
        return [u for u in units if row[self.columns[u]] != 0]

    @cached_property
    def open_units(self) -> list[int]:
        """All open units, in order."""
        return list(self.columns)

    @cached_property
    def live(self) -> list[int]:
        """The open units whose argument moves and whose value reaches the output, in order."""
        return self.live_between(range(self.inputs), self.output)

    def live_between(self, inputs: Sequence[int], output: Sequence[Row]) -> list[int]:
        """The open units that move with one of these entries of the input and reach one of these rows, in order."""
        moving: list[int] = []
        for unit in self.open_units:
            row = self.rows[unit]
            if any(row[i] != 0 for i in inputs) or self.reads(row, moving):
                moving.append(unit)
        reaching: set[int] = {u for row in output for u in self.reads(row, moving)}
        for unit in reversed(moving):
            if unit in reaching:
                reaching |= set(self.reads(self.rows[unit], moving))
        return [u for u in moving if u in reaching]

    def slopes(self, unit: int) -> tuple[fmpq, fmpq]:
        """The smallest and the largest slope that a unit can have in the cell."""
        found = self.skeleton.pieces_of_unit[unit].slopes[self.cell.low[unit] : self.cell.high[unit] + 1]
        return min(found), max(found)

    def plain(self, row: Row) -> bool:
        """Whether a row reads no open unit: it is affine in x on the cell."""
        return all(v == 0 for v in row[self.inputs : -1])

    def on_live(self, rows: list[Row]) -> Matrix:
        """Rows by the input and the live units, rounded to nearest.

        Raises:
            OutOfRange: see `nearest`.
        """
        return self.on(range(self.inputs), self.live, rows)

    def on(self, inputs: Sequence[int], units: Sequence[int], rows: Sequence[Row]) -> Matrix:
        """Rows by entries of the input and open units, rounded to nearest.

        Raises:
            OutOfRange: see `nearest`.
        """
        places = [*inputs, *(self.columns[u] for u in units)]
        return nearest_rows([[row[p] for p in places] for row in rows], len(places))

    def slope_ends(self, units: Sequence[int]) -> Matrix:
        """`slopes` of each unit, rounded to nearest, (units, 2)."""
        return np.array([[float(s) for s in self.slopes(u)] for u in units]).reshape(-1, 2)


def forms_in(skeleton: Skeleton, cell: Cell) -> Forms:
    """The forms of a cell."""
    inputs = skeleton.inputs
    undecided = [u for layer in skeleton.layers for u in layer.units if not skeleton.decided(cell, u)]
    columns = {u: inputs + i for i, u in enumerate(undecided)}
    width = inputs + len(undecided) + 1
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
