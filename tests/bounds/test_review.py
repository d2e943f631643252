"""Segments at the edges of double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import lipscope
from lipscope.bounds import segments
from lipscope.claims.errors import ModelError
from lipscope.network.graph import GraphBuilder
from lipscope.network.nodes import Dense, Input


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
