"""spectral-bias: the recipe at a tiny size, the verdict, and what the stored run says."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from lipscope.claims.errors import UsageError
from lipscope.claims.progress import silent
from lipscope.studies.spectral_bias import STUDY, Settings, _target, judge, measure
from lipscope.studies.study import stored

TINY = Settings(seeds=(0, 1), frequencies=(1, 2, 4), points=24, width=16, depth=2, steps=40, every=10)


def test_the_target_is_a_sum_of_equally_large_sines() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, y = _target(Settings())
    power = np.abs(np.fft.rfft(y[:, 0].double().numpy())) / 100
    assert x.shape == (200, 1) and float(x[-1]) == pytest.approx(1 - 1 / 200)
    expected = [1.0 if k in (5, 10, 15, 20, 25, 30) else 0.0 for k in range(101)]
    np.testing.assert_allclose(power, expected, atol=1e-5)


def test_a_tiny_run_measures_everything_and_keeps_the_random_state() -> None:
    before = torch.get_rng_state()
    figures = STUDY.run(TINY).figures
    assert torch.equal(before, torch.get_rng_state())
    assert [run["seed"] for run in figures["runs"]] == [0, 1]
    for run in figures["runs"]:
        assert set(run["first_passage"]) == {"1", "2", "4"}
        assert sorted(run["censored"]) == sorted(int(k) for k, s in run["first_passage"].items() if s is None)
        assert all(s is None or s % 10 == 0 for s in run["first_passage"].values())
        # An attained slope is a lower value of what the norms prove.
        assert 0 < run["first_slope"] <= run["first_upper"] and 0 < run["last_slope"] <= run["last_upper"]


def test_a_long_enough_run_reaches_the_lowest_frequency() -> None:
    run = measure(Settings(seeds=(0,), frequencies=(1, 2, 8), points=32, width=64, depth=3, steps=600), silent)["runs"][
        0
    ]  # type: ignore[index]
    assert run["first_passage"]["1"] is not None
    assert run["last_ratio"]["1"] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(("median", "holds"), [(0.9, True), (0.95, True), (0.89, False), (-1.0, False), (None, None)])
def test_the_verdict(median: float | None, holds: bool | None) -> None:
    assert judge({"median_spearman": median}, Settings()) is holds


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"frequencies": (5, 10)}, {"frequencies": (5, 10, 100)}, {"seeds": ()}, {"every": 0}):
        with pytest.raises(UsageError):
            Settings(**wrong)  # type: ignore[arg-type]


def ranks(values: list[float]) -> list[float]:
    return [sum(v < w for v in values) + (sum(v == w for v in values) + 1) / 2 for w in values]


def test_the_stored_correlations_follow_from_the_stored_first_passages() -> None:
    result = stored("spectral-bias")
    assert result is not None and len(result["figures"]["runs"]) >= 3
    found = []
    for run in result["figures"]["runs"]:
        frequencies = [int(k) for k in run["first_passage"]]
        late = [k for k, s in run["first_passage"].items() if s is None]
        assert [int(k) for k in late] == run["censored"]
        times = [math.inf if s is None else s for s in run["first_passage"].values()]
        found.append(float(np.corrcoef(ranks([float(k) for k in frequencies]), ranks(times))[0, 1]))
        assert run["spearman"] == pytest.approx(found[-1], abs=1e-12)
        low, high = run["spearman_range"]
        assert low - 1e-12 <= found[-1] <= high + 1e-12
        assert run["last_slope"] < run["last_upper"]
        assert all(a != b for a, b in itertools.pairwise(frequencies))
    assert result["figures"]["median_spearman"] == pytest.approx(float(np.median(found)), abs=1e-12)
