"""mnist1d-evolution: the recipe, the measurement and the verdict; and the data that the studies share."""

from __future__ import annotations

import copy
import random
from itertools import islice

import numpy as np
import pytest
import torch

from harness.expect import expect_close
from lipscope.claims.errors import Interrupted, UsageError
from lipscope.claims.progress import silent
from lipscope.studies.data import digits, mnist1d
from lipscope.studies.mnist1d_evolution import PUBLISHED, STUDY, Settings, measure, network, training
from lipscope.studies.study import stored
from studies.tiny_data import small


def test_the_data_have_their_published_form_and_leave_no_trace() -> None:
    random.seed(1)
    np.random.seed(1)
    state, numpy_state = random.getstate(), np.random.get_state()[1].copy()
    data = mnist1d()
    assert random.getstate() == state and np.array_equal(np.random.get_state()[1], numpy_state)
    assert data.x.shape == (4000, 40) and data.x_test.shape == (1000, 40)
    assert data.x.dtype == torch.float32 and data.y.dtype == torch.int64
    everything = torch.cat([data.x, data.x_test]).double()
    assert abs(float(everything.mean())) < 1e-6 and abs(float(everything.std(correction=0)) - 1) < 1e-6
    assert torch.equal(torch.cat([data.y, data.y_test]).bincount(), torch.full((10,), 500))


def test_digits_are_split_without_loss() -> None:
    data = digits(1000, seed=3)
    assert data.x.shape == (1000, 64) and data.x_test.shape == (797, 64)
    assert float(data.x.min()) == 0 and float(data.x.max()) == 1
    rows = torch.cat([data.x, data.x_test])
    other = digits(1000, seed=4)
    assert not torch.equal(other.x, data.x)
    assert torch.equal(rows.sum(), torch.cat([other.x, other.x_test]).sum())
    for wrong in (0, 1797):
        with pytest.raises(UsageError, match="1796"):
            digits(wrong)


def test_training_is_the_recipe_step_by_step() -> None:
    """Three epochs against the update written out: fixed order, short last batch, warm-up, clipped gradient."""
    settings = Settings(width=8, batch=4, warm_up=5, clip=0.05, learning_rate=0.3)
    data, model = small(), network(settings)
    slow = copy.deepcopy(model)
    assert list(islice(training(settings, model, data), 4)) == [0, 1, 2, 3]
    order, update = np.random.RandomState(42).permutation(10), 0
    for _ in range(3):
        for rows in (order[:4], order[4:8], order[8:]):
            update += 1
            loss = torch.nn.functional.cross_entropy(slow(data.x[rows]), data.y[rows])
            gradients = torch.autograd.grad(loss, list(slow.parameters()))
            norm = float(torch.cat([g.reshape(-1) for g in gradients]).norm())
            rate = 0.3 * min(update, 5) / 5
            with torch.no_grad():
                for parameter, gradient in zip(slow.parameters(), gradients, strict=True):
                    parameter -= rate * gradient * min(1.0, 0.05 / (norm + 1e-6))
    for found, truth in zip(model.parameters(), slow.parameters(), strict=True):
        np.testing.assert_allclose(found.detach(), truth.detach(), atol=1e-6)


def test_a_short_run_is_an_ordered_sandwich_that_begins_as_published() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    figures = measure(Settings(epochs=(0, 2)), silent)
    assert torch.equal(torch.get_rng_state(), before)
    rows = figures["by_epoch"]
    assert list(rows) == ["0", "2"]
    for row in rows.values():
        assert row["c_avg"] <= row["c_lower"] <= row["c_upper"]
    expect_close(rows["0"]["c_lower"], PUBLISHED[0], 0.005)  # 0.3702 against three published digits
    expect_close(figures["growth"]["c_upper"], rows["2"]["c_upper"] / rows["0"]["c_upper"], 1e-15)


def test_stopped_it_keeps_the_epochs_that_were_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipscope.studies.mnist1d_evolution.mnist1d", small)

    def stop(message: str, fraction: float) -> None:
        if message == "epoch 20":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        measure(Settings(width=4, epochs=(0, 5, 30)), stop)
    assert list(stopped.value.result["by_epoch"]) == ["0", "5"]
    outcome = STUDY.run(Settings(width=4, epochs=(0, 5, 30)), stop)
    assert outcome.interrupted and outcome.holds is None and list(outcome.figures["by_epoch"]) == ["0", "5"]


def rows(**change: float) -> dict[str, object]:
    made = {str(e): {"c_avg": v / 2, "c_lower": v, "c_upper": 2 * v} for e, v in PUBLISHED.items()}
    return {"by_epoch": {**made, "3000": {**made["3000"], **change}}}


def test_the_verdict() -> None:
    assert STUDY.judge(rows(), Settings()) is True
    assert STUDY.judge(rows(c_lower=5.775 * 1.019), Settings()) is True
    assert STUDY.judge(rows(c_lower=5.775 * 1.021), Settings()) is False
    assert STUDY.judge(rows(c_lower=5.775 * 0.979), Settings()) is False
    assert STUDY.judge(rows(c_upper=7.0), Settings()) is False  # the product shrinks from epoch 2000
    assert STUDY.judge(rows(c_upper=5.0), Settings(width=3)) is False  # below the lower value: wrong in any run
    assert STUDY.judge(rows(c_avg=6.0), Settings(width=3)) is False
    assert STUDY.judge(rows(), Settings(width=3)) is None
    assert STUDY.judge(rows(), Settings(tolerance=1e-9)) is True


def test_the_stored_run_has_the_published_figures() -> None:
    result = stored("mnist1d-evolution")
    assert result is not None and result["holds"] is True
    for epoch in (1000, 2000, 3000):
        expect_close(result["figures"]["by_epoch"][str(epoch)]["c_lower"], PUBLISHED[epoch], 0.02, str(epoch))


@pytest.mark.parametrize(
    "wrong", [{"epochs": ()}, {"epochs": (3, 3)}, {"epochs": (-1, 2)}, {"width": 0}, {"clip": 0.0}]
)
def test_settings_without_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Settings(**wrong)
