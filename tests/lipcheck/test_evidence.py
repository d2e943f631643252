"""Every kind of evidence: accepted just above the true norm, refused just below it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lipcheck
from harness.bundle_writer import Net, claim, proof, segment, write
from lipcheck.bundle import Bundle
from lipcheck.nodes import Network, read_network
from lipcheck.segments import build


def network(net: Net) -> Network:
    return read_network(Bundle({"graph.json": net.document()}, net.arrays.known))


def dense_matrix(net: Net, output: int | None = None) -> np.ndarray:
    """The matrix of a network of affine nodes: f(e_j) - f(0), brute force on boxes' centres."""
    from lipcheck.boxes import Box, Boxes

    graph = network(net)
    size = graph.nodes[0].size

    def value(x: np.ndarray) -> np.ndarray:
        box = Boxes(graph, Box(x, x))[graph.output if output is None else output]
        return ((box.lo + box.hi) / 2).ravel()

    origin = value(np.zeros(size))
    return np.stack([value(row) - origin for row in np.eye(size)], axis=1)


def verdict(tmp_path: Path, net: Net, t: float, kind: str, norm: str = "l2", admitted: float = 0.0,
            **fields: Any) -> lipcheck.Verdict:  # fmt: skip
    document = net.document()
    steps = [segment(document["output"], 0, t, kind, **fields)]
    folder = write(
        tmp_path / "bundle", document, claim(document, norm, np.nextafter(t, np.inf), failure=admitted), proof(steps),
        net.arrays,
    )  # fmt: skip
    return lipcheck.check(folder)


def conv_net(rng: np.random.Generator, n: int = 9, stride: int = 1, dilation: int = 1, groups: int = 1, kernel: Any = (3, 3),
             padding: Any = ((1, 1), (1, 1)), scale: bool = False) -> Net:  # fmt: skip
    net = Net(1, 2 * groups, n, n)
    weight = rng.standard_normal((3 * groups, 2, *kernel))
    spatial = [(n + sum(p) - dilation * (k - 1) - 1) // stride + 1 for k, p in zip(kernel, padding, strict=True)]
    last = net.add("Conv", 0, (1, 3 * groups, *spatial), weight=weight, bias=rng.standard_normal(3 * groups),
                   stride=[stride] * 2, padding=padding, dilation=[dilation] * 2, groups=groups)  # fmt: skip
    if scale:
        c = 3 * groups
        net.add("BatchNorm", last, net.shape(last), mean=rng.standard_normal(c), variance=rng.uniform(0.1, 2, c),
                weight=rng.standard_normal(c), bias=rng.standard_normal(c), eps=1e-5, axis=1)  # fmt: skip
    return net


def mixed_net(rng: np.random.Generator) -> Net:
    """A DAG of many affine kinds."""
    net = Net(1, 2, 6, 6)
    a = net.add("Conv", 0, (1, 4, 6, 6), weight=rng.standard_normal((4, 2, 3, 3)).astype(np.float32), bias=None,
                stride=[1, 1], padding=[[1, 1], [1, 1]], dilation=[1, 1], groups=1)  # fmt: skip
    b = net.add("MulConstant", a, (1, 4, 6, 6), value=rng.standard_normal((4, 1, 1)))
    c = net.add("Add", [a, b, a], (1, 4, 6, 6))
    windows = [np.array([[0, 2, 2], [1, 4, 3], [3, 6, 3]])] * 2
    d = net.add("AveragePool", c, (1, 4, 3, 3), windows=windows)
    e = net.add("Pad", d, (1, 4, 5, 5), pads=[[0, 0], [0, 0], [1, 1], [1, 1]], mode="reflect", value=0.0)
    f = net.add("ConvTranspose", e, (1, 2, 11, 11), weight=rng.standard_normal((4, 2, 3, 3)), bias=None, stride=[2, 2],
                padding=[[0, 0], [1, 1]], dilation=[1, 1], groups=1)  # fmt: skip
    g = net.add("Transpose", f, (1, 11, 11, 2), permutation=[0, 2, 3, 1])
    h = net.add("Slice", g, (1, 5, 4, 2), ranges=[[0, 1, 1], [0, 10, 2], [1, 9, 2], [0, 2, 1]])
    i = net.add("Gather", h, (1, 7, 4, 2), indices=np.array([0, 0, 3, 1, 4, 4, 4]), axis=1)
    j = net.add("Mean", i, (1, 7, 2), axes=[2])
    k = net.add("Sum", i, (1, 1, 4, 2), axes=[1])
    p = net.add("Reshape", k, (8,))
    q = net.add("Reshape", j, (14,))
    r = net.add("Concat", [p, q], (22,), axis=0)
    s = net.add("DivConstant", r, (22,), value=rng.uniform(0.5, 2, 22))
    u = net.add("Expand", s, (3, 22))
    net.dense(u, rng.standard_normal((5, 22)), rng.standard_normal(5))
    return net


def sigma(net: Net) -> float:
    graph = network(net)
    operator = build(graph, {}, 0, graph.output)
    size = graph.nodes[0].size
    return float(
        np.linalg.svd(
            operator.apply(np.eye(size).reshape(-1, *operator.shapes[0])).reshape(size, -1), compute_uv=False
        )[0]
    )


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("builder", [mixed_net, conv_net])
def test_cholesky_is_sharp(tmp_path: Path, builder: Any, side: str) -> None:
    net = builder(np.random.default_rng(0))
    true = sigma(net)
    good = verdict(tmp_path / "a", net, true * (1 + 1e-6), "cholesky", side=side, axis=None, bounds=[])
    assert good.accepted, good.reasons
    bad = verdict(tmp_path / "b", net, true * (1 - 1e-6), "cholesky", side=side, axis=None, bounds=[])
    assert not bad.accepted


@pytest.mark.parametrize("factor", [1.0, 1e-200, 1e-290, 1e150, 1e-30])
def test_cholesky_at_any_scale(tmp_path: Path, factor: float) -> None:
    net = Net(12)
    weight = np.random.default_rng(4).standard_normal((7, 12)) * factor
    net.dense(0, weight)
    true = float(np.linalg.svd(weight / factor, compute_uv=False)[0]) * factor
    good = verdict(tmp_path / "a", net, true * (1 + 1e-6), "cholesky", side="input", axis=None, bounds=[])
    assert good.accepted, good.reasons
    assert not verdict(tmp_path / "b", net, true * (1 - 1e-6), "cholesky", side="output", axis=None, bounds=[]).accepted


@pytest.mark.parametrize("side", ["input", "output"])
def test_cholesky_in_slabs(tmp_path: Path, side: str) -> None:
    net = conv_net(np.random.default_rng(1), n=12, stride=2 if side == "input" else 1)
    true, bounds = sigma(net), list(range(0, 13, 3))
    good = verdict(tmp_path / "a", net, true * (1 + 1e-6), "cholesky", side=side, axis=2, bounds=bounds)
    assert good.accepted, good.reasons
    assert not verdict(tmp_path / "b", net, true * (1 - 1e-6), "cholesky", side=side, axis=2, bounds=bounds).accepted


def test_cholesky_refuses_slabs_that_couple_too_far(tmp_path: Path) -> None:
    net = conv_net(np.random.default_rng(1), n=12)
    found = verdict(tmp_path, net, 1e3, "cholesky", side="input", axis=2, bounds=list(range(13)))
    assert "neighbours" in found.reasons[0]
    dense = Net(4, 3)
    dense.dense(0, np.random.default_rng(0).standard_normal((5, 4)), axis=0)
    found = verdict(tmp_path / "b", dense, 1e3, "cholesky", side="input", axis=0, bounds=[0, 1, 2, 4])
    assert "neighbours" in found.reasons[0]


@pytest.mark.parametrize("axes", [[0, 2, 4, 6], [0, 3, 6]])
def test_cholesky_many_slabs_equal_one_block(tmp_path: Path, axes: list[int]) -> None:
    net = conv_net(np.random.default_rng(5), n=6)
    true = sigma(net)
    for side in ("input", "output"):
        assert verdict(tmp_path / side, net, true * (1 + 1e-8), "cholesky", side=side, axis=3, bounds=axes).accepted
        assert not verdict(
            tmp_path / f"{side}b", net, true * (1 - 1e-8), "cholesky", side=side, axis=3, bounds=axes
        ).accepted


@pytest.mark.parametrize("norm", ["l1", "linf"])
@pytest.mark.parametrize("kind", ["dense", "sums"])
def test_matrix_sums(tmp_path: Path, norm: str, kind: str) -> None:
    rng = np.random.default_rng(2)
    net = mixed_net(rng) if kind == "dense" else conv_net(rng, stride=2, dilation=2)
    axis = 0 if norm == "l1" else 1
    true = float(np.abs(dense_matrix(net)).sum(axis=axis).max())
    good = verdict(tmp_path / "a", net, true * (1 + 1e-9), kind, norm)
    assert good.accepted, good.reasons
    assert not verdict(tmp_path / "b", net, true * (1 - 1e-9), kind, norm).accepted


def test_sums_bound_the_composition_of_absolute_values(tmp_path: Path) -> None:
    net = Net(3)
    a, b = np.array([[1.0, -2, 0], [3, 1, 1]]), np.array([[1.0, -1], [2, 5]])
    net.dense(net.dense(0, a), b)
    value = (np.abs(b) @ np.abs(a)).sum(axis=1).max()
    assert verdict(tmp_path / "a", net, value * (1 + 1e-12), "sums", "linf").accepted
    assert not verdict(tmp_path / "b", net, value * (1 - 1e-12), "sums", "linf").accepted


def test_schur(tmp_path: Path) -> None:
    net = conv_net(np.random.default_rng(3))
    matrix = np.abs(dense_matrix(net))
    value = float(np.sqrt(matrix.sum(axis=0).max() * matrix.sum(axis=1).max()))
    assert verdict(tmp_path / "a", net, value * (1 + 1e-9), "schur").accepted
    assert not verdict(tmp_path / "b", net, value * (1 - 1e-9), "schur").accepted
    assert not verdict(tmp_path / "c", net, value * 2, "schur", "linf").accepted


@pytest.mark.parametrize(
    ("stride", "dilation", "groups", "kernel", "n"),
    [(1, 1, 1, (3, 3), 24), (2, 1, 1, (3, 3), 24), (1, 2, 2, (2, 3), 24), (3, 2, 1, (2, 4), 24), (2, 2, 2, (3, 2), 24)],
)
def test_grid(tmp_path: Path, stride: int, dilation: int, groups: int, kernel: Any, n: int) -> None:
    def net_of(size: int) -> Net:
        rng = np.random.default_rng(11)
        return conv_net(rng, size, stride, dilation, groups, kernel, ((2, 1), (0, 2)), scale=True)

    # The infinite operator's norm lies between that on a large image and the grid's bound.
    below = sigma(net_of(14))
    net = net_of(n)
    assert not verdict(tmp_path / "b", net, below * (1 - 1e-6), "grid", counts=[40, 40]).accepted
    accepted = [
        f for f in (1.03, 1.1, 1.25) if verdict(tmp_path / str(f), net, below * f, "grid", counts=[40, 40]).accepted
    ]
    assert accepted, "grid accepts nothing near the norm"


def test_grid_is_exact_for_a_symmetric_kernel(tmp_path: Path) -> None:
    net = Net(1, 1, 50)
    net.add("Conv", 0, (1, 1, 50), weight=np.array([[[1.0, 2, 1]]]), bias=None, stride=[1], padding=[[1, 1]], dilation=[1],
            groups=1)  # fmt: skip
    value = 4 / np.cos(np.pi * 2 / (2 * 100))
    assert verdict(tmp_path / "a", net, value * (1 + 1e-9), "grid", counts=[100]).accepted
    assert not verdict(tmp_path / "b", net, value * (1 - 1e-9), "grid", counts=[100]).accepted
    assert not verdict(tmp_path / "c", net, 100.0, "grid", counts=[2]).accepted


@pytest.mark.parametrize("side", ["input", "output"])
def test_lanczos(tmp_path: Path, side: str) -> None:
    net = mixed_net(np.random.default_rng(6))
    true = sigma(net)
    fields: dict[str, Any] = {"side": side, "starts": 2, "steps": 60, "failure": {"float": (1e-6).hex()}}
    good = verdict(tmp_path / "a", net, true * (1 + 1e-3), "lanczos", admitted=1e-6, **fields)
    assert good.accepted, good.reasons
    assert good.document["seed"] > 0
    assert not verdict(tmp_path / "b", net, true * (1 - 1e-6), "lanczos", admitted=1e-6, **fields).accepted
    # The claim must admit the failure of its proof.
    assert not verdict(tmp_path / "c", net, true * (1 + 1e-3), "lanczos", admitted=1e-7, **fields).accepted


@pytest.mark.parametrize(
    "fields",
    [{"starts": 0}, {"starts": -1}, {"steps": 0}, {"failure": {"float": (-1e-3).hex()}}, {"failure": {"float": "0x0p+0"}},
     {"failure": {"float": "inf"}}, {"side": "top"}, {"failure": {"float": (0.9).hex()}}, {"starts": True}],
)  # fmt: skip
def test_lanczos_refuses_nonsense(tmp_path: Path, fields: dict[str, Any]) -> None:
    net = mixed_net(np.random.default_rng(6))
    usual = {"side": "input", "starts": 1, "steps": 60, "failure": {"float": (1e-3).hex()}}
    assert not verdict(tmp_path, net, 1e6, "lanczos", admitted=0.5, **{**usual, **fields}).accepted


def test_lanczos_coverage() -> None:
    """A diagonal whose top is above t is accepted no more often than allowed."""
    from lipcheck.lanczos import prove_lanczos

    net = Net(200)
    values = np.linspace(0, 0.999, 200)
    values[17] = 1.0
    net.add("MulConstant", 0, (200,), value=values)
    operator = build(network(net), {}, 0, 1)
    generator = np.random.default_rng(0)
    evidence = {"side": "input", "starts": 1, "steps": 4, "failure": {"float": (0.25).hex()}}
    accepted = 0
    for _ in range(400):
        try:
            prove_lanczos(operator, 1 - 1e-9, evidence, generator)
            accepted += 1
        except lipcheck.Rejected:
            pass
    assert accepted <= 0.25 * 400 + 40


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_apply_and_adjoint_of_convolutions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stride, dilation = rng.integers(1, 4, 2), rng.integers(1, 4, 2)
    kernel, padding, groups = rng.integers(1, 4, 2), rng.integers(0, 4, (2, 2)), int(rng.integers(1, 3))
    n = rng.integers(7, 11, 2)
    weight = rng.standard_normal((2 * groups, 3, *kernel))
    m = [(n[a] + padding[a].sum() - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in range(2)]
    net = Net(2, 3 * groups, *map(int, n))
    fields: dict[str, Any] = {
        "bias": None, "stride": list(stride), "padding": [list(p) for p in padding], "dilation": list(dilation),
        "groups": groups,
    }  # fmt: skip
    net.add("Conv", 0, (2, 2 * groups, *m), weight=weight, **fields)
    x = rng.standard_normal((2, 3 * groups, *n))
    expected = np.zeros((2, 2 * groups, *m))
    for o in range(2 * groups):
        for p in np.ndindex(*m):
            for c in range(3):
                for tap in np.ndindex(*kernel):
                    q = [stride[a] * p[a] + dilation[a] * tap[a] - padding[a, 0] for a in range(2)]
                    if all(0 <= q[a] < n[a] for a in range(2)):
                        channel = c + (o // 2) * 3
                        expected[:, o, *p] += weight[o, c, *tap] * x[:, channel, *q]
    operator = build(network(net), {}, 0, 1)
    assert np.allclose(operator.apply(x[None])[0], expected, rtol=1e-12, atol=1e-12)
    y = rng.standard_normal(expected.shape)
    assert abs((expected * y).sum() - (operator.adjoint(y[None])[0] * x).sum()) < 1e-11
    transposed = Net(2, 2 * groups, *map(int, m))
    transposed.add("ConvTranspose", 0, (2, 3 * groups, *n), weight=weight, **fields)
    back = build(network(transposed), {}, 0, 1)
    assert np.allclose(back.apply(y[None]), operator.adjoint(y[None]), rtol=1e-12, atol=1e-12)


def test_adjoint_of_the_mixed_network() -> None:
    net = mixed_net(np.random.default_rng(9))
    graph = network(net)
    operator = build(graph, {}, 0, graph.output)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, *operator.shapes[0])), rng.standard_normal((4, *operator.shapes[1]))
    left = (operator.apply(x) * y).sum()
    assert abs(left - (operator.adjoint(y) * x).sum()) <= 1e-12 * abs(left) * 100
    matrix = operator.apply(np.eye(72).reshape(72, 1, 2, 6, 6)).reshape(72, -1).T
    assert np.allclose(matrix, dense_matrix(net), atol=1e-12)
    n1, ninf = operator.sums()
    assert n1 >= np.abs(matrix).sum(axis=0).max() and ninf >= np.abs(matrix).sum(axis=1).max()
    pattern = operator.apply(np.eye(72).reshape(72, 1, 2, 6, 6), "pattern").reshape(72, -1).T
    assert (pattern >= (matrix != 0)).all()


def test_dead_network_has_constant_zero(tmp_path: Path) -> None:
    net = Net(3)
    net.dense(0, np.zeros((2, 3)), np.ones(2))
    for kind, norm, fields in (
        ("sums", "l1", {}), ("dense", "linf", {}), ("schur", "l2", {}),
        ("cholesky", "l2", {"side": "input", "axis": None, "bounds": []}),
    ):  # fmt: skip
        document = net.document()
        steps = [segment(1, 0, 0.0, kind, **fields)]
        folder = write(tmp_path / kind, document, claim(document, norm, 0.0), proof(steps), net.arrays)
        found = lipcheck.check(folder)
        assert found.accepted, found.reasons
    live = Net(3)
    live.dense(0, np.full((2, 3), 5e-324), np.ones(2))
    assert not verdict(tmp_path / "live", live, 0.0, "schur").accepted


def test_rounding_counts() -> None:
    """At least one rounding for each product and sum on the longest way: too few would not show in any value."""
    conv = network(conv_net(np.random.default_rng(0), groups=2, scale=True))
    operator = build(conv, {}, 0, 2)
    assert operator.forward()[0] >= (2 + 9) - 1 + 5 and operator.backward()[0] >= (3 + 9) - 1 + 5
    net = Net(7)
    net.dense(0, np.ones((5, 7)))
    net.add("Add", [1, 1, 1], (5,))
    net.add("Mean", 2, (1,), axes=[0])
    operator = build(network(net), {}, 0, 3)
    assert operator.forward()[0] >= 7 + 2 + 5 and operator.backward()[0] >= 1 + 2 + 5
