"""A model's graph with open places for its weights: exported once, filled with the weights of any later moment.

How places are found: a copy of the model gets weights that are all different, its k-th weight the k-th of a list of
numbers that nobody writes by hand. In the graph of that copy every weight can be told by its value, whatever was
transposed, sliced or joined on the way. An array of the graph is either all such numbers, then it is filled, or has none
of them, then it stays. That the filled graph computes what the model computes is checked at the weights at hand when the
template is made, as `lipscope.load` does it, and again, on data, by whoever fills it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lipscope.claims.errors import ModelError
from lipscope.network.graph import Graph, finite_weights
from lipscope.network.load.agreement import check_agreement
from lipscope.network.load.patterns import recognise
from lipscope.network.load.torch_export import from_module
from lipscope.network.load.torch_module import double_copy
from lipscope.network.nodes import Node
from lipscope.rules.graph_value import evaluate_graph

FIRST = int(np.float32(0.1234567).view(np.int32))
"""Bits of the first number: positive single precision numbers in order of size from here on, some 8e7 up to 100."""

LAST = int(np.float32(100.0).view(np.int32))

DISAGREEMENT = 1e-3
"""How far, relative to the largest output, a filled graph may be from a model in single precision or better."""


class Template:
    """The graph of a model, for weights that are still to come.

    Args:
        model: in eval mode; it is copied.
        input_shape: of one example.

    Raises:
        ModelError: the model cannot be traced, or its graph holds numbers that were computed from weights, so that they
            cannot be filled in later.
        UnsupportedError: some operations are not understood; all of them are listed.
    """

    def __init__(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        twin = double_copy(model)
        source = from_module(twin, tuple(input_shape))
        marked = double_copy(model)
        tensors = _weights(marked)
        if FIRST + sum(t.numel() for t in tensors) > LAST:
            raise ModelError(f"expected at most {LAST - FIRST} weights, got more; no graph with open places is made")
        start = FIRST
        for tensor in tensors:
            numbers = np.arange(start, start + tensor.numel(), dtype=np.int32).view(np.float32)
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(numbers).double().reshape(tensor.shape))
            start += tensor.numel()
        self._count = start - FIRST
        self._graph = recognise(from_module(marked, tuple(input_shape)).graph)
        self._places = [_places(node, self._count) for node in self._graph.nodes]
        if not any(self._places) and self._count:
            raise ModelError("expected a graph that shows the model's weights, got one that holds none of them")
        check_agreement(source, self.filled(twin))

    def filled(self, model: nn.Module) -> Graph:
        """The graph with the weights of `model`, a float64 copy as `double_copy` makes it.

        Raises:
            ModelError: the model has other weights than the template's, or some that are not finite.
        """
        flat = np.concatenate([np.zeros(0), *(t.detach().numpy().reshape(-1) for t in _weights(model))])
        if flat.size != self._count:
            raise ModelError(f"expected a model with {self._count} weights, got {flat.size}: its layers were changed")
        nodes = [
            dataclasses.replace(node, **_taken(flat, places)) if places else node
            for node, places in zip(self._graph.nodes, self._places, strict=True)
        ]
        graph = dataclasses.replace(self._graph, nodes=tuple(nodes))
        finite_weights(graph)
        return graph


def _taken(flat: NDArray[np.float64], places: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
    return {name: flat[place] for name, place in places.items()}


def disagreement(graph: Graph, model: nn.Module, inputs: Tensor) -> float:
    """The largest difference of the outputs of graph and model (a float64 copy), relative to the largest output."""
    with torch.no_grad():
        expected = model(inputs.double().cpu()).reshape(len(inputs), -1)
        found = evaluate_graph(graph, inputs.double().cpu())
        difference = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    return float(torch.nan_to_num(difference, nan=float("inf")))


def _weights(model: nn.Module) -> list[Tensor]:
    """Every real parameter and buffer, each once."""
    return [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]


def _places(node: Node, count: int) -> dict[str, NDArray[np.int64]]:
    """For each array of the node that holds weights: which weight each entry is.

    Raises:
        ModelError: an array holds weights and other numbers.
    """
    found: dict[str, NDArray[np.int64]] = {}
    for name, value in node.parameters().items():
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.size == 0:
            continue
        single = value.astype(np.float32)
        index = single.view(np.int32).astype(np.int64) - FIRST
        mine = (single.astype(np.float64) == value) & (index >= 0) & (index < count)
        if mine.all():
            found[name] = index
        elif mine.any():
            raise ModelError(
                f"expected weights as they are stored at layer {node.name!r} ({node.kind}), got an array {name!r} in which some "
                "are computed; upper bounds need the model to be loaded anew"
            )
    return found
