"""Spectral bias in a real run of the observer: what it reads, what the page says about it, and that training is not changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lipscope.dynamics import Observer, open_run
from lipscope.frequency import AmplitudeRatio, PeakError
from lipscope.report import frequency_charts, write_report
from lipscope.report.runs import RunFacts, gather_run

STEPS = 400


def trained(run: Path | None) -> nn.Module:
    """A tanh network that learns a sine of 1 period, and of 20 periods hardly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
        with torch.no_grad():
            model[0].weight.mul_(6)
        x = torch.arange(64)[:, None] / 64
        y = torch.sin(2 * torch.pi * x) + torch.sin(2 * torch.pi * 20 * x)
        optimizer, loss = torch.optim.Adam(model.parameters(), lr=0.02), nn.MSELoss()

        def train() -> None:
            for _ in range(STEPS):
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()

        if run is None:
            train()
        else:
            quantities = [AmplitudeRatio((1, 20)), PeakError((1, 20))]
            with Observer(
                model, optimizer, loss=loss, probe=(x, y), run=run, preset="lite", budget=0.9, quantities=quantities
            ):
                train()
    return model


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("runs") / "waves"
    return folder, trained(folder)


def facts_of(folder: Path) -> RunFacts:
    with open_run(folder) as run:
        return gather_run(run, "r1")


def test_a_run_shows_which_frequencies_were_learned_and_at_what_constant(watched: tuple[Path, nn.Module]) -> None:
    folder, model = watched
    low, high = frequency_charts.passages(facts_of(folder))
    x = torch.arange(64)[:, None] / 64
    with torch.no_grad():
        amplitudes = 2 * np.abs(np.fft.rfft(model(x).double().numpy()[:, 0])) / 64
    for found, k in ((low, 1), (high, 20)):
        assert found.frequency == k and found.latest == pytest.approx(float(amplitudes[k]), rel=1e-6)
    assert low.step is not None and 0 < low.step <= STEPS and high.step is None
    steps, ratios = facts_of(folder).values("ratio at 1")
    assert ratios[steps == low.step] >= 0.8 and (ratios[steps < low.step] < 0.8).all()
    assert low.after is not None and low.after == steps[steps < low.step].max()
    at, constants = facts_of(folder).values("lower")
    assert low.constant == constants[at <= low.step][-1] and high.constant is None


def test_training_is_the_same_without_it(watched: tuple[Path, nn.Module]) -> None:
    for ours, plain in zip(watched[1].parameters(), trained(None).parameters(), strict=True):
        assert torch.equal(ours, plain)


def test_the_chart_has_every_reading_above_the_constant(watched: tuple[Path, nn.Module]) -> None:
    facts = facts_of(watched[0])
    figure: Any = frequency_charts.learning(facts)
    assert [line["name"] for line in figure["data"]] == [
        "frequency 1",
        "frequency 20",
        "largest Jacobian norm on the probe",
    ]
    for line, name in zip(figure["data"], ("ratio at 1", "ratio at 20", "lower"), strict=True):
        steps, values = facts.values(name)
        assert line["x"] == steps.tolist() and np.allclose(line["y"], values, rtol=1e-5)
    assert [line["yaxis"] for line in figure["data"]] == ["y", "y", "y2"]
    assert figure["layout"]["shapes"][0]["y0"] == 0.8
    assert figure["layout"]["yaxis2"]["domain"][1] < figure["layout"]["yaxis"]["domain"][0]


def test_errors_at_peaks_are_drawn_where_no_amplitudes_were_watched(watched: tuple[Path, nn.Module]) -> None:
    facts = facts_of(watched[0])
    for name in ("ratio at 1", "ratio at 20"):
        del facts.series[name, ""]
    figure: Any = frequency_charts.learning(facts)
    assert figure["layout"]["yaxis"]["title"]["text"] == "relative error" and not figure["layout"]["shapes"]
    assert frequency_charts.passages(facts) == []
    for name in ("error at 1", "error at 20"):
        del facts.series[name, ""]
    assert frequency_charts.learning(facts) is None


def test_the_page_tells_when(watched: tuple[Path, nn.Module], tmp_path: Path) -> None:
    write_report([watched[0]], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    low = frequency_charts.passages(facts_of(watched[0]))[0]
    assert "Frequencies of the target" in text and f"{low.step} (after {low.after})" in text and "not yet" in text
