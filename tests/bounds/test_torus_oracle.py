"""Bounds on tori against the largest norm over all activation patterns, and the checker's inequality against what networks do.

A quadratic bound holds for all slopes of all units, so it is not below the norm of `W D V ..` for any pattern of extreme slopes, whether an
input reaches the pattern or not. That is more than the network's constant asks for, and is enumerated here without slack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bounds.test_quadratic import tampered
from bounds.test_torus import CASES, on_tori, seeded
from harness.exact import ROUNDING, linear_map, slope_patterns
from harness.expect import expect_upper
from harness.networks import Residual
from lipcheck import torus as checker
from lipscope import bound, load
from lipscope.bounds.method import Effort
from lipscope.bounds.problem import pose
from lipscope.bounds.quadratic import method
from lipscope.bounds.quadratic.method import LipSDP
from lipscope.bounds.quadratic.torus import Torus
from lipscope.bounds.quadratic.torus_parts import bound_part
from lipscope.bounds.quadratic.torus_search import blocks
from lipscope.bounds.quadratic.windows import Window
from lipscope.claims.claim import Claim

__all__ = ["on_tori"]

Build = Callable[[], nn.Module]


def line(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


TINY: dict[str, tuple[Build, tuple[int, ...]]] = {
    "line": (lambda: line(nn.Conv1d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv1d(2, 1, 3, padding=1)), (1, 4)),
    "wide padding": (lambda: line(nn.Conv1d(1, 1, 3, padding=2), nn.ReLU(), nn.Conv1d(1, 2, 3, padding=1)), (1, 5)),
    "strides": (lambda: line(nn.Conv1d(1, 2, 3, 2, 1), nn.ReLU(), nn.Conv1d(2, 2, 2), nn.ReLU(), nn.Conv1d(2, 1, 2)), (1, 5)),
    "stride of three": (lambda: line(nn.Conv1d(1, 1, 2, 1, 1), nn.ReLU(), nn.Conv1d(1, 1, 3, 3, 1), nn.ReLU()), (1, 6)),
    "stride over": (lambda: line(nn.Conv1d(1, 2, 2, 3), nn.ReLU(), nn.Conv1d(2, 1, 2, padding=1)), (1, 8)),
    "dilation": (lambda: line(nn.Conv1d(1, 1, 2, dilation=3, padding=1), nn.ReLU(), nn.Conv1d(1, 1, 2, dilation=2, padding=2), nn.ReLU()), (1, 5)),
    "groups": (lambda: line(nn.Conv1d(2, 2, 2, padding=1, groups=2), nn.LeakyReLU(-0.4), nn.Conv1d(2, 2, 2, groups=2)), (2, 3)),
    "slope above zero": (lambda: line(nn.Conv1d(1, 2, 3, padding=1), nn.LeakyReLU(0.7), nn.Conv1d(2, 1, 3, padding=1)), (1, 4)),
    "slope above one": (lambda: line(nn.Conv1d(1, 2, 2), nn.LeakyReLU(1.5), nn.Conv1d(2, 1, 3, padding=2)), (1, 4)),
    "residual": (lambda: line(Residual(line(nn.Conv1d(1, 1, 3, padding=1), nn.ReLU(), nn.Conv1d(1, 1, 3, padding=1))), nn.ReLU()), (1, 5)),
    "batch norm": (lambda: line(nn.Conv2d(1, 1, 2), nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 2, 2, padding=1)), (1, 3, 4)),
    "maximum": (lambda: line(nn.Conv1d(1, 1, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(1, 2, 2)), (1, 6)),
    "overlap": (lambda: line(nn.Conv1d(1, 1, 2, padding=1), nn.ReLU(), nn.MaxPool1d(3, 2, 1)), (1, 4)),
    "average": (lambda: line(nn.Conv1d(1, 2, 3, padding=1), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(2, 2, 2, padding=1)), (1, 4)),
    "average with padding": (lambda: line(nn.Conv1d(1, 1, 3, padding=1), nn.ReLU(), nn.AvgPool1d(3, 2, 1), nn.ReLU()), (1, 6)),
    "mean": (lambda: line(nn.Conv1d(1, 2, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 2)), (1, 5)),
    "mean after a stride": (lambda: line(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)), (1, 3, 4)),
    "image": (lambda: line(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Conv2d(1, 1, 2)), (1, 3, 3)),
    "strides of an image": (lambda: line(nn.Conv2d(1, 2, (3, 2), (2, 1), (1, 0)), nn.ReLU(), nn.Conv2d(2, 1, (1, 3), (1, 2), (0, 1))), (1, 3, 4)),
    "maximum of an image": (lambda: line(nn.Conv2d(1, 1, 2), nn.ReLU(), nn.MaxPool2d(2), nn.ReLU()), (1, 3, 4)),
}  # fmt: skip

Signal = np.ndarray


def patterns(layers: list[nn.Module], shape: tuple[int, ...], m: np.ndarray) -> Iterator[np.ndarray]:
    """`.. D V m` for all patterns of the layers."""
    if not layers:
        yield m
        return
    layer, rest = layers[0], layers[1:]
    with torch.no_grad():
        after = tuple(layer(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
    if isinstance(layer, (nn.ReLU, nn.LeakyReLU)):
        alpha = getattr(layer, "negative_slope", 0.0)
        ways: Iterator[np.ndarray] = (s[:, None] * m for s in slope_patterns([(alpha, 1.0)] * len(m)))
    elif isinstance(layer, (nn.MaxPool1d, nn.MaxPool2d)):
        one_hot = torch.eye(len(m), dtype=torch.float64).reshape(-1, *shape)
        inside = layer(one_hot).reshape(len(m), -1).numpy().T > 0
        ways = (m[list(chosen)] for chosen in product(*(np.flatnonzero(row) for row in inside)))
    elif isinstance(layer, Residual):
        ways = (m + inner for inner in patterns(list(layer.inner), shape, m))
    else:
        ways = iter([linear_map(layer, shape) @ m])
    together = next((k for k, r in enumerate(rest) if isinstance(r, (nn.ReLU, nn.LeakyReLU, nn.MaxPool1d, nn.MaxPool2d, Residual))), len(rest))  # fmt: skip
    tail = linear_map(nn.Sequential(*rest[:together]), after) if together else None
    with torch.no_grad():
        at = tuple(nn.Sequential(*rest[:together])(torch.zeros(1, *after, dtype=torch.float64)).shape[1:])
    for way in ways:
        yield from patterns(rest[together:], at, way if tail is None else tail @ way)


def worst(model: nn.Module, shape: tuple[int, ...]) -> float:
    """What no quadratic bound may be below."""
    found = [np.linalg.norm(m, 2) for m in patterns(list(model), shape, np.eye(math.prod(shape)))]
    assert len(found) <= 5000, "too many patterns"
    return float(max(found)) * (1 - ROUNDING)


@pytest.fixture
def whole(on_tori: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on the torus is taken even where the product of norms is smaller."""
    monkeypatch.setattr(method, "cheapest", lambda passed, product, found: [Window(*ends) for ends in found])


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("name", TINY)
def test_certified_above_all_patterns_and_nothing_below_them_is_accepted(name: str, tmp_path: Path) -> None:
    build, shape = TINY[name]
    model = seeded(build)
    truth = worst(model, shape)
    folder = tmp_path / "bundle"
    result = bound(load(model, input_shape=shape), "l2", method="lipsdp", budget=3, check=False).save(folder)
    assert result.upper.status == "certified", result.upper
    expect_upper(result.upper.value, truth, name)

    def below(proof: dict) -> None:
        (step,) = (s for s in proof["steps"] if s["rule"] == "quadratic")
        assert step["evidence"]["kind"] == "torus"
        step["norm"] = {"float": (0.999 * truth).hex()}

    assert tampered(folder, below).upper["status"] == "rejected"


@pytest.mark.parametrize("name", [n for n in TINY if "max" not in n and n != "overlap"])
def test_not_below_the_best_multipliers_of_every_unit(name: str) -> None:
    """Tied multipliers and slopes widened to 0 prove no less than untied ones, which this finds within 1e-6."""
    build, shape = TINY[name]
    problem = pose(load(seeded(build), input_shape=shape).graph, Claim("l2"))
    end = problem.graph.output
    lipsdp, notes = LipSDP(), list[str]()
    dense = lipsdp._bound(problem, Window(0, end), Effort(), notes)
    assert dense is not None, notes
    found = bound_part(Torus(problem, 0, end), Effort())
    assert found is not None
    expect_upper(found.constant, dense.constant * (1 - 1e-6), name)


@dataclass
class Pair:
    """Differences of two inputs, of all units' operands and values, and of the outputs."""

    x: Signal
    units: list[Signal]
    output: Signal


def pair(model: nn.Module, shape: tuple[int, ...], generator: torch.Generator) -> Pair:
    units: list[Signal] = []

    def note(_: nn.Module, __: tuple[Tensor, ...], value: Tensor) -> None:
        units.append((value[1] - value[0]).detach().numpy())

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, ACTIVATIONS)]
    x = torch.randn((2, *shape), dtype=torch.float64, generator=generator) * 2
    with torch.no_grad():
        output = model(x)
    for hook in hooks:
        hook.remove()
    return Pair((x[1] - x[0]).numpy(), units, (output[1] - output[0]).numpy())


ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU)
ALL = TINY | {f"{name}, larger": CASES[name] for name in ("average", "max", "mean")}


def case(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    build, shape = ALL[name]
    return seeded(build), shape


def on_torus(image: Signal, counts: tuple[int, ...], phases: tuple[int, ...]) -> np.ndarray:
    """`(*counts, channels and phases)`: the unitary spectrum of an image that is 0 elsewhere."""
    whole = np.zeros((len(image), *(n * p for n, p in zip(counts, phases, strict=True))))
    whole[(slice(None), *(slice(0, n) for n in image.shape[1:]))] = image
    axes = len(counts)
    split = whole.reshape(len(image), *(k for pair in zip(counts, phases, strict=True) for k in pair))
    ordered = split.transpose(*(1 + 2 * a for a in range(axes)), 0, *(2 + 2 * a for a in range(axes)))
    spectrum = np.fft.fftn(ordered, axes=tuple(range(axes)), norm="ortho")
    return spectrum.reshape(*counts, -1)


def checked_matrices(name: str, monkeypatch: pytest.MonkeyPatch) -> checker._Matrices:
    """What the checker forms for a part that is the whole network."""
    seen: list[checker._Matrices] = []
    monkeypatch.setattr(checker._Matrices, "demand_definite", lambda self: seen.append(self))
    model, shape = case(name)
    bound(load(model, input_shape=shape), "l2", method="lipsdp", budget=3)
    assert len(seen) == 1 and seen[0].part.source == 0, name
    return seen[0]


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("name", ALL)
def test_the_inequality_says_of_the_network_what_it_should(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search and checker form the same; on differences that occur, with multipliers of any single unit, it is at most `rho |x|^2 - |f|^2`.

    So where it is nonnegative, `|f|^2 <= rho |x|^2`: the form is evaluated at all frequencies on the network's own values.
    """
    matrices = checked_matrices(name, monkeypatch)
    expect_the_same(name, matrices)
    if "max" not in name and name != "overlap":  # whose units are not the network's own
        expect_true(name, matrices)


def expect_true(name: str, matrices: checker._Matrices) -> None:
    part = matrices.part
    model, shape = case(name)
    generator = torch.Generator().manual_seed(7)
    for _ in range(3):
        found = pair(model, shape, generator)
        owners = [u[0] for u in part.units]
        spectra = [on_torus(found.x, part.counts, part.top)]
        spectra += [on_torus(e, part.counts, part._phases(n)) for n, e in zip(owners, found.units, strict=True)]
        z = np.concatenate(spectra, axis=-1)
        assert z.shape[-1] == matrices.order

        def form(square: float, values: np.ndarray, z: np.ndarray = z) -> float:
            matrices.square, matrices.values = square, values
            every = (z[w].conj() @ matrices._matrix(w) @ z[w] for w in np.ndindex(*part.counts))
            return float(sum(every).real)

        none = np.zeros(len(matrices.values))
        size, gain = float((found.x**2).sum()), float((found.output**2).sum())
        scale = 1e-11 * (size + gain + float((np.abs(z) ** 2).sum()))
        assert form(0.0, none) <= -gain + scale
        assert abs(form(1.0, none) - form(0.0, none) - size) <= scale
        for unit in np.eye(len(none)):
            assert form(0.0, unit) - form(0.0, none) <= scale


def expect_the_same(name: str, matrices: checker._Matrices) -> None:
    model, shape = case(name)
    problem = pose(load(model, input_shape=shape).graph, Claim("l2"))
    torus = Torus(problem, 0, problem.graph.output)
    assert torus.counts == matrices.part.counts
    every = np.array(list(np.ndindex(*torus.counts)), dtype=np.int64)
    rng = np.random.default_rng(1)
    values = rng.uniform(0.5, 2.0, len(matrices.values))
    matrices.square, matrices.values = 3.0, values
    searched = blocks(torus.walk(every), len(every)).matrices(3.0, values)
    for w, m in zip(every, searched, strict=True):
        np.testing.assert_allclose(matrices._matrix(tuple(w)), m, rtol=0, atol=1e-10)
