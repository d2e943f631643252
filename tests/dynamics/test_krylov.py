"""Large matrices: what a Krylov space says is what a decomposition of the whole matrix says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lipscope.dynamics import krylov
from lipscope.dynamics.expansions import PairExpansion
from lipscope.dynamics.identity import StepTerms, Update, layer_terms
from lipscope.dynamics.krylov import KrylovForm, NotFoundError, best_form
from lipscope.dynamics.operator_calculus import GramForm
from lipscope.dynamics.track import IdentityTracker

SHAPES = [(120, 170), (170, 120), (130, 130)]


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)


def with_values(values: Tensor, inputs: int, seed: int = 0) -> Tensor:
    """A matrix with these singular values and random singular vectors."""
    left = torch.linalg.qr(draw(len(values), len(values), seed=seed))[0]
    right = torch.linalg.qr(draw(inputs, len(values), seed=seed + 1))[0]
    return left @ torch.diag(values) @ right.mT


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("formed", [True, False])
def test_the_same_as_by_decomposition(shape: tuple[int, int], formed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(krylov, "FORMED", 1000 if formed else 0)
    weight = draw(*shape)
    found, gram = KrylovForm(weight), GramForm(weight)
    values = torch.linalg.svdvals(weight)
    assert found.norm == pytest.approx(float(values[0]), rel=1e-13)
    assert found.gap == pytest.approx(float(values[0] - values[1]), rel=1e-6)
    assert abs(float(found.left @ gram.left)) == pytest.approx(1, abs=1e-11)
    assert torch.allclose(weight @ found.right, found.norm * found.left, atol=1e-5)
    sign = torch.sign(found.left @ gram.left)
    changes = [draw(*shape, seed=seed) for seed in (1, 2, 3)]
    p, q = torch.stack([g @ found.right for g in changes]), torch.stack([g.mT @ found.left for g in changes])
    exact = gram.matrix(sign * p, sign * q)
    assert torch.allclose(found.matrix(p, q), exact, rtol=1e-6, atol=1e-7 * float(exact.abs().max()))
    assert torch.allclose(found.second(p, q), exact.diagonal(), rtol=1e-6)
    expansion = PairExpansion(weight)
    many = [torch.cat([x] * 10) for x in (p, q)]  # by decomposition, whose vectors may have the other sign
    assert torch.allclose(expansion.second_each(*many)[3:6], expansion.second_each(p, q), rtol=1e-6)
    assert found.crossing_ratio(p[0], q[0]) == pytest.approx(gram.crossing_ratio(sign * p[0], sign * q[0]), rel=1e-2)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_norm_after_a_change(shape: tuple[int, int]) -> None:
    weight = draw(*shape)
    found = KrylovForm(weight)
    for scale in (1e-6, 1e-3, 1e-2):
        moved = weight + draw(*shape, seed=5, scale=scale)
        exact = float(torch.linalg.matrix_norm(moved, 2))
        assert found.norm_after(moved - weight) == pytest.approx(exact, rel=1e-13)
        warm = KrylovForm(moved, found.short)
        assert warm.norm == pytest.approx(exact, rel=1e-13)


def test_a_start_that_is_no_longer_on_top_is_left() -> None:
    """The second overtakes the first between two looks; the start is then the second singular vector, exactly."""
    values = torch.linspace(0.1, 1.0, 120, dtype=torch.float64).flip(0)
    values[0], values[1] = 1.2, 1.15
    first = with_values(values, 150)
    swapped = values.clone()
    swapped[0], swapped[1] = 1.15, 1.2
    second = with_values(swapped, 150)
    found = KrylovForm(second, KrylovForm(first).short)
    assert found.norm == pytest.approx(1.2, rel=1e-13) and found.gap == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("near", [1e-3, 1e-5])
def test_small_gaps(near: float) -> None:
    values = torch.linspace(0.1, 0.9, 110, dtype=torch.float64).flip(0)
    values[0], values[1] = 1.0, 1.0 - near
    form = best_form(with_values(values, 140))
    assert form.norm == pytest.approx(1.0, rel=1e-13) and form.gap == pytest.approx(near, rel=1e-5)


def test_matrices_that_a_krylov_space_does_not_tell_are_decomposed() -> None:
    eye = torch.eye(120, dtype=torch.float64)
    assert best_form(eye).gap == 0.0 and isinstance(best_form(eye), GramForm)
    assert best_form(torch.zeros_like(eye)).norm == 0.0
    rank_one = torch.outer(draw(120), draw(150, seed=1))
    assert best_form(rank_one).norm == pytest.approx(float(torch.linalg.matrix_norm(rank_one, 2)), rel=1e-12)
    twice = torch.linspace(0.1, 0.9, 120, dtype=torch.float64).flip(0)
    twice[:2] = 1.0
    double = best_form(with_values(twice, 120))
    assert double.norm == pytest.approx(1.0, rel=1e-12)
    with pytest.raises(NotFoundError):
        KrylovForm(eye)


def test_solves_that_do_not_converge_are_decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, change = draw(120, 140), draw(120, 140, seed=1)
    expansion = PairExpansion(weight)
    image = expansion.image(change)[None]
    exact = expansion.second(image)
    assert isinstance(expansion.form, KrylovForm)
    monkeypatch.setattr(krylov, "STEPS", 1)
    assert torch.allclose(expansion.second(image), exact, rtol=1e-6)
    assert expansion.norm_after(0.5 * change) is None
    assert isinstance(PairExpansion(weight).form, GramForm)


def test_the_residual_falls_with_the_third_power() -> None:
    weight, change = draw(128, 140), draw(128, 140, seed=1, scale=2e-2)
    expansion = PairExpansion(weight)
    assert isinstance(expansion.form, KrylovForm)
    residuals = []
    for share in (1.0, 0.5, 0.25):
        after = expansion.norm_after(share * change)
        assert after is not None
        residuals.append(layer_terms("w", "Linear", 1, expansion, after, Update(share * change)).residual)
    assert 6.5 < residuals[0] / residuals[1] < 9.5
    assert 7 < residuals[1] / residuals[2] < 9


def wide(smallest: int, monkeypatch: pytest.MonkeyPatch) -> list[StepTerms]:
    """Observed steps of a network with wide layers, some of them not seen."""
    monkeypatch.setattr(krylov, "SMALLEST", smallest)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(150, 120), nn.ReLU(), nn.Linear(120, 130), nn.ReLU(), nn.Linear(130, 5))
    x, y = torch.randn(64, 150), torch.randint(5, (64,))
    loss, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.05)
    tracker = IdentityTracker(model, optimizer, probe=x[:2], loss=loss, reference=(x, y))
    found = []
    for step in range(12):
        optimizer.zero_grad()
        loss(model(x[step::12]), y[step::12]).backward()
        if step % 4 > 1:
            optimizer.step()
            tracker.skip_step()
            continue
        tracker.before_step()
        optimizer.step()
        found.append(tracker.after_step())
    assert tracker.totals.closure < 0.01
    return found


def test_a_followed_training_is_the_same_as_by_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, slow in zip(wide(96, monkeypatch), wide(1000, monkeypatch), strict=True):
        assert fast.log_product_after == pytest.approx(slow.log_product_after, rel=1e-12)
        assert fast.outside == pytest.approx(slow.outside, abs=1e-11)
        for one, other in zip(fast.layers, slow.layers, strict=True):
            assert one.change == pytest.approx(other.change, abs=1e-11) and one.change != 0
            assert one.gap == pytest.approx(other.gap, rel=1e-5)
            for name, value in one.terms.items():
                assert value == pytest.approx(other.terms[name], rel=1e-4, abs=1e-9), name
            assert one.residual == pytest.approx(other.residual, rel=1e-2, abs=1e-9)
            assert math.isfinite(one.q_ratio) and one.note == other.note


def close_pairs(near: float) -> Tensor:
    values = torch.linspace(0.1, 0.9, 120, dtype=torch.float64).flip(0)
    values[0], values[1] = 1.0, 1.0 - near
    return with_values(values, 150)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows are multiplied, call by call."""
    rows: list[int] = []
    product = KrylovForm._product
    monkeypatch.setattr(KrylovForm, "_product", lambda self, x: rows.append(len(x)) or product(self, x))
    return rows


def test_a_pair_that_was_told_apart_is_told_apart_again_at_less_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = close_pairs(1e-5)
    first = KrylovForm(weight)
    moved = weight + draw(120, 150, seed=7, scale=1e-7)
    values = torch.linalg.svdvals(moved)
    rows = counted(monkeypatch)
    cold = KrylovForm(moved)
    steps = sum(rows)
    rows.clear()
    warm = KrylovForm(moved, first.warm)
    assert sum(rows) < 0.8 * steps
    for found in (cold, warm):
        assert found.norm == pytest.approx(float(values[0]), rel=1e-13)
        assert found.gap == pytest.approx(float(values[0] - values[1]), rel=1e-3)


def test_a_vector_that_comes_from_outside_of_the_start_is_found() -> None:
    """The new top vector is orthogonal to everything that is kept, and the kept space is still invariant: only what is
    stirred in tells of it."""
    values = torch.linspace(0.1, 1.0, 120, dtype=torch.float64).flip(0)
    weight = with_values(values, 150)
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    kept = KrylovForm(weight).warm
    assert float((kept @ left[:, 60]).abs().max()) < 1e-3
    grown = weight + (1.01 - float(values[60])) * torch.outer(left[:, 60], right[60])
    assert KrylovForm(grown, left[:, :8].mT.contiguous()).norm == pytest.approx(1.01, rel=1e-12)


def test_what_a_solve_leaves_over_counts_only_with_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = draw(130, 140)
    form, gram = KrylovForm(weight), GramForm(weight)
    changes = [draw(130, 140, seed=seed) for seed in (1, 2)]
    p, q = torch.stack([g @ form.right for g in changes]), torch.stack([g.mT @ form.left for g in changes])
    sign = torch.sign(form.left @ gram.left)
    exact = gram.matrix(sign * p, sign * q)
    monkeypatch.setattr(krylov, "SOLVED", 1e-2)
    assert float((form.matrix(p, q) - exact).abs().max()) < 2e-4 * float(exact.abs().max())


def test_the_norm_after_is_right_whatever_was_solved_before(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, change, other = draw(120, 130), draw(120, 130, seed=1, scale=1e-3), draw(120, 130, seed=2, scale=1e-3)
    exact = float(torch.linalg.matrix_norm(weight + change, 2))
    rows = counted(monkeypatch)
    spent = {}
    for name, solved in (("nothing", None), ("this", change), ("another", other)):
        expansion = PairExpansion(weight)
        if solved is not None:
            expansion.second(expansion.image(solved)[None])
        rows.clear()
        assert expansion.norm_after(change) == pytest.approx(exact, rel=1e-13), name
        spent[name] = sum(rows)
    assert spent["this"] < spent["nothing"]
