"""lipschitz-low-pass: recipes and the projection, a tiny run on digits, the verdict, and what the stored run says."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lipscope.claims.errors import Interrupted, UsageError
from lipscope.claims.progress import silent
from lipscope.frequency.fashion import FASHION
from lipscope.studies.images import Recipe, attacked, images, network, project, proved_norm, train
from lipscope.studies.lipschitz_low_pass import STUDY, Settings, _below, _falls, _run, judge, measure
from lipscope.studies.study import stored

TINY = Settings(
    seeds=(0, 1), data="digits", train=200, test=60, images=10, epochs=1, bands=4, budgets=(8.0, 1.0)
)  # fmt: skip


def matrix(layer: nn.Module, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The layer's linear part, column by column."""
    units = torch.eye(math.prod(shape)).reshape(-1, *shape)
    with torch.no_grad():
        return (layer(units) - layer(torch.zeros(1, *shape))).flatten(1).double().numpy().T  # type: ignore[no-any-return]


def test_the_projection_keeps_every_layer_within_its_share() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network(8)
    for layer in (model[0], model[2]):
        with torch.no_grad():
            layer.weight.mul_(10)
    small = model[7].weight.detach().clone()
    project(model, 8, 16.0)
    shapes = ((1, 8, 8), (8, 8, 8), (16, 4, 4), (64,))
    norms = [
        float(np.linalg.norm(matrix(layer, shape), 2))
        for layer, shape in zip((model[0], model[2], model[4], model[7]), shapes, strict=True)
    ]
    assert all(norm <= 2 * (1 + 1e-6) for norm in norms)
    assert norms[0] == pytest.approx(2, rel=0.02) and norms[1] == pytest.approx(2, rel=0.02)
    assert torch.equal(model[7].weight, small)  # below its share already
    assert math.prod(norms) <= 16


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(12, 5), nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")],
)
def test_a_proved_norm_is_never_below_the_dense_one(layer: nn.Module) -> None:
    shape = (12,) if isinstance(layer, nn.Linear) else (1, 7, 6)
    truth = float(np.linalg.norm(matrix(layer.eval(), shape), 2))
    assert truth * (1 - 1e-6) <= proved_norm(layer, shape) <= 1.01 * truth


def test_the_first_layer_acts_on_each_frequency_alone() -> None:
    first = network(8)[0].double()
    wave = torch.cos(2 * torch.pi * (torch.arange(8.0)[:, None] * 2 + torch.arange(8.0) * 3) / 8)[None, None].double()
    answer = first(wave) - first(torch.zeros_like(wave))
    power = torch.fft.fft2(answer.detach()).abs().square().sum(dim=(0, 1))
    assert float(power[2, 3] + power[6, 5]) == pytest.approx(float(power.sum()), rel=1e-12)


def test_an_attack_stays_in_its_ball_and_in_the_range_and_raises_the_loss() -> None:
    _, data = images("digits", 300, 100)
    model = train(data, Recipe(2), seed=0)
    moved = attacked(model, data.x_test, data.y_test, 0.1)
    assert float((moved - data.x_test).abs().max()) <= 0.1 + 1e-6
    assert 0 <= float(moved.min()) and float(moved.max()) <= 1
    losses = [float(nn.functional.cross_entropy(model(x), data.y_test).detach()) for x in (data.x_test, moved)]
    assert losses[1] > losses[0]
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_data_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="auto, fashion-mnist, digits"):
        images("cifar", 10, 10)
    with pytest.raises(UsageError, match="1797"):
        images("digits", 1700, 200)
    name, data = images("auto", 50, 20)
    assert name == ("fashion-mnist" if FASHION.is_dir() else "digits")
    side = 28 if FASHION.is_dir() else 8
    assert data.x.shape == (50, 1, side, side) and data.y_test.shape == (20,)
    assert 0 <= float(data.x.min()) and 0.5 < float(data.x.max()) <= 1


def test_a_tiny_run_stays_below_its_bounds_and_keeps_the_random_state() -> None:
    before = torch.get_rng_state()
    figures = STUDY.run(TINY).figures
    assert torch.equal(before, torch.get_rng_state())
    assert figures["bounds_hold"] is True
    assert len(figures["runs"]) == 2 * 6
    for run in figures["runs"]:
        assert len(run["proved"]) == len(run["largest"])
        assert all(
            gain <= bound <= run["total_proved"] for gain, bound in zip(run["largest"], run["proved"], strict=True)
        )
        assert max(run["largest"]) <= run["total_largest"] * (1 + 1e-12)
        if run["network"].startswith("constrained"):
            assert run["total_proved"] <= float(run["network"].split()[-1]) * (1 + 1e-5)
    standard = figures["networks"]["standard"]["share_of_standard"]
    assert all(share == {"mean": 1.0, "se": 0.0} for share in standard)
    steps = [("standard", "constrained to 8"), ("constrained to 8", "constrained to 1")]
    assert [(step["from"], step["to"]) for step in figures["tightened"]] == steps
    for step in figures["tightened"]:
        assert_left(step, figures["runs"])
    assert figures["falls_with_constraint"] is _falls(figures["tightened"])


def assert_left(step: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """What is left is the mean over seeds of the ratio of mean gains, with its standard error."""
    before, after = (
        np.array([run["mean"] for run in sorted(runs, key=lambda run: run["seed"]) if run["network"] == step[end]])
        for end in ("from", "to")
    )
    left = after / before
    assert [f["mean"] for f in step["left"]] == pytest.approx(left.mean(axis=0).tolist())
    assert [f["se"] for f in step["left"]] == pytest.approx((left.std(axis=0, ddof=1) / len(left) ** 0.5).tolist())


def test_the_method_of_the_proofs_is_the_one_that_was_asked_for() -> None:
    _, data = images("digits", 200, 60)
    runs = {method: _run(replace(TINY, method=method), data, Recipe(1), 0) for method in ("product", "absolute")}
    assert runs["absolute"]["largest"] == runs["product"]["largest"]
    assert runs["absolute"]["total_proved"] != runs["product"]["total_proved"]
    for run in runs.values():
        assert _below(run)
    with pytest.raises(UsageError, match="prodct"):
        measure(replace(TINY, method="prodct"), silent)


def figures_of(means: list[list[float]], error: float, hold: bool = True) -> dict[str, Any]:
    steps = [{"left": [{"mean": mean, "se": error} for mean in bands]} for bands in means]
    return {"bounds_hold": hold, "tightened": steps}


@pytest.mark.parametrize(("means", "error", "hold", "holds"), [
    ([[0.5, 0.3]], 0.1, True, True), ([[0.5, 0.3]], 0.1, False, False), ([[0.5, 1.01]], 0.001, True, False),
    ([[0.5, 0.9]], 0.06, True, None), ([[0.5, 0.3], [0.5, 1.01]], 0.001, True, False),
    ([[0.5, 0.3], [0.9, 0.3]], 0.06, True, None), ([[0.5, 0.3], [0.8, 0.3]], 0.06, True, True),
])  # fmt: skip
def test_the_verdict(means: list[list[float]], error: float, hold: bool, holds: bool | None) -> None:
    assert judge(figures_of(means, error, hold), Settings()) is holds


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in (
        {"seeds": (0,)},
        {"seeds": (1, 1)},
        {"budgets": ()},
        {"budgets": (0.0,)},
        {"budgets": (4.0, 4.0)},
        {"images": 5000},
    ):
        with pytest.raises(UsageError):
            Settings(**wrong)  # type: ignore[arg-type]


def test_stopped_it_keeps_the_networks_that_are_done() -> None:
    def stop(message: str, share: float) -> None:
        if "standard" in message:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        measure(TINY, stop)
    assert [run["network"] for run in stopped.value.result["runs"]] == ["untrained"]  # type: ignore[index]
    assert measure is STUDY.measure and silent("", 0.0) is None


def test_every_stored_gain_is_below_its_bound_and_means_are_those_of_the_runs() -> None:
    result = stored("lipschitz-low-pass")
    assert result is not None and len(result["settings"]["seeds"]) >= 3
    figures = result["figures"]
    assert figures["bounds_hold"] is True
    for run in figures["runs"]:
        assert None not in run["proved"]
        for gain, bound in zip(run["largest"], run["proved"], strict=True):
            assert gain <= bound <= run["total_proved"]
        assert max(run["largest"]) <= run["total_largest"] <= run["total_proved"]
        assert run["total_largest"] <= sum(gain**2 for gain in run["largest"]) ** 0.5 * (1 + 1e-9)
        if run["network"].startswith("constrained"):
            assert run["total_proved"] <= float(run["network"].split()[-1]) * (1 + 1e-5)
    assert len(figures["tightened"]) == len(result["settings"]["budgets"])
    for step in figures["tightened"]:
        assert_left(step, figures["runs"])
    for name, network_figures in figures["networks"].items():
        rows = np.array([run["mean"] for run in figures["runs"] if run["network"] == name])
        assert [f["mean"] for f in network_figures["mean"]] == pytest.approx(rows.mean(axis=0).tolist())
        errors = rows.std(axis=0, ddof=1) / len(rows) ** 0.5
        assert [f["se"] for f in network_figures["mean"]] == pytest.approx(errors.tolist())
