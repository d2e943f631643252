"""Networks that jump are proved to, and those that only look so are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipcheck
import lipscope
from harness.bundle_writer import Arrays, seal
from lipscope.bounds.jumps import frozen
from lipscope.network.nodes import Discontinuous


class Mixed(nn.Module):
    """Jumps beside continuous parts."""

    def __init__(self, rule: str, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b, self.rule = nn.Linear(4, 3), nn.Linear(4, 3), rule

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        match self.rule:
            case "sum":
                return torch.relu(a) + torch.sign(b)
            case "small steps":
                return torch.round(2 * a) * 0.01 + torch.tanh(b)
            case "selection":
                return torch.where(b > 0, a, b)
            case "hardshrink":
                return torch.nn.functional.hardshrink(a)
            case "threshold":
                return torch.nn.functional.threshold(a, 0.1, 2.0) + b
            case "one hot":
                return a + torch.nn.functional.one_hot(a.argmax(1), 3)
            case "relu by selection":
                return torch.where(b > 0, b, torch.zeros_like(b))
            case "abs by sign":
                return a * 0 + torch.where(b < 0, -b, b)
            case "threshold without a jump":
                return torch.nn.functional.threshold(a, 0.1, 0.1)
        raise AssertionError(self.rule)


JUMPING = ["sum", "small steps", "selection", "hardshrink", "threshold", "one hot"]
CONTINUOUS = ["relu by selection", "abs by sign", "threshold without a jump"]
REGIONS = ["everywhere", "box:-1,1", "ball"]


def answer(rule: str, region: str, norm: str, seed: int = 0, check: bool = True) -> lipscope.api.Result:
    graph = lipscope.load(Mixed(rule, seed).eval(), (4,))
    where = lipscope.Ball(np.zeros(4), 1.5) if region == "ball" else region
    return lipscope.bound(graph, norm, where, budget=4, check=check)


@pytest.mark.parametrize(("region", "norm"), list(zip(REGIONS, ["l2", "linf", "l1"], strict=True)))
@pytest.mark.parametrize("rule", JUMPING)
def test_jumps_are_proved(rule: str, region: str, norm: str) -> None:
    result = answer(rule, region, norm)
    assert result.upper.status == "unbounded", result.upper
    assert result.verdict is not None
    assert result.verdict["upper"]["status"] == "unbounded"
    assert result.verdict["upper"]["reasons"] == []
    node = result.problem.graph.nodes[result.upper.node]
    assert isinstance(node, Discontinuous)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), rule=st.sampled_from(CONTINUOUS), region=st.sampled_from(REGIONS[:2]))
def test_continuous_networks_are_never_called_unbounded(seed: int, rule: str, region: str) -> None:
    assert answer(rule, region, "l2", seed, check=False).upper.status != "unbounded"


def with_points(folder: Path, x: np.ndarray, y: np.ndarray) -> Path:
    """The bundle with other points in its proof, sealed again."""
    arrays, path = Arrays(), folder / "proof.json"
    proof = json.loads(path.read_text()) | {"x": arrays(x), "y": arrays(y)}
    for digest, array in arrays.known.items():
        np.save(folder / "arrays" / f"{digest}.npy", array)
    path.write_text(json.dumps(proof))
    return seal(folder)


def test_the_checker_wants_a_jump_between_the_points(tmp_path: Path) -> None:
    """Equal points are refused, and so are distant ones: the continuous part alone may move that far."""
    result = answer("sum", "everywhere", "l2")
    assert result.unbounded is not None
    x, y = result.unbounded.points
    result.save(tmp_path / "b")
    assert lipcheck.check(tmp_path / "b").accepted
    for other, words in ((x, "same"), (y + 5 * (y - x) / np.linalg.norm(y - x), "needs no jump")):
        verdict = lipcheck.check(with_points(tmp_path / "b", x, other))
        assert not verdict.accepted
        assert any(words in reason for reason in verdict.reasons), verdict.reasons


def test_freezing_leaves_no_jump() -> None:
    for rule in JUMPING:
        graph = lipscope.load(Mixed(rule).eval(), (4,)).graph
        assert any(isinstance(n, Discontinuous) for n in graph.nodes)
        calm = frozen(graph)
        assert not any(isinstance(n, Discontinuous) for n in calm.nodes)
        assert [n.shape for n in calm.nodes] == [n.shape for n in graph.nodes]
