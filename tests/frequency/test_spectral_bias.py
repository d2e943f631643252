"""Spectral bias: amplitudes of known signals, first passages with censoring, splits of residuals, and the quantities."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipscope.claims.errors import UsageError
from lipscope.claims.quantity import Moment, Quantity, Reading
from lipscope.frequency import (
    AmplitudeRatio,
    PeakError,
    ResidualSplit,
    amplitude_ratio,
    coefficients,
    first_passage,
    grid_split,
    peak_error,
    scattered_split,
    target_peaks,
)


def grid(points: int) -> Tensor:
    return torch.arange(points, dtype=torch.float64) / points


def sines(points: int, amplitudes: dict[int, float], phase: float = 0.3) -> Tensor:
    t = grid(points)
    return torch.stack([a * torch.sin(2 * torch.pi * k * t + phase * k) for k, a in amplitudes.items()]).sum(dim=0)


@pytest.mark.parametrize("points", [40, 41, 200])
def test_the_amplitude_of_a_sine_is_twice_its_coefficient(points: int) -> None:
    found = 2 * coefficients(sines(points, {3: 0.5, 7: 2.0})).abs()[:, 0]
    expected = torch.zeros(points // 2 + 1, dtype=torch.float64)
    expected[3], expected[7] = 0.5, 2.0
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_ratios_ignore_the_phase_and_errors_do_not() -> None:
    target = sines(60, {2: 1.0, 5: 0.1})
    output = sines(60, {2: 0.5, 5: 0.1}, phase=0.3 + math.pi)  # 2 turns in a whole turn, 5 in half of one
    assert torch.allclose(amplitude_ratio(output, target, [2, 5]), torch.tensor([0.5, 1.0], dtype=torch.float64))
    assert torch.allclose(peak_error(output, target, [2, 5]), torch.tensor([0.5, 2.0], dtype=torch.float64))


def test_several_outputs_count_together() -> None:
    target = torch.stack([sines(30, {4: 3.0}), sines(30, {4: 4.0})], dim=1)
    output = torch.stack([sines(30, {4: 3.0}), sines(30, {4: 0.0})], dim=1)
    assert float(amplitude_ratio(output, target, [4])) == pytest.approx(3 / 5)
    assert float(peak_error(output, target, [4])) == pytest.approx(4 / 5)


def test_peaks_of_a_target() -> None:
    assert target_peaks(sines(100, {3: 1.0, 10: 0.5, 30: 0.05}) + 7) == (3, 10)
    assert target_peaks(sines(100, {3: 1.0, 10: 0.5, 30: 0.05}), share=0.01) == (3, 10, 30)
    x = torch.linspace(-10, 10, 61)
    assert target_peaks(torch.sin(x) + torch.sin(4 * x)) == (3, 13)  # leakage is no peak
    assert target_peaks((-1.0) ** torch.arange(8)) == (4,)
    with pytest.raises(UsageError, match="constant"):
        target_peaks(torch.full((20,), 0.1))


def test_frequencies_that_the_target_lacks_are_refused() -> None:
    target = sines(40, {3: 1.0})
    with pytest.raises(UsageError, match=r"\[4\]"):
        amplitude_ratio(target, target, [3, 4])
    with pytest.raises(UsageError, match=r"0 to 20"):
        peak_error(target, target, [21])
    with pytest.raises(UsageError, match="one shape"):
        peak_error(target, target[:, None], [3])
    with pytest.raises(UsageError, match="diverged"):
        coefficients(target * math.nan)
    with pytest.raises(UsageError, match="at least 2"):
        coefficients(target[:1])


def test_first_passages_keep_what_was_never_reached() -> None:
    ratios = torch.tensor([[0.9, 0.0, 0.1, math.nan], [0.5, 0.8, 0.79, 0.1], [1.0, 0.2, 0.79, 0.2]])
    found = first_passage([0, 10, 20], ratios, [1, 2, 4, 8])
    assert found.reached == (0, 10, None, None)
    assert found.before == (-1, 0, 20, 20)
    assert found.censored == (4.0, 8.0)
    # Ranks 1, 2, 3.5, 3.5 against 1, 2, 3, 4: 4.5/sqrt(5 * 4.5).
    assert found.spearman() == pytest.approx(4.5 / math.sqrt(22.5))
    assert found.spearman_range() == pytest.approx((0.8, 1.0))


@given(st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=2, max_size=5))
@settings(max_examples=60, deadline=None)
def test_the_range_is_that_over_all_orders_of_the_censored(reached: list[int | None]) -> None:
    steps = list(range(10))
    ratios = torch.stack([torch.tensor([float(s is not None and i >= s) for i in steps]) for s in reached], dim=1)
    frequencies = [float(i) for i in range(len(reached))]
    found = first_passage(steps, ratios, frequencies)
    assert list(found.reached) == reached
    late = [i for i, s in enumerate(reached) if s is None]
    values = []
    for order in itertools.permutations(range(len(late))):
        done = [s if s is not None else 0 for s in reached]
        for i, place in zip(late, order, strict=True):
            done[i] = 10 + place
        table = torch.stack([torch.tensor([float(i >= s) for i in range(20)]) for s in done], dim=1)
        values.append(first_passage(list(range(20)), table, frequencies).spearman())
    assert found.spearman_range() == pytest.approx((min(values), max(values)), nan_ok=True)


def test_perfect_orders_and_no_order() -> None:
    steps, rising = [0, 1, 2, 3], torch.tril(torch.ones(4, 4))
    assert first_passage(steps, rising, [1, 2, 3, 4]).spearman() == pytest.approx(1)
    assert first_passage(steps, rising, [4, 3, 2, 1]).spearman() == pytest.approx(-1)
    never = first_passage(steps, 0 * rising, [1, 2, 3, 4])
    assert math.isnan(never.spearman()) and never.spearman_range() == pytest.approx((-1, 1))


def test_records_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="increasing"):
        first_passage([1, 1], torch.zeros(2, 2), [1, 2])
    with pytest.raises(UsageError, match=r"\(2, 3\)"):
        first_passage([0, 1], torch.zeros(2, 2), [1, 2, 3])
    with pytest.raises(UsageError, match="distinct"):
        first_passage([0, 1], torch.zeros(2, 2), [1, 1])
    with pytest.raises(UsageError, match="record"):
        first_passage([], torch.zeros(0, 2), [1, 2])


@pytest.mark.parametrize("points", [2, 3, 40, 41])
def test_the_split_on_a_grid_adds_up(points: int) -> None:
    residual = torch.randn(points, 2, generator=torch.Generator().manual_seed(points), dtype=torch.float64)
    for cutoff in (0, 1, points // 2, points):
        split = grid_split(residual, cutoff)
        assert split.low + split.high == pytest.approx(split.total, rel=1e-12)
        assert split.total == pytest.approx(float(residual.square().sum()) / points)
    assert grid_split(residual, points).high == 0
    assert grid_split(residual, 0).low == pytest.approx(float(residual.mean(dim=0).square().sum()))


def test_the_split_on_a_grid_puts_each_sine_on_its_side() -> None:
    split = grid_split(sines(64, {3: 1.0, 20: 2.0}), cutoff=10)
    assert split.low == pytest.approx(0.5) and split.high == pytest.approx(2.0)
    assert split.contrast == pytest.approx(0.6)
    assert math.isnan(grid_split(torch.zeros(8), 2).contrast)
    with pytest.raises(UsageError, match="cutoff"):
        grid_split(torch.zeros(8), -1)


def scattered(count: int = 1500, dimensions: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kernel", ["gaussian", "sinc"])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_split_of_scattered_points_tells_low_from_high(kernel: str, dimensions: int) -> None:
    x = scattered(dimensions=dimensions)
    low, high = (torch.cos(2 * torch.pi * k * x[:, 0]) for k in (0.5, 20))
    uniform = torch.ones(len(x))
    assert scattered_split(x, low, 4.0, kernel, uniform).contrast < -0.6
    assert scattered_split(x, high, 4.0, kernel, uniform).contrast > 0.6


def test_the_gaussian_part_of_even_points_is_its_transfer_function() -> None:
    """On a dense even grid, away from the ends, convolution multiplies a cosine by exp(-(k/cutoff)^2/2)."""
    x = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    wave = torch.cos(2 * torch.pi * 8 * x)
    cutoff = 10.0
    envelope = torch.exp(-((x / 0.3) ** 2))  # so wide that the spectrum is a narrow line
    split = scattered_split(x[:, None], wave * envelope, cutoff, "gaussian", torch.ones(1001))
    factor = math.exp(-0.5 * (8 / cutoff) ** 2)
    assert split.low == pytest.approx(split.total * factor**2, rel=0.02)
    assert split.high == pytest.approx(split.total * (1 - factor) ** 2, rel=0.03)


def test_points_that_are_drawn_unevenly_are_weighted() -> None:
    x = scattered(1500).sqrt()  # of density 2x
    residual = torch.where(x[:, 0] < 0.5, 1.0, 3.0)
    split = scattered_split(x, residual, 30.0, "gaussian", 2 * x[:, 0])
    assert split.total == pytest.approx(5.0, rel=0.1)  # over the domain; over the points it would be 7
    estimated = scattered_split(x, residual, 30.0, "gaussian")
    assert estimated.total == pytest.approx(5.0, rel=0.15)


def test_blocks_of_the_kernel_matrix_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = scattered(50, 2)
    residual = torch.sin(9 * x[:, :1])
    whole = scattered_split(x, residual, 3.0)
    monkeypatch.setattr("lipscope.frequency.residual.BLOCK", 300)
    parts = scattered_split(x, residual, 3.0)
    assert (parts.low, parts.high, parts.total) == pytest.approx((whole.low, whole.high, whole.total), rel=1e-12)


def test_scattered_points_that_do_not_fit_are_refused() -> None:
    x = scattered(20)
    residual = x[:, 0]
    with pytest.raises(UsageError, match="kernel out of gaussian, sinc"):
        scattered_split(x, residual, 1.0, "box")
    with pytest.raises(UsageError, match="cutoff"):
        scattered_split(x, residual, 0.0)
    with pytest.raises(UsageError, match="density above 0"):
        scattered_split(x, residual, 1.0, density=torch.zeros(20))
    with pytest.raises(UsageError, match="as many residuals"):
        scattered_split(x, residual[:5], 1.0)
    with pytest.raises(UsageError, match="finite"):
        scattered_split(x, residual * math.nan, 1.0)
    with pytest.raises(UsageError, match="give their density"):
        scattered_split(torch.ones(20, 1), residual, 1.0)


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * torch.sin(2 * torch.pi * 3 * x) + torch.sin(2 * torch.pi * 9 * x)


def moment(points: int = 64, targets: Tensor | None = None, inputs: Tensor | None = None, step: int = 0) -> Moment:
    x = grid(points)[:, None].float() if inputs is None else inputs
    y = Half()(x) + 0.5 * torch.sin(2 * torch.pi * 3 * x) if targets is None else targets
    return Moment(step, Half().eval(), x, y, None, torch.Generator())


def test_quantities_read_a_moment() -> None:
    for quantity in (AmplitudeRatio((3, 9)), PeakError(), ResidualSplit(5)):
        assert isinstance(quantity, Quantity)
    before = torch.get_rng_state()
    ratio = list(AmplitudeRatio((3, 9)).read(moment()))
    assert [(r.name, r.certainty, r.samples) for r in ratio] == [
        ("ratio at 3", "measured", 64), ("ratio at 9", "measured", 64),
    ]  # fmt: skip
    assert [r.value for r in ratio] == pytest.approx([0.5, 1.0], abs=1e-5)
    assert {r.name: r.value for r in PeakError().read(moment())} == pytest.approx(
        {"error at 3": 0.5, "error at 9": 0.0}, abs=1e-5
    )
    assert {r.name: r.value for r in ResidualSplit(5).read(moment())} == pytest.approx(
        {"low": 0.125, "high": 0.0, "contrast": -1.0}, abs=1e-5
    )
    estimated = list(ResidualSplit(5, "gaussian").read(moment()))
    assert {r.certainty for r in estimated} == {"estimate"}
    assert torch.equal(before, torch.get_rng_state())


def test_a_history_of_readings_has_first_passages() -> None:
    quantity = AmplitudeRatio((5, 2))
    history = [
        (step, [Reading("ratio at 2", two, "measured"), Reading("other", 9.0, "measured"), Reading("ratio at 5", five, "measured")])
        for step, two, five in ((0, 0.1, 0.0), (7, 0.9, 0.1), (14, 0.9, 0.8))
    ]  # fmt: skip
    found = quantity.first_passage(history)
    assert (found.frequencies, found.reached) == ((5.0, 2.0), (14, 7))
    assert quantity.first_passage(history, threshold=0.85).censored == (5.0,)
    with pytest.raises(UsageError, match="step 3"):
        quantity.first_passage([(3, [])])
    with pytest.raises(UsageError, match="record"):
        quantity.first_passage([])


def test_probes_that_do_not_fit_are_refused() -> None:
    x = grid(64)[:, None].float()
    for quantity in (AmplitudeRatio((3,)), PeakError((3,)), ResidualSplit(5)):
        with pytest.raises(UsageError, match="even grid"):
            quantity.read(moment(inputs=x**2))
        with pytest.raises(UsageError, match="even grid"):
            quantity.read(moment(inputs=x[torch.randperm(64, generator=torch.Generator().manual_seed(0))]))
        with pytest.raises(UsageError, match="one coordinate"):
            quantity.read(moment(inputs=x.expand(64, 2), targets=Half()(x.expand(64, 2))))
        with pytest.raises(UsageError, match="targets"):
            quantity.read(Moment(0, Half(), x, None, None, torch.Generator()))
        with pytest.raises(UsageError, match="as many outputs"):
            quantity.read(moment(targets=torch.zeros(64, 2)))
