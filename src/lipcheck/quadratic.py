"""The rule `quadratic`: multipliers prove a bound of a whole part of the network at once, in l2.

Along any two inputs the differences v before and u after a unit with slopes in [alpha, beta] satisfy
`(u - alpha v)(beta v - u) >= 0`, so with multipliers lambda >= 0 the terms

    C_k = -2 sum_j lambda_j (u_j - alpha_j v_j)(beta_j v_j - u_j)

of layer k are <= 0 (for units that share a multiplier: their sum is). Let Q be a quadratic form with |output difference|^2 <= Q. If a form Q'
on the blocks before layer k satisfies `C_k + Q' - Q >= 0` as a form, then `|output difference|^2 <= Q'` too. So the layers are
eliminated from the last to the first, Q' being the computed Schur complement plus a little on the diagonal, until Q is a form on the start
alone, and `rho I - Q >= 0` proves the constant sqrt(rho).

Every Q is taken as the matrix of its float64 entries: what is proved about it holds exactly, and nothing is carried over. In each step the
matrix of `C_k + Q' - Q` is assembled with entrywise errors at most

    E = gamma_K (absolute values of everything that was added) + floor,    K = 2 k + longest product sum + 20,

k the roundings of the forms. After an exact congruence by powers of two that brings the diagonal near 1, the matrix minus c I is factored:
if Cholesky runs to completion the matrix is positive semidefinite for every error within E, if
`c >= max row sum of E + gamma_{n+1}/(1 - gamma_{n+1}) trace + u terms` (Rump, BIT 46, 2006).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lipcheck.bundle import Bundle, keys
from lipcheck.errors import Rejected
from lipcheck.nodes import Network
from lipcheck.rounding import Floats, U, gamma, up
from lipcheck.segments import Slopes
from lipcheck.units import FLOOR, Form, Part, Units

SMALLEST_DIAGONAL = 1e-150
"""Smaller diagonal entries are refused: a product that underflows at the end of a term costs an entry of the matrix at most
1e-323 times a form's entry (below 1e50) for each of its terms, 1e-123 after the diagonal is brought near 1."""

UNDERFLOW = 1e-290
"""Added to the absolute values of the terms' coefficients: gamma of it is above what an underflow in them loses."""

ROOM = tuple(10.0**-k for k in range(14, 2, -1))


def prove_quadratic(
    network: Network, slopes: Slopes, source: int, target: int, t: float, evidence: object, bundle: Bundle
) -> None:
    """The map from node `source` to node `target` has constant at most t in l2.

    Raises:
        Rejected: not proved.
    """
    stored = keys(evidence, {"kind", "multipliers"}, "evidence quadratic")
    if stored["kind"] != "quadratic":
        raise Rejected("expected evidence of kind quadratic")
    part = Part(network, slopes, source, target)
    values = _multipliers(part, stored["multipliers"], bundle)
    size = network.nodes[source].size
    form = eliminated(part.layers, part.output, values, part.roundings, size)
    square = float(np.nextafter(t * t, 0.0))
    if not math.isfinite(square) or not _below(form, square):
        raise Rejected(f"the multipliers do not prove the constant {t!r}")


def eliminated(
    layers: Sequence[Units], output: Mapping[int, Form], values: list[Floats], roundings: int, size: int
) -> Floats:
    """A matrix Q on the start with `|output difference|^2 <= x^T Q x`, for any linear functions of the blocks as output.

    Args:
        layers: of the walk.
        output: the functions, within `gamma(roundings)` of their sizes.
        values: multipliers >= 0 of every layer.
        roundings: at least those of the walk.
        size: of the start.

    Raises:
        Rejected: a layer's inequality is not proved.
    """
    form, blocks = _output(output, roundings)
    for k in reversed(range(len(layers))):
        form, blocks = _eliminate(layers[k], k + 1, values[k], form, blocks, roundings)
    return form if 0 in blocks else np.zeros((size, size))


def _multipliers(part: Part, document: object, bundle: Bundle) -> list[Floats]:
    if not isinstance(document, dict) or set(document) != {str(layer.node) for layer in part.layers}:
        raise Rejected("expected multipliers for exactly the nodes with open units between the two ends")
    found = []
    for layer in part.layers:
        values = bundle.floats(document[str(layer.node)], layer.lower.shape, f"multipliers of node {layer.node}")
        if not (values >= 0).all():
            raise Rejected(f"expected multipliers >= 0 at node {layer.node}")
        if layer.group is not None and any(
            len(set(values[layer.group == g].tolist())) > 1 for g in np.unique(layer.group)
        ):
            raise Rejected(f"expected one multiplier for each sorted group of node {layer.node}")
        found.append(values)
    return found


Blocks = dict[int, slice]


def _places(widths: Mapping[int, int]) -> Blocks:
    places, first = {}, 0
    for block in sorted(widths):
        places[block] = slice(first, first + widths[block])
        first += widths[block]
    return places


def _output(output: Mapping[int, Form], roundings: int) -> tuple[Floats, Blocks]:
    """A form Q with |output difference|^2 <= Q: `F^T F` plus the row sums of its error on the diagonal."""
    blocks = _places({b: f.matrix.shape[1] for b, f in output.items()})
    if not blocks:
        return np.zeros((0, 0)), blocks
    matrix = np.concatenate([output[b].matrix for b in blocks], axis=1)
    size = np.concatenate([output[b].size for b in blocks], axis=1) + FLOOR
    product = matrix.T @ matrix
    error = gamma(2 * roundings + len(matrix) + 20) * (size.T @ size) + FLOOR
    form = (product + product.T) / 2
    return form + np.diag(error.sum(axis=1) * (1 + 1e-9)), blocks


def _terms(layer: Units, values: Floats, places: Blocks, own: slice, width: int, absolute: bool) -> Floats:
    """The matrix of C_k (or the absolute values of what it is summed from) on the given places."""
    matrix = np.zeros((width, width))
    reads: Mapping[int, Floats] = {b: _pick(f, absolute) for b, f in layer.reads.items()}
    if absolute:
        linear, both = (
            -values * (np.abs(layer.lower) + np.abs(layer.upper)) - UNDERFLOW,
            2 * values * (np.abs(layer.lower * layer.upper) + UNDERFLOW),
        )
    else:
        linear, both = values * (layer.lower + layer.upper), 2 * values * (layer.lower * layer.upper)
    index = np.arange(own.start, own.stop)
    matrix[index, index] = 2 * values
    for b, w in reads.items():
        matrix[own, places[b]] -= linear[:, None] * w
        matrix[places[b], own] -= (linear[:, None] * w).T
        for c, x in reads.items():
            matrix[places[b], places[c]] += w.T @ (both[:, None] * x)
    return matrix


def _pick(form: Form, absolute: bool) -> Floats:
    return form.size + FLOOR if absolute else form.matrix


def _eliminate(
    layer: Units, own: int, values: Floats, form: Floats, blocks: Blocks, roundings: int
) -> tuple[Floats, Blocks]:
    """The form on the blocks before a layer that follows from one on the blocks up to it; its own block is `own`."""
    widths = {b: s.stop - s.start for b, s in blocks.items() if b != own}
    widths.update({b: f.matrix.shape[1] for b, f in layer.reads.items()})
    later = _places(widths)
    width = sum(widths.values())
    total = width + len(values)
    places = {**later, own: slice(width, total)}
    matrix = _terms(layer, values, places, places[own], total, absolute=False)
    size = _terms(layer, values, places, places[own], total, absolute=True)
    for b, rows in blocks.items():
        for c, columns in blocks.items():
            matrix[places[b], places[c]] -= form[rows, columns]
            size[places[b], places[c]] += np.abs(form[rows, columns])
    if not (np.isfinite(matrix).all() and np.isfinite(size).all()):
        raise Rejected("overflow in the quadratic form")
    error = gamma(2 * roundings + len(values) + 20) * size
    try:
        complement = matrix[:width, width:] @ np.linalg.solve(matrix[width:, width:], matrix[width:, :width])
    except np.linalg.LinAlgError:
        raise Rejected(f"the multipliers of node {layer.node} are too small") from None
    rest = complement - matrix[:width, :width]
    rest = (rest + rest.T) / 2
    weights = np.abs(np.diagonal(rest))
    weights = np.maximum(weights, 1e-12 * weights.max(initial=1e-300))
    for room in ROOM:
        candidate = rest + np.diag(room * weights)
        trial = matrix.copy()
        trial[:width, :width] += candidate
        if semidefinite(trial, error + 4 * U * (np.abs(trial) + np.pad(np.abs(candidate), (0, len(values))))):
            return candidate, later
    raise Rejected(f"the quadratic inequality of node {layer.node} is not proved")


def semidefinite(matrix: Floats, error: Floats) -> bool:
    """Whether every symmetric matrix that differs from `matrix` by at most `error`, entrywise, is positive semidefinite."""
    diagonal = np.diagonal(matrix)
    if not np.isfinite(matrix).all() or not (diagonal >= SMALLEST_DIAGONAL).all():
        return False
    half = np.frexp(diagonal)[1] // 2
    shift = -(half[:, None] + half[None, :])
    scaled, slack = np.ldexp(matrix, shift), np.ldexp(error, shift) + 1e-20
    n = len(matrix)
    trace = float(np.diagonal(scaled).sum()) * (1 + 1e-9)
    g = gamma(n + 4)
    if g >= 0.1:
        return False
    c = up((float(slack.sum(axis=1).max()) + g / (1 - g) * trace) * (1 + 1e-9) + 8 * U)
    scaled[np.arange(n), np.arange(n)] -= c
    if not (np.diagonal(scaled) > 0).all():
        return False
    try:
        return bool(np.isfinite(np.linalg.cholesky(scaled)).all())
    except np.linalg.LinAlgError:
        return False


def _below(form: Floats, square: float) -> bool:
    """Whether the form on the start is at most `square` times the squared norm."""
    if not form.size or not form.any():
        return square >= 0
    matrix = -form
    index = np.arange(len(form))
    matrix[index, index] += square
    return semidefinite(matrix, 2 * U * (np.abs(form) + square * np.eye(len(form))))
