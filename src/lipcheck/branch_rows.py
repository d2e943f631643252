"""Rule `branch` in l1 and linf: the sums of the rows or columns of a cell's Jacobian, each by intervals or a quadratic inequality.

With `A = sum_j 2 l_j (u_j - a_j v_j)(u_j - b_j v_j)`, l_j > 0, which is not positive along (x, u) for any slopes in [a_j, b_j]:

* linf: if `sum_i d_i x_i^2 + A - (output k)^2` is semidefinite, then the sum of row k is at most the root of `sum d`, for `|x_i| <= 1`. Here
  d is `t^2 q/sum q`.
* l1: x has entry k alone. If `d x_k^2 + A - sum_i r_i^2 (output i)^2` is semidefinite, then `|output|_1^2 <= d sum_i r_i^-2` by Cauchy and
  Schwarz, for `|x_k| <= 1`. Here d is `t^2/sum r^-2`.

Only t is proved, whatever q > 0 and r > 0 are. Units that do not move with these entries of x contribute 0 to the difference of the output, those
that these outputs do not read nothing, and entries of x that nobody reads may have d = 0: they are left out.
"""

from __future__ import annotations

from collections.abc import Callable

from flint import fmpq

from lipcheck.branch_cells import Leaf, holds
from lipcheck.branch_network import Row, exact
from lipcheck.bundle import integer
from lipcheck.errors import Rejected
from lipcheck.rounding import Floats

Take = Callable[[int], Floats]
"""The next numbers of the evidence."""


def prove_rows(found: Leaf, norm: str, t: float, listed: object, take: Take) -> None:
    """The Jacobian's norm is at most t for all slopes of the leaf.

    Args:
        found: the leaf.
        norm: l1 or linf.
        t: the bound.
        listed: the rows (l1: columns) that have an inequality.
        take: its numbers.

    Raises:
        Rejected: not proved.
    """
    count = len(found.output) if norm == "linf" else found.inputs
    if not isinstance(listed, list) or len(listed) > count:
        raise Rejected("expected the rows of a cell that have multipliers as a list")
    before = -1
    for entry in listed:
        before = integer(entry, "row", before + 1, count - 1)
        _prove_row(found, norm, t, before, take)
    rest = sorted(set(range(count)) - set(listed))
    if not rest:
        return
    sizes = [[max(abs(low), abs(high)) for low, high in row] for row in intervals(found)]
    lines = sizes if norm == "linf" else [list(column) for column in zip(*sizes, strict=True)]
    bound = fmpq(*t.as_integer_ratio())
    if any(sum(lines[k], fmpq(0)) > bound for k in rest if lines):
        raise Rejected(f"a sum of a cell's Jacobian exceeds {t!r}")


def _prove_row(found: Leaf, norm: str, t: float, k: int, take: Take) -> None:
    square = fmpq(*t.as_integer_ratio()) ** 2
    every = range(found.inputs)
    units = found.live_between(every, [found.output[k]]) if norm == "linf" else found.live_between([k], found.output)
    if not units:
        raise Rejected(f"row {k} of a cell has no live units, so that it needs no multipliers")
    weights = take(len(units))
    _positive(weights)
    if norm == "linf":
        output = [found.output[k]]
        inputs = [i for i in every if any(row[i] != 0 for row in (*(found.rows[u] for u in units), *output))]
        q = _positive(take(len(inputs)))
        total = sum(q, fmpq(0))
        diagonal = [square * v / total for v in q]
    else:
        inputs, columns = [k], [k, *(found.columns[u] for u in units)]
        output = [row for row in found.output if any(row[c] != 0 for c in columns)]
        r = _positive(take(len(output)))
        output = [[own * v for v in row] for own, row in zip(r, output, strict=True)]
        diagonal = [square / sum((1 / (own * own) for own in r), fmpq(0))]
    if not holds(found, inputs, units, output, diagonal, weights):
        raise Rejected(f"the multipliers of row {k} of a cell do not prove {t!r}")


def _positive(values: Floats) -> Row:
    if not (values > 0).all():
        raise Rejected("expected positive multipliers in a cell")
    return exact(values)


def intervals(found: Leaf) -> list[list[tuple[fmpq, fmpq]]]:
    """Intervals of the entries of the Jacobian by x."""
    moves: dict[int, list[tuple[fmpq, fmpq]]] = {}

    def through(row: Row) -> list[tuple[fmpq, fmpq]]:
        entries = [(v, v) for v in row[: found.inputs]]
        for unit, own in moves.items():
            entries = [(_plus(a, b, row[found.columns[unit]])) for a, b in zip(entries, own, strict=True)]
        return entries

    for unit in found.live:
        ends = found.slopes(unit)
        products = [[s * v for s in ends for v in pair] for pair in through(found.rows[unit])]
        moves[unit] = [(min(p), max(p)) for p in products]
    return [through(row) for row in found.output]


def _plus(sum_: tuple[fmpq, fmpq], term: tuple[fmpq, fmpq], factor: fmpq) -> tuple[fmpq, fmpq]:
    if factor == 0:
        return sum_
    low, high = (term[0], term[1]) if factor > 0 else (term[1], term[0])
    return sum_[0] + factor * low, sum_[1] + factor * high
