"""Regressions by seed: descent against a loop written out, and what is kept when a study of them is stopped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lipscope.claims.errors import Interrupted
from lipscope.studies import frequency_principle, spectral_bias
from lipscope.studies.regression import descent, each_seed
from lipscope.studies.study import Study

X = torch.linspace(-1, 1, 9)[:, None]
Y = torch.sin(3 * X)


def small(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1))


def test_descent_is_adam_on_all_points_to_the_bit() -> None:
    own, model = small(), small()
    optimizer = torch.optim.Adam(own.parameters(), lr=0.01)
    expected = []
    for _ in range(7):
        loss = ((own(X) - Y) ** 2).mean()
        expected.append(loss.item())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    expected.append(((own(X) - Y) ** 2).mean().item())
    found = list(descent(model, X, Y, 0.01, 7))
    assert found == list(enumerate(expected))
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), model.parameters(), strict=True))
    assert expected[-1] < expected[0]


def test_the_model_is_as_the_steps_so_far_left_it() -> None:
    model = small()
    for _, loss in descent(model, X, Y, 0.01, 3):
        with torch.no_grad():
            assert nn.functional.mse_loss(model(X), Y).item() == loss


def test_no_steps_leave_the_model_as_it_is() -> None:
    model = small()
    assert [step for step, _ in descent(model, X, Y, 0.01, 0)] == [0]
    assert all(torch.equal(a, b) for a, b in zip(small().parameters(), model.parameters(), strict=True))


def test_every_seed_has_its_run_and_its_share() -> None:
    seen: list[tuple[int, float]] = []

    def run(seed: int, done: float) -> dict[str, Any]:
        seen.append((seed, done))
        return {"seed": seed}

    assert each_seed((5, 3), run, lambda runs: {"all": runs}) == {"all": [{"seed": 5}, {"seed": 3}]}
    assert seen == [(5, 0.0), (3, 0.5)]


STUDIES = [
    (
        frequency_principle.STUDY,
        frequency_principle.Settings(seeds=(0, 1), widths=(20, 20), steps=20, every=5),
    ),
    (
        spectral_bias.STUDY,
        spectral_bias.Settings(seeds=(0, 1), frequencies=(1, 2, 4), points=24, width=16, depth=2, steps=40, every=10),
    ),
]


@pytest.mark.parametrize(("study", "settings"), STUDIES, ids=lambda value: getattr(value, "name", ""))
def test_stopped_they_keep_the_runs_that_are_done(study: Study[Any], settings: object) -> None:
    def stop(message: str, share: float) -> None:
        if message.startswith("seed 1"):
            assert share >= 0.5
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="1 of 2 seeds") as stopped:
        study.measure(settings, stop)
    assert [run["seed"] for run in stopped.value.result["runs"]] == [0]  # type: ignore[index]
