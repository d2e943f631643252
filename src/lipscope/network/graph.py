"""The internal graph: frozen nodes in topological order, and the digest that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from lipscope.claims.errors import InternalError, ModelError
from lipscope.network.nodes import Array, Constant, Input, Node, Shape

Json = dict[str, "object"]


@dataclass(frozen=True, eq=False)
class Graph:
    """A network: `nodes[0]` is its only `Input`, `nodes[output]` its value; each node reads earlier ones only.

    Attributes:
        nodes: the operations in topological order.
        output: index of the node whose value is the network's.
        input_shapes: shapes of one example of each of the user's inputs, without batch axis, in order; the graph's
            input holds them one after the other, row-major.
        output_shapes: the same of the outputs.
        source: where the model came from, for messages.
    """

    nodes: tuple[Node, ...]
    output: int
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    source: str = ""

    def __post_init__(self) -> None:
        if not self.nodes or not isinstance(self.nodes[0], Input):
            raise InternalError("a graph begins with its Input")
        for index, node in enumerate(self.nodes):
            if any(not 0 <= i < index for i in node.inputs):
                raise InternalError(f"node {index} ({node.kind} {node.name!r}) reads nodes {node.inputs}")
            if isinstance(node, Input) and index > 0:
                raise InternalError("a graph has one Input; slice it to get several")
            if node.size == 0:
                raise ModelError(
                    f"expected tensors with at least one entry, got shape {list(node.shape)} at layer {node.name!r} "
                    f"({node.kind}); check the input shape that the model was loaded with"
                )

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def input_size(self) -> int:
        """How many numbers one example has."""
        return self.nodes[0].size

    @property
    def output_size(self) -> int:
        """How many numbers the network returns for one example."""
        return self.nodes[self.output].size

    @cached_property
    def digest(self) -> str:
        """`sha256:` and the hash of structure, parameters and exact weight bits. Names do not count."""
        document, _ = encode(self)
        for node in document["nodes"]:  # type: ignore[attr-defined]
            del node["name"]
        del document["source"]
        return "sha256:" + hashlib.sha256(canonical_json(document)).hexdigest()

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """For each node the indices of the nodes that read it."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for source in sorted(set(node.inputs)):
                found[source].append(index)
        return tuple(map(tuple, found))

    def ancestors(self, index: int) -> set[int]:
        """The nodes that `index` depends on, itself included."""
        seen = {index}
        stack = [index]
        while stack:
            for source in self.nodes[stack.pop()].inputs:
                if source not in seen:
                    seen.add(source)
                    stack.append(source)
        return seen


class GraphBuilder:
    """Collects nodes for a `Graph`; loaders and passes use it."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(self, node: Node) -> int:
        """Append a node and return its index."""
        self.nodes.append(node)
        return len(self.nodes) - 1

    def shape(self, index: int) -> Shape:
        """The shape of the value of node `index`."""
        return self.nodes[index].shape

    def build(
        self, output: int, input_shapes: Sequence[Shape], output_shapes: Sequence[Shape], source: str = ""
    ) -> Graph:
        """The graph of what `output` depends on (and the input), renumbered."""
        graph = Graph(tuple(self.nodes), output, tuple(input_shapes), tuple(output_shapes), source)
        return prune(graph)


def prune(graph: Graph) -> Graph:
    """The same network without the nodes that cannot reach its output; the input stays."""
    keep = sorted(graph.ancestors(graph.output) | {0})
    number = {old: new for new, old in enumerate(keep)}
    nodes = tuple(replace(graph.nodes[old], inputs=tuple(number[i] for i in graph.nodes[old].inputs)) for old in keep)
    return replace(graph, nodes=nodes, output=number[graph.output])


# ------------------------------------------------------------------------------------------------ stored form


def canonical_json(document: object) -> bytes:
    """The one way in which a document is written before it is hashed: sorted keys, no white space, ASCII."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def array_digest(array: Array) -> str:
    """sha256 (hex) of dtype, shape and the little-endian row-major bytes of an array."""
    plain = np.ascontiguousarray(array)
    plain = plain.astype(plain.dtype.newbyteorder("<"), copy=False)
    head = f"{plain.dtype.str[1:]}:{','.join(map(str, array.shape))}:".encode()
    return hashlib.sha256(head + plain.tobytes()).hexdigest()


def _plain(value: object, arrays: dict[str, Array]) -> object:
    if isinstance(value, np.ndarray):
        name = array_digest(value)
        arrays[name] = value
        return {"array": name}
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, tuple):
        return [_plain(v, arrays) for v in value]
    raise InternalError(f"a node's field of type {type(value).__name__} cannot be stored")


def encode(graph: Graph) -> tuple[Json, dict[str, Array]]:
    """The graph as a JSON document and the arrays that it refers to, by digest."""
    arrays: dict[str, Array] = {}
    nodes: list[Json] = []
    for node in graph.nodes:
        document: Json = {
            "kind": node.kind, "inputs": list(node.inputs), "shape": list(node.shape), "name": node.name,
        }  # fmt: skip
        document.update({key: _plain(value, arrays) for key, value in node.parameters().items()})
        nodes.append(document)
    return {
        "nodes": nodes,
        "output": graph.output,
        "input_shapes": [list(s) for s in graph.input_shapes],
        "output_shapes": [list(s) for s in graph.output_shapes],
        "source": graph.source,
    }, arrays


def finite_weights(graph: Graph) -> None:
    """Raise `ModelError` naming the layer if any stored weight is NaN or infinite, or a `Constant` is not finite."""
    for node in graph.nodes:
        values: dict[str, object] = {"value": node.value} if isinstance(node, Constant) else node.parameters()
        for key, value in values.items():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
                bad = int(np.size(value) - np.isfinite(value).sum())
                raise ModelError(
                    f"expected finite weights, got {bad} NaN or infinite entries in {key} of layer {node.name!r} "
                    f"({node.kind}); repair or retrain the model before bounding it"
                )
