"""Proofs frequency by frequency, moved to bands: multipliers of units in the place of those of channels."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import lipscope.bounds.auto as auto
import lipscope.bounds.quadratic.method as quadratic
import lipscope.frequency.band_bounds as module
import lipscope.frequency.unit_multipliers as own
from frequency.cases import loaded, noise, seeded
from lipscope.bounds.method import Candidate, Effort, Proof, Step
from lipscope.bounds.problem import Problem, pose
from lipscope.bounds.product import Product
from lipscope.bounds.quadratic.method import LipSDP
from lipscope.certificate.bundle import write_bundle
from lipscope.claims.claim import Claim
from lipscope.frequency.band_bounds import prove_band_bounds
from lipscope.frequency.bands import band_masks
from lipscope.frequency.jacobian import sensitivity
from lipscope.frequency.layout import Layout
from lipscope.frequency.spectrum import graph_model
from lipscope.frequency.unit_multipliers import by_unit, on_torus, proof_seconds
from lipscope.network.graph import Graph


@pytest.fixture
def images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without parts that are bounded with all units at once, as in networks for which these are too large."""
    monkeypatch.setattr(quadratic, "windows", lambda *_: [])


def strided() -> tuple[Graph, Layout]:
    """Two strides, so that multipliers are one a phase; odd sizes, so that phases end in the middle."""

    def make() -> nn.Module:
        convolutions = nn.Conv2d(1, 3, 3, stride=(2, 1), padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, stride=2, padding=1)
        return nn.Sequential(*convolutions, nn.LeakyReLU(0.2), nn.Flatten(), nn.LazyLinear(3))

    module = make()
    module(torch.zeros(1, 1, 9, 7))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        for p in module.parameters():
            nn.init.normal_(p, std=0.4)
    return loaded(module, (1, 9, 7))


def searched(graph: Graph) -> tuple[Problem, Candidate]:
    problem = pose(graph, Claim())
    return problem, LipSDP().run(problem, Effort(deadline=time.monotonic() + 1e6))


@pytest.mark.usefixtures("images_only")
def test_units_prove_no_more_than_their_channels() -> None:
    problem, found = searched(strided()[0])
    assert found.proof is not None
    torus = next(step for step in found.proof.steps if on_torus(step))
    moved = by_unit(problem, found)
    assert moved is not None and moved.proof is not None and not any(map(on_torus, moved.proof.steps))
    step = next(s for s in moved.proof.steps if s.rule == "quadratic")
    assert step.start == 0 and step.norm is None and torus.norm is not None
    norm = module._again(problem, step)
    assert norm <= torus.norm * (1 + 1e-7)
    # On the torus there is more than the image; the two are near each other, so that channels and phases are where they belong.
    assert norm >= 0.8 * torus.norm


@pytest.mark.usefixtures("images_only")
def test_a_part_behind_the_input_is_proved_again() -> None:
    problem, found = searched(strided()[0])
    assert found.proof is not None
    step = next(step for step in found.proof.steps if on_torus(step))
    middle = min(i for i, node in enumerate(problem.graph.nodes) if node.kind == "Elementwise")
    torus = own.Torus(problem, middle, step.node)
    channels = {str(step.node): step.evidence["multipliers"][str(step.node)]}  # type: ignore[index]
    late = Step(step.node, "quadratic", 1.0, middle, 1.0, {"kind": "torus", "counts": [], "multipliers": channels})
    moved = by_unit(problem, Candidate("lipsdp", 1.0, 0.0, Proof("lipsdp", (late,))))
    assert moved is not None and moved.proof is not None and moved.proof.steps[0].norm not in (None, 1.0)
    assert torus.phases(step.node) == (1, 1)


@pytest.mark.usefixtures("images_only")
def test_bands_are_certified_and_below_the_plain_bound(tmp_path: Path) -> None:
    graph, layout = strided()
    bands = band_masks(layout.grid, 3)
    found = prove_band_bounds(graph, layout, bands, 1e6, "lipsdp")
    gains = sensitivity(graph_model(graph, layout), noise(20, 1, 9, 7), bands).gains.amax(dim=0)
    total = found.total.found.value
    assert total is not None and any(map(on_torus, found.total.candidate.proof.steps))  # type: ignore[union-attr]
    for gain, result in zip(gains.tolist(), found.bands, strict=True):
        value = result.found.value
        assert value is not None and gain <= value <= total
        assert result.problem.claim.directions is not None
    assert [r.upper.status for r in found.checked().bands] == ["certified"] * 3
    write_bundle(found.bands[0], tmp_path / "band")
    kinds = [s.get("evidence", {}).get("kind") for s in json.loads((tmp_path / "band/proof.json").read_text())["steps"]]
    assert "quadratic" in kinds and "torus" not in kinds


@pytest.mark.usefixtures("images_only")
@pytest.mark.parametrize("reason", ["pooling", "size", "memory"])
def test_parts_that_cannot_be_moved_leave_the_plain_bound(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, layout = strided()
    if reason == "pooling":  # a maximum over a window has units that are not those of a node
        monkeypatch.setattr(own, "refusal", lambda *_: "MaxPool is not a function with bounded slopes")
    if reason == "size":
        monkeypatch.setattr(own, "dimension", lambda *_: 10**6)
    if reason == "memory":
        monkeypatch.setattr(own, "affordable", lambda _: 0)
    found = prove_band_bounds(graph, layout, band_masks(layout.grid, 2), 1e6, "lipsdp")
    assert any(map(on_torus, found.total.candidate.proof.steps))  # type: ignore[union-attr]
    assert all(result is found.total for result in found.bands)


def test_time_left_over_goes_to_bands_that_had_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, layout = loaded(seeded(lambda: nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))), (8,))
    monkeypatch.setattr(
        auto,
        "candidates",
        lambda problem, effort, _: (method.run(problem, effort) for method in (Product(), LipSDP())),
    )
    asked: list[float] = []

    def slow_at_first(*arguments: object) -> float:
        asked.append(1e9 if len(asked) < 2 else 0.0)
        return asked[-1]

    monkeypatch.setattr(module, "proof_seconds", slow_at_first)
    patient = prove_band_bounds(graph, layout, band_masks((8,), 2), 1e6)
    assert len(asked) == 4
    monkeypatch.setattr(module, "proof_seconds", lambda *_: 1e9)
    hasty = prove_band_bounds(graph, layout, band_masks((8,), 2), 1e6)
    pairs = zip(patient.bands, hasty.bands, strict=True)
    assert all((a.found.value or 0) < (b.found.value or 0) for a, b in pairs)


def test_seconds_count_the_steps_from_the_input() -> None:
    problem, found = searched(
        loaded(seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))), (4,))[0]
    )
    assert found.proof is not None
    step = next(s for s in found.proof.steps if s.rule == "quadratic")
    assert 0 < proof_seconds(problem, [step]) < 1
    assert proof_seconds(problem, [Step(step.node, "segment", 1.0, 0, 1.0)]) == 0
