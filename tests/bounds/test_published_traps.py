"""Constructs for which published packages returned a bound below the truth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.expect import expect_close, expect_lower, expect_upper
from lipscope import bound, load


def linear(weight: list[list[float]], bias: bool = True) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if bias:
            layer.bias.zero_()
    return layer


def one(value: float = 1.0, bias: bool = True) -> nn.Linear:
    return linear([[value]], bias)


def batchnorm() -> nn.Module:
    norm = nn.BatchNorm1d(1)
    nn.init.constant_(norm.weight, 20.0)
    return nn.Sequential(one(), norm, nn.ReLU(), one())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = one(0.1), one(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x)))


def convolution() -> nn.Module:
    conv = nn.Conv2d(1, 1, 1)
    nn.init.constant_(conv.weight, 20.0)
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear(torch.eye(4).tolist()), nn.ReLU(), linear([[1.0] * 4]))


class Disordered(nn.Module):
    """Declared out, inp, mid; called inp, mid, out."""

    def __init__(self) -> None:
        super().__init__()
        self.out = linear([[2.0, 0.0], [0.0, 0.1]])
        self.inp = linear([[0.0, 1.0], [1.0, 0.0]])
        self.mid = linear([[3.0, 0.0], [0.0, 0.1]])

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.mid(torch.relu(self.inp(x)))))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = one(), one()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(3 * torch.relu(self.a(x)))


class Shared(nn.Module):
    """One layer three times, then another; all weights 2."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = one(2.0), one(2.0)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.relu(self.a(x))
        return self.b(x)


def zero_layer() -> nn.Module:
    return nn.Sequential(one(), nn.ReLU(), one(0.0))


CASES = {
    "batchnorm": (batchnorm, (1,), 20 / (1 + 1e-5) ** 0.5),
    "residual": (Residual, (1,), 1 + float(torch.tensor(0.1)) ** 2),  # 0.1 as float32 holds it
    "convolution": (convolution, (1, 2, 2), 40.0),
    "gelu": (lambda: nn.Sequential(one(), nn.GELU(), one()), (1,), 1.128904145185155),
    "silu": (lambda: nn.Sequential(one(), nn.SiLU(), one()), (1,), 1.099839320128867),
    "leaky slope 3": (lambda: nn.Sequential(one(), nn.LeakyReLU(3.0), one()), (1,), 3.0),
    "elu 4": (lambda: nn.Sequential(one(), nn.ELU(4.0), one()), (1,), 4.0),
    "declared in another order": (Disordered, (2,), 6.0),
    "functional code": (Functional, (1,), 3.0),
    "shared layer": (Shared, (1,), 16.0),
    "no bias": (lambda: nn.Sequential(one(2.0, bias=False), nn.ReLU(), one(3.0, bias=False)), (1,), 6.0),
    "zero layer": (zero_layer, (1,), 0.0),
    "single linear": (lambda: one(2.5), (1,), 2.5),
}


@pytest.mark.parametrize("name", CASES)
def test_the_bound_is_right_rather_than_refused(name: str) -> None:
    build, shape, truth = CASES[name]
    result = bound(load(build().eval(), input_shape=shape), "l2", budget=4)
    assert result.upper.status == "certified", result.upper
    expect_upper(result.upper.value, truth * (1 - 1e-12), name)
    expect_close(result.upper.value, truth, 1e-6, name)
    expect_lower(result.lower, truth * (1 + 1e-12), name)
    if truth:
        expect_close(result.lower, truth, 1e-2, name)


def test_two_hidden_layers_seed_zero() -> None:
    """A bound of 3.110 was once returned for this network, which has a point with Jacobian norm 3.277."""
    import numpy as np

    generator = np.random.default_rng(0)
    layers: list[nn.Module] = []
    for a, b in ((64, 32), (32, 32), (32, 1)):
        layer = nn.Linear(a, b).double()
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(generator.standard_normal((b, a)) * np.sqrt(2 / a)))
            layer.bias.copy_(torch.from_numpy(0.1 * generator.standard_normal(b)))
        layers += [layer, nn.ReLU()]
    model = load(nn.Sequential(*layers[:-1]).eval(), input_shape=(64,))
    product = bound(model, "l2", method="product", budget=8)
    expect_upper(product.upper.value, 3.277)
    expect_close(product.upper.value, 8.955220, 1e-6)
    best = bound(model, "l2", method="lipsdp", budget=8)
    expect_upper(best.upper.value, 3.277)
    expect_close(best.upper.value, 3.627624, 1e-6)
    assert best.upper.status == "certified"
