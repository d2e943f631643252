"""Lower bounds: a pair of points and a proof that the network's outputs there are so far apart.

The search climbs on the norm of the Jacobian, evaluated at many points at once by power iteration with
forward- and reverse-mode derivatives. What it returns is not a derivative, though, but a difference quotient of two
float64 points: at a kink the derivative that automatic differentiation reports need not belong to any nearby point
(x - relu(x) + relu(-x) is 0, and yet it reports 1 at 0). The quotient is evaluated with all rounding accounted for.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp, vjp

from lipscope.bounds import balls
from lipscope.bounds.ascent import ascend
from lipscope.bounds.branch.points import SHAKEN, Evaluator
from lipscope.bounds.branch.skeleton import refusal, skeleton
from lipscope.bounds.lengths import LENGTH_DOWN, LENGTH_UP, vector_norm
from lipscope.bounds.method import Effort
from lipscope.bounds.problem import Problem, propagate
from lipscope.claims.norms import Norm
from lipscope.claims.regions import Ball, Region, Vector
from lipscope.claims.rounding import UNIT_ROUNDOFF, down, quotient_down
from lipscope.rules.graph_value import evaluate_graph
from lipscope.rules.questions import Interval

SEED = 20260101
"""Of the search's own generator: the search always begins alike; how far it gets depends on the time it has."""


FEW_OUTPUTS = 32
"""Up to this many outputs the whole Jacobian is cheaper than power iteration."""


PULLS = 200
"""Steps of gradient ascent at most."""

CLOSE = 1e-4
"""The relative gap to the upper bound at which a search is done, and by which a better point has to be better."""

MORE = 40
"""Other beginnings, in each of which nothing better is found, after which the search gives up (and twice as many as led to the best)."""

SMALL = 3000
"""Values in a network, at most, that is climbed over its kinks."""

SAMPLE, STEPS, CLIMBS = 32, 5, 3
"""A climb over kinks takes about so many times as long as gains of so many points, times the points of a step; some climbs are to fit into the time."""

WORTH = 1e-3
"""The share of a quotient that boxes may lose before the pair is evaluated in balls, which takes longer."""

PATIENCE = 10
"""How many times longer than the search the proof of its pair in balls may take."""

FLOAT_NOISE = 1e-9
"""The share of an output difference that float64 is believed to get wrong in a deep network. It steers the search only."""


@dataclass(frozen=True)
class Witness:
    """Two points of the region and a proved lower bound of their difference quotient.

    Attributes:
        x: flattened input, float64.
        y: flattened input, float64, different from x.
        value: `|f(x) - f(y)| >= value |x - y|` in exact arithmetic, as box arithmetic shows.
        seconds: what the search took.
        interrupted: whether the user stopped it.
    """

    x: Vector
    y: Vector
    value: float
    seconds: float
    interrupted: bool = False


def lower_bound(problem: Problem, effort: Effort, rounds: int = 40, again: float = 0.0) -> Witness | None:
    """The best pair that the search finds until about the effort's deadline; None if nothing above 0 is proved.

    At most half of the time goes to points with large Jacobians, half to pulling the best pairs apart by gradient ascent. The
    proof of the best pair comes after that: boxes take a moment, balls (for deep networks) up to a minute or two.
    Interrupted by the user, it returns the best pair so far, and raises KeyboardInterrupt where there is none.

    Args:
        problem: the claim.
        effort: until when; a pair that reaches `known` ends the search.
        rounds: steps from one set of beginnings.
        again: seconds for other beginnings, as long as the best upper bound is not reached.
    """
    began = time.monotonic()
    search, interrupted = _Search(problem, effort), False
    try:
        with torch.enable_grad():
            _look(search, effort, began + (effort.deadline - began) / 2, rounds, again)
    except KeyboardInterrupt:
        interrupted = True
        effort.progress("lower bound: stopped, keeping the best pair", 1.0)
    pair = search.best_pair()
    try:
        pair = search.proved_in_balls(pair)
    except KeyboardInterrupt:
        interrupted = True
    if pair is None and interrupted:
        raise KeyboardInterrupt
    if pair is None:
        return None
    x, y, value = pair
    return Witness(x, y, value, time.monotonic() - began, interrupted)


def _look(search: _Search, effort: Effort, half: float, rounds: int, again: float) -> None:
    points, scores, directions = search.climbed(search.starts(), rounds, half)
    _begin_again(search, effort, min(half, time.monotonic() + again), rounds, float(scores.max()))
    if not effort.expired:
        search.pull_apart(points, directions)


def _begin_again(search: _Search, effort: Effort, until: float, rounds: int, best: float) -> None:
    """Other beginnings, until they lead nowhere for a while; the best points of all are among the search's pairs.

    Piecewise linear networks that are small enough are climbed over their kinks, one at a time: there, random steps
    end sooner, and lower.
    """
    kinks, last, top = _kinks(search.problem, until) if time.monotonic() < until else None, 0, None
    for done in itertools.count(1):
        if best * (1 + CLOSE) >= effort.known or time.monotonic() >= until or done > MORE + 2 * last:
            return
        effort.progress("lower bound: from other beginnings", min(1.0, done / (MORE + 2 * last)))
        points = search.starts()[len(search.problem.data[: search.batch]) :]
        if top is not None and done % 2:
            points = search.around(top, len(points))
        if kinks is None:
            reached = float(search.climbed(points, rounds, until)[1].max())
        else:
            x = points.T.numpy()
            found = torch.from_numpy(kinks.climb(x[:, int(np.argmax(kinks.gains(x)))], until))[None]
            norms, directions = search.climb(search.inside(found))
            reached = float(norms.max())
            if reached > best:
                search.try_pairs(found, directions)
                top = found
        if reached > best * (1 + CLOSE):
            best, last = reached, done


def _kinks(problem: Problem, until: float) -> Evaluator | None:
    """What climbs over kinks, for networks that it can be made for in a moment, and if some climbs fit into the time."""
    if sum(node.size for node in problem.graph.nodes) > SMALL or refusal(problem) is not None:
        return None
    made = skeleton(problem)
    if len(made.domain.free) < problem.graph.input_size:
        return None
    evaluator, began = Evaluator(made, problem.norm), time.monotonic()
    evaluator.gains(np.zeros((made.inputs, SAMPLE)))
    tried = 2 * len(made.pieces_of_unit) + SHAKEN
    climb = STEPS * tried * (time.monotonic() - began)
    return evaluator if CLIMBS * climb < until - began else None


def quotient(problem: Problem, x: Vector, y: Vector) -> float:
    """A number that `|f(x) - f(y)| / |x - y|` is not below, proved with outward-rounded boxes; 0 if nothing is proved."""
    with np.errstate(over="ignore"):
        gap = [abs(v) for v in _difference_up(x, y)]
    apart = LENGTH_UP[problem.norm](gap)
    if apart == 0 or not math.isfinite(apart):
        return 0.0
    a, b = (_point_image(problem, p) for p in (x, y))
    smallest = torch.maximum(down(a.lower - b.upper), down(b.lower - a.upper)).clamp_min(0).flatten()
    if not bool(smallest.isfinite().all()):
        return 0.0
    entries = smallest.tolist()
    reached = LENGTH_DOWN[problem.norm](entries)
    # The checker's own sums over inputs and outputs may lose a little more than these.
    spare = 1 - (8 * (len(gap) + len(entries)) + 32) * UNIT_ROUNDOFF
    return quotient_down(reached, apart) * spare


def inside(region: Region, norm: Norm, points: Tensor) -> Tensor:
    """The points (B, n) moved into the region: clamped to a box, scaled towards the centre of a ball of the norm."""
    box = region.box()
    if box is not None:
        points = points.clamp(torch.from_numpy(box.lower), torch.from_numpy(box.upper))
    if isinstance(region, Ball):
        center = torch.from_numpy(region.center)
        offset = points - center
        length = vector_norm(offset, norm).clamp_min(1e-300)
        # A hair inside, so that rounding cannot put the point outside.
        points = center + offset * (region.radius * (1 - 1e-9) / length).clamp_max(1.0)[:, None]
    return points


def _difference_up(x: Vector, y: Vector) -> list[float]:
    return [float(v) for v in np.nextafter(np.abs(x - y), np.inf) * (x != y)]


def _point_image(problem: Problem, x: Vector) -> Interval:
    point = torch.from_numpy(x).reshape(problem.graph.nodes[0].shape)
    with torch.no_grad():
        return propagate(problem.graph, Interval(point, point), [problem.graph.output])[problem.graph.output]


class _Search:
    """Points with large Jacobians, found by random starts and coordinate perturbations, and the best proved pair."""

    def __init__(self, problem: Problem, effort: Effort) -> None:
        self.problem = problem
        self.effort = effort
        self.size = problem.graph.input_size
        self.generator = torch.Generator().manual_seed(SEED)
        box = problem.claim.region.box()
        self.low = None if box is None else torch.from_numpy(box.lower)
        self.high = None if box is None else torch.from_numpy(box.upper)
        self.batch = self._affordable()
        self.noise: float | None = None
        allowed = PATIENCE * max(effort.deadline - time.monotonic(), 0.0)
        self.finer = balls.affordable(problem.graph) and balls.seconds(problem.graph) <= allowed
        self.pairs: list[tuple[float, Vector, Vector]] = []

    def _affordable(self) -> int:
        """How many points are looked at together: few enough for memory, and for a round to take a tenth of the time."""
        work = sum(node.size for node in self.problem.graph.nodes)
        most = int(min(64, max(2, 4_000_000 // max(work, 1))))
        one = torch.zeros((1, self.size), dtype=torch.float64)
        evaluate_graph(self.problem.graph, one)  # the first call pays for what is loaded and compiled
        began = time.monotonic()
        evaluate_graph(self.problem.graph, one)
        # A Jacobian costs about three values an output, or six products with it.
        passes = 3 * min(self.problem.graph.output_size, FEW_OUTPUTS) + 6
        seconds = max(time.monotonic() - began, 1e-6) * passes
        share = max(self.effort.deadline - began, 0.1) / 10
        return max(1, min(most, int(share / seconds))) if math.isfinite(share) else most

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def inside(self, points: Tensor) -> Tensor:
        """The points moved into the region."""
        return inside(self.problem.claim.region, self.problem.norm, points)

    def starts(self) -> Tensor:
        """Random points at many scales, the given data, and corners and centre of the region."""
        count = max(self.batch // 2, 1)
        points = [self.problem.data[: self.batch]]
        if self.low is None or self.high is None:
            scale = 10.0 ** (3 * self._uniform(count, 1) - 1)
            zero = torch.zeros((1, self.size), dtype=torch.float64)
            # Images and features are often scaled to [0, 1].
            points += [scale * self._random(count, self.size), self._uniform(max(count // 2, 1), self.size), zero]
        else:
            width = self.high - self.low
            points += [
                self.low + width * self._uniform(count, self.size),
                self.low + width * (self._uniform(count, self.size) < 0.5),
                (self.low + width / 2)[None],
            ]
        return self.inside(torch.cat(points))

    def around(self, point: Tensor, count: int) -> Tensor:
        """Points around one (1, n), nearer and farther."""
        scale = point.abs().max() * 10.0 ** (2 * self._uniform(count, 1) - 1.5)
        return self.inside(point + scale * self._random(count, self.size))

    def climb(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Norms of the Jacobians at the points and the directions that nearly attain them, (B,) and (B, n).

        Points that are not reached in time have norm 0.
        """
        norms, directions = torch.zeros(len(points), dtype=torch.float64), _unit(self._random(*points.shape), "l2")
        for number, chunk in enumerate(torch.split(torch.arange(len(points)), self.batch)):
            if number and self.effort.expired:
                break
            norms[chunk], directions[chunk] = self._jacobian_norms(points[chunk])
        return norms, directions

    def _jacobian_norms(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The whole Jacobian where the network has few outputs, power iteration where it has many."""
        few = self.problem.graph.output_size <= FEW_OUTPUTS
        norms, directions = (self._row_by_row if few else self._power_iteration)(points)
        return torch.nan_to_num(norms, nan=0.0, posinf=0.0), torch.nan_to_num(directions, nan=0.0)

    def _row_by_row(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Operator norms of the Jacobians (B, m, n) and unit vectors that attain them."""
        x = points.clone().requires_grad_()
        value = evaluate_graph(self.problem.graph, x)
        last = value.shape[1] - 1
        rows = [
            torch.autograd.grad(value[:, i].sum(), x, retain_graph=i < last)[0]
            if value.requires_grad else torch.zeros_like(points) for i in range(last + 1)
        ]  # fmt: skip
        jacobian = torch.nan_to_num(torch.stack(rows, 1), nan=0.0, posinf=0.0, neginf=0.0)
        if self.problem.norm == "linf":
            sums = jacobian.abs().sum(2)
            heaviest = sums.argmax(1)
            return sums.amax(1), _signs(jacobian[torch.arange(len(points)), heaviest])
        if self.problem.norm == "l1":
            return jacobian.abs().sum(1).amax(1), _peak(jacobian.abs().sum(1))
        # Rows are few: the top left singular vector comes from the small Gram matrix, J^T of it is the direction.
        # Scaled by a power of two, exactly, so that its squares stay within float64.
        size = jacobian.abs().amax((1, 2), keepdim=True).clamp_min(1e-300)
        scale = torch.exp2(torch.floor(torch.log2(size)))
        jacobian = jacobian / scale
        values, vectors = torch.linalg.eigh(jacobian @ jacobian.mT)
        back = (jacobian.mT @ vectors[:, :, -1:])[:, :, 0]
        moves = (back != 0).any(1)[:, None]
        return values[:, -1].clamp_min(0).sqrt() * scale[:, 0, 0], torch.where(
            moves, _unit(back, "l2"), _unit(self._random(*points.shape), "l2")
        )

    def _power_iteration(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Power iteration for the operator norm (Boyd's for l1 and linf: sign vectors and unit vectors alternate)."""

        def value(x: Tensor) -> Tensor:
            return evaluate_graph(self.problem.graph, x)

        norm = self.problem.norm
        direction = _unit(self._random(*points.shape), norm)
        out, pull = vjp(value, points)[:2]
        best = torch.zeros(len(points), dtype=torch.float64)
        kept = direction
        for _ in range(6 if norm == "l2" else 3):
            moved = _along(value, points, direction)
            length = torch.nan_to_num(vector_norm(moved, norm), nan=0.0, posinf=0.0)
            better = length > best
            best = torch.where(better, length, best)
            kept = torch.where(better[:, None], direction, kept)
            gradient = torch.nan_to_num(pull(_dual(moved, norm).reshape(out.shape))[0])
            direction = _maximiser(gradient, norm, self._random(*points.shape))
        return best, kept

    def climbed(self, points: Tensor, rounds: int, until: float) -> tuple[Tensor, Tensor, Tensor]:
        """Where some rounds lead from the points: others, the norms of their Jacobians, and the directions."""
        scores, directions = self.climb(points)
        for done in range(rounds):
            self.effort.progress("lower bound: climbing", done / rounds)
            points, scores, directions = self.round(points, scores, directions)
            if time.monotonic() >= until:
                break
        return points, scores, directions

    def round(self, points: Tensor, scores: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One round: the best points stay, random subsets of their coordinates are moved, better ones are kept."""
        order = scores.argsort(descending=True)[: min(4, len(scores))]
        points, scores, directions = points[order], scores[order], directions[order]
        self.try_pairs(points[:1], directions[:1])
        copies = max(self.batch // len(points), 1)
        seeds = points.repeat_interleave(copies, 0)
        scale = 10.0 ** (2.5 * self._uniform(len(seeds), 1) - 2)
        if self.low is not None and self.high is not None:
            scale = scale * (self.high - self.low).mean() / 2
        chosen = self._uniform(*seeds.shape) < self._uniform(len(seeds), 1)
        fresh = self.inside(seeds + scale * chosen * self._random(*seeds.shape))
        fresh_scores, fresh_directions = self.climb(fresh)
        everything = (
            torch.cat([points, fresh]),
            torch.cat([scores, fresh_scores]),
            torch.cat([directions, fresh_directions]),
        )
        order = everything[1].argsort(descending=True)[: self.batch]
        return everything[0][order], everything[1][order], everything[2][order]

    def try_pairs(self, points: Tensor, directions: Tensor) -> None:
        """Quotients of `x +- t v` for many lengths t; those that promise most after rounding are kept for the proof."""
        for x, v in zip(points, directions, strict=True):
            lengths = _lengths(float(x.abs().max()))
            a, b = self.inside(x + lengths[:, None] * v), self.inside(x - lengths[:, None] * v)
            with torch.no_grad():
                ends = [
                    torch.cat([evaluate_graph(self.problem.graph, chunk) for chunk in torch.split(side, self.batch)])
                    for side in (a, b)
                ]
            run = vector_norm(a - b, self.problem.norm)
            # A short pair loses to rounding what it gains in slope.
            lost: float | Tensor = self._lost(x)
            if self.finer:
                lost = (FLOAT_NOISE * vector_norm(ends[0], self.problem.norm)).clamp_max(lost)
            rise = vector_norm(ends[0] - ends[1], self.problem.norm) - lost
            slope = torch.where(run > 0, rise / run.clamp_min(1e-300), 0.0)
            for i in torch.nan_to_num(slope, posinf=0.0).argsort(descending=True)[:5].tolist():
                self.pairs.append((float(slope[i]), a[i].numpy(), b[i].numpy()))

    def _lost(self, x: Tensor) -> float:
        """About how much of an output difference the proof loses: the width of a point's image, found once."""
        if self.noise is None:
            image = _point_image(self.problem, x.detach().numpy())
            width = vector_norm((image.upper - image.lower).reshape(1, -1), self.problem.norm)
            self.noise = float(torch.nan_to_num(2 * width, nan=0.0, posinf=0.0))
        return self.noise

    def pull_apart(self, points: Tensor, directions: Tensor) -> None:
        """Pairs around the points at several distances, pulled apart, and the points with large Jacobians among their ends."""
        count = min(len(points), max(2, self.batch // 4))
        width = float((self.high - self.low).mean()) if self.low is not None and self.high is not None else 1.0
        spread = width * 10.0 ** torch.linspace(-2, 0, count, dtype=torch.float64)[:, None] * directions[:count]
        found = ascend(
            self.problem.graph, self.problem.norm, points[:count] + spread, points[:count] - spread, self.inside, self.effort,
            PULLS,
        )  # fmt: skip
        best = found.value.argsort(descending=True)
        for i in best[:6].tolist():
            self.pairs.append((float(found.value[i]), found.x[i].numpy(), found.y[i].numpy()))
        x, y = found.x[best[:3]], found.y[best[:3]]
        self.try_pairs(self.inside((x + y) / 2), _unit(x - y, self.problem.norm))
        ends = self.inside(torch.cat([x, y, (x + y) / 2]))
        norms, along = self.climb(ends)
        top = norms.argsort(descending=True)[:3]
        self.try_pairs(ends[top], along[top])

    def best_pair(self) -> tuple[Vector, Vector, float] | None:
        """The pair with the largest proved quotient among the twelve with the largest computed ones."""
        self.pairs.sort(key=lambda pair: -pair[0])
        proved: tuple[Vector, Vector, float] | None = None
        for computed, x, y in self.pairs[:12]:
            if proved is not None and (computed <= proved[2] * (1 + 1e-12) or self.effort.expired):
                break
            value = quotient(self.problem, x, y)
            if value > (0.0 if proved is None else proved[2]):
                proved = x, y, value
        return proved

    def proved_in_balls(self, proved: tuple[Vector, Vector, float] | None) -> tuple[Vector, Vector, float] | None:
        """The best computed pair proved in ball arithmetic, where boxes lose much of it; otherwise what they proved."""
        self.pairs.sort(key=lambda pair: -pair[0])
        reached = 0.0 if proved is None else proved[2]
        if not self.finer or not self.pairs or not self.pairs[0][0] * (1 - WORTH) > reached:
            return proved
        self.effort.progress("lower bound: proving the pair in ball arithmetic", 0.0)
        _, x, y = self.pairs[0]
        value = balls.quotient(self.problem.graph, self.problem.norm, x, y)
        return (x, y, value) if value > reached else proved


def _lengths(size: float) -> Tensor:
    """Half decades from far below 1 and the size of a point to above both: small weights or biases make cells of all sizes."""
    away = math.log10(min(max(size, 1e-12), 1e12)) if size > 0 else 0.0
    low, high = -8 + min(away, 0.0), 2 + max(away, 0.0)
    return torch.logspace(low, high, round(2 * (high - low)) + 1, dtype=torch.float64)


def _along(value: Callable[[Tensor], Tensor], points: Tensor, direction: Tensor) -> Tensor:
    """The derivatives of `value` at the points along the directions."""
    with warnings.catch_warnings():  # torch's first forward-mode derivative uses what torch itself has deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        moved: Tensor = jvp(value, (points,), (direction,))[1]
    return moved


def _unit(vectors: Tensor, norm: Norm) -> Tensor:
    return vectors / vector_norm(vectors, norm).clamp_min(1e-300)[:, None]


def _dual(vectors: Tensor, norm: Norm) -> Tensor:
    """For each row y a vector z with dual norm 1 and `<z, y> = |y|`."""
    if norm == "l2":
        return _unit(vectors, "l2")
    return _signs(vectors) if norm == "l1" else _peak(vectors)


def _maximiser(gradients: Tensor, norm: Norm, fallback: Tensor) -> Tensor:
    """For each row g the unit vector v with the largest `<g, v>`; a random one where g is 0."""
    chosen = _unit(gradients, "l2") if norm == "l2" else (_peak(gradients) if norm == "l1" else _signs(gradients))
    return torch.where((gradients != 0).any(1)[:, None], chosen, _unit(fallback, norm))


def _signs(vectors: Tensor) -> Tensor:
    return torch.where(vectors >= 0, 1.0, -1.0).to(torch.float64)


def _peak(vectors: Tensor) -> Tensor:
    """The unit vector (with sign) at each row's largest entry."""
    at = vectors.abs().argmax(1, keepdim=True)
    return torch.zeros_like(vectors).scatter(1, at, _signs(vectors.gather(1, at)))
