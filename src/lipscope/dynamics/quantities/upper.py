"""Proved upper bounds of the whole network at rare moments, and the radii that they certify on the probe."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from lipscope.bounds.auto import best, candidates
from lipscope.bounds.method import Effort
from lipscope.bounds.problem import pose, propagate
from lipscope.claims.claim import Claim
from lipscope.claims.errors import LipscopeError
from lipscope.claims.quantity import Reading
from lipscope.claims.rounding import down, product_up, quotient_down, sqrt_up
from lipscope.dynamics.quantities.scene import Scene
from lipscope.network.graph import Graph
from lipscope.network.nodes import Elementwise
from lipscope.rules.questions import Interval

SECONDS = 3.0
"""For the search of a bound; it always ends with one if there is a finite one."""

SMALL = 400
"""Activations up to which the semidefinite bound is worth its time at a step of training."""

POINTS = 16
"""Of the probe, so many points get a certified radius."""


class Upper:
    """`upper`: a proved upper bound of the network's l2 Lipschitz constant, for the weights of this moment.

    `inf` where nothing finite can be proved, with the operation that stands in the way; `nan` where the model cannot be
    turned into a graph, with the reason.
    """

    name = "upper"

    def __init__(self) -> None:
        self.latest: tuple[int, float] | None = None

    def read(self, scene: Scene) -> Iterable[Reading]:
        """The best bound and its layers' enclosures."""
        self.latest = None
        subject = scene.subject
        try:
            graph = subject.graph(scene.step)
        except LipscopeError as error:
            reason = subject.missing or str(error).splitlines()[0]
            yield Reading("upper", math.inf if subject.unknown else math.nan, "computed", note=reason)
            return
        hidden = sum(node.size for node in graph.nodes if isinstance(node, Elementwise))
        effort = Effort(deadline=time.monotonic() + SECONDS, tolerance=1e-2)
        found = list(candidates(pose(graph, Claim()), effort, "auto" if hidden <= SMALL else "product"))
        winner = best(found)
        if winner is None or winner.value is None:
            blocked = next((c.note for c in found if c.note), "no method has a finite bound")
            note = blocked.replace("give a box region", "lipscope bound takes a box region")
            yield Reading("upper", math.inf, "computed", note=note)
            return
        self.latest = scene.step, winner.value
        chance = f", proved with probability 1 - {winner.failure:g}" if winner.failure else ""
        yield Reading(
            "upper", winner.value, "computed", note=f"{winner.method}, everywhere, eval mode, float64{chance}"
        )
        product = next((c for c in found if c.method == "product" and c.value is not None), winner)
        if product.value is not None and product is not winner:
            yield Reading("upper_product", product.value, "computed", note="product, everywhere, eval mode, float64")
        for row in product.layers:
            yield Reading("layer_upper", row.upper, "computed", row.name, note=f"{row.kind}, eval mode, float64")
            if row.lower is not None:
                yield Reading("layer_lower", row.lower, "computed", row.name, note=f"{row.kind}, eval mode, float64")


class CertifiedRadii:
    """How far an input may move without changing the class, proved by `Upper`'s bound K: margin / (sqrt(2) K).

    The difference of two outputs has the constant `sqrt(2) K` at most; margins are enclosed by interval arithmetic.
    `certified_share` is the share of points that are right with a radius above 0.
    """

    name = "radii"

    def __init__(self, upper: Upper) -> None:
        self._upper = upper

    def read(self, scene: Scene) -> Iterable[Reading]:
        """Quantiles over the probe; points that are not right have radius 0."""
        targets = scene.targets
        if self._upper.latest is None or self._upper.latest[0] != scene.step or targets is None:
            return
        graph = scene.subject.graph(scene.step)
        classes = graph.output_size
        if targets.ndim != 1 or targets.is_floating_point() or classes < 2 or int(targets.max()) >= classes:
            return
        steepness = product_up(sqrt_up(2.0), self._upper.latest[1])
        radii = [
            certified_radius(graph, x, int(y), steepness)
            for x, y in zip(scene.inputs[:POINTS], targets[:POINTS], strict=True)
        ]
        count, note = len(radii), scene.about(len(radii), "float64", "l2 radii in units of the model's input")
        # Quantiles are taken from below, so that the values are radii of real points.
        for name, share in (("certified_radius_p10", 0.1), ("certified_radius_p50", 0.5)):
            value = float(np.quantile(radii, share, method="lower"))
            yield Reading(name, value, "computed", samples=count, note=note)
        yield Reading("certified_share", sum(r > 0 for r in radii) / count, "computed", samples=count, note=note)


def certified_radius(graph: Graph, x: Tensor, label: int, steepness: float) -> float:
    """A radius in which the class of `x` is proved to stay `label`; 0 if nothing is proved.

    Args:
        graph: with one output a class.
        x: one example.
        label: its class.
        steepness: upper bound, > 0, of the constant of the difference of any two outputs.
    """
    point = x.detach().cpu().double().reshape(graph.nodes[0].shape)
    with torch.no_grad():
        image = propagate(graph, Interval(point, point), [graph.output])[graph.output]
    low, high = image.lower.flatten(), image.upper.flatten()
    others = torch.cat([high[:label], high[label + 1 :]])
    margin = float(down(low[label] - others.max()))
    if not margin > 0:
        return 0.0
    return math.inf if steepness == 0 else quotient_down(margin, steepness)
