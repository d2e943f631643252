"""The driver: what it reports at each step, and that training does not notice it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynamics.training import data as data_of_observer
from dynamics.training import train
from lipscope.claims.errors import ModelError, UsageError
from lipscope.claims.quantity import Reading
from lipscope.dynamics.identity import SPLIT_TERMS, UPDATE_TERMS
from lipscope.dynamics.store import open_run
from lipscope.dynamics.track import IdentityTracker


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.2),
        nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, 3),
    )  # fmt: skip


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


def data(shape: tuple[int, ...], count: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(count, *shape, generator=generator), torch.randint(3, (count,), generator=generator)


Step = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor], None]


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()


def accumulated(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    for part in (slice(0, 4), slice(4, None)):
        (nn.functional.cross_entropy(model(x[part]), y[part]) / 2).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)


def mixed(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = nn.functional.cross_entropy(model(x), y)
    value.backward()


SETTINGS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[Any], torch.optim.Optimizer], Step, bool]] = {
    "sgd and reference": (dense, (6,), lambda p: torch.optim.SGD(p, lr=0.1), plain, True),
    "convolutions": (convolutional, (1, 4, 4), lambda p: torch.optim.SGD(p, lr=0.05), plain, True),
    "momentum, accumulation, clipping": (convolutional, (1, 4, 4), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True), accumulated, True),
    "adamw, bfloat16": (convolutional, (1, 4, 4), lambda p: torch.optim.AdamW(p, lr=0.01), mixed, False),
    "tied": (Tied, (6,), lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1), plain, True),
    "rmsprop": (dense, (6,), lambda p: torch.optim.RMSprop(p, lr=0.01), plain, False),
}  # fmt: skip


def run(name: str, watched: bool) -> tuple[dict[str, Tensor], list[Any], list[Any]]:
    """State after four steps: model, gradients, optimizer; random states."""
    make, shape, optimizer_of, forward, referenced = SETTINGS[name]
    torch.manual_seed(5)
    np.random.seed(5)
    model = make()
    optimizer, (x, y) = optimizer_of(model.parameters()), data(shape)
    tracker = None
    if watched:
        loss = nn.CrossEntropyLoss()
        tracker = IdentityTracker(model, optimizer, probe=x[:3], loss=loss, reference=(x, y) if referenced else None)
    for step in range(4):
        forward(model, optimizer, x[step * 6 : step * 6 + 6], y[step * 6 : step * 6 + 6])
        if tracker:
            tracker.before_step()
        optimizer.step()
        if tracker:
            assert math.isfinite(tracker.after_step().change)
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = [v for s in optimizer.state_dict()["state"].values() for v in s.values()]
    random = [torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].astype(np.int64))]  # type: ignore[index,union-attr]
    return dict(model.state_dict()), [*gradients, *state], random


@pytest.mark.parametrize("name", SETTINGS)
def test_training_is_bit_identical(name: str) -> None:
    (model, rest, random), (model_, rest_, random_) = run(name, False), run(name, True)
    assert model.keys() == model_.keys()
    assert all(torch.equal(model[k], model_[k]) for k in model)
    assert len(rest) == len(rest_)
    assert all(
        (a is None) == (b is None) and (a is None or torch.equal(torch.as_tensor(a), torch.as_tensor(b)))
        for a, b in zip(rest, rest_, strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(random, random_, strict=True))


def tracked(
    model: nn.Module, shape: tuple[int, ...], optimizer: torch.optim.Optimizer, reference: bool = False
) -> tuple[IdentityTracker, Tensor, Tensor]:
    x, y = data(shape)
    loss = nn.CrossEntropyLoss()
    return IdentityTracker(model, optimizer, probe=x[:2], loss=loss, reference=(x, y) if reference else None), x, y


def one_step(tracker: IdentityTracker, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Any:
    plain(model, optimizer, x, y)
    tracker.before_step()
    optimizer.step()
    return tracker.after_step()


def test_a_full_batch_has_no_noise() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = data((6,))
    x = x.double()
    tracker = IdentityTracker(model, optimizer, probe=x, loss=nn.CrossEntropyLoss(), reference=(x, y))
    step = one_step(tracker, model, optimizer, x, y)
    assert set(step.terms) == set(SPLIT_TERMS)
    assert abs(step.terms["noise"]) < 1e-14 and step.terms["noise_curvature"] < 1e-20
    assert abs(step.terms["flow"]) > 1e-4
    assert abs(step.residual) < 1e-3 * abs(step.change)


def test_log_product_counts_every_factor() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker, x, y = tracked(model, (6,), optimizer)
    norms = [float(torch.linalg.matrix_norm(model[i].weight.detach().double(), 2)) for i in (0, 2)]
    step = one_step(tracker, model, optimizer, x, y)
    assert step.log_product == pytest.approx(math.log(norms[0]) + math.log(norms[1]) + math.log(1.128904145185))
    assert step.log_product_after - step.log_product == pytest.approx(step.change, abs=1e-12)
    assert step.change == pytest.approx(sum(step.terms.values()) + step.residual, abs=1e-14)
    assert set(step.terms) == set(UPDATE_TERMS)


def test_statistics_and_unobserved_steps_are_outside() -> None:
    torch.manual_seed(0)
    model = convolutional()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    tracker, x, y = tracked(model, (1, 4, 4), optimizer)
    first = one_step(tracker, model, optimizer, x, y)
    assert first.outside == 0
    model(x)  # moves the running statistics
    between = one_step(tracker, model, optimizer, x, y)
    assert between.outside == pytest.approx(between.log_product - first.log_product_after) and between.outside != 0
    plain(model, optimizer, x, y)
    optimizer.step()
    tracker.skip_step()
    last = one_step(tracker, model, optimizer, x, y)
    totals = tracker.totals
    assert totals.share == 0.75 and (totals.steps, totals.observed) == (4, 3)
    assert totals.change + totals.outside == pytest.approx(last.log_product_after - first.log_product, abs=1e-9)


def test_unknown_modules_make_the_product_infinite_and_the_layers_stay() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.scale = nn.Linear(6, 3), nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * self.scale

    model = Odd()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker, x, y = tracked(model, (6,), optimizer)
    step = one_step(tracker, model, optimizer, x, y)
    assert step.log_product == math.inf and math.isfinite(step.change)
    (product,) = [r for r in tracker.readings(step) if r.name == "log_product"]
    assert product.value == math.inf and "'model'" in product.note
    assert any("'model'" in note for note in step.notes)


def test_frozen_layers_missing_gradients_and_unheld_parameters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD([*model[0].parameters(), *model[4].parameters()], lr=0.1)
    tracker, x, y = tracked(model, (6,), optimizer)
    assert any("'0' is frozen" in n for n in tracker.notes) and any("'2' is frozen" in n for n in tracker.notes)
    step = one_step(tracker, model, optimizer, x, y)
    still, held, moved = step.layers
    assert still.change == held.change == 0 and moved.change != 0
    optimizer.zero_grad()
    tracker.before_step()
    optimizer.step()
    quiet = tracker.after_step()
    assert quiet.change == 0 and "no gradient" in quiet.layers[2].note


def test_weights_that_are_not_numbers_stop_nothing() -> None:
    torch.manual_seed(0)
    model = dense()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker, x, y = tracked(model, (6,), optimizer)
    one_step(tracker, model, optimizer, x, y)
    with torch.no_grad():
        model[3].weight[0, 0] = math.nan
    step = one_step(tracker, model, optimizer, x, y)
    assert math.isnan(step.change) and "not finite" in step.layers[1].note
    assert tracker.totals.undefined == 1 and math.isfinite(tracker.totals.change)
    assert all(isinstance(r, Reading) for r in tracker.readings(step))


def test_zero_weights_stop_nothing() -> None:
    torch.manual_seed(0)
    model = dense()
    nn.init.zeros_(model[3].weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker, x, y = tracked(model, (6,), optimizer)
    step = one_step(tracker, model, optimizer, x, y)
    assert step.layers[1].norm == 0 and math.isnan(step.layers[1].change)
    assert math.isfinite(one_step(tracker, model, optimizer, x, y).change)


def test_closures_of_optimizers_are_only_seen_from_outside() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3)).double()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)
    x, y = data((6,))
    x = x.double()
    tracker = IdentityTracker(model, optimizer, probe=x)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(model(x), y)
        value.backward()
        return value

    tracker.before_step()
    optimizer.step(closure)
    step = tracker.after_step()
    assert step.terms["gradient"] == 0 and step.terms["remainder"] != 0
    assert abs(step.residual) < 0.2 * abs(step.change)


def test_momentum_and_decay_have_their_shares() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    x, y = data((6,))
    tracker = IdentityTracker(model, optimizer, probe=x.double(), loss=nn.CrossEntropyLoss(), reference=(x.double(), y))
    assert any("not plain SGD" in n for n in tracker.notes)
    one_step(tracker, model, optimizer, x.double(), y)
    step = one_step(tracker, model, optimizer, x.double(), y)
    assert step.terms["decay"] == pytest.approx(-0.05 * 0.1, rel=1e-9)  # D[W] = sigma
    assert step.terms["momentum"] != 0 and abs(step.terms["remainder"]) < 1e-12


def test_tied_weights_are_two_factors_with_one_update() -> None:
    torch.manual_seed(0)
    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker, x, y = tracked(model, (6,), optimizer, reference=True)
    step = one_step(tracker, model, optimizer, x, y)
    a, b, _ = step.layers
    assert a.change == b.change != 0 and a.terms == b.terms
    assert abs(a.residual) < 0.05 * abs(a.change)


def test_the_reference_gradient_is_that_of_the_mode_of_training() -> None:
    """With BatchNorm in train mode a full batch has no noise either, and its statistics move once a step, not twice."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = data((6,))
    x = x.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = IdentityTracker(model, optimizer, probe=x, loss=nn.CrossEntropyLoss(), reference=(x, y))
    step = one_step(tracker, model, optimizer, x, y)
    assert abs(step.terms["noise"]) < 1e-13
    assert int(model[1].num_batches_tracked) == 1


def test_wrappers_are_looked_through() -> None:
    torch.manual_seed(0)
    model = dense()
    wrapped = nn.DataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, _ = data((6,))
    assert [f.name for f in IdentityTracker(wrapped, optimizer, probe=x).factors][:1] == ["0"]


def test_readings_have_names_and_say_how_sure_they_are() -> None:
    torch.manual_seed(0)
    model = dense()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker, x, y = tracked(model, (6,), optimizer, reference=True)
    readings = tracker.readings(one_step(tracker, model, optimizer, x, y))
    layer = {r.name for r in readings if r.layer == "0"}
    network = {r.name for r in readings if not r.layer}
    assert layer == {"norm", "gap", "q_ratio", "change", "residual", *SPLIT_TERMS}
    assert network == {
        "log_product", "change", "residual", "outside", "observed_share", *SPLIT_TERMS,
        "total_change", "total_residual", "total_outside", *(f"total_{t}" for t in SPLIT_TERMS),
    }  # fmt: skip
    assert {r.certainty for r in readings if r.name in ("norm", "log_product", "gap")} == {"estimate"}
    assert not any(r.certainty in ("certified", "computed") for r in readings)


def test_totals_go_on_after_a_restart() -> None:
    torch.manual_seed(0)
    model = dense()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker, x, y = tracked(model, (6,), optimizer)
    one_step(tracker, model, optimizer, x, y)
    state = json.loads(json.dumps(tracker.state_dict()))
    again, _, _ = tracked(model, (6,), optimizer)
    again.load_state_dict(copy.deepcopy(state))
    assert again.totals == tracker.totals
    one_step(again, model, optimizer, x, y)
    assert again.totals.observed == 2 and tracker.totals.observed == 1
    with pytest.raises(UsageError, match="state of an IdentityTracker"):
        again.load_state_dict({"steps": 1})


def test_wrong_use() -> None:
    model = dense()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = data((6,))
    with pytest.raises(UsageError, match="loss with a reference"):
        IdentityTracker(model, optimizer, probe=x, reference=(x, y))
    with pytest.raises(ModelError, match="probe"):
        IdentityTracker(model, optimizer, probe=torch.zeros(2, 7))
    tracker = IdentityTracker(model, optimizer, probe=x)
    with pytest.raises(UsageError, match="before_step"):
        tracker.after_step()
    tracker.before_step()
    tracker.skip_step()
    with pytest.raises(UsageError, match="before_step"):
        tracker.after_step()


def test_statistics_that_move_within_a_step_are_no_part_of_it() -> None:
    torch.manual_seed(0)
    model = convolutional()
    optimizer = torch.optim.SGD([p for name, p in model.named_parameters() if not name.startswith("1.")], lr=0.05)
    tracker, x, y = tracked(model, (1, 4, 4), optimizer)
    plain(model, optimizer, x, y)
    tracker.before_step()
    model(x)  # as a closure does; moves the running statistics
    optimizer.step()
    step = tracker.after_step()
    norm = next(layer for layer in step.layers if layer.kind == "BatchNorm2d")
    assert norm.change == 0 and norm.norm == norm.norm_after
    plain(model, optimizer, x, y)
    tracker.before_step()
    optimizer.step()
    assert tracker.after_step().outside != 0


def test_a_rehearsal_computes_what_a_step_does_and_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost that it shows is a real one: every layer is expanded, twice in a row; sums and weights stay as they were."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = IdentityTracker(model, optimizer, probe=torch.randn(4, 6))
    model(torch.randn(4, 6)).square().mean().backward()
    tracker.before_step()
    optimizer.step()
    tracker.after_step()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = tracker.state_dict()
    expanded: list[str] = []
    layer = tracker._layer
    monkeypatch.setattr(tracker, "_layer", lambda factor, *rest: expanded.append(factor.name) or layer(factor, *rest))
    kinds = [type(operator) for _, operator in tracker._followed]
    calls = []
    for kind in set(kinds):
        expand = kind.expand
        monkeypatch.setattr(kind, "expand", lambda self, *a, expand=expand: calls.append(1) or expand(self, *a))
    tracker.rehearse()
    first = len(calls)
    tracker.rehearse()
    assert first >= 2, "both layers were expanded anew"
    assert len(calls) - first >= 2, "and again: a rehearsal is never answered from memory"
    assert expanded == ["0", "2", "0", "2"]
    assert tracker.state_dict() == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_observer_needs_no_reference_and_says_which_terms_it_has(tmp_path: Path) -> None:
    x, y = data_of_observer()
    for name, options, terms in (("without", {}, UPDATE_TERMS), ("with", {"reference": (x, y)}, SPLIT_TERMS)):
        train(tmp_path / name, steps=3, **options)
        with open_run(tmp_path / name) as run:
            found = {s.name for s in run.all_series() if s.quantity == "identity" and s.layer == "0"}
            assert found == {"norm", "gap", "q_ratio", "change", "residual", *terms}
            values = [run.series(term, "", "identity").value for term in (*terms, "residual")]
            assert sum(values) == pytest.approx(run.series("change", "", "identity").value, abs=1e-13)
            assert run.series("observed_share", "", "identity").value.tolist() == [1.0, 1.0, 1.0]


def test_a_step_whose_gradients_come_later_is_taken_as_a_whole() -> None:
    """The stale gradient must not be taken for that of the step, and no gradient of the reference is computed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    x, y = data((6,))
    tracker = IdentityTracker(model, optimizer, probe=x.double(), loss=nn.CrossEntropyLoss(), reference=(x.double(), y))
    plain(model, optimizer, x.double()[:4], y[:4])
    tracker.before_step(closure=True)
    for parameter in model.parameters():
        parameter.grad = -3 * parameter.grad  # as clipping or a closure does
    optimizer.step()
    step = tracker.after_step()
    assert step.terms["gradient"] == 0 and "flow" not in step.terms
    assert step.terms["remainder"] == pytest.approx(step.change, rel=0.05) and step.terms["remainder"] != 0
    assert abs(step.residual) < 1e-3 * abs(step.change)
    assert "remainder" in step.layers[0].note
