"""What an importer hands over: the graph, and the source model to compare it with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lipscope.network.graph import Graph
from lipscope.network.nodes import Array


@dataclass(frozen=True)
class SourceModel:
    """A model as it was read, with its graph not yet compared.

    Attributes:
        graph: the graph that the importer built (patterns not yet recognised).
        run: the source model's own evaluation: arrays in the shapes of `run_shapes`, float64, to the list of its
            outputs, as float64.
        run_shapes: shape of each input as the source wants it, batch axis included.
        dtype: `float64` if the source computes in double precision (then agreement is asked to 1e-10), else `float32`.
        batches: whether `run` may be tried on more than one example at once, along the first axis.
    """

    graph: Graph
    run: Callable[[Sequence[Array]], list[Array]]
    run_shapes: tuple[tuple[int, ...], ...]
    dtype: str
    batches: bool = False
