"""label-noise: labels, run and verdict."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch

from lipscope.claims.errors import UsageError
from lipscope.claims.progress import silent
from lipscope.studies.label_noise import STUDY, Settings, measure, relabelled
from lipscope.studies.study import stored

TINY = Settings(shares=(0.0, 1.0), seeds=(0, 1), widths=(8, 6), samples=64, steps=10)


def test_larger_shares_change_the_same_labels_and_more() -> None:
    labels = torch.arange(1000) % 10
    changed = [relabelled(labels, share, 0) != labels for share in (0.0, 0.25, 0.5, 1.0)]
    assert not bool(changed[0].any())
    for small, large in pairwise(changed):
        assert bool((large | ~small).all())
    assert 0.87 < float(changed[3].float().mean()) < 0.93 and 0.2 < float(changed[1].float().mean()) < 0.25
    assert torch.equal(relabelled(labels, 0.5, 1), relabelled(labels, 0.5, 1))
    assert not torch.equal(relabelled(labels, 0.5, 1), relabelled(labels, 0.5, 2))


def test_a_small_run_has_a_row_a_share() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    figures = measure(TINY, silent)
    assert torch.equal(torch.get_rng_state(), before)
    assert [row["share"] for row in figures["rows"]] == [0.0, 1.0] and len(figures["runs"]) == 4
    for row in figures["rows"]:
        mine = [run["change"] for run in figures["runs"] if run["share"] == row["share"]]
        assert row["change"] == pytest.approx(sum(mine) / 2) and row["change_sd"] > 0
    assert figures["seeds"] == 2 and STUDY.judge(figures, TINY) is None


def test_the_verdict_can_be_no_and_cannot_tell() -> None:
    result = stored("label-noise")
    assert result is not None
    figures, settings = result["figures"], STUDY.restore(result["settings"])
    assert STUDY.judge(figures, settings) is result["holds"]
    rising, split, few = (copy.deepcopy(figures) for _ in range(3))
    rising["rows"][1]["change"] = rising["rows"][0]["change"] + 1
    split["seeds_in_favour"] = split["seeds"] - 1
    few["seeds"] = 4
    assert STUDY.judge(rising, settings) is False and STUDY.judge(split, settings) is False
    assert STUDY.judge(few, settings) is None


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="rising"):
        Settings(shares=(0.5, 0.1))
    with pytest.raises(UsageError, match="rising"):
        Settings(shares=(0.5, 1.1))
