"""Enclosures of difference matrices and absolute compositions: never below what enumeration or sampling finds, zero slack."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from bounds.local_cases import graph, problem, region, result, search
from bounds.test_soundness import EXACT_NETWORKS, oracle
from harness.exact import matrix_norm, sampled_lower
from harness.expect import expect_lower, expect_upper
from harness.networks import BY_NAME, NETWORKS, dense
from lipscope import Box, load
from lipscope.bounds.local.jacobian import Part, Rows
from lipscope.bounds.problem import Problem, pose
from lipscope.claims.claim import Claim, Output
from lipscope.claims.regions import Everywhere

KINDS = ("everywhere", "small", "large", "ball")
FOLLOWED = ["one-hidden", "two-hidden", "deep", "residual", "tanh", "conv", "batchnorm", "leaky-negative"]


@pytest.mark.parametrize("norm", ["l1", "linf", "l2"])
@pytest.mark.parametrize("name", [n.name for n in NETWORKS])
def test_bounds_are_not_below_samples_and_the_checker_agrees(name: str, norm: str) -> None:
    """Every network of the table; the regions take turns, so that each network meets each of them in some norm."""
    network = BY_NAME[name]
    turn = sum(map(ord, name)) + ("l1", "linf", "l2").index(norm)
    for method, kind in (("absolute", KINDS[turn % 4]), ("local", KINDS[(turn + 1) % 4])):
        posed = problem(name, norm, kind)
        found = result(posed, method, 0.2)  # little time: few units are split
        if found.found.value is None:  # a refusal in words, never by accident
            assert found.candidates[0].note, (name, norm, method)
            continue
        where = posed.claim.region
        box = None if isinstance(where, Everywhere) else where.box()
        if kind != "ball" or norm == "linf":
            truth = sampled_lower(network.module(), network.shape, norm, box and (box.lower, box.upper), count=3)
            expect_upper(found.found.value, truth, f"{name} {norm} {kind} {method}")
        verdict = found.checked().verdict
        assert verdict is not None
        assert verdict["upper"]["status"] == "certified", (name, norm, kind, method, verdict["upper"])


@pytest.mark.parametrize("method", ["absolute", "local"])
@pytest.mark.parametrize("norm", ["l1", "linf"])
@pytest.mark.parametrize("name", EXACT_NETWORKS)
def test_against_enumeration_of_all_patterns(name: str, norm: str, method: str) -> None:
    exact = oracle(name, norm)
    value = search(problem(name, norm, "everywhere"), method, 1e6 if "conv" not in name else 0.2).value
    expect_upper(value, exact.lo, f"{name} {norm} {method}")
    units = Part(problem(name, norm, "everywhere"), 0, graph(name).output).open
    if (
        method == "local" and "conv" not in name and sum(map(len, units.values())) <= 10
    ):  # all units are split: nothing is left to relax
        assert value is not None
        expect_lower(value, exact.hi * (1 + 2e-9), f"{name} {norm}")


def chosen_matrix(posed: Problem, part: Part, slopes: dict[int, np.ndarray]) -> np.ndarray:
    """The slow, obvious M: every linear part as a matrix, column by column."""
    from lipscope.rules.questions import evaluate, linear_part

    values = {0: torch.eye(posed.graph.input_size, dtype=torch.float64).reshape(-1, *posed.graph.nodes[0].shape)}
    for index in part.path:
        node = posed.graph.nodes[index]
        if index in slopes:
            values[index] = values[node.inputs[0]] * torch.from_numpy(slopes[index])
        else:
            values[index] = evaluate(linear_part(node), *(values[i] for i in node.inputs))
    return values[posed.graph.output].reshape(posed.graph.input_size, -1).T.numpy()


@pytest.mark.parametrize("kind", ["everywhere", "small", "large"])
@pytest.mark.parametrize("name", FOLLOWED)
def test_every_choice_of_slopes_lies_in_the_enclosure(name: str, kind: str) -> None:
    posed = problem(name, "linf", kind)
    part = Part(posed, 0, posed.graph.output)
    outputs = posed.graph.output_size
    wide, tight = (Rows(part, refined, part.ends({}), 1).matrix for refined in ([], part.refinable({})))
    assert (wide.lower <= tight.lower).all() and (tight.upper <= wide.upper).all()
    rng = np.random.default_rng(0)
    for _ in range(60):
        slopes = {}
        for index, (low, high) in part.slopes.items():
            share = rng.choice([0.0, 1.0, rng.random()], size=tuple(low.shape))
            slopes[index] = np.clip(low.numpy() * (1 - share) + high.numpy() * share, low.numpy(), high.numpy())
        matrix = chosen_matrix(posed, part, slopes)
        noise = 1e-13 * (1 + np.abs(matrix))
        assert (tight.lower.reshape(outputs, -1).numpy() <= matrix + noise).all()
        assert (matrix - noise <= tight.upper.reshape(outputs, -1).numpy()).all()


def test_lines_are_tighter_than_intervals() -> None:
    """Three hidden layers: at least a quarter of the interval enclosure's norm is saved."""
    torch.manual_seed(1)
    model = load(dense(4, 8, 8, 8, 2).double().eval(), input_shape=(4,))
    posed = pose(model.graph, Claim("linf", Everywhere(), Output()))
    part = Part(posed, 0, model.graph.output)
    norms = [
        float(Rows(part, refined, part.ends({}), 1).matrix.magnitude.reshape(2, -1).sum(1).max())
        for refined in ([], part.refinable({}))
    ]
    assert norms[1] <= 0.75 * norms[0], norms


def region_patterns(posed: Problem, part: Part) -> float:
    """The largest norm over all ends of all slopes: what the local bound can reach at best."""
    places = [(i, int(e)) for i, entries in part.open.items() for e in entries]
    best = 0.0
    for bits in itertools.product((0, 1), repeat=len(places)):
        slopes = {i: low.numpy().copy() for i, (low, _) in part.slopes.items()}
        for (i, e), bit in zip(places, bits, strict=True):
            if bit:
                slopes[i].reshape(-1)[e] = part.slopes[i][1].reshape(-1)[e]
        best = max(best, matrix_norm(chosen_matrix(posed, part, slopes), posed.norm))
    return best


@pytest.mark.parametrize("norm", ["l1", "linf"])
@pytest.mark.parametrize("seed", range(4))
def test_small_boxes_come_within_half_of_a_witness(seed: int, norm: str) -> None:
    """Random ReLU networks with two hidden layers of 12 on small boxes: ratio to a sampled quotient at most 1.5."""
    torch.manual_seed(seed)
    module = dense(6, 12, 12, 2).double().eval()
    center = np.full(6, 0.2)
    box = Box(center - 0.05, center + 0.05)
    posed = pose(load(module, input_shape=(6,)).graph, Claim(norm, box, Output()))
    value = search(posed, "local").value
    truth = sampled_lower(module, (6,), norm, (box.lower, box.upper), count=200)
    expect_upper(value, truth)
    assert value is not None
    expect_lower(value, 1.5 * truth)
    part = Part(posed, 0, posed.graph.output)
    if sum(map(len, part.open.values())) <= 8:
        expect_upper(value, region_patterns(posed, part) * (1 - 1e-12))


def test_kinks_are_covered() -> None:
    """`x - relu(x) + relu(-x)` is 0, and `relu(x) + relu(-x)` = |x| is 1: bounds hold across the kink at 0, from any two points."""
    module = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1)).double()
    with torch.no_grad():
        for p, v in zip(module.parameters(), ([[1.0], [-1.0]], [0.0, 0.0], [[1.0, 1.0]], [0.0]), strict=True):
            p.copy_(torch.tensor(v))
    posed = pose(
        load(module.eval(), input_shape=(1,)).graph, Claim("linf", Box(np.full(1, -1e-9), np.full(1, 1.0)), Output())
    )
    value = search(posed, "local").value
    expect_upper(value, 1.0)
    assert value is not None
    expect_lower(value, 1.0 + 1e-8)


@pytest.mark.parametrize("name", ["one-hidden", "two-hidden", "tanh", "residual"])
@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_scaling_laws(name: str, norm: str) -> None:
    """Twice the output, twice the bound; absolute is never above the product, local never above absolute (chains)."""
    posed = problem(name, norm, "everywhere")
    values = {method: search(posed, method).value for method in ("product", "absolute", "local")}
    assert None not in values.values()
    if name != "residual":
        assert values["absolute"] <= values["product"] * (1 + 1e-9)
    assert values["local"] <= values["absolute"] * (1 + 1e-8)


def test_a_smaller_region_has_no_larger_bound() -> None:
    for name in ("two-hidden", "tanh"):
        values = []
        for radius in (1e-3, 0.1, 1.0):
            center = region("small", math.prod(BY_NAME[name].shape)).center
            posed = pose(graph(name), Claim("linf", Box(center - radius, center + radius), Output()))
            values.append(search(posed, "absolute").value)
        assert values == sorted(values)


def test_refusals_in_words() -> None:
    assert "lipsdp" in search(problem("one-hidden", "l2", "small"), "local").note
    assert "Sort" in search(problem("maxmin", "l2", "small"), "absolute").note
    assert search(problem("maxmin", "linf", "small"), "local").note.startswith("no part")


def test_a_narrowed_slope_turns_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: slope ranges lose a little of their upper end. Enumeration sees it, and so does the checker."""
    posed = problem("leaky-steep", "linf", "everywhere")
    low, high = posed.slopes[2]
    exact = oracle("leaky-steep", "linf")
    posed.slopes[2] = low, high - 1e-6
    found = result(posed, "local")
    assert found.found.value is not None and not found.found.value >= exact.lo
    verdict = found.checked().verdict
    assert verdict is not None and verdict["upper"]["status"] == "rejected"
    assert "too narrow" in verdict["upper"]["reasons"][0]
