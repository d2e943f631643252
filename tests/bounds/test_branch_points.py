"""Points of cells: found where a linear program finds them, with room around them, and proofs where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flint import fmpq
from scipy.optimize import linprog

from bounds.test_branch import he, region
from harness.expect import expect_lower, expect_upper
from lipscope import load
from lipscope.bounds.branch.empty import Inequality, inequalities, solve, strictly
from lipscope.bounds.branch.exact import rational, rationals
from lipscope.bounds.branch.forms import forms_in
from lipscope.bounds.branch.implied import narrowed
from lipscope.bounds.branch.nearest import place
from lipscope.bounds.branch.points import Evaluator
from lipscope.bounds.branch.region import Domain, domain_of
from lipscope.bounds.branch.search import Search
from lipscope.bounds.branch.skeleton import Cell, skeleton
from lipscope.bounds.branch.steering import meeting
from lipscope.bounds.method import Effort
from lipscope.bounds.problem import pose
from lipscope.claims.claim import Claim
from lipscope.claims.regions import Ball, Box, Everywhere

SIZE = 4
DOMAINS = {
    "everywhere": domain_of(Everywhere(), SIZE, "l2"), "box": domain_of(Box(np.array([-1.0, 0.5, 2.0, -3.0]), np.array([1.0, 0.75, 4.0, 3.0])), SIZE, "l2"),
    "l1": domain_of(Ball(np.full(SIZE, 0.3), 2.0), SIZE, "l1"), "l2": domain_of(Ball(np.full(SIZE, -0.7), 1.5), SIZE, "l2"),
    "linf": domain_of(Ball(np.full(SIZE, 5.0), 0.01), SIZE, "linf"),
}  # fmt: skip


def room(domain: Domain, slopes: np.ndarray, offsets: np.ndarray) -> float:
    """The largest t for which a point of the domain is t away from all hyperplanes: a linear program, a Euclidean ball cut 400 times."""
    n = domain.size
    lengths = np.linalg.norm(slopes, axis=1)
    rows, sides = [np.hstack([-slopes / lengths[:, None], np.ones((len(slopes), 1))])], [offsets / lengths]
    center = domain.middle
    if domain.kind == "l1":
        signs = np.array(np.meshgrid(*[[-1, 1]] * n)).reshape(n, -1).T
        rows.append(np.hstack([signs, np.zeros((len(signs), 1))]))
        sides.append(signs @ center + float(domain.second[0]))
    limits = [(None, None)] * n if domain.kind in ("everywhere", "l1") else list(zip(*domain.ends, strict=True))
    goal = np.append(np.zeros(n), -1.0)
    for _ in range(400):
        found = linprog(goal, np.vstack(rows), np.concatenate(sides), bounds=[*limits, (None, 1.0)])
        away = found.x[:n] - center
        if domain.kind != "l2" or np.linalg.norm(away) <= float(domain.second[0]) * (1 + 1e-5):
            return float(found.x[n])
        normal = away / np.linalg.norm(away)
        rows.append(np.append(normal, 0.0)[None])
        sides.append(np.array([normal @ center + float(domain.second[0])]))
    raise AssertionError("the cuts do not converge")


@pytest.mark.parametrize("kind", DOMAINS)
def test_a_point_is_found_where_there_is_one_and_a_proof_where_there_is_none(kind: str) -> None:
    domain, seen = DOMAINS[kind], {True: 0, False: 0}
    scale = 1.0 if domain.kind == "everywhere" else float((domain.ends[1] - domain.ends[0]).mean())
    for seed in range(60):
        generator = np.random.default_rng(seed)
        count = int(generator.integers(1, 14))
        slopes = generator.standard_normal((count, SIZE)) * 10 ** generator.uniform(-3, 3, (count, 1))
        through = domain.middle + scale * generator.uniform(-0.7, 0.7, (count, SIZE))
        offsets = -np.einsum("ij,ij->i", slopes, through)
        rows = [
            Inequality((i, "above"), rationals(a.tolist()), rational(float(b)))
            for i, (a, b) in enumerate(zip(slopes, offsets, strict=True))
        ]
        answer, truth = solve(domain, rows), room(domain, slopes, offsets)
        if abs(truth) < 1e-4 * scale:
            continue
        seen[truth > 0] += 1
        if truth < 0:
            assert answer.proof is not None, seed
            whole = [sum((answer.proof.get((i, "above"), 0) * r.slope[k] for i, r in enumerate(rows)), fmpq(0)) for k in range(SIZE)]  # fmt: skip
            total = sum((answer.proof.get((i, "above"), 0) * r.offset for i, r in enumerate(rows)), fmpq(0))
            assert domain.nonpositive(whole, total), seed
        else:
            assert answer.proof is None, seed
            assert answer.point is not None, seed
            values = (slopes @ answer.point + offsets) / np.linalg.norm(slopes, axis=1)
            assert values.min() > 0, seed
            away = answer.point - domain.middle
            if kind != "everywhere":
                size = np.abs(away).sum() if kind == "l1" else np.linalg.norm(away)
                if kind in ("l1", "l2"):
                    expect_lower(float(size), float(domain.second[0]) * (1 + 1e-7))
                else:
                    assert (answer.point >= domain.ends[0] - 1e-7 * scale).all()
                    assert (answer.point <= domain.ends[1] + 1e-7 * scale).all()
    assert min(seen.values()) > 8, seen


@pytest.mark.parametrize("kind", DOMAINS)
def test_hyperplanes_that_leave_no_room_are_told_from_those_that_leave_some(kind: str) -> None:
    """a x > b and a x < b: empty, and not by a margin. Then with a slab of a thousandth between them."""
    domain = DOMAINS[kind]
    slope = np.array([1.0, -2.0, 0.25, 3.0])
    middle = float(slope @ domain.middle)
    for gap, empty in ((0.0, True), (-1e-3, True), (1e-3, False)):
        rows = [
            Inequality((0, "above"), rationals(slope.tolist()), rational(-middle)),
            Inequality((1, "below"), rationals((-slope).tolist()), rational(middle) + rational(gap)),
        ]
        answer = solve(domain, rows)
        assert (answer.proof is not None) == empty, (kind, gap)
        assert empty or answer.point is not None


def test_far_away_cells_are_not_called_empty() -> None:
    domain = DOMAINS["everywhere"]
    for distance in (1e3, 1e6, 1e9, 1e12):
        slopes = np.array([[1.0, 0, 0, 0], [1.0, 1e-3, 0, 0], [0, 1.0, 0, 0]])
        offsets = np.array([-distance, 1.0, -1.0])
        rows = [
            Inequality((i, "above"), rationals(a.tolist()), rational(float(b)))
            for i, (a, b) in enumerate(zip(slopes, offsets, strict=True))
        ]
        assert solve(domain, rows).proof is None
        found = place(domain, slopes, offsets)
        if found is not None and found.inner:
            assert found.point is not None
            assert (slopes @ found.point + offsets > 0).all()
        assert distance > 1e3 or (found is not None and found.inner)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_the_point_for_the_lower_bound_has_room_around_it(norm: str) -> None:
    """The best point lies a hair behind a kink; its cell is wider than that."""
    problem = pose(load(he((4, 8, 8, 2), 3), input_shape=(4,)).graph, Claim(norm, region("ball", 4, norm)[0]))
    search = Search(skeleton(problem), norm, Effort())
    evaluator = Evaluator(search.skeleton, norm)
    found = search.skeleton.domain.middle
    crossing = evaluator._crossings(found)
    near = [p for p in crossing.T if np.allclose(search.skeleton.domain.pulled(p[:, None])[:, 0], p)]
    near_a_kink = 0
    for p in near:
        search.reached, search.point = evaluator.gain(p), p
        points = search.points()
        assert points[-1] is p
        first = inequalities(forms_in(search.skeleton, evaluator.cell(p)))
        widths = []
        for x in (points[0], p):
            values = [
                float(sum((a * b for a, b in zip(r.slope, rationals(x.tolist()), strict=True)), r.offset))
                for r in first
            ]
            widths.append(
                min(v / np.linalg.norm([float(a) for a in r.slope]) for v, r in zip(values, first, strict=True))
            )
        if widths[1] < 1e-3:
            near_a_kink += 1
            expect_upper(widths[0], 2 * widths[1])
        torch.testing.assert_close(evaluator.gain(points[0]), search.reached, rtol=1e-9, atol=0)
    assert near_a_kink > 3


@pytest.mark.parametrize("kind", ["everywhere", "box", "ball"])
def test_what_is_taken_from_a_cell_is_empty_and_what_is_left_has_points_on_both_sides(kind: str) -> None:
    """Random cells of a network with many units in three dimensions, against linear programs for every threshold that is left."""
    problem = pose(load(he((3, 12, 4, 1), 5), input_shape=(3,)).graph, Claim("l2", region(kind, 3, "l2")[0]))
    made, taken, left = skeleton(problem), 0, 0
    for seed in range(12):
        generator = np.random.default_rng(seed)
        inside = made.domain.pulled(made.domain.middle[:, None] + generator.uniform(-1, 1, (3, 1)))
        pieces = Evaluator(made, "l2").cell(inside[:, 0])
        cell = made.root
        for unit in generator.permutation(12)[:6].tolist():
            if cell.low[unit] < cell.high[unit]:
                cell = cell.above(unit, 0) if pieces.low[unit] else cell.below(unit, 0)
        rest = narrowed(forms_in(made, cell), np.zeros((3, 0)))
        assert rest.answer.proof is None
        for void in rest.voids:
            rows = inequalities(forms_in(made, cell.above(void.unit, 0) if void.side == "above" else cell.below(void.unit, 0)))  # fmt: skip
            known = {row.key: row for row in rows}
            slope = [sum((w * known[key].slope[i] for key, w in void.proof.items()), fmpq(0)) for i in range(3)]
            assert made.domain.nonpositive(
                slope, sum((w * known[key].offset for key, w in void.proof.items()), fmpq(0))
            )
            assert (pieces.low[void.unit] == 1) == (void.side == "below")
            cell = cell.below(void.unit, 0) if void.side == "above" else cell.above(void.unit, 0)
            taken += 1
        assert rest.forms.cell == cell
        rows = inequalities(rest.forms)
        for unit in rest.forms.live:
            if rest.forms.plain(rest.forms.rows[unit]):
                for side in ("above", "below"):
                    own = [*rows, strictly(rest.forms, unit, side, fmpq(0))]
                    slopes = np.array([[float(a) for a in r.slope] for r in own])
                    assert room(made.domain, slopes, np.array([float(r.offset) for r in own])) > -1e-6, (seed, unit)
                    left += 1
        for point in rest.points.T:
            found = Evaluator(made, "l2").cell(point)
            assert all(a <= p <= b for a, p, b in zip(cell.low, found.low, cell.high, strict=True))
    assert taken > 5
    assert left > 10


def test_sides_of_units_with_several_thresholds_are_proved_by_one_inequality_each() -> None:
    """Clips: a cell may say `v < 0.7` while it is shown that `v < -0.5` is empty; the proof has to hold with the latter alone."""
    module = he((2, 10, 1), 7, lambda: torch.nn.Hardtanh(-0.5, 0.7))
    made, taken, cut = skeleton(pose(load(module, input_shape=(2,)).graph, Claim("l2"))), 0, 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        pieces, cell = Evaluator(made, "l2").cell(generator.standard_normal(2)), made.root
        for unit in range(10):
            if pieces.low[unit] < 2 and generator.random() < 0.6:
                cell = cell.below(unit, 1 if pieces.low[unit] == 1 else int(generator.integers(2)))
            elif pieces.low[unit] > 0 and generator.random() < 0.6:
                cell = cell.above(unit, 0 if pieces.low[unit] == 1 else int(generator.integers(2)))
        rest = narrowed(forms_in(made, cell), np.zeros((2, 0)))
        for void in rest.voids:
            empty, kept = cell.below(void.unit, void.threshold), cell.above(void.unit, void.threshold)
            if void.side == "above":
                empty, kept = kept, empty
            known = {row.key: row for row in inequalities(forms_in(made, empty))}
            slope = [sum((w * known[key].slope[i] for key, w in void.proof.items()), fmpq(0)) for i in range(2)]
            assert made.domain.nonpositive(
                slope, sum((w * known[key].offset for key, w in void.proof.items()), fmpq(0))
            )
            cut += (cell.low[void.unit], cell.high[void.unit]) != (0, 2)
            taken += 1
            cell = kept
        assert all(a <= p <= b for a, p, b in zip(cell.low, pieces.low, cell.high, strict=True)), seed
    assert taken > 40
    assert cut > 10


@pytest.mark.parametrize("kind", DOMAINS)
def test_a_pattern_is_met_where_its_inequalities_have_a_point(kind: str) -> None:
    """Steering in float64 agrees with the exact answer about the cells of points, and about cells without points."""
    where = {"everywhere": Everywhere(), "box": Box(np.full(3, -1.0), np.full(3, 1.0))}.get(
        kind, Ball(np.zeros(3), 1.0)
    )
    norm = kind if kind in ("l1", "l2", "linf") else "l2"
    made = skeleton(pose(load(he((3, 7, 6, 2)), input_shape=(3,)).graph, Claim(norm, where)))
    evaluator = Evaluator(made, norm)
    generator, met, none = np.random.default_rng(0), 0, 0
    for x in evaluator.domain.pulled(generator.standard_normal((3, 40)) * 0.5).T:
        cell = evaluator.cell(x)
        flipped = [
            1 - p if generator.random() < 0.3 and made.root.low[u] < made.root.high[u] else p
            for u, p in enumerate(cell.low)
        ]
        for pieces in (cell.low, tuple(flipped)):
            pattern = Cell(pieces, pieces)
            if any(not low <= p <= high for low, p, high in zip(made.root.low, pieces, made.root.high, strict=True)):
                continue
            exact = solve(made.domain, inequalities(forms_in(made, pattern)))
            found = meeting(evaluator, pattern, pattern)
            assert bool(found.conflict) == bool(exact.conflict)
            met, none = met + (not found.conflict), none + bool(found.conflict)
            if not found.conflict and exact.proof is None:
                assert evaluator.cell(found.point) == pattern
    assert met > 10, "the test needs patterns that are met"
    assert none > 10, "the test needs patterns that are not"
