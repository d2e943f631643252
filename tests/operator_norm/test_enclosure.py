"""Enclosures of small matrices against exact rational arithmetic, and what `enclose` promises for any map."""

from __future__ import annotations

import json
import math
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lipscope.claims.errors import ModelError, UsageError
from lipscope.claims.norms import NORMS
from lipscope.operator_norm import Enclosure, enclose, lower_bound
from lipscope.rules.linear_map import LinearMap
from lipscope.rules.questions import Roundings
from operator_norm.maps import dense, exceeds, impulse_matrix, product, spectral_norm


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def exact_sum(matrix: np.ndarray, norm: str) -> Fraction:
    columns = matrix.T if norm == "l1" else matrix
    return max(sum(abs(Fraction(float(x))) for x in line) for line in columns)


def assert_encloses(found: Enclosure, matrix: np.ndarray, norm: str) -> None:
    """Zero slack: both comparisons are made in rational arithmetic."""
    if norm == "l2":
        assert exceeds(found.upper, matrix)
        below = math.nextafter(found.lower, 0.0)
        assert found.lower == 0 or not exceeds(below, matrix)
    else:
        truth = exact_sum(matrix, norm)
        assert Fraction(found.lower) <= truth <= Fraction(found.upper)


MATRICES = {
    "one entry": [[3.0]],
    "row": [[1.0, 2.0, 2.0]],
    "column": [[3.0], [4.0]],
    "identity": np.eye(4).tolist(),
    "permutation": np.eye(5)[[2, 0, 4, 1, 3]].tolist(),
    "diagonal": np.diag([1.0, -7.0, 3.0]).tolist(),
    "rank one": np.outer([1.0, 2.0, 3.0], [4.0, -5.0]).tolist(),
    "duplicated rows": [[1.0, 2.0, -1.0]] * 4,
    "singular": [[1.0, 2.0], [2.0, 4.0]],
    "wide": np.arange(-10.0, 10.0).reshape(2, 10).tolist(),
    "tall": np.arange(-10.0, 10.0).reshape(10, 2).tolist(),
    "ones": np.ones((3, 4)).tolist(),
    "zero row": [[0.0, 0.0], [1.0, 1.0]],
    "tenths": [[0.1, 0.2], [0.3, -0.4]],
    "orders of magnitude": [[1e-8, 1.0], [1e8, 3.0]],
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MATRICES)
def test_known_matrices_are_enclosed_tightly(name: str, norm: str) -> None:
    matrix = np.array(MATRICES[name])
    found = enclose(dense(tensor(MATRICES[name])), norm)
    assert_encloses(found, matrix, norm)
    assert found.failure == 0
    assert found.upper <= found.lower * (1 + 1e-11)
    assert found.seconds > 0


@pytest.mark.parametrize("scale", [2.0**-600, 1e-200, 1e-100, 1e100, 1e150, 2.0**450])
@pytest.mark.parametrize("norm", NORMS)
def test_norms_of_any_magnitude(norm: str, scale: float) -> None:
    matrix = np.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]]) * scale
    found = enclose(dense(torch.from_numpy(matrix)), norm)
    assert_encloses(found, matrix, norm)
    assert found.upper <= found.lower * (1 + 1e-11)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_matrices_are_enclosed(norm: str, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    entries = st.one_of(st.integers(-9, 9).map(float), st.floats(-1e3, 1e3).map(lambda x: float(np.float32(x))))
    matrix = data.draw(arrays(np.float64, shape, elements=entries))
    if 0 < np.abs(matrix).max() < 1e-30:
        matrix = matrix * 2.0**100
    found = enclose(dense(torch.from_numpy(matrix)), norm)
    assert_encloses(found, matrix, norm)
    assert found.upper <= found.lower * (1 + 1e-10)


@pytest.mark.parametrize("norm", NORMS)
def test_only_zero_has_norm_zero(norm: str) -> None:
    zero = enclose(dense(torch.zeros(3, 4, dtype=torch.float64)), norm)
    assert (zero.lower, zero.upper) == (0.0, 0.0)
    assert lower_bound(dense(torch.zeros(3, 4, dtype=torch.float64)), norm) == 0
    cancelling = product(tensor([[1.0, 1.0]]), tensor([[1.0, 2.0], [-1.0, -2.0]]))  # the zero map, with |L| > 0
    found = enclose(cancelling, norm)
    assert found.lower == 0
    assert found.upper >= 0
    tiny = product(tensor([[1e-200]]), tensor([[1e-200]]))  # not zero, although its product underflows
    with pytest.raises(ModelError, match="rescale"):
        enclose(tiny, norm)


def test_rearrangements_are_exact_by_schur() -> None:
    found = enclose(dense(torch.eye(700, dtype=torch.float64)[torch.randperm(700)] * 3.0), "l2")
    assert found.evidence == {"kind": "schur"}
    assert found.upper <= 3.0 * (1 + 1e-12)
    copies = LinearMap(
        (2,), (6,), lambda x: x.repeat(1, 3), lambda y: y.reshape(-1, 3, 2).sum(1),
        lambda x: x.repeat(1, 3), lambda y: y.reshape(-1, 3, 2).sum(1), Roundings(0, 3),
    )  # fmt: skip
    found = enclose(copies, "l2")
    assert found.evidence == {"kind": "schur"}
    assert math.sqrt(3) * (1 - 1e-12) <= found.lower <= found.upper <= math.sqrt(3) * (1 + 1e-12)


@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_cancelling_products_take_the_matrix(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-3, 4, s, generator=generator).double() for s in ((5, 8), (8, 6)))
    linear_map = product(left, right)
    matrix = (left @ right).numpy()  # exact: small integers
    found = enclose(linear_map, norm)
    assert found.evidence == {"kind": "dense"}
    assert_encloses(found, matrix, norm)
    assert found.upper <= float(exact_sum(matrix, norm)) * (1 + 1e-12)
    assert lower_bound(linear_map, norm) <= float(exact_sum(matrix, norm))


@pytest.mark.parametrize("shape", [(300, 300), (700, 300), (650, 800), (1000, 1000)])
def test_dense_layers_are_enclosed_to_1e_9(shape: tuple[int, int]) -> None:
    weight = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    low, high = spectral_norm(weight.numpy())
    found = enclose(dense(weight), "l2")
    assert found.evidence["kind"] == "cholesky"
    assert found.lower <= high and low <= found.upper
    assert found.upper <= found.lower * (1 + 1e-9)
    assert lower_bound(dense(weight), "l2") <= high


def test_products_are_enclosed() -> None:
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.randn(*s, dtype=torch.float64, generator=generator) for s in ((6, 90), (90, 7)))
    linear_map = product(left, right)
    low, high = spectral_norm(impulse_matrix(linear_map))
    found = enclose(linear_map, "l2")
    assert found.lower <= high and low <= found.upper <= found.lower * (1 + 1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("norm", NORMS)
def test_coefficients_that_are_not_finite_are_refused(norm: str, bad: float) -> None:
    weight = torch.ones(3, 3, dtype=torch.float64)
    weight[1, 2] = bad
    with pytest.raises(ModelError, match="finite"):
        enclose(dense(weight), norm)
    with pytest.raises(ModelError, match="finite"):
        lower_bound(dense(weight), norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_norms_out_of_range_are_refused_in_words(norm: str, scale: float) -> None:
    with pytest.raises(ModelError, match="rescale"):
        enclose(dense(torch.full((2, 2), scale, dtype=torch.float64)), norm)


@pytest.mark.parametrize(
    "option", [{"tolerance": 0.0}, {"tolerance": 1.0}, {"failure": 0.0}, {"failure": 0.6}, {"memory": 0}]
)
def test_options_out_of_range_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected"):
        enclose(dense(torch.eye(2, dtype=torch.float64)), "l2", **option)


def test_after_the_deadline_there_still_is_a_bound() -> None:
    weight = torch.randn(900, 900, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    low, high = spectral_norm(weight.numpy())
    found = enclose(dense(weight), "l2", deadline=time.monotonic() - 1)
    assert found.evidence == {"kind": "schur"}
    assert 0 < found.lower <= high and low <= found.upper


def test_little_memory_leads_to_lanczos() -> None:
    weight = torch.randn(900, 900, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    low, high = spectral_norm(weight.numpy())
    found = enclose(dense(weight), "l2", memory=10_000_000, failure=1e-6, tolerance=1e-2)
    assert found.evidence["kind"] == "lanczos" and found.failure == 1e-6
    assert found.lower <= high and low <= found.upper <= found.lower * 1.01


@pytest.mark.parametrize("norm", NORMS)
def test_evidence_is_json(norm: str) -> None:
    found = enclose(dense(torch.randn(20, 20, dtype=torch.float64)), norm)
    assert json.loads(json.dumps(found.evidence)) == found.evidence
