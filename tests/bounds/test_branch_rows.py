"""Rows and columns of a cell's Jacobian by quadratic inequalities: against all vertices of the slopes, and against all cells."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from bounds.test_branch import he, region
from harness.cells import Abs, Where, enumerated, layers_of
from harness.expect import expect_close, expect_lower, expect_upper
from lipscope import bound, load
from lipscope.bounds.branch import rows, workers
from lipscope.bounds.branch.forms import Forms, forms_in
from lipscope.bounds.branch.leaf import entrywise_sums
from lipscope.bounds.branch.points import Evaluator
from lipscope.bounds.branch.rows import Rows, row_bounds
from lipscope.bounds.branch.search import Search, certificate
from lipscope.bounds.branch.skeleton import skeleton
from lipscope.bounds.method import Effort
from lipscope.bounds.problem import pose
from lipscope.bounds.quadratic.sum_search import Point
from lipscope.claims.claim import Claim
from lipscope.claims.regions import Ball, Box, Everywhere, Region


def silent(module: nn.Sequential, outputs: list[int], inputs: list[int]) -> nn.Sequential:
    """With some outputs constant and some inputs unread."""
    with torch.no_grad():
        module[-1].weight[outputs] = 0
        module[0].weight[:, inputs] = 0
    return module


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "relu": lambda: he((3, 4, 4, 2), 1), "three layers": lambda: he((2, 3, 3, 3, 2), 2), "scalar": lambda: he((4, 5, 4, 1), 3),
    "one input": lambda: he((1, 5, 4, 3), 4), "leaky": lambda: he((3, 4, 4, 2), 5, lambda: nn.LeakyReLU(0.2)),
    "steep": lambda: he((3, 4, 4, 2), 6, lambda: nn.LeakyReLU(2.5)), "falling": lambda: he((3, 4, 4, 2), 7, lambda: nn.LeakyReLU(-0.5)),
    "abs": lambda: he((2, 4, 4, 2), 8, Abs), "silent": lambda: silent(he((4, 4, 4, 3), 9), [1], [0, 2]),
}  # fmt: skip
NORMS = ("l1", "linf")


def vertices(module: nn.Sequential, norm: str) -> np.ndarray:
    """For every row (column) the largest sum of magnitudes over all vertices of the slopes: sums are convex in each slope."""
    layers = layers_of(module)
    sizes = [len(weight) for weight, _, _ in layers[:-1]]
    best = np.zeros(len(layers[-1][0]) if norm == "linf" else layers[0][0].shape[1])
    for choice in itertools.product((0, 1), repeat=sum(sizes)):
        jacobian, first = layers[0][0], 0
        for k, size in enumerate(sizes):
            slopes = np.array([layers[k][2][c] for c in choice[first : first + size]])
            jacobian, first = layers[k + 1][0] @ (slopes[:, None] * jacobian), first + size
        best = np.maximum(best, np.abs(jacobian).sum(1 if norm == "linf" else 0))
    return best


@functools.cache
def posed(name: str, norm: str) -> tuple[nn.Sequential, Forms]:
    module = NETWORKS[name]()
    made = skeleton(pose(load(module, input_shape=(module[0].in_features,)).graph, Claim(norm)))
    return module, forms_in(made, made.root)


def bounded(forms: Forms, norm: str, target: float = 0.0) -> Rows:
    return row_bounds(forms, norm, entrywise_sums(forms, norm), {}, target, float("inf"))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_row_is_above_all_vertices_of_its_slopes(name: str, norm: str) -> None:
    """One by one, so that every row gets the best bound; none is far above where one layer is open."""
    module, forms = posed(name, norm)
    exact, intervals = vertices(module, norm), entrywise_sums(forms, norm)
    assert len(intervals) == len(exact)
    for k, value in enumerate(exact.tolist()):
        expect_upper(intervals[k], value * (1 - 1e-13), f"interval of {k}")
        alone = [size if i == k else 0.0 for i, size in enumerate(intervals)]
        found = row_bounds(forms, norm, alone, {}, 0.0, float("inf"))
        expect_upper(found.bound, value * (1 - 1e-13), f"row {k}")
        if value == 0.0:
            assert not found.proofs
            continue
        expect_upper(found.proofs[k].bound, value * (1 - 1e-13), f"row {k}")
        expect_lower(found.proofs[k].bound, 1.5 * value, f"row {k}")
        assert found.stakes is not None
        assert ((found.stakes.shares >= 0) & (found.stakes.shares <= 1)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_one_open_unit_costs_next_to_nothing(norm: str) -> None:
    """All gates but one fixed: linf's q are proportional to magnitudes, l1's to those of outputs, and the bound is nearly the vertices'."""
    module, forms = posed("relu", norm)
    cell = forms.skeleton.root
    for unit in range(1, 8):
        cell = cell.above(unit, 0)
    weights = [w for w, _, _ in layers_of(module)]
    sums = []
    for gate in (0.0, 1.0):
        jacobian = weights[2] @ weights[1] @ (np.array([gate, 1.0, 1.0, 1.0])[:, None] * weights[0])
        sums.append(np.abs(jacobian).sum(1 if norm == "linf" else 0))
    exact = float(np.max(sums))
    found = bounded(forms_in(forms.skeleton, cell), norm)
    expect_upper(found.bound, exact * (1 - 1e-13))
    expect_lower(found.bound, exact * 1.25)
    done = forms_in(forms.skeleton, cell.above(0, 0))
    expect_close(bounded(done, norm).bound, float(sums[1].max()), 1e-14)
    assert not bounded(done, norm).live


@pytest.mark.parametrize("norm", NORMS)
def test_a_part_of_a_cell_begins_at_the_whole_and_is_no_worse(norm: str) -> None:
    _, forms = posed("steep", norm)
    whole = bounded(forms, norm)
    for unit, side in itertools.product(range(8), ("below", "above")):
        part = forms_in(forms.skeleton, getattr(forms.skeleton.root, side)(unit, 0))
        intervals = entrywise_sums(part, norm)
        found = row_bounds(part, norm, intervals, whole.proofs, 0.0, float("inf"))
        expect_lower(found.bound, whole.bound * (1 + 1e-5))
        kept = row_bounds(part, norm, intervals, whole.proofs, whole.bound * 1.001, 0.0)
        expect_lower(kept.bound, whole.bound * 1.001)


def test_what_is_not_needed_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    _, forms = posed("relu", "linf")
    intervals = entrywise_sums(forms, "linf")
    monkeypatch.setattr(rows, "search", None)
    assert row_bounds(forms, "linf", intervals, {}, max(intervals), float("inf")).bound == max(intervals)


@pytest.mark.parametrize("norm", NORMS)
def test_numbers_that_are_too_small_are_not_proved(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the search returns a little less than it found, or multipliers without one unit's; the intervals stand."""
    _, forms = posed("relu", norm)
    intervals, plain = entrywise_sums(forms, norm), rows.search
    assert bounded(forms, norm).bound < max(intervals)
    for change in (
        lambda q, p, v, _: Point(q * 0.99, p, v), lambda q, p, v, _: Point(q, p * 0.99, v), lambda q, p, v, _: Point(q, p, v * np.where(np.arange(len(v)) == 0, 1e-9, 1.0)),
        lambda q, p, v, _: Point(q, p, -v), lambda q, p, v, _: Point(q * np.nan, p, v),
    ):  # fmt: skip
        monkeypatch.setattr(rows, "search", lambda *a, change=change: [change(*point) for point in plain(*a)[-1:]])
        found = bounded(forms, norm)
        assert not found.proofs
        assert found.bound == max(intervals)


CASES = [("everywhere", (5, 6, 6, 2)), ("box", (4, 7, 7, 1)), ("ball", (4, 6, 6, 3))]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("kind", "dims"), CASES)
def test_networks_close_in_far_fewer_cells_than_intervals_need(
    kind: str, dims: tuple[int, ...], norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = pose(load(he(dims, 21), input_shape=(dims[0],)).graph, Claim(norm, region(kind, dims[0], norm)[0]))
    search = Search(skeleton(problem), norm, Effort(deadline=time.monotonic() + 60), 1)
    search.run()
    value, tree, _, _ = certificate(search.root)
    expect_lower(value, search.reached * (1 + 1e-3))
    assert any(entry[0] == "quadratic" for entry in tree)
    monkeypatch.setattr(rows, "MOST_SIZE", 0)
    seen: list[str] = []

    def stop(message: str, share: float) -> None:
        seen.append(message)
        if other.cells > search.cells:
            raise KeyboardInterrupt

    other = Search(skeleton(problem), norm, Effort(progress=stop), 1)
    other.run()
    assert other.interrupted, "by intervals it takes more cells"
    expect_upper(certificate(other.root)[0], other.reached * (1 + 1e-2), "by intervals it is still open")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("act", ["relu", "steep", "abs"])
def test_deeper_networks_are_exact_and_certified(act: str, norm: str) -> None:
    make = {"relu": nn.ReLU, "steep": lambda: nn.LeakyReLU(2.5), "abs": Abs}[act]
    module = he((2, 5, 4, 3), 22, make)
    given_region, where = region("box", 2, norm)
    exact = enumerated(module, 2, norm, where)
    result = bound(load(module, input_shape=(2,)), norm, given_region, method="branch", budget=60)
    expect_upper(result.upper.value, exact.lo)
    expect_close(result.upper.value, exact.lo, 1e-3)
    assert result.upper.status == "certified", result.upper


@pytest.mark.parametrize("norm", NORMS)
def test_fixed_coordinates_silent_outputs_and_unread_inputs(norm: str) -> None:
    module = silent(he((5, 6, 6, 3), 23), [1], [0])
    low, high = np.array([-1.0, 0.25, -1.0, -0.5, -1.0]), np.array([1.0, 0.25, 1.0, -0.5, 1.0])
    result = bound(load(module, input_shape=(5,)), norm, Box(low, high), method="branch", budget=60)
    assert result.upper.status == "certified", result.upper
    free = [0, 2, 4]
    reduced = he((3, 6, 6, 3), 23)
    with torch.no_grad():
        reduced.load_state_dict({k: v[:, free] if k == "0.weight" else v for k, v in module.state_dict().items()})
        fixed = torch.from_numpy(np.array([0.0, 0.25, 0.0, -0.5, 0.0]))
        reduced[0].bias.copy_(module[0].bias + module[0].weight @ fixed)
    exact = enumerated(reduced, 3, norm, Where("box", low[free], high[free]))
    expect_upper(result.upper.value, exact.lo)
    expect_close(result.upper.value, exact.lo, 1e-3)


def test_coefficients_out_of_range_leave_the_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    module = he((3, 4, 4, 2), 24)
    with torch.no_grad():
        module[0].weight[0] *= 1e-65
        module[2].weight[:, 0] *= 1e65
    result = bound(load(module, input_shape=(3,)), "linf", method="branch", budget=20)
    assert result.upper.status == "certified", result.upper
    exact = enumerated(he((3, 4, 4, 2), 24), 3, "linf", Where("everywhere"))
    expect_upper(result.upper.value, exact.lo * (1 - 1e-6))


@pytest.mark.parametrize("kind", ["everywhere", "box", "l1", "l2", "linf"])
def test_climbing_stays_inside_and_only_rises(kind: str) -> None:
    """The gain is that of the Jacobian that autograd gives at the point reached."""
    norm = kind if kind.startswith("l") else "linf"
    center = np.array([0.1, -0.2, 0.3])
    where: Region = {"everywhere": Everywhere(), "box": Box(center - 0.5, center + 0.5)}.get(kind, Ball(center, 0.6))
    module = he((3, 8, 8, 2), 25)
    made = skeleton(pose(load(module, input_shape=(3,)).graph, Claim(norm, where)))
    evaluator = Evaluator(made, norm)
    generator = np.random.default_rng(1)
    for _ in range(5):
        x = made.domain.pulled(generator.standard_normal((3, 1)))[:, 0]
        top = evaluator.climb(x)
        assert evaluator.gain(top) >= evaluator.gain(x)
        jacobian = torch.autograd.functional.jacobian(module, torch.from_numpy(top))
        expect_close(
            evaluator.gain(top),
            float(torch.linalg.matrix_norm(jacobian, {"l1": 1, "l2": 2, "linf": np.inf}[norm])),
            1e-12,
        )
        if kind == "box":
            assert (np.abs(top - center) <= 0.5).all()
        elif kind != "everywhere":
            assert np.linalg.norm(top - center, {"l1": 1, "l2": 2, "linf": np.inf}[norm]) <= 0.6


def test_processes_find_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 0.0)
    problem = pose(load(he((4, 5, 5, 2), 26), input_shape=(4,)).graph, Claim("linf"))
    trees = []
    for jobs in (1, 2):
        search = Search(skeleton(problem), "linf", Effort(), jobs)
        search.run()
        trees.append(certificate(search.root))
    assert trees[0] == trees[1]
    assert any(entry[0] == "quadratic" for entry in trees[0][1])
