"""Convolutions that go round: their norm is that of the symbol at finitely many frequencies, in both programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lipcheck
import lipscope
from harness.bundle_writer import Net, claim, proof, segment, write
from harness.expect import expect_close, expect_upper

CASES = {
    "stride 1": (3, (8, 6), {"kernel_size": 3, "padding": 1}),
    "even kernel": (2, (6, 6), {"kernel_size": 4, "padding": (1, 1), "stride": 2}),
    "stride 2": (3, (8, 6), {"kernel_size": 3, "padding": 1, "stride": 2}),
    "dilated": (2, (8, 5), {"kernel_size": 3, "padding": 2, "dilation": 2}),
    "groups": (4, (6, 6), {"kernel_size": 3, "padding": 1, "groups": 2}),
    "as large as the image": (2, (5, 5), {"kernel_size": 5, "padding": 2}),
    "unequal strides": (2, (6, 9), {"kernel_size": (3, 3), "padding": 1, "stride": (2, 3)}),
    "one axis": (2, (9,), {"kernel_size": 3, "padding": 1}),
}


def module(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    channels, image, options = CASES[name]
    torch.manual_seed(seed)
    kind = nn.Conv1d if len(image) == 1 else nn.Conv2d
    return kind(channels, 4, padding_mode="circular", **options).double().eval(), (channels, *image)


def norm_of(layer: nn.Module, shape: tuple[int, ...]) -> float:
    units = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        columns = (layer(units) - layer(torch.zeros(1, *shape, dtype=torch.float64))).flatten(1)
    return float(np.linalg.svd(columns.numpy(), compute_uv=False)[0])


@settings(max_examples=12, deadline=None)
@given(name=st.sampled_from(sorted(CASES)), seed=st.integers(0, 10_000))
def test_the_bound_is_the_norm_and_certified(name: str, seed: int) -> None:
    layer, shape = module(name, seed)
    truth = norm_of(layer, shape)
    result = lipscope.bound(lipscope.load(layer, shape), method="product", budget=2)
    assert result.upper.status == "certified", result.verdict
    expect_upper(result.upper.value, truth * (1 - 1e-13))
    expect_close(result.upper.value, truth, 1e-10)


def test_the_evidence_is_the_circle() -> None:
    layer, shape = module("stride 2")
    result = lipscope.bound(lipscope.load(layer, shape), method="product", budget=2, check=False)
    assert result.candidate is not None and result.candidate.proof is not None
    assert result.candidate.proof.steps[0].evidence == {"kind": "circle"}


@pytest.mark.parametrize(
    ("options", "image", "what"),
    [
        ({"padding_mode": "reflect", "kernel_size": 3, "padding": 1}, (6, 6), "reflects"),
        ({"padding_mode": "circular", "kernel_size": 3, "padding": 2}, (6, 6), "repeats outputs"),
        ({"padding_mode": "circular", "kernel_size": 3, "padding": 1, "stride": 2}, (7, 7), "does not close"),
    ],
)
def test_other_paddings_are_no_circles(options: dict, image: tuple[int, ...], what: str) -> None:
    torch.manual_seed(1)
    layer = nn.Conv2d(2, 3, **options).double().eval()
    result = lipscope.bound(lipscope.load(layer, (2, *image)), method="product", budget=2)
    assert result.candidate is not None and result.candidate.proof is not None
    assert result.candidate.proof.steps[0].evidence["kind"] != "circle", what
    expect_upper(result.upper.value, norm_of(layer, (2, *image)) * (1 - 1e-13))


def checked(path: Path, mode: str, pads: list[tuple[int, int]], size: int, t: float, n: int = 6) -> lipcheck.Verdict:
    """A hand-made bundle: a padding and a convolution with the kernel (1, 1, 1), whose norm on a circle is 3."""
    net = Net(1, 1, n)
    padded = net.add("Pad", 0, (1, 1, n + sum(pads[2])), pads=pads, mode=mode, value=0.0)
    net.add("Conv", padded, (1, 1, size), weight=np.ones((1, 1, 3)), bias=None, stride=[1], padding=[[0, 0]], dilation=[1],
            groups=1)  # fmt: skip
    graph = net.document()
    statement = claim(graph, "l2", np.nextafter(t, np.inf))
    return lipcheck.check(write(path, graph, statement, proof([segment(2, 0, t, "circle")]), net.arrays))


def test_the_checker_wants_a_closed_circle(tmp_path: Path) -> None:
    zero, ring = (0, 0), (1, 1)
    assert checked(tmp_path / "a", "wrap", [zero, zero, ring], 6, 3.0 * (1 + 1e-9)).accepted
    assert not checked(tmp_path / "b", "wrap", [zero, zero, ring], 6, 3.0 * (1 - 1e-9)).accepted
    assert not checked(tmp_path / "c", "reflect", [zero, zero, ring], 6, 3.5).accepted
    assert not checked(tmp_path / "d", "constant", [zero, zero, ring], 6, 3.5).accepted
    assert not checked(tmp_path / "e", "wrap", [zero, zero, (2, 2)], 8, 3.2).accepted, "two outputs are repeated"
    assert not checked(tmp_path / "f", "wrap", [zero, zero, zero], 4, 3.5).accepted, "two outputs are missing"
