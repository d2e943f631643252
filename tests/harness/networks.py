"""Tiny networks by name. Each is built after seeding, so a name always means the same weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Network:
    """A network of the table.

    Attributes:
        name: its name, the id of its tests.
        build: makes the module; called after seeding.
        shape: of one example.
        smooth: whether it has activations that are not piecewise linear.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    smooth: bool = False

    def module(self) -> nn.Module:
        """The network in eval mode, in double precision, with batch statistics that are not the identity."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sum(map(ord, self.name)))
            module = self.build().double()
            for part in module.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.running_mean.normal_()
                    part.running_var.uniform_(0.1, 3.0)
                    nn.init.normal_(part.weight)
                    nn.init.normal_(part.bias)
        return module.eval()


class Residual(nn.Module):
    """x + inner(x)"""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Dense(nn.Module):
    """cat(x, inner(x)), as in a DenseNet."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inner(x)], 1)


class MaxMin(nn.Module):
    """Pairs of neighbouring channels, sorted."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, 2).sort(-1).values.reshape(x.shape)


def dense(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    """Linear layers with activations between."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b, bias=bias), act()]
    return nn.Sequential(*layers[:-1])


def conv(*args: int, act: Callable[[], nn.Module] = nn.ReLU, dim: int = 2, **kwargs: object) -> nn.Sequential:
    """One convolution, an activation, and a linear layer that torch sizes itself (lazily, on the test's image)."""
    kind = nn.Conv2d if dim == 2 else nn.Conv1d
    return nn.Sequential(kind(*args, **kwargs), act(), nn.Flatten(), nn.LazyLinear(2))


def sized(module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The module after its lazy layers have seen an example."""
    module.eval()(torch.zeros(1, *shape))
    return module


I1, I2 = (2, 9), (2, 5, 5)


def _conv(name: str, *args: int, shape: tuple[int, ...] = I2, **kwargs: object) -> Network:
    return Network(name, lambda: sized(conv(*args, **kwargs), shape), shape)


def _net(name: str, build: Callable[[], nn.Module], shape: tuple[int, ...], smooth: bool = False) -> Network:
    return Network(name, lambda: sized(build(), shape), shape, smooth)


NETWORKS: tuple[Network, ...] = (
    _net("linear", lambda: dense(4, 3), (4,)),
    _net("linear-chain", lambda: nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3, bias=False)), (4,)),
    _net("one-hidden", lambda: dense(6, 5, 3), (6,)),
    _net("scalar-output", lambda: dense(8, 7, 1), (8,)),
    _net("no-bias", lambda: dense(6, 5, 2, bias=False), (6,)),
    _net("one-input", lambda: dense(1, 5, 4, 2), (1,)),
    _net("two-hidden", lambda: dense(4, 4, 4, 2), (4,)),
    _net("deep", lambda: dense(3, 3, 3, 3, 3, 2), (3,)),
    _net("one-unit", lambda: dense(3, 1, 3), (3,)),
    _net("leaky", lambda: dense(5, 5, 2, act=lambda: nn.LeakyReLU(0.2)), (5,)),
    _net("leaky-steep", lambda: dense(5, 5, 2, act=lambda: nn.LeakyReLU(3.0)), (5,)),
    _net("leaky-negative", lambda: dense(5, 5, 2, act=lambda: nn.LeakyReLU(-1.5)), (5,)),
    _net("prelu-steep", lambda: dense(5, 4, 2, act=lambda: nn.PReLU(init=1.7)), (5,)),
    _net("hardtanh", lambda: dense(5, 4, 2, act=lambda: nn.Hardtanh(-0.5, 0.7)), (5,)),
    _net("batchnorm", lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)), (5,)),
    _net("residual", lambda: nn.Sequential(Residual(dense(4, 4, 4)), nn.Linear(4, 2)), (4,)),
    _net("densenet", lambda: nn.Sequential(Dense(dense(4, 3)), nn.ReLU(), nn.Linear(7, 2)), (4,)),
    _net("maxmin", lambda: nn.Sequential(nn.Linear(6, 6), MaxMin(), nn.Linear(6, 2)), (6,)),
    _net("zero-layer", lambda: _zeroed(dense(4, 4, 2)), (4,)),
    _conv("conv", 2, 2, 3, padding=1, shape=(2, 4, 4)),
    _conv("conv-valid", 2, 2, 3),
    _conv("conv-stride", 2, 3, 3, stride=2, padding=1),
    _conv("conv-even-kernel", 2, 2, 2, padding=1, stride=2),
    _conv("conv-dilated-stride", 1, 2, 3, stride=2, dilation=2, padding=2, shape=(1, 6, 6)),
    _conv("conv-groups", 4, 4, 3, groups=2, padding=1, shape=(4, 3, 3)),
    _conv("conv-rectangular", 1, 2, (3, 2), padding=(1, 0), stride=(2, 1), shape=(1, 5, 4)),
    _conv("conv-reflect", 1, 1, 3, padding=1, padding_mode="reflect", shape=(1, 4, 4)),
    _conv("conv-replicate", 1, 1, 3, padding=2, padding_mode="replicate", shape=(1, 3, 4)),
    _conv("conv-circular", 1, 1, 3, padding=1, padding_mode="circular", shape=(1, 4, 4)),
    # Fewer units than inputs, so that all patterns are reachable and can be enumerated.
    _conv("conv-few-stride", 2, 1, 3, stride=2, padding=1, shape=(2, 4, 4)),
    _conv("conv-few-even", 2, 2, 2, stride=2, shape=(2, 4, 4)),
    _conv("conv-few-dilated", 1, 1, 3, stride=2, dilation=2, padding=2, shape=(1, 6, 6)),
    _conv("conv-few-rectangular", 1, 1, (3, 2), stride=2, padding=(1, 0), shape=(1, 5, 4)),
    _conv("conv-few-groups", 4, 2, 2, groups=2, stride=2, shape=(4, 4, 4)),
    _conv("conv-1d", 2, 2, 3, padding=1, dim=1, shape=I1),
    _net("conv-batchnorm", lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)), (1, 4, 4)),
    _net("conv-transpose", lambda: nn.Sequential(nn.ConvTranspose2d(2, 1, 3, stride=2, padding=1, output_padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)), (2, 2, 2)),
    _net("max-pool-overlap", lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.LazyLinear(2)), (1, 5, 5)),
    _net("average-pool-ceil", lambda: nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True), nn.Flatten(), nn.LazyLinear(3)), (1, 5, 5)),
    _net("average-pool-excluding", lambda: nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.Flatten(), nn.LazyLinear(3)), (1, 4, 4)),
    _net("global-pools", lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), (1, 4, 4)),
    _net("upsample", lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(1, 1, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)), (1, 3, 3)),
    _net("gelu", lambda: dense(4, 5, 3, act=nn.GELU), (4,), True),
    _net("silu", lambda: dense(4, 5, 3, act=nn.SiLU), (4,), True),
    _net("tanh", lambda: dense(3, 5, 5, 2, act=nn.Tanh), (3,), True),
    _net("sigmoid", lambda: dense(3, 5, 2, act=nn.Sigmoid), (3,), True),
    _net("elu-steep", lambda: dense(3, 5, 2, act=lambda: nn.ELU(4.0)), (3,), True),
    _net("selu", lambda: dense(3, 5, 2, act=nn.SELU), (3,), True),
    _net("softplus", lambda: dense(3, 5, 2, act=lambda: nn.Softplus(2.0)), (3,), True),
    _net("mish", lambda: dense(3, 5, 2, act=nn.Mish), (3,), True),
    _net("hardswish", lambda: dense(3, 5, 2, act=nn.Hardswish), (3,), True),
    _net("softmax", lambda: nn.Sequential(dense(4, 5, 3), nn.Softmax(1)), (4,), True),
    _net("log-softmax", lambda: nn.Sequential(dense(4, 5, 3), nn.LogSoftmax(1)), (4,), True),
    _net("layernorm", lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5, eps=0.1), nn.ReLU(), nn.Linear(5, 2)), (4,), True),
    _net("rmsnorm", lambda: nn.Sequential(nn.Linear(4, 5), nn.RMSNorm(5, eps=0.1), nn.ReLU(), nn.Linear(5, 2)), (4,), True),
)  # fmt: skip


def _zeroed(module: nn.Sequential) -> nn.Sequential:
    nn.init.zeros_(module[2].weight)
    return module


BY_NAME = {network.name: network for network in NETWORKS}
