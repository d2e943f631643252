"""A model that changes in other ways than by its optimizer: followed where a twin can, refused by name where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import MethodType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from lipscope.dynamics import Observer
from lipscope.dynamics.construction import settings
from lipscope.dynamics.recorder import ObserverWarning
from lipscope.dynamics.store import open_run

X, Y = torch.randn(24, 6, generator=torch.Generator().manual_seed(3)), torch.arange(24) % 3


class Annealed(nn.Module):
    """An attribute that training changes scales the output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.factor, self.act, self.shift = 1.0, F.relu, torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x))) * self.factor + self.shift


def sequential() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def train(
    model: nn.Module,
    folder: Path,
    change: Callable[[int], None] = lambda step: None,
    loss: object = None,
    steps: int = 8,
) -> list[float]:
    """Jacobian norms of the model after every step, at the largest point of the probe; `change` comes before a step."""
    loss = loss or nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    norms = [steepest(model)]
    with Observer(model, optimizer, loss=loss, probe=(X, Y), run=folder, budget=1.0):  # type: ignore[arg-type]
        for step in range(1, steps + 1):
            change(step)
            optimizer.zero_grad()
            loss(model(X), Y).backward()  # type: ignore[operator]
            optimizer.step()
            norms.append(steepest(model))
    return norms


def steepest(model: nn.Module) -> float:
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: model(x[None])[0]))(X)
    return float(torch.linalg.matrix_norm(jacobians.detach(), 2).max())


def readings(folder: Path, name: str) -> dict[int, float]:
    with open_run(folder) as run:
        found = run.series(name)
        return dict(zip(found.step.tolist(), found.value.tolist(), strict=True))


@pytest.mark.parametrize("what", ["number", "function", "tensor", "all"])
def test_plain_attributes_are_followed_by_every_bound(tmp_path: Path, what: str) -> None:
    torch.manual_seed(0)
    model = Annealed()

    def change(step: int) -> None:
        if what in ("number", "all"):
            model.factor = 1.0 + step
        if what in ("function", "all") and step == 3:
            model.act = F.leaky_relu if what == "all" else torch.tanh
        if what in ("tensor", "all"):
            model.shift.add_(1.0)

    norms = train(model, tmp_path / "run", change)
    uppers, lowers = readings(tmp_path / "run", "upper"), readings(tmp_path / "run", "lower")
    assert len(norms) - 1 in uppers and len(norms) - 1 in lowers
    assert all(value >= norms[step] for step, value in uppers.items()), (uppers, norms)
    assert all(value == pytest.approx(norms[step], rel=1e-5) for step, value in lowers.items()), (lowers, norms)


def replace_weight(model: nn.Sequential) -> None:
    model[2].weight = nn.Parameter(10 * model[2].weight.detach())


def replace_layer(model: nn.Sequential) -> None:
    model[2] = nn.Linear(8, 3)


def replace_function(model: nn.Sequential) -> None:
    model[1] = nn.Identity()


def assign(model: nn.Sequential) -> None:
    model.load_state_dict({k: 10 * v for k, v in model.state_dict().items()}, assign=True)


def append(model: nn.Sequential) -> None:
    model.append(nn.Linear(3, 3))


def mask(model: nn.Sequential) -> None:
    prune.l1_unstructured(model[2], "weight", 0.5)


def normalise(model: nn.Sequential) -> None:
    parametrizations.spectral_norm(model[2])


REBUILT = [
    (replace_weight, "'2.weight' is another one"), (replace_layer, "module '2' is another one"),
    (replace_function, "module '1' is another one"), (assign, "'0.weight' is another one"),
    (append, "modules have come or gone"), (mask, "'2.weight.* has come or gone"), (normalise, "'2.weight' has come or gone"),
]  # fmt: skip


@pytest.mark.parametrize("rebuild, words", REBUILT)
def test_a_model_that_is_rebuilt_is_not_followed_and_training_goes_on(
    tmp_path: Path, rebuild: Callable[[nn.Sequential], None], words: str
) -> None:
    """What a twin of the old model says is not about the new one: no bound of it may be written."""
    model = sequential()

    def change(step: int) -> None:
        if step == 5:
            rebuild(model)

    with pytest.warns(ObserverWarning, match=words) as told:
        norms = train(model, tmp_path / "run", change)
    assert len(norms) == 9 and len(told) == 1, "it is told once"
    uppers = readings(tmp_path / "run", "upper")
    assert max(uppers) < 5 and all(value >= norms[step] for step, value in uppers.items())
    with open_run(tmp_path / "run") as run:
        assert run.sessions[-1].state == "finished"
        assert max(int(s.step[-1]) for s in run.all_series()) < 5


class Configured(nn.Module):
    """Its factor is in an object of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.config = nn.Linear(6, 3), SimpleNamespace(factor=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.config.factor


def other_config(model: Configured) -> None:
    model.config.factor = 7.0


def other_forward(model: Configured) -> None:
    model.forward = MethodType(lambda self, x: 7 * self.layer(x), model)  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [other_config, other_forward])
def test_what_a_twin_cannot_know_of_is_seen_before_a_proof(
    tmp_path: Path, change: Callable[[Configured], None]
) -> None:
    torch.manual_seed(0)
    model = Configured()
    with pytest.warns(ObserverWarning, match="computes something else by .* with the same weights"):
        norms = train(model, tmp_path / "run", lambda step: change(model) if step == 5 else None)
    uppers = readings(tmp_path / "run", "upper")
    assert max(uppers) < 5 and all(value >= norms[step] for step, value in uppers.items()), (uppers, norms)


def test_weights_that_are_loaded_in_place_are_followed(tmp_path: Path) -> None:
    model = sequential()

    def change(step: int) -> None:
        if step == 5:
            model.load_state_dict({k: 10 * v for k, v in model.state_dict().items()})

    norms = train(model, tmp_path / "run", change)
    uppers = readings(tmp_path / "run", "upper")
    assert 8 in uppers and all(value >= norms[step] for step, value in uppers.items())


class Moving(nn.Module):
    """A loss that divides by a running mean, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(()))
        self.calls = 0

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = F.cross_entropy(outputs, targets, reduction="none")
        self.calls += 1
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * each.mean().detach())
        return each.mean() / (self.mean + 0.1)


def test_a_loss_with_state_is_left_alone(tmp_path: Path) -> None:
    found = []
    for watched in (True, False):
        model, loss = sequential(), Moving()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        watching = (
            Observer(model, optimizer, loss=loss, probe=(X, Y), reference=(X, Y), run=tmp_path / "run", budget=1.0)
            if watched
            else nullcontext()
        )
        with watching:
            for _ in range(12):
                optimizer.zero_grad()
                loss(model(X), Y).backward()
                optimizer.step()
        found.append(([p.detach().clone() for p in model.parameters()], loss.mean.clone(), loss.calls))
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))
    assert torch.equal(found[0][1], found[1][1]) and found[0][2] == found[1][2] == 12
    assert len(readings(tmp_path / "run", "probe_loss")) > 1


def test_settings_are_those_that_a_reader_of_the_class_would_name() -> None:
    model = Annealed()
    names = [name for name, _ in settings(model)]
    assert {"factor", "act", "shift", "in_features"} <= set(names) and "training" not in names
    before = settings(model)
    model.train(False)
    assert settings(model) == before
    model.shift.add_(1)
    assert settings(model) != before, "a tensor that is written to is another setting"
