"""Functions that exporters write out in elementary operations, found again in a finished graph."""

from __future__ import annotations

from dataclasses import replace

from lipscope.network.graph import Graph
from lipscope.network.load.patterns import activations, extremes, normalization, selections
from lipscope.network.load.patterns.matcher import Matcher

__all__ = ["recognise"]

_RULES = (*activations.RULES, *normalization.RULES, *extremes.RULES, *selections.RULES)


def recognise(graph: Graph) -> Graph:
    """The same function with written-out activations, normalisations, norms, sorted pairs and selections without jumps as single nodes.

    The replacement is the same function of real numbers, except that a constant which is a float32 rounding of the
    function's own (1/sqrt(2) in GELU, 1/6 in hard-swish) is taken for it.
    """
    matcher = Matcher()
    number: list[int] = []
    for node in graph.nodes:
        matcher.lowering.layer = node.name
        index = matcher.lowering.add(replace(node, inputs=tuple(number[i] for i in node.inputs)))
        changed = True
        while changed:
            changed = False
            for rule in _RULES:
                found = rule(matcher, index)
                if found is not None and found.index != index:
                    index, changed = found.index, True
                    break
        number.append(index)
    return matcher.lowering.build(number[graph.output], graph.input_shapes, graph.output_shapes, graph.source)
