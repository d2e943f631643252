"""Branch and bound against enumerations of all cells, and on the traps of kinks, parallel units and flat regions."""

from __future__ import annotations

import functools
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.cells import Abs, Where, enumerated
from harness.exact import one_dimensional, sampled_lower
from harness.expect import expect_close, expect_lower, expect_upper
from harness.networks import MaxMin, dense
from lipscope import bound, load
from lipscope.bounds.branch import workers
from lipscope.bounds.branch.method import BranchAndBound
from lipscope.bounds.branch.search import Search, certificate
from lipscope.bounds.branch.skeleton import skeleton
from lipscope.bounds.method import Effort
from lipscope.bounds.problem import Problem, pose
from lipscope.certificate.result import Result
from lipscope.claims.claim import Claim
from lipscope.claims.regions import Ball, Box, Everywhere, Region
from lipscope.network.load.load import LoadedModel


def he(dims: tuple[int, ...], seed: int = 0, act=nn.ReLU, bias: float = 0.1) -> nn.Sequential:  # type: ignore[no-untyped-def]
    """Gaussian weights of variance 2/in from one stream, biases of the given deviation."""
    generator = np.random.default_rng(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(dims):
        layer = nn.Linear(a, b).double()
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(generator.standard_normal((b, a)) * np.sqrt(2 / a)))
            layer.bias.copy_(torch.from_numpy(bias * generator.standard_normal(b)))
        layers += [layer, act()]
    return nn.Sequential(*layers[:-1]).eval()


def region(kind: str, size: int, norm: str) -> tuple[Region, Where]:
    center = 0.2 * np.random.default_rng(3).standard_normal(size)
    if kind == "everywhere":
        return Everywhere(), Where("everywhere")
    if kind == "box":
        return Box(center - 0.3, center + 0.4), Where("box", center - 0.3, center + 0.4)
    return Ball(center, 0.4), Where(norm, center, 0.4)


def branch(module: nn.Module, size: int, norm: str, where: Region, budget: float = 60.0) -> Result:
    return bound(load(module, input_shape=(size,)), norm, where, method="branch", budget=budget)


NETWORKS = {
    "one-hidden": lambda: he((3, 5, 2)), "scalar": lambda: he((4, 5, 1), 1), "wide": lambda: he((2, 8, 2), 2),
    "two-hidden": lambda: he((3, 4, 4, 2), 3), "two-inputs": lambda: he((2, 5, 4, 1), 4),
    "three-hidden": lambda: he((2, 3, 3, 3, 2), 5), "leaky": lambda: he((3, 4, 3, 2), 6, lambda: nn.LeakyReLU(0.2)),
    "steep": lambda: he((3, 4, 2), 7, lambda: nn.LeakyReLU(3.0)), "falling": lambda: he((3, 4, 2), 8, lambda: nn.LeakyReLU(-0.5)),
    "abs": lambda: he((2, 4, 3, 1), 9, Abs), "no-bias": lambda: he((3, 4, 3, 2), 10, bias=0.0),
    "prelu": lambda: he((3, 4, 3, 1), 11, lambda: nn.PReLU(init=0.25).double()),
}  # fmt: skip


@functools.cache
def loaded(name: str) -> tuple[nn.Sequential, LoadedModel]:
    module = NETWORKS[name]()
    return module, load(module, input_shape=(module[0].in_features,))


KINDS = ("everywhere", "box", "ball")
CASES = [
    (name, norm, KINDS[(i + k) % 3])
    for i, name in enumerate(NETWORKS)
    for k, norm in enumerate(("l1", "l2", "linf"))
    if i < 6 or i % 3 == k  # the benchmark has all norms and regions of every network
]


@pytest.mark.parametrize(("name", "norm", "kind"), CASES)
def test_the_exact_constant_is_reached_and_certified(name: str, norm: str, kind: str) -> None:
    module, graph = loaded(name)
    size = module[0].in_features
    given_region, where = region(kind, size, norm)
    exact = enumerated(module, size, norm, where)
    result = bound(graph, norm, given_region, method="branch", budget=60)
    expect_upper(result.upper.value, exact.lo, f"{name} {norm} {kind}")
    expect_lower(result.lower, exact.hi, f"{name} {norm} {kind}")
    expect_close(result.upper.value, exact.lo, 1e-3, f"{name} {norm} {kind}")
    assert result.upper.status == "certified", result.upper
    assert result.lower_status == "certified"


def test_published_development_values() -> None:
    """He 16-12-1, where all patterns are reachable, and He 1-8-8-1 on all its 16 pieces."""
    wide = branch(he((16, 12, 1)), 16, "l2", Everywhere())
    expect_close(wide.upper.value, 1.8863170248, 1e-3)
    expect_upper(wide.upper.value, 1.8863170248 * (1 - 1e-10))
    narrow = branch(he((1, 8, 8, 1)), 1, "l2", Everywhere())
    expect_close(narrow.upper.value, 3.3700165940, 1e-3)
    expect_upper(narrow.upper.value, 3.3700165940 * (1 - 1e-10))


class Rows(nn.Module):
    """`outer act(inner x + shift)` with given numbers."""

    def __init__(self, inner: list[list[float]], shift: list[float], outer: list[list[float]], act: nn.Module) -> None:
        super().__init__()
        self.inner, self.act, self.outer = nn.Linear(len(inner[0]), len(inner)).double(), act, nn.Linear(len(inner), len(outer), bias=False).double()  # fmt: skip
        with torch.no_grad():
            self.inner.weight.copy_(torch.tensor(inner))
            self.inner.bias.copy_(torch.tensor(shift))
            self.outer.weight.copy_(torch.tensor(outer))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.act(self.inner(x)))


TRAPS = {
    "relu(x) - relu(-x) is x": (Rows([[1.0], [-1.0]], [0.0, 0.0], [[1.0, -1.0]], nn.ReLU()), 1.0),
    "relu(x) + relu(-x) is |x|": (Rows([[1.0], [-1.0]], [0.0, 0.0], [[1.0, 1.0]], nn.ReLU()), 1.0),
    "relu(x + 1) - relu(x)": (Rows([[1.0], [1.0]], [1.0, 0.0], [[1.0, -1.0]], nn.ReLU()), 1.0),
    "the same unit twice": (Rows([[1.0], [1.0]], [0.5, 0.5], [[1.0, -1.0]], nn.ReLU()), 0.0),
    "parallel units": (Rows([[1.0], [2.0], [0.5]], [0.5, 1.0, 0.0], [[2.0, -1.0, 1.0]], nn.ReLU()), 0.5),
    "a unit that is 0 identically": (Rows([[0.0], [1.0]], [0.0, 0.0], [[5.0, 1.0]], nn.ReLU()), 1.0),
    "constant units": (Rows([[0.0], [0.0], [2.0]], [1.0, -1.0, 0.0], [[5.0, 7.0, 1.0]], nn.ReLU()), 2.0),
    "three units through one point": (
        Rows([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], [0.0, 0.0, 0.0], [[1.0, 1.0, 1.0]], nn.ReLU()), 2**0.5),
    "a hard tanh": (Rows([[1.0], [1.0]], [0.0, -3.0], [[1.0, 1.0]], nn.Hardtanh()), 1.0),
    "a clip from below": (Rows([[2.0], [-1.0]], [0.0, 0.0], [[1.0, 1.0]], nn.Hardtanh(-1.0, float(np.inf))), 2.0),
}  # fmt: skip


@pytest.mark.parametrize("where", ["everywhere", "box:-4,5"])
@pytest.mark.parametrize("name", TRAPS)
def test_unreachable_patterns_are_dropped_and_kinks_are_kept(name: str, where: str) -> None:
    module, exact = TRAPS[name]
    size = module.inner.in_features
    result = bound(load(module.eval(), input_shape=(size,)), "l2", where, method="branch", budget=30)
    assert result.upper.status == "certified", result.upper
    expect_upper(result.upper.value, exact * (1 - 1e-12), name)
    expect_lower(result.upper.value, exact * (1 + 1e-3) + 1e-12, name)


def test_units_that_are_zero_on_an_open_set() -> None:
    """The second layer's argument is 0 wherever the first layer is off: neither of its sides may be dropped there.

    f = relu(relu(x)) - relu(-relu(x)) + 3 relu(-x): on x < 0 both arguments vanish identically and f has slope -3.
    """

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(1, 2, bias=False).double()
            self.b = nn.Linear(2, 3, bias=False).double()
            self.c = nn.Linear(3, 1, bias=False).double()
            with torch.no_grad():
                self.a.weight.copy_(torch.tensor([[1.0], [-1.0]]))
                self.b.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
                self.c.weight.copy_(torch.tensor([[1.0, -1.0, 3.0]]))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

    graph = load(Net().eval(), input_shape=(1,))
    for norm in ("l1", "l2", "linf"):
        for where in ("everywhere", "box:-2,1"):
            result = bound(graph, norm, where, method="branch", budget=30)
            assert result.upper.status == "certified"
            expect_upper(result.upper.value, 3.0)
            expect_close(result.upper.value, 3.0, 1e-3)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_flat_boxes_and_points(norm: str) -> None:
    """On a box without interior only the free coordinates count; on a point nothing does."""
    module = he((3, 4, 2), 12)
    low, high = np.array([-0.5, 0.25, -1.0]), np.array([0.5, 0.25, 1.0])
    inner = module[0]
    reduced = he((2, 4, 2), 12)
    with torch.no_grad():
        reduced[0].weight.copy_(inner.weight[:, [0, 2]])
        reduced[0].bias.copy_(inner.bias + 0.25 * inner.weight[:, 1])
        reduced[2].load_state_dict(module[2].state_dict())
    exact = enumerated(reduced, 2, norm, Where("box", low[[0, 2]], high[[0, 2]]))
    result = branch(module, 3, norm, Box(low, high))
    assert result.upper.status == "certified"
    expect_upper(result.upper.value, exact.lo)
    expect_close(result.upper.value, exact.lo, 1e-3)
    for point in (Box(low, low), Ball(low, 0.0)):
        assert branch(module, 3, norm, point).upper.value == 0.0


def test_max_min() -> None:
    module = nn.Sequential(nn.Linear(2, 4), MaxMin(), nn.Linear(4, 4), MaxMin(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        for part in (module[0], module[2], module[4]):
            generator = torch.Generator().manual_seed(part.in_features)
            part.weight.copy_(torch.randn(part.weight.shape, generator=generator, dtype=torch.float64))
    graph = load(module, input_shape=(2,))
    for norm in ("l1", "l2", "linf"):
        for low, high in ((-1.0, 1.0), (-30.0, 30.0)):
            result = bound(graph, norm, f"box:{low},{high}", method="branch", budget=30)
            assert result.upper.status == "certified"
            box = np.full(2, low), np.full(2, high)
            expect_upper(result.upper.value, sampled_lower(module, (2,), norm, box, 100))
            expect_lower(result.upper.value, result.lower * (1 + 1e-3))


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_small_network_of_convolutions_and_average_pooling(norm: str, padded: bool) -> None:
    """Windows of 3 have coefficients 1/3 that no float is; with padding left out of the count, those at the border have 1/2."""
    torch.manual_seed(3)
    pool = nn.AvgPool1d(3, 2, 1, count_include_pad=False) if padded else nn.AvgPool1d(3, 2)
    module = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(2)).double().eval()
    module(torch.zeros(1, 1, 6, dtype=torch.float64))
    box = np.full(6, -0.3), np.full(6, 0.5)
    result = bound(load(module, input_shape=(1, 6)), norm, "box:-0.3,0.5", method="branch", budget=120)
    assert result.upper.status == "certified", result.upper
    expect_upper(result.upper.value, sampled_lower(module, (1, 6), norm, box, 60))
    expect_lower(result.upper.value, result.lower * (1 + 1e-3))


def test_one_input_on_all_its_pieces() -> None:
    module = he((1, 6, 5, 2), 13)
    graph = load(module, input_shape=(1,))
    for norm in ("l1", "linf"):
        exact = one_dimensional(module, -3.0, 2.0, norm, pieces=4001)
        result = bound(graph, norm, "box:-3,2", method="branch", budget=30)
        expect_upper(result.upper.value, exact.lo)
        expect_close(result.upper.value, exact.hi, 1e-3)


@settings(max_examples=6, deadline=None)
@given(
    st.integers(1, 3), st.lists(st.integers(1, 4), min_size=1, max_size=2), st.integers(1, 2),
    st.integers(0, 10**6), st.sampled_from(["l1", "l2", "linf"]), st.booleans(),
)  # fmt: skip
def test_small_integers_make_degenerate_cells(inputs: int, hidden: list[int], outputs: int, seed: int, norm: str, boxed: bool) -> None:  # fmt: skip
    """Weights in -1, 0, 1 have parallel, equal and vanishing units in plenty."""
    module = he((inputs, *hidden, outputs))
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for part in module:
            if isinstance(part, nn.Linear):
                part.weight.copy_(torch.from_numpy(generator.integers(-1, 2, part.weight.shape)))
                part.bias.copy_(torch.from_numpy(generator.integers(-1, 2, part.bias.shape)))
    where = Where("box", np.full(inputs, -2.0), np.full(inputs, 1.0)) if boxed else Where("everywhere")
    exact = enumerated(module, inputs, norm, where)
    result = bound(load(module, input_shape=(inputs,)), norm, "box:-2,1" if boxed else "everywhere", method="branch")
    expect_upper(result.upper.value, exact.lo)
    expect_lower(result.upper.value, exact.hi * (1 + 1e-3) + 1e-12)
    assert result.upper.status == "certified", result.upper


@functools.cache
def one() -> tuple[nn.Sequential, Result]:
    module = he((3, 5, 4, 2), 14)
    return module, branch(module, 3, "l2", Everywhere())


def test_hidden_units_may_be_permuted_and_rescaled() -> None:
    module, before = one()
    other = he((3, 5, 4, 2), 14)
    order = torch.tensor([3, 0, 4, 1, 2])
    factors = torch.tensor([2.0, 0.5, 4.0, 1.0, 8.0], dtype=torch.float64)
    with torch.no_grad():
        other[0].weight.copy_(module[0].weight[order] * factors[:, None])
        other[0].bias.copy_(module[0].bias[order] * factors)
        other[2].weight.copy_(module[2].weight[:, order] / factors)
    after = branch(other, 3, "l2", Everywhere())
    expect_close(after.upper.value, before.upper.value, 5e-4)


def test_what_cannot_be_split_is_refused_in_words() -> None:
    for module, word in (
        (dense(3, 4, 2, act=nn.Tanh), "tanh"),
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)), "BatchNorm"),
        (dense(3, 4), "affine"),
        (dense(3, 300, 2), "units"),
    ):
        result = bound(load(module.double().eval(), input_shape=(3,)), method="branch", budget=5)
        assert result.upper.status == "no-bound"
        assert word in str(result.upper.reason)


def test_stopped_early_the_bound_of_the_open_cells_stands() -> None:
    module = he((6, 10, 10, 2), 15)
    graph = load(module, input_shape=(6,))
    hurried = bound(graph, "l2", method="branch", budget=0.01)
    assert hurried.upper.status == "certified"
    expect_upper(hurried.upper.value, sampled_lower(module, (6,), "l2", None, 60))
    longer = bound(graph, "l2", method="branch", budget=3.0)
    expect_lower(longer.upper.value, hurried.upper.value * (1 + 1e-9))


def posed(norm: str = "l2", dims: tuple[int, ...] = (3, 5, 4, 2)) -> Problem:
    return pose(load(he(dims, 16), input_shape=(dims[0],)).graph, Claim(norm))


def test_processes_find_the_same_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 0.0)
    trees = []
    for jobs in (1, 2):
        search = Search(skeleton(posed()), "l2", Effort(), jobs)
        search.run()
        trees.append(certificate(search.root))
    assert trees[0] == trees[1]
    assert trees[0][3] > 4, "the test needs a tree with some leaves"


def test_one_process_starts_no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 0.0)
    monkeypatch.setattr(workers.joblib, "Parallel", None)
    search = Search(skeleton(posed()), "l2", Effort(), 1)
    search.run()
    assert np.isfinite(search.root.bound)


def test_interrupted_it_keeps_what_is_proved() -> None:
    """The user stops it after some cells: the bound is that of the open ones, and better than the root's alone."""
    seen: list[str] = []

    def stop(message: str, share: float) -> None:
        assert 0 <= share <= 1
        if message.startswith("branch"):
            seen.append(message)
            if len(seen) == 3:
                raise KeyboardInterrupt

    problem = posed("linf", (6, 8, 8, 2))
    candidate = BranchAndBound(jobs=1).run(problem, Effort(progress=stop))
    assert candidate.interrupted
    whole = BranchAndBound(jobs=1).run(problem, Effort())
    assert candidate.value is not None
    assert whole.value is not None
    expect_upper(candidate.value, whole.value * (1 - 1e-12))
    root = Search(skeleton(problem), "linf", Effort(deadline=0.0))
    root.run()
    expect_lower(candidate.value, root.root.bound)


def test_nothing_worse_than_the_parent_and_no_cell_twice() -> None:
    search = Search(skeleton(posed("l1")), "l1", Effort(), 1)
    search.run()
    for cell in search.root.walk():
        for part in cell.parts or ():
            expect_lower(part.bound, cell.bound)
            assert part.cell != cell.cell


def test_what_is_closed_already_is_not_begun() -> None:
    """Other methods' bound is at a lower bound: there is nothing to gain."""
    candidate = BranchAndBound(jobs=1).run(posed(), Effort(deadline=time.monotonic() + 5, known=1e-3))
    assert candidate.value is None
    assert "not needed" in candidate.note


def test_a_hopeless_search_is_given_up_only_where_others_have_a_bound() -> None:
    problem = posed("linf", (10, 30, 30, 3))
    for known, given_up, seconds in ((1e6, True, 10), (np.inf, False, 2)):
        search = Search(skeleton(problem), "linf", Effort(deadline=time.monotonic() + seconds, known=known), 1)
        search.run()
        assert search.hopeless == given_up
        assert np.isfinite(search.root.value())


def test_a_point_of_the_best_cell_meets_the_bound() -> None:
    result = bound(load(he((3, 6, 5, 2), 17), input_shape=(3,)), "linf", budget=40)
    assert result.upper.method == "branch"
    assert result.ratio is not None
    expect_lower(result.ratio, 1 + 1e-3)
