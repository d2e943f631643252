"""Verified definiteness against exact rational elimination."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from lipscope.claims.definite import shifted_cholesky
from operator_norm.maps import is_semidefinite


def rationals(matrix: np.ndarray, shift: float = 0.0) -> list[list[Fraction]]:
    lower = np.tril(matrix)
    full = lower + np.tril(matrix, -1).T
    return [
        [Fraction(float(x)) - (Fraction(shift) if i == j else 0) for j, x in enumerate(r)] for i, r in enumerate(full)
    ]


def near_singular(seed: int) -> np.ndarray:
    """R^T R, rounded, with a last pivot far below the rounding errors, or B B^T plus a tiny diagonal of either sign.

    Every third matrix is badly scaled.
    """
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 11))
    if seed % 2:
        r = np.triu(rng.standard_normal((n, n)))
        r[-1, -1] = 1e-9
        matrix = r.T @ r
    else:
        b = rng.standard_normal((n, int(rng.integers(max(1, n - 2), n + 1))))
        matrix = b @ b.T + np.eye(n) * rng.choice([-1, 1]) * 10.0 ** rng.uniform(-18, -12)
    if seed % 3 == 0:
        scale = 2.0 ** rng.integers(-200, 200, n)
        matrix = scale[:, None] * matrix * scale[None, :]
    return matrix


def test_never_accepts_an_indefinite_matrix() -> None:
    accepted, indefinite, deceived = 0, 0, 0
    for seed in range(100):
        matrix = near_singular(seed)
        truth = is_semidefinite(rationals(matrix))
        indefinite += not truth
        deceived += not truth and int(torch.linalg.cholesky_ex(torch.from_numpy(matrix))[1]) == 0
        if shifted_cholesky(torch.from_numpy(matrix)):
            accepted += 1
            assert truth, seed
    assert indefinite >= 20  # the sample is about the question
    assert deceived >= 5  # a plain factorisation is wrong on some of it
    assert accepted >= 20


@pytest.mark.parametrize("n", [50, 200, 400])
def test_refuses_what_the_theorem_does_not_cover(n: int) -> None:
    """The theorem needs a smallest eigenvalue of (n+1) u n for a unit diagonal; practice would be content with far less."""
    needed = (n + 1) * 2.0**-53 * n
    rank_one = torch.ones(n, n, dtype=torch.float64) * 0.75
    eye = torch.eye(n, dtype=torch.float64)
    assert not shifted_cholesky(rank_one + 0.7 * needed * eye)
    assert shifted_cholesky(rank_one + 1.2 * needed * eye)


def test_never_accepts_with_an_error_that_makes_it_indefinite() -> None:
    accepted = 0
    for seed in range(100):
        matrix = near_singular(3 * seed + 1)
        error = 10.0 ** -(seed % 17)
        if shifted_cholesky(torch.from_numpy(matrix), error):
            accepted += 1
            assert is_semidefinite(rationals(matrix, error)), seed
    assert accepted >= 10


def test_accepts_what_is_definite_by_more_than_the_rounding_errors() -> None:
    for n in (2, 3, 10, 200):
        matrix = torch.ones(n, n, dtype=torch.float64) + torch.eye(n, dtype=torch.float64) * 1e-9 * n
        assert shifted_cholesky(matrix)
        assert shifted_cholesky(matrix, 0.9e-9 * n)
        assert not shifted_cholesky(matrix, 1.1e-9 * n)


def test_scaling_by_powers_of_two_changes_nothing() -> None:
    for seed in range(1, 60, 3):
        matrix = near_singular(seed)
        scale = 4.0 ** np.arange(-len(matrix), len(matrix), 2)
        scaled = scale[:, None] * matrix * scale[None, :]
        assert shifted_cholesky(torch.from_numpy(matrix)) == shifted_cholesky(torch.from_numpy(scaled))


def test_reads_the_lower_triangle_and_leaves_the_matrix_alone() -> None:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[0, 2] = 100.0
    before = matrix.clone()
    assert shifted_cholesky(matrix)
    assert torch.equal(matrix, before)
    matrix[2, 0] = 100.0
    assert not shifted_cholesky(matrix)


def test_corner_cases() -> None:
    assert shifted_cholesky(torch.zeros(0, 0, dtype=torch.float64))
    assert shifted_cholesky(torch.zeros(3, 3, dtype=torch.float64))
    assert not shifted_cholesky(torch.zeros(3, 3, dtype=torch.float64), 1e-300)
    assert not shifted_cholesky(torch.tensor([[1.0, 0.0], [0.0, float("nan")]], dtype=torch.float64))
    assert not shifted_cholesky(torch.tensor([[float("inf")]], dtype=torch.float64))
    assert not shifted_cholesky(torch.tensor([[1e-300, 0.0], [1e300, 1e-300]], dtype=torch.float64))
    assert not shifted_cholesky(torch.eye(2, dtype=torch.float64), float("inf"))


@pytest.mark.parametrize(
    "matrix", [torch.zeros(2, 3, dtype=torch.float64), torch.eye(2), torch.zeros(3, dtype=torch.float64)]
)
def test_refuses_what_is_not_a_float64_matrix(matrix: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="square float64"):
        shifted_cholesky(matrix)


@pytest.mark.parametrize("error", [-1.0, float("nan")])
def test_refuses_errors_that_are_none(error: float) -> None:
    with pytest.raises(ValueError, match="error bound"):
        shifted_cholesky(torch.eye(2, dtype=torch.float64), error)
