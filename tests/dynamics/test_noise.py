"""Projections of gradient noise against per-sample gradients by vmap, and their estimates against the whole population."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lipscope.claims.errors import UsageError
from lipscope.dynamics.factors import list_factors
from lipscope.dynamics.noise import NoiseLevels, micro_batch_noise, noise_levels, per_sample_noise
from lipscope.dynamics.projections import Projections, expand_factors, gradient_projections, pooled
from lipscope.dynamics.sampling import micro_batch_projections, per_sample_projections, reduction_of


class Sequence(nn.Module):
    """Dense layers on sequences (B, T, d), one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.inner(torch.tanh(self.inner(x))))).mean(1)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.sigmoid(self.b(torch.tanh(self.a(x)))))


def normalized() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4), nn.Flatten(), nn.LayerNorm(64),
        nn.Linear(64, 3),
    )  # fmt: skip
    for module in model:
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 2.0)
    return model.eval()


MODELS = {
    "dense": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (6,)),
    "in-place": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)), (6,)),
    "sequence": (Sequence, (4, 5)),
    "tied": (Tied, (4,)),
    "conv2d": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.Tanh(),
            nn.Conv2d(4, 2, 3, dilation=2, padding=2, padding_mode="circular"), nn.Flatten(), nn.Linear(18, 3),
        ),
        (2, 5, 5),
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.ConvTranspose1d(3, 2, 2, stride=2), nn.Flatten(), nn.Linear(24, 3)),
        (2, 8),
    ),
    "normalized": (normalized, (2, 4, 4)),
}  # fmt: skip


def setting(name: str, dtype: torch.dtype, count: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    make, shape = MODELS[name]
    torch.manual_seed(4)
    model = make().to(dtype)
    return model, torch.randn(count, *shape, dtype=dtype), torch.randint(3, (count,))


def per_sample_gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[int, Tensor]:
    """By `id` of the parameter, (B, *shape), float64 values of the model's own precision."""
    named = dict(model.named_parameters())

    def one(parameters: dict[str, Tensor], point: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, parameters, (point[None],)), target[None])

    found = vmap(grad(one), in_dims=(None, 0, 0))({k: v.detach() for k, v in named.items()}, x, y)
    return {id(named[k]): v.double() for k, v in found.items()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_hook_identity_is_the_per_sample_gradient(name: str, dtype: torch.dtype, reduction: str) -> None:
    model, x, y = setting(name, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    found = per_sample_projections(model, x, y, nn.CrossEntropyLoss(reduction=reduction))
    assert found.reduction == reduction and found.units == len(x) and found.unit_size == 1
    gradients = per_sample_gradients(model, x, y)
    around = expand_factors(list_factors(model, x))
    assert len(around) == len(found.layers) > 0
    for one, layer in zip(around, found.layers, strict=True):
        g = gradients[id(one.operator.parameter)]
        first = torch.tensor([one.expansion.first(sample) for sample in g], dtype=torch.float64)
        scale = float(first.abs().max())
        assert scale > 0
        assert float((layer.first - first).abs().max()) <= tolerance * scale, layer.layer
        mean = one.expansion.image(g.mean(0))[None]
        bend = float(one.expansion.second(mean))
        assert layer.mean_curvature == pytest.approx(bend, rel=10 * tolerance, abs=1e-12), layer.layer
        if not layer.note:
            h = one.expansion.second(torch.stack([one.expansion.image(sample) for sample in g])).diagonal()
            assert float((layer.curvature - h).abs().max()) <= 10 * tolerance * (float(h.max()) + 1e-12), layer.layer


def test_which_curvatures_are_known() -> None:
    model, x, y = setting("conv2d", torch.float64)
    conv, _, dense = per_sample_projections(model, x, y, nn.CrossEntropyLoss()).layers
    assert bool(torch.isnan(conv.curvature).all()) and "micro-batches" in conv.note
    assert bool(torch.isfinite(dense.curvature).all()) and not dense.note


def covariance_levels(
    model: nn.Module, x: Tensor, y: Tensor, batch: int, replacement: bool
) -> dict[str, tuple[float, float, float]]:
    """Drift, variance and mean curvature of the noise by going through every batch of a population."""
    gradients = per_sample_gradients(model, x, y)
    indices = range(len(x))
    batches = list(itertools.product(indices, repeat=batch) if replacement else itertools.combinations(indices, batch))
    found = {}
    for one in expand_factors(list_factors(model, x)):
        g = gradients[id(one.operator.parameter)]
        mean = g.mean(0)
        drawn = [g[list(chosen)].mean(0) for chosen in batches]
        first = torch.tensor([one.expansion.first(d) for d in drawn], dtype=torch.float64)
        h = [float(one.expansion.second(one.expansion.image(d - mean)[None])) for d in drawn]
        found[one.factor.name] = (one.expansion.first(mean), float(first.var(correction=0)), sum(h) / len(h))
    return found


def test_levels_without_replacement_are_exact_on_the_whole_population() -> None:
    model, x, y = setting("dense", torch.float64, count=7)
    levels = per_sample_noise(model, x, y, nn.CrossEntropyLoss(), batch_size=3, population=7)
    expected = covariance_levels(model, x, y, 3, replacement=False)
    for level in levels.layers:
        drift, variance, curvature = expected[level.layer]
        assert level.drift == pytest.approx(drift, rel=1e-9)
        assert level.variance == pytest.approx(variance, rel=1e-9)
        assert level.curvature == pytest.approx(curvature, rel=1e-9)
    whole = per_sample_noise(model, x, y, nn.CrossEntropyLoss(), batch_size=7, population=7)
    assert whole.cross_variance == 0 and all(level.variance == 0 == level.curvature for level in whole.layers)


def test_levels_with_replacement_are_unbiased() -> None:
    """The estimate from 3 of the samples, averaged over all draws, is the truth of batches of 2 drawn with replacement."""
    model, x, y = setting("dense", torch.float64, count=4)
    expected = covariance_levels(model, x, y, 2, replacement=True)
    draws = [
        per_sample_noise(model, x[list(chosen)], y[list(chosen)], nn.CrossEntropyLoss(), batch_size=2)
        for chosen in itertools.product(range(4), repeat=3)
    ]
    for index, level in enumerate(draws[0].layers):
        _, variance, curvature = expected[level.layer]
        assert sum(d.layers[index].variance for d in draws) / len(draws) == pytest.approx(variance, rel=1e-9)
        assert sum(d.layers[index].curvature for d in draws) / len(draws) == pytest.approx(curvature, rel=1e-9)
        flows = [d.layers[index].flow_curvature for d in draws]
        one = expand_factors(list_factors(model, x))[index]
        mean = per_sample_gradients(model, x, y)[id(one.operator.parameter)].mean(0)
        flow = float(one.expansion.second(one.expansion.image(mean)[None]))
        assert sum(flows) / len(flows) == pytest.approx(flow, rel=1e-9)


def test_cross_variance_has_the_covariances_between_layers() -> None:
    model, x, y = setting("dense", torch.float64, count=9)
    found = per_sample_projections(model, x, y, nn.CrossEntropyLoss())
    levels = noise_levels(found, 3)
    joint = sum(layer.first / layer.norm for layer in found.layers)
    assert isinstance(joint, Tensor)
    assert levels.cross_variance == pytest.approx(float(joint.var()) / 3)
    block = sum(level.variance / level.norm**2 for level in levels.layers)
    assert abs(levels.cross_variance - block) > 1e-3 * block


def test_calls_count_in_the_cross_variance() -> None:
    model, x, y = setting("sequence", torch.float64)
    found = per_sample_projections(model, x, y, nn.CrossEntropyLoss())
    assert [layer.calls for layer in found.layers] == [2, 1]
    inner, out = found.layers
    joint = 2 * inner.first / inner.norm + out.first / out.norm
    assert noise_levels(found, 1).cross_variance == pytest.approx(float(joint.var()))


@pytest.mark.parametrize("name", ["dense", "conv2d"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_micro_batches_are_means_of_their_samples(name: str, reduction: str) -> None:
    model, x, y = setting(name, torch.float64, count=8)
    loss = nn.CrossEntropyLoss(reduction=reduction)
    single = per_sample_projections(model, x, y, loss)
    parts = micro_batch_projections(model, x, y, loss, 4)
    assert (parts.units, parts.unit_size) == (4, 2)
    for one, two in zip(single.layers, parts.layers, strict=True):
        assert torch.allclose(one.first.reshape(4, 2).mean(1), two.first, rtol=1e-9, atol=1e-12)
        assert two.mean_curvature == pytest.approx(one.mean_curvature, rel=1e-9)
        assert bool(torch.isfinite(two.curvature).all())


def test_levels_from_micro_batches_speak_of_the_same_batches() -> None:
    """Micro-batches of one sample are the samples; the level is that of a batch, whatever the units are."""
    model, x, y = setting("dense", torch.float64, count=8)
    loss = nn.CrossEntropyLoss()
    same_close(micro_batch_noise(model, x, y, loss, 8, batch_size=4), per_sample_noise(model, x, y, loss, batch_size=4))
    halves = micro_batch_projections(model, x, y, loss, 4)
    level = noise_levels(halves, 8).layers[0]
    assert level.variance == pytest.approx(float(halves.layers[0].first.var()) / 4)


def same_close(one: NoiseLevels, other: NoiseLevels) -> None:
    assert one.cross_variance == pytest.approx(other.cross_variance, rel=1e-9)
    for a, b in zip(one.layers, other.layers, strict=True):
        for field in ("drift", "variance", "curvature", "flow_curvature"):
            assert getattr(a, field) == pytest.approx(getattr(b, field), rel=1e-9), field


def test_the_sum_of_losses_moves_more() -> None:
    model, x, y = setting("dense", torch.float64)
    mean = per_sample_noise(model, x, y, nn.CrossEntropyLoss(), batch_size=4)
    total = per_sample_noise(model, x, y, nn.CrossEntropyLoss(reduction="sum"), batch_size=4)
    for a, b in zip(mean.layers, total.layers, strict=True):
        assert b.drift == pytest.approx(4 * a.drift) and b.variance == pytest.approx(16 * a.variance)
        assert b.curvature == pytest.approx(16 * a.curvature)


def test_ranks_are_units() -> None:
    """Each rank gives two scalars a layer; the mean gradient is what data parallel training has anyway."""
    model, x, y = setting("conv1d", torch.float64, count=9)
    around = expand_factors(list_factors(model, x))
    parameters = {id(p): p for p in model.parameters()}

    def gradients(rows: slice) -> dict[int, Tensor]:
        value = nn.functional.cross_entropy(model(x[rows]), y[rows])
        return dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))

    ranks = [gradients(slice(3 * r, 3 * r + 3)) for r in range(3)]
    mean = {key: sum(g[key] for g in ranks) / 3 for key in parameters}
    found = pooled([gradient_projections(around, g, 3) for g in ranks], gradient_projections(around, mean, 3))
    here = micro_batch_projections(model, x, y, nn.CrossEntropyLoss(), 3)
    same_close(noise_levels(found, 9), noise_levels(here, 9))
    with pytest.raises(UsageError, match="same layers"):
        pooled([], gradient_projections(around, mean, 3))


# ------------------------------------------------------------------------------------------------------ refusals


def test_batch_norm_in_train_mode_is_refused_for_samples_and_taken_for_micro_batches() -> None:
    model, x, y = setting("normalized", torch.float64, count=8)
    model.train()
    with pytest.raises(UsageError, match=r"'1' in train mode.*micro_batch_projections"):
        per_sample_projections(model, x, y, nn.CrossEntropyLoss())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    found = micro_batch_projections(model, x, y, nn.CrossEntropyLoss(), 2)
    assert all(bool(torch.isfinite(layer.first).all()) for layer in found.layers)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_losses_that_do_not_fall_into_samples_are_refused() -> None:
    model, x, y = setting("dense", torch.float64)
    y[:] = torch.tensor([0, 0, 1, 1, 2, 2])
    with pytest.raises(UsageError, match="neither"):
        per_sample_projections(
            model, x, y, nn.CrossEntropyLoss(weight=torch.tensor([9.0, 1.0, 0.1], dtype=torch.float64))
        )
    with pytest.raises(UsageError, match="one number"):
        per_sample_projections(model, x, y, nn.CrossEntropyLoss(reduction="none"))
    outputs = torch.randn(5, 3)
    assert reduction_of(nn.MSELoss(), outputs, torch.randn(5, 3)) == "mean"
    assert reduction_of(nn.MSELoss(reduction="sum"), outputs, torch.randn(5, 3)) == "sum"


def test_weights_used_outside_of_their_layer_are_not_guessed() -> None:
    class Leak(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(self.fc(x) @ self.fc.weight))

    model = Leak().double()
    fc, out = per_sample_projections(
        model, torch.randn(5, 4, dtype=torch.float64), torch.randint(3, (5,)), nn.CrossEntropyLoss()
    ).layers
    assert bool(torch.isnan(fc.first).all()) and "outside" in fc.note
    assert bool(torch.isfinite(out.first).all())
    levels = noise_levels(Projections((fc, out), 5, 1, "mean"), 5)
    assert math.isnan(levels.layers[0].drift) and "'fc'" in levels.note


def test_too_little_and_wrong_sizes() -> None:
    model, x, y = setting("dense", torch.float64)
    with pytest.raises(UsageError, match="at least 2"):
        per_sample_projections(model, x[:1], y[:1], nn.CrossEntropyLoss())
    with pytest.raises(UsageError, match="divides"):
        micro_batch_projections(model, x, y, nn.CrossEntropyLoss(), 4)
    found = per_sample_projections(model, x, y, nn.CrossEntropyLoss())
    with pytest.raises(UsageError, match="batch of 1 to 5"):
        noise_levels(found, 6, population=5)


def test_looking_leaves_no_trace() -> None:
    model, x, y = setting("normalized", torch.float32, count=8)
    model = nn.Sequential(model, nn.Dropout(0.5))
    model[1].train()
    nn.functional.cross_entropy(model(x), y).backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    per_sample_projections(model, x, y, nn.CrossEntropyLoss())
    micro_batch_projections(model, x, y, nn.CrossEntropyLoss(), 2)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, model.parameters(), strict=True) if p.grad is not None)
    assert all(not m._forward_hooks for m in model.modules())
