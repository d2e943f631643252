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
from lipscope.dynamics.arguments import check_loss
from lipscope.dynamics.observer import Observer
from lipscope.dynamics.quantities import scene
from lipscope.dynamics.recorder import ObserverWarning
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probe": torch.utils.data.DataLoader([0])}, r"got DataLoader; take one batch of it"),
        ({"probe": (data()[0].numpy(), data()[1])}, r"got ndarray, Tensor; torch.as_tensor"),
        ({"probe": (data()[0][0], data()[1][0])}, r"inputs of shape \[6\], the first axis is the batch"),
        (
            {"probe": (data()[0], data()[1].float())},
            r"a loss that takes the model's outputs \[32, 3\] and the targets \[32\]",
        ),
        ({"probe": (data()[0], data()[1] + 5)}, r"a loss that takes .*out of bounds"),
        ({"loss": nn.CrossEntropyLoss(reduction="none")}, r"a loss that is one number, .* got shape \[32\]"),
        (
            {"loss": nn.CrossEntropyLoss(reduction="sum"), "reference": data()},
            "doubles where every example comes twice",
        ),
        ({"reference": (data()[0][:, :4], data()[1])}, "a reference that the model accepts"),
        ({"reference": data()[0]}, "got inputs without targets"),
    ],
)
def test_slips_are_told_with_what_to_do(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options: dict[str, Any] = {"loss": LOSS, "probe": data(), "run": tmp_path / "run", **change}
    with pytest.raises(UsageError, match=message):
        Observer(model, optimizer, **options)
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_model_is_not_continued(tmp_path: Path) -> None:
    train(tmp_path, mlp, preset="lite")
    with open_run(tmp_path) as run:
        steps = run.steps.tolist()
    other = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
    with pytest.raises(UsageError, match=r"a run of this model .Sequential with 2 followed layers and 93 parameters"):
        Observer(
            other, torch.optim.SGD(other.parameters(), lr=0.1), loss=LOSS, probe=data(), run=tmp_path, preset="lite"
        )
    with open_run(tmp_path) as run:
        assert run.steps.tolist() == steps and len(run.sessions) == 1


def test_an_observer_that_was_closed_says_so(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, loss=LOSS, probe=data(), run=tmp_path, preset="lite")
    with observer:
        pass
    with pytest.raises(UsageError, match=r"got one that is closed; make a new one with the same run="), observer:
        pass


def test_a_training_that_fails_leaves_the_reason_in_its_run(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.raises(ValueError, match="no more data"),
        Observer(model, optimizer, loss=LOSS, probe=data(), run=tmp_path, preset="lite"),
    ):
        raise ValueError("no more data")
    with open_run(tmp_path) as run:
        assert [e.message for e in run.events() if e.kind == "failed"] == ["ValueError: no more data"]


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 4), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x).flatten(1))  # type: ignore[no-any-return]


def test_tokens_are_told_of_once_and_the_rest_is_followed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, y = Tokens(), torch.randint(0, 5, (8, 6)), torch.randint(0, 3, (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(ObserverWarning, match="torch.int64|int64, whole numbers") as told,
        Observer(model, optimizer, loss=LOSS, probe=(x, y), run=tmp_path, budget=1.0),
    ):
        for _ in range(3):
            optimizer.zero_grad()
            LOSS(model(x), y).backward()
            optimizer.step()
    assert len(told) == 1
    with open_run(tmp_path) as run:
        names = set(run.names())
        assert {"norm", "norm_upper", "probe_loss", "drift"} <= names and not {"lower", "rank_1e-2"} & names
        assert math.isnan(run.series("upper").value[-1]) and "whole numbers" in run.series("upper").note[-1]


class Centred(nn.Module):
    """Without running statistics, in its simplest form: alone an example counts as 0."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x - x.mean(0))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["centred", "batch norm"])
def test_examples_that_see_each_other_are_told_of_and_have_no_derivatives(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8, track_running_stats=False)  # refuses a single example
    model = Centred() if kind == "centred" else nn.Sequential(nn.Linear(6, 8), norm, nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = data()
    with (
        pytest.warns(ObserverWarning, match="depends on the others, or on chance, in eval mode") as told,
        Observer(model, optimizer, loss=LOSS, probe=(x, y), run=tmp_path, preset="research", budget=1.0),
    ):
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step()
    assert len(told) == 1
    with open_run(tmp_path) as run:
        assert {"norm", "norm_upper", "probe_loss", "change"} <= set(run.names())
        assert not {"lower", "lower_pairs", "rank_1e-2", "drift"} & set(run.names())
        assert math.isnan(run.series("upper").value[-1])


def test_a_model_in_half_precision_is_measured_in_float64(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3)).bfloat16()  # linear: measured and proved are the same number
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = data()
    with Observer(model, optimizer, loss=LOSS, probe=(x.bfloat16(), y), run=tmp_path, budget=1.0):
        pass
    exact = float(torch.linalg.matrix_norm(model[0].weight.detach().double(), 2))  # type: ignore[operator]
    with open_run(tmp_path) as run:
        for name in ("lower", "mean", "lower_pairs"):
            series = run.series(name)
            assert series.value[-1] == pytest.approx(exact, rel=1e-12) and "float64" in series.note[-1]
        norm = run.series("norm", "0", "layer-norms")
        assert norm.value[-1] <= exact * (1 + 1e-6) and "float32" in norm.note[-1]
        assert len(run.series("drift", "0"))


def test_a_loss_by_name_is_refused() -> None:
    with pytest.raises(UsageError, match="a function of outputs and targets, got str"):
        check_loss("cross entropy")  # what a call without checks of annotations comes to


def test_parameters_without_values_are_refused(tmp_path: Path) -> None:
    model = meta()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ModelError, match=r"got '0\.weight' on meta"):
        Observer(model, optimizer, loss=LOSS, probe=data(), run=tmp_path / "run")
