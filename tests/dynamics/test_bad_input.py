"""What a user may get wrong, and what may go wrong in a training: refused in words before it begins, or told while it goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynamics.training import LOSS, data, expect_same, mlp, train
from lipscope.claims.errors import ModelError, UsageError
from lipscope.dynamics.observer import Observer, _check_loss
from lipscope.dynamics.quantities import scene
from lipscope.dynamics.store import open_run


@pytest.fixture(autouse=True)
def no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise ModelError("left out in this test")

    monkeypatch.setattr(scene, "Template", refuse)


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0(x)


def unknown() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), Odd(), nn.Linear(8, 3))


@pytest.mark.parametrize("preset", ["lite", "default"])
def test_an_unknown_module_is_an_infinite_factor_with_a_name(preset: str, tmp_path: Path) -> None:
    train(tmp_path / "a", unknown, preset=preset)
    train(tmp_path / "b", mlp, preset=preset)
    with open_run(tmp_path / "a") as run:
        products = [series for series in run.all_series() if series.name == "log_product"]
        assert len(products) == (1 if preset == "lite" else 2)
        for series in products:
            assert len(series) and all(value == math.inf for value in series.value), series.quantity
            assert all("'1'" in note and "special_i0" in note for note in series.note), series.note
    with open_run(tmp_path / "b") as run:
        products = [series for series in run.all_series() if series.name == "log_product"]
        assert all(math.isfinite(value) for series in products for value in series.value)


def test_weights_that_are_not_finite_any_more_are_told_once(tmp_path: Path) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
        optimizer.zero_grad()
        (LOSS(model(x), y) * (float("nan") if step == 2 else 1.0)).backward()
        optimizer.step()

    expect_same(train(None, loop=loop), train(tmp_path, loop=loop))
    with open_run(tmp_path) as run:
        told = [(event.step, event.message) for event in run.events() if event.kind == "not-finite"]
        assert len(told) == 1 and "at step 3" in told[0][1]
        assert [alert.kind for alert in run.alerts()].count("not-finite") == 1


def meta() -> nn.Module:
    return mlp().to("meta")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probe": (data()[0] * float("nan"), data()[1])}, "a probe of finite numbers"),
        ({"probe": (data()[0].to("meta"), data()[1])}, "a probe on cpu"),
        ({"probe": (torch.rand(4, 7), torch.zeros(4, dtype=torch.int64))}, "a probe that the model accepts"),
    ],
)
def test_what_makes_no_sense_is_refused_before_training(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match=message):
        Observer(model, optimizer, **{"loss": LOSS, "probe": data(), "run": tmp_path / "run", **change})
    assert not (tmp_path / "run").exists()


def test_a_loss_by_name_is_refused() -> None:
    with pytest.raises(UsageError, match="a function of outputs and targets, got str"):
        _check_loss("cross entropy")  # what a call without checks of annotations comes to


def test_parameters_without_values_are_refused(tmp_path: Path) -> None:
    model = meta()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ModelError, match=r"got '0\.weight' on meta"):
        Observer(model, optimizer, loss=LOSS, probe=data(), run=tmp_path / "run")
