"""Operator norms: lipscope's enclosures beside the estimators that users know, and the convolutions of ResNet-18.

    python benchmarks/operator_norms.py [--peers FOLDER] [--output benchmarks/results/operator_norms.json]

`--peers` is a folder made by `pip install --no-deps --target FOLDER orthogonium==0.0.4 deel-torchlip==1.0.5 einops`; without
it these rows say that the package is missing. Everything runs in one process on one thread, in float64.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from environment import environment
from torch import nn

from lipscope.bounds.problem import pose
from lipscope.bounds.segments import segment
from lipscope.claims.claim import Claim
from lipscope.network.graph import Graph
from lipscope.network.nodes import Conv, Dense, Input
from lipscope.operator_norm import enclose
from lipscope.rules.linear_map import LinearMap

RESNET18 = [  # in, out, kernel, stride, padding, input size: the distinct convolutions at 224 x 224
    (3, 64, 7, 2, 3, 224),
    (64, 64, 3, 1, 1, 56),
    (64, 128, 3, 2, 1, 56),
    (64, 128, 1, 2, 0, 56),
    (128, 128, 3, 1, 1, 28),
    (128, 256, 3, 2, 1, 28),
    (128, 256, 1, 2, 0, 28),
    (256, 256, 3, 1, 1, 14),
    (256, 512, 3, 2, 1, 14),
    (256, 512, 1, 2, 0, 14),
    (512, 512, 3, 1, 1, 7),
]


def he_convolution(
    inputs: int, outputs: int, kernel: int | tuple[int, int], groups: int = 1, **options: object
) -> nn.Conv2d:
    """A convolution without bias and with He weights from seed 0."""
    layer = nn.Conv2d(inputs, outputs, kernel, groups=groups, bias=False, dtype=torch.float64, **options)
    fan_in = layer.weight[0].numel()
    generator = torch.Generator().manual_seed(0)
    layer.weight.data.copy_(torch.randn(layer.weight.shape, dtype=torch.float64, generator=generator))
    layer.weight.data.mul_(math.sqrt(2 / fan_in))
    return layer.eval()


def linear_map(layer: nn.Module, shape: tuple[int, ...]) -> LinearMap:
    """The layer as lipscope sees it."""
    weight = layer.weight.detach().numpy()
    with torch.no_grad():
        out = tuple(layer(torch.zeros(1, *shape, dtype=torch.float64)).shape)
    begin = Input(inputs=(), shape=(1, *shape), name="input")
    if isinstance(layer, nn.Conv2d):
        padding = tuple((int(p), int(p)) for p in layer.padding)
        node: Conv | Dense = Conv(
            inputs=(0,), shape=out, name="layer", weight=weight, stride=layer.stride, padding=padding,
            dilation=layer.dilation, groups=layer.groups,
        )  # fmt: skip
    else:
        node = Dense(inputs=(0,), shape=out, name="layer", weight=weight, axis=1)
    graph = Graph((begin, node), 1, (shape,), (out[1:],))
    return segment(pose(graph, Claim()), 0, 1).map


def exact(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """The largest singular value of the dense matrix."""
    with torch.no_grad():
        eye = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
        return float(torch.linalg.svdvals(layer(eye).flatten(1))[0])


def power_iteration(layer: nn.Module, shape: tuple[int, ...], steps: int = 100) -> float:
    """The usual estimate from below, with the adjoint by automatic differentiation."""
    x = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        x = (x / x.norm()).requires_grad_(True)
        y = layer(x)
        (x,) = torch.autograd.grad(y, x, y.detach())
    return float(x.norm().sqrt())


def orthogonium(layer: nn.Module, shape: tuple[int, ...]) -> float | str:
    """`get_conv_sv` with three iterations, as in its own documentation."""
    try:
        from orthogonium.layers.conv.singular_values import get_conv_sv
    except ImportError as error:
        return f"missing: {error}"
    if not isinstance(layer, nn.Conv2d):
        return "convolutions only"
    return float(get_conv_sv(layer, n_iter=3, return_stab_rank=False, imsize=shape[-1]))


def torchlip(layer: nn.Module, shape: tuple[int, ...]) -> float | str:
    """Spectral norm of the reshaped kernel over the coefficient that `SpectralConv2d` multiplies by: its implied bound."""
    try:
        from deel.torchlip.normalizers import spectral_normalization
        from deel.torchlip.utils.lconv_norm import compute_lconv_coef
    except ImportError as error:
        return f"missing: {error}"
    torch.manual_seed(0)
    weight = layer.weight.detach().flatten(1)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        sigma = float(spectral_normalization(weight)[2])
    finally:
        torch.set_default_dtype(previous)
    if not isinstance(layer, nn.Conv2d):
        return sigma
    return sigma / float(compute_lconv_coef(layer.kernel_size, (1, *shape), layer.stride))


PEERS: dict[str, Callable[[nn.Module, tuple[int, ...]], float | str]] = {
    "power iteration (100 steps)": power_iteration,
    "orthogonium 0.0.4 get_conv_sv": orthogonium,
    "deel-torchlip 1.0.5": torchlip,
}


def small_layers() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Layers whose dense matrix can be decomposed."""
    dense = {}
    for n in (512, 1000):
        layer = nn.Linear(n, n, bias=False, dtype=torch.float64)
        layer.weight.data.copy_(torch.randn(n, n, generator=torch.Generator().manual_seed(0)) / math.sqrt(n))
        dense[f"dense {n}x{n}"] = (layer.eval(), (n,))
    return dense | {
        "8->8 k3 p1 @16": (he_convolution(8, 8, 3, padding=1), (8, 16, 16)),
        "16->16 k3 p1 @12": (he_convolution(16, 16, 3, padding=1), (16, 12, 12)),
        "8->16 k3 s2 p1 @16": (he_convolution(8, 16, 3, stride=2, padding=1), (8, 16, 16)),
        "8->8 k4 s2 p1 @16": (he_convolution(8, 8, 4, stride=2, padding=1), (8, 16, 16)),
        "8->8 k2 s2 d2 p1 @16": (he_convolution(8, 8, 2, stride=2, dilation=2, padding=1), (8, 16, 16)),
        "8->8 k(3,1) p(1,0) @16": (he_convolution(8, 8, (3, 1), padding=(1, 0)), (8, 16, 16)),
        "8->8 k3 p1 groups 4 @16": (he_convolution(8, 8, 3, groups=4, padding=1), (8, 16, 16)),
        "8->16 k1 @16": (he_convolution(8, 16, 1), (8, 16, 16)),
    }


def timed(function: Callable[[], float | str]) -> tuple[float | str, float]:
    """The value and the seconds it took; an exception becomes its text."""
    begin = time.perf_counter()
    try:
        value: float | str = function()
    except Exception as error:  # noqa: BLE001 - a peer may raise anything; the table says what
        value = f"{type(error).__name__}: {error}"
    return value, time.perf_counter() - begin


def ours(layer: nn.Module, shape: tuple[int, ...], failure: float = 1e-9) -> dict[str, object]:
    """lipscope's enclosure as a row."""
    found = enclose(linear_map(layer, shape), "l2", failure=failure)
    return {
        "lower": found.lower,
        "upper": found.upper,
        "ratio": found.upper / found.lower,
        "method": found.evidence["kind"],
        "evidence": found.evidence,
        "failure": found.failure,
        "seconds": found.seconds,
    }


def compare() -> list[dict[str, object]]:
    """The small layers: every method's value relative to the exact one, and its time."""
    rows = []
    for name, (layer, shape) in small_layers().items():
        truth, seconds = exact(layer, shape), timed(lambda layer=layer, shape=shape: exact(layer, shape))[1]
        row: dict[str, object] = {"layer": name, "exact": truth, "seconds of the dense decomposition": seconds}
        mine = ours(layer, shape)
        row["lipscope"] = mine
        print(f"\n{name}: exact {truth:.9f} ({seconds:.3f} s by dense SVD)")
        low, high = float(str(mine["lower"])) / truth - 1, float(str(mine["upper"])) / truth - 1
        print(f"  {'lipscope':32s} [{low:+.1e}, {high:+.1e}]  {mine['method']}  {mine['seconds']:.4f} s")
        for peer, estimate in PEERS.items():
            value, seconds = timed(lambda layer=layer, shape=shape, estimate=estimate: estimate(layer, shape))
            row[peer] = {"value": value, "seconds": seconds}
            if isinstance(value, float):
                row[peer]["relative error"] = value / truth - 1
                print(
                    f"  {peer:32s} {value / truth - 1:+.1e}  {seconds:.4f} s{'  BELOW' if value < truth * (1 - 1e-9) else ''}"
                )
            else:
                print(f"  {peer:32s} {value}")
        rows.append(row)
    return rows


def resnet() -> list[dict[str, object]]:
    """The distinct convolutions of ResNet-18 with He weights."""
    rows = []
    print("\nResNet-18 at 224, He weights, tolerance 1e-3, failure 1e-9")
    for inputs, outputs, kernel, stride, padding, size in RESNET18:
        layer = he_convolution(inputs, outputs, kernel, stride=stride, padding=padding)
        row = ours(layer, (inputs, size, size))
        name = f"{inputs}->{outputs} k{kernel} s{stride} @{size}"
        print(
            f"  {name:24s} [{row['lower']:.6f}, {row['upper']:.6f}]  ratio {row['ratio']:.7f}  {row['method']:9s}"
            f" {row['seconds']:.1f} s",
            flush=True,
        )
        value, seconds = timed(lambda layer=layer, shape=(inputs, size, size): power_iteration(layer, shape))
        rows.append({"layer": name, **row, "power iteration (100 steps)": {"value": value, "seconds": seconds}})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="folder with the peer packages")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "operator_norms.json")
    arguments = parser.parse_args()
    if arguments.peers:
        sys.path.append(str(arguments.peers))
    torch.set_num_threads(1)
    result = {"environment": environment(), "small layers": compare(), "ResNet-18": resnet()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
