"""Measured gains and gradient spectra: laws that hold at every point, closed forms, slow oracles."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from frequency.cases import matrix_of, noise, projector, seeded, spectral
from lipscope.claims.errors import Interrupted, ModelError, UsageError
from lipscope.frequency import jacobian as module
from lipscope.frequency.band_gain import band_gains, summaries
from lipscope.frequency.bands import KINDS, band_masks
from lipscope.frequency.gradient_spectrum import by_class, loss_gradient_power, radial_profile, split
from lipscope.frequency.heatmap import fourier_heatmap
from lipscope.frequency.importance import spectral_shapley
from lipscope.frequency.jacobian import Sensitivity, jacobian, probed_power, rows, sensitivity


def network(channels: int = 2) -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 3 * 2, 3)
        )
    )


def points(n: int = 4) -> torch.Tensor:
    return noise(n, 2, 6, 5)


def test_parseval_and_the_inequalities_of_gains() -> None:
    model, x, bands = network(), points(), band_masks((6, 5), 4)
    found = sensitivity(model, x, bands)
    whole = jacobian(model, x).flatten(2)
    assert torch.allclose(found.power.flatten(1).sum(dim=1), whole.square().flatten(1).sum(dim=1), rtol=1e-12, atol=0)
    assert torch.allclose(found.total, torch.linalg.matrix_norm(whole, 2), rtol=1e-12, atol=0)
    assert bool((found.gains.max(dim=1).values <= found.total * (1 + 1e-12)).all())
    assert bool((found.total <= found.gains.square().sum(dim=1).sqrt() * (1 + 1e-12)).all())
    assert found.exact


def test_gains_are_the_norms_of_the_restricted_jacobian() -> None:
    model, x, bands = network(), points(), band_masks((6, 5), 3, "round")
    found = sensitivity(model, x, bands, batch=3)
    whole = jacobian(model, x)
    for b in range(bands.count):
        restricted = (whole.flatten(3) @ torch.from_numpy(projector(bands, b))).flatten(2)
        for i in range(len(x)):
            assert abs(float(found.gains[i, b]) - spectral(restricted[i].numpy())) < 1e-12


def test_the_jacobian_is_that_of_central_differences() -> None:
    model, x = network(), points(2)
    found = jacobian(model, x).flatten(2)
    step = 1e-6
    for k, unit in enumerate(torch.eye(60, dtype=torch.float64).reshape(60, 2, 6, 5)[::7]):
        with torch.no_grad():
            column = (model(x + step * unit) - model(x - step * unit)) / (2 * step)
        assert torch.allclose(found[..., 7 * k], column, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_total_does_not_depend_on_the_bands(kind: str) -> None:
    model, x = network(), points()
    found = sensitivity(model, x, band_masks((6, 5), 5, kind))
    plain = sensitivity(model, x, band_masks((6, 5), 1))
    assert torch.allclose(found.total, plain.total, rtol=1e-12, atol=0)
    spectra = split(found.power, band_masks((6, 5), 5, kind)), split(plain.power, band_masks((6, 5), 1))
    assert torch.allclose(spectra[0].power.sum(), spectra[1].power.sum(), rtol=1e-12, atol=0)
    assert abs(float(spectra[0].share.sum()) - 1) < 1e-12


def test_a_circular_convolution_has_the_norm_of_its_symbol_in_every_band() -> None:
    model = seeded(lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False))
    bands = band_masks((6, 5), 4)
    found = band_gains(model, noise(1, 2, 6, 5), bands)
    kernel = np.zeros((3, 2, 6, 5))
    weight = model.weight.detach().numpy()
    for i in range(3):
        for j in range(3):
            kernel[:, :, (1 - i) % 6, (1 - j) % 5] += weight[:, :, i, j]
    symbol = np.fft.fft2(kernel)  # multiplies the transform of the input
    for mask, gain in zip(bands.masks.numpy(), found, strict=True):
        largest = max(spectral(symbol[:, :, a, b]) for a, b in np.argwhere(mask))
        assert abs(gain.largest - largest) < 1e-10


def test_a_model_of_another_precision_is_told_apart_from_one_that_converts() -> None:
    single, x, y, bands = network().float(), points(), torch.arange(4) % 3, band_masks((6, 5), 2)
    calls: list[Callable[[nn.Module], object]] = [
        lambda m: band_gains(m, x, bands),
        lambda m: loss_gradient_power(m, x, y, nn.functional.cross_entropy, bands),
        lambda m: spectral_shapley(m, x, y, bands),
        lambda m: fourier_heatmap(m, x, y, 1.0),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=r"torch\.float32, got torch\.float64 .* x\.to\(torch\.float32\)"):
            call(single)
        call(Converts(single).eval())


class Converts(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(x.float())
        return found


class Root(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).sqrt()


@pytest.mark.parametrize("limit", [0, 1000])
def test_derivatives_that_are_not_finite_are_refused_by_number(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_JACOBIAN", limit)
    x, bands = points(5).abs() + 1, band_masks((6, 5), 2)
    x[3, 0, 0, 0] = 0
    with pytest.raises(UsageError, match="1 of 2 examples, the first is number 3 of those given"):
        sensitivity(Root().eval(), x, bands, batch=2)
    with pytest.raises(UsageError, match="number 3 of those given"):
        loss_gradient_power(Root().eval(), x, x, lambda out, _: out.sum(dim=1), bands, batch=2)


def test_stopped_it_keeps_the_examples_that_are_done() -> None:
    x, bands = points(6), band_masks((6, 5), 2)

    def stop_at(share: float) -> Callable[[str, float], None]:
        def progress(_: str, done: float) -> None:
            if done >= share:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(Interrupted, match="4 of 6") as stopped:
        sensitivity(network(), x, bands, batch=2, progress=stop_at(0.6))
    found = stopped.value.result
    assert isinstance(found, Sensitivity) and torch.equal(
        found.gains, sensitivity(network(), x[:4], bands, batch=2).gains
    )
    with pytest.raises(Interrupted, match="before any"):
        sensitivity(network(), x, bands, progress=stop_at(0))


def test_many_outputs_are_estimated_from_below(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, bands = network(), points(2), band_masks((6, 5), 3)
    exact = sensitivity(model, x, bands)
    monkeypatch.setattr(module, "LARGEST_JACOBIAN", 2)
    found = sensitivity(model, x, bands, generator=torch.Generator().manual_seed(1))
    assert not found.exact
    assert bool((found.gains <= exact.gains * (1 + 1e-12)).all())
    assert bool((found.gains >= 0.97 * exact.gains).all())
    assert bool((found.total <= exact.total * (1 + 1e-12)).all() and (found.total >= 0.97 * exact.total).all())


def test_probed_powers_are_unbiased() -> None:
    model, bands, generator = network(), band_masks((6, 5), 3), torch.Generator().manual_seed(0)
    points = noise(1, 2, 6, 5).expand(100, -1, -1, -1)
    exact = sensitivity(model, points[:1], bands).power[0]
    x, y = rows(model, points)
    found = probed_power(x, y, bands, generator)
    error = found.std(dim=0) / math.sqrt(len(found))
    assert bool(((found.mean(dim=0) - exact).abs() < 5 * error).all())
    assert float(error.sum()) < 0.05 * float(exact.sum())


@pytest.mark.parametrize("limit", [64, 0])
def test_a_constant_model_has_no_gain(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_JACOBIAN", limit)
    bands = band_masks((4,), 2)
    found = sensitivity(lambda x: torch.zeros(len(x), 3, dtype=x.dtype), noise(2, 1, 4), bands)
    assert float(found.total.abs().max()) == 0 and float(found.gains.abs().max()) == 0
    shown = split(found.power, bands)
    assert shown.zeros == 2 and bool(shown.share.isnan().all())
    assert shown.to_json()["share"] == [None, None]


def test_zero_gradients_are_counted_and_left_out_of_shares() -> None:
    bands = band_masks((4,), 2)
    power = torch.tensor([[1.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]])
    shown = split(power, bands)
    # Bands of four samples: |f| <= 1 and |f| = 2.
    assert shown.zeros == 1 and shown.samples == 3
    assert torch.allclose(shown.share, torch.tensor([(0.6 + 1.0) / 2, 0.2]))
    assert torch.allclose(shown.power, torch.tensor([2.0, 2.0 / 3]))
    assert math.isclose(float(shown.share_se[0]), 0.4 / math.sqrt(2) / math.sqrt(2), rel_tol=1e-6)


def test_a_loss_gradient_splits_exactly() -> None:
    model, x, bands = network(), points(), band_masks((6, 5), 4)
    labels = torch.tensor([0, 1, 2, 0])
    power = loss_gradient_power(model, x, labels, nn.CrossEntropyLoss(reduction="none"), bands, batch=3)
    x = x.clone().requires_grad_()
    nn.functional.cross_entropy(model(x), labels, reduction="sum").backward()
    assert torch.allclose(power.flatten(1).sum(dim=1), x.grad.square().flatten(1).sum(dim=1), rtol=1e-12, atol=0)
    classes = by_class(power, labels, bands)
    assert {label: found.samples for label, found in classes.items()} == {0: 2, 1: 1, 2: 1}
    assert torch.allclose(classes[1].power.sum(), power[1].sum())
    with pytest.raises(UsageError, match="a target for each of 4"):
        loss_gradient_power(model, x.detach(), labels[:3], nn.CrossEntropyLoss(), bands)


def test_the_radial_profile_adds_up_to_the_power() -> None:
    power = noise(3, 6, 5).square()
    rings = radial_profile(power, (6, 5))
    total = sum(ring["power"] * ring["frequencies"] for ring in rings)  # type: ignore[operator]
    assert abs(total - float(power.flatten(1).sum(dim=1).mean())) < 1e-12
    assert all(a["high"] <= b["low"] for a, b in pairwise(rings))  # type: ignore[operator]


def test_statistics_of_gains() -> None:
    model, x, bands = network(), points(5), band_masks((6, 5), 3)
    found = sensitivity(model, x, bands)
    gains, whole = summaries(found)
    values = found.gains[:, 1].numpy()
    assert gains[1].largest == values.max() and gains[1].at == values.argmax()
    assert math.isclose(gains[1].se, values.std(ddof=1) / math.sqrt(5)) and math.isclose(gains[1].mean, values.mean())
    assert math.isclose(gains[1].median, float(np.median(values)))
    assert math.isclose(gains[1].p99, float(np.quantile(values, 0.99)))
    assert whole.largest == float(found.total.max())
    alone = summaries(sensitivity(model, x[:1], bands))[1]
    assert math.isnan(alone.se) and alone.to_json()["measured_se"] is None


def test_a_linear_network_in_closed_form() -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 4)))
    bands, matrix = band_masks((6, 5), 4, "round"), matrix_of(model, (1, 6, 5))
    for b, gain in enumerate(band_gains(model, noise(2, 1, 6, 5), bands)):
        assert abs(gain.largest - spectral(matrix @ projector(bands, b))) < 1e-10


def test_models_and_state_are_left_alone() -> None:
    model, x, bands = network(), points(), band_masks((6, 5), 3)
    state = torch.get_rng_state()
    sensitivity(model, x, bands)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters()) and not model.training and not x.requires_grad
    with pytest.raises(ModelError, match="eval"):
        sensitivity(model.train(), x, bands)


def test_inputs_off_the_grid_or_not_finite_are_refused() -> None:
    model, bands = network(), band_masks((6, 5), 3)
    with pytest.raises(UsageError, match="grid"):
        sensitivity(model, noise(2, 6, 5, 2), bands)
    x = points()
    x[1, 0, 0, 0] = math.nan
    with pytest.raises(UsageError, match="number 1"):
        sensitivity(model, x, bands)
