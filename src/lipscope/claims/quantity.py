"""What the training observer can watch: the protocol that lets other rooms offer quantities without knowing the observer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Certainty = Literal["certified", "computed", "estimate", "measured"]
"""How sure a logged value is.

`certified` and `computed` are proved bounds (the first also by the independent checker); `measured` is what it says up to
rounding (a norm of these weights, a loss on this probe); `estimate` is neither and is never called a bound.
"""


@dataclass(frozen=True)
class Reading:
    """One value of a quantity at one moment.

    Attributes:
        name: of the series, such as `lower` or `gain`.
        value: the number; inf and nan are kept as they are.
        certainty: how sure it is.
        layer: the layer it belongs to, empty for the network.
        samples: how many probe points it comes from, 0 if it comes from parameters alone.
        note: what a reader must know, such as the layer that has no finite constant.
    """

    name: str
    value: float
    certainty: Certainty
    layer: str = ""
    samples: int = 0
    note: str = ""


@dataclass(frozen=True)
class Moment:
    """What a quantity may look at: a model in eval mode whose weights nobody changes meanwhile, and a fixed probe.

    Attributes:
        step: optimizer steps done since the run began.
        model: a copy in eval mode; a quantity may call and differentiate it and must leave it as it is.
        inputs: the probe's inputs, (B, ...).
        targets: the probe's targets, or None.
        loss: of outputs and targets, or None.
        generator: for whatever a quantity draws; never the global one.
    """

    step: int
    model: nn.Module
    inputs: Tensor
    targets: Tensor | None
    loss: Callable[[Tensor, Tensor], Tensor] | None
    generator: torch.Generator


@runtime_checkable
class Quantity(Protocol):
    """Something to watch while a network trains."""

    name: str
    """Unique within a run."""

    def read(self, moment: Moment) -> Iterable[Reading]:
        """The readings of this moment."""
        ...
