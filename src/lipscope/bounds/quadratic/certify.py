"""From multipliers to a proved bound, layer by layer, with rounding accounted for.

Eliminating the units in floating point (`elimination.py`) proves nothing by itself. Here every step is checked: if Q bounds the output's
square on the blocks up to a layer, then any symmetric Q' with

    T + Q' >= 0,   T = (terms of the layer's multipliers) - Q,

(Q' on the earlier blocks, 0 on the layer's own) bounds it on the earlier blocks, because the layer's terms are <= 0 along every pair
of inputs. Q' is the computed Schur complement plus a little on the diagonal, and is from then on an exact matrix of float64
numbers: errors do not cross layers. At the end `rho I - Q >= 0` on the input gives `|output|^2 <= rho |input|^2`.

Errors within a step: the matrices W that a layer reads are computed, off by at most `gamma_k |W|` with |W| the composition of
absolute values, so an entry of T is off by at most gamma_K times the same sum of absolute values, K = 2 k + longest inner product + 16.
After an exact scaling of T + Q' to near-unit diagonal the largest row sum of these errors goes into the shift of a Cholesky
factorisation. At the start `Q = fl(F^T F)` plus the row sums of its error bound on the diagonal (diagonal dominance).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.linalg import LinAlgError

from lipscope.bounds.quadratic.cholesky import cholesky, solved
from lipscope.bounds.quadratic.forms import Piece
from lipscope.bounds.quadratic.stacked import Layer, Matrix, Reads, Stacked, Vector
from lipscope.bounds.threads import threads_for
from lipscope.claims.definite import shifted_cholesky
from lipscope.claims.rounding import gamma, sqrt_up

ROOM = (1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-7, 1e-5)
"""What is added to the diagonal of a Schur complement, relatively, tried in this order."""

SURPLUS = (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
"""What is added to rho for what the steps before have added, relatively, tried in this order."""

SLACK = 4.0
"""The independent checker forms the same matrices in another order of summation."""

SPARE = 1e-8
"""Relative room in the bound for the checker, whose Schur complements are rounded differently."""

Blocks = dict[int, slice]


def proved_constant(part: Piece, values: Vector, rho: float) -> float | None:
    """A Lipschitz constant of the part that the multipliers are proved to give; None if the proof fails.

    Args:
        part: the part.
        values: its multipliers.
        rho: what they prove in exact arithmetic, or so; a little more is tried.
    """
    form = proved_form(part.stacked, part.absolute, part.roundings, values)
    proved = None if form is None else _largest(form, rho)
    return None if proved is None else sqrt_up(proved) * (1 + SPARE)


def proved_form(network: Stacked, positive: Stacked, roundings: int, values: Vector) -> Matrix | None:
    """A matrix Q such that the multipliers prove `|output|^2 <= x^T Q x` on block 0; None if the proof fails.

    Args:
        network: the inequality.
        positive: the same composed of absolute values.
        roundings: matrices of `network` are off by at most `gamma(roundings)` times those of `positive`.
        values: one multiplier a unit.
    """
    if not (np.isfinite(values).all() and (values >= 0).all()):
        return None
    rooms: Sequence[float] = ROOM
    form, alive = _output_form(network.output, positive.output, roundings)
    for k in reversed(range(len(network.layers))):
        own = values[network.units_of(k)]
        with threads_for(len(form) + len(own)):
            step = _eliminate(form, alive, network.layers[k], positive.layers[k], k + 1, own, roundings, rooms)
        if step is None:
            return None
        form, alive, rooms = step
    whole = np.zeros((network.input_size, network.input_size))
    if 0 in alive:
        whole[:] = form
    return whole


def proved_margin(form: Matrix, weights: Vector) -> Vector | None:
    """Numbers q, a little above `weights`, with `diag(q) - form` proved positive semidefinite; None if the proof fails."""
    if not form.any():
        return weights
    for room in SURPLUS:
        q = weights * (1 + room) + 1e-13 * weights.max()
        if _semidefinite(np.diag(q) - form, 1e-15 * (np.abs(form) + np.diag(q))):
            result: Vector = q
            return result
    return None


def _output_form(output: Reads, positive: Reads, roundings: int) -> tuple[Matrix, Blocks]:
    alive = _blocks({b: f.shape[1] for b, f in output.items()})
    full, heavy = (np.concatenate([reads[b] for b in alive], axis=1) for reads in (output, positive))
    error = SLACK * gamma(2 * roundings + len(full) + 16) * (heavy.T @ heavy)
    form = full.T @ full
    return (form + form.T) / 2 + np.diag(error.sum(1) * (1 + 1e-10)), alive


def _blocks(sizes: dict[int, int]) -> Blocks:
    ends = np.cumsum([0, *(sizes[b] for b in sorted(sizes))])
    return {b: slice(int(ends[i]), int(ends[i + 1])) for i, b in enumerate(sorted(sizes))}


def _eliminate(
    form: Matrix, alive: Blocks, layer: Layer, positive: Layer, own: int, values: Vector, roundings: int, rooms: Sequence[float],
) -> tuple[Matrix, Blocks, Sequence[float]] | None:  # fmt: skip
    """A form on the earlier blocks that bounds `form` on all, proved, and what is left of `rooms`; None if no attempt is proved."""
    sizes = {b: s.stop - s.start for b, s in alive.items()} | {b: w.shape[1] for b, w in layer.reads.items()}
    later = _blocks({b: n for b, n in sizes.items() if b != own})
    width = max((s.stop for s in later.values()), default=0)
    place = later | {own: slice(width, width + layer.size)}
    plain = np.zeros((width + layer.size, width + layer.size))
    heavy = np.zeros_like(plain)
    for b, rows in alive.items():
        for c, columns in alive.items():
            plain[place[b], place[c]] -= form[rows, columns]
            heavy[place[b], place[c]] += np.abs(form[rows, columns])
    _add_terms(plain, place, own, layer, values, signed=True)
    _add_terms(heavy, place, own, positive, values, signed=False)
    error = SLACK * gamma(2 * roundings + layer.size + 16) * heavy
    mine = place[own]
    try:
        factor = cholesky(plain[mine, mine])
    except LinAlgError:
        return None
    coupled = plain[mine, :width]
    rest = coupled.T @ solved(factor, coupled) - plain[:width, :width]
    rest = (rest + rest.T) / 2
    diagonal = np.maximum(np.diag(rest), 1e-12 * np.max(np.abs(np.diag(rest)), initial=1e-300))
    for k, room in enumerate(rooms):
        bound = rest + np.diag(room * diagonal)
        trial = plain.copy()
        trial[:width, :width] += bound
        if _semidefinite(trial, error + 1e-15 * np.abs(trial)):
            return bound, later, rooms[k:]  # less will hardly do for the layers before this one
    return None


def _add_terms(matrix: Matrix, place: Blocks, own: int, layer: Layer, values: Vector, *, signed: bool) -> None:
    """The terms `lambda_j (a_j c_j^T + c_j a_j^T)` of a layer; or the sums of their absolute values, from absolute reads."""
    mine = place[own]
    sums = layer.lower + layer.upper if signed else np.abs(layer.lower) + np.abs(layer.upper)
    products = layer.lower * layer.upper if signed else np.abs(layer.lower * layer.upper)
    sign = -1.0 if signed else 1.0
    np.einsum("ii->i", matrix)[mine] += 2 * values
    for b, left in layer.reads.items():
        coupling = sign * (sums * values)[:, None] * left
        matrix[mine, place[b]] += coupling
        matrix[place[b], mine] += coupling.T
        if products.any():
            for c, right in layer.reads.items():
                matrix[place[b], place[c]] += left.T @ ((2 * products * values)[:, None] * right)


def _semidefinite(matrix: Matrix, error: Matrix) -> bool:
    """Whether every symmetric matrix within `error` of `matrix`, entrywise, is proved positive semidefinite."""
    diagonal = np.diag(matrix)
    if not (np.isfinite(matrix).all() and (diagonal > 0).all()):
        return False
    # A congruence by powers of two is exact: the two matrices are definite together.
    exponents = np.frexp(diagonal)[1] // 2
    scale = -(exponents[:, None] + exponents)
    extra = float(np.ldexp(error, scale).sum(1).max()) * (1 + 1e-10)
    return shifted_cholesky(torch.from_numpy(np.ldexp(matrix, scale)), extra)


def _largest(form: Matrix, guess: float) -> float | None:
    """A proved upper bound of the largest eigenvalue of the form on the input, the first of some just above `guess` or else above itself."""
    if not form.any():
        return 0.0
    # In deep networks what was added to the first forms may grow on the way, so that the guess is out of reach.
    for rho in itertools.chain((guess * (1 + room) for room in SURPLUS), _above(form)):
        if _semidefinite(np.diag(np.full(len(form), rho)) - form, 1e-15 * (np.abs(form) + np.eye(len(form)) * rho)):
            return rho
    return None


def _above(form: Matrix) -> Iterator[float]:
    """Numbers above the largest eigenvalue, computed when they are asked for."""
    top = float(np.linalg.eigvalsh(form)[-1])
    yield from (top * (1 + room) for room in SURPLUS)
