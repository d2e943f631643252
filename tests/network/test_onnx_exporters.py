"""Networks as both of torch's exporters write them, at old and new opsets, compared with torch itself."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipscope.network.load.onnx_import import list_operations, load_onnx
from lipscope.network.load.patterns import recognise
from network.onnx_cases import value_of


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(5, 2, 1)
        self.norm = nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([x, self.a(x)], 1)
        y = torch.cat([joined, self.b(torch.relu(self.norm(joined)))], 1)
        return functional.avg_pool2d(y, 3, 2, padding=1, ceil_mode=True, count_include_pad=False).mean((2, 3))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.hardswish(self.depth(functional.hardswish(self.expand(x))))
        gate = functional.hardsigmoid(self.up(torch.relu(self.down(functional.adaptive_avg_pool2d(y, 1)))))
        return torch.flatten(y * gate, 1)


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(4), nn.LayerNorm((3, 4))
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.second(functional.gelu(self.first(self.norm(x))))
        return self.norm2(y + functional.gelu(y, approximate="tanh") + functional.silu(y) + functional.mish(y))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x).chunk(3, dim=-1)
        q, k, v = (t.reshape(x.shape[0], 3, 2, 2).transpose(1, 2) for t in (q, k, v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / 2**0.5, dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(x.shape[0], 3, 4))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.GroupNorm(3, 3)
        self.slopes = nn.PReLU(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.slopes(self.norm(self.up(x)))
        y = functional.interpolate(y, scale_factor=2.0, mode="nearest")
        return functional.interpolate(y, scale_factor=0.5, mode="bilinear", align_corners=False)


class MaxMin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, dim=1)
        return self.second(torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1))


class Paddings(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = functional.pad(functional.pad(x, (1, 2, 0, 1), mode="reflect"), (1, 0, 1, 1), mode="replicate")
        y = functional.max_pool2d(y, 3, 2, ceil_mode=True)
        return torch.flip(y[:, :, 1:, ::2], dims=[2]).permute(0, 2, 3, 1).flatten(1)


NETWORKS = {
    "resnet": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU6(), Residual(3), nn.MaxPool2d(3, 2, 1),
                                     nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)), (1, 9, 9), set()),
    "densenet": (DenseBlock, (2, 6, 6), set()),
    "mobilenet": (SqueezeExcite, (2, 6, 6), {"hardswish"}),
    "mixer": (Mixer, (3, 4), {"LayerNorm", "gelu", "gelu_tanh", "silu", "mish"}),
    "attention": (Attention, (3, 4), {"Softmax", "MatMul"}),
    "decoder": (Decoder, (2, 3, 3), {"LayerNorm", "prelu"}),
    "maxmin": (MaxMin, (5,), {"Sort"}),
    "paddings": (Paddings, (2, 5, 6), {"Pad", "MaxPool"}),
    "activations": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ELU(0.7), nn.Linear(4, 4), nn.SELU(), nn.CELU(0.5), nn.Softplus(),
                                          nn.Softsign(), nn.Hardtanh(-0.5, 0.7), nn.LeakyReLU(0.2), nn.LogSoftmax(1)), (3,),
                    {"elu", "celu", "softplus", "softsign", "clip", "leaky_relu", "LogSoftmax"}),
    "conv1d and conv3d": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3, dilation=2), nn.InstanceNorm1d(4, affine=True), nn.Tanh(),
                                                nn.Unflatten(2, (2, 2, 2)), nn.Conv3d(4, 2, 2), nn.AvgPool3d(1)), (2, 12), set()),
}  # fmt: skip


def export(module: nn.Module, x: Tensor, path, opset: int, dynamo: bool) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both exporters warn of their own deprecations
        if dynamo:
            torch.onnx.export(module, (x,), path, dynamo=True, opset_version=opset, verbose=False)
        else:
            axes = {"input": {0: "batch"}}
            torch.onnx.export(
                module, (x,), path, dynamo=False, opset_version=opset, input_names=["input"], dynamic_axes=axes
            )


def compare(name: str, path, opset: int, dynamo: bool) -> None:
    build, shape, expected = NETWORKS[name]
    torch.manual_seed(0)
    module = build().eval()
    for parameter in [*module.parameters(), *(b for b in module.buffers() if b.dtype.is_floating_point)]:
        parameter.data.add_(0.3 * torch.rand_like(parameter))
    x = torch.randn(1, *shape)
    export(module, x, path, opset, dynamo)
    source = load_onnx(path)
    graph = recognise(source.graph)
    assert {getattr(node, "function", node.kind) for node in graph} >= expected
    with torch.no_grad():
        wanted = module.double()(x.double()).numpy().reshape(-1)
    found = value_of(graph, x.double().numpy().reshape(-1))
    assert np.abs(found - wanted).max() <= 2e-5 * np.abs(wanted).max()
    assert np.abs(source.run([x.double().numpy()])[0].reshape(-1) - wanted).max() <= 2e-5 * np.abs(wanted).max()
    assert "Discontinuous" not in {node.kind for node in graph}
    assert "unsupported" not in {o.status for o in list_operations(path)}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("opset", [9, 12, 13, 17, 20])
def test_the_exporter_by_tracing(tmp_path, name, opset):
    oldest = {"conv1d and conv3d": 13, "paddings": 12, "activations": 12}  # Unflatten, flip and CELU came then
    if opset < oldest.get(name, 0):
        opset = oldest[name]
    compare(name, tmp_path / "model.onnx", opset, dynamo=False)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "mixer", "decoder", "activations"])
def test_the_exporter_by_torch_export(tmp_path, name):
    compare(name, tmp_path / "model.onnx", 18, dynamo=True)


@pytest.mark.parametrize("name", ["mixer"])
def test_the_exporter_by_torch_export_at_opset_20(tmp_path, name):
    compare(name, tmp_path / "model.onnx", 20, dynamo=True)
