"""near-convergence: records, fit and verdict."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from lipscope.claims.errors import UsageError
from lipscope.claims.progress import silent
from lipscope.studies.near_convergence import STUDY, Settings, fitted, measure, recorded
from lipscope.studies.study import stored

TINY = Settings(seeds=(0,), widths=(8, 6), samples=32, steps=40, begin=10, records=3)


def test_the_fit_is_the_line_it_was_made_from() -> None:
    x = [math.log(t) for t in (1, 2, 4, 9)]
    slope, constant, r2 = fitted(x, [0.3 + 0.05 * v for v in x])
    assert (slope, constant, r2) == (pytest.approx(0.05), pytest.approx(0.3), pytest.approx(1.0))
    assert fitted(x, [1.0, 1.0, 1.0, 1.0])[2] == 0.0
    assert fitted([0.0, 1.0, 2.0], [0.0, 1.0, 0.0])[2] == pytest.approx(0.0, abs=1e-12)


def test_records_are_even_in_the_log() -> None:
    assert recorded(TINY) == [10, 20, 40]
    times = recorded(Settings())
    assert (len(times), times[0], times[-1]) == (12, 2000, 10_000)


def test_a_small_run_has_two_rows_a_seed() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    figures = measure(TINY, silent)
    assert torch.equal(torch.get_rng_state(), before)
    free, decayed = figures["rows"]
    assert (free["decay"], decayed["decay"]) == (0.0, 1e-3)
    assert free["start"] == decayed["start"] and len(free["log_product"]) == 3
    assert decayed["log_product"][-1] < free["log_product"][-1]
    assert STUDY.judge(figures, TINY) is None  # nothing is fitted after 40 steps


def test_the_verdict_can_be_no_and_cannot_tell() -> None:
    result = stored("near-convergence")
    assert result is not None
    figures, settings = result["figures"], STUDY.restore(result["settings"])
    assert STUDY.judge(figures, settings) is result["holds"]
    bent, falling, growing, unfitted = (copy.deepcopy(figures) for _ in range(4))
    for changed, index, key, value in (
        (bent, 0, "r2", 0.5),
        (falling, 0, "slope", -0.1),
        (unfitted, 0, "accuracy", 0.99),
    ):
        assert not changed["rows"][index]["decay"]
        changed["rows"][index][key] = value
    assert growing["rows"][1]["decay"]
    growing["rows"][1]["log_product"][-1] = growing["rows"][1]["log_product"][0] + 1
    assert [STUDY.judge(f, settings) for f in (bent, falling, growing, unfitted)] == [False, False, False, None]


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="begin"):
        Settings(begin=20_000)
