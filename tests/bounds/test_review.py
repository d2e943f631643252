"""Segments at the edges of double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import lipscope
from lipscope.bounds import segments
from lipscope.bounds.local import method as local
from lipscope.bounds.method import Effort
from lipscope.bounds.problem import pose
from lipscope.claims.claim import Claim, Output
from lipscope.claims.errors import ModelError
from lipscope.claims.regions import Ball, Everywhere
from lipscope.network.graph import GraphBuilder
from lipscope.network.nodes import Dense, Elementwise, Input


class Scaled(nn.Module):
    def __init__(self, *scales: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 2, 1, bias=False).double()
        self.scales = scales

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        for scale in self.scales:
            y = y * scale
        return y


def test_channel_scales_that_underflow_are_not_taken_into_the_weights() -> None:
    one = torch.ones(3, dtype=torch.float64)
    first = segments._scaled(one, one * (1.4 * 2.0**-537))
    assert first is not None
    assert segments._scaled(first, one * 2.0**-537) is None
    assert segments._scaled(one * 2.0**-700, one * 2.0**-700) is None
    assert segments._scaled(one, one * 2.0**101) is None
    zero = segments._scaled(first, one * 0)
    assert zero is not None and not zero.any()


def test_a_convolution_whose_scales_underflow_gets_no_bound_below_its_norm() -> None:
    scales = (1.4 * 2.0**-537, 2.0**-537, 2.0**500)
    model = Scaled(*scales).eval()
    matrix = model.conv.weight.detach().numpy().reshape(2, 2)
    true = float(np.linalg.svd(matrix, compute_uv=False)[0]) * 1.4 * 2.0**-574
    try:
        upper = lipscope.bound(lipscope.load(model, (2, 8, 8))).upper.value
    except ModelError as error:
        assert "underflow" in str(error)
    else:
        assert upper is None or upper >= true * (1 - 1e-12)


def chain(weights: list[float]) -> lipscope.Result:
    builder = GraphBuilder()
    last = builder.add(Input(inputs=(), shape=(2,), name="input"))
    for i, weight in enumerate(weights):
        matrix = np.array([[weight, 0.0], [weight / 3, weight]])
        last = builder.add(Dense(inputs=(last,), shape=(2,), name=f"layer{i}", weight=matrix, axis=0))
    return lipscope.bound(builder.build(last, ((2,),), ((2,),), "chain"), method="product")


def test_layers_that_underflow_on_the_way_are_refused() -> None:
    for weights in ([1e-200, 1.4e-122, 1e200, 1e100], [1e-160, 1e-160, 1e160, 1e160]):
        with pytest.raises(ModelError, match="rescale"):
            chain(weights)


def test_moderate_layers_that_cancel_are_bounded() -> None:
    result = chain([1e-60, 1e-60, 1e60, 1e60])
    matrix = np.array([[1.0, 0.0], [1 / 3, 1.0]])
    true = float(np.linalg.svd(np.linalg.matrix_power(matrix, 4), compute_uv=False)[0])
    assert true * (1 - 1e-9) <= result.upper.value <= true * (1 + 1e-6)


# ------------------------------------------------------------------------------------- coefficients that overflow


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_linear_bounds_that_overflow_are_not_used(norm: str) -> None:
    """Values stay below 1e11, but the coefficients of the input overflow to inf - inf: the boxes stay those of intervals."""
    builder = GraphBuilder()
    last = builder.add(Input(inputs=(), shape=(2,), name="input"))
    matrix = np.array([[1e160, -1e160], [1e160, 1e160]])
    for i in range(2):
        last = builder.add(Dense(inputs=(last,), shape=(2,), name=f"layer{i}", weight=matrix, axis=0))
        last = builder.add(Elementwise(inputs=(last,), shape=(2,), name=f"relu{i}", function="relu"))
    graph = builder.build(last, ((2,),), ((2,),), "overflow")
    posed = pose(graph, Claim(norm, Ball(np.zeros(2), 1e-310), Output()))
    assert posed.intervals is not None
    for box in posed.intervals.values():
        assert bool((box.lower <= box.upper).all())
    assert float(posed.intervals[4].upper[1]) >= 1.9e10  # at x = (1e-310, 0)
    assert all(float(high.max()) == 1.0 for _, high in posed.slopes.values())


def test_a_choice_without_a_norm_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """`max(0.0, nan)` is 0: a split whose enclosure overflowed for some choices proves nothing."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    posed = pose(lipscope.load(module, (2,)).graph, Claim("linf", Everywhere(), Output()))
    part = local.Part(posed, 0, posed.graph.output)
    split = {2: torch.tensor([0, 1])}
    effort = Effort(deadline=np.inf)
    assert local._split_norm(part, split, [], "linf", effort) is not None
    monkeypatch.setattr(local, "_norm", lambda *_: float("nan"))
    assert local._split_norm(part, split, [], "linf", effort) is None


class Gated(nn.Module):
    """relu as a product with a jump: continuous, whatever its parts do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.heaviside(x, torch.tensor(0.5, dtype=x.dtype))


@pytest.mark.parametrize("region", ["everywhere", "box:-1,1"])
def test_a_heaviside_function_in_a_continuous_network_is_no_jump(region: str) -> None:
    """The search for a jump differentiates through it, and finds none."""
    result = lipscope.bound(lipscope.load(Gated().eval(), (2,)), "l2", region, budget=1)
    assert result.upper.status == "no-bound"
    assert result.verdict is not None
    assert result.verdict["accepted"]


def test_layers_that_were_not_narrowed_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipscope.bounds.local import narrowing

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
    )
    graph = lipscope.load(model.eval(), (4,)).graph
    told = lipscope.bound(graph, "linf", "box:-1,1", method="product", budget=1, check=False)
    assert not any("interval bounds" in text for text in told.warnings)
    from lipscope.bounds import problem

    monkeypatch.setattr(
        problem, "narrow", lambda graph, region, norm, most: narrowing.narrow(graph, region, norm, most=1)
    )
    told = lipscope.bound(graph, "linf", "box:-1,1", method="product", budget=1, check=False)
    assert any("interval bounds" in text for text in told.warnings), told.warnings
