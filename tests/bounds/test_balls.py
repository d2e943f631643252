"""Values in balls: against float64, against the checker's own balls, and on networks too deep for boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flint import arb, ctx
from torch import nn

import lipscope
from harness.expect import expect_close, expect_lower, expect_upper
from harness.networks import BY_NAME, NETWORKS
from lipcheck import precise
from lipcheck.errors import Rejected
from lipscope.bounds import balls, lower
from lipscope.bounds.method import Effort
from lipscope.bounds.problem import pose
from lipscope.claims.claim import Claim
from lipscope.network.nodes import Elementwise
from lipscope.rules import NoRule
from lipscope.rules.questions import evaluate
from rules.rule_cases import CASES
from rules.test_against_checker import checker_node
from rules.test_slopes import ROWS, function_node

WITHOUT = {
    "Softmax", "LogSoftmax", "LogSumExp", "LayerNorm", "RMSNorm", "ReduceL2", "Multiply", "Divide", "MatMul", "Discontinuous",
}  # fmt: skip
"""Kinds that are not evaluated in balls: a network with them has the boxes' lower bound only."""

to_balls = np.frompyfunc(lambda v: arb(float(v)), 1, 1)


def overlap(a: object, b: object) -> bool:
    return all(x.overlaps(y) for x, y in zip(np.ravel(a), np.ravel(b), strict=True))


@pytest.mark.parametrize("name", [n for n in CASES if n != "Input" and not n.startswith("Elementwise")])
def test_every_kind(name: str) -> None:
    case = CASES[name]
    inputs = [x[0] for x in case.inputs(seed=5)]
    arrays = [to_balls(x.numpy()) for x in inputs]
    if case.node.kind in WITHOUT:
        with pytest.raises(NoRule):
            balls.ball_value(case.node, *arrays)
        return
    with ctx.workprec(300):
        ours = np.asarray(balls.ball_value(case.node, *arrays), dtype=object).reshape(case.node.shape)
        theirs = np.asarray(precise._value(checker_node(case.node), arrays), dtype=object).reshape(case.node.shape)
        theirs = np.frompyfunc(arb, 1, 1)(theirs)
        assert overlap(ours, theirs)
        assert all(float(v.rad()) <= 1e-60 for v in np.ravel(ours))
    value = evaluate(case.node, *(x[None] for x in inputs))
    middle = np.array([float(v.mid()) for v in np.ravel(ours)]).reshape(case.node.shape)
    np.testing.assert_allclose(middle, value.expand(1, *case.node.shape)[0].numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "arguments"), ROWS, ids=[f"{n}-{dict(a)}" for n, a in ROWS])
def test_every_function(name: str, arguments: tuple[tuple[str, float], ...]) -> None:
    points = np.array([-30.5, -3.0, -1.0, -0.3, 0.0, 1e-9, 0.5, 1.0, 2.75, 29.0])
    node = function_node(name, points.shape, arguments)
    assert isinstance(node, Elementwise)
    if name not in balls._FUNCTIONS:
        with pytest.raises(NoRule):
            balls.ball_value(node, to_balls(points))
        return
    with ctx.workprec(300):
        ours = balls.ball_value(node, to_balls(points))
        try:
            theirs = precise._value(checker_node(node), [to_balls(points)])
        except Rejected as refusal:
            assert "not evaluated in ball arithmetic" in str(refusal)
        else:
            assert overlap(ours, np.frompyfunc(arb, 1, 1)(theirs))
    value = evaluate(node, torch.from_numpy(points)[None])[0].numpy()
    np.testing.assert_allclose([float(v.mid()) for v in ours], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("name", [n.name for n in NETWORKS])
def test_quotients_hold_and_are_not_below_those_of_boxes(name: str, norm: str) -> None:
    network = BY_NAME[name]
    graph = lipscope.load(network.module(), input_shape=network.shape).graph
    if not balls.affordable(graph):
        assert any(node.kind in WITHOUT for node in graph.nodes), name
        return
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, graph.input_size))
    found = balls.quotient(graph, norm, x, y)
    boxed = lower.quotient(pose(graph, Claim(norm)), x, y)
    expect_upper(found, boxed * (1 - 1e-14), "balls are tighter than boxes")
    order = {"l1": 1, "l2": 2, "linf": np.inf}[norm]
    ends = [network.module()(torch.from_numpy(p).reshape(1, *network.shape)).detach().numpy().ravel() for p in (x, y)]
    plain = np.linalg.norm(ends[0] - ends[1], order) / np.linalg.norm(x - y, order)
    expect_close(found, plain, 1e-10)
    assert balls.quotient(graph, norm, x, x) == 0.0


def deep(layers: int) -> nn.Module:
    torch.manual_seed(3)
    blocks = [m for _ in range(layers) for m in (nn.Linear(24, 24), nn.ReLU())]
    return nn.Sequential(*blocks, nn.Linear(24, 3)).double().eval()


def test_deep_networks_have_a_lower_bound() -> None:
    """Boxes of forty layers are wider than any difference; the exact quotient of the pair is what comes out."""
    with torch.no_grad():
        module = deep(40)
        for parameter in module.parameters():
            parameter.mul_(2.2)
    graph = lipscope.load(module, input_shape=(24,)).graph
    problem = pose(graph, Claim("l2"))
    rng = np.random.default_rng(2)
    assert lower.quotient(problem, *rng.standard_normal((2, 24))) == 0.0
    witness = lower.lower_bound(problem, Effort())
    assert witness is not None
    ends = module(torch.from_numpy(np.stack([witness.x, witness.y]))).detach().numpy()
    plain = np.linalg.norm(ends[0] - ends[1]) / np.linalg.norm(witness.x - witness.y)
    expect_close(witness.value, float(plain), 1e-6)
    result = lipscope.bound(graph, method="product", budget=5)
    assert result.upper.status == "certified"
    assert result.verdict is not None
    assert result.verdict["lower"]["status"] == "certified"
    expect_lower(result.lower, result.upper.value)
    expect_upper(result.lower, 1e-9)


def test_search_without_balls_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balls, "LIMIT", 0)
    graph = lipscope.load(deep(2), input_shape=(24,)).graph
    witness = lower.lower_bound(pose(graph, Claim("l2")), Effort(), rounds=2)
    assert witness is not None
    expect_upper(witness.value, 1e-3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_answer_does_not_depend_on_the_callers_gradient_mode(mode: type) -> None:
    graph = lipscope.load(deep(2), input_shape=(24,)).graph
    plain = lipscope.bound(graph, method="product", budget=4, check=False)
    with mode():
        inside = lipscope.bound(graph, method="product", budget=4, check=False)
    assert plain.upper.value == inside.upper.value
    assert min(inside.lower, plain.lower) > 0, "the search is timed, so the two need not be equal"
