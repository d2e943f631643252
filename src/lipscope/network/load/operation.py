"""What `lipscope inspect` says of one operation of a source model."""

from __future__ import annotations

from dataclasses import dataclass

from lipscope.network.nodes import Shape


@dataclass(frozen=True)
class Operation:
    """One operation of a source model, in its order.

    Attributes:
        operator: its name in the source format.
        layer: the layer of the user's model.
        shape: shape of its first output, batch axis included, or None if it is not known.
        status: `supported`; `folded`: a constant; `discontinuous`: it has jumps, there is no finite constant where they
            reach the output; `unsupported`: not understood.
        remark: the reason where it is unsupported, or what has to be known.
    """

    operator: str
    layer: str
    shape: Shape | None
    status: str
    remark: str = ""
