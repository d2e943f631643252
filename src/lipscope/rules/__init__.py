"""What is known of each kind of node, one file per family, as answers to the questions in `lipscope.rules.questions`.

Importing this package registers every rule.
"""

from __future__ import annotations

from lipscope.rules import (
    affine,
    convolution,
    dense,
    discontinuous,
    elementwise,
    joins,
    normalization,
    pooling,
    rearrangement,
    reductions,
    scaling,
    sorting,
    sources,
)
from lipscope.rules.questions import (
    Interval,
    NoRule,
    Roundings,
    absolute,
    box_image,
    evaluate,
    gain,
    join,
    linear_part,
    roundings,
    slopes,
)

FAMILIES = (
    affine, convolution, dense, discontinuous, elementwise, joins, normalization, pooling, rearrangement, reductions,
    scaling, sorting, sources,
)  # fmt: skip
"""The modules that hold the rules."""

__all__ = [
    "FAMILIES",
    "Interval",
    "NoRule",
    "Roundings",
    "absolute",
    "box_image",
    "evaluate",
    "gain",
    "join",
    "linear_part",
    "roundings",
    "slopes",
]
