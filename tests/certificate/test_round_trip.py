"""Every network of the table ends in a bundle that the independent checker accepts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import lipcheck
from harness.networks import BY_NAME, NETWORKS
from lipscope import Ball, Box, bound, load
from lipscope.claims.regions import Region


def region(kind: str, size: int) -> Region | str:
    center = np.random.default_rng(7).standard_normal(size) * 0.2
    return {"everywhere": "everywhere", "box": Box(center - 0.1, center + 0.3), "ball": Ball(center, 0.25)}[kind]


@pytest.mark.parametrize("name", [n.name for n in NETWORKS])
def test_both_sides_are_certified(name: str) -> None:
    network = BY_NAME[name]
    model = load(network.module(), input_shape=network.shape)
    for norm, kind in (("l2", "everywhere"), ("l1", "box"), ("linf", "ball")):
        result = bound(model, norm, region(kind, math.prod(network.shape)), budget=1)
        assert result.upper.status == "certified", (norm, kind, result.upper)
        assert result.lower_status == "certified", (norm, kind, result.verdict)
        assert result.verdict is not None
        assert result.verdict["agreement"]["largest_relative_error"] < 1e-9


def test_saving_keeps_the_verdict_and_replaces_an_older_bundle(tmp_path: Path) -> None:
    network = BY_NAME["one-hidden"]
    model = load(network.module(), input_shape=network.shape)
    folder = tmp_path / "bundle"
    first = bound(model, "l2", budget=2, check=False)
    assert first.upper.status == "computed"
    assert first.save(folder, check=False).upper.status == "computed"
    assert not (folder / "verdict.json").exists()
    second = bound(model, "l2", budget=2).save(folder)
    assert second.upper.status == "certified"
    assert json.loads((folder / "verdict.json").read_text())["accepted"]
    assert lipcheck.check(folder).accepted
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "bundle.json", "graph.json", "claim.json", "proof.json", "witness.json", "agreement.json", "result.json",
        "arrays", "verdict.json",
    }  # fmt: skip


def test_a_claim_below_the_truth_is_refused(tmp_path: Path) -> None:
    """The producer's own hashes are redone, so only the mathematics can refuse."""
    import hashlib

    network = BY_NAME["two-hidden"]
    folder = tmp_path / "bundle"
    result = bound(load(network.module(), input_shape=network.shape), "l2", budget=2).save(folder)
    claim = json.loads((folder / "claim.json").read_text())
    claim["upper"]["value"] = {"float": (result.upper.value * (1 - 1e-6)).hex()}
    content = json.dumps(claim).encode()
    (folder / "claim.json").write_bytes(content)
    index = json.loads((folder / "bundle.json").read_text())
    index["files"]["claim.json"] = hashlib.sha256(content).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(index))
    verdict = lipcheck.check(folder)
    assert not verdict.accepted
    assert verdict.upper["status"] == "rejected"


def test_a_refused_method_is_an_answer_that_the_checker_reads() -> None:
    network = BY_NAME["one-hidden"]
    result = bound(load(network.module(), input_shape=network.shape), "linf", method="lipsdp", budget=2)
    assert result.upper.status == "no-bound"
    assert "l2" in (result.upper.reason or "")
    assert result.verdict is not None and result.verdict["accepted"]
