"""`Sort`: an activation that permutes (MaxMin, GroupSort)."""

from __future__ import annotations

from torch import Tensor

from lipscope.claims.norms import Norm
from lipscope.network.nodes import Sort
from lipscope.rules.affine import value
from lipscope.rules.questions import Interval, box_image, evaluate, gain


@evaluate.register
def _(node: Sort, *inputs: Tensor) -> Tensor:
    return inputs[0].sort(dim=node.axis + 1, descending=node.descending).values


@box_image.register
def _(node: Sort, *inputs: Interval) -> Interval:
    """Exact: the i-th smallest entry is increasing in every entry."""
    (box,) = inputs
    return Interval(value(node, box.lower), value(node, box.upper))


@gain.register
def _(node: Sort, norm: Norm, region: Interval | None) -> float:
    """1 in every norm: on each of finitely many cones it is a permutation."""
    return 1.0
