"""Training with the observer is bit-identical to training without it."""

from __future__ import annotations

import multiprocessing
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from dynamics.training import LOSS, data, expect_same, frozen_clock, mlp, plain, train
from lipscope.claims.errors import ModelError
from lipscope.dynamics.identity import UPDATE_TERMS
from lipscope.dynamics.quantities import scene
from lipscope.dynamics.store import open_run


@pytest.fixture(autouse=True)
def no_graph(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The export of the model takes a second; one test has it, the others do without."""

    def refuse(*arguments: object) -> None:
        raise ModelError("left out in this test")

    if "proved_bounds" not in request.node.name:
        monkeypatch.setattr(scene, "Template", refuse)


def troubles(folder: Path) -> list[str]:
    with open_run(folder) as run:
        assert run.last_step and len(run.steps) == run.last_step + 1, "not every step was observed"
        return [event.message for event in run.events() if event.kind == "trouble"]


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


class Careless(nn.Module):
    """Draws from all global generators and counts its calls, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(nn.functional.dropout(x, 0.1))  # functional dropout is on by default


class Shared(nn.Module):
    """One weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm1d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def hooked() -> nn.Module:
    model = mlp()
    model[0].register_forward_hook(lambda m, i, o: torch.rand(1) * 0 + o)  # draws once a call of the user's own model
    return model


def spectral() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))


def half_frozen() -> nn.Module:
    model = mlp()
    model[0].requires_grad_(False)
    return model


MODELS = {f.__name__: f for f in (dropout, Careless, Shared, convolution, hooked, spectral, half_frozen)}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, tmp_path: Path) -> None:
    make = MODELS[name]
    expect_same(train(None, make), train(tmp_path, make))
    assert not troubles(tmp_path)


def test_with_proved_bounds_and_full_gradients(tmp_path: Path) -> None:
    expect_same(train(None, dropout), train(tmp_path, dropout, reference=data(3)))
    assert not troubles(tmp_path)
    with open_run(tmp_path) as run:
        assert {"upper", "norm_upper", "flow", "lower", "update_norm"} <= set(run.names())


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01),
    "adamw, amsgrad": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, amsgrad=True),
    "nesterov": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "groups": lambda m: torch.optim.SGD([{"params": [p], "lr": 0.1 / (i + 1)} for i, p in enumerate(m.parameters())]),
    "one group trained": lambda m: torch.optim.SGD(list(m.parameters())[:2], lr=0.1),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, momentum=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str, tmp_path: Path) -> None:
    expect_same(train(None, optimizer=OPTIMIZERS[name]), train(tmp_path, optimizer=OPTIMIZERS[name]))
    assert not troubles(tmp_path)


def amp(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
    batch = torch.randint(0, len(x), (8,))
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSS(model(x[batch]), y[batch])
        loss.backward()
        optimizer.step()  # some do this inside; what comes after must still be cast
        assert torch.is_autocast_enabled("cpu")
        model(x[:4])


def accumulation(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
    for part in range(2):
        (LOSS(model(x[part::2]), y[part::2]) / 2).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    optimizer.zero_grad()


def kept_gradients(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
    LOSS(model(x), y).backward()  # nobody zeroes
    optimizer.step()


def sometimes_none(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
    optimizer.zero_grad(set_to_none=True)
    if step % 2:
        LOSS(model(x), y).backward()
    optimizer.step()


def to_nan(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
    optimizer.zero_grad()
    (LOSS(model(x), y) * (float("nan") if step == 3 else 1.0)).backward()
    optimizer.step()


def no_grad_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
    optimizer.zero_grad()
    LOSS(model(x), y).backward()
    with torch.no_grad():
        optimizer.step()
        assert not torch.is_grad_enabled()


def swapped_storage(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
    plain(model, optimizer, x, y, step)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # as some libraries do after a step


LOOPS = {
    f.__name__: f for f in (amp, accumulation, kept_gradients, sometimes_none, to_nan, no_grad_step, swapped_storage)
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops(name: str, tmp_path: Path) -> None:
    expect_same(train(None, dropout, loop=LOOPS[name]), train(tmp_path, dropout, loop=LOOPS[name]))
    assert not troubles(tmp_path)


def closed(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = LOSS(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.SGD])
@pytest.mark.filterwarnings("ignore:the optimizer computes its gradients in a closure")
def test_optimizers_with_a_closure(kind: Any, tmp_path: Path) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        return kind(model.parameters(), lr=0.1)  # type: ignore[no-any-return]

    expect_same(train(None, optimizer=make, loop=closed), train(tmp_path, optimizer=make, loop=closed))
    assert ["closure" in text for text in troubles(tmp_path)] == [True]
    with open_run(tmp_path) as run:
        assert "update_norm" in run.names() and "gradient_norm" not in run.names()
        # The change of the norms is followed all the same, with the whole first order in one term.
        found = {name: run.series(name, "", "identity").value for name in (*UPDATE_TERMS, "change", "residual")}
        assert len(found["change"]) == 6 and (found["change"] != 0).all() and (found["remainder"] != 0).all()
        assert all((found[name] == 0).all() for name in ("gradient", "momentum", "decay"))
        assert sum(found[name] for name in (*UPDATE_TERMS, "residual")) == pytest.approx(found["change"], abs=1e-13)
        # The first steps of LBFGS are too large for any expansion.
        assert (np.abs(found["residual"][2:]) < 0.1 * np.abs(found["change"][2:])).all()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_models(backend: str, in_place: bool, tmp_path: Path) -> None:
    def compiled(model: nn.Module) -> nn.Module:
        torch._dynamo.reset()
        if in_place:
            model.compile(backend=backend)
            return model
        return torch.compile(model, backend=backend)  # type: ignore[return-value]

    expect_same(train(None, dropout, wrap=compiled), train(tmp_path, dropout, wrap=compiled))
    assert not troubles(tmp_path)
    with open_run(tmp_path) as run:
        assert "compiled" in [event.kind for event in run.events()]
        assert {"lower", "update_norm"} <= set(run.names())


def _rank(rank: int, port: int, folder: str | None, queue: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        found = train(
            None if folder is None else Path(folder), dropout, wrap=nn.parallel.DistributedDataParallel, preset="lite"
        )
        queue.put((rank, {key: value for key, value in found.items() if not isinstance(value, Tensor)},
                   {key: value.numpy() for key, value in found.items() if isinstance(value, Tensor)}))  # fmt: skip
    finally:
        torch.distributed.destroy_process_group()


def _parallel(folder: Path | None) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    ranks = [
        context.Process(target=_rank, args=(r, port, None if folder is None else str(folder), queue)) for r in (0, 1)
    ]
    for process in ranks:
        process.start()
    found = {rank: (plain_values, arrays) for rank, plain_values, arrays in (queue.get(timeout=120) for _ in ranks)}
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    return found


def test_two_processes_with_distributed_data_parallel(tmp_path: Path) -> None:
    alone, observed = _parallel(None), _parallel(tmp_path)
    for rank in (0, 1):
        assert alone[rank][0] == observed[rank][0]
        assert alone[rank][1].keys() == observed[rank][1].keys()
        for key, value in alone[rank][1].items():
            assert value.tobytes() == observed[rank][1][key].tobytes(), f"{key} differs on rank {rank}"
    with open_run(tmp_path) as run:
        assert len(run.sessions) == 1, "only the first rank writes"
        assert run.steps.tolist() == list(range(7))


def test_a_broken_quantity_changes_nothing_either(tmp_path: Path) -> None:
    class Vandal:
        name = "vandal"

        def read(self, moment: Any) -> list[Any]:
            torch.rand(3)
            with torch.no_grad():
                for parameter in moment.model.parameters():
                    parameter.zero_()
            moment.inputs.zero_()
            raise RuntimeError("boom")

    with pytest.warns(UserWarning, match="'vandal' failed and is left out: RuntimeError: boom") as caught:
        observed = train(tmp_path, quantities=[Vandal()])
    assert len(caught) == 1
    expect_same(train(None), observed)
    with open_run(tmp_path) as run:
        assert len(run.series("lower")) == 7 and float(run.series("lower").value[0]) > 0


def test_warnings_as_errors_do_not_stop_training_either(tmp_path: Path) -> None:
    class Broken:
        name = "broken"

        def read(self, moment: Any) -> list[Any]:
            raise RuntimeError("boom")

    expect_same(train(None), train(tmp_path, quantities=[Broken()]))  # here warnings are errors
    assert ["broken" in text for text in troubles(tmp_path)] == [True]


WITHOUT_CHECKS = """
import random, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from dynamics.test_transparency import dropout
from dynamics.training import expect_same, seeded, train
import dynamics.training as training
everything = training.everything
training.everything = lambda *a: {**everything(*a), "python": random.getstate()}
expect_same(train(None, dropout), train(Path(sys.argv[2]), dropout))
print("same")
"""


def test_the_state_of_random_is_the_same_too(tmp_path: Path) -> None:
    tests = str(Path(__file__).parent.parent)
    command = [sys.executable, "-W", "error", "-c", WITHOUT_CHECKS, tests, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.stdout == "same\n", found.stderr[-2000:]
    with open_run(tmp_path) as run:
        assert "upper" in run.names()


def test_the_comparison_sees_what_an_observer_must_not_do(tmp_path: Path) -> None:
    """A loop that draws once more, or reads through the user's own model, is found."""

    def draws(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
        plain(model, optimizer, x, y, step)
        torch.rand(1)

    def reads(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
        plain(model, optimizer, x, y, step)
        with torch.no_grad():
            model(x)

    for other in (draws, reads):
        with pytest.raises(AssertionError, match="differs"):
            expect_same(train(None, dropout), train(None, dropout, loop=other))
    assert frozen_clock() == 0.0
