"""The region of a claim: its box, and whether it holds a point, proved exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lipcheck.boxes import Box
from lipcheck.bundle import Bundle, finite_real, keys
from lipcheck.errors import Rejected
from lipcheck.rounding import Floats, downs, finite, ups


@dataclass(frozen=True)
class Region:
    """Where the claim holds.

    Attributes:
        kind: `everywhere`, `box` or `ball`.
        norm: the norm of the ball.
        box: a box that holds the region (None: everywhere).
        center, radius: of a ball.
    """

    kind: str
    norm: str
    box: Box | None = None
    center: Floats | None = None
    radius: float = 0.0

    def contains(self, x: Floats) -> bool:
        """Whether a vector of floats is in the region: exact, in rational arithmetic for a ball."""
        if self.kind == "everywhere":
            return True
        if self.kind == "box":
            return self.box is not None and bool(((self.box.lo <= x) & (x <= self.box.hi)).all())
        if self.center is None:
            return False
        points = _integers(np.concatenate([x, self.center, [self.radius]]))
        distances = [abs(a - b) for a, b in zip(points[: x.size], points[x.size : -1], strict=True)]
        radius = points[-1]
        if self.norm == "linf":
            return max(distances) <= radius
        if self.norm == "l1":
            return sum(distances) <= radius
        return sum(d * d for d in distances) <= radius * radius


def _integers(values: Floats) -> list[int]:
    """All values times one power of two, which makes them integers."""
    pairs = [math.frexp(float(v)) for v in values]
    lowest = min((e for m, e in pairs if m), default=0) - 53
    return [int(math.ldexp(m, 53)) << (e - 53 - lowest) if m else 0 for m, e in pairs]


def read_region(document: object, norm: str, size: int, bundle: Bundle) -> Region:
    """The region in `claim.json`.

    Raises:
        Rejected: it does not fit the specification.
    """
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind == "everywhere":
        keys(document, {"kind"}, "region")
        return Region("everywhere", norm)
    if kind == "box":
        stored = keys(document, {"kind", "lower", "upper"}, "region")
        lower = bundle.vector(stored["lower"], size, "the region's lower end")
        upper = bundle.vector(stored["upper"], size, "the region's upper end")
        if not (lower <= upper).all():
            raise Rejected("expected the region's lower end not above its upper end")
        return Region("box", norm, Box(lower, upper))
    if kind == "ball":
        stored = keys(document, {"kind", "center", "radius"}, "region")
        center = bundle.vector(stored["center"], size, "the region's center")
        radius = finite_real(stored["radius"], "radius")
        if radius < 0:
            raise Rejected(f"expected a radius >= 0, got {radius}")
        with np.errstate(all="ignore"):
            lower, upper = finite(downs(center - radius), "the ball"), finite(ups(center + radius), "the ball")
        return Region("ball", norm, Box(lower, upper), center, radius)
    raise Rejected(f"expected region everywhere, box or ball, got {kind!r:.60}")
