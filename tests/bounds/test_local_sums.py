"""Quadratic bounds in l1 and linf, and covers by boxes: never below enumerations, near the exact constant, refused when tampered with."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lipcheck
from bounds.local_cases import problem
from bounds.test_branch import he
from harness.bundle_writer import Arrays, real, seal
from harness.cells import Where, enumerated
from harness.exact import matrix_norm, sampled_lower
from harness.expect import expect_lower, expect_upper
from harness.networks import BY_NAME
from lipcheck.boxes import Box as Flat
from lipcheck.cover import boxes_of
from lipcheck.errors import Rejected
from lipscope import Ball, Box, load
from lipscope.bounds.local import cover
from lipscope.bounds.local.cover import covered
from lipscope.bounds.local.method import LocalJacobian, quadratic_part
from lipscope.bounds.method import Candidate, Effort, Proof
from lipscope.bounds.problem import Problem, pose
from lipscope.bounds.quadratic import sums
from lipscope.bounds.quadratic.forms import piece
from lipscope.bounds.quadratic.pairs import shared_multipliers
from lipscope.certificate.bundle import write_bundle
from lipscope.certificate.result import Result, Upper
from lipscope.claims.claim import Claim, Output
from lipscope.claims.regions import Region


@pytest.fixture(autouse=True)
def little_time_for_the_witness(monkeypatch: pytest.MonkeyPatch) -> None:
    """It decides when a cover is fine enough, and nothing that is tested here."""
    monkeypatch.setattr(cover, "QUICK", 0.02)


def posed(module: nn.Module, size: int, norm: str, where: Region) -> Problem:
    return pose(load(module, input_shape=(size,)).graph, Claim(norm, where, Output()))


def around(size: int, radius: float) -> Box:
    center = np.full(size, 0.2)
    return Box(center - radius, center + radius)


def found(claim: Problem, boxes: int, seconds: float = 60.0) -> tuple[Candidate, dict[str, Any]]:
    """The bound, and the checker's verdict on it."""
    candidate = LocalJacobian(boxes=boxes).run(claim, Effort(deadline=time.monotonic() + seconds))
    result = Result(claim, Upper(candidate.value, "local", "computed"), candidate, None, None, (candidate,))
    verdict = result.checked().verdict
    assert verdict is not None
    return candidate, verdict


def patterns(module: nn.Sequential, claim: Problem) -> float:
    """The largest norm over all choices of ends of all slopes."""
    weights = [part.weight.detach().numpy() for part in module if isinstance(part, nn.Linear)]
    ends = [np.stack([s.numpy().reshape(-1) for s in pair]) for pair in claim.slopes.values()]
    places = [(k, j) for k, pair in enumerate(ends) for j in range(pair.shape[1]) if pair[0, j] != pair[1, j]]
    best = 0.0
    for bits in itertools.product((0, 1), repeat=len(places)):
        chosen = [pair[0].copy() for pair in ends]
        for (k, j), bit in zip(places, bits, strict=True):
            chosen[k][j] = ends[k][bit, j]
        matrix = weights[0]
        for weight, slopes in zip(weights[1:], chosen, strict=True):
            matrix = weight @ (slopes[:, None] * matrix)
        best = max(best, matrix_norm(matrix, claim.norm))
    return best


@pytest.mark.parametrize("norm", ["l1", "linf"])
@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.GELU, lambda: nn.LeakyReLU(3.0), lambda: nn.LeakyReLU(-0.5)])
def test_not_below_the_worst_pattern_and_near_it(act: Any, norm: str) -> None:
    module = he((3, 5, 4, 2), 21, act)
    claim = posed(module, 3, norm, around(3, 0.8))
    step = quadratic_part(claim, 0, claim.graph.output, Effort(), None)
    assert step is not None
    worst = patterns(module, claim)
    expect_upper(step.constant, worst)
    expect_lower(step.constant, 1.35 * worst)


@pytest.mark.parametrize("norm", ["l1", "linf"])
@pytest.mark.parametrize("dims", [(2, 8, 3), (3, 4, 4, 4, 2)])
def test_not_below_the_exact_constant_and_within_half_of_it(dims: tuple[int, ...], norm: str) -> None:
    """Two to four layers against an enumeration of all cells."""
    module, box = he(dims, 5), around(dims[0], 0.4)
    exact = enumerated(module, dims[0], norm, Where("box", box.lower, box.upper))
    candidate, verdict = found(posed(module, dims[0], norm, box), 4)
    expect_upper(candidate.value, exact.lo)
    expect_lower(candidate.value, 1.5 * exact.hi)
    assert verdict["upper"]["status"] == "certified", verdict["upper"]


@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_wider_networks_come_within_half_of_a_witness(norm: str) -> None:
    """Where boxes without quadratic constraints end at more than twice the sampled quotient."""
    module, box = he((2, 30, 30, 2), 1), around(2, 0.1)
    claim = posed(module, 2, norm, box)
    candidate, verdict = found(claim, 12)
    truth = sampled_lower(module, (2,), norm, (box.lower, box.upper), count=60)
    expect_upper(candidate.value, truth)
    expect_lower(candidate.value, 1.5 * truth)
    assert candidate.proof is not None
    assert verdict["upper"]["status"] == "certified", verdict["upper"]


@settings(max_examples=6, deadline=None)
@given(
    st.integers(1, 3), st.lists(st.integers(1, 4), min_size=1, max_size=2), st.integers(1, 2),
    st.integers(0, 10**6), st.sampled_from(["l1", "linf"]),
)  # fmt: skip
def test_small_integer_weights(inputs: int, hidden: list[int], outputs: int, seed: int, norm: str) -> None:
    """Dead, parallel and equal units in plenty: zero rows, singular matrices."""
    module = he((inputs, *hidden, outputs))
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(generator.integers(-1, 2, tuple(parameter.shape))))
    where = Box(np.full(inputs, -2.0), np.full(inputs, 1.0))
    candidate, verdict = found(posed(module, inputs, norm, where), 3, 2.0)
    expect_upper(candidate.value, enumerated(module, inputs, norm, Where("box", where.lower, where.upper)).lo)
    assert verdict["upper"]["status"] == "certified", verdict["upper"]


@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_many_inputs_and_few_units_are_certified(norm: str) -> None:
    """A column is about one entry of the input, whatever the others would need."""
    network = BY_NAME["conv-valid"]
    center = np.random.default_rng(7).standard_normal(int(np.prod(network.shape))) * 0.2
    graph = load(network.module(), input_shape=network.shape).graph
    claim = pose(graph, Claim(norm, Box(center - 0.1, center + 0.3)))  # type: ignore[arg-type]
    candidate, verdict = found(claim, 1)
    assert candidate.proof is not None and "quadratic" in {step.rule for step in candidate.proof.steps}
    assert verdict["upper"]["status"] == "certified", verdict["upper"]


def test_a_ball_of_linf_is_covered_by_boxes_and_one_of_l1_is_not() -> None:
    module = he((2, 12, 12, 2), 1)
    for norm, cut in (("linf", True), ("l1", False)):
        candidate, verdict = found(posed(module, 2, norm, Ball(np.full(2, 0.2), 0.5)), 6)
        assert candidate.proof is not None
        assert (candidate.proof.cover is not None) == cut
        assert verdict["upper"]["status"] == "certified", verdict["upper"]


def test_stopped_by_the_user_it_keeps_the_cover_so_far() -> None:
    claim = posed(he((2, 12, 12, 2), 1), 2, "linf", around(2, 0.5))
    method = LocalJacobian()
    root = method.bounded(claim, Effort())

    def stop(message: str, share: float) -> None:
        if "5 boxes" in message:
            raise KeyboardInterrupt

    candidate = covered(claim, root, method.bounded, Effort(progress=stop))
    assert candidate.interrupted
    assert candidate.value is not None and root.value is not None and candidate.value < root.value
    assert candidate.proof is not None and candidate.proof.cover is not None
    assert len(candidate.proof.cover.leaves) == 5


def test_stopped_within_the_bound_of_a_box_it_keeps_the_cover_so_far() -> None:
    """A bound that was stopped returns what it has, and says so: no further box is begun."""
    claim = posed(he((2, 12, 12, 2), 1), 2, "linf", around(2, 0.5))
    method, asked = LocalJacobian(), list[Problem]()

    def bounding(part: Problem, effort: Effort, enough: float) -> Candidate:
        asked.append(part)
        candidate = method.bounded(part, effort, enough)
        return replace(candidate, interrupted=len(asked) == 7)

    candidate = covered(claim, method.bounded(claim, Effort()), bounding, Effort())
    assert candidate.interrupted and len(asked) == 7
    assert candidate.proof is not None and candidate.proof.cover is not None
    assert len(candidate.proof.cover.leaves) == 4


@pytest.mark.parametrize("norm", ["l1", "linf"])
@pytest.mark.parametrize("kind", ["a dead output", "a dead layer", "the same outputs"])
def test_an_output_that_is_zero_is_proved_to_be_near_it(kind: str, norm: str) -> None:
    """It was computed as 0, which is so within rounding only: the checker has to be left room for that."""
    module = he((3, 5, 4, 2), 3, nn.Tanh)
    last, output = module[4].weight, Output(0, 1) if kind == "the same outputs" else Output()
    with torch.no_grad():
        if kind == "a dead output":
            last[0] = 0
        else:
            last[1] = last[0]
            last *= kind == "the same outputs"
    claim = pose(load(module, input_shape=(3,)).graph, Claim(norm, around(3, 0.8), output))
    step = quadratic_part(claim, 0, claim.graph.output, Effort(), None)
    assert step is not None
    if kind == "a dead output":
        expect_upper(step.constant, patterns(module, claim))
    else:
        expect_lower(step.constant, 1e-3)
    candidate = Candidate("local", step.constant * (1 + 1e-12), 0.0, Proof("local", (step,)))
    result = Result(claim, Upper(candidate.value, "local", "computed"), candidate, None, None, (candidate,))
    verdict = result.checked().verdict
    assert verdict is not None and verdict["upper"]["status"] == "certified", verdict


@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_rows_share_no_multipliers_with_differences_of_outputs(norm: str) -> None:
    """Every row has its own; those of l2 alone are handed on to pairs of outputs."""
    result = proved(1, norm)
    assert result.candidate is not None and result.candidate.proof is not None
    assert result.candidate.proof.steps[-1].rule == "quadratic"
    assert shared_multipliers(result.problem, result.candidate.proof, [(0, 1)]) == {}


def test_multipliers_that_are_too_small_are_not_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: the search returns a q that is a little smaller than what it found."""
    claim = problem("two-hidden", "linf", "large")
    part, plain = piece(claim, 0, claim.graph.output), sums.search
    assert sums.bound_sums(part, "linf", float("inf")) is not None
    monkeypatch.setattr(sums, "search", lambda *a: [(q * (1 - 1e-2), p, v) for q, p, v in plain(*a)[-1:]])
    assert sums.bound_sums(part, "linf", float("inf")) is None


@cache
def proved(boxes: int, norm: str) -> Result:
    claim = posed(he((2, 12, 12, 2), 1), 2, norm, around(2, 0.5))
    candidate = LocalJacobian(boxes=boxes).run(claim, Effort(deadline=time.monotonic() + 60))
    return Result(claim, Upper(candidate.value, "local", "computed"), candidate, None, None, (candidate,))


def bundle(path: Path, boxes: int, norm: str) -> Path:
    folder = path / "bundle"
    write_bundle(proved(boxes, norm), folder)
    return folder


def change(folder: Path, edit: Any) -> lipcheck.Verdict:
    """Edit the proof, redo all digests, and check."""
    content, arrays = json.loads((folder / "proof.json").read_text()), Arrays()
    edit(content, arrays)
    (folder / "proof.json").write_text(json.dumps(content))
    for digest, array in arrays.known.items():
        np.save(folder / "arrays" / f"{digest}.npy", array)
    return lipcheck.check(seal(folder))


@pytest.mark.parametrize("norm", ["l1", "linf"])
@pytest.mark.parametrize("field", ["norm", "weights", "multipliers"])
def test_tampered_evidence_is_refused(tmp_path: Path, field: str, norm: str) -> None:
    folder = bundle(tmp_path, 1, norm)

    def edit(proof: Any, arrays: Arrays) -> None:
        step = proof["steps"][-1]
        assert step["rule"] == "quadratic"
        evidence = step["evidence"]
        if field == "norm":
            step["norm"] = real(float.fromhex(step["norm"]["float"]) * (1 - 1e-3))
            return
        holder, key = (
            (evidence, "weights") if field == "weights" else (evidence["multipliers"], min(evidence["multipliers"]))
        )
        values = np.load(folder / "arrays" / f"{holder[key]['array']}.npy").copy()
        values[..., 0] *= 0.5
        holder[key] = arrays(values)

    verdict = change(folder, edit)
    assert verdict.upper["status"] == "rejected", verdict.upper


@pytest.mark.parametrize("edit", ["lost leaf", "wrong box", "outside", "extra leaf", "inner cover", "everywhere"])
def test_tampered_covers_are_refused(tmp_path: Path, edit: str) -> None:
    folder = bundle(tmp_path, 5, "linf")

    def change_proof(proof: Any, arrays: Arrays) -> None:
        assert len(proof["leaves"]) > 2
        if edit == "lost leaf":
            proof["leaves"].pop()
        elif edit == "extra leaf":
            proof["leaves"].append(proof["leaves"][0])
        elif edit == "wrong box":
            proof["leaves"].reverse()
        elif edit == "outside":
            proof["cover"][0][1] = real(7.0)
        elif edit == "inner cover":
            proof["leaves"][0] = {"method": "local", "cover": [None], "leaves": [proof["leaves"][0]]}
        else:
            proof["cover"] = [None]

    assert change(folder, change_proof).upper["status"] == "rejected"


def test_cuts_cover_the_box() -> None:
    """Random points lie in at least one of the boxes, which are as many as stay whole; odd lists are refused."""
    around_ = Flat(np.array([-1.0, 0.0]), np.array([1.0, 3.0]))
    document = [[0, real(0.5)], [1, real(1.0)], None, None, None]
    boxes = list(boxes_of(document, around_))
    assert len(boxes) == 3
    for x in np.random.default_rng(0).uniform([-1, 0], [1, 3], (200, 2)):
        assert any(((b.lo <= x) & (x <= b.hi)).all() for b in boxes)
    for bad in (
        [],
        [[0, real(0.5)], None],
        [None, None],
        [[2, real(0.5)], None, None],
        [[0, real(1.0)], None, None],
        [0],
    ):
        with pytest.raises(Rejected):
            list(boxes_of(bad, around_))
