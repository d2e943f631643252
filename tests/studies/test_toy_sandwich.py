"""toy-sandwich: the recipe, the measurement and the verdict."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from harness.expect import expect_close
from lipscope.claims.errors import UsageError
from lipscope.claims.progress import silent
from lipscope.studies.study import stored
from lipscope.studies.toy_sandwich import PUBLISHED, STUDY, Settings, measure, points, train


def test_points_are_drawn_class_by_class_around_three_centers() -> None:
    x, y = points(Settings())
    assert x.shape == (45, 2) and y.tolist() == [0] * 15 + [1] * 15 + [2] * 15
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        noise = torch.randn(15, 2)
    np.testing.assert_allclose(x[:15], noise + torch.tensor([0.0, -1.5]), atol=1e-6)
    many, labels = points(Settings(train_points=4000))
    for k, angle in enumerate((-90, 30, 150)):
        center = [1.5 * math.cos(math.radians(angle)), 1.5 * math.sin(math.radians(angle))]
        np.testing.assert_allclose(many[labels == k].mean(0), center, atol=0.08)
        np.testing.assert_allclose(np.cov(many[labels == k].T), np.eye(2), atol=0.1)


@pytest.mark.parametrize(("steps", "lower", "upper"), [(0, 0.219, 2.85), (1000, 4.07, 8.72)])
def test_the_beginning_of_training_is_that_of_an_independent_run(steps: int, lower: float, upper: float) -> None:
    """The two figures are from another program that follows the same recipe, at these steps, to three digits."""
    figures = measure(Settings(steps=steps, grid_points=3), silent)
    assert set(figures) == {"c_lower", "grid", "c_upper"}
    expect_close(figures["c_lower"], lower, 0.005)
    expect_close(figures["c_upper"], upper, 0.005)


def test_the_grid_is_the_largest_norm_over_all_its_points() -> None:
    settings = Settings(steps=50, width=6, grid_points=4, half_width=2.0)
    figures = measure(settings, silent)
    model = train(settings, *points(settings), silent).double()
    found = []
    for point in itertools.product(np.linspace(-2, 2, 4), repeat=2):
        jacobian = torch.autograd.functional.jacobian(lambda p: model(p), torch.tensor(point))
        found.append(np.linalg.norm(jacobian.numpy(), 2))
    expect_close(figures["grid"], max(found), 1e-12)
    assert figures["grid"] <= figures["c_upper"]


def test_global_random_state_stays() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    measure(Settings(steps=2, grid_points=2), silent)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_verdict() -> None:
    assert STUDY.judge(PUBLISHED, Settings()) is True
    for key, value in PUBLISHED.items():
        for factor in (0.994, 1.006):
            assert STUDY.judge({**PUBLISHED, key: factor * value}, Settings()) is False
        assert STUDY.judge({**PUBLISHED, key: 1.004 * value}, Settings()) is True
    assert STUDY.judge(PUBLISHED, Settings(steps=10)) is None
    assert STUDY.judge(PUBLISHED, Settings(model_seed=1)) is None
    for broken in ("c_lower", "grid"):
        assert STUDY.judge({**PUBLISHED, broken: 389.1}, Settings(steps=10, tolerance=10.0)) is False
    assert STUDY.judge({**PUBLISHED, "grid": math.nan}, Settings()) is False


def test_the_stored_run_has_the_published_figures() -> None:
    result = stored("toy-sandwich")
    assert result is not None and result["holds"] is True
    for key, value in PUBLISHED.items():
        expect_close(result["figures"][key], value, 0.005, key)


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"width": 0}, {"grid_points": 0}, {"half_width": 0.0}])
def test_settings_without_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="positive"):
        Settings(**wrong)
