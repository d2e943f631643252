"""Parts made of convolutions, bounded frequency by frequency: never below the truth, checked, and better than a product."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bounds.test_quadratic import put, tampered
from harness.expect import expect_close, expect_upper
from harness.networks import Residual
from lipscope import bound, load
from lipscope.bounds.method import Effort
from lipscope.bounds.problem import Problem, pose
from lipscope.bounds.product import Product
from lipscope.bounds.quadratic import method as quadratic
from lipscope.bounds.quadratic import torus as module
from lipscope.bounds.quadratic import torus_axes
from lipscope.bounds.quadratic.method import LipSDP
from lipscope.bounds.quadratic.torus import Torus
from lipscope.bounds.quadratic.torus_axes import NoTorus
from lipscope.bounds.quadratic.torus_parts import bound_part
from lipscope.bounds.quadratic.torus_search import blocks
from lipscope.bounds.quadratic.windows import Window
from lipscope.claims.claim import Claim


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = build().double()
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_var.uniform_(0.1, 2.0)
                nn.init.normal_(part.weight)
    return model.eval()


def residual() -> nn.Module:
    inner = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2))
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), Residual(inner), nn.ReLU())


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "stride": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 3, padding=1)), (1, 5, 6)),
    "max": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 2)), (1, 4, 4)),
    "overlap": (lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.GELU(), nn.MaxPool2d(3, 2, 1)), (1, 5, 5)),
    "mean": (lambda: nn.Sequential(*residual().children(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)), (1, 4, 3)),
    "average": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=2, dilation=2), nn.LeakyReLU(-0.3), nn.AvgPool2d(2, 2),
                                      nn.Conv2d(4, 2, 3, padding=1, groups=2), nn.Tanh()), (1, 4, 6)),
    "residual": (residual, (1, 3, 4)),
    "line": (lambda: nn.Sequential(nn.Conv1d(2, 2, 3, padding=1), nn.ReLU(), nn.Conv1d(2, 2, 3, stride=2)), (2, 7)),
}  # fmt: skip


def problem(name: str) -> tuple[nn.Module, Problem]:
    build, shape = CASES[name]
    model = seeded(build)
    return model, pose(load(model, input_shape=shape).graph, Claim("l2"))


def largest_jacobian(model: nn.Module, shape: tuple[int, ...]) -> float:
    """The largest norm of the Jacobian that random points and ascent along their singular vectors come to."""
    generator = torch.Generator().manual_seed(0)

    def forward(x: Tensor) -> Tensor:
        return model(x[None]).reshape(-1)

    worst = 0.0
    for scale in (0.3, 1.0, 10.0) * 25:
        x = torch.randn(shape, dtype=torch.float64, generator=generator) * scale
        for _ in range(3):
            jacobian = torch.func.jacrev(forward)(x).reshape(-1, x.numel())
            _, s, v = torch.linalg.svd(jacobian.detach())
            worst = max(worst, float(s[0]))
            x = (x + scale * v[0].reshape(shape)).detach()
    return worst


@pytest.fixture
def on_tori(monkeypatch: pytest.MonkeyPatch) -> None:
    """No part may be unrolled."""
    monkeypatch.setattr(LipSDP, "limit", 0)


@pytest.mark.usefixtures("on_tori")
@pytest.mark.parametrize("name", CASES)
def test_certified_above_the_truth_and_not_above_the_product(name: str) -> None:
    build, shape = CASES[name]
    model = seeded(build)
    loaded = load(model, input_shape=shape)
    found, product = (bound(loaded, "l2", method=m, budget=8) for m in ("lipsdp", "product"))
    assert found.upper.status == "certified", found.upper
    worst = max(largest_jacobian(model, shape), found.lower)
    expect_upper(found.upper.value, worst)
    assert found.upper.value <= product.upper.value * (1 + 1e-9)


@pytest.mark.usefixtures("on_tori")
@pytest.mark.parametrize("name", ["residual", "mean"])
def test_less_than_the_product(name: str) -> None:
    posed = problem(name)[1]
    found, product = (method.search(posed, Effort()) for method in (LipSDP(), Product()))
    assert found.proof is not None
    assert [s.evidence["kind"] for s in found.proof.steps if s.rule == "quadratic" and s.evidence] == ["torus"]
    assert (found.value or np.inf) < 0.97 * (product.value or 0.0)


@pytest.mark.parametrize("name", CASES)
def test_the_torus_computes_what_the_network_does(name: str) -> None:
    """What the first convolution's units read of an image put on the torus is, inside the next image, what the convolution gives."""
    shape = CASES[name][1]
    model, posed = problem(name)
    torus = Torus(posed, 0, posed.graph.output)
    every = np.stack(np.meshgrid(*(np.arange(n) for n in torus.counts), indexing="ij"), -1).reshape(
        -1, len(torus.counts)
    )
    part = blocks(torus.walk(every), len(every))
    reads = part.reads
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((2, *shape), dtype=torch.float64, generator=generator)
    image = np.zeros((shape[0], *(n * s for n, s in zip(torus.counts, torus.stride, strict=True))))
    inside = tuple(slice(0, n) for n in shape[1:])
    image[(slice(None), *inside)] = (x[1] - x[0]).numpy()
    first = _spectrum(image, torus)
    # The first layer of units reads the input alone: its pre-activations are the first convolution's values.
    conv = next(m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d)))
    with torch.no_grad():
        expected = (conv(x[1:]) - conv(x[:1]))[0].numpy()
    units = len(next(iter(torus.walk(every[:1]).reads)).sizes[0])
    got = np.einsum("fux,fx->fu", reads[:, :units, : part.size], first)
    phases = torus.phases(next(i for i in torus.path if posed.graph.nodes[i].kind == "Conv"))
    back = _signal(got, torus, len(expected), phases)
    crop = tuple(slice(0, n) for n in expected.shape[1:])
    np.testing.assert_allclose(back[(slice(None), *crop)], expected, rtol=0, atol=1e-12)


def _spectrum(image: np.ndarray, torus: Torus) -> np.ndarray:
    """`(frequencies, channels and phases)` of an image on the torus, unitary; position P j + q is phase q."""
    split = image.reshape(len(image), *itertools.chain(*zip(torus.counts, torus.stride, strict=True)))
    axes = len(torus.counts)
    ordered = split.transpose(*(1 + 2 * a for a in range(axes)), 0, *(2 + 2 * a for a in range(axes)))
    spectrum = np.fft.fftn(ordered, axes=tuple(range(axes)), norm="ortho")
    return spectrum.reshape(int(np.prod(torus.counts)), -1)


def _signal(spectrum: np.ndarray, torus: Torus, channels: int, phases: tuple[int, ...]) -> np.ndarray:
    axes = len(torus.counts)
    folded = spectrum.reshape(*torus.counts, channels, *phases)
    split = np.fft.ifftn(folded, axes=tuple(range(axes)), norm="ortho").real
    order = [axes, *itertools.chain(*((a, axes + 1 + a) for a in range(axes)))]
    return split.transpose(order).reshape(channels, *(n * p for n, p in zip(torus.counts, phases, strict=True)))


def test_the_circle_is_as_short_as_it_may_be() -> None:
    """What padding reads behind the end may be what it reads before the beginning: one more than the image on each axis."""
    posed = problem("residual")[1]
    torus = Torus(posed, 0, posed.graph.output)
    assert torus.counts == (4, 5)
    assert bound_part(torus, Effort()) is not None


@pytest.mark.usefixtures("on_tori")
@pytest.mark.parametrize(
    "kind",
    ["smaller norm", "multipliers times 0.5", "negative", "missing", "short circle", "wrong shape", "other start"],
)
def test_tampered(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "bundle"
    build, shape = CASES["residual"]
    result = bound(load(seeded(build), input_shape=shape), "l2", method="lipsdp", budget=8).save(folder)
    assert result.upper.status == "certified"

    def change(proof: dict) -> None:
        step = next(s for s in proof["steps"] if s["rule"] == "quadratic")
        stored = step["evidence"]["multipliers"]
        node = sorted(stored)[0]
        values = np.load(folder / "arrays" / f"{stored[node]['array']}.npy")
        if kind == "smaller norm":
            step["norm"] = {"float": (float.fromhex(step["norm"]["float"]) * (1 - 1e-2)).hex()}
        if kind == "multipliers times 0.5":
            stored[node] = put(folder, proof, values * 0.5)
        if kind == "negative":
            stored[node] = put(folder, proof, -values)
        if kind == "missing":
            del stored[node]
        if kind == "short circle":
            step["evidence"]["counts"] = [n - 1 for n in step["evidence"]["counts"]]
        if kind == "wrong shape":
            stored[node] = put(folder, proof, values[:-1])
        if kind == "other start":
            step["from"] = 1

    verdict = tampered(folder, change)
    assert verdict.upper["status"] == "rejected"
    assert not verdict.accepted


def test_two_convolutions_without_units_between_are_refused() -> None:
    """The second would read what the first has written outside the image."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1), nn.ReLU()).double().eval()
    posed = pose(load(model, input_shape=(1, 4, 4)).graph, Claim("l2"))
    torus = Torus(posed, 0, posed.graph.output)
    with pytest.raises(NoTorus, match="outside the image"):
        torus.walk(torus.frequencies[:1])


@pytest.mark.usefixtures("on_tori")
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("contained", True, "not 0 outside its image"), ("needed", property(lambda self: self.size), "too few")],
)
def test_the_checker_refuses_what_a_careless_search_comes_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object, reason: str
) -> None:
    monkeypatch.setattr(torus_axes.Window, name, value)
    between = [nn.ReLU()] if name == "needed" else []
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *between, nn.Conv2d(2, 1, 3, padding=1), nn.ReLU())
    loaded = load(seeded(lambda: model), input_shape=(1, 4, 4))
    monkeypatch.setattr(quadratic, "cheapest", lambda passed, product, found: [Window(*ends) for ends in found])
    bound(loaded, "l2", method="lipsdp", budget=3, check=False).save(tmp_path / "bundle")
    verdict = tampered(tmp_path / "bundle", lambda proof: None)
    assert verdict.upper["status"] == "rejected"
    assert reason in str(verdict)


def test_memory_is_estimated_before(monkeypatch: pytest.MonkeyPatch) -> None:
    build, shape = CASES["residual"]
    monkeypatch.setattr(LipSDP, "limit", 0)
    posed = pose(load(seeded(build), input_shape=shape).graph, Claim("l2"))
    walked = []
    monkeypatch.setattr(module.Walk, "run", lambda self: walked.append(self))
    candidate = LipSDP().search(posed, replace(Effort(), memory=10_000))
    assert "no part of the network fits into --memory 10000 bytes" in candidate.note
    assert not walked
    expect_close(
        candidate.value or 0.0,
        float(bound(load(seeded(build), input_shape=shape), method="product", check=False).upper.value),
        1e-9,
    )
