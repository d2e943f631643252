"""The rule `jacobian`: every entry of the difference matrices of a part of the network, enclosed.

For any two inputs the difference of the end is M times the difference of the start, M being the product of the linear parts with
diagonals of difference quotients d_j in [lower_j, upper_j]. Row i of M is found backward: g = e_i at the end, L^T g before an affine node,
d g before a function. M is affine in each d_j and norms are convex, so split units only need their two ends: all choices are
enclosed and the largest norm counts.

Each g is enclosed by intervals and, at the nodes that the evidence names, by lines: with g in [l, u],
`d g <= max(lower g, upper g)`, which is convex in g and so below its chord over [l, u], and `d g >= min(lower g, upper g)` above its chord. An
entry of g is thus bounded by coefficients that are pushed forward, from the entry to the end. What rounding does to a
coefficient of g is multiplied by the largest |g| and added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipcheck.bundle import Bundle, keys
from lipcheck.errors import Rejected
from lipcheck.linear import absolute, factor
from lipcheck.nodes import Network
from lipcheck.rounding import TINY, Floats, U, downs, finite, gamma, ups
from lipcheck.segments import Slopes

MOST_UNITS = 16
MOST_ENTRIES = 50_000_000
CHUNK = 4_000_000


@dataclass(frozen=True)
class _Range:
    lo: Floats
    hi: Floats

    @property
    def magnitude(self) -> Floats:
        return np.maximum(np.abs(self.lo), np.abs(self.hi))


def prove_jacobian(
    network: Network, slopes: Slopes, source: int, target: int, norm: str, t: float, evidence: object, bundle: Bundle
) -> None:
    """The map from node `source` to node `target` has constant at most t.

    Raises:
        Rejected: not proved.
    """
    stored = keys(evidence, {"kind", "split", "lines"}, "evidence jacobian")
    if norm not in ("l1", "linf"):
        raise Rejected(f"rule jacobian says nothing about {norm}")
    if stored["kind"] != "jacobian":
        raise Rejected("expected evidence of kind jacobian")
    part = _Part(network, slopes, source, target)
    split = part.read_split(stored["split"], bundle)
    refined = part.read_lines(stored["lines"], bundle)
    choices = 2 ** sum(len(entries) for entries in split.values())
    step = max(1, CHUNK // (4 * part.widest * part.outputs))
    worst = 0.0
    with np.errstate(all="ignore"):
        for first in range(0, choices, step):
            numbers = np.arange(first, min(choices, first + step))
            found = _Rows(part, split, refined, numbers).matrix.magnitude
            worst = max(worst, _norm(found.reshape(len(numbers), part.outputs, -1), norm))
    if not worst <= t:
        raise Rejected(f"the enclosed difference matrices have norm {worst!r}, above {t!r}")


def _norm(size: Floats, norm: str) -> float:
    """The largest norm of matrices with entries of at most this size, over the first axis."""
    rows, columns = (ups(size.sum(axis=a) * (1 + 4 * gamma(size.shape[a] + 2))).max(axis=1) for a in (2, 1))
    return float((rows if norm == "linf" else columns).max())


class _Part:
    """The nodes between source and target: affine ones and functions with slopes; everything else they read is constant."""

    def __init__(self, network: Network, slopes: Slopes, source: int, target: int) -> None:
        self.nodes, self.slopes, self.source, self.target = network.nodes, slopes, source, target
        seen: set[int] = set()
        stack = [target]
        while stack:
            index = stack.pop()
            if index == source or index in seen or not network.dependent[index]:
                continue
            node = network.nodes[index]
            if not node.affine and node.kind != "Elementwise":
                raise Rejected(f"node {index} ({node.kind} {node.name!r}) is neither affine nor a function")
            if node.kind == "Elementwise" and index not in slopes:
                raise Rejected(f"expected slopes of node {index} ({node['function']} {node.name!r}), there are none")
            seen.add(index)
            stack.extend(node.inputs)
        self.inside = sorted(seen)
        self.live = seen | {source}
        if 0 in seen:
            raise Rejected(f"a way back from node {target} passes by node {source}")
        self.functions = [i for i in self.inside if self.nodes[i].kind == "Elementwise"]
        self.outputs = self.nodes[target].size
        self.widest = max(self.nodes[i].size for i in self.live)
        if self.outputs * self.nodes[source].size > MOST_ENTRIES:
            raise Rejected("the Jacobian has too many entries")

    def shapes(self, index: int) -> list[tuple[int, ...]]:
        """Shapes of what a node reads."""
        return [self.nodes[i].shape for i in self.nodes[index].inputs]

    def read_split(self, document: object, bundle: Bundle) -> dict[int, Any]:
        """The split units by node."""
        if not isinstance(document, dict) or not set(document) <= {str(i) for i in self.functions}:
            raise Rejected("expected split units of functions between the two ends")
        found = {}
        for key in sorted(document, key=int):
            array = bundle.array(document[key])
            if array.dtype != np.int64 or array.ndim != 1 or len(set(array.tolist())) != len(array):
                raise Rejected("expected split units as different int64 numbers")
            if not ((array >= 0) & (array < self.nodes[int(key)].size)).all():
                raise Rejected(f"expected split units below {self.nodes[int(key)].size}")
            found[int(key)] = array
        if sum(map(len, found.values())) > MOST_UNITS:
            raise Rejected(f"expected at most {MOST_UNITS} split units")
        return found

    def read_lines(self, value: object, bundle: Bundle) -> set[int]:
        """The nodes at which lines are used."""
        array = bundle.array(value)
        found = {int(i) for i in array.reshape(-1)} if array.dtype == np.int64 else {-1}
        if not found <= {self.source, *self.functions}:
            raise Rejected("expected lines at the start or at functions of the part")
        return found


class _Rows:
    """Rows of M for some choices of the split units: row b belongs to choice `b // outputs` and output `b % outputs`."""

    def __init__(self, part: _Part, split: Mapping[int, Any], refined: set[int], numbers: Any) -> None:
        self.part = part
        self.rows = np.tile(np.eye(part.outputs), (len(numbers), 1)).reshape(-1, *part.nodes[part.target].shape)
        self.ends = self._choose(split, numbers)
        self.refined = refined
        self.known: dict[int, _Range] = {part.target: _Range(self.rows, self.rows)}
        self.masses: dict[int, list[tuple[Floats, float]]] = {}
        for index in reversed(part.inside):
            if part.nodes[index].kind == "Elementwise":
                self._function(index)
            else:
                self._affine(index)
        self._refine(part.source)
        self.matrix = self.known.get(part.source) or _Range(
            *(np.zeros((len(self.rows), *part.nodes[part.source].shape)),) * 2
        )

    def _choose(self, split: Mapping[int, Any], numbers: Any) -> dict[int, tuple[Floats, Floats]]:
        """Slopes for each row; those of split units have equal ends."""
        found, bit = {}, 0
        for i in self.part.functions:
            low, high = (np.tile(s.reshape(1, -1), (len(numbers), 1)) for s in self.part.slopes[i])
            for entry in split.get(i, []):
                taken = np.where((numbers >> bit) & 1, high[:, entry], low[:, entry])
                low[:, entry] = high[:, entry] = taken
                bit += 1
            shape = self.part.nodes[i].shape
            ends = [np.repeat(s, self.part.outputs, axis=0).reshape(-1, *shape) for s in (low, high)]
            found[i] = ends[0], ends[1]
        return found

    def _add(self, index: int, lo: Floats, hi: Floats) -> None:
        if index not in self.part.live:
            return
        if index in self.known:
            lo, hi = downs(self.known[index].lo + lo), ups(self.known[index].hi + hi)
        self.known[index] = _Range(finite(lo, "a Jacobian's entry"), finite(hi, "a Jacobian's entry"))

    def _function(self, index: int) -> None:
        self._refine(index)
        g, (low, high) = self.known[index], self.ends[index]
        corners = [d * e for d in (low, high) for e in (g.lo, g.hi)]
        self._add(self.part.nodes[index].inputs[0], downs(np.minimum.reduce(corners)), ups(np.maximum.reduce(corners)))

    def _affine(self, index: int) -> None:
        node, g, shapes = self.part.nodes[index], self.known[index], self.part.shapes(index)
        map_, size = factor(node, shapes), factor(node, shapes, absolute)
        room, tiny = gamma(map_.backward + 2), 4 * (map_.terms + 2) * TINY
        centre = g.lo / 2 + g.hi / 2
        radius = ups(np.maximum(ups(g.hi - centre), ups(centre - g.lo)))
        centres, widths = map_.adjoint(centre), size.adjoint(ups(radius + 2 * room * np.abs(centre)))
        masses = [ups(np.asarray(m) * (1 + 4 * room)) + tiny for m in size.adjoint(g.magnitude)]
        self.masses[index] = [(m, 4 * (map_.terms + 2) * TINY * float(1 + g.magnitude.sum())) for m in masses]
        for i, c, w in zip(node.inputs, centres, widths, strict=True):
            wide = ups(np.asarray(w) * (1 + 4 * room)) + tiny
            self._add(i, downs(np.asarray(c) - wide), ups(np.asarray(c) + wide))

    def _refine(self, index: int) -> None:
        if index not in self.refined or index not in self.known:
            return
        old, size = self.known[index], self.part.nodes[index].size
        step = max(1, CHUNK // (2 * size * self.part.widest))
        parts = [self._above(index, slice(b, b + step)) for b in range(0, len(self.rows), step)]
        above = np.concatenate(parts)
        hi, lo = above[:, :size].reshape(old.hi.shape), -above[:, size:].reshape(old.lo.shape)
        self.known[index] = _Range(np.maximum(old.lo, lo), np.minimum(old.hi, hi))

    def _above(self, index: int, batch: slice) -> Floats:
        """At least plus (then minus) each entry of g of a node: (b, 2 size)."""
        part, size = self.part, self.part.nodes[index].size
        eye, rows = np.eye(size), self.rows[batch]
        c = {index: np.concatenate([eye, -eye]).reshape(1, 2 * size, *part.nodes[index].shape)}
        constant, error = np.zeros((len(rows), 2 * size)), np.zeros((len(rows), 2 * size))
        for i in part.inside:
            node = part.nodes[i]
            if i <= index or not any(j in c for j in node.inputs):
                continue
            if node.kind == "Elementwise":
                c[i], more, lost = self._lines(i, c[node.inputs[0]], batch)
                constant = constant + more
                error = error + lost + 2 * gamma(2) * np.abs(constant)
                continue
            map_ = factor(node, part.shapes(i))
            count = max(c[j].shape[0] for j in node.inputs if j in c)
            operands = [
                np.broadcast_to(c[j], (count, *c[j].shape[1:])).reshape(-1, *shape) if j in c else None
                for j, shape in zip(node.inputs, part.shapes(i), strict=True)
            ]
            c[i] = np.asarray(map_.apply(operands)).reshape(count, 2 * size, *node.shape)
            for j, (mass, tiny) in zip(node.inputs, self.masses[i], strict=True):
                if j in c:
                    error = error + 2 * gamma(map_.forward + 4) * _dot(np.abs(c[j]), mass[batch]) + tiny
        constant = constant + _dot(c[part.target], rows)
        error = error + 4 * gamma(4) * np.abs(constant)
        return finite(
            ups(constant + ups(error * (1 + 2 * gamma(64 + 2 * len(part.inside) + part.widest)))), "a linear bound"
        )

    def _lines(self, index: int, c: Floats, batch: slice) -> tuple[Floats, Floats, Floats]:
        """Coefficients after `d g` is replaced by lines above (where c > 0) and below, the constant, and what was lost."""
        g = _Range(self.known[index].lo[batch], self.known[index].hi[batch])
        low, high = (s[batch] for s in self.ends[index])
        (s, d), (r, e) = _chord(low, high, g), _chord(-high, -low, g)  # d g <= s g + d, -d g <= r g + e
        plus, minus = np.maximum(c, 0.0), np.minimum(c, 0.0)
        after = plus * s[:, None] - minus * r[:, None]
        constant = _dot(plus, d) - _dot(minus, e)
        size = np.maximum(np.abs(s), np.abs(r)) * g.magnitude + np.maximum(np.abs(d), np.abs(e))
        lost = 2 * gamma(g.lo[0].size + 4) * _dot(np.abs(c), size)
        return after, constant, lost + 4 * (g.lo[0].size + 4) * TINY * float(1 + g.magnitude.max(initial=0.0))


def _chord(low: Floats, high: Floats, g: _Range) -> tuple[Floats, Floats]:
    """A line above `max(low g, high g)` on [g.lo, g.hi]: convex in g, so it has to be above at both ends."""
    width = np.maximum(g.hi - g.lo, 1e-300)
    slope = np.where(g.lo >= 0, high, np.where(g.hi <= 0, low, (high * g.hi - low * g.lo) / width))
    needed = []
    for x in (g.lo, g.hi):
        top = np.maximum(low * x, high * x)
        needed.append(top - slope * x + 4 * U * (np.abs(top) + np.abs(slope * x)))
    offset = ups(np.maximum(*needed)) + TINY
    return slope, np.where((g.lo >= 0) | (g.hi <= 0), 0.0, offset)


def _dot(c: Floats, weight: Floats) -> Floats:
    """`(b or 1, k, *shape)` and `(b, *shape)` to `(b, k)`: the sums of products over a value's entries."""
    return np.asarray(c.reshape(*c.shape[:2], -1) @ weight.reshape(len(weight), -1, 1))[:, :, 0]
