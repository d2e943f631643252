"""Jacobian norms at points: against slow oracles, below proved bounds, and without a trace in model and random state."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.expect import expect_close, expect_lower
from lipscope.claims.errors import UsageError
from lipscope.dynamics.pointwise import PointwiseNorms, jacobians, operator_norms, pointwise_norms
from lipscope.studies.sandwich import proved_upper


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator) / 2)
    return model


def slow_norms(model: nn.Module, inputs: Tensor) -> np.ndarray:
    """One Jacobian at a time by another routine of torch, and numpy's singular values."""
    found = []
    for x in inputs:
        jacobian = torch.autograd.functional.jacobian(lambda p: model(p[None].clone()).reshape(-1), x)
        found.append(np.linalg.svd(jacobian.reshape(jacobian.shape[0], -1).numpy(), compute_uv=False)[0])
    return np.array(found)


MODELS = {
    "wide": (nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)), (7,)),
    "tall": (nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 9)), (2,)),
    "single output": (nn.Linear(4, 1), (4,)),
    "convolution": (
        nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)),
        (2, 5, 5),
    ),
    "image to image": (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.GELU(), nn.Conv2d(2, 1, 3)), (1, 4, 4)),
    "dropout": (nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.9), nn.SiLU(), nn.Linear(4, 2)), (3,)),
    "in place": (nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3), nn.ReLU(inplace=True)), (3,)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_norms_are_those_of_a_slow_oracle(name: str, batch_size: int | None) -> None:
    model, shape = MODELS[name]
    model, inputs = seeded(copy.deepcopy(model)), draw(9, *shape)
    before = inputs.clone()
    found = pointwise_norms(model, inputs, batch_size=batch_size)
    assert torch.equal(inputs, before)
    np.testing.assert_allclose(found.norms.numpy(), slow_norms(model, inputs.clone()), rtol=1e-12)
    assert found.norms.dtype == torch.float64


@pytest.mark.parametrize("name", ["wide", "tall", "convolution"])
def test_the_largest_norm_is_below_the_proved_bound(name: str) -> None:
    model, shape = MODELS[name]
    for seed in range(3):
        made = seeded(copy.deepcopy(model), seed)
        found = pointwise_norms(made, draw(50, *shape, seed=seed))
        expect_lower(found.lower, proved_upper(made, shape), name)
        assert found.mean <= found.rms <= found.lower


def test_a_linear_map_has_its_spectral_norm_everywhere() -> None:
    layer = seeded(nn.Linear(6, 4))
    found = pointwise_norms(layer, draw(5, 6))
    truth = float(np.linalg.svd(layer.weight.detach().numpy(), compute_uv=False)[0])
    expect_close(found.lower, truth, 1e-14)
    expect_close(found.mean, truth, 1e-14)
    assert torch.equal(jacobians(layer, draw(5, 6)), layer.weight.detach().expand(5, 4, 6))


def test_jacobians_are_row_major() -> None:
    model = nn.Flatten(0, -1)
    shaped = jacobians(lambda x: x.mT * 2, draw(3, 2, 2))
    transposed = torch.eye(4, dtype=torch.float64)[[0, 2, 1, 3]] * 2
    assert torch.equal(shaped, transposed.expand(3, 4, 4))
    assert isinstance(model, nn.Module)


def test_statistics_are_those_of_numpy() -> None:
    norms = draw(37).abs()
    found = PointwiseNorms(norms)
    assert found.samples == 37
    assert found.lower == norms.max() and found.where == int(norms.argmax())
    for share in (0.0, 0.013, 0.5, 0.99, 1.0):
        expect_close(found.quantile(share), float(np.quantile(norms.numpy(), share)), 1e-14)
    expect_close(found.rms, float(np.sqrt(np.mean(norms.numpy() ** 2))), 1e-14)


def test_nothing_is_left_behind() -> None:
    model = seeded(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2)))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[0].bias.requires_grad_(False)
    inputs = draw(5, 3).requires_grad_()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    with torch.no_grad():
        first = pointwise_norms(model, inputs)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(p.grad is None for p in model.parameters() if p is not model[0].weight)
    assert inputs.grad is None and inputs.requires_grad
    assert [p.requires_grad for p in model[0].parameters()] == [True, False]
    assert not first.norms.requires_grad
    assert torch.equal(first.norms, pointwise_norms(model, inputs).norms)


def test_a_model_that_draws_in_eval_mode_moves_no_random_state() -> None:
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    pointwise_norms(lambda x: x * torch.rand(1), draw(3, 2))
    assert torch.equal(torch.get_rng_state(), random_state)


def test_inference_mode_and_autocast_around_it_change_nothing() -> None:
    model = seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))).float()
    inputs = draw(5, 3).float()
    plain = pointwise_norms(model, inputs).norms
    with torch.inference_mode():
        assert torch.equal(pointwise_norms(model, inputs.clone()).norms, plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pointwise_norms(model, inputs).norms, plain)
        assert torch.is_autocast_enabled("cpu")


def test_maps_that_do_not_depend_on_the_input() -> None:
    bias = nn.Parameter(torch.ones(2, dtype=torch.float64))
    assert pointwise_norms(lambda x: torch.ones(len(x), 2), draw(3, 4)).lower == 0
    assert pointwise_norms(lambda x: bias.expand(len(x), 2), draw(3, 4)).lower == 0


def test_what_is_not_finite_is_nan_there_and_only_there() -> None:
    inputs = torch.tensor([[4.0], [0.0], [1.0]], dtype=torch.float64)
    found = pointwise_norms(torch.sqrt, inputs)
    assert found.norms.isnan().tolist() == [False, True, False]
    expect_close(float(found.norms[0]), 0.25, 1e-15)
    assert np.isnan(found.lower) and np.isnan(found.quantile(0.5))


def test_at_a_kink_the_value_is_autograds_choice_and_may_exceed_the_constant() -> None:
    """The reason why these values are not called bounds: the function is 0 everywhere."""

    def zero(x: Tensor) -> Tensor:
        return x - (torch.relu(x) - torch.relu(-x))

    assert pointwise_norms(zero, torch.tensor([[2.0], [-3.0]])).lower == 0
    assert pointwise_norms(zero, torch.tensor([[0.0]])).lower == 1


@pytest.mark.parametrize("power", [-300, -160, 0, 160, 300])
@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (1, 5), (5, 1)])
def test_operator_norms_neither_over_nor_underflow(power: int, shape: tuple[int, int]) -> None:
    matrices = draw(4, *shape)
    truth = np.linalg.svd(matrices.numpy(), compute_uv=False)[:, 0]
    scale = 2.0 ** (power * 3)
    np.testing.assert_allclose(operator_norms(matrices * scale).numpy() / scale, truth, rtol=1e-14)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_an_operator_norm_lies_between_a_quotient_and_the_frobenius_norm(rows: int, columns: int, seed: int) -> None:
    matrix, vector = draw(1, rows, columns, seed=seed), draw(columns, seed=seed + 1)
    norm = float(operator_norms(matrix))
    expect_lower(float((matrix[0] @ vector).norm() / vector.norm()) * (1 - 1e-13), norm)
    expect_lower(norm, float(matrix.norm()) * (1 + 1e-13))


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout()), torch.zeros(1, 2), "train mode in 'the model'"),
        (nn.Linear(2, 2).eval(), torch.zeros(0, 2), "at least one"),
        (nn.Linear(2, 2).eval(), torch.tensor(1.0), "at least one"),
        (nn.Linear(2, 2).eval(), torch.zeros(1, 2, dtype=torch.int64), "int64"),
        (torch.sum, torch.zeros(3, 2), "1 rows"),
        (lambda x: (x, x), torch.zeros(3, 2), "tuple"),
    ],
)
def test_wrong_use_is_refused_in_words(model: nn.Module, inputs: Tensor, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        pointwise_norms(model, inputs)


def test_a_single_layer_in_train_mode_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    model[1].train()
    with pytest.raises(UsageError, match="'1'"):
        pointwise_norms(model, torch.zeros(2, 2))
