"""The probability that Lanczos' upper bound promises, and the head room that it leaves for other random vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lipscope.operator_norm.gram import Gram, gram
from lipscope.operator_norm.lanczos import Criterion, Recurrence, prove_lanczos, starts_for, tail
from lipscope.operator_norm.sums import absolute_sums
from lipscope.rules.linear_map import LinearMap
from lipscope.rules.questions import Roundings
from operator_norm.maps import conv, dense, impulse_matrix, spectral_norm

SPECTRA = {
    "uniform": np.linspace(0.0, 1.0, 2000),
    "isolated": np.append(np.linspace(0.0, 0.9, 1999), 1.0),
    "clustered": 1.0 - np.linspace(0.0, 1.0, 2000) ** 4,
}


def diagonal(values: np.ndarray) -> LinearMap:
    d = torch.from_numpy(np.sqrt(values))
    return LinearMap((len(d),), (len(d),), *(lambda x: x * d,) * 4, Roundings(1, 1))


def operator_of(linear_map: LinearMap) -> Gram:
    return gram(linear_map, "input", absolute_sums(linear_map))


@pytest.mark.parametrize("name", SPECTRA)
def test_the_bound_fails_no_more_often_than_promised(name: str) -> None:
    """One start a time, without head room: this is the event whose probability is bounded."""
    operator = operator_of(diagonal(SPECTRA[name]))
    top = operator.scaled(operator.scaled(float(SPECTRA[name].max())))
    recurrence = Recurrence(operator, 3000, seed=1)
    for steps in (5, 10, 14):
        while recurrence.steps < steps:
            recurrence.step()
        # The bound lies below the truth if the criterion is met at the truth already.
        at_truth = np.array([tail(*recurrence.coefficients(i), top)[0] for i in range(3000)])
        for promised in (0.05, 0.01):
            delta = promised * math.sqrt(math.pi / (2 * operator.size))
            assert np.mean(at_truth <= delta) <= promised


def test_without_its_probability_the_bound_fails_too_often() -> None:
    """The same count with 1 in place of the promised probability: so the test above can fail."""
    operator = operator_of(diagonal(SPECTRA["isolated"]))
    recurrence = Recurrence(operator, 300, seed=1)
    for _ in range(10):
        recurrence.step()
    top = operator.scaled(operator.scaled(1.0))
    at_truth = np.array([tail(*recurrence.coefficients(i), top)[0] for i in range(300)])
    assert np.mean(at_truth <= math.sqrt(math.pi / (2 * operator.size))) > 0.2


def test_tail_is_an_upper_bound_of_what_it_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        k = int(rng.integers(1, 12))
        alphas, betas = rng.uniform(0, 1, k), rng.uniform(0.1, 0.5, k)
        matrix = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
        value = float(np.linalg.eigvalsh(matrix)[-1]) + float(rng.uniform(1e-3, 1))
        resolvent = np.linalg.inv(value * np.eye(k) - matrix)
        first, second = tail(alphas, betas, value)
        assert betas[-1] * resolvent[0, -1] * (1 - 1e-9) <= first <= betas[-1] * resolvent[0, -1] * (1 + 1e-9)
        assert resolvent[0].sum() * (1 - 1e-9) <= second <= resolvent[0].sum() * (1 + 1e-9)
        assert tail(alphas, betas, float(np.linalg.eigvalsh(matrix)[-1]) * (1 - 1e-6)) == (math.inf, math.inf)


@pytest.mark.parametrize("failure", [1e-3, 1e-6, 1e-9])
def test_another_set_of_vectors_accepts_the_bound(failure: float) -> None:
    """What a checker does: its own vectors, the stored number of steps, no head room, no slack. Hundreds of times, all accept."""
    weight = torch.randn(4, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    linear_map = conv(weight, (14, 14), padding=(1, 1))
    operator = operator_of(linear_map)
    low, high = spectral_norm(impulse_matrix(linear_map))
    starts = starts_for(failure)
    for seed in range(3):
        recurrence = Recurrence(operator, starts, seed=seed)
        proof = prove_lanczos(recurrence, failure, 1e-3, 400, lambda: False)
        assert proof is not None
        assert Criterion(recurrence, failure, head_room=60.0, slack=15.0).meets(operator.scaled(proof.upper) ** 2)
        assert low <= proof.upper <= high * (1 + 1e-3)
        assert proof.evidence["starts"] == starts
        others = Recurrence(operator, 60 * starts, seed=1000 + seed)
        for _ in range(int(str(proof.evidence["steps"]))):
            others.step()
        threshold = Criterion(Recurrence(operator, starts), failure, head_room=1.0, slack=1.0).threshold
        square = operator.scaled(proof.upper) ** 2
        sides = Criterion(others, 0.5, head_room=1.0, slack=1.0).sides(square)
        accepted = [first + second <= threshold for first, second in sides]
        assert all(accepted)


def test_more_starts_for_smaller_probabilities() -> None:
    assert [starts_for(p) for p in (0.5, 1e-3, 1e-4, 1e-6, 1e-9, 1e-12)] == [1, 1, 2, 2, 3, 4]


def test_upper_bounds_draw_from_the_operating_system() -> None:
    operator = operator_of(dense(torch.eye(50, dtype=torch.float64) + 1))
    first, second = Recurrence(operator), Recurrence(operator)
    first.step()
    second.step()
    assert not np.array_equal(first.coefficients(0)[0], second.coefficients(0)[0])


def test_an_invariant_subspace_ends_the_recurrence() -> None:
    linear_map = dense(torch.eye(50, dtype=torch.float64) * 3)
    recurrence = Recurrence(operator_of(linear_map), 3)
    proof = prove_lanczos(recurrence, 1e-9, 1e-3, 100, lambda: False)
    assert proof is not None
    assert 3.0 <= proof.upper <= 3.0 * (1 + 1e-6)
    low_rank = torch.outer(torch.arange(1.0, 40.0), torch.ones(60)).double()
    proof = prove_lanczos(Recurrence(operator_of(dense(low_rank)), 3), 1e-9, 1e-3, 100, lambda: False)
    low, high = spectral_norm(low_rank.numpy())
    assert proof is not None
    assert low <= proof.upper <= high * (1 + 1e-3)


def test_steps_that_run_out_give_a_larger_bound() -> None:
    weight = torch.randn(4, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    linear_map = conv(weight, (14, 14), padding=(1, 1))
    low, _ = spectral_norm(impulse_matrix(linear_map))
    bounds = []
    for steps in (20, 40, 80):
        proof = prove_lanczos(Recurrence(operator_of(linear_map), 3), 1e-9, 1e-6, steps, lambda: False)
        assert proof is not None
        bounds.append(proof.upper)
    assert low <= bounds[2] < bounds[1] < bounds[0]


def test_an_impossible_probability_gives_no_bound() -> None:
    operator = operator_of(diagonal(SPECTRA["uniform"]))
    assert prove_lanczos(Recurrence(operator, 1), 1e-300, 1e-3, 20, lambda: False) is None
