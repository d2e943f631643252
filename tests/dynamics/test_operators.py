"""Layers as operators: norms against the unrolled matrix, derivatives against autograd through it, factors of whole models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lipscope.claims.errors import ModelError
from lipscope.dynamics.constants import entrywise_constant
from lipscope.dynamics.expansions import Apply, FourierExpansion, PairExpansion, ScaleExpansion, unrolled
from lipscope.dynamics.factors import Factor, list_factors, log_product
from lipscope.dynamics.matrix_free import KrylovExpansion, MatrixFreeExpansion
from lipscope.dynamics.operators import Convolution, Dense, Operator, Scale, TransposedConvolution

CONVOLUTIONS = [
    (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 4, 5)),
    (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 4, 4)),
    (lambda: nn.Conv2d(2, 2, (2, 3), dilation=(2, 1), padding=(1, 0)), (2, 5, 4)),
    (lambda: nn.Conv1d(3, 4, 4, stride=3, padding=2, dilation=2), (3, 17)),
    (lambda: nn.Conv2d(2, 3, 3, padding="same", padding_mode="reflect"), (2, 3, 4)),
    (lambda: nn.Conv2d(2, 3, 3, padding=1, stride=2, padding_mode="circular"), (2, 6, 6)),
    (lambda: nn.Conv2d(2, 3, 3, padding=2, padding_mode="circular"), (2, 3, 4)),
    (lambda: nn.Conv3d(1, 2, 2), (1, 3, 4, 3)),
]
CIRCULAR = [
    (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 6, 5)),
    (lambda: nn.Conv2d(3, 2, 3, padding=2, dilation=2, padding_mode="circular"), (3, 5, 6)),
    (lambda: nn.Conv2d(4, 4, 3, padding="same", groups=2, padding_mode="circular"), (4, 4, 4)),
    (lambda: nn.Conv1d(3, 2, 5, padding=2, padding_mode="circular"), (3, 8)),
    (lambda: nn.Conv1d(2, 2, 5, padding=4, dilation=2, padding_mode="circular"), (2, 7)),
]


def seeded(make: object, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    module = make()  # type: ignore[operator]
    assert isinstance(module, nn.Module)
    return module.double()


def direction_of(weight: Tensor, seed: int = 1) -> Tensor:
    return torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def differences(apply: Apply, shape: tuple[int, ...], weight: Tensor, change: Tensor) -> tuple[float, float]:
    """First and second derivative of the unrolled matrix' norm by differences of fourth order, pairs of equal values included."""

    def norm(t: float) -> float:
        matrix = unrolled(apply, weight + t * change, shape)
        gram = matrix @ matrix.mT if len(matrix) < matrix.shape[1] else matrix.mT @ matrix
        return float(torch.linalg.eigvalsh(gram)[-1]) ** 0.5

    h = 1e-3
    n = {k: norm(k * h) for k in (-2, -1, 0, 1, 2)}
    first = (n[-2] - 8 * n[-1] + 8 * n[1] - n[2]) / (12 * h)
    return first, (-n[2] + 16 * n[1] - 30 * n[0] + 16 * n[-1] - n[-2]) / (12 * h * h)


@pytest.mark.parametrize("index", range(len(CONVOLUTIONS)))
@pytest.mark.parametrize("kind", [PairExpansion, KrylovExpansion, MatrixFreeExpansion])
def test_padded_convolutions(
    index: int, kind: type[PairExpansion] | type[KrylovExpansion] | type[MatrixFreeExpansion]
) -> None:
    make, shape = CONVOLUTIONS[index]
    operator = Convolution(seeded(make), shape)
    (weight,) = operator.snapshot()
    assert not operator.circular
    matrix = unrolled(operator.apply, weight, shape)
    expansion = kind(weight, operator.apply, shape)
    values = torch.linalg.svdvals(matrix)
    assert expansion.norm == pytest.approx(float(values[0]), rel=1e-10)
    assert expansion.gap == pytest.approx(float(values[0] - values[1]), rel=1e-6, abs=1e-9)
    change = 0.3 * direction_of(weight)
    first, second = differences(operator.apply, shape, weight, change)
    assert expansion.first(change) == pytest.approx(first, rel=2e-6, abs=1e-7)
    assert float(expansion.second(expansion.image(change)[None])) == pytest.approx(second, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("index", range(len(CIRCULAR)))
def test_circular_convolutions(index: int) -> None:
    make, shape = CIRCULAR[index]
    operator = Convolution(seeded(make), shape)
    (weight,) = operator.snapshot()
    assert operator.circular
    expansion = operator.expand((weight,))
    assert isinstance(expansion, FourierExpansion)
    values = torch.linalg.svdvals(unrolled(operator.apply, weight, shape))
    assert expansion.norm == pytest.approx(float(values[0]), rel=1e-12)
    distinct = values[values < values[0] * (1 - 1e-9)]
    assert expansion.gap == pytest.approx(float(values[0] - distinct[0]), rel=1e-7)
    change = 0.2 * direction_of(weight)
    first, second = differences(operator.apply, shape, weight, change)
    assert expansion.first(change) == pytest.approx(first, rel=2e-6, abs=1e-7)
    assert float(expansion.second(expansion.image(change)[None])) == pytest.approx(second, rel=1e-4, abs=1e-5)


def test_a_conjugate_pair_has_finite_derivatives() -> None:
    """A kernel that is largest between the frequency 0 and Nyquist: multiplicity two in the unrolled matrix."""
    operator = Convolution(seeded(lambda: nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False)), (1, 8))
    weight = torch.tensor([[[1.0, 0.0, -1.0]]], dtype=torch.float64)  # |2 sin w|, largest at w = pi/2
    expansion = operator.expand((weight,))
    values = torch.linalg.svdvals(unrolled(operator.apply, weight, (1, 8)))
    assert float(values[0] - values[1]) < 1e-12
    assert expansion.simple and expansion.gap == pytest.approx(2 - math.sqrt(2))
    change = torch.tensor([[[0.3, 0.5, 0.1]]], dtype=torch.float64)
    first, second = differences(operator.apply, (1, 8), weight, change)
    assert expansion.first(change) == pytest.approx(first, abs=1e-8)
    # symbol 2i sin w + change: the real part .5 turns the phase only, |.5|^2 / 2
    assert float(expansion.second(expansion.image(change)[None])) == pytest.approx(0.25 / 2, rel=1e-12)
    assert second == pytest.approx(0.25 / 2, rel=1e-6)


def test_zero_padding_is_another_operator_than_the_circular_one() -> None:
    torch.manual_seed(0)
    zero = nn.Conv2d(2, 2, 3, padding=1, bias=False).double()
    ring = nn.Conv2d(2, 2, 3, padding=1, bias=False, padding_mode="circular").double()
    ring.weight.data.copy_(zero.weight.data)
    norms = [op.expand(op.snapshot()).norm for op in (Convolution(zero, (2, 4, 4)), Convolution(ring, (2, 4, 4)))]
    assert abs(norms[0] - norms[1]) > 1e-3
    reshaped = float(torch.linalg.matrix_norm(zero.weight.detach().reshape(2, -1), 2))
    assert abs(norms[0] - reshaped) > 1e-3


def test_large_convolutions_go_by_lanczos_and_start_from_the_last_pair() -> None:
    operator = Convolution(seeded(lambda: nn.Conv2d(3, 4, 3, padding=1)), (3, 8, 8))
    (weight,) = operator.snapshot()
    numpy_state = np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    first = operator.expand((weight,))
    assert isinstance(first, KrylovExpansion)
    values = torch.linalg.svdvals(unrolled(operator.apply, weight, (3, 8, 8)))
    assert first.norm == pytest.approx(float(values[0]), rel=1e-10)
    assert first.gap == pytest.approx(float(values[0] - values[1]), rel=1e-6)
    moved = weight + 1e-4 * direction_of(weight)
    again, cold = operator.expand((moved,), first), operator.expand((moved,))
    assert again.norm == pytest.approx(cold.norm, rel=1e-12)
    change = moved - weight
    image = first.image(change)[None]
    taylor = first.norm + first.first(change) + float(first.second(image)) / 2
    assert abs(again.norm - taylor) < 0.02 * abs(float(first.second(image)))
    assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[index,union-attr]


def test_the_hessian_is_bilinear_for_every_kind() -> None:
    expansions = [
        Dense(seeded(lambda: nn.Linear(7, 4)), (7,)),
        Convolution(seeded(CONVOLUTIONS[0][0]), CONVOLUTIONS[0][1]),
        Convolution(seeded(CIRCULAR[0][0]), CIRCULAR[0][1]),
    ]
    for operator in expansions:
        found = operator.expand(operator.snapshot())
        one, other = direction_of(found.direction, 1), direction_of(found.direction, 2)
        images = torch.stack([found.image(g) for g in (one, other, one + other)])
        h = found.second(images)
        assert torch.allclose(h, h.mT, atol=1e-9)
        assert float(h[2, 2]) == pytest.approx(float(h[0, 0] + 2 * h[0, 1] + h[1, 1]), rel=1e-9)
        assert found.first(one) + found.first(other) == pytest.approx(found.first(one + other))
        # H vanishes along the weights themselves and D is the norm there
        along = found.image(operator.snapshot()[0])[None]
        assert abs(float(found.second(along))) < 1e-8
        assert found.first(operator.snapshot()[0]) == pytest.approx(found.norm, rel=1e-10)


def test_transposed_convolution() -> None:
    module = seeded(lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1, groups=1))
    operator = TransposedConvolution(module, (3, 3, 4))
    x = torch.randn(2, 3, 3, 4, dtype=torch.float64)
    assert isinstance(module, nn.ConvTranspose2d) and module.bias is not None
    assert torch.allclose(operator.apply(module.weight, x) + module.bias[:, None, None], module(x))
    matrix = unrolled(operator.apply, operator.snapshot()[0], (3, 3, 4))
    assert operator.expand(operator.snapshot()).norm == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)))


APART = [
    (lambda: nn.Conv2d(3, 5, 1), (3, 4, 3)),
    (lambda: nn.Conv2d(3, 5, 1, padding_mode="circular"), (3, 4, 3)),
    (lambda: nn.Conv2d(4, 6, 1, stride=2, groups=2), (4, 4, 5)),
    (lambda: nn.Conv2d(2, 4, (2, 3), stride=(2, 4)), (2, 5, 8)),
    (lambda: nn.Conv1d(3, 4, 2, dilation=2, stride=3), (3, 10)),
    (lambda: nn.ConvTranspose2d(3, 4, 2, stride=2), (3, 3, 4)),
    (lambda: nn.ConvTranspose1d(2, 3, 2, stride=3, output_padding=1), (2, 4)),
]
"""No two outputs of a convolution read the same input, no two inputs of a transposed one reach the same output."""


@pytest.mark.parametrize("index", range(len(APART)))
def test_disjoint_patches_have_a_simple_norm(index: int) -> None:
    make, shape = APART[index]
    module = seeded(make)
    operator = (Convolution if isinstance(module, nn.Conv1d | nn.Conv2d) else TransposedConvolution)(module, shape)
    (weight,) = operator.snapshot()
    values = torch.linalg.svdvals(unrolled(operator.apply, weight, shape))
    assert float(values[1]) == pytest.approx(float(values[0]), rel=1e-12)  # the whole operator's is not simple
    expansion = operator.expand((weight,))
    assert expansion.simple
    assert expansion.norm == pytest.approx(float(values[0]), rel=1e-12)
    change = 0.3 * direction_of(weight)
    first, second = differences(operator.apply, shape, weight, change)
    assert expansion.first(change) == pytest.approx(first, rel=2e-6, abs=1e-7)
    assert float(expansion.second(expansion.image(change)[None])) == pytest.approx(second, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Conv2d(2, 3, 2, stride=2, padding=1), (2, 4, 4)),  # patches are cut by the border
        (lambda: nn.Conv2d(2, 3, 2, stride=(2, 1)), (2, 4, 4)),
        (lambda: nn.Conv1d(2, 3, 2, stride=2, dilation=2), (2, 9)),
        (lambda: nn.ConvTranspose1d(2, 3, 2, stride=2, padding=1), (2, 2)),  # every pixel is cut
        (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2), (2, 5)),
    ],
)
def test_patches_that_meet_or_are_cut_are_taken_whole(make: object, shape: tuple[int, ...]) -> None:
    module = seeded(make)
    operator = (Convolution if isinstance(module, nn.Conv1d | nn.Conv2d) else TransposedConvolution)(module, shape)
    (weight,) = operator.snapshot()
    exact = float(torch.linalg.svdvals(unrolled(operator.apply, weight, shape))[0])
    assert operator.expand((weight,)).norm == pytest.approx(exact, rel=1e-10)


def test_batch_norm_is_a_factor_of_its_own() -> None:
    norm = nn.BatchNorm1d(4).double().eval()
    norm.weight.data = torch.tensor([1.0, -3.0, 2.0, 0.5], dtype=torch.float64)
    norm.running_var = torch.tensor([1.0, 4.0, 0.25, 1.0], dtype=torch.float64)
    operator = Scale(norm, (4,))
    expansion = operator.expand(operator.snapshot())
    assert expansion.norm == pytest.approx(2 / math.sqrt(0.25 + norm.eps), rel=1e-14)
    assert expansion.gap == pytest.approx(expansion.norm - 3 / math.sqrt(4 + norm.eps), rel=1e-12)
    change = torch.tensor([9.0, 9.0, 0.1, 9.0], dtype=torch.float64)
    assert expansion.first(change) == pytest.approx(0.1 / math.sqrt(0.25 + norm.eps))
    assert float(expansion.second(expansion.image(change)[None])) == 0.0
    x = torch.randn(3, 4, dtype=torch.float64)
    assert torch.allclose(operator.apply(norm.weight, x) + norm.bias, norm(x))
    # crossing: channel 1 is on top after a change that adds more than the gap
    small, large = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    small[1], large[1] = -1.0, -6.0
    assert 0 < expansion.crossing(small) < 1 < expansion.crossing(large)


def test_ties_of_channels_follow_the_one_that_wins() -> None:
    norm = nn.BatchNorm1d(3).double().eval()
    operator, towards = Scale(norm, (3,)), torch.tensor([-1.0, 0.5, 0.2], dtype=torch.float64)
    expansion = operator.expand(operator.snapshot(), None, towards)
    assert isinstance(expansion, ScaleExpansion)
    assert expansion.channel == 1 and expansion.gap == 0 and "3 channels" in expansion.note
    assert expansion.first(towards) == pytest.approx(0.5 / math.sqrt(1 + norm.eps))


@pytest.mark.parametrize("make", [lambda: nn.LayerNorm(5), lambda: nn.GroupNorm(1, 5), lambda: nn.RMSNorm(5, eps=1e-3)])
def test_other_normalizations_attain_their_constant_at_constant_inputs(make: object) -> None:
    module = seeded(make)
    module.weight.data.uniform_(0.5, 2.0)  # type: ignore[operator,union-attr]
    operator = Scale(module, (5,))
    norm = operator.expand(operator.snapshot()).norm
    x = torch.zeros(5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda z: module(z[None])[0], x)
    assert isinstance(jacobian, Tensor)
    attained = float(torch.linalg.matrix_norm(jacobian, 2))
    assert attained <= norm * (1 + 1e-12)
    assert attained > 0.7 * norm  # the projection off the mean costs a part of the largest scale
    for seed in range(5):
        z = 0.01 * torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        jacobian = torch.autograd.functional.jacobian(lambda z: module(z[None])[0], z)
        assert isinstance(jacobian, Tensor)
        assert float(torch.linalg.matrix_norm(jacobian, 2)) <= norm * (1 + 1e-12)


def test_planting_a_wrong_sign_in_the_phases_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of circular convolutions can fail: with conjugate phases the derivative is another one."""
    size = 7
    operator = Convolution(seeded(lambda: nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"), 5), (2, size))
    (weight,) = operator.snapshot()
    change = direction_of(weight)
    first, _ = differences(operator.apply, (2, size), weight, change)
    assert operator.expand((weight,)).first(change) == pytest.approx(first, rel=1e-6)
    right = FourierExpansion._phases
    monkeypatch.setattr(FourierExpansion, "_phases", lambda self, *a: right(self, *a).conj())
    assert operator.expand((weight,)).first(change) != pytest.approx(first, rel=1e-3)


# ------------------------------------------------------------------------------------------------------ factors


def by_name(factors: tuple[Factor, ...]) -> dict[str, Factor]:
    return {f.name: f for f in factors}


def test_factors_of_a_chain_in_call_order() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first, self.unused = nn.Linear(8, 3), nn.Conv2d(1, 2, 3), nn.Linear(99, 99)
            self.act, self.norm = nn.GELU(), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.act(self.norm(self.first(x))).flatten(1))

    factors = list_factors(Net(), torch.zeros(3, 1, 4, 4))
    assert [f.name for f in factors] == ["first", "norm", "act", "last"]
    assert [f.operator is not None for f in factors] == [True, True, False, True]
    assert factors[2].constant == pytest.approx(1.128904145185, rel=1e-11)
    assert factors[0].shape == (1, 4, 4)


def test_a_module_called_twice_counts_twice_and_sizes_apart() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc, self.pool = nn.Conv1d(2, 2, 3, padding=1), nn.Linear(4, 4), nn.AvgPool1d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(self.conv(self.pool(self.conv(x)))))

    factors = by_name(list_factors(Net(), torch.zeros(1, 2, 8)))
    assert factors["fc"].calls == 2
    assert factors["conv"].shape == (2, 8) and factors["conv (2)"].shape == (2, 4)
    assert factors["pool"].constant == pytest.approx(1 / math.sqrt(2))


def test_unknown_things_are_infinite_and_named() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.inner, self.rnn = nn.Parameter(torch.ones(1)), nn.Linear(4, 4), nn.GRU(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return x + self.rnn(y * y)[0]

    factors = by_name(list_factors(Strange(), torch.zeros(2, 4)))
    for name in ("model", "rnn", "function mul", "function add"):
        assert factors[name].constant == math.inf and factors[name].operator is None, name
        assert factors[name].reason
    assert factors["inner"].operator is not None


def test_functions_in_the_forward_pass_count() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.nn.functional.relu(self.fc(x.view(x.shape[0], -1)))
            return torch.nn.functional.softmax(3 * x, dim=-1)

    found = {f.name: f.constant for f in list_factors(Net(), torch.zeros(2, 2, 3))}
    assert found["function softmax"] == pytest.approx(0.5)
    assert [c for name, c in found.items() if "mul" in name] == [pytest.approx(3.0)]
    assert len(found) == 3


def test_overlapping_max_pool_is_not_one() -> None:
    (pool,) = list_factors(nn.MaxPool2d(3, 2, 1), torch.zeros(1, 2, 8, 8))
    assert pool.constant == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("function", "arguments", "constant"),
    [("sigmoid", {}, 0.25), ("silu", {"beta": 1.0}, 1.099839320129), ("gelu", {}, 1.128904145185), ("relu", {}, 1.0),
     ("leaky_relu", {"negative_slope": -2.5}, 2.5), ("elu", {"alpha": 3.0}, 3.0)],
)  # fmt: skip
def test_constants_of_activations(function: str, arguments: dict[str, float], constant: float) -> None:
    assert entrywise_constant(function, arguments) == pytest.approx(constant, rel=1e-11)


def test_parametrized_and_frozen_layers() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 3)), parametrizations.spectral_norm(nn.Linear(3, 2))
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    factors = list_factors(model, torch.randn(2, 3))
    assert [f.kind for f in factors] == ["Linear", "Linear"]
    operator = factors[1].operator
    assert isinstance(operator, Operator) and operator.parameter is None
    model.train()
    operator.snapshot()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    frozen = nn.Linear(2, 2).requires_grad_(False)
    assert Dense(frozen, (2,)).frozen


def test_subclasses_are_not_taken_for_their_base() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    (factor,) = list_factors(Doubled(2, 2), torch.zeros(1, 2))
    assert factor.constant == math.inf and "parameters" in factor.reason


def test_normalization_without_statistics_or_scale() -> None:
    factors = by_name(
        list_factors(
            nn.Sequential(
                nn.BatchNorm1d(4, track_running_stats=False),
                nn.BatchNorm1d(4, affine=False),
                nn.LayerNorm(4, elementwise_affine=False),
            ),
            torch.randn(4, 4),
        )
    )
    assert factors["0"].constant == math.inf
    for name, scale in (("1", 1 / math.sqrt(1 + 1e-5)), ("2", 1 / math.sqrt(1e-5))):
        operator = factors[name].operator
        assert operator is not None
        assert operator.expand(operator.snapshot()).norm == pytest.approx(scale, rel=1e-12)


def test_listing_leaves_the_model_as_it_is() -> None:
    seen: list[str] = []
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[0].register_forward_hook(lambda *_: seen.append("called"))
    model(torch.randn(3, 4)).sum().backward()
    seen.clear()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model[2].eval()
    flags, random = [m.training for m in model.modules()], torch.get_rng_state()
    list_factors(model, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    assert not seen
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, model.parameters(), strict=True) if p.grad is not None)
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random)


def test_probes_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match="probe that the model takes"):
        list_factors(nn.Linear(3, 2), torch.zeros(2, 4))
    with pytest.raises(ModelError, match="at least one example"):
        list_factors(nn.Linear(3, 2), torch.zeros(0, 3))
    with pytest.raises(ModelError, match="probe on"):
        list_factors(nn.Linear(3, 2), torch.zeros(2, 3, device="meta"))


def test_dropout_that_is_never_off_and_values_that_do_not_move() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            torch.zeros_like(x)  # no link of the chain
            return nn.functional.dropout(self.fc(x), 0.5, training=True)

    factors = by_name(list_factors(Net(), torch.zeros(2, 4)))
    assert set(factors) == {"fc", "function dropout"}
    assert factors["function dropout"].constant >= 2  # scaled by 1 / (1 - p), or not understood


def test_complex_weights_are_not_taken_for_real_ones() -> None:
    (factor,) = list_factors(nn.Linear(2, 2, dtype=torch.complex64), torch.zeros(1, 2, dtype=torch.complex64))
    assert factor.constant == math.inf and "complex" in factor.reason


def test_log_product_is_that_of_the_factors() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.SiLU(), shared)
    factors = list_factors(model, torch.zeros(1, 3))
    sigma = float(torch.linalg.matrix_norm(shared.weight.detach().double(), 2))
    assert log_product(factors) == pytest.approx(2 * math.log(sigma) + math.log(1.099839320129))
    with torch.no_grad():
        shared.weight.zero_()
    assert log_product(factors) == -math.inf
    with torch.no_grad():
        shared.weight.fill_(math.nan)
    assert math.isnan(log_product(factors))
    assert log_product(list_factors(nn.GRU(3, 3), torch.zeros(1, 3))) == math.inf
