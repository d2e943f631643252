"""The optional field `directions` of a claim: only differences in a band of frequencies count.

The claim is then `|f(x + P h) - f(x)| <= U |P h|` for all x and h, P being the projector on the real vectors whose discrete
Fourier transform over the grid vanishes outside a mask that holds `-w` with every w. With an orthonormal basis Q of the band
(cosines and sines), `P = Q Q^T`, it says that `h -> f(x + Q h)` has constant U for every x. That map is the network with
Q and the addition of x in front of it; all rules speak of differences alone where the region is everywhere, so one proof
holds for every x.

Q has irrational entries. The proof is about Qt, its entries as computed here, with `|Q - Qt|_F <= e = 2^-50 sqrt(n)`, n the
number of columns: an entry is a cosine or sine rounded to within u, times a square root within 2u, rounded once more, so it
is off by at most `4u sqrt(2/G)(1 + 4u)`, G being the number of rows, and `4u sqrt(2 n)(1 + 4u) < 2^-50 sqrt(n)`. A step that
begins at h and proves t for Qt proves `t + M e` for Q, M being any constant of the part of the network that it spans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from flint import arb, ctx
from numpy.typing import NDArray

from lipcheck.bundle import Bundle, integer, keys
from lipcheck.errors import Rejected
from lipcheck.nodes import Network, Node
from lipcheck.rounding import Floats, up
from lipcheck.segments import Slopes, build
from lipcheck.shapes import Shape

PREFIX = 4
"""How many nodes are put before the network; its node i becomes node i + PREFIX."""

LARGEST = 2**26
"""A basis may have at most so many entries."""

LONGEST = 2**22
"""The largest common period of the grid's axes: so many cosines are computed."""


@dataclass(frozen=True, eq=False)
class Directions:
    """A band: `mask` over the grid, which lies on `axes` of the input taken row-major in `shape`."""

    mask: NDArray[np.bool_]
    shape: Shape
    axes: Shape


def read_directions(document: object, size: int, bundle: Bundle) -> Directions:
    """The band that a claim is about.

    Raises:
        Rejected: the field does not fit the network's input, or the mask is no symmetric set of frequencies.
    """
    stored = keys(document, {"kind", "mask", "shape", "axes"}, "claim.directions")
    if stored["kind"] != "band":
        raise Rejected("expected directions of kind band")
    shape, axes = _integers(stored["shape"], "shape"), _integers(stored["axes"], "axes")
    if min(shape, default=1) < 1 or math.prod(shape) != size:
        raise Rejected(f"expected directions with a shape of {size} entries, got {list(shape)}")
    if not axes or any(a >= len(shape) for a in axes) or list(axes) != sorted(set(axes)):
        raise Rejected(f"expected the grid on rising axes of {list(shape)}, got {list(axes)}")
    mask = bundle.array(stored["mask"])
    grid = tuple(shape[a] for a in axes)
    if mask.dtype != np.bool_ or mask.shape != grid:
        raise Rejected(
            f"expected a mask of truth values over the grid {list(grid)}, got {mask.dtype} {list(mask.shape)}"
        )
    if not mask.any():
        raise Rejected("expected a band with at least one frequency")
    mirrored = mask[np.ix_(*((-np.arange(n)) % n for n in grid))]
    if not (mask == mirrored).all():
        raise Rejected("expected a mask that holds -w with every frequency w: a real projector has no other")
    if math.lcm(4, *grid) > LONGEST:
        raise Rejected(f"expected a grid whose axes have a common period of at most {LONGEST}")
    if mask.size * int(mask.sum()) > LARGEST:
        raise Rejected(f"expected a band whose basis has at most {LARGEST} entries")
    return Directions(mask, shape, axes)


def _integers(value: object, what: str) -> Shape:
    if not isinstance(value, list) or len(value) > 16:
        raise Rejected(f"expected {what} of the directions as a short list")
    return tuple(integer(v, what, 0, 2**40) for v in value)


def _cosines(period: int) -> Floats:
    """cos(2 pi j/period) for j = 0 .. period - 1, each within 2^-53 of the exact one."""
    found = np.empty(period)
    with ctx.workprec(100):
        for j in range(period):
            found[j] = float((arb(2 * j) / period).cos_pi().mid())
    return found


def basis(mask: NDArray[np.bool_]) -> Floats:
    """Qt: a column for each frequency of the band, (grid size, n); see the module for its error.

    Of a pair w, -w one gives `sqrt(2/G) cos(2 pi w.p)` and the other `sqrt(2/G) sin(2 pi w.p)`; a frequency that is its
    own mirror image gives `sqrt(1/G) cos(2 pi w.p)`. The order of the columns does not matter.
    """
    grid = mask.shape
    period = math.lcm(4, *grid)  # a quarter of it turns cosines into sines
    table = _cosines(period)
    positions = [p.ravel() for p in np.indices(grid)]
    columns = []
    for frequency in np.argwhere(mask):
        mirror = tuple((-int(w)) % n for w, n in zip(frequency, grid, strict=True))
        own = tuple(int(w) for w in frequency)
        phase = sum(w * (period // n) * p for w, n, p in zip(own, grid, positions, strict=True)) % period
        if own > mirror:
            phase = (phase - period // 4) % period
        columns.append(math.sqrt((1 if own == mirror else 2) / mask.size) * table[phase])
    return np.stack(columns, axis=1)


def error(directions: Directions) -> float:
    """E: at least `|Q - Qt|_F` for one channel, and the norm of the difference for all of them."""
    return up(2.0**-50 * up(math.sqrt(int(directions.mask.sum()))))


def directed(network: Network, directions: Directions) -> Network:
    """The network with Qt before it: Input, Dense, Reshape, Transpose, Reshape, then its own nodes from the second on."""
    shape, axes = directions.shape, directions.axes
    rest = tuple(a for a in range(len(shape)) if a not in axes)
    others = math.prod(shape[a] for a in rest)
    weight = basis(directions.mask)
    moved = (*rest, *axes)
    first: list[Node] = [
        Node("Input", (), (others, weight.shape[1]), "band", {}),
        Node("Dense", (0,), (others, weight.shape[0]), "band", {"weight": weight, "bias": None, "axis": 1}),
        Node("Reshape", (1,), tuple(shape[a] for a in moved), "band", {}),
        Node("Transpose", (2,), shape, "band", {"permutation": tuple(int(i) for i in np.argsort(moved))}),
        Node("Reshape", (3,), network.nodes[0].shape, network.nodes[0].name, {}),
    ]
    shifted = [replace(n, inputs=tuple(i + PREFIX for i in n.inputs)) for n in network.nodes[1:]]
    return replace(
        network,
        nodes=(*first, *shifted),
        output=network.output + PREFIX,
        dependent=(*(True,) * PREFIX, *network.dependent),
    )


# ------------------------------------------------------------------------------------- constants of a part


def _product(operator_sums: tuple[float, float], before: tuple[float, float]) -> tuple[float, float]:
    return up(operator_sums[0] * before[0]), up(operator_sums[1] * before[1])


def amplification(network: Network, slopes: Slopes, target: int, rule: str) -> float:
    """M: an upper bound of the constant of the map from the network's own input (node PREFIX) to node `target`.

    For a segment it is Schur's bound of its operator; for a part with nonlinear nodes the root of the product of its l1 and
    linf constants, node by node (Riesz and Thorin: `|J|_2^2 <= |J|_1 |J|_inf` at every point).

    Raises:
        Rejected: a node on the way has no such constant.
    """
    if target == PREFIX:
        return 1.0
    if rule == "segment":
        columns, rows = build(network, slopes, PREFIX, target).sums()
        return up(up(math.sqrt(columns)) * up(math.sqrt(rows)))
    known: dict[int, tuple[float, float]] = {PREFIX: (1.0, 1.0)}
    for index in _between(network, target):
        node = network.nodes[index]
        live = [i for i in node.inputs if i in known]
        if node.kind in ("Add", "Concat"):
            known[index] = _total([known[i] for i in live])
        elif node.kind == "Sort":
            known[index] = known[live[0]]
        elif node.affine or node.kind == "Elementwise":
            known[index] = _product(build(network, slopes, live[0], index).sums(), known[live[0]])
        else:
            raise Rejected(f"directions do not allow {node.kind} {node.name!r} inside a quadratic step from the input")
    columns, rows = known[target]
    return up(up(math.sqrt(columns)) * up(math.sqrt(rows)))


def _between(network: Network, target: int) -> Sequence[int]:
    """The nodes after node PREFIX that `target` depends on and that depend on it, in order."""
    forward = {PREFIX}
    for index in range(PREFIX + 1, target + 1):
        if network.dependent[index] and forward & set(network.nodes[index].inputs):
            forward.add(index)
    return sorted(forward & network.ancestors(target) - {PREFIX})


def _total(parts: list[tuple[float, float]]) -> tuple[float, float]:
    columns, rows = 0.0, 0.0
    for part in parts:
        columns, rows = up(columns + part[0]), up(rows + part[1])
    return columns, rows


__all__ = ["PREFIX", "Directions", "amplification", "basis", "directed", "error", "read_directions"]
