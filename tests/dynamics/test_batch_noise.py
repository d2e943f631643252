"""Noise of the gradient that training computes: micro-batches and ranks, against gradients of every part taken by hand."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynamics.training import LOSS, expect_same, mlp, train
from lipscope.claims.errors import ModelError
from lipscope.dynamics.factors import list_factors
from lipscope.dynamics.projections import expand_factors, gradient_projections
from lipscope.dynamics.quantities import batch_noise, scene
from lipscope.dynamics.quantities.batch_noise import rank_levels, ratio
from lipscope.dynamics.store import open_run

NAMES = ("batch_drift", "batch_diffusion", "batch_noise_curvature")
PARTS = 4
Values = dict[tuple[str, str], dict[int, float]]


@pytest.fixture(autouse=True)
def no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise ModelError("left out in this test")

    monkeypatch.setattr(scene, "Template", refuse)


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)
    )


def seen(folder: Path) -> Values:
    with open_run(folder) as run:
        assert not [event.message for event in run.events() if event.kind == "trouble"]
        found: Values = {}
        for name in (*NAMES, "micro_batches"):
            if name in run.names():
                for layer in run.layers(name):
                    series = run.series(name, layer=layer)
                    found[name, layer] = dict(zip(series.step.tolist(), series.value.tolist(), strict=True))
        return found


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[int, Tensor]:
    """By `id` of the model's own parameters, without its hooks being called."""
    twin = copy.deepcopy(model)
    found = torch.autograd.grad(LOSS(twin(x), y), list(twin.parameters()))
    return {id(p): g.double() for p, g in zip(model.parameters(), found, strict=True)}


def by_definition(
    model: nn.Module, x: Tensor, parts: list[dict[int, Tensor]], length: float
) -> dict[tuple[str, str], float]:
    """From the gradients of equal parts, whose mean has been scaled to a length: sample covariances, written out."""
    count = len(parts)
    mean = {key: sum(g[key] for g in parts) / count for key in parts[0]}
    whole = float(torch.stack([g.square().sum() for g in mean.values()]).sum().sqrt())
    scale = min(1.0, length / (whole + 1e-6))
    found, joint = {}, torch.zeros(count, dtype=torch.float64)
    for one in expand_factors(list_factors(model, x)):
        key = id(one.operator.parameter)
        first = torch.tensor([scale * one.expansion.first(g[key]) for g in parts], dtype=torch.float64)
        apart = [scale * (g[key] - mean[key]) for g in parts]
        bend = [float(one.expansion.second(one.expansion.image(d)[None])) for d in apart]
        found["batch_drift", one.factor.name] = float(first.mean())
        found["batch_diffusion", one.factor.name] = float(first.var()) / count
        found["batch_noise_curvature", one.factor.name] = sum(bend) / (count - 1) / count
        joint += first / one.expansion.norm
    found["batch_diffusion", ""] = float(joint.var()) / count
    return found


@pytest.mark.parametrize("make", [mlp, convolution])
@pytest.mark.parametrize("length", [0.05, 1e9])
def test_micro_batches_of_a_step_are_told_apart(make: Callable[[], nn.Module], length: float, tmp_path: Path) -> None:
    expected: dict[int, dict[tuple[str, str], float]] = {}

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
        parts = [gradients(model, x[k::PARTS], y[k::PARTS]) for k in range(PARTS)]
        expected[step + 1] = by_definition(model, x, parts, length)
        optimizer.zero_grad()
        for k in range(PARTS):
            (LOSS(model(x[k::PARTS]), y[k::PARTS]) / PARTS).backward()
        nn.utils.clip_grad_norm_(model.parameters(), length)
        optimizer.step()

    observed = train(tmp_path, make, loop=loop)
    found = seen(tmp_path)
    # The passes of step 2 are only counted.
    assert list(found["micro_batches", ""].items()) == [(3, PARTS), (5, PARTS)]
    for key, value in expected[3].items():
        assert value != 0, key
        for step in (3, 5):
            assert found[key][step] == pytest.approx(expected[step][key], rel=1e-3), (key, step)
    expect_same(train(None, make, loop=loop), observed)


def once(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
    optimizer.zero_grad()
    LOSS(model(x), y).backward()
    optimizer.step()


def test_one_pass_a_step_costs_no_expansion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(factors: object) -> None:
        raise AssertionError("the norms' derivatives were computed for nothing")

    monkeypatch.setattr(batch_noise, "expand_factors", refuse)
    train(tmp_path, mlp, loop=once)
    assert not seen(tmp_path)


def thrown_away(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
    """The first pass is not a part of the step's gradient, with gradients set to None or to 0."""
    LOSS(model(x[:8]), y[:8]).backward()
    optimizer.zero_grad(set_to_none=bool(step % 2))
    LOSS(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def kept(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
    LOSS(model(x[:8]), y[:8]).backward()
    LOSS(model(x[8:]), y[8:]).backward()  # nobody zeroes
    optimizer.step()


def sharpness(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
    """Weights move between two passes."""
    optimizer.zero_grad()
    LOSS(model(x[:8]), y[:8]).backward()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
    LOSS(model(x), y).backward()
    optimizer.step()


def clipped_by_value(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
    optimizer.zero_grad()
    for k in range(2):
        LOSS(model(x[k::2]), y[k::2]).backward()
    nn.utils.clip_grad_value_(model.parameters(), 1e-3)
    optimizer.step()


def penalty(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
    """Gradients that are asked for on the way are not added to anything."""
    optimizer.zero_grad()
    found = torch.autograd.grad(LOSS(model(x), y), list(model.parameters()), create_graph=True)
    (LOSS(model(x), y) + sum(g.square().sum() for g in found)).backward()
    optimizer.step()


@pytest.mark.parametrize("loop", [once, thrown_away, kept, sharpness, clipped_by_value, penalty])
def test_nothing_is_said_where_the_parts_are_not_those_of_the_step(loop: Any, tmp_path: Path) -> None:
    observed = train(tmp_path, loop=loop, steps=8)
    found = seen(tmp_path)
    assert not found or (loop is kept and set(found["micro_batches", ""]) == {1})
    expect_same(train(None, loop=loop, steps=8), observed)


def test_a_multiple_is_told_from_another_direction() -> None:
    a, b = {1: torch.tensor([3.0, 4.0]), 2: torch.tensor([0.0])}, {1: torch.tensor([1.5, 2.0]), 2: torch.tensor([0.0])}
    assert ratio(b, a) == pytest.approx(0.5)
    assert ratio({1: -b[1], 2: b[2]}, a) is None and ratio({1: torch.tensor([1.5, 2.1]), 2: b[2]}, a) is None
    assert ratio({1: b[1] * torch.nan, 2: b[2]}, a) is None and ratio({1: b[1]}, a) is None
    assert ratio(b, {1: a[1]}) == pytest.approx(0.5) and ratio({**b, 3: torch.ones(1)}, a) is None


def test_one_rank_against_the_mean_is_unbiased() -> None:
    """Averaged over all ways to give 3 ranks one of 3 batches each, it is the variance of the mean of independent ranks."""
    torch.manual_seed(0)
    model = mlp().double()
    x, y = torch.randn(6, 6, dtype=torch.float64), torch.randint(3, (6,))
    around = expand_factors(list_factors(model, x))
    batches = [gradients(model, x[2 * k : 2 * k + 2], y[2 * k : 2 * k + 2]) for k in range(3)]
    found = []
    for drawn in itertools.product(batches, repeat=3):
        mean = {key: sum(g[key] for g in drawn) / 3 for key in drawn[0]}
        apart = {key: drawn[0][key] - mean[key] for key in mean}
        found.append(rank_levels(gradient_projections(around, mean), gradient_projections(around, apart), 3))
    joint = torch.zeros(3, dtype=torch.float64)
    for index, one in enumerate(around):
        g = [b[id(one.operator.parameter)] for b in batches]
        centre = sum(g) / 3
        first = torch.tensor([one.expansion.first(b) for b in g], dtype=torch.float64)
        bends = [float(one.expansion.second(one.expansion.image(b - centre)[None])) for b in g]
        flow = float(one.expansion.second(one.expansion.image(centre)[None]))
        levels = [f.layers[index] for f in found]
        assert sum(v.variance for v in levels) / 27 == pytest.approx(float(first.var(correction=0)) / 3)
        assert sum(v.curvature for v in levels) / 27 == pytest.approx(sum(bends) / 3 / 3)
        assert sum(v.flow_curvature for v in levels) / 27 == pytest.approx(flow)
        joint += first / one.expansion.norm
    assert sum(f.cross_variance for f in found) / 27 == pytest.approx(float(joint.var(correction=0)) / 3)


# ------------------------------------------------------------------------------------------------ two processes

LENGTH = 0.05


def rank_loop(rank: int, parts: int, sync: bool, kept: dict[int, Any]) -> Any:
    """Every rank has its own half of the data, in parts; the mean gradient is clipped."""

    def loop(model: Any, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
        halves = [(x[r::2], y[r::2]) for r in (0, 1)]
        if rank == 0:
            own = [gradients(model.module, h[k::parts], t[k::parts]) for h, t in halves for k in range(parts)]
            kept[step + 1] = own, {id(p): p.detach().clone() for p in model.module.parameters()}
        optimizer.zero_grad()
        h, t = halves[rank]
        for k in range(parts):
            model.require_backward_grad_sync = sync or k == parts - 1  # what no_sync() sets
            (LOSS(model(h[k::parts]), t[k::parts]) / parts).backward()
        if rank == 0:
            kept[step + 1] += (by_rank(model.module, x, kept[step + 1][0], parts),)
        nn.utils.clip_grad_norm_(model.parameters(), LENGTH)
        optimizer.step()

    return loop


def by_rank(model: nn.Module, x: Tensor, own: list[dict[int, Tensor]], parts: int) -> dict[tuple[str, str], float]:
    """What rank 0 may know, from everybody's gradients."""
    mean = {key: sum(g[key] for g in own) / len(own) for key in own[0]}
    whole = float(torch.stack([g.square().sum() for g in mean.values()]).sum().sqrt())
    if parts > 1:
        first = by_definition(model, x, own[:parts], 1e9)
        scale = min(1.0, LENGTH / (whole + 1e-6))
        return {key: value * (scale if key[0] == "batch_drift" else scale**2 / 2) for key, value in first.items()}
    # For two ranks the difference of one to the mean is half the difference of both.
    return by_definition(model, x, own, LENGTH)


def _rank(rank: int, port: int, folder: str | None, queue: Any, parts: int, sync: bool) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        kept: dict[int, Any] = {}
        found = train(
            None if folder is None else Path(folder), mlp, loop=rank_loop(rank, parts, sync, kept), steps=4,
            wrap=nn.parallel.DistributedDataParallel,
        )  # fmt: skip
        arrays = {key: value.numpy().tobytes() for key, value in found.items() if isinstance(value, Tensor)}
        queue.put((rank, arrays, {step: value[2] for step, value in kept.items()}))
    finally:
        torch.distributed.destroy_process_group()


def _parallel(folder: Path | None, parts: int, sync: bool) -> dict[int, tuple[dict[str, bytes], Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    place = None if folder is None else str(folder)
    ranks = [context.Process(target=_rank, args=(r, port, place, queue, parts, sync)) for r in (0, 1)]
    for process in ranks:
        process.start()
    found = {rank: (arrays, kept) for rank, arrays, kept in (queue.get(timeout=120) for _ in ranks)}
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    return found


@pytest.mark.parametrize(("parts", "sync"), [(1, True), (2, False), (2, True)])
def test_ranks_of_a_parallel_training(parts: int, sync: bool, tmp_path: Path) -> None:
    alone, observed = _parallel(None, parts, sync), _parallel(tmp_path, parts, sync)
    for rank in (0, 1):
        assert alone[rank][0] == observed[rank][0], "training differs"
    found, expected = seen(tmp_path), observed[0][1]
    assert list(found["micro_batches", ""].items()) == [(2, parts), (4, parts)]
    for step in (2, 4):
        for key, value in expected[step].items():
            assert value != 0 and found[key][step] == pytest.approx(value, rel=2e-3), (key, step)
    with open_run(tmp_path) as run:
        (note, *_) = run.series("batch_diffusion", layer="").note
        assert "2 ranks" in note and ("one degree of freedom" in note) == (parts == 1)
