"""The value of a whole graph."""

from __future__ import annotations

from torch import Tensor

from lipscope.network.graph import Graph
from lipscope.rules.questions import evaluate


def evaluate_graph(graph: Graph, x: Tensor) -> Tensor:
    """The network's outputs, `(B, output size)`, at inputs `(B, *any shape of input size)`, in float64.

    Values are dropped after their last reader. Differentiable by autograd and `torch.func`.
    """
    values: dict[int, Tensor] = {0: x.reshape(x.shape[0], *graph.nodes[0].shape)}
    last_reader = [max(readers, default=-1) for readers in graph.readers]
    for index, node in enumerate(graph.nodes):
        if index:
            values[index] = evaluate(node, *(values[i] for i in node.inputs))
            if node.inputs == () or values[index].shape[0] != x.shape[0]:
                values[index] = values[index].expand(x.shape[0], *node.shape)
        for i in set(node.inputs):
            if last_reader[i] == index and i != graph.output:
                del values[i]
        if index == graph.output:
            break
    return values[graph.output].reshape(x.shape[0], -1)
