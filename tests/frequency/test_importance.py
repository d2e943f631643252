"""Spectral importance: Shapley's axioms on toy games, the efficiency of real runs, and models whose answer is known."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipscope.claims.errors import Interrupted, ModelError, UsageError
from lipscope.frequency import band_masks, custom_bands, shapley, signed_score, spectral_shapley

MODEL_BANDS = 4


def slow_shapley(table: Tensor) -> Tensor:
    """The mean marginal contribution over all orders in which the players can come."""
    players = int(math.log2(len(table)))
    psi = torch.zeros(players, dtype=torch.float64)
    orders = list(itertools.permutations(range(players)))
    for order in orders:
        present = 0
        for player in order:
            psi[player] += (table[present | 1 << player] - table[present]) / len(orders)
            present |= 1 << player
    return psi


def game(players: int, seed: int) -> Tensor:
    return torch.randn(1 << players, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classifier(seed: int = 0, shape: tuple[int, ...] = (2, 9, 8), classes: int = 5) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 16), nn.ReLU(), nn.Linear(16, classes)).eval()


def images(count: int = 12, shape: tuple[int, ...] = (2, 9, 8), seed: int = 1) -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=own), torch.randint(5, (count,), generator=own)


@given(st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_shapley_is_the_mean_over_all_orders(players: int, seed: int) -> None:
    table = game(players, seed)
    assert torch.allclose(shapley(table), slow_shapley(table), rtol=0, atol=1e-13)


@given(st.integers(1, 8), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_efficiency(players: int, seed: int) -> None:
    table = game(players, seed)
    assert abs(float(shapley(table).sum() - (table[-1] - table[0]))) < 1e-12


def test_a_dummy_gets_nothing_and_equal_players_get_the_same() -> None:
    codes = torch.arange(16)
    a, b, c = (((codes >> i) & 1).double() for i in range(3))
    psi = shapley(5 * a * b + 3 * c)  # player 3 does nothing, 0 and 1 are interchangeable
    assert torch.allclose(psi, torch.tensor([2.5, 2.5, 3.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-14)


def test_games_of_a_batch_are_independent_and_add_up() -> None:
    tables = torch.stack([game(4, s) for s in range(3)])
    psi = shapley(tables)
    assert torch.allclose(psi.sum(dim=0), shapley(tables.sum(dim=0)), atol=1e-12)
    assert torch.equal(psi[1], shapley(tables[1:2])[0])


@pytest.mark.parametrize("size", [0, 1, 3, 12])
def test_a_table_that_is_no_game_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="2\\^M"):
        shapley(torch.zeros(size))


def test_the_score_of_one_band_and_of_an_even_spread() -> None:
    unit = torch.eye(8, dtype=torch.float64)
    assert signed_score(unit[0]) == pytest.approx(0.5217, abs=5e-5)
    assert signed_score(unit[7]) == pytest.approx(-0.3002, abs=5e-5)
    assert signed_score(torch.ones(8)) == pytest.approx(0, abs=1e-15)
    assert signed_score(torch.ones(8), baseline="minimum") == 0
    assert signed_score(-torch.ones(8)) == 0
    assert signed_score(unit[0], baseline="minimum") == pytest.approx(0.5217, abs=5e-5)


@given(st.lists(st.floats(-5, 5), min_size=8, max_size=8), st.sampled_from(["zero", "minimum"]))
def test_the_score_stays_in_its_range_and_has_no_unit(values: list[float], baseline: str) -> None:
    score = signed_score(torch.tensor(values, dtype=torch.float64), baseline=baseline)
    assert -0.30025 < score < 0.52175
    scaled = signed_score(1024 * torch.tensor(values, dtype=torch.float64), baseline=baseline)
    assert scaled == pytest.approx(score, abs=1e-12)


def test_moving_importance_to_lower_bands_raises_the_score() -> None:
    scores = [signed_score(torch.eye(8)[i] + 0.1) for i in range(8)]
    assert scores == sorted(scores, reverse=True)  # the published absolute value breaks this


def test_subtracting_the_minimum_is_biased_by_noise_and_the_default_less() -> None:
    truth = torch.tensor([1.0, 0.6, 0.4, 0.3, 0.2, 0.2, 0.2, 0.2], dtype=torch.float64)
    noise = 0.1 * torch.randn(4000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bias = {
        base: abs(
            sum(signed_score(truth + row, baseline=base) for row in noise) / 4000 - signed_score(truth, baseline=base)
        )
        for base in ("zero", "minimum")
    }
    assert bias["zero"] < bias["minimum"] / 3


@pytest.mark.parametrize("filler", ["zero", "mean", "other"])
@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("shape", [(1, 7, 7), (2, 9, 8), (3, 10)])
def test_values_add_up_to_what_all_bands_are_worth(
    filler: str, dtype: torch.dtype, gap: float, shape: tuple[int, ...]
) -> None:
    x, y = images(shape=shape)
    model, x = classifier(shape=shape).to(dtype), x.to(dtype)
    found = spectral_shapley(model, x, y, band_masks(shape[1:], MODEL_BANDS), filler)
    assert found.gap <= gap
    own = nn.functional.log_softmax(model(x), dim=1)[range(len(x)), y].mean().detach()
    assert found.full == pytest.approx(float(own), rel=1e-6)
    assert found.values.sum() == pytest.approx(found.full - found.empty, abs=gap)


def test_values_are_those_of_an_oracle_that_filters_every_coalition_itself() -> None:
    x, y = images(4)
    model, bands, x = classifier().double(), band_masks((9, 8), 3), x.double()
    mean = x.mean(dim=0, keepdim=True)
    spectra, filling = torch.fft.fft2(x), torch.fft.fft2(mean)
    table = torch.empty(4, 8, dtype=torch.float64)
    for code in range(8):
        keep = sum((bands.masks[i] for i in range(3) if code >> i & 1), torch.zeros(9, 8)).bool()
        mixed = torch.fft.ifft2(torch.where(keep, spectra, filling))
        assert mixed.imag.abs().max() < 1e-12
        table[:, code] = nn.functional.log_softmax(model(mixed.real), dim=1)[range(4), y]
    oracle = torch.stack([slow_shapley(row) for row in table])
    found = spectral_shapley(model, x, y, bands, "mean")
    assert torch.allclose(found.per_image, oracle, rtol=0, atol=1e-10)
    assert torch.allclose(found.se, oracle.std(dim=0) / 2, rtol=0, atol=1e-10)


def test_a_model_that_reads_the_mean_only_gives_all_to_the_lowest_band() -> None:
    x, y = images(10, (1, 8, 8))

    def reads_dc(batch: Tensor) -> Tensor:
        return 50 * batch.mean(dim=(1, 2, 3))[:, None] * torch.arange(5.0)

    found = spectral_shapley(reads_dc, x, y, band_masks((8, 8), MODEL_BANDS))
    assert found.values[1:].abs().max() < 1e-5
    assert abs(float(found.values[0])) > 0.01
    assert found.values[0] == pytest.approx(found.full - found.empty, abs=1e-5)


def test_values_of_a_value_that_adds_over_bands_are_its_parts() -> None:
    x, _ = images(6, (1, 6, 6))
    x = x.double()
    bands = band_masks((6, 6), 3)
    parts = torch.stack([bands.project(x, b).square().sum(dim=(1, 2, 3)) for b in range(bands.count)], dim=1)
    found = spectral_shapley(
        lambda batch: batch, x, torch.zeros(6), bands, "zero", value=lambda out, _: out.square().sum(dim=(1, 2, 3))
    )
    assert torch.allclose(found.per_image, parts, rtol=0, atol=1e-12)


def test_a_regression_is_valued_by_its_squared_error() -> None:
    x, _ = images(5, (1, 6))
    found = spectral_shapley(nn.Flatten().eval(), x.double(), x.double().flatten(1), band_masks((6,), 3), "zero")
    assert found.full == 0
    assert found.empty == pytest.approx(-float(x.double().square().mean()))


@pytest.mark.parametrize("batch_size", [1, 5, 16, 64, 1000])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    x, y = images(7)
    model, bands = classifier().double(), band_masks((9, 8), MODEL_BANDS)
    a, b = (spectral_shapley(model, x.double(), y, bands, batch_size=size) for size in (512, batch_size))
    assert torch.allclose(a.per_image, b.per_image, rtol=0, atol=1e-12)


def test_no_batch_is_larger_than_asked_for() -> None:
    sizes = []

    def model(batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        return batch.flatten(1)[:, :5]

    x, y = images(7)
    spectral_shapley(model, x, y, band_masks((9, 8), MODEL_BANDS), batch_size=20)
    assert max(sizes) <= 20
    assert sum(sizes) == 7 * 2**MODEL_BANDS + 2 * 7


def test_it_is_deterministic_and_leaves_the_global_generator_alone() -> None:
    x, y = images()
    before = torch.get_rng_state()
    runs = [
        spectral_shapley(classifier(), x, y, band_masks((9, 8), 3), generator=g and torch.Generator().manual_seed(g))
        for g in (None, None, 5, 5)
    ]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(runs[0].per_image, runs[1].per_image)
    assert torch.equal(runs[2].per_image, runs[3].per_image)
    assert not torch.equal(runs[0].per_image, runs[2].per_image)


def test_another_image_is_never_the_image_itself() -> None:
    x = torch.arange(6.0)[:, None, None].expand(6, 1, 4).contiguous()
    seen = set()
    for seed in range(30):
        found = spectral_shapley(
            lambda batch: batch.mean(dim=2), x, torch.arange(6.0), band_masks((4,), 1),
            generator=torch.Generator().manual_seed(seed), value=lambda out, _: out[:, 0],
        )  # fmt: skip
        fillers = torch.arange(6.0) - found.per_image[:, 0].float()
        seen |= {(i, round(float(f))) for i, f in enumerate(fillers)}
    assert seen == {(i, j) for i in range(6) for j in range(6) if i != j}


def test_standard_errors_shrink_with_the_root_of_the_number_of_images() -> None:
    x, y = images(1600, (1, 4, 4))
    model, bands = classifier(shape=(1, 4, 4)), band_masks((4, 4), 2)
    small, large = (spectral_shapley(model, x[:n], y[:n], bands, "zero") for n in (100, 1600))
    assert torch.all((small.se / large.se - 4).abs() < 1.2)
    assert ((small.values - large.values).abs() < 4 * small.se).all()


def test_bands_of_ones_own_and_the_json() -> None:
    masks = torch.zeros(2, 6, dtype=torch.bool)
    masks[0, [0, 2, 4]], masks[1, [1, 3, 5]] = True, True
    x, y = images(5, (1, 6))
    found = spectral_shapley(classifier(shape=(1, 6)), x, y, custom_bands(masks))
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["values"] == found.values.tolist() and written["images"] == 5
    single = spectral_shapley(classifier(shape=(1, 6)), x[:1], y[:1], custom_bands(masks), "mean")
    assert json.loads(json.dumps(single.to_json(), allow_nan=False))["se"] == [None, None]


def test_what_does_not_make_sense_is_refused_in_words() -> None:
    x, y = images()
    model, bands = classifier(), band_masks((9, 8), 3)
    with pytest.raises(ModelError, match="eval"):
        spectral_shapley(classifier().train(), x, y, bands)
    with pytest.raises(UsageError, match="at most 12 bands"):
        spectral_shapley(model, torch.zeros(2, 1, 30), y[:2], band_masks((30,), 13))
    with pytest.raises(UsageError, match="channel-last"):
        spectral_shapley(model, x.movedim(1, -1), y, bands)
    with pytest.raises(UsageError, match="number 3"):
        spectral_shapley(model, x.index_fill(0, torch.tensor([3]), torch.nan), y, bands)
    with pytest.raises(UsageError, match="at least 2 images"):
        spectral_shapley(model, x[:1], y[:1], bands)
    with pytest.raises(UsageError, match="filler"):
        spectral_shapley(model, x, y, bands, "noise")
    with pytest.raises(UsageError, match="labels"):
        spectral_shapley(model, x, y[:-1], bands)
    with pytest.raises(UsageError, match="below the number of classes"):
        spectral_shapley(model, x, y + 3, bands)
    with pytest.raises(UsageError, match="one value for each"):
        spectral_shapley(model, x, y, bands, value=lambda out, _: out)
    with pytest.raises(UsageError, match="finite values"):
        spectral_shapley(model, x, y, bands, value=lambda out, _: out[:, 0] * torch.nan)


def test_stopped_it_keeps_the_images_that_are_done() -> None:
    x, y = images(9)
    bands, calls = band_masks((9, 8), 3), 0

    def model(batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return batch.flatten(1)[:, :5]

    with pytest.raises(Interrupted) as stopped:
        spectral_shapley(model, x, y, bands, "zero", batch_size=16)
    kept = stopped.value.result
    whole = spectral_shapley(model, x[:6], y[:6], bands, "zero")
    assert kept.images == 6 and torch.allclose(kept.values, whole.values, atol=1e-6)  # type: ignore[attr-defined]
    assert kept.gap < 1e-4  # type: ignore[attr-defined]
    calls = 3
    with pytest.raises(Interrupted) as stopped:
        spectral_shapley(model, x, y, bands)
    assert stopped.value.result is None
