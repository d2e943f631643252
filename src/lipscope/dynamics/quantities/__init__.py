"""What the observer reads, by groups: one file each, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from lipscope.claims.errors import ModelError
from lipscope.dynamics.factors import list_factors
from lipscope.dynamics.quantities.batch_noise import BatchNoise
from lipscope.dynamics.quantities.identity_terms import IdentityTerms
from lipscope.dynamics.quantities.layer_norms import LayerNorms, NormProofs, NormRenewals
from lipscope.dynamics.quantities.noise_levels import NoiseLevels
from lipscope.dynamics.quantities.probe import Margins, PairMidpoints, ProbeLipschitz
from lipscope.dynamics.quantities.scene import Subject, Watch
from lipscope.dynamics.quantities.spectrum import FeatureDimension, JacobianSpectrum
from lipscope.dynamics.quantities.upper import CertifiedRadii, Upper
from lipscope.dynamics.quantities.weights import WeightNorms

if TYPE_CHECKING:
    from lipscope.dynamics.track import IdentityTracker


@dataclass(eq=False)
class Parts:
    """What quantities are made of; those that build on others find them here."""

    subject: Subject
    targets: Tensor | None
    loss: Callable[[Tensor, Tensor], Tensor] | None
    noise_data: tuple[Tensor, Tensor | None]
    tracker: IdentityTracker | None
    followed: LayerNorms = field(init=False)
    lipschitz: ProbeLipschitz = field(default_factory=ProbeLipschitz)
    upper: Upper = field(default_factory=Upper)

    def __post_init__(self) -> None:
        self.followed = self._follow()

    def _follow(self) -> LayerNorms:
        """Where the calls form no chain of factors (several outputs, calls that cannot be followed) no product is known."""
        try:
            factors = (
                self.tracker.factors if self.tracker else list_factors(self.subject.view.live, self.subject.inputs)
            )
        except ModelError as reason:
            return LayerNorms(self.subject.layers, unknown=str(reason))
        return LayerNorms(self.subject.layers, factors)


@dataclass(frozen=True)
class Row:
    """One quantity.

    Attributes:
        group: which account pays for it, see `lipscope.dynamics.budget`.
        tier: 0 every step, 1 often, 2 now and then, 3 rarely.
        cost: in words, in steps of training a small network.
        make: from the parts, or None where it cannot be asked.
    """

    group: str
    tier: int
    cost: str
    make: Callable[[Parts], Watch | None]


def _noise(parts: Parts) -> Watch | None:
    inputs, targets = parts.noise_data
    if targets is None or parts.loss is None or len(inputs) < 2 or parts.subject.joined:
        return None
    points = "probe points" if inputs is parts.subject.inputs else "points of reference="
    return NoiseLevels(inputs, targets, parts.loss, points)


def _by_inputs(make: Callable[[Parts], Watch]) -> Callable[[Parts], Watch | None]:
    """Only where the inputs are numbers that can be moved a little, each example by itself."""
    return lambda parts: make(parts) if parts.subject.inputs.is_floating_point() and not parts.subject.joined else None


TABLE: dict[str, Row] = {
    "weights": Row("step", 0, "passes over the weights", lambda p: WeightNorms(p.subject.view.live)),
    "layer-norms": Row("step", 0, "two products a layer", lambda p: p.followed),
    "identity": Row(
        "identity", 0, "a decomposition a layer", lambda p: None if p.tracker is None else IdentityTerms(p.tracker)
    ),
    "probe-lipschitz": Row("probe", 1, "a backward pass an output", _by_inputs(lambda p: p.lipschitz)),
    "margins": Row("probe", 1, "a forward pass", lambda p: Margins(p.lipschitz)),
    "noise": Row("noise", 2, "two passes", _noise),
    "batch-noise": Row(
        "noise", 2, "a projection a micro-batch", lambda p: None if p.tracker is None else BatchNoise(p.tracker.factors)
    ),
    "norm-proofs": Row("proof", 3, "a verified norm a layer", lambda p: NormProofs(p.followed, p.subject.layers)),
    "norm-renewals": Row("norms", 1, "a verified norm", lambda p: NormRenewals(p.followed, p.subject.layers)),
    "upper": Row("proof", 3, "a proved bound, seconds at most", lambda p: p.upper),
    "radii": Row("proof", 3, "an interval a probe point", lambda p: CertifiedRadii(p.upper)),
    "spectrum": Row("spectrum", 3, "Jacobians of every layer in float64", _by_inputs(lambda p: JacobianSpectrum())),
    "features": Row("spectrum", 3, "a forward pass a layer", lambda p: FeatureDimension()),
    "convex": Row("spectrum", 3, "a backward pass an output", _by_inputs(lambda p: PairMidpoints())),
}
"""Every quantity of the observer's own; within a group they are read in this order."""


def make_quantities(groups: Sequence[str], parts: Parts) -> dict[str, list[Watch]]:
    """The quantities of each group that can be asked."""
    made: dict[str, list[Watch]] = {group: [] for group in groups}
    for row in TABLE.values():
        if row.group in made:
            quantity = row.make(parts)
            if quantity is not None:
                made[row.group].append(quantity)
    return made
