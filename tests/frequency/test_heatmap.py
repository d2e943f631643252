"""Fourier heat maps: the perturbation itself, closed forms of linear models, and laws of the map."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipscope.claims.errors import Interrupted, ModelError, UsageError
from lipscope.frequency import band_masks, fourier_heatmap
from lipscope.frequency.heatmap import clopper_pearson
from lipscope.frequency.waves import distinct_frequencies, mirror, phases_of, wave

GRIDS = [(1,), (2,), (7,), (8,), (5, 4), (6, 6), (3, 7), (1, 6), (2, 3, 4)]


def own(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int, *shape: int, dtype: torch.dtype = torch.float64, seed: int = 3) -> Tensor:
    return torch.randn(count, *shape, generator=own(seed), dtype=dtype)


@given(st.sampled_from(GRIDS), st.data())
@settings(max_examples=60, deadline=None)
def test_waves_are_real_of_length_one_and_of_one_frequency(grid: tuple[int, ...], data: st.DataObject) -> None:
    frequency = data.draw(st.sampled_from(distinct_frequencies(grid)))
    for phase in phases_of(frequency, grid, "both"):
        u = wave(grid, frequency, phase)
        assert tuple(u.shape) == grid
        assert float(u.norm()) == pytest.approx(1, abs=1e-14)
        power = torch.fft.fftn(u, norm="ortho").abs().square()
        inside = {frequency, mirror(frequency, grid)}
        assert float(sum(power[f] for f in inside)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
def test_all_waves_together_are_an_orthonormal_basis(grid: tuple[int, ...]) -> None:
    waves = [wave(grid, f, p) for f in distinct_frequencies(grid) for p in phases_of(f, grid, "both")]
    basis = torch.stack(waves).flatten(1)
    assert len(basis) == math.prod(grid)
    assert torch.allclose(basis @ basis.T, torch.eye(len(basis), dtype=torch.float64), atol=1e-12)


def test_a_32_by_32_grid_has_514_distinct_frequencies() -> None:
    assert len(distinct_frequencies((32, 32))) == 514  # 4 are their own mirror images, (1024 - 4)/2 are pairs


class Spy(nn.Module):
    """Keeps every batch that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return x.flatten(1)


@pytest.mark.parametrize("per", ["channel", "image"])
@pytest.mark.parametrize(("shape", "dtype", "digits"), [
    ((1, 8, 8), torch.float32, 1e-5), ((3, 5, 6), torch.float64, 1e-12), ((2, 9), torch.float64, 1e-12),
])  # fmt: skip
def test_the_perturbation_has_exactly_the_norm(
    per: str, shape: tuple[int, ...], dtype: torch.dtype, digits: float
) -> None:
    spy, x = Spy(), torch.zeros(4, *shape, dtype=dtype)
    found = fourier_heatmap(spy, x, None, 1.7, layer="", per=per, batch_size=3)
    seen = torch.cat(spy.seen)[4:].double()
    lengths = seen.flatten(2).norm(dim=2) if per == "channel" else seen.flatten(1).norm(dim=1)
    assert torch.allclose(lengths, torch.full_like(lengths, 1.7), rtol=digits, atol=0)
    assert found.total_norm == pytest.approx(1.7 * math.sqrt(shape[0]) if per == "channel" else 1.7)
    assert torch.allclose(found.values, torch.full(shape[1:], found.total_norm, dtype=torch.float64), rtol=digits)
    signs = torch.sign(seen.flatten(2)[:, :, 0])
    assert {-1.0, 1.0} <= set(signs.flatten().tolist())


def test_the_change_of_a_linear_model_has_its_closed_form() -> None:
    weight = batch(1, 3, 30)[0]
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, 3).double()).eval()
    with torch.no_grad():
        model[1].weight.copy_(weight)
    grid = (5, 6)
    expected = torch.empty(grid, dtype=torch.float64)
    for f in distinct_frequencies(grid):
        lengths = [float((weight @ (0.8 * wave(grid, f, p)).flatten()).norm()) for p in phases_of(f, grid, "both")]
        for place in (f, mirror(f, grid)):
            expected[place] = sum(lengths) / len(lengths)
    found = fourier_heatmap(model, batch(6, 1, *grid), None, 0.8, layer="")
    assert torch.allclose(found.values, torch.fft.fftshift(expected), rtol=0, atol=1e-12)
    assert found.se.abs().max() < 1e-12 and found.lower is None
    # Both waves of a pair together: the band's share of the Frobenius norm.
    root = fourier_heatmap(model, batch(6, 1, *grid), None, 0.8, layer="", phases="cosine").values
    assert not torch.allclose(root, found.values)


def test_the_change_of_a_circular_convolution_is_its_transfer_function() -> None:
    layer = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False).double().eval()
    kernel = torch.zeros(8, 8, dtype=torch.float64)
    kernel[:3, :3] = layer.weight.detach()[0, 0]
    transfer = torch.fft.fftshift(torch.fft.fft2(kernel).abs())
    found = fourier_heatmap(layer, batch(2, 1, 8, 8), None, 2.0, layer="")
    assert torch.allclose(found.values, 2 * transfer, rtol=0, atol=1e-12)


def test_the_error_rate_of_a_model_that_sees_one_frequency() -> None:
    """Two scores +-<U, x>: images on the right side by 1 fail at that frequency for half of the signs, elsewhere never."""
    grid, frequency = (6, 5), (1, 2)
    u = wave(grid, frequency, "sine")

    def model(x: Tensor) -> Tensor:
        return (x[:, 0] * u).sum(dim=(1, 2))[:, None] * torch.tensor([1.0, -1.0], dtype=torch.float64)

    x = u.expand(150, 1, *grid).contiguous()
    y = torch.zeros(150, dtype=torch.long)
    found = fourier_heatmap(model, x, y, 1.5, phases="sine", generator=own(1))
    values = torch.fft.ifftshift(found.values)
    assert found.quantity == "error" and found.clean == 0
    assert values[frequency] == values[mirror(frequency, grid)]
    assert abs(float(values[frequency]) - 0.5) < 4 * 0.5 / math.sqrt(150)
    assert int((values > 0).sum()) == 2
    assert fourier_heatmap(model, x, y, 0.5, phases="sine").values.max() == 0
    both = torch.fft.ifftshift(fourier_heatmap(model, x, y, 1.5, generator=own(1)).values)
    assert abs(float(both[frequency]) - 0.25) < 4 * 0.5 / math.sqrt(150)
    inside = (found.lower <= found.values) & (found.values <= found.upper)  # type: ignore[operator]
    assert bool(inside.all())


@pytest.mark.parametrize("shape", [(1, 7), (2, 8), (1, 5, 5), (1, 4, 7), (3, 6, 6)])
def test_the_map_is_mirrored_and_centred(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 4)).double().eval()
    values = torch.fft.ifftshift(fourier_heatmap(model, batch(5, *shape), None, 1.0, layer="").values)
    axes = tuple(range(values.ndim))
    assert torch.equal(values, values.flip(axes).roll([1] * len(axes), axes))
    constant = nn.Sequential(
        nn.AdaptiveAvgPool1d(1) if len(shape) == 2 else nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    centred = fourier_heatmap(constant, batch(5, *shape), None, 1.0, layer="").values
    middle = tuple(n // 2 for n in shape[1:])
    assert float(centred[middle]) > 0.1
    assert (centred > 1e-10).sum() == 1


def convolutional(channels: int = 2) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 4 * 3, 5)
        ).double().eval()  # fmt: skip


def test_a_layer_is_seen_through_its_hook_and_left_as_it_was() -> None:
    model, x = convolutional(), batch(6, 2, 8, 7)
    hooks, before = dict(model[2]._forward_hooks), torch.get_rng_state()
    whole, part = (fourier_heatmap(m, x, None, 1.0, layer=n) for m, n in ((model, "2"), (model[:3].eval(), "")))
    assert torch.allclose(whole.values, part.values, rtol=0, atol=1e-12)
    assert whole.quantity == "change of 2" and part.quantity == "change of output"
    assert dict(model[2]._forward_hooks) == hooks and not model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(before, torch.get_rng_state())


def test_hooks_are_removed_when_the_model_fails() -> None:
    model = convolutional()
    with pytest.raises(RuntimeError):
        fourier_heatmap(model, batch(2, 2, 9, 9), None, 1.0, layer="2")
    assert not model[2]._forward_hooks


@pytest.mark.parametrize("batch_size", [1, 4, 7, 24, 1000])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    model, x, y = convolutional(), batch(6, 2, 8, 7), torch.arange(6) % 5
    for labels, layer in ((y, None), (None, "0")):
        maps = [
            fourier_heatmap(model, x, labels, 3.0, layer=layer, generator=own(2), batch_size=size)
            for size in (256, batch_size)
        ]
        assert torch.allclose(maps[0].values, maps[1].values, rtol=0, atol=1e-12)
        assert torch.allclose(maps[0].se, maps[1].se, rtol=0, atol=1e-12)


def test_no_batch_is_larger_than_asked_for_and_passes_are_as_many_as_promised() -> None:
    spy = Spy()
    fourier_heatmap(spy, batch(10, 1, 6, 6), None, 1.0, layer="", batch_size=16)
    assert max(map(len, spy.seen)) <= 16
    assert sum(map(len, spy.seen)) == 10 + 36 * 10
    spy.seen.clear()
    fourier_heatmap(
        spy, batch(10, 1, 6, 6), None, 1.0, layer="", batch_size=16, frequencies=2, images=3, phases="cosine"
    )
    assert sum(map(len, spy.seen)) == 3 + 2 * 3


def test_standard_errors_are_those_of_a_slow_loop() -> None:
    model, x, grid = convolutional(1), batch(7, 1, 8, 7), (8, 7)
    found = fourier_heatmap(model, x, None, 2.0, layer="", generator=own(4))
    signs, clean = own(4), model(x).detach()
    for f in distinct_frequencies(grid):
        phases = phases_of(f, grid, "both")
        drawn = 2 * torch.randint(2, (len(phases), 7, 1), generator=signs) - 1
        changes = [
            (model(x + 2.0 * s[..., None, None] * wave(grid, f, p)).detach() - clean).norm(dim=1)
            for p, s in zip(phases, drawn, strict=True)
        ]
        per_image = torch.stack(changes).mean(dim=0)
        place = tuple((i + n // 2) % n for i, n in zip(f, grid, strict=True))
        assert float(found.values[place]) == pytest.approx(float(per_image.mean()), abs=1e-12)
        assert float(found.se[place]) == pytest.approx(float(per_image.std()) / math.sqrt(7), abs=1e-12)


def test_a_sample_of_frequencies_is_a_part_of_the_map_and_its_profile_covers_the_whole_one() -> None:
    model, x = convolutional(1), batch(8, 1, 8, 7)
    whole = fourier_heatmap(model, x, None, 1.0, layer="")
    bands = band_masks((8, 7), 2)
    truth, error = whole.profile(bands)
    mean = torch.fft.ifftshift(whole.values)[bands.masks[0]].mean()
    assert float(truth[0]) == pytest.approx(float(mean), abs=1e-12)
    assert torch.allclose(error[1:], torch.fft.ifftshift(whole.se)[bands.masks[1]].mean()[None], atol=1e-12)
    hits = 0
    for seed in range(20):
        part = fourier_heatmap(model, x, None, 1.0, layer="", frequencies=12, generator=own(seed))
        known = ~part.values.isnan()
        assert part.sampled == 12 and part.distinct == 29 and 12 <= int(known.sum()) <= 24
        assert torch.allclose(part.values[known], whole.values[known], rtol=0.5)  # other signs
        mean, error = part.profile(bands)
        hits += int(((mean - truth).abs() <= 2 * error).sum())
    assert hits >= 36  # 95 per cent of 40, less two standard deviations


def test_a_sample_of_images_uses_so_many() -> None:
    x, y = batch(30, 2, 8, 7), torch.arange(30) % 5
    found = fourier_heatmap(convolutional(), x, y, 1.0, images=5)
    assert found.images == 5
    assert set((found.values[~found.values.isnan()] * 10).round(decimals=9).tolist()) <= set(map(float, range(11)))


def test_clipping_is_reported_with_the_norm_that_is_left() -> None:
    spy, x = Spy(), torch.full((3, 1, 6), 0.9, dtype=torch.float64)
    found = fourier_heatmap(spy, x, None, 1.0, layer="", clip=(0.0, 1.0))
    applied = torch.cat(spy.seen)[3:]
    assert 0 <= float(applied.min()) and float(applied.max()) <= 1
    assert found.clipped_norm == pytest.approx(float((applied - x[:1]).flatten(1).norm(dim=1).mean()), abs=1e-12)
    assert found.clipped_norm < found.total_norm
    assert fourier_heatmap(spy, x, None, 1.0, layer="").clipped_norm == found.total_norm


@pytest.mark.parametrize(("successes", "count", "lower", "upper"), [
    (0, 10, 0.0, 1 - 0.025**0.1), (10, 10, 0.025**0.1, 1.0), (5, 10, 0.18709, 0.81291),
])  # fmt: skip
def test_binomial_intervals(successes: int, count: int, lower: float, upper: float) -> None:
    """The ends for no success are a closed form; 5 of 10 is R's binom.test(5, 10)."""
    found = clopper_pearson(torch.tensor([successes / count]), count)
    assert float(found[0]) == pytest.approx(lower, abs=1e-5)
    assert float(found[1]) == pytest.approx(upper, abs=1e-5)


def test_generators_decide_and_json_can_be_written() -> None:
    model, x, y = convolutional(), batch(12, 2, 8, 7), torch.arange(12) % 5
    a, b, c = (fourier_heatmap(model, x, y, 3.0, generator=g, frequencies=9) for g in (None, own(0), own(1)))
    assert torch.equal(a.values.nan_to_num(-1), b.values.nan_to_num(-1))
    assert not torch.equal(a.values.nan_to_num(-1), c.values.nan_to_num(-1))
    written = json.loads(json.dumps(a.to_json(), allow_nan=False))
    assert (
        len(written["values"]) == 8 and len(written["values"][0]) == 7 and any(None in row for row in written["values"])
    )
    assert (written["quantity"], written["norm"], written["images"], written["phase"]) == ("error", 3.0, 12, "both")


def test_what_does_not_make_sense_is_refused_in_words() -> None:
    model, x, y = convolutional(), batch(4, 2, 8, 7), torch.arange(4)
    refused: list[tuple[str, dict[str, object]]] = [
        ("labels for a map of errors", {"y": None}), ("norm above 0", {"norm": 0.0}), ("norm above 0", {"norm": math.nan}),
        ("phases", {"phases": "tangent"}), ("per", {"per": "pixel"}), ("LOW < HIGH", {"clip": (1.0, 0.0)}),
        ("from 1 to 29 frequencies", {"frequencies": 30}), ("from 1 to 4 images", {"images": 5}),
        ("batch size", {"batch_size": 0}), ("name of a layer out of 0, 1, 2, 3, 4", {"layer": "conv"}),
        ("4 labels", {"y": y[:3]}), ("below the number of classes", {"y": y + 3}), ("number 2", {"x": x.index_fill(0, torch.tensor([2]), math.inf)}),
        ("channels first", {"x": x[0, 0]}), ("floating point", {"x": torch.zeros(4, 2, 8, 7, dtype=torch.uint8)}),
    ]  # fmt: skip
    for message, changed in refused:
        arguments: dict[str, object] = {"x": x, "y": y, "norm": 1.0} | changed
        with pytest.raises(UsageError, match=message):
            fourier_heatmap(model, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="eval"):
        fourier_heatmap(convolutional().train(), x, y, 1.0)
    with pytest.raises(UsageError, match=r"nn\.Module"):
        fourier_heatmap(lambda t: t.flatten(1), x, None, 1.0, layer="0")
    twice = nn.Sequential(shared := nn.ReLU(), shared).eval()
    with pytest.raises(UsageError, match="once"):
        fourier_heatmap(twice, x, None, 1.0, layer="0")


def test_stopped_it_keeps_the_frequencies_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipscope.frequency.heatmap.GROUP", 8)  # one frequency with two phases
    spy, x = Spy(), batch(4, 1, 6)

    def stop(message: str, share: float) -> None:
        if share >= 0.5:
            raise KeyboardInterrupt

    whole = fourier_heatmap(spy, x, None, 1.0, layer="", batch_size=4)
    with pytest.raises(Interrupted) as stopped:
        fourier_heatmap(spy, x, None, 1.0, layer="", batch_size=4, progress=stop)
    kept = stopped.value.result
    known = ~kept.values.isnan()  # type: ignore[attr-defined]
    assert kept.sampled == 2 and int(known.sum()) == 3  # type: ignore[attr-defined]
    assert torch.equal(kept.values[known], whole.values[known])  # type: ignore[attr-defined]


def test_groups_are_many_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = convolutional(1), batch(5, 1, 8, 7)
    whole = fourier_heatmap(model, x, None, 1.0, layer="", generator=own(3))
    monkeypatch.setattr("lipscope.frequency.heatmap.GROUP", 20)
    parts = fourier_heatmap(model, x, None, 1.0, layer="", generator=own(3))
    assert torch.allclose(whole.values, parts.values, rtol=0, atol=1e-12)


def test_a_model_may_change_its_input_or_return_it() -> None:
    """Perturbed images stand in one buffer that is written again and again: neither the clean images nor answers may be lost."""
    x, y = batch(6, 2, 8, 7), torch.arange(6) % 5

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = convolutional()
            self.eval()

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images.mul_(2.0))

    kept = x.clone()
    for labels, layer in ((y, None), (None, "")):
        found = fourier_heatmap(InPlace(), x, labels, 3.0, layer=layer)
        wanted = fourier_heatmap(lambda t: convolutional()(2.0 * t), x, labels, 3.0, layer=layer)
        assert torch.equal(found.values, wanted.values) and torch.equal(x, kept)

    def view(images: Tensor) -> Tensor:
        return images.flatten(1)

    labels = torch.full((6,), 3)
    found = fourier_heatmap(view, x, labels, 30.0, batch_size=2)
    assert torch.equal(found.values, fourier_heatmap(lambda t: t.flatten(1).clone(), x, labels, 30.0).values)
