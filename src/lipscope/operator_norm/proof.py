"""What a strategy returns."""

from __future__ import annotations

from dataclasses import dataclass

SLACK = 4
"""By how much every bound of a rounding error is enlarged.

The upper bound must be provable again by the independent checker, which sums in another order and has error terms of
its own of the same size: it accepts if its terms are at most so many times those derived here.
"""


@dataclass(frozen=True)
class Proof:
    """A proved upper bound.

    Attributes:
        upper: the bound; it holds with probability at least `1 - failure`.
        evidence: what an independent checker needs to prove it again (`docs/certificate.md`).
        failure: 0 for a deterministic proof.
    """

    upper: float
    evidence: dict[str, object]
    failure: float = 0.0
