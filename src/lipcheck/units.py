"""The part of a network between two nodes as linear functions of blocks: the start's value, and the units of each layer.

For the rule `quadratic` of the certificate. A form is a matrix together with a bound of what its computation lost: with k
roundings on the longest way, `|computed - exact| <= gamma_k size + MOST_LOST` entrywise, `size` being the composition of
absolute values, computed alongside (and within MOST_LOST of the exact one but for its own roundings).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lipcheck.errors import Rejected
from lipcheck.linear import absolute, factor, signed
from lipcheck.nodes import Network, Node
from lipcheck.rounding import TINY, Floats, finite
from lipcheck.segments import Slopes

FLOOR = 1e-150
"""Far above everything that underflow can lose in a form: whoever multiplies errors by `gamma` of it is still above."""

MOST_LOST = 1e-170
"""What underflow may lose in an entry of a form, together with all that later layers make of it."""

LARGEST = 1e50
MOST = 150_000_000
"""Entries that one value's forms, or a quadratic form, may hold: 1.2 GB."""


@dataclass(frozen=True)
class Form:
    """A linear function of one block: computed matrix, composition of absolute values."""

    matrix: Floats
    size: Floats


@dataclass(frozen=True)
class Units:
    """One layer: what its units read, by block; their slopes; and which of them have to share a multiplier."""

    node: int
    reads: Mapping[int, Form]
    lower: Floats
    upper: Floats
    group: Floats | None


@dataclass
class Part:
    """The walk from node `source` to node `target`.

    Attributes:
        layers: block k + 1 holds the units of layer k; block 0 the value of `source`.
        output: the value of `target`.
        roundings: k of the module's bound, for all forms.
    """

    network: Network
    slopes: Slopes
    source: int
    target: int
    layers: list[Units] = field(default_factory=list)
    output: Mapping[int, Form] = field(default_factory=dict)
    roundings: int = 2

    def __post_init__(self) -> None:
        inside = self._inside()
        size = self.network.nodes[self.source].size
        self._affordable(size, inside)
        start = np.eye(size)
        if self.network.nodes[self.source].kind == "Elementwise" and self.source in self.slopes:
            lower, upper = (s.reshape(-1) for s in self.slopes[self.source])
            start[(lower == 0) & (upper == 0)] = 0.0
        forms: dict[int, dict[int, Form]] = {self.source: {0: Form(start, start)}}
        counts = {self.source: 2}
        lost: dict[int, float] = {self.source: 0.0}
        last = {i: index for index in inside for i in self.network.nodes[index].inputs}
        for index in inside:
            node = self.network.nodes[index]
            before = max(counts[i] for i in node.inputs if i in counts)
            if node.affine:
                forms[index], own = self._affine(node, forms)
            elif node.kind == "Sort":
                forms[index], own = self._sort(index, node, forms[node.inputs[0]])
            else:
                forms[index], own = self._function(index, node, forms[node.inputs[0]])
            counts[index] = before + own
            lost[index] = self._lost(index, node, max(lost[i] for i in node.inputs if i in lost))
            self._limit(forms[index])
            for i in set(node.inputs):
                if last[i] == index and i != self.target:
                    forms.pop(i, None)
        self.output = forms[self.target]
        self.roundings = max(counts.values()) + 2

    def _affordable(self, size: int, inside: list[int]) -> None:
        """Refuse what would take too much memory before anything is allocated."""
        columns = size
        if size * size > MOST:
            raise Rejected(f"a part that starts with {size} entries is too large to check")
        for index in inside:
            node = self.network.nodes[index]
            if node.kind == "Elementwise":
                columns += int((self.slopes[index][0] != self.slopes[index][1]).sum())
            elif node.kind == "Sort":
                columns += node.size
            if node.size * columns > MOST or columns * columns > MOST:
                raise Rejected(
                    f"the matrices of a part up to node {index} ({node.kind} {node.name!r}) are too large to check"
                )

    def _inside(self) -> list[int]:
        """The nodes between that depend on the input, in order; every way back from the target ends at the source."""
        if not 0 <= self.source < self.target:
            raise Rejected(f"expected a part to start before node {self.target}, got {self.source}")
        seen: set[int] = set()
        stack = [self.target]
        reached = False
        while stack:
            index = stack.pop()
            if index == self.source:
                reached = True
                continue
            if index in seen or not self.network.dependent[index]:
                continue
            node = self.network.nodes[index]
            if not node.affine and node.kind not in ("Elementwise", "Sort"):
                raise Rejected(f"node {index} ({node.kind} {node.name!r}) is not a function with bounded slopes")
            if node.kind == "Elementwise" and index not in self.slopes:
                raise Rejected(f"expected slopes of node {index} ({node['function']} {node.name!r}), there are none")
            seen.add(index)
            stack.extend(node.inputs)
        if not reached:
            raise Rejected(f"the part to node {self.target} does not reach node {self.source}")
        return sorted(seen)

    def _lost(self, index: int, node: Node, before: float) -> float:
        """What underflow may have lost in an entry of a node's forms: that of its operands, enlarged by the node's largest
        absolute row sum, and its own. The factors 2 are far above what rounding does to these numbers.

        Raises:
            Rejected: so much that FLOOR does not cover it.
        """
        if node.kind == "Sort":
            own = 2.0 * node.shape[node["axis"]], 2.0 * node.shape[node["axis"]]
        elif node.affine:
            shapes = [self.network.nodes[i].shape for i in node.inputs]
            map_ = factor(node, shapes, absolute)
            with np.errstate(all="ignore"):
                live = [self.network.dependent[i] for i in node.inputs]
                ones = [np.ones((1, *s)) if a else None for a, s in zip(live, shapes, strict=True)]
                own = float(finite(map_.apply(ones), "a composition of layers").max()), float(map_.terms)
        else:
            lower, upper = self.slopes[index]
            own = float(np.abs(np.where(lower == upper, lower, 0.0)).max(initial=1.0)), 1.0
        total = float(2 * own[0] * before + 2 * own[1] * TINY)
        if not total <= MOST_LOST:
            raise Rejected(f"underflow before node {index} ({node.kind} {node.name!r}) may be enlarged to {total:.3g}")
        return total

    def _limit(self, forms: Mapping[int, Form]) -> None:
        if sum(f.matrix.size for f in forms.values()) > MOST:
            raise Rejected("the matrices of a part are too large")
        for f in forms.values():
            if not float(finite(f.size, "a composition of layers").max(initial=0.0)) < LARGEST:
                raise Rejected("the matrices of a part are too large for float64")

    def _affine(self, node: Node, forms: Mapping[int, Mapping[int, Form]]) -> tuple[dict[int, Form], int]:
        shapes = [self.network.nodes[i].shape for i in node.inputs]
        plain, positive = (factor(node, shapes, convert) for convert in (signed, absolute))
        result = {}
        for block in sorted({b for i in node.inputs for b in forms.get(i, {})}):
            found = [forms.get(i, {}).get(block) for i in node.inputs]
            columns = next(f.matrix.shape[1] for f in found if f is not None)
            step = max(1, 20_000_000 // max(node.size, *(int(np.prod(s)) for s in shapes)))
            matrix, size = np.empty((node.size, columns)), np.empty((node.size, columns))
            for first in range(0, columns, step):
                part = slice(first, min(first + step, columns))
                with np.errstate(all="ignore"):
                    for target, run, pick in ((matrix, plain, "matrix"), (size, positive, "size")):
                        operands = [
                            None if f is None else getattr(f, pick)[:, part].T.reshape(-1, *shape)
                            for f, shape in zip(found, shapes, strict=True)
                        ]
                        target[:, part] = run.apply(operands).reshape(part.stop - first, -1).T
            result[block] = Form(finite(matrix, "a composition of layers"), size)
        return result, plain.forward

    def _function(self, index: int, node: Node, operand: Mapping[int, Form]) -> tuple[dict[int, Form], int]:
        lower, upper = (s.reshape(-1) for s in self.slopes[index])
        fixed = np.where(lower == upper, lower, 0.0)[:, None]
        loose = np.flatnonzero(lower != upper)
        result = {}
        if fixed.any():
            result = {b: Form(f.matrix * fixed, f.size * np.abs(fixed)) for b, f in operand.items()}
        if len(loose):
            reads = {b: Form(f.matrix[loose], f.size[loose]) for b, f in operand.items()}
            self._add(index, node, result, reads, lower[loose], upper[loose], None, np.eye(node.size)[:, loose])
        return result, 1

    def _sort(self, index: int, node: Node, operand: Mapping[int, Form]) -> tuple[dict[int, Form], int]:
        """Sorting keeps each group's mean m and does not expand the rest: with Z the Helmert basis of the complement of
        (1, .., 1), `sort(v) = m + Z s`, `|ds| <= |Z^T dv|` group by group, which is one shared multiplier on slopes [-1, 1].
        """
        length = node.shape[node["axis"]]
        where = np.moveaxis(np.arange(node.size).reshape(node.shape), node["axis"], -1).reshape(-1, length)
        groups = len(where)
        basis = np.zeros((length, length - 1))
        for j in range(1, length):
            basis[:j, j - 1] = 1 / np.sqrt(j * (j + 1))
            basis[j, j - 1] = -j / np.sqrt(j * (j + 1))
        spread = np.zeros((node.size, groups * (length - 1)))
        for g, entries in enumerate(where):
            spread[entries, g * (length - 1) : (g + 1) * (length - 1)] = basis
        average = np.zeros((node.size, groups))
        average[where.reshape(-1), np.repeat(np.arange(groups), length)] = 1.0
        result, reads = {}, {}
        for b, f in operand.items():
            means = (average.T @ f.matrix) / length, (average.T @ f.size) / length
            result[b] = Form(average @ means[0], average @ means[1])
            reads[b] = Form(spread.T @ f.matrix, np.abs(spread).T @ f.size)
        if length > 1:
            units = groups * (length - 1)
            shared = np.repeat(np.arange(groups), length - 1).astype(np.float64)
            self._add(index, node, result, reads, -np.ones(units), np.ones(units), shared, spread)
        # The products above run over all entries, but all except `length` of the factors are exact zeros; the basis costs 3.
        return result, length + 8

    def _add(
        self, index: int, node: Node, result: dict[int, Form], reads: Mapping[int, Form], lower: Floats, upper: Floats,
        group: Floats | None, spread: Floats,
    ) -> None:  # fmt: skip
        if not ((np.abs(lower) <= LARGEST) & (np.abs(upper) <= LARGEST)).all():
            raise Rejected(
                f"node {index} ({node.kind} {node.name!r}) has slopes that are not finite, or above {LARGEST}"
            )
        self.layers.append(Units(index, reads, lower, upper, group))
        result[len(self.layers)] = Form(spread, np.abs(spread))
