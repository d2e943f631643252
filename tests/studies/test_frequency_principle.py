"""frequency-principle: the recipe at a tiny size, the verdict, and what the stored run says."""

from __future__ import annotations

import pytest
import torch

from lipscope.claims.errors import UsageError
from lipscope.claims.progress import silent
from lipscope.studies.frequency_principle import STUDY, Settings, _grid, judge, measure
from lipscope.studies.study import stored

TINY = Settings(seeds=(0, 1), widths=(20, 20), steps=20, every=5)


def test_the_target_has_two_equally_high_peaks() -> None:
    from lipscope.frequency import target_peaks

    for points in (61, 201):
        _, y = _grid(points)
        assert target_peaks(y) == (3, 13)


def test_a_tiny_run_is_inconclusive_and_keeps_the_random_state() -> None:
    before = torch.get_rng_state()
    outcome = STUDY.run(TINY)
    assert torch.equal(before, torch.get_rng_state())
    assert outcome.holds is None
    for run in outcome.figures["runs"]:
        for name in ("train", "test"):
            assert run[name]["peaks"] == [3, 13]
            assert run[name]["first_passage"] == [None, None]
            assert run[name]["steps"] == [0, 5, 10, 15, 20]


def test_an_easier_run_fits_the_low_peak() -> None:
    settings = Settings(seeds=(0,), widths=(60, 60), deviation=0.1, learning_rate=3e-3, steps=500, every=20)
    run = measure(settings, silent)["runs"][0]  # type: ignore[index]
    low, high = run["train"]["first_passage"]
    assert low is not None and (high is None or low < high)


@pytest.mark.parametrize(("train", "test", "holds"), [
    ([10, 20], [10, 20], True), ([10, 10], [10, 20], False), ([20, 10], [10, 20], False), ([10, 20], [20, 10], False),
    ([10, None], [10, 20], True), ([None, None], [None, None], None), ([None, 20], [10, 20], False),
])  # fmt: skip
def test_the_verdict(train: list[int | None], test: list[int | None], holds: bool | None) -> None:
    runs = [{"train": {"first_passage": train}, "test": {"first_passage": test}}]
    assert judge({"runs": runs}, Settings()) is holds
    assert judge({"runs": []}, Settings()) is None


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"points": 20}, {"seeds": ()}, {"error": 1.0}, {"steps": 0}):
        with pytest.raises(UsageError):
            Settings(**wrong)  # type: ignore[arg-type]


def test_the_stored_first_passages_fit_the_stored_errors() -> None:
    result = stored("frequency-principle")
    assert result is not None and len(result["figures"]["runs"]) >= 3
    limit = result["settings"]["error"]
    for run in result["figures"]["runs"]:
        for name in ("train", "test"):
            found = run[name]
            for i, first in enumerate(found["first_passage"]):
                for step, errors in zip(found["steps"], found["errors"], strict=True):
                    if first is None or step < first:
                        assert errors[i] > limit
                    if step == first:
                        assert errors[i] <= limit
