"""Signals through depth: energies layer by layer, noise, harmonics: laws and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import lipscope
from frequency.cases import loaded, matrix_of, noise, projector, seeded, spectral
from lipscope.claims.errors import UsageError
from lipscope.frequency.bands import band_masks, custom_bands
from lipscope.frequency.jacobian import sensitivity
from lipscope.frequency.layout import find_layout
from lipscope.frequency.spectrum import graph_model
from lipscope.frequency.transfer import (
    harmonic_bound,
    harmonics,
    noise_bound,
    noise_response,
    noise_weights,
    transfer_matrices,
)


def test_a_circular_convolution_moves_no_energy_between_bands() -> None:
    conv = seeded(lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"))
    graph, layout = loaded(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(60, 2)), (1, 6, 5))
    bands = band_masks((6, 5), 3)
    x = noise(40, 1, 6, 5)
    linear, after, *_ = transfer_matrices(graph, layout, bands, x)
    assert (linear.kind, after.kind) == ("Conv", "relu")
    off = linear.energy - linear.energy.diag().diag()
    assert float(off.abs().max()) < 1e-20 and float(linear.energy.diag().min()) > 0
    # The mean over directions of a band is the mean square of the symbol on it.
    matrix = matrix_of(conv, (1, 6, 5))
    for b, size in enumerate(bands.sizes):
        exact = float(np.square(matrix @ projector(bands, b)).sum() / size)
        assert abs(float(linear.energy[b, b]) - exact) < 6 * float(linear.se[b, b]) + 1e-12
    mixed = after.energy - after.energy.diag().diag()
    assert float(mixed.max()) > 1e-4  # ReLU mixes frequencies
    assert bool((after.energy.sum(dim=1) <= linear.energy.sum(dim=1)).all())  # and adds no energy


def test_energies_are_those_of_the_jacobian_of_a_layer() -> None:
    inner = seeded(lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh()))
    graph, layout = loaded(nn.Sequential(inner, nn.Flatten(), nn.Linear(10, 1)), (1, 7))
    x, bands = noise(3, 1, 7), band_masks((7,), 2)
    found = transfer_matrices(graph, layout, bands, x, generator=torch.Generator().manual_seed(5))[-1]
    generator = torch.Generator().manual_seed(5)
    for b in range(bands.count):
        h = bands.project(torch.randn(x.shape, generator=generator, dtype=x.dtype), b)
        h = h / h.flatten(1).norm(dim=1)[:, None, None]
        _, image = torch.autograd.functional.jvp(inner, x, h)
        energies = found.bands.power(image.detach()).sum(dim=1)
        assert torch.allclose(found.energy[b], energies.mean(dim=0), rtol=1e-12, atol=0)
        assert torch.allclose(found.se[b], energies.std(dim=0) / math.sqrt(3), rtol=1e-12, atol=0)
    assert found.bands.grid == (5,)


def test_layers_without_a_grid_have_no_transfer() -> None:
    graph, layout = loaded(seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))), (5,))
    assert transfer_matrices(graph, layout, band_masks((5,), 2), noise(2, 1, 5)) == []
    with pytest.raises(UsageError, match="custom"):
        transfer_matrices(graph, layout, custom_bands(torch.ones(1, 5, dtype=torch.bool)), noise(2, 1, 5))


class Turned(nn.Module):
    """Channels go last for a while, and heads of attention are no grid."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix = nn.Conv2d(2, 3, 3), nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.mix(self.first(torch.tanh(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)))
        x = torch.sigmoid(x.permute(0, 3, 1, 2))
        heads = x.flatten(2).transpose(1, 2).reshape(-1, 20, 2, 2).transpose(1, 2)
        return torch.relu(heads).flatten(1)


def test_layers_are_those_whose_last_axes_are_the_grid() -> None:
    graph = lipscope.load(seeded(Turned), input_shape=(6, 7, 2)).graph
    layout = find_layout((6, 7, 2), channels_last=True)
    found = transfer_matrices(graph, layout, band_masks((6, 7), 2), noise(2, 2, 6, 7))
    assert [(t.kind, t.bands.grid) for t in found] == [("tanh", (6, 7)), ("Conv", (4, 5)), ("sigmoid", (4, 5))]


@pytest.mark.parametrize(("shape", "grid"), [((30,), (6, 5)), ((6, 5), None)])
def test_inputs_without_channels_become_images(shape: tuple[int, ...], grid: tuple[int, ...] | None) -> None:
    network = seeded(
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 6, 5)) if grid else nn.Unflatten(1, (1, 6)), nn.Conv2d(1, 2, 3), nn.ReLU()
        )
    )
    graph = lipscope.load(network, input_shape=shape).graph
    found = transfer_matrices(graph, find_layout(shape, grid=grid), band_masks((6, 5), 2), noise(2, 1, 6, 5))
    assert [(t.kind, t.bands.grid) for t in found] == [("Conv", (4, 3)), ("relu", (4, 3))]


# -------------------------------------------------------------------------------------------------------- noise


def test_white_noise_answers_with_the_squared_frobenius_norm() -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 4)))
    bands, x = band_masks((6, 5), 3), noise(2, 1, 6, 5)
    found = sensitivity(model, x, bands)
    exact = float(np.square(matrix_of(model, (1, 6, 5))).sum())
    assert abs(noise_response(found.power).response - exact) < 1e-10
    gains = [float(g) for g in found.gains.max(dim=0).values]
    assert exact <= noise_bound(bands.sizes, 1, 4, gains)


def test_noise_of_a_power_law_answers_as_drawn_noise_does() -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False)))
    bands, x = band_masks((4, 3), 2), noise(1, 1, 4, 3)
    weights = noise_weights((4, 3), 1.5)
    assert abs(float(weights.mean()) - 1) < 1e-12 and float(weights[0, 0]) == float(weights.max())
    predicted = noise_response(sensitivity(model, x, bands).power, 1.5).response
    drawn = torch.fft.ifftn(bands.spectrum(noise(20000, 1, 4, 3)) * weights.sqrt(), dim=(-2, -1), norm="ortho").real
    with torch.no_grad():
        powers = model(drawn).square().sum(dim=1)
    assert abs(float(powers.mean()) - predicted) < 5 * float(powers.std()) / math.sqrt(len(powers))


def test_a_single_pixel_has_white_noise_only() -> None:
    assert noise_weights((1, 1), 2.0).tolist() == [[1.0]]


# ---------------------------------------------------------------------------------------------------- harmonics


def test_a_linear_network_attains_the_bounds_of_harmonics() -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    matrix = matrix_of(model, (1, 4, 3))
    direction = torch.from_numpy(np.linalg.svd(matrix)[2][0].reshape(1, 4, 3).copy())
    bound = harmonic_bound(spectral(matrix), 0.7, 1.0)
    found = harmonics(model, noise(1, 4, 3), direction, 0.7, 64)
    assert abs(float(found[1]) - bound.coefficient(1)) < 1e-12 and float(found[2:].max()) < 1e-12
    assert abs(2 * float(found[1]) ** 2 - bound.energy) < 1e-12
    assert bound.coefficient(-2) == bound.reach / 4 and bound.slope == 2 * math.pi * bound.reach
    with pytest.raises(UsageError, match="other than 0"):
        bound.coefficient(0)


def test_harmonics_of_a_network_stay_below_a_proved_constant() -> None:
    from lipscope.frequency.band_bounds import prove_band_bounds

    network = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)))
    graph, layout = loaded(network, (1, 4, 3))
    total = prove_band_bounds(graph, layout, band_masks((4, 3), 1), 1e6, "product").total.upper.value
    assert total is not None
    model, direction = graph_model(graph, layout), noise(1, 4, 3, seed=3)
    found = harmonics(model, noise(1, 4, 3), direction, 3.0, 512)
    bound = harmonic_bound(total, 3.0, float(direction.norm()))
    n = torch.arange(len(found), dtype=torch.float64)
    assert float(found[3:9].max()) > 1e-4  # there are harmonics
    assert 2 * float((n * found).square()[:-1].sum()) <= bound.energy
    assert all(float(found[k]) <= bound.coefficient(k) for k in range(1, 256))
