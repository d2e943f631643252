"""Bands: partitions, projectors, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipscope.claims.errors import UsageError
from lipscope.frequency.bands import KINDS, Bands, band_masks, custom_bands

GRIDS = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


def test_sizes_of_eight_square_rings_of_28() -> None:
    # Counted by hand: |f| <= 1, 3, 5, 7, 8, 10, 12, 14 give squares of side 3, 7, 11, 15, 17, 21, 25, 28.
    sides = [0, 3, 7, 11, 15, 17, 21, 25, 28]
    expected = tuple(b * b - a * a for a, b in pairwise(sides))
    bands = band_masks((28, 28), 8)
    assert bands.sizes == expected == (9, 40, 72, 104, 64, 152, 184, 159)
    assert bands.low[0] == 0 and bands.high[-1] == 0.5


def test_rings_without_a_frequency_are_left_out() -> None:
    bands = band_masks((8, 8), 8)
    assert bands.sizes == (1, 8, 16, 24, 15)
    assert bands.rings == 8


def test_octaves_halve() -> None:
    assert band_masks((16,), 4, "octave").high == (0.0625, 0.125, 0.25, 0.5)


@given(GRIDS, st.integers(1, 9), st.sampled_from(KINDS), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_projectors_are_a_partition_of_the_identity(
    grid: tuple[int, ...], count: int, kind: str, channels: int
) -> None:
    bands = band_masks(grid, count, kind)
    assert sum(bands.sizes) == math.prod(grid) and min(bands.sizes) > 0
    x = torch.randn(2, channels, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts = [bands.project(x, b) for b in range(bands.count)]
    assert torch.allclose(sum(parts), x, rtol=0, atol=1e-12)
    for b, part in enumerate(parts):
        assert torch.allclose(bands.project(part, b), part, rtol=0, atol=1e-12)
    y = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    products = torch.tensor([float((bands.project(y, b) * x).sum() - (part * y).sum()) for b, part in enumerate(parts)])
    assert float(products.abs().max()) < 1e-12
    assert torch.allclose(bands.power(x).sum(dim=-1), x.square().flatten(2).sum(dim=-1), rtol=1e-12, atol=0)
    powers = torch.stack([p.square().flatten(2).sum(dim=-1) for p in parts], dim=-1)
    assert torch.allclose(bands.power(x), powers, rtol=0, atol=1e-12)


@given(GRIDS, st.integers(1, 9), st.sampled_from(KINDS))
@settings(max_examples=25, deadline=None)
def test_frequencies_are_within_the_ends_of_their_band(grid: tuple[int, ...], count: int, kind: str) -> None:
    bands = band_masks(grid, count, kind)
    axes = np.meshgrid(*(np.fft.fftfreq(n) for n in grid), indexing="ij")
    length = np.sqrt(sum(a * a for a in axes)) if kind == "round" else np.abs(np.stack(axes)).max(axis=0)
    for mask, low, high in zip(bands.masks.numpy(), bands.low, bands.high, strict=True):
        assert length[mask].max() <= high + 1e-12
        assert low == 0 or length[mask].min() > low - 1e-12


def test_a_coalition_is_the_sum_of_its_bands() -> None:
    bands = band_masks((7, 6), 3)
    x = torch.randn(1, 1, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    both = bands.project(x, torch.tensor([True, False, True]))
    assert torch.allclose(both, bands.project(x, 0) + bands.project(x, 2), rtol=0, atol=1e-12)


def test_single_precision_stays() -> None:
    assert band_masks((4,), 2).project(torch.ones(1, 1, 4), 0).dtype == torch.float32


def _custom(*places: tuple[int, int], size: int = 4) -> torch.Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    for place in places:
        mask[place] = True
    return torch.stack([mask, ~mask])


def test_custom_bands_know_their_extremes() -> None:
    bands = custom_bands(_custom((0, 1), (0, 3)))
    assert bands.sizes == (2, 14) and bands.kind == "custom"
    assert (bands.low[0], bands.high[0], bands.high[1]) == (0.25, 0.25, 0.5)


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        (_custom((0, 1)), r"\(0, 1\).*mirror"),
        (torch.ones(2, 3, dtype=torch.bool), r"\(0,\).*several"),
        (torch.tensor([[True, False, False]]), r"\(1,\).*no band"),
        (torch.tensor([[True, True, True], [False, False, False]]), "none in band 1"),
        (torch.ones(3, dtype=torch.bool), "masks of shape"),
    ],
)
def test_what_is_no_partition_is_refused_by_name(masks: torch.Tensor, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        custom_bands(masks)


def test_nyquist_and_zero_are_their_own_mirror_images() -> None:
    assert custom_bands(_custom((0, 0), (2, 2), (0, 2), (2, 0))).sizes == (4, 12)


@pytest.mark.parametrize(
    ("grid", "count", "kind"), [((), 2, "square"), ((0,), 2, "square"), ((4,), 0, "square"), ((4,), 2, "hexagonal")]
)
def test_what_makes_no_bands(grid: tuple[int, ...], count: int, kind: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        band_masks(grid, count, kind)


def test_tensors_off_the_grid_are_refused() -> None:
    with pytest.raises(UsageError, match=r"grid \[4, 4\]"):
        band_masks((4, 4), 2).project(torch.ones(1, 1, 4, 5), 0)


def test_ends_for_every_band() -> None:
    bands = band_masks((4,), 2)
    with pytest.raises(UsageError, match="low and a high"):
        Bands(bands.masks, (0.0,), (0.5,), "square")
