"""dynamics-identity: the run, the halving and the verdict."""

from __future__ import annotations

import copy

import pytest
import torch

from lipscope.claims.errors import Interrupted, UsageError
from lipscope.claims.progress import silent
from lipscope.studies import dynamics_identity
from lipscope.studies.data import digits
from lipscope.studies.dynamics_identity import STUDY, Settings, halving_ratios, measure, one_run
from lipscope.studies.study import stored

TINY = Settings(rates=(0.05,), batches=(8,), seeds=(0, 1), widths=(8, 6), samples=64, steps=8, halvings=2)


def test_the_terms_add_up_and_nothing_global_moves() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    figures = measure(TINY, silent)
    assert torch.equal(torch.get_rng_state(), before)
    assert [row["seed"] for row in figures["rows"]] == [0, 1]
    names = ("flow", "noise", "noise_curvature", "flow_curvature", "cross", "log_correction", "remainder", "residual")
    for row in figures["rows"]:
        assert sum(row[name] for name in names) == pytest.approx(row["change"], abs=1e-12)
        assert 0 < row["closure"] < 0.05 and row["observed"] == 1
    assert len(figures["halving_ratios"]) == 2
    assert STUDY.judge(figures, TINY) in (True, False)


def test_a_halved_step_goes_on_from_the_same_weights() -> None:
    """The states at which the order is measured are those of an undisturbed run: the ratios repeat themselves."""
    data = digits(64)
    one = halving_ratios(TINY, data.x, data.y)
    assert one == halving_ratios(TINY, data.x, data.y)
    assert all(5 < ratio < 12 for ratio in one)


def test_a_larger_rate_leaves_more_over() -> None:
    data = digits(64)
    small, large = (one_run(TINY, rate, 8, 0, data.x, data.y)["closure"] for rate in (0.01, 0.2))
    assert small < large


def test_the_verdict_can_be_no_and_cannot_tell() -> None:
    result = stored("dynamics-identity")
    assert result is not None
    figures, settings = result["figures"], STUDY.restore(result["settings"])
    assert STUDY.judge(figures, settings) is result["holds"]
    open_, order, unseen = (copy.deepcopy(figures) for _ in range(3))
    open_["median_closure"] = 0.02
    order["median_halving_ratio"] = 4.0
    unseen["rows"][0]["observed"] = 0.5
    assert STUDY.judge(open_, settings) is False and STUDY.judge(order, settings) is False
    assert STUDY.judge(unseen, settings) is None


def test_stopped_it_keeps_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dynamics_identity, "halving_ratios", stop)
    with pytest.raises(Interrupted) as stopped:
        measure(TINY, silent)
    assert len(stopped.value.result["rows"]) == 2  # type: ignore[index,call-overload]


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="at least one"):
        Settings(rates=())
    with pytest.raises(UsageError, match="batches"):
        Settings(batches=(2000,))
