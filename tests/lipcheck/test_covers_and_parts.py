"""Covers by boxes, parts of packed vectors, and exact average pools: what the checker takes, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from flint import fmpq
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.bundle_writer import real
from lipcheck.boxes import Box
from lipcheck.branch_network import _matrix
from lipcheck.bundle import Bundle
from lipcheck.cover import prove_cover
from lipcheck.errors import Rejected
from lipcheck.nodes import Node
from lipscope import load
from lipscope.network.nodes import AveragePool

AROUND = Box(np.array([-1.0, 0.0, 2.0]), np.array([1.0, 3.0, 2.0]))


def tree(generator: np.random.Generator, box: Box, depth: int, boxes: list[Box]) -> list[Any]:
    """Cuts in preorder; the boxes that stay whole are appended in the same order."""
    index = int(generator.integers(2))
    if depth == 0 or generator.random() < 0.2:
        boxes.append(box)
        return [None]
    place = float(generator.uniform(box.lo[index], box.hi[index]))
    high, low = box.hi.copy(), box.lo.copy()
    high[index] = low[index] = place
    below = tree(generator, Box(box.lo, high), depth - 1, boxes)
    return [[index, real(place)], *below, *tree(generator, Box(low, box.hi), depth - 1, boxes)]


def document(cuts: list[Any], leaves: list[Any]) -> dict[str, Any]:
    return {"method": "by hand", "cover": cuts, "leaves": leaves}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_every_proof_is_asked_for_on_its_own_box_and_every_point_is_covered(seed: int) -> None:
    generator = np.random.default_rng(seed)
    expected: list[Box] = []
    cuts = tree(generator, AROUND, 4, expected)
    asked: list[tuple[Box, Any]] = []

    def prove(box: Box, leaf: object) -> float:
        asked.append((box, leaf))
        return float(len(asked) % 5)

    constant = prove_cover(document(cuts, list(range(len(expected)))), AROUND, prove, lambda message: None)
    assert constant == max(float(i % 5) for i in range(1, len(expected) + 1))
    assert [leaf for _, leaf in asked] == list(range(len(expected)))
    for (box, _), own in zip(asked, expected, strict=True):
        np.testing.assert_array_equal(box.lo, own.lo)
        np.testing.assert_array_equal(box.hi, own.hi)
    corners = [(b.lo, b.hi) for b, _ in asked]
    points = np.concatenate([generator.uniform(AROUND.lo, AROUND.hi, (50, 3)), *(np.array(c) for c in corners)])
    for x in points:
        assert any(((lo <= x) & (x <= hi)).all() for lo, hi in corners)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_each_box_needs_one_proof(count: int) -> None:
    cuts = [[0, real(0.5)], None, [1, real(1.0)], None, None]

    def prove(box: Box, leaf: object) -> float:
        if leaf != "proof":
            raise Rejected("no proof")
        return 1.0

    with pytest.raises(Rejected):
        prove_cover(document(cuts, ["proof"] * count), AROUND, prove, lambda message: None)
    assert prove_cover(document(cuts, ["proof"] * 3), AROUND, prove, lambda message: None) == 1.0


@pytest.mark.parametrize("bad", [math.nan, -1.0])
def test_a_constant_that_is_none_is_refused(bad: float) -> None:
    """A maximum would drop NaN."""
    with pytest.raises(Rejected, match="box 1"):
        prove_cover(
            document([[0, real(0.5)], None, None], [1.0, bad]), AROUND, lambda box, leaf: float(str(leaf)),
            lambda message: None,
        )  # fmt: skip


@pytest.mark.parametrize(
    "cut", [[0, real(1.0)], [0, real(-1.0)], [0, real(7.0)], [2, real(2.0)], [3, real(0.5)], [-1, real(0.5)],
            [True, real(0.5)], [0, 0.5], [0, real(math.nan)], [0, real(math.inf)], [0], "cut"],
)  # fmt: skip
def test_a_cut_is_inside_its_box(cut: Any) -> None:
    with pytest.raises(Rejected):
        prove_cover(document([cut, None, None], [0, 0]), AROUND, lambda box, leaf: 1.0, lambda message: None)


def packed() -> Bundle:
    return Bundle({}, {"v": np.arange(10.0), "m": np.zeros((5, 2))})


def part(offset: Any, shape: Any, name: str = "v") -> dict[str, Any]:
    return {"array": name, "offset": offset, "shape": shape}


def test_a_part_is_the_entries_from_its_offset_on_row_by_row() -> None:
    np.testing.assert_array_equal(packed().array(part(3, [2, 3])), [[3, 4, 5], [6, 7, 8]])
    np.testing.assert_array_equal(packed().array(part(9, [])), 9.0)
    assert packed().array(part(10, [4, 0])).shape == (4, 0)


@pytest.mark.parametrize(
    "reference",
    [part(3, [2, 4]), part(10, [1]), part(-1, [1]), part(True, [1]), part(1.0, [1]), part(0, [-1]), part(0, [11]), part(0, 3),
     part(0, [2, -1]), part(0, [1], "m"), part(0, [1], "none"), part(0, [10] * 31 + [0]), part(0, [1] * 33),
     {"array": "v", "offset": 0}, part(0, [1]) | {"more": 1}, {"array": part(0, [1]), "offset": 0, "shape": [1]}],
)  # fmt: skip
def test_what_is_no_part_of_a_vector_is_refused(reference: dict[str, Any]) -> None:
    with pytest.raises(Rejected):
        packed().array(reference)


@pytest.mark.parametrize(
    "pool", [nn.AvgPool2d(2), nn.AvgPool2d(3, 1), nn.AvgPool2d((3, 2), (2, 1), (1, 0)), nn.AvgPool2d(3, 2, 1, ceil_mode=True),
             nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)],
)  # fmt: skip
def test_average_pools_have_exact_coefficients(pool: nn.AvgPool2d) -> None:
    """Fractions with small denominators, those of what torch does to unit images, where windows overlap or leave the image."""
    shape = (1, 2, 6, 5)
    graph = load(pool.double().eval(), input_shape=shape[1:]).graph
    node = next(n for n in graph.nodes if isinstance(n, AveragePool))
    windows = tuple(np.asarray(rows) for rows in node.windows)
    matrix = _matrix(Node("AveragePool", (0,), node.shape, "pool", {"windows": windows}), [shape], 0)
    images = torch.eye(60, dtype=torch.float64).reshape(60, *shape[1:])
    truth = pool(images).reshape(60, -1).T.numpy()
    assert (matrix.nrows(), matrix.ncols()) == truth.shape
    for exact, value in zip(matrix.entries(), truth.ravel().tolist(), strict=True):
        assert exact == 0 or (exact.p == 1 and int(exact.q) <= 9)
        assert abs(exact - fmpq(*value.as_integer_ratio())) <= fmpq(1, 2**52)
