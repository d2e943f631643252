"""The forecast of a run on its page: that of the terms themselves, and not drawn as one where it does not hold."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lipscope.claims.quantity import Reading
from lipscope.dynamics.prediction import forecast
from lipscope.dynamics.recorder import Entry, Recorder
from lipscope.dynamics.sde import observed_coefficients
from lipscope.dynamics.store import open_run
from lipscope.dynamics.track import IdentityTracker
from lipscope.report import write_report
from lipscope.report.run_charts import prediction as draw
from lipscope.report.runs import RunFacts, gather_run
from report.run_samples import INFO, META

RATE = 0.02


class Twice(nn.Module):
    """One layer is used twice, so that its terms count twice and its correction does not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))  # type: ignore[no-any-return]


def facts_of(folder: Path) -> RunFacts:
    with open_run(folder) as run:
        return gather_run(run, "a")


def test_the_forecast_from_the_store_is_that_of_the_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, loss = Twice(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    x, y = torch.randn(40, 6), torch.randint(3, (40,))
    tracker = IdentityTracker(model, optimizer, probe=x[:2], loss=loss, reference=(x, y))
    calls = {factor.name: factor.calls for factor in tracker.factors}
    assert calls["inner"] == 2
    recorder = Recorder(tmp_path, {"model": {"class": "Twice", "parameters": 1, "layers": [], "calls": calls}}, INFO)
    points, levels = [], []
    for k in range(12):
        rows = torch.randint(40, (8,))
        optimizer.zero_grad()
        loss(model(x[rows]), y[rows]).backward()
        tracker.before_step()
        optimizer.step()
        step = tracker.after_step()
        points.append(observed_coefficients(step, RATE, k))
        levels += [step.log_product, step.log_product_after]
        recorder.record(Entry(k + 1, 1.7e9 + k, [("identity", r) for r in tracker.readings(step)]))
    recorder.close()
    expected = forecast(points, levels[0], 12, observed=[*levels[::2], levels[-1]])
    found = facts_of(tmp_path).prediction
    assert found is not None and found.forecast.steps == expected.steps == tuple(range(13))
    assert found.forecast.path == pytest.approx([z - levels[0] for z in expected.path], rel=1e-9, abs=1e-12)
    assert found.forecast.sd == pytest.approx(expected.sd, rel=1e-9)
    assert found.observed == pytest.approx([z - levels[0] for z in [*levels[::2], levels[-1]]], abs=1e-12)
    assert [f.name for f in found.forecast.flags] == [f.name for f in expected.flags]


def record(folder: Path, steps: range, flow: float = 0.02, omitted: float = 0.0, change: float = 0.02) -> RunFacts:
    """Steps of one layer with these terms."""
    recorder = Recorder(folder, META, INFO)
    for k, step in enumerate(steps, start=1):
        terms = {"flow": flow, "noise": 0.001 * (-1) ** k, "noise_curvature": 1e-4, "flow_curvature": omitted}
        whole = {**terms, "change": change, "total_change": change * k, "total_outside": 0.0, "residual": 0.0}
        rows = [
            ("identity", Reading(n, v, "measured", "head"))
            for n, v in {**terms, "change": change, "q_ratio": 0.1}.items()
        ]
        rows += [("identity", Reading(n, v, "measured")) for n, v in whole.items()]
        recorder.record(Entry(step, 1.7e9 + step, rows))
    recorder.close()
    return facts_of(folder)


def page(folder: Path) -> str:
    write_report([folder], folder / "page.html")
    return (folder / "page.html").read_text(encoding="utf-8")


def test_a_forecast_that_holds_is_drawn_with_its_band(tmp_path: Path) -> None:
    facts = record(tmp_path, range(1, 21))
    assert facts.prediction is not None and facts.prediction.forecast.sound
    figure = draw(facts)
    assert figure is not None
    assert [line["name"] for line in figure["data"] if line.get("showlegend", True)] == [
        "two standard deviations", "forecast", "what happened",
    ]  # fmt: skip
    low, high = (line["y"][-1] for line in figure["data"][:2])
    assert high - low == pytest.approx(4 * math.sqrt(20) * 0.001, rel=1e-3)
    text = page(tmp_path)
    assert "Stochastic differential equation" in text and "No forecast." not in text
    assert "noise at one step is undone" in text


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"omitted": 0.01}, "step size:</strong> the curvature of the flow, left out, is 0.50 of the motion"),
        ({"change": -0.01}, "observed:</strong> it disagrees with what was observed"),
        ({"flow": math.nan}, "coefficients:</strong> some coefficients are not known"),
        ({"steps": range(1, 100, 5)}, "cadence:</strong> the drift was probed every 5 steps"),
    ],
)
def test_one_that_does_not_hold_is_crossed_out_with_the_reason(tmp_path: Path, terms: dict, reason: str) -> None:  # type: ignore[type-arg]
    facts = record(tmp_path, **{"steps": range(1, 21), **terms})
    figure = draw(facts)
    assert facts.prediction is not None and not facts.prediction.forecast.sound and figure is not None
    assert not any(line["name"] in ("forecast", "two standard deviations") for line in figure["data"])
    assert "nan" not in re.findall(r"[a-z]+", json.dumps(figure, allow_nan=False))
    text = page(tmp_path)
    assert "No forecast." in text and reason in text


def test_without_a_split_into_flow_and_noise_there_is_none(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a", META, INFO)
    rows = [
        ("identity", Reading(n, 0.1, "measured", x))
        for x in ("", "head")
        for n in ("gradient", "change", "total_change")
    ]
    recorder.record(Entry(1, 1.7e9, rows))
    recorder.close()
    assert facts_of(tmp_path / "a").prediction is None
    assert "Stochastic differential equation" not in page(tmp_path / "a")
