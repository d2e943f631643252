"""initialisation: the network, the split of the variance and the verdict."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lipscope.claims.errors import UsageError
from lipscope.claims.progress import silent
from lipscope.studies.following import network
from lipscope.studies.initialisation import STUDY, Settings, measure, shares
from lipscope.studies.study import stored

TINY = Settings(scales=(0.5, 2.0), seeds=(0, 1), batch_seeds=(0, 1), widths=(8, 6), samples=64, steps=10)


def test_networks_are_he_normal_times_the_scale() -> None:
    one, two = network((400, 300, 10), 0), network((400, 300, 10), 0, 2.0)
    assert [type(m) for m in one] == [nn.Linear, nn.ReLU, nn.Linear]
    assert torch.equal(two[0].weight, 2 * one[0].weight) and not bool(two[0].bias.any())
    assert float(one[0].weight.detach().std()) == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert not torch.equal(one[0].weight, network((400, 300, 10), 1)[0].weight)


def test_shares_of_the_variance_add_up() -> None:
    def runs(of: object) -> list[dict[str, float]]:
        keys = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
        return [{"scale": a, "seed": b, "batch_seed": c, "end": of(a, b, c)} for a, b, c in keys]  # type: ignore[operator]

    assert shares(runs(lambda a, b, c: 5.0 * a)) == {"scale": 1.0, "seed": 0.0, "batches": 0.0}
    assert shares(runs(lambda a, b, c: 1.0 * c)) == {"scale": 0.0, "seed": 0.0, "batches": 1.0}
    assert shares(runs(lambda a, b, c: 1.0)) == {"scale": 0.0, "seed": 0.0, "batches": 0.0}
    mixed = shares(runs(lambda a, b, c: 2.0 * a + b))
    assert mixed == {"scale": pytest.approx(0.8), "seed": pytest.approx(0.2), "batches": pytest.approx(0.0)}


def test_a_small_run_has_a_row_a_scale() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    figures = measure(TINY, silent)
    assert torch.equal(torch.get_rng_state(), before)
    assert [row["scale"] for row in figures["rows"]] == [0.5, 2.0] and len(figures["runs"]) == 8
    for row in figures["rows"]:
        assert row["lowest"] <= row["end"] <= row["highest"]
    starts = [row["start"] for row in figures["rows"]]
    assert starts[1] - starts[0] == pytest.approx(3 * torch.log(torch.tensor(4.0)).item(), rel=1e-5)
    assert STUDY.judge(figures, TINY) is None


def test_the_verdict_can_be_no_and_cannot_tell() -> None:
    result = stored("initialisation")
    assert result is not None
    figures, settings = result["figures"], STUDY.restore(result["settings"])
    assert STUDY.judge(figures, settings) is result["holds"]
    overlapping, weak, few = (copy.deepcopy(figures) for _ in range(3))
    overlapping["rows"][0]["highest"] = overlapping["rows"][1]["lowest"] + 1
    weak["variance"]["scale"] = 0.5
    few["runs"] = [run for run in few["runs"] if run["seed"] == 0]
    assert STUDY.judge(overlapping, settings) is False and STUDY.judge(weak, settings) is False
    assert STUDY.judge(few, settings) is None


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="rising"):
        Settings(scales=(1.0, 0.5))
    with pytest.raises(UsageError, match="seed"):
        Settings(seeds=())
