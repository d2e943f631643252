"""noise-curvature: the run and the verdict."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from lipscope.claims.errors import UsageError
from lipscope.claims.progress import silent
from lipscope.studies.data import digits
from lipscope.studies.following import standardised
from lipscope.studies.noise_curvature import STUDY, Settings, measure, one_run
from lipscope.studies.study import stored

TINY = Settings(seeds=(0, 1), batch=2, widths=(8, 6), samples=64, steps=8)


def test_errors_are_what_is_left() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    figures = measure(TINY, silent)
    assert torch.equal(torch.get_rng_state(), before)
    for row in figures["rows"]:
        assert row["noise_curvature"] > 0
        without = row["change"] - row["flow"] - row["noise"]
        assert row["error_without"] == pytest.approx(abs(without))
        assert row["error_with"] == pytest.approx(abs(without - row["noise_curvature"]))
        assert row["error_of_flow_with"] == pytest.approx(abs(row["change"] - row["flow"] - row["noise_curvature"]))
    assert STUDY.judge(figures, TINY) is None


def test_larger_batches_have_less_of_it() -> None:
    data = digits(64)
    small, large = (one_run(replace(TINY, batch=b), 0, data.x, data.y)["noise_curvature"] for b in (2, 32))
    assert 0 < large < 0.5 * small


def test_standardised_inputs() -> None:
    x = standardised(digits(64).x)
    assert abs(float(x.mean())) < 1e-6 and float(x.std()) == pytest.approx(1, rel=1e-6)


def test_the_verdict_can_be_no_and_cannot_tell() -> None:
    result = stored("noise-curvature")
    assert result is not None
    figures, settings = result["figures"], STUDY.restore(result["settings"])
    assert STUDY.judge(figures, settings) is result["holds"]
    weak, split, few = (copy.deepcopy(figures) for _ in range(3))
    weak["mean_error_with"] = weak["mean_error_without"]
    split["seeds_in_favour"] -= 1
    few["rows"] = few["rows"][:4]
    assert STUDY.judge(weak, settings) is False and STUDY.judge(split, settings) is False
    assert STUDY.judge(few, settings) is None


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="batch of 1"):
        Settings(batch=0)
