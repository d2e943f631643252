"""What a user should look at, found in the readings as they come: data, not messages on a screen. Knows no torch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lipscope.claims.quantity import Reading

Readings = Sequence[tuple[str, Reading]]
Severity = Literal["info", "warning"]

TAKES_OVER = 3.0
"""A layer takes over if its norm has grown by this factor more than the median layer's, since the start."""

SLOPE_WINDOW = 6
"""Readings before and after a moment, of which the slopes of log `lower` against log step are compared."""

SLOPE_CHANGE = 0.5
"""A change of that slope by more than this, and by more than four standard errors, is an alert."""

RANK_SLACK = 0.5
"""So far below the rank that is needed a Jacobian's is an alert, which ends only where the rank is reached again: a mean over
the probe misses a whole number by a little at every look."""

FALL = 0.5
"""Margin per Lipschitz has fallen if it is below this share of its best value so far."""

CROSSING = 0.5
"""Above this ratio another singular vector may come on top within the step, and the identity is not valid for it."""

SETTLED = 20.0
"""Seconds of training after which the overhead is judged."""


@dataclass(frozen=True)
class Alert:
    """Something to look at.

    Attributes:
        kind: takes-over, slope-changed, margin-per-lipschitz, jacobian-rank, gap, over-budget, not-certifiable, not-finite.
        message: in words.
        severity: info or warning.
        layer: empty for the network.
        value: the number behind it.
    """

    kind: str
    message: str
    severity: Severity = "warning"
    layer: str = ""
    value: float | None = None

    def row(self) -> tuple[str, str, str, str, float | None]:
        """As the store keeps it: kind, severity, layer, message, value."""
        return self.kind, self.severity, self.layer, self.message, self.value


@dataclass
class Watchman:
    """Looks at every moment's readings. An alert is given when its condition begins to hold, not while it goes on.

    Attributes:
        needed_rank: of the Jacobian, for the task: the number of classes less one; None if that is not known.
        budget: share of the time of training that the observer may take.
    """

    needed_rank: int | None = None
    budget: float = math.inf
    _active: set[tuple[str, str]] = field(default_factory=set)
    _first_norms: dict[str, float] = field(default_factory=dict)
    _best_margin: float = -math.inf
    _lower: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=2 * SLOPE_WINDOW))

    def look(self, step: int, readings: Readings, seconds: float = 0.0) -> list[Alert]:
        """The new alerts of a moment; `seconds` of training have passed."""
        network = {(q, r.name): r for q, r in readings if not r.layer}
        found = [
            *self._takes_over(readings),
            *self._slope(step, network.get(("probe-lipschitz", "lower"))),
            *self._margin(network.get(("margins", "margin_per_lipschitz"))),
            *self._rank(network.get(("spectrum", "rank_1e-2"))),
            *self._gap(readings),
            *self._upper(network.get(("upper", "upper"))),
            *self._not_finite(network.get(("weights", "weight_norm"))),
        ]
        overhead = network.get(("observer", "overhead"))
        if overhead is not None and seconds >= SETTLED:
            over = overhead.value > 1.1 * self.budget
            text = f"observing has cost {overhead.value:.1%} of the time of training, {self.budget:.1%} were allowed"
            found += self._begins(over, Alert("over-budget", text, value=overhead.value))
        return found

    def _begins(self, holds: bool, alert: Alert) -> list[Alert]:
        key = alert.kind, alert.layer
        begins = holds and key not in self._active
        (self._active.add if holds else self._active.discard)(key)
        return [alert] if begins else []

    def _takes_over(self, readings: Readings) -> list[Alert]:
        norms = {r.layer: r.value for q, r in readings if q == "layer-norms" and r.name == "norm" and r.value > 0}
        for layer, norm in norms.items():
            self._first_norms.setdefault(layer, norm)
        growth = {layer: norm / self._first_norms[layer] for layer, norm in norms.items()}
        if len(growth) < 2:
            return []
        found = []
        for layer, grown in growth.items():
            others = float(np.median([g for other, g in growth.items() if other != layer]))
            text = f"the norm of {layer!r} is {grown:.3g} times what it was, that of the median other layer {others:.3g} times"
            found += self._begins(grown > TAKES_OVER * others, Alert("takes-over", text, layer=layer, value=grown))
        return found

    def _slope(self, step: int, lower: Reading | None) -> list[Alert]:
        if lower is None or step < 1 or not 0 < lower.value < math.inf:
            return []
        self._lower.append((math.log(step), math.log(lower.value)))
        if len(self._lower) < 2 * SLOPE_WINDOW:
            return []
        points = list(self._lower)
        (before, error), (after, other) = (_slope(part) for part in (points[:SLOPE_WINDOW], points[SLOPE_WINDOW:]))
        change = after - before
        sure = abs(change) > max(SLOPE_CHANGE, 4 * math.hypot(error, other))
        text = f"the Lipschitz value on the probe grew like step^{round(before, 2) + 0.0:.2f}, and now like step^{round(after, 2) + 0.0:.2f}"
        return self._begins(sure, Alert("slope-changed", text, "info", value=change))

    def _margin(self, margin: Reading | None) -> list[Alert]:
        if margin is None or math.isnan(margin.value):
            return []
        self._best_margin = max(self._best_margin, margin.value)
        fallen = self._best_margin > 0 and margin.value < FALL * self._best_margin
        text = f"the median margin per Lipschitz is {margin.value:.3g}, it has been {self._best_margin:.3g}"
        return self._begins(fallen, Alert("margin-per-lipschitz", text, value=margin.value))

    def _rank(self, rank: Reading | None) -> list[Alert]:
        if rank is None or self.needed_rank is None:
            return []
        text = f"the Jacobian has rank {rank.value:.1f} (to 1e-2) on the probe, {self.needed_rank} are needed to tell the classes"
        held = ("jacobian-rank", "") in self._active
        short = self.needed_rank - rank.value > (0 if held else RANK_SLACK)
        return self._begins(short, Alert("jacobian-rank", text, value=rank.value))

    def _gap(self, readings: Readings) -> list[Alert]:
        found = []
        for quantity, r in readings:
            if quantity == "identity" and r.name == "q_ratio":
                text = f"the step turns the top singular pair of {r.layer!r} too far (ratio {r.value:.2f}): its terms do not hold here"
                found += self._begins(r.value > CROSSING, Alert("gap", text, "info", r.layer, r.value))
        return found

    def _upper(self, upper: Reading | None) -> list[Alert]:
        if upper is None:
            return []
        text = f"no upper bound: {upper.note.removeprefix('no finite bound: ')}"
        return self._begins(not math.isfinite(upper.value), Alert("not-certifiable", text, value=upper.value))

    def _not_finite(self, norm: Reading | None) -> list[Alert]:
        if norm is None:
            return []
        text = "some weights are not finite: whatever is computed from them says nothing"
        return self._begins(not math.isfinite(norm.value), Alert("not-finite", text, value=norm.value))


def _slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The least-squares slope and its standard error."""
    x, y = np.array(points).T
    x, y = x - x.mean(), y - y.mean()
    spread = float((x * x).sum())
    if spread == 0:
        return 0.0, math.inf
    slope = float((x * y).sum()) / spread
    rest = y - slope * x
    return slope, math.sqrt(float((rest * rest).sum()) / max(len(x) - 2, 1) / spread)
