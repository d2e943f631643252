"""Planted falsehoods in bundles with narrowed boxes, absolute compositions and enclosed Jacobians: the checker refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lipcheck
from bounds.local_cases import problem, result
from harness.bundle_writer import Arrays, real, seal
from lipscope.bounds.local.backward import Backward
from lipscope.certificate.bundle import write_bundle


def bundle(path: Path, name: str, norm: str, kind: str, method: str) -> Path:
    folder = path / "bundle"
    write_bundle(result(problem(name, norm, kind), method), folder)
    return folder


def change(folder: Path, document: str, edit: Any) -> Any:
    """Edit a document of the bundle, redo all digests, and check."""
    content = json.loads((folder / document).read_text())
    arrays = Arrays()
    edit(content, arrays)
    (folder / document).write_text(json.dumps(content))
    for digest, array in arrays.known.items():
        np.save(folder / "arrays" / f"{digest}.npy", array)
    return lipcheck.check(seal(folder))


def load(folder: Path, reference: dict[str, str]) -> np.ndarray:
    return np.load(folder / "arrays" / f"{reference['array']}.npy")


def refused(verdict: Any, words: str) -> None:
    assert verdict.upper["status"] == "rejected"
    assert words in verdict.reasons[0], verdict.reasons


@pytest.mark.parametrize(
    ("norm", "kind", "method"), [("l2", "ball", "product"), ("linf", "large", "local"), ("l1", "ball", "absolute")]
)
def test_the_honest_bundle_is_accepted(tmp_path: Path, norm: str, kind: str, method: str) -> None:
    folder = bundle(tmp_path, "tanh", norm, kind, method)
    assert "narrowed" in json.loads((folder / "proof.json").read_text())
    assert lipcheck.check(folder).accepted


@pytest.mark.parametrize("field", ["lower_offset", "upper_offset", "lower_slope", "upper_slope"])
@pytest.mark.parametrize("name", ["tanh", "two-hidden"])
def test_a_line_that_cuts_the_function(tmp_path: Path, name: str, field: str) -> None:
    """Moved by 1e-3 inward (slopes: turned, which cuts at one end or the other)."""
    folder = bundle(tmp_path, name, "l2", "ball", "product")

    def edit(proof: Any, arrays: Arrays) -> None:
        key = min(proof["lines"], key=int)
        values = load(folder, proof["lines"][key][field])
        change_by = {"lower_offset": 1e-3, "upper_offset": -1e-3}.get(field, 0.5)
        proof["lines"][key][field] = arrays(values + change_by)

    refused(change(folder, "proof.json", edit), "are not proved")


@pytest.mark.parametrize("side", ["lower", "upper"])
def test_slopes_narrowed_by_little(tmp_path: Path, side: str) -> None:
    folder = bundle(tmp_path, "tanh", "linf", "small", "local")

    def edit(proof: Any, arrays: Arrays) -> None:
        key = min(proof["slopes"], key=int)
        values = load(folder, proof["slopes"][key][side])
        proof["slopes"][key][side] = arrays(values + (1e-9 if side == "lower" else -1e-9))

    refused(change(folder, "proof.json", edit), "too narrow")


def test_intervals_without_their_narrowing(tmp_path: Path) -> None:
    folder = bundle(tmp_path, "tanh", "l2", "ball", "product")

    def edit(proof: Any, arrays: Arrays) -> None:
        del proof["narrowed"], proof["lines"]

    refused(change(folder, "proof.json", edit), "is not proved")


def test_a_missing_bias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer that forgets the layers' constants on the way back writes bundles that are refused."""
    plain = Backward._majorant

    def without(self: Backward, index: int, node: object) -> Any:
        bias, largest, count = plain(self, index, node)
        return 0 * bias, largest, count

    monkeypatch.setattr(Backward, "_majorant", without)
    folder = bundle(tmp_path, "tanh", "l2", "ball", "product")
    refused(lipcheck.check(folder), "not proved")


@pytest.mark.parametrize(
    ("method", "norm"),
    [("local", "linf"), ("local", "l1"), ("absolute", "linf"), ("absolute", "l1"), ("absolute", "l2")],
)
def test_a_smaller_norm_is_refused(tmp_path: Path, method: str, norm: str) -> None:
    folder = bundle(tmp_path, "two-hidden", norm, "everywhere", method)

    def edit(proof: Any, arrays: Arrays) -> None:
        step = next(s for s in proof["steps"] if s["rule"] in ("absolute", "jacobian"))
        step["norm"] = real(float.fromhex(step["norm"]["float"]) * (1 - 1e-6))

    refused(change(folder, "proof.json", edit), ", above")


@pytest.mark.parametrize(
    ("field", "value"),
    [("split", {"2": [99]}), ("split", {"2": [0, 0]}), ("split", {"1": [0]}), ("lines", [1]), ("lines", [-1])],
)
def test_evidence_that_does_not_fit(tmp_path: Path, field: str, value: Any) -> None:
    folder = bundle(tmp_path, "two-hidden", "linf", "everywhere", "local")

    def edit(proof: Any, arrays: Arrays) -> None:
        evidence = next(s for s in proof["steps"] if s["rule"] == "jacobian")["evidence"]
        if field == "split":
            evidence["split"] = {key: arrays(v, np.int64) for key, v in value.items()}
        else:
            evidence["lines"] = arrays(value, np.int64)

    refused(change(folder, "proof.json", edit), "expected")


@pytest.mark.parametrize("vector", [[0.0, 1, 1, 1], [-1.0, 1, 1, 1]])
def test_a_vector_that_proves_nothing(tmp_path: Path, vector: list[float]) -> None:
    folder = bundle(tmp_path, "two-hidden", "l2", "everywhere", "absolute")

    def edit(proof: Any, arrays: Arrays) -> None:
        proof["steps"][0]["evidence"]["vector"] = arrays(vector)

    refused(change(folder, "proof.json", edit), "above 0")


def test_narrowed_boxes_are_for_regions(tmp_path: Path) -> None:
    folder = bundle(tmp_path, "two-hidden", "linf", "everywhere", "local")

    def edit(proof: Any, arrays: Arrays) -> None:
        proof.update(lines={}, narrowed={"3": {"entries": arrays([0], np.int64)}})

    refused(change(folder, "proof.json", edit), "everywhere")
