"""Values against torch modules, numpy and plain loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lipscope.claims.errors import LipscopeError
from lipscope.network.nodes import AveragePool, ConvTranspose, Elementwise, MaxPool
from lipscope.rules import evaluate
from rules.rule_cases import CASES, FUNCTION_NAMES, average, function_node, pool
from rules.test_slopes import ORACLE, mp


def w(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float64))


def batch(shape: tuple[int, ...], function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function of one example, looped over the batch."""
    return lambda x: torch.stack([function(v) for v in x])


def conv_oracle(node, x: Tensor) -> Tensor:
    """The sentence of the docstring, entry by entry."""
    out = np.zeros(node.shape)
    weight, groups = node.weight.astype(np.float64), node.groups
    per_out, per_in = weight.shape[0] // groups, weight.shape[1]
    for n, o, *p in np.ndindex(*node.shape):
        total = 0.0 if node.bias is None else float(node.bias[o])
        for c, *t in np.ndindex(*weight.shape[1:]):
            place = [s * i + d * k - low for s, i, d, k, (low, _) in
                     zip(node.stride, p, node.dilation, t, node.padding, strict=True)]  # fmt: skip
            if all(0 <= i < size for i, size in zip(place, x.shape[2:], strict=True)):
                total += weight[(o, c, *t)] * float(x[(n, c + o // per_out * per_in, *place)])
        out[(n, o, *p)] = total
    return torch.from_numpy(out)


def transpose_oracle(node: ConvTranspose, x: Tensor) -> Tensor:
    """Every input entry spreads its kernel."""
    out = np.zeros(node.shape)
    weight, groups = node.weight.astype(np.float64), node.groups
    per_in, per_out = weight.shape[0] // groups, weight.shape[1]
    for n, c, *i in np.ndindex(*x.shape):
        for o, *t in np.ndindex(*weight.shape[1:]):
            place = [s * a + d * k - low for s, a, d, k, (low, _) in
                     zip(node.stride, i, node.dilation, t, node.padding, strict=True)]  # fmt: skip
            if all(0 <= a < size for a, size in zip(place, node.shape[2:], strict=True)):
                out[(n, c // per_in * per_out + o, *place)] += weight[(c, o, *t)] * float(x[(n, c, *i)])
    if node.bias is not None:
        out += node.bias.astype(np.float64).reshape(-1, *(1,) * (out.ndim - 2))
    return torch.from_numpy(out)


def pool_oracle(node: AveragePool | MaxPool, x: Tensor) -> Tensor:
    out = torch.zeros(node.shape, dtype=torch.float64)
    lead = len(node.shape) - len(node.windows)
    for index in itertools.product(*map(range, node.shape)):
        rows = [table[i] for table, i in zip(node.windows, index[lead:], strict=True)]
        steps = [1 if isinstance(node, AveragePool) else int(r[2]) for r in rows]
        block = x[(*index[:lead], *(slice(int(r[0]), int(r[1]), s) for r, s in zip(rows, steps, strict=True)))]
        divisor = math.prod(int(r[2]) for r in rows)
        out[index] = block.sum() / divisor if isinstance(node, AveragePool) else block.max()
    return out


def numpy(function: Callable[..., np.ndarray]) -> Callable[..., Tensor]:
    return lambda node, *x: torch.from_numpy(np.array(function(node, *(v.numpy() for v in x)), dtype=np.float64))


def axes(node) -> dict[str, object]:
    return {"axis": node.axes, "keepdims": len(node.shape) > 1}


ORACLES: dict[str, Callable[..., Tensor]] = {
    "Dense": lambda n, x: (
        torch.tensordot(w(n.weight), x, ([1], [n.axis])).movedim(0, n.axis) + (0 if n.bias is None else w(n.bias))
    ),
    "Conv": conv_oracle,
    "ConvTranspose": transpose_oracle,
    "BatchNorm": lambda n, x: F.batch_norm(
        x if n.axis == 1 else x[None], w(n.mean), w(n.variance), w(n.weight), w(n.bias), False, 0.0, n.eps
    ).reshape(n.shape),
    "AddConstant": lambda n, x: x + w(n.value),
    "MulConstant": lambda n, x: x * w(n.value),
    "DivConstant": lambda n, x: x / w(n.value),
    "Add": lambda n, *x: sum(x),
    "Concat": lambda n, *x: torch.cat(x, n.axis),
    "Sum": numpy(lambda n, x: x.sum(**axes(n))),
    "Mean": numpy(lambda n, x: x.mean(**axes(n))),
    "ReduceMax": numpy(lambda n, x: x.max(**axes(n))),
    "ReduceL2": numpy(lambda n, x: np.sqrt((x**2).sum(**axes(n)))),
    "LogSumExp": numpy(lambda n, x: np.log(np.exp(x).sum(**axes(n)))),
    "AveragePool": pool_oracle,
    "MaxPool": pool_oracle,
    "Reshape": numpy(lambda n, x: x.reshape(n.shape)),
    "Transpose": numpy(lambda n, x: x.transpose(n.permutation)),
    "Slice": numpy(lambda n, x: x[tuple(slice(*r) for r in n.ranges)]),
    "Pad": numpy(
        lambda n, x: np.pad(x, n.pads, mode=n.mode, **({"constant_values": n.value} if n.mode == "constant" else {}))
    ),
    "Gather": numpy(lambda n, x: np.take(x, n.indices, n.axis)),
    "Expand": numpy(lambda n, x: np.broadcast_to(x, n.shape)),
    "Maximum": numpy(lambda n, *x: np.maximum.reduce(x)),
    "Sort": numpy(lambda n, x: np.flip(np.sort(x, n.axis), n.axis) if n.descending else np.sort(x, n.axis)),
    "Softmax": numpy(lambda n, x: np.exp(x) / np.exp(x).sum(n.axis, keepdims=True)),
    "LogSoftmax": numpy(lambda n, x: x - np.log(np.exp(x).sum(n.axis, keepdims=True))),
    "LayerNorm": numpy(
        lambda n, x: (x - x.mean(n.axes, keepdims=True)) / np.sqrt(x.var(n.axes, keepdims=True) + n.eps)
    ),
    "RMSNorm": numpy(lambda n, x: x / np.sqrt((x**2).mean(n.axes, keepdims=True) + n.eps)),
    "Multiply": lambda n, a, b: a * b,
    "Divide": lambda n, a, b: a / b,
    "MatMul": numpy(lambda n, a, b: np.matmul(a, b)),
}


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.node.kind in ORACLES])
def test_value_is_what_the_definition_says(name: str) -> None:
    case = CASES[name]
    inputs = case.inputs(1)
    got = evaluate(case.node, *inputs)
    assert got.shape == (3, *case.node.shape)
    assert got.dtype == torch.float64
    for i in range(3):
        wanted = ORACLES[case.node.kind](case.node, *(x[i] for x in inputs)).reshape(case.node.shape)
        torch.testing.assert_close(got[i], wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", FUNCTION_NAMES)
def test_functions_in_fifty_digits(name: str) -> None:
    node = function_node(name, (1,))
    assert isinstance(node, Elementwise)
    for x in (-30.0, -3.0, -1.25, -0.5, -1e-5, 0.0, 1e-5, 0.4, 0.75, 2.0, 3.0, 25.0):
        if (name == "sqrt" and x < 0) or (name == "log" and x <= 0) or (name == "reciprocal" and x == 0):
            continue
        with mp.workdps(60):
            wanted = float(ORACLE[name](mp.mpf(x), node.argument))
        got = float(evaluate(node, torch.tensor([[x]], dtype=torch.float64)))
        assert got == pytest.approx(wanted, rel=1e-12, abs=2e-15)


@pytest.mark.parametrize("name", sorted(set(FUNCTION_NAMES) - {"sqrt", "log", "exp", "reciprocal"}))
def test_functions_and_gradients_are_finite_far_out(name: str) -> None:
    x = torch.tensor([[-1e4, -800.0, 0.0, 800.0, 1e4]], dtype=torch.float64, requires_grad=True)
    y = evaluate(function_node(name, (5,)), x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.isfinite(y).all()
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize(("operator", "x", "wanted"), [
    ("sign", [-2.0, 0.0, 3.0], [-1, 0, 1]), ("round", [0.5, 1.5, -2.5], [0, 2, -2]), ("floor", [-0.5, 1.5, 2], [-1, 1, 2]),
    ("ceil", [-0.5, 1.5, 2], [0, 2, 2]), ("truncate", [-1.5, 1.5, 2], [-1, 1, 2]), ("logical_not", [0, 2, -1], [1, 0, 0]),
    ("threshold", [0.1, 0.2, 0.3], [-3, -3, 0.3]), ("hardshrink", [-0.6, 0.5, 0.6], [-0.6, 0, 0.6]),
    ("heaviside", [-1, 0, 1], [0, 0.5, 1]), ("modulo", [1.0, -0.25, 0.75], [-0.5, -0.25, 0.0]),
])  # fmt: skip
def test_jumps(operator: str, x: list[float], wanted: list[float]) -> None:
    node = CASES[f"Discontinuous {operator}"].node
    padded = torch.tensor([*x, 0.0] * 2, dtype=torch.float64).reshape(1, 2, 4)
    assert evaluate(node, padded)[0, 0, :3].tolist() == wanted


def test_choices() -> None:
    tie = torch.tensor([[[1.0, 3.0, 3.0, 0.0], [0.0, 0.0, -1.0, -1.0]]], dtype=torch.float64)
    assert evaluate(CASES["Discontinuous argmax"].node, tie).tolist() == [[1, 0]]
    assert evaluate(CASES["Discontinuous argmin"].node, tie).tolist() == [[[1, 1, 1, 1]]]
    labels = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    assert evaluate(CASES["Discontinuous one_hot"].node, labels).tolist() == [[[0.1, 0.1, 0.9], [0.9, 0.1, 0.1]]]
    condition = torch.tensor([[[1.0, 0.0, -2.0, 0.0]] * 2], dtype=torch.float64)
    chosen = evaluate(CASES["Discontinuous where"].node, condition, tie, -tie)
    assert chosen[0, 0].tolist() == [1, -3, 3, 0]
    less = evaluate(CASES["Discontinuous less"].node, condition, tie)
    assert less[0, 0].tolist() == [0, 1, 1, 0]
    assert evaluate(CASES["Discontinuous logical_and"].node, condition, tie)[0, 0].tolist() == [1, 0, 1, 0]


def test_pools_agree_with_torch() -> None:
    x = torch.randn(2, 1, 3, 11, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for kernel, stride, padding, dilation in ((3, 2, 1, 1), (2, 2, 0, 1), (3, 1, 1, 2)):
        rows = pool(11, kernel, stride, padding, dilation)
        node = MaxPool(inputs=(0,), shape=(1, 3, len(rows), len(rows)), windows=(rows, rows))
        wanted = F.max_pool2d(x[:, 0], kernel, stride, padding, dilation)
        assert torch.equal(evaluate(node, x)[:, 0], wanted)
    for include in (True, False):
        rows = average(11, 3, 2, 1, include)
        node = AveragePool(inputs=(0,), shape=(1, 3, len(rows), len(rows)), windows=(rows, rows))
        wanted = F.avg_pool2d(x[:, 0], 3, 2, 1, count_include_pad=include)
        torch.testing.assert_close(evaluate(node, x)[:, 0], wanted, rtol=1e-14, atol=1e-15)


def test_transposed_convolution_pads_its_output() -> None:
    case = CASES["ConvTranspose 2-D"]
    (x,) = case.inputs(2)
    wanted = F.conv_transpose2d(
        x[:, 0], w(case.node.weight), w(case.node.bias), (2, 3), (1, 1), (1, 1), groups=2, dilation=(1, 1)
    )
    got = evaluate(case.node, x)[:, 0]
    torch.testing.assert_close(got[..., :-1, :-1], wanted[..., :6, :6][..., :5, :6], rtol=1e-13, atol=1e-13)


def test_constants_broadcast_over_the_batch() -> None:
    x = CASES["Concat"].inputs(0, 3)[0]
    one = evaluate(CASES["Constant"].node)
    assert one.shape == (1, 2, 3)
    assert evaluate(CASES["Concat"].node, one, x[:, :, :1]).shape == (3, 2, 4)


def test_read_only_weights_raise_no_warning() -> None:
    node = CASES["Dense"].node
    frozen = node.weight.astype(np.float64)
    frozen.setflags(write=False)
    got = evaluate(type(node)(inputs=(0,), shape=(4,), weight=frozen, axis=0), torch.ones(1, 5, dtype=torch.float64))
    torch.testing.assert_close(got[0], torch.from_numpy(frozen.copy()).sum(1))


def test_unknown_functions_and_parameters_are_named() -> None:
    x = torch.zeros(1, 1, dtype=torch.float64)
    with pytest.raises(LipscopeError, match="got 'wish' at layer 'act'"):
        evaluate(Elementwise(inputs=(0,), shape=(1,), name="act", function="wish"), x)
    with pytest.raises(LipscopeError, match=r"elu to have the parameters \['alpha'\], got \[\] at layer 'act'"):
        evaluate(Elementwise(inputs=(0,), shape=(1,), name="act", function="elu"), x)
