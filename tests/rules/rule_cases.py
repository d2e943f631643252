"""One small node or more of every kind, with the shapes of its inputs: the table that the tests of the rules walk."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lipscope.network import nodes
from lipscope.network.nodes import Node

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Case:
    node: Node
    shapes: Shapes
    positive: bool = False

    def inputs(self, seed: int = 0, batch: int = 3, scale: float = 1.0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        found = [torch.randn(batch, *s, generator=generator, dtype=torch.float64) * scale for s in self.shapes]
        return [x.abs() + 0.5 * scale for x in found] if self.positive else found


def windows(*rows: tuple[int, ...]) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


def pool(length: int, kernel: int, stride: int, padding: int = 0, dilation: int = 1) -> np.ndarray:
    """The windows of a max pooling along one axis, by a plain loop."""
    rows = []
    for p in range((length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1):
        taps = [p * stride - padding + dilation * t for t in range(kernel)]
        taps = [t for t in taps if 0 <= t < length]
        rows.append((taps[0], taps[-1] + 1, dilation))
    return windows(*rows)


def average(length: int, kernel: int, stride: int, padding: int, include: bool) -> np.ndarray:
    rows = pool(length, kernel, stride, padding)
    return windows(*((a, b, kernel if include else b - a) for a, b, _ in rows.tolist()))


def _build(name: str, kind: str, shapes: Shapes, shape: tuple[int, ...], positive: bool = False, **fields) -> Case:
    return Case(
        getattr(nodes, kind)(inputs=tuple(range(len(shapes))), shape=shape, name=name, **fields), shapes, positive
    )


def _random(name: str) -> Callable[..., np.ndarray]:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


def _cases() -> dict[str, Case]:
    w = _random("weights")
    image = ((1, 4, 7, 6),)
    table = {
        "Input": _build("x", "Input", ((2, 3),), (2, 3)),
        "Constant": Case(nodes.Constant(inputs=(), shape=(2, 3), value=w(2, 3)), ()),
        "Dense": _build("d", "Dense", ((5,),), (4,), weight=w(4, 5), bias=w(4), axis=0),
        "Dense middle axis": _build("d", "Dense", ((2, 5, 3),), (2, 4, 3), weight=w(4, 5), axis=1),
        "Conv 1-D": _build(
            "c", "Conv", ((1, 2, 9),), (1, 3, 5), weight=w(3, 2, 4), bias=w(3), stride=(2,), padding=((1, 2),), dilation=(1,)
        ),
        "Conv 2-D groups": _build(
            "c", "Conv", image, (1, 6, 3, 6), weight=w(6, 2, 3, 2), bias=w(6), stride=(2, 1), padding=((0, 1), (1, 1)),
            dilation=(1, 2), groups=2,
        ),
        "Conv 3-D": _build(
            "c", "Conv", ((1, 1, 3, 4, 3),), (1, 2, 2, 3, 2), weight=w(2, 1, 2, 2, 2), stride=(1, 1, 1), padding=((0, 0),) * 3,
            dilation=(1, 1, 1),
        ),
        "ConvTranspose 1-D": _build(
            "t", "ConvTranspose", ((1, 2, 4),), (1, 3, 7), weight=w(2, 3, 3), bias=w(3), stride=(2,), padding=((1, 1),),
            dilation=(1,),
        ),
        "ConvTranspose 2-D": _build(
            "t", "ConvTranspose", ((1, 4, 3, 3),), (1, 6, 6, 7), weight=w(4, 3, 3, 2), bias=w(6), stride=(2, 3),
            padding=((1, 1), (1, 1)), dilation=(1, 1), groups=2,
        ),
        "ConvTranspose 3-D": _build(
            "t", "ConvTranspose", ((1, 1, 2, 2, 2),), (1, 2, 3, 3, 3), weight=w(1, 2, 2, 2, 2), stride=(1, 1, 1),
            padding=((0, 0),) * 3, dilation=(1, 1, 1),
        ),
        "BatchNorm": _build(
            "b", "BatchNorm", image, image[0], mean=w(4), variance=w(4) ** 2, weight=w(4), bias=w(4), eps=1e-5
        ),
        "BatchNorm last axis": _build(
            "b", "BatchNorm", ((3, 5),), (3, 5), mean=w(5), variance=w(5) ** 2, weight=w(5), bias=w(5), eps=1e-3, axis=1
        ),
        "AddConstant": _build("a", "AddConstant", ((2, 3),), (2, 3), value=w(3)),
        "MulConstant": _build("m", "MulConstant", ((2, 3),), (2, 3), value=w(2, 1)),
        "DivConstant": _build("q", "DivConstant", ((2, 3),), (2, 3), value=w(2, 3)),
        "Add": _build("+", "Add", ((2, 3),) * 3, (2, 3)),
        "Concat": _build("cat", "Concat", ((2, 3), (2, 1)), (2, 4), axis=1),
        "Sum": _build("s", "Sum", ((2, 3, 5),), (3,), axes=(0, 2)),
        "Sum kept": _build("s", "Sum", ((2, 3, 5),), (2, 1, 5), axes=(1,)),
        "Mean": _build("mean", "Mean", ((2, 3, 7),), (2, 1, 1), axes=(1, 2)),
        "AveragePool": _build(
            "p", "AveragePool", ((1, 2, 7, 6),), (1, 2, 4, 3), windows=(average(7, 3, 2, 1, True), average(6, 2, 2, 0, True))
        ),
        "AveragePool exclusive": _build(
            "p", "AveragePool", ((1, 2, 7),), (1, 2, 7), windows=(average(7, 3, 1, 1, False),)
        ),
        "Reshape": _build("r", "Reshape", ((2, 3, 2),), (4, 3)),
        "Transpose": _build("tr", "Transpose", ((2, 3, 4),), (4, 2, 3), permutation=(2, 0, 1)),
        "Slice": _build("sl", "Slice", ((5, 4),), (2, 3), ranges=((1, 5, 2), (0, 3, 1))),
        "Pad constant": _build("pad", "Pad", ((2, 3),), (3, 6), pads=((1, 0), (1, 2)), value=0.3),
        "Pad reflect": _build("pad", "Pad", ((2, 4),), (2, 9), pads=((0, 0), (3, 2)), mode="reflect"),
        "Pad edge": _build("pad", "Pad", ((2, 3),), (4, 4), pads=((2, 0), (0, 1)), mode="edge"),
        "Pad wrap": _build("pad", "Pad", ((2, 3),), (2, 8), pads=((0, 0), (2, 3)), mode="wrap"),
        "Gather": _build("g", "Gather", ((2, 4),), (2, 5), indices=np.array([3, -1, 0, 3, 1]), axis=1),
        "Expand": _build("e", "Expand", ((3, 1),), (2, 3, 4)),
        "MaxPool": _build("mp", "MaxPool", image, (1, 4, 4, 3), windows=(pool(7, 3, 2, 1), pool(6, 2, 2))),
        "MaxPool dilated": _build("mp", "MaxPool", ((1, 2, 9),), (1, 2, 4), windows=(pool(9, 3, 2, 1, 2),)),
        "ReduceMax": _build("rm", "ReduceMax", ((2, 3, 4),), (3,), axes=(0, 2)),
        "Maximum": _build("max", "Maximum", ((2, 3),) * 3, (2, 3)),
        "Sort": _build("sort", "Sort", ((3, 4),), (3, 4), axis=1),
        "Sort descending": _build("sort", "Sort", ((3, 4),), (3, 4), axis=0, descending=True),
        "Softmax": _build("sm", "Softmax", ((2, 4, 3),), (2, 4, 3), axis=1),
        "LogSoftmax": _build("ls", "LogSoftmax", ((2, 5),), (2, 5), axis=1),
        "LogSumExp": _build("lse", "LogSumExp", ((2, 3, 4),), (2, 1, 1), axes=(1, 2)),
        "LayerNorm": _build("ln", "LayerNorm", ((3, 2, 4),), (3, 2, 4), axes=(0, 2), eps=1e-5),
        "RMSNorm": _build("rms", "RMSNorm", ((3, 5),), (3, 5), axes=(1,), eps=1e-6),
        "ReduceL2": _build("l2", "ReduceL2", ((3, 5),), (3, 1), axes=(1,)),
        "Multiply": _build("mul", "Multiply", ((2, 3),) * 2, (2, 3)),
        "Divide": _build("div", "Divide", ((2, 3),) * 2, (2, 3), positive=True),
        "MatMul": _build("mm", "MatMul", ((2, 3, 4), (2, 4, 5)), (2, 3, 5)),
    }  # fmt: skip
    return table | _elementwise() | _discontinuous()


FUNCTION_ARGUMENTS = {
    "leaky_relu": (("negative_slope", 0.1),),
    "clip": (("high", 0.75), ("low", -0.5)),
    "softshrink": (("lambd", 0.5),),
    "softplus": (("beta", 2.0),),
    "silu": (("beta", 1.5),),
    "elu": (("alpha", 0.7),),
    "celu": (("alpha", 1.3),),
    "power": (("exponent", 3.0),),
}
FUNCTION_NAMES = (
    "relu leaky_relu prelu abs clip sigmoid tanh sin cos exp arctan erf softsign softplus gelu gelu_tanh silu elu celu selu "
    "mish hardswish tanhshrink softshrink square power sqrt log reciprocal"
).split()


def function_node(name: str, shape: tuple[int, ...], arguments: tuple[tuple[str, float], ...] | None = None) -> Node:
    slope = np.float32([0.25]) if name == "prelu" else None
    given = FUNCTION_ARGUMENTS.get(name, ()) if arguments is None else arguments
    return nodes.Elementwise(inputs=(0,), shape=shape, name=name, function=name, arguments=given, slope=slope)


def _elementwise() -> dict[str, Case]:
    domain = {"sqrt", "log", "reciprocal"}
    return {f"Elementwise {n}": Case(function_node(n, (2, 4)), ((2, 4),), n in domain) for n in FUNCTION_NAMES}


def _discontinuous() -> dict[str, Case]:
    two = {"equal", "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or"}
    rows: dict[str, Case] = {}
    arguments = {
        "threshold": (("threshold", 0.2), ("value", -3.0)),
        "hardshrink": (("lambd", 0.5),),
        "heaviside": (("at_zero", 0.5),),
        "modulo": (("divisor", -0.75),),
    }
    names = "sign round floor ceil truncate logical_not threshold hardshrink heaviside modulo".split() + sorted(two)
    for n in names:
        shapes = ((2, 4),) * (2 if n in two else 1)
        rows[n] = _build(n, "Discontinuous", shapes, (2, 4), operator=n, arguments=arguments.get(n, ()))
    rows["where"] = _build("where", "Discontinuous", ((2, 4),) * 3, (2, 4), operator="where")
    rows["argmax"] = _build("argmax", "Discontinuous", ((2, 4),), (2,), operator="argmax", axis=1)
    rows["argmin"] = _build("argmin", "Discontinuous", ((2, 4),), (1, 4), operator="argmin", axis=0)
    rows["one_hot"] = _build(
        "one_hot", "Discontinuous", ((2,),), (2, 3), operator="one_hot", axis=1, arguments=(("off", 0.1), ("on", 0.9))
    )
    return {f"Discontinuous {n}": case for n, case in rows.items()}


CASES = _cases()
AFFINE = {name: case for name, case in CASES.items() if case.node.affine}
