"""The network of a bundle: nodes whose fields and shapes are all checked against each other."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lipcheck.bundle import Bundle, finite_real, integer, keys, real
from lipcheck.errors import Rejected, Unreadable
from lipcheck.shapes import RULES, Shape

LARGEST = 10**9
"""No node may have more entries than this."""


@dataclass(frozen=True, eq=False)
class Node:
    """One operation. `fields` holds what belongs to its kind: float64 and int64 arrays, numbers, tuples."""

    kind: str
    inputs: tuple[int, ...]
    shape: Shape
    name: str
    fields: Mapping[str, Any]

    def __getitem__(self, field: str) -> Any:
        return self.fields[field]

    @property
    def size(self) -> int:
        """How many entries the value has."""
        return math.prod(self.shape)

    @property
    def affine(self) -> bool:
        """Whether the value is an affine function of the inputs, jointly."""
        return self.kind in AFFINE

    @property
    def argument(self) -> dict[str, float]:
        """The numbers of `Elementwise` and `Discontinuous` by name."""
        return dict(self.fields["arguments"])


AFFINE = frozenset(
    "Dense Conv ConvTranspose BatchNorm AddConstant MulConstant DivConstant Add Concat Sum Mean AveragePool Reshape "
    "Transpose Slice Pad Gather Expand".split()
)


@dataclass(frozen=True, eq=False)
class Network:
    """The nodes in topological order; node 0 is the only `Input`.

    Attributes:
        dependent: for each node whether it depends on the input.
    """

    nodes: tuple[Node, ...]
    output: int
    digest: str
    dependent: tuple[bool, ...]

    def ancestors(self, index: int) -> set[int]:
        """The nodes that `index` depends on, itself included."""
        seen, stack = {index}, [index]
        while stack:
            for source in self.nodes[stack.pop()].inputs:
                if source not in seen:
                    seen.add(source)
                    stack.append(source)
        return seen

    def select(self, selector: object) -> Network:
        """The network followed by the claim's selector: `all`, `I` or `I-J`.

        Raises:
            Rejected: the selector is none of these or counts past the output.
        """
        if selector == "all":
            return self
        parts = selector.split("-") if isinstance(selector, str) else []
        size = self.nodes[self.output].size
        if len(parts) not in (1, 2) or not all(p.isascii() and p.isdigit() and len(p) < 12 for p in parts):
            raise Rejected(f"expected output as all, I or I-J, got {selector!r:.60}")
        entries = [int(p) for p in parts]
        if any(str(e) != p for e, p in zip(entries, parts, strict=True)) or max(entries) >= size:
            raise Rejected(f"expected output entries 0..{size - 1}, got {selector!r:.60}")
        source, entries = kept = self._parts(entries)
        nodes = list(self.nodes)
        if len(source) > 1:
            total = sum(self.nodes[i].size for i in source)
            nodes.append(Node("Concat", source, (total,), "selected outputs", {"axis": 0}))
            source = (len(nodes) - 1,)
        size = nodes[source[0]].size
        row = np.zeros((1, size))
        row[0, entries[0]] += 1.0
        if len(entries) == 2:
            row[0, entries[1]] -= 1.0
        nodes.append(Node("Reshape", source, (size,), "selected output", {}))
        pick = {"weight": row, "bias": None, "axis": 0}
        nodes.append(Node("Dense", (len(nodes) - 1,), (1,), "selected output", pick))
        added = len(nodes) - len(self.nodes)
        live = any(self.dependent[i] for i in kept[0])
        return replace(self, nodes=tuple(nodes), output=len(nodes) - 1, dependent=(*self.dependent, *[live] * added))

    def _parts(self, entries: list[int]) -> tuple[tuple[int, ...], list[int]]:
        """The inputs of a concatenated vector that hold the entries, and the entries' places among those alone."""
        node = self.nodes[self.output]
        if node.kind != "Concat" or len(node.shape) != 1:
            return (self.output,), entries
        first, holders = 0, []
        for source in node.inputs:  # (node, its first entry, one past its last)
            holders.append((source, first, first + self.nodes[source].size))
            first = holders[-1][2]
        used = [h for h in holders if any(h[1] <= e < h[2] for e in entries)]
        places, offset = {}, 0
        for _, start, stop in used:
            places.update({e: e - start + offset for e in entries if start <= e < stop})
            offset += stop - start
        return tuple(h[0] for h in used), [places[e] for e in entries]


# ------------------------------------------------------------------------------------------------------- fields


def _floats(value: object, bundle: Bundle) -> Any:
    array = bundle.array(value)
    if array.dtype.kind in "iu" and array.size and max(abs(int(array.min())), abs(int(array.max()))) > 2**53:
        raise Rejected("expected numbers that double precision holds exactly")
    wide = array.astype(np.float64)
    if not np.isfinite(wide).all():
        raise Rejected("expected finite numbers, got NaN or infinite ones")
    return wide


def _optional(value: object, bundle: Bundle) -> Any:
    return None if value is None else _floats(value, bundle)


def _integers(value: object, bundle: Bundle) -> Any:
    array = bundle.array(value)
    if array.dtype.kind not in "iu" or (array.size and int(np.abs(array.astype(object)).max()) > 2**40):
        raise Rejected(f"expected an array of moderate integers, got {array.dtype}")
    return array.astype(np.int64)


def _tuple(value: object, width: int = 0) -> Any:
    """A list of integers, or of rows of `width` integers."""
    if not isinstance(value, list) or len(value) > 64:
        raise Rejected("expected a short list")
    if width:
        rows = tuple(_tuple(row) for row in value)
        if any(len(row) != width for row in rows):
            raise Rejected(f"expected rows of {width} integers")
        return rows
    return tuple(integer(v, "an entry", 0, 2**40) for v in value)


def _windows(value: object, bundle: Bundle) -> Any:
    if not isinstance(value, list) or not 1 <= len(value) <= 32:
        raise Rejected("expected windows as a list with an array for each pooled axis")
    arrays = tuple(_integers(v, bundle) for v in value)
    if any(a.ndim != 2 or a.shape[1] != 3 for a in arrays):
        raise Rejected("expected windows as arrays of shape (positions, 3)")
    return arrays


def _arguments(value: object, bundle: Bundle) -> Any:
    if not isinstance(value, list) or len(value) > 8:
        raise Rejected("expected arguments as a list of pairs")
    found = {}
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) or pair[0] in found:
            raise Rejected("expected arguments as pairs of a name and a number")
        found[pair[0]] = real(pair[1], pair[0][:40])
    return tuple(found.items())


def _text(value: object, bundle: Bundle) -> Any:
    if not isinstance(value, str) or len(value) > 200:
        raise Rejected("expected a short text")
    return value


def _truth(value: object, bundle: Bundle) -> Any:
    if not isinstance(value, bool):
        raise Rejected("expected true or false")
    return value


Reader = Callable[[object, Bundle], Any]
_READERS: dict[str, Reader] = {
    "floats": _floats, "floats?": _optional, "integers": _integers, "windows": _windows, "arguments": _arguments,
    "text": _text, "truth": _truth, "ints": lambda v, b: _tuple(v), "pairs": lambda v, b: _tuple(v, 2),
    "triples": lambda v, b: _tuple(v, 3), "real": lambda v, b: finite_real(v, "number"),
    "axis": lambda v, b: integer(v, "axis", 0, 64), "axis?": lambda v, b: integer(v, "axis", -1, 64),
    "count": lambda v, b: integer(v, "count", 1, 2**40),
}  # fmt: skip

_CONV = {"weight": "floats", "bias": "floats?", "stride": "ints", "padding": "pairs", "dilation": "ints",
         "groups": "count"}  # fmt: skip
_AXES, _NORM = {"axes": "ints"}, {"axes": "ints", "eps": "real"}
FIELDS: dict[str, dict[str, str]] = {
    "Input": {}, "Constant": {"value": "floats"}, "Dense": {"weight": "floats", "bias": "floats?", "axis": "axis"},
    "Conv": _CONV, "ConvTranspose": _CONV,
    "BatchNorm": {"mean": "floats", "variance": "floats", "weight": "floats", "bias": "floats", "eps": "real",
                  "axis": "axis"},
    "AddConstant": {"value": "floats"}, "MulConstant": {"value": "floats"}, "DivConstant": {"value": "floats"},
    "Add": {}, "Concat": {"axis": "axis"}, "Sum": _AXES, "Mean": _AXES, "AveragePool": {"windows": "windows"},
    "Reshape": {}, "Transpose": {"permutation": "ints"}, "Slice": {"ranges": "triples"},
    "Pad": {"pads": "pairs", "mode": "text", "value": "real"}, "Gather": {"indices": "integers", "axis": "axis"},
    "Expand": {}, "Elementwise": {"function": "text", "arguments": "arguments", "slope": "floats?"},
    "MaxPool": {"windows": "windows"}, "ReduceMax": _AXES, "Maximum": {},
    "Sort": {"axis": "axis", "descending": "truth"}, "Softmax": {"axis": "axis"}, "LogSoftmax": {"axis": "axis"},
    "LogSumExp": _AXES, "LayerNorm": _NORM, "RMSNorm": _NORM, "ReduceL2": _AXES, "Multiply": {}, "Divide": {},
    "MatMul": {}, "Discontinuous": {"operator": "text", "axis": "axis?", "arguments": "arguments"},
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------- reading


def _node(document: object, index: int, earlier: list[Node], bundle: Bundle) -> Node:
    kind = document.get("kind") if isinstance(document, dict) else None
    if not isinstance(kind, str) or kind not in FIELDS:
        raise Rejected(f"expected a known kind of node, got {kind!r:.60}")
    spec = FIELDS[kind]
    stored = keys(document, {"kind", "inputs", "shape", "name", *spec}, kind)
    if (kind == "Input") != (index == 0):
        raise Rejected("expected node 0, and no other, to be the Input")
    if not isinstance(stored["inputs"], list) or len(stored["inputs"]) > 100_000:
        raise Rejected("expected inputs as a list")
    inputs = tuple(integer(i, "input", 0, index - 1) for i in stored["inputs"])
    shape = _tuple(stored["shape"])
    if len(shape) > 16 or not 1 <= math.prod(shape) <= LARGEST:
        raise Rejected(f"expected a shape with 1 to {LARGEST} entries, got {list(shape)}")
    name = stored["name"]
    if not isinstance(name, str):
        raise Rejected("expected the name to be a text")
    fields = {}
    for key, form in spec.items():
        try:
            fields[key] = _READERS[form](stored[key], bundle)
        except Rejected as error:
            raise Rejected(f"{key}: {error}") from None
    node = Node(kind, inputs, shape, name, fields)
    RULES[kind](fields, [earlier[i].shape for i in inputs], shape)
    return node


def read_network(bundle: Bundle) -> Network:
    """The network in `graph.json`.

    Raises:
        Unreadable: something in it does not fit the specification; the message names the node.
    """
    try:
        document = keys(
            bundle.documents["graph.json"],
            {"nodes", "output", "input_shapes", "output_shapes", "source"},
            "graph.json",
        )
        if not isinstance(document["nodes"], list) or not document["nodes"]:
            raise Rejected("expected a list of nodes")
    except Rejected as error:
        raise Unreadable(f"graph.json: {error}") from None
    nodes: list[Node] = []
    dependent: list[bool] = []
    for index, stored in enumerate(document["nodes"]):
        try:
            node = _node(stored, index, nodes, bundle)
        except (Rejected, ValueError, MemoryError, IndexError, OverflowError) as error:
            raise Unreadable(f"graph.json, node {index}: {error}") from None
        nodes.append(node)
        dependent.append(index == 0 or any(dependent[i] for i in node.inputs))
    try:
        output = integer(document["output"], "output", 0, len(nodes) - 1)
        for key, node in (("input_shapes", nodes[0]), ("output_shapes", nodes[output])):
            shapes = document[key]
            if not isinstance(shapes, list) or sum(math.prod(_tuple(s)) for s in shapes) != node.size:
                raise Rejected(f"expected {key} to hold {node.size} entries in all")
        if not isinstance(document["source"], str):
            raise Rejected("expected source to be a text")
    except Rejected as error:
        raise Unreadable(f"graph.json: {error}") from None
    return Network(tuple(nodes), output, _digest(document), tuple(dependent))


def _digest(document: dict[str, Any]) -> str:
    plain = {key: value for key, value in document.items() if key != "source"}
    plain["nodes"] = [{key: value for key, value in node.items() if key != "name"} for node in document["nodes"]]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
