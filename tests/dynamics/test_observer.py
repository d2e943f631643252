"""What the observer says about a training, and what it says to wrong use."""

from __future__ import annotations

import csv
import itertools
import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynamics.training import LOSS, data, frozen_clock, mlp, plain, seeded, train
from lipscope.api import bound, load
from lipscope.claims.errors import ModelError, UsageError
from lipscope.claims.quantity import Moment, Quantity, Reading
from lipscope.dynamics import Observer, ObserverWarning, export_csv, open_run, replay
from lipscope.dynamics.budget import PRESETS
from lipscope.dynamics.export import COLUMNS
from lipscope.dynamics.quantities import TABLE, scene
from lipscope.dynamics.quantities.probe import affordable
from lipscope.dynamics.quantities.scene import Scene, Subject
from lipscope.dynamics.quantities.spectrum import spectrum_readings
from lipscope.dynamics.quantities.upper import certified_radius
from lipscope.dynamics.recorder import Entry, Recorder
from lipscope.dynamics.store import Run
from lipscope.dynamics.view import View


def observed(folder: Path, model: nn.Module, steps: int = 5, loop: Any = plain, **options: Any) -> Run:
    x, y = data()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with (
        seeded(),
        Observer(model, optimizer, **{"loss": LOSS, "probe": (x, y), "run": folder, "clock": frozen_clock, **options}),
    ):
        for step in range(steps):
            loop(model, optimizer, x, y, step)
    return open_run(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[dict[str, Tensor]], nn.Module]:
    """A run in which everything was read, and the weights at every step."""
    with seeded():
        model = mlp()
    states = [{k: v.clone() for k, v in model.state_dict().items()}]

    def kept(m: nn.Module, o: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
        plain(m, o, x, y, step)
        states.append({k: v.clone() for k, v in m.state_dict().items()})

    run = observed(tmp_path_factory.mktemp("run"), model, 15, kept, reference=data(2))
    return run, states, model


def test_every_quantity_of_the_table_has_readings(whole: tuple[Run, list[dict[str, Tensor]], nn.Module]) -> None:
    run, _, _ = whole
    # Without micro-batches or ranks there are no parts of a batch to tell apart; no bound is carried far enough to be loose.
    silent = {"batch-noise", "norm-renewals"}
    assert {series.quantity for series in run.all_series()} == {*TABLE, "observer"} - silent
    assert [e.message for e in run.events() if e.kind == "trouble"] == []
    for series in run.all_series():
        assert np.isfinite(series.value).any(), (series.quantity, series.name, series.layer)
    assert run.steps.tolist() == list(range(16))
    assert run.series("steps_read").value[-1] == 1.0, "every step was read"
    assert {row.group for row in TABLE.values()} == set(PRESETS["default"].groups)


def test_the_sandwich_holds_at_every_moment(whole: tuple[Run, list[dict[str, Tensor]], nn.Module]) -> None:
    run, states, _ = whole
    mean, lower, upper = (run.series(name) for name in ("mean", "lower", "upper"))
    assert lower.step.tolist()[:8] == list(range(8)) and len(upper) >= 3
    assert (mean.value <= lower.value).all()
    at = dict(zip(lower.step.tolist(), lower.value.tolist(), strict=True))
    for step, value, certainty in zip(upper.step.tolist(), upper.value.tolist(), upper.certainty, strict=True):
        assert at.get(step, 0.0) <= value * (1 + 1e-6) and certainty == "computed"
        twin = mlp().eval()
        twin.load_state_dict(states[step])
        proved = bound(load(twin.double(), input_shape=(6,)), budget=2.0, check=False)
        assert proved.lower <= value <= 1.05 * (proved.upper.value or math.inf)
    assert set(lower.samples) == {32} and "eval mode, float32, 32 probe points" in lower.note[0]


def test_norms_are_those_of_the_weights(whole: tuple[Run, list[dict[str, Tensor]], nn.Module]) -> None:
    run, states, _ = whole
    for layer in ("0", "2"):
        exact = np.array([torch.linalg.matrix_norm(s[f"{layer}.weight"].double(), 2).item() for s in states])
        norm, upper = run.series("norm", layer, "layer-norms"), run.series("norm_upper", layer, "layer-norms")
        assert (norm.value <= exact[norm.step] * (1 + 1e-5)).all() and (norm.value >= 0.9 * exact[norm.step]).all()
        assert len(upper) >= 15 and (upper.value >= exact[upper.step]).all()
        path = run.series("path_length", layer)
        jumps = [
            math.hypot(*(float((b[k].double() - a[k].double()).norm()) for k in (f"{layer}.weight", f"{layer}.bias")))
            for a, b in itertools.pairwise(states)
        ]
        assert path.value.tolist() == pytest.approx(np.cumsum(jumps).tolist(), rel=1e-4)
        assert run.series("update_norm", layer).value.tolist() == pytest.approx(jumps, rel=1e-4)


def test_how_much_was_read_is_logged(tmp_path: Path) -> None:
    """With a clock that training alone moves: two seconds a step."""
    now = [0.0]
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = data()
    with Observer(model, optimizer, probe=(x, y), run=tmp_path, preset="lite", start_step=5, clock=lambda: now[0]):
        for _ in range(4):
            optimizer.zero_grad()
            LOSS(model(x), y).backward()
            now[0] += 2.0
            optimizer.step()
    with open_run(tmp_path) as run:
        during = [s for s in run.all_series() if s.quantity != "observer"]
        last = run.steps[-1]
        # The last step is also read once more on leaving, which comes twice in the store and is no part of the loop.
        before = sum(int(((s.step > 5) & (s.step < last)).sum()) for s in during)
        share, rate = run.series("steps_read"), run.series("values_per_minute")
        assert share.value[-1] == 1.0 and "this session's steps" in share.note[-1]
        at = rate.value[rate.step == last - 1][-1]
        assert at == pytest.approx(before / (2.0 * 3 / 60)) and "of training" in rate.note[-1]


@pytest.mark.parametrize("own_data", [False, True])
def test_noise_levels_are_those_of_single_gradients(own_data: bool, tmp_path: Path) -> None:
    """Against one backward pass a sample, for the layers that are trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    model[2].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    x, y = data()
    reference = (x[:12] * 3, y[:12]) if own_data else None
    with Observer(model, optimizer, loss=LOSS, probe=(x, y), reference=reference, run=tmp_path):
        pass
    inputs, targets = reference or (x, y)
    count = len(inputs)
    with open_run(tmp_path) as run:
        assert run.layers("drift") == ["0", "4"]
        joint = torch.zeros(count, dtype=torch.float64)
        for layer in ("0", "4"):
            weight = model[int(layer)].weight
            assert isinstance(weight, nn.Parameter)
            u, s, v = torch.linalg.svd(weight.detach().double())
            single = [
                torch.autograd.grad(LOSS(model(a[None]), b[None]), weight)[0]
                for a, b in zip(inputs, targets, strict=True)
            ]
            seen = torch.stack([u[:, 0] @ g.double() @ v[0] for g in single])
            joint += seen / s[0]
            expected = {"drift": float(seen.mean()), "diffusion": float(seen.var()) / count}
            for name, value in expected.items():
                series = run.series(name, layer)
                assert series.value[-1] == pytest.approx(value, rel=1e-4), (name, layer)
                assert series.certainty[-1] == "estimate" and series.samples[-1] == count
                note = series.note[-1]
                assert f"{count} {'points of reference=' if own_data else 'probe points'}" in note
                assert (
                    f"[{float(inputs.min()):.4g}, {float(inputs.max()):.4g}]" in note and f"batches of {count}" in note
                )
            assert run.series("noise_curvature_level", layer).value[-1] > 0
        assert run.series("diffusion").value[-1] == pytest.approx(float(joint.var()) / count, rel=1e-4)
    assert all(p.grad is None for p in model.parameters())


def test_margins_and_loss_are_those_of_the_probe(whole: tuple[Run, list[dict[str, Tensor]], nn.Module]) -> None:
    run, states, _ = whole
    model = mlp().eval()
    x, y = data()
    for step in (0, 15):
        model.load_state_dict(states[step])
        with torch.no_grad():
            out = model(x)
        margins = sorted(
            float(o[t] - max(o[i] for i in range(3) if i != t)) for o, t in zip(out, y.tolist(), strict=True)
        )
        expected = {
            "probe_loss": float(LOSS(out, y)), "accuracy": float((out.argmax(1) == y).float().mean()),
            "margin_mean": sum(margins) / 32, "margin_p50": (margins[15] + margins[16]) / 2,
        }  # fmt: skip
        for name, value in expected.items():
            series = run.series(name)
            assert series.value[series.step == step][0] == pytest.approx(value, abs=1e-6), name


def test_certified_radii_are_margins_over_the_bound() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([3.0, 3.0])))  # type: ignore[operator]
    graph = load(model, input_shape=(2,)).graph
    radius = certified_radius(graph, torch.tensor([1.0, 0.0]), 0, math.sqrt(2) * 3)
    assert 0.999 / math.sqrt(2) < radius <= 1 / math.sqrt(2)  # the boundary x0 = x1 is that far away
    assert certified_radius(graph, torch.tensor([1.0, 0.0]), 1, 3.0) == 0.0
    assert certified_radius(graph, torch.tensor([1.0, 1.0]), 1, 3.0) == 0.0


def test_a_network_with_many_outputs_is_looked_at_in_fewer_points() -> None:
    inputs = torch.zeros(200, 2)
    for outputs, points in ((1, 64), (64, 64), (128, 32), (5000, 2)):
        view = View(nn.Linear(2, outputs))
        moment = Scene(0, view.model, inputs, None, None, torch.Generator(), Subject(view, inputs, []), "")
        assert affordable(moment) == points


def test_ranks_of_known_spectra() -> None:
    values = torch.tensor([1.0, 0.5, 1e-3, 1e-5, 0.0])
    found = {r.name: r.value for r in spectrum_readings(torch.diag(values)[None], "", "")}
    assert (found["rank_1e-2"], found["rank_1e-4"], found["rank_1e-6"]) == (2, 3, 4)
    assert found["stable_rank"] == pytest.approx(1.25, rel=1e-5) and found["singular_value_2"] == pytest.approx(0.5)
    same = {r.name: r.value for r in spectrum_readings(torch.eye(4)[None].repeat(3, 1, 1), "", "")}
    assert (same["stable_rank"], same["rank_1e-2"]) == (4, 4) and same["entropy_rank"] == pytest.approx(4)
    none = {r.name: r.value for r in spectrum_readings(torch.zeros(2, 3, 5), "", "")}
    assert (none["stable_rank"], none["rank_1e-6"], none["entropy_rank"]) == (0, 0, 0)
    wide = torch.randn(1, 200, 150, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = {r.name: r.value for r in spectrum_readings(wide, "", "")}
    assert found["singular_value_3"] == pytest.approx(float(torch.linalg.svdvals(wide)[0, 2]), rel=1e-10)


# ---------------------------------------------------------------------------------------------------- life of a run


@pytest.fixture
def no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise ModelError("left out in this test")

    monkeypatch.setattr(scene, "Template", refuse)


def test_an_operation_without_a_rule_makes_the_bound_infinite_and_is_named(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.strange = nn.Linear(6, 3), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return torch.lgamma(1 + self.strange(self.inner(x)).abs())

    with observed(tmp_path, Odd(), 2) as run:
        assert run.series("upper").value.tolist()[0] == math.inf
        assert "lgamma" in run.series("upper").note[0]
        assert ["lgamma" in a.message for a in run.alerts() if a.kind == "not-certifiable"] == [True]
        assert len(run.series("lower")) == 3, "everything else goes on"


def test_a_model_that_cannot_be_exported_has_no_bound_and_all_the_rest(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if x.detach().abs().sum() >= 0 else 2 * self.inner(x)  # always the first

    with observed(tmp_path, Branches(), 2) as run:
        upper = run.series("upper")
        assert np.isnan(upper.value).all() and "does not depend on the values of its input" in upper.note[0]
        assert len(run.series("lower")) == 3 and len(run.series("norm_upper", "inner", "norm-proofs")) >= 1


@pytest.mark.usefixtures("no_graph")
def test_a_continued_run_goes_on_where_it_was(tmp_path: Path) -> None:
    with seeded():
        model = mlp()
    observed(tmp_path, model, 4).close()
    with observed(tmp_path, model, 3) as run:
        assert run.steps.tolist() == list(range(8)) and len(run.sessions) == 2
        assert [e.kind for e in run.events() if e.kind in ("started", "resumed", "finished")] == [
            "started", "finished", "resumed", "finished",
        ]  # fmt: skip
    with observed(tmp_path, model, 1, start_step=2) as run:
        assert run.last_step == 3


@pytest.mark.usefixtures("no_graph")
def test_the_sums_of_the_identity_go_on_with_the_run(tmp_path: Path) -> None:
    with seeded():
        model = mlp()
    with observed(tmp_path / "a", model, 4) as run:
        before = run.series("total_change").value[-1]
        assert run.meta["kept-identity"]["step"] == 4
    with observed(tmp_path / "a", model, 3) as run:
        total, change = run.series("total_change"), run.series("change", "", "identity")
        assert total.step.tolist() == [1, 2, 3, 5, 6, 7]  # step 4 is seen as the second session began with it
        assert total.value[3:].tolist() == pytest.approx((before + np.cumsum(change.value[3:])).tolist(), abs=1e-12)
        kept = run.meta["kept-identity"]["totals"]
        assert kept["observed"] == kept["steps"] == 7
        product = run.series("log_product", "", "identity").value
        assert total.value[-1] + run.series("total_outside").value[-1] == pytest.approx(
            product[-1] - product[0] + change.value[0], abs=1e-9
        )
    with observed(tmp_path / "a", model, 1, start_step=9) as run:  # two steps that nobody saw
        kept = run.meta["kept-identity"]["totals"]
        assert (kept["observed"], kept["steps"]) == (8, 10)
    with observed(tmp_path / "a", model, 2, start_step=3) as run:  # back to an earlier checkpoint
        assert run.meta["kept-identity"]["totals"]["observed"] == 2
        assert any("begin anew" in e.message for e in run.events() if e.kind == "totals")


@pytest.mark.usefixtures("no_graph")
def test_a_training_that_fails_leaves_a_run_that_says_so(tmp_path: Path) -> None:
    def fails(m: nn.Module, o: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
        plain(m, o, x, y, step)
        if step == 2:
            raise ZeroDivisionError("mine")

    model = mlp()
    with pytest.raises(ZeroDivisionError, match="mine"):
        observed(tmp_path, model, 5, fails)
    with open_run(tmp_path) as run:
        assert run.sessions[-1].state == "failed" and run.last_step == 3


@pytest.mark.usefixtures("no_graph")
def test_after_the_block_nothing_is_attached(tmp_path: Path) -> None:
    x, y = data()
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Observer(model, optimizer, loss=LOSS, probe=(x, y), run=tmp_path, clock=frozen_clock) as observer:
        plain(model, optimizer, x, y, 0)
    assert observer.step == 1
    plain(model, optimizer, x, y, 1)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    with open_run(tmp_path) as run:
        assert run.last_step == 1


@pytest.mark.usefixtures("no_graph")
def test_nan_weights_are_told_once_and_frozen_layers_do_not_move(tmp_path: Path) -> None:
    def breaks(m: nn.Module, o: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
        o.zero_grad()
        (LOSS(m(x), y) * (math.nan if step == 2 else 1.0)).backward()
        o.step()

    with observed(tmp_path / "nan", mlp(), 5, breaks) as run:
        assert [a.kind for a in run.alerts()].count("not-finite") == 1
        assert np.isnan(run.series("weight_norm").value[-1]) and run.series("lower").step.max() == 2
        assert [e for e in run.events() if e.kind == "trouble"] == []
    model = mlp()
    model[0].requires_grad_(False)
    with observed(tmp_path / "frozen", model, 3) as run:
        assert run.series("update_norm", "0").value.tolist() == [0, 0, 0]
        assert (run.series("update_norm", "2").value > 0).all()
        assert run.series("gradient_norm", "0").value.tolist() == [0, 0, 0]


@pytest.mark.usefixtures("no_graph")
def test_a_store_that_cannot_be_written_does_not_stop_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(ObserverWarning, match="cannot write the run") as caught:
        alone, with_it = train(None), train(tmp_path / "file" / "run")
    assert len(caught) == 1 and torch.equal(alone["state 0.weight"], with_it["state 0.weight"])


@pytest.mark.usefixtures("no_graph")
def test_quantities_of_others_see_a_copy_in_eval_mode(tmp_path: Path) -> None:
    seen: list[Moment] = []

    class Mine:
        name = "mine"

        def read(self, moment: Moment) -> list[Reading]:
            seen.append(moment)
            assert not moment.model.training
            return [Reading("total", float(moment.model[0].weight.sum()), "measured")]  # type: ignore[index,union-attr,arg-type]

    assert isinstance(Mine(), Quantity)
    model = mlp()
    with observed(tmp_path, model, 3, quantities=[Mine()]) as run:
        assert run.series("total").step.tolist() == [0, 1, 2, 3]
    assert [m.step for m in seen] == [0, 1, 2, 3]
    assert all(
        a.data_ptr() != b.data_ptr() for a, b in zip(seen[0].model.parameters(), model.parameters(), strict=True)
    )


@pytest.mark.usefixtures("no_graph")
def test_writers_get_every_reading_and_a_broken_one_is_left_out(tmp_path: Path) -> None:
    class Keeps:
        def __init__(self) -> None:
            self.rows: list[tuple[int, str, str, str]] = []
            self.closed = False

        def write(self, step: int, readings: Any) -> None:
            self.rows += [(step, quantity, r.name, r.layer) for quantity, r in readings]

        def close(self) -> None:
            self.closed = True

    class Broken(Keeps):
        def write(self, step: int, readings: Any) -> None:
            raise OSError("no room")

    keeps = Keeps()
    with pytest.warns(ObserverWarning, match="Broken failed and is left out: OSError: no room") as caught:
        run = observed(tmp_path, mlp(), 3, writers=[Broken(), keeps])
    assert len(caught) == 1 and keeps.closed
    assert len(keeps.rows) == sum(len(s) for s in run.all_series())
    run.close()


# --------------------------------------------------------------------------------------------------------- misuse


def test_misuse_is_refused_before_training(tmp_path: Path) -> None:
    x, y = data()
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    folder = tmp_path / "run"

    class Weights:
        name = "weights"

        def read(self, moment: Moment) -> list[Reading]:
            return []

    wrong: list[tuple[dict[str, Any], str]] = [
        ({"preset": "full"}, "expected a preset out of lite, default, research"),
        ({"budget": -1.0}, "expected a budget above 0"),
        (
            {"probe": (torch.zeros(4, 5), y[:4])},
            r"expected a probe that the model accepts, got inputs of shape \[4, 5\]",
        ),
        ({"probe": (x, y[:3])}, "expected one target for each of the 32 examples"),
        ({"probe": (x[:0], y[:0])}, "expected a probe with at least one example"),
        ({"probe": "data"}, "expected probe=.inputs, targets., two tensors"),
        ({"probe": (x.to("meta"), y)}, "expected a probe on cpu, where the model is, got one on meta"),
        ({"probe": (x, y.to("meta"))}, "expected the probe's targets on cpu"),
        ({"reference": x}, "expected reference=.inputs, targets., .* got inputs without targets"),
        ({"reference": (x, y), "loss": None}, "expected loss= beside reference="),
        ({"reference": (torch.zeros(2, 3), y[:2])}, "expected a reference that the model accepts"),
        ({"quantities": [Weights()]}, "expected quantities with names of their own, got 'weights'"),
    ]
    for options, message in wrong:
        with pytest.raises(UsageError, match=message):
            Observer(model, optimizer, **{"loss": LOSS, "probe": (x, y), "run": folder, **options})
    with pytest.raises(UsageError, match="expected an optimizer that trains the model"):
        Observer(mlp(), optimizer, probe=x, run=folder)
    with pytest.raises(ModelError, match="lazy 'weight'"):
        lazy = nn.LazyLinear(3)
        Observer(lazy, torch.optim.SGD(lazy.parameters(), lr=0.1), probe=x, run=folder)
    assert not folder.exists(), "nothing was written"


@pytest.mark.usefixtures("no_graph")
def test_a_store_of_another_version_is_refused_before_training(tmp_path: Path) -> None:
    model = mlp()
    observed(tmp_path, model, 1).close()
    with sqlite3.connect(tmp_path / "run.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UsageError, match="got version 99, written by a newer lipscope"):
        observed(tmp_path, model, 1)


# ------------------------------------------------------------------------------------------------ replay and export


def test_a_replay_reads_what_the_observer_read(
    whole: tuple[Run, list[dict[str, Tensor]], nn.Module], tmp_path: Path
) -> None:
    run, states, model = whole
    before = {k: v.clone() for k, v in model.state_dict().items()}
    files = []
    for step in (0, 7, 15):
        content: Any = states[step] if step else {"epoch": 1, "model_state_dict": states[step]}
        files.append(tmp_path / f"net-v2-step{step:03}.pt")
        torch.save(content, files[-1])
    replay(files, model, data(), tmp_path / "again", loss=LOSS)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with open_run(tmp_path / "again") as found:
        assert found.steps.tolist() == [0, 7, 15]
        assert [e.message for e in found.events() if e.kind == "trouble"] == []
        for name in ("lower", "mean", "probe_loss", "accuracy", "margin_p50"):
            old, new = run.series(name), found.series(name)
            assert new.value.tolist() == pytest.approx(old.value[np.isin(old.step, new.step)].tolist(), rel=1e-12), name
        moved = math.hypot(*(float((states[15][k] - states[7][k]).norm()) for k in ("0.weight", "0.bias")))
        assert found.series("update_norm", "0").value.tolist()[-1] == pytest.approx(moved, rel=1e-5)
        assert {"upper", "stable_rank", "feature_dimension"} <= set(found.names())


@pytest.mark.usefixtures("no_graph")
def test_wrong_checkpoints_are_refused(tmp_path: Path) -> None:
    good = mlp().state_dict()
    (tmp_path / "text.pt").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pt")
    x, _ = data()
    wrong: list[tuple[Any, type[Exception], str]] = [
        ([], UsageError, "at least one checkpoint"),
        ([tmp_path / "text.pt"], UsageError, "expected a checkpoint of tensors"),
        ([tmp_path / "list.pt"], UsageError, "expected a state dict of tensors, got list"),
        ([tmp_path / "none.pt"], UsageError, "expected a checkpoint of tensors"),
        ([{"0.weight": torch.zeros(2, 2)}], ModelError, "expected weights of Sequential in a state dict"),
        (good, UsageError, "put one state dict into a list"),
        ([tmp_path / "b2.pt", tmp_path / "a1.pt"], UsageError, "in the order of their steps"),
    ]
    for checkpoints, kind, message in wrong:
        with pytest.raises(kind, match=message):
            replay(checkpoints, mlp(), x, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    replay({5: {f"module.{k}": v for k, v in good.items()}}, mlp(), x, tmp_path / "run")
    with pytest.raises(UsageError, match="a folder without a run"):
        replay([good], mlp(), x, tmp_path / "run")
    with open_run(tmp_path / "run") as run:
        assert run.steps.tolist() == [5]


def test_the_exported_table_holds_every_value(
    whole: tuple[Run, list[dict[str, Tensor]], nn.Module], tmp_path: Path
) -> None:
    run, _, _ = whole
    target = tmp_path / "all.csv"
    count = export_csv(run, target)
    with target.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and len(rows) == count
    for series in run.all_series():
        mine = [
            r for r in rows if (r["quantity"], r["name"], r["layer"]) == (series.quantity, series.name, series.layer)
        ]
        assert np.array_equal([float(r["value"]) for r in mine], series.value, equal_nan=True)
        assert [int(r["step"]) for r in mine] == series.step.tolist()
        assert [r["note"] for r in mine] == series.note.tolist()
    assert sum(r["quantity"] == "event" for r in rows) == len(run.events())
    assert sum(r["quantity"] == "alert" for r in rows) == len(run.alerts())
    assert [p.name for p in tmp_path.iterdir()] == ["all.csv"]


def test_the_command_tells_and_exports(
    whole: tuple[Run, list[dict[str, Tensor]], nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lipscope.cli import main

    run, _, _ = whole
    with pytest.raises(SystemExit) as left:
        main(["runs", str(run.folder), "-o", str(tmp_path / "a.csv")])
    assert left.value.code in (0, None)
    told = capsys.readouterr().err
    assert "16 observed steps up to step 15" in told and (tmp_path / "a.csv").exists()
    assert "(at step" not in told, "everything was read at the last step"
    recorder = Recorder(tmp_path / "b")
    recorder.record(Entry(3, 1.0, [("upper", Reading("upper", 1.2345611, "computed"))]))  # rounded up, as a bound
    recorder.record(Entry(5, 2.0, [("probe-lipschitz", Reading("lower", 2.0, "measured"))]))
    recorder.close()
    with pytest.raises(SystemExit):
        main(["runs", str(tmp_path / "b"), "--json"])
    assert json.loads(capsys.readouterr().out)["last_at"] == {"upper": 3, "lower": 5}
    with pytest.raises(SystemExit):
        main(["runs", str(tmp_path / "b")])
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert ["lower", "2"] in lines and ["upper", "1.23457", "(at", "step", "3)"] in lines
    with pytest.raises(SystemExit) as left:
        main(["runs", str(tmp_path)])
    assert left.value.code == 2 and "found no run.sqlite" in capsys.readouterr().err


def test_names_of_the_room_are_there() -> None:
    import lipscope.dynamics as room

    assert sorted(room.__all__) == sorted(set(room.__all__)) and len(room.__all__) >= 15
    for name in room.__all__:
        assert callable(getattr(room, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = room.nothing
