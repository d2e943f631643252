"""The rule `quadratic` in l1 and linf: one quadratic inequality for each row (linf) or column (l1).

For any two inputs the difference of the target is M times that of the source, M being a product of linear parts and diagonals of
difference quotients in [lower, upper]; units that do not move may have any. If `|output|^2 <= x^T Q x` for everything that satisfies the
units' inequalities (see `quadratic`), with the output replaced by other linear functions F u of the blocks:

* linf: F is output i alone. If `diag(q) - Q` is positive semidefinite, then `|M x|_i^2 <= sum_k q_k x_k^2 <= sum q` for `|x|_inf <= 1`.
* l1: F is the output with entry k multiplied by r_k, 0 < r_k <= 1. The vector x = e_j and units that are multiplied by the slopes of M satisfy the same
  inequalities, so `sum_k r_k^2 (M e_j)_k^2 <= Q_jj`, and by Cauchy and Schwarz `|M e_j|_1^2 <= Q_jj sum_k 1/r_k^2`. Entry j is all of x then. M is needed here for
  directions that are no difference of inputs, so that only functions of one variable may be inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lipcheck.bundle import Bundle, keys
from lipcheck.errors import Rejected
from lipcheck.nodes import Network
from lipcheck.quadratic import eliminated, semidefinite
from lipcheck.rounding import Floats, U, gamma, up
from lipcheck.segments import Slopes
from lipcheck.units import Form, Part

MOST_ROWS = 10_000


def prove_quadratic_sums(
    network: Network, slopes: Slopes, source: int, target: int, norm: str, t: float, evidence: object, bundle: Bundle
) -> None:
    """The map from node `source` to node `target` has constant at most t in l1 or linf.

    Raises:
        Rejected: not proved.
    """
    stored = keys(evidence, {"kind", "multipliers", "weights"}, "evidence quadratic")
    if stored["kind"] != "quadratic" or norm not in ("l1", "linf"):
        raise Rejected("expected evidence of kind quadratic, in l1 or linf")
    part = Part(network, slopes, source, target)
    inputs, outputs = network.nodes[source].size, network.nodes[target].size
    count, width = (outputs, inputs) if norm == "linf" else (inputs, outputs)
    if count > MOST_ROWS:
        raise Rejected(f"expected at most {MOST_ROWS} rows")
    if norm == "l1" and any(layer.group is not None for layer in part.layers):
        raise Rejected("in l1 the part may hold functions of one variable only, not sorts")
    weights = bundle.floats(stored["weights"], (count, width), "weights")
    values = _multipliers(part, stored["multipliers"], count, bundle)
    for k in range(count):
        own = [v[k] for v in values]
        proved = _row(part, k, weights[k], own) if norm == "linf" else _column(part, k, weights[k], own)
        if not proved <= float(np.nextafter(t * t, 0.0)):
            raise Rejected(
                f"the multipliers do not prove the constant {t!r} for {'row' if norm == 'linf' else 'column'} {k}"
            )


def _multipliers(part: Part, document: object, count: int, bundle: Bundle) -> list[Floats]:
    if not isinstance(document, dict) or set(document) != {str(layer.node) for layer in part.layers}:
        raise Rejected("expected multipliers for exactly the nodes with open units between the two ends")
    found = []
    for layer in part.layers:
        shape = (count, *layer.lower.shape)
        values = bundle.floats(document[str(layer.node)], shape, f"multipliers of node {layer.node}")
        if not (values >= 0).all():
            raise Rejected(f"expected multipliers >= 0 at node {layer.node}")
        if layer.group is not None and any(
            np.ptp(values[:, layer.group == g], axis=1).any() for g in set(layer.group.tolist())
        ):
            raise Rejected(f"expected one multiplier for each sorted group of node {layer.node}")
        found.append(values)
    return found


def _row(part: Part, k: int, q: Floats, values: list[Floats]) -> float:
    """`sum q`, above the square of row k's sum."""
    output = {b: Form(f.matrix[k : k + 1], f.size[k : k + 1]) for b, f in part.output.items()}
    form = eliminated(part.layers, output, values, part.roundings + 2, part.network.nodes[part.source].size)
    if not (q >= 0).all():
        raise Rejected("expected weights >= 0")
    if form.any():
        matrix = -form
        index = np.arange(len(form))
        matrix[index, index] += q
        if not semidefinite(matrix, 2 * U * (np.abs(form) + np.diag(q))):
            raise Rejected(f"the weights of row {k} are not proved")
    return up(float(q.sum()) * (1 + 4 * gamma(len(q) + 2)))


def _column(part: Part, j: int, r: Floats, values: list[Floats]) -> float:
    """`Q_jj sum 1/r^2`, above the square of column j's sum."""
    # At most 1, so that what underflow has lost in a form (see `units`) does not grow.
    if not ((r > 1e-50) & (r <= 1)).all():
        raise Rejected("expected weights between 1e-50 and 1")
    scale = r[:, None]
    # A product with r is one more rounding of the form; `roundings` counts two for it.
    output = {b: Form(f.matrix * scale, f.size * scale * (1 + 4 * U)) for b, f in _only(part.output, j).items()}
    layers = [replace(layer, reads=_only(layer.reads, j)) for layer in part.layers]
    entry = float(eliminated(layers, output, values, part.roundings + 2, 1)[0, 0])
    total = up(float(np.sum(1 / r**2)) * (1 + 4 * gamma(len(r) + 8)))
    return max(0.0, math.nextafter(entry * total * (1 + 8 * U), math.inf))


def _only(forms: Mapping[int, Form], j: int) -> dict[int, Form]:
    """Of all entries of the source entry j alone: the others are 0 in e_j."""
    return {b: Form(f.matrix[:, [j]], f.size[:, [j]]) if b == 0 else f for b, f in forms.items()}
