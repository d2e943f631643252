"""double-descent: labels, stopping rule, the shape that is looked for, and the verdict."""

from __future__ import annotations

import pytest
import torch

from lipscope.claims.errors import Interrupted, UsageError
from lipscope.claims.progress import silent
from lipscope.studies import double_descent
from lipscope.studies.double_descent import STUDY, Settings, measure, noisy_labels, train
from lipscope.studies.study import stored
from studies.tiny_data import small


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty points instead of MNIST-1D."""
    monkeypatch.setattr(double_descent, "mnist1d", lambda: small(20))


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_labels_are_permuted_among_each_other(share: float) -> None:
    labels = torch.arange(500)
    noisy = noisy_labels(labels, share, 0)
    assert torch.equal(noisy.sort().values, labels)
    moved = int((noisy != labels).sum())
    assert moved <= round(500 * share) and moved >= 0.9 * round(500 * share)
    assert torch.equal(noisy, noisy_labels(labels, share, 0))
    assert share == 0 or not torch.equal(noisy, noisy_labels(labels, share, 1))


def test_training_stops_at_the_gradient_or_after_the_steps() -> None:
    data = small(20)
    _, steps, norm = train(Settings(stop=1e9), 5, 0, data.x, data.y)
    assert steps == 0 and norm > 0
    model, steps, norm = train(Settings(steps=7, stop=0.0), 5, 0, data.x, data.y)
    assert steps == 7
    _, steps, norm = train(Settings(stop=0.05), 30, 0, data.x, data.y)
    assert 0 < steps < 12_000 and norm < 0.05
    again, *_ = train(Settings(steps=7, stop=0.0), 5, 0, data.x, data.y)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other, *_ = train(Settings(steps=7, stop=0.0), 5, 1, data.x, data.y)
    assert not torch.equal(next(other.parameters()), next(model.parameters()))


@pytest.mark.usefixtures("few")
def test_a_small_run_has_a_row_a_width() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    figures = measure(Settings(widths=(1, 4), seeds=(0, 1), samples=20, steps=30), silent)
    assert torch.equal(torch.get_rng_state(), before)
    assert [(row["width"], row["parameters_per_sample"]) for row in figures["rows"]] == [(1, 2.5), (4, 10.0)]
    for row in figures["rows"]:
        assert row["c_avg"] <= row["c_lower"] <= row["c_upper"]
        assert row["steps"] == 30 and row["c_lower_sd"] > 0 and 0 <= row["train_accuracy"] <= 1
    assert figures["fall"] == max(row["c_lower"] for row in figures["rows"]) / figures["rows"][1]["c_lower"]


@pytest.mark.usefixtures("few")
def test_stopped_it_keeps_the_widths_that_were_reached() -> None:
    def stop(message: str, fraction: float) -> None:
        if message.startswith("width 3"):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        measure(Settings(widths=(1, 2, 3), seeds=(0,), samples=20, steps=2), stop)
    assert [row["width"] for row in stopped.value.result["rows"]] == [1, 2]


def curve(lower: list[float], loss: list[float], widths: tuple[int, ...] = (2, 6, 10, 12, 14, 20, 40)) -> dict:
    rows = [
        {"width": w, "parameters_per_sample": w / 10, "c_avg": c / 2, "c_lower": c, "c_upper": 2 * c, "test_loss": t}
        for w, c, t in zip(widths, lower, loss, strict=True)
    ]
    return {"rows": rows, **double_descent._shape(rows)}


PEAK = [1.0, 3.0, 5.0, 30.0, 9.0, 4.0, 1.0]


def test_the_verdict() -> None:
    assert STUDY.judge(curve(PEAK, PEAK), Settings()) is True
    assert STUDY.judge(curve(PEAK, [1, 2, 9, 3, 3, 3, 1]), Settings()) is True  # one width apart
    assert STUDY.judge(curve(PEAK, [1, 2, 3, 3, 3, 9, 1]), Settings()) is False  # two
    assert STUDY.judge(curve([1, 30, 5, 5, 5, 4, 1], [1, 30, 5, 5, 5, 4, 1]), Settings()) is False  # too early
    assert STUDY.judge(curve([1, 3, 5, 6, 7, 8, 30], PEAK), Settings()) is False  # no descent
    assert STUDY.judge(curve([*PEAK[:-1], 3.1], PEAK), Settings()) is False  # falls 9.7 times
    assert STUDY.judge(curve(PEAK[2:], PEAK[2:], (10, 12, 14, 20, 40)), Settings()) is None  # nothing left of the peak
    assert STUDY.judge(curve(PEAK[:-1], PEAK[:-1], (2, 6, 10, 12, 14, 20)), Settings()) is None
    broken = curve(PEAK, PEAK)
    broken["rows"][0]["c_upper"] = 0.9
    assert STUDY.judge(broken, Settings()) is False


def test_the_stored_run_has_the_shape_that_it_says() -> None:
    result = stored("double-descent")
    assert result is not None
    figures = result["figures"]
    assert {key: figures[key] for key in figures if key != "rows"} == double_descent._shape(figures["rows"])
    assert 0.8 <= figures["peak_parameters_per_sample"] <= 2 and figures["fall"] > 10
    assert len(result["settings"]["seeds"]) >= 3


@pytest.mark.parametrize(
    "wrong",
    [{"widths": ()}, {"widths": (3, 2)}, {"seeds": ()}, {"label_noise": 1.5}, {"samples": 0}, {"steps": 0}],
)
def test_settings_without_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Settings(**wrong)
