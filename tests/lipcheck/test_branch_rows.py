"""The checker's rule `branch` in l1 and linf: inequalities of rows and columns, and what it refuses when they were tampered with."""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipcheck
from harness.expect import expect_lower, expect_upper
from harness.tampering import put, tampered
from lipcheck import branch_cells, branch_rows
from lipcheck.branch_network import Split
from lipcheck.errors import Rejected
from lipcheck.nodes import Network, Node
from lipcheck.region import Region
from lipscope import bound, load
from lipscope.bounds.branch import rows, workers
from lipscope.bounds.quadratic.wanted import Wanted

NORMS = ("l1", "linf")
FOREVER = Wanted(float("inf"), 0.0, 1e-6)


def network(seed: int = 5) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module.eval()


@functools.cache
def written(norm: str, planted: bool = False) -> Path:
    """A bundle of the method; `planted`: the search's numbers are believed, though its q are too small, and there is time for one cell."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(workers, "PATIENCE", np.inf)
        if planted:
            plain = rows.search
            patched.setattr(rows, "search", lambda *a: [p._replace(q=p.q * 0.97) for p in plain(a[0], FOREVER)])
            patched.setattr(rows, "quadratic_holds", lambda *a: True)
        budget = 0.01 if planted else 60
        result = bound(load(network(), input_shape=(4,)), norm, method="branch", budget=budget, check=False)
    folder = Path(tempfile.mkdtemp(prefix="lipscope-rows-"))
    result.save(folder / "bundle", check=False)
    return folder / "bundle"


def checked(source: Path, folder: Path, change: Callable[[list[Any], np.ndarray, dict[str, Any]], np.ndarray]) -> str:
    """The reasons for which a changed copy is refused; empty if it is certified."""

    def edit(proof: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        step = proof["steps"][0]
        evidence = step["evidence"]
        values = arrays.pop(evidence["multipliers"]["array"]).copy()
        evidence["multipliers"] = put(change(evidence["tree"], values, step), arrays)

    verdict = lipcheck.check(tampered(source, folder, edit))
    return "" if verdict.upper["status"] == "certified" else " ".join(verdict.upper["reasons"])


def first(tree: list[Any]) -> list[Any]:
    return next(entry for entry in tree if entry[0] == "quadratic")


def _scaled(factor: float) -> Callable[..., np.ndarray]:
    return lambda tree, values, step: values * factor


def _listed(change: Callable[[list[int]], Any]) -> Callable[..., np.ndarray]:
    def edit(tree: list[Any], values: np.ndarray, step: dict[str, Any]) -> np.ndarray:
        entry = first(tree)
        entry[1] = change(entry[1])
        return values

    return edit


def _smaller(tree: list[Any], values: np.ndarray, step: dict[str, Any]) -> np.ndarray:
    step["norm"] = {"float": (float.fromhex(step["norm"]["float"]) * (1 - 1e-3)).hex()}
    return values


def _as_in_l2(tree: list[Any], values: np.ndarray, step: dict[str, Any]) -> np.ndarray:
    del first(tree)[1]
    return values


CHANGES: dict[str, tuple[Callable[..., np.ndarray], str]] = {
    "multipliers 0": (_scaled(0.0), "positive"), "negative": (_scaled(-1.0), "positive"), "too small": (_scaled(1e-3), "do not prove"),
    "too large": (_scaled(1e6), "do not prove"), "far too large": (_scaled(1e250), "do not prove"), "one less": (lambda tree, values, step: values[:-1], "multiplier"),
    "one more": (lambda tree, values, step: np.append(values, 1.0), "multiplier"), "reversed": (lambda tree, values, step: values[::-1].copy(), "do not prove"),
    "a row twice": (_listed(lambda own: [own[0], *own]), "row"), "no such row": (_listed(lambda own: [*own[:-1], 4]), "row"),
    "true for a row": (_listed(lambda own: [True]), ""), "a row as a fraction": (_listed(lambda own: [0.0]), "row"), "no list": (_listed(lambda own: 0), "rows"),
    "no rows at all": (_listed(lambda own: []), "sum"), "a smaller bound": (_smaller, "prove"), "a leaf of l2": (_as_in_l2, "leaf"),
}  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
def test_untouched_bundles_are_accepted(norm: str, tmp_path: Path) -> None:
    source = written(norm)
    tree = json.loads((source / "proof.json").read_text())["steps"][0]["evidence"]["tree"]
    assert any(entry[0] == "split" for entry in tree), "the test needs a tree"
    assert any(entry[0] == "quadratic" and len(entry[1]) > 1 for entry in tree), (
        "the test needs cells with several rows"
    )
    assert checked(source, tmp_path, lambda tree, values, step: values) == ""


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", CHANGES)
def test_tampered_rows_are_refused(name: str, norm: str, tmp_path: Path) -> None:
    change, word = CHANGES[name]
    reasons = checked(written(norm), tmp_path, change)
    assert reasons
    assert word in reasons


@pytest.mark.parametrize("norm", NORMS)
def test_a_method_that_believes_wrong_numbers_is_caught(norm: str, tmp_path: Path) -> None:
    assert "prove" in checked(written(norm, planted=True), tmp_path, lambda tree, values, step: values)


# ------------------------------------------------------------------------------------------- what any numbers prove

SLOPES = {"relu": (0.0, 1.0), "leaky": (0.2, 1.0), "steep": (1.0, 2.5), "falling": (-0.5, 1.0), "abs": (-1.0, 1.0)}


def by_hand(act: str, seed: int) -> tuple[branch_cells.Leaf, list[np.ndarray]]:
    """Layers 3-3-2-2 with all units open; output 0 reads one unit of the last layer alone."""
    generator = np.random.default_rng(seed)
    weights = [generator.standard_normal(shape) for shape in ((3, 3), (2, 3), (2, 2))]
    weights[2][0, 1] = 0.0
    negative = next(s for s in SLOPES[act] if s != 1.0)
    function = {"relu": "relu", "abs": "abs"}.get(act, "leaky_relu")
    arguments = (("negative_slope", negative),) if function == "leaky_relu" else ()
    nodes = [Node("Input", (), (3,), "input", {})]
    for k, weight in enumerate(weights):
        nodes.append(Node("Dense", (len(nodes) - 1,), (len(weight),), f"dense {k}", {"weight": weight, "bias": np.zeros(len(weight)), "axis": 0}))  # fmt: skip
        if k < 2:
            fields = {"function": function, "arguments": arguments, "slope": None}
            nodes.append(Node("Elementwise", (len(nodes) - 1,), (len(weight),), f"act {k}", fields))
    split = Split(
        Network(tuple(nodes), len(nodes) - 1, "", (True,) * len(nodes)), Region("everywhere", "linf", None), None
    )
    return branch_cells.leaf(split, tuple(split.left)), weights


def vertices(weights: list[np.ndarray], ends: tuple[float, float], norm: str) -> np.ndarray:
    best = np.zeros(2 if norm == "linf" else 3)
    for choice in itertools.product(ends, repeat=5):
        inner = np.array(choice[:3])[:, None] * weights[0]
        jacobian = weights[2] @ (np.array(choice[3:])[:, None] * (weights[1] @ inner))
        best = np.maximum(best, np.abs(jacobian).sum(1 if norm == "linf" else 0))
    return best


def least(found: branch_cells.Leaf, norm: str, k: int, numbers: np.ndarray) -> float:
    """About the least t that the numbers prove for a row, inf if none."""

    def proved(t: float) -> bool:
        waiting = list(numbers)

        def take(count: int) -> np.ndarray:
            own = [waiting.pop(0) for _ in range(count)]
            return np.array(own)

        try:
            branch_rows._prove_row(found, norm, t, k, take)
        except Rejected:
            return False
        assert not waiting
        return True

    low, high = 0.0, 1.0
    while not proved(high):
        high *= 2
        if high > 1e6:
            return np.inf
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if proved(middle) else (middle, high)
    return high


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("act", SLOPES)
def test_whatever_numbers_are_given_nothing_below_the_vertices_is_proved(act: str, norm: str) -> None:
    """Random multipliers, q and r: each proves some t or none, and never one that some choice of slopes exceeds."""
    proofs = 0
    for seed in range(3):
        found, weights = by_hand(act, seed)
        exact = vertices(weights, SLOPES[act], norm)
        generator = np.random.default_rng(seed)
        for k in range(len(exact)):
            units = 4 if norm == "linf" and k == 0 else 5
            count = units + (3 if norm == "linf" else 2)
            for _ in range(4):
                scale = np.concatenate([np.full(3, 30.0), np.full(units - 3, 4.0), np.ones(count - units)])
                t = least(found, norm, k, scale * 10 ** generator.uniform(-0.5, 0.5, count))
                expect_upper(t, float(exact[k]) * (1 - 1e-12), f"{act} {norm} {k}")
                proofs += np.isfinite(t)
    assert proofs > 10


@pytest.mark.parametrize("norm", NORMS)
def test_only_proportions_of_q_and_r_count(norm: str) -> None:
    found, _ = by_hand("relu", 1)
    values = np.concatenate([np.full(3, 30.0), np.full(2, 4.0), np.ones(3 if norm == "linf" else 2)])
    t = least(found, norm, 1, values)
    assert np.isfinite(t)
    if norm == "linf":
        values[5:] *= 8.0
        expect_lower(abs(least(found, norm, 1, values) - t), 1e-9 * t)
    else:  # r scales the output, so that the multipliers have to grow with its square
        values[:5] *= 64.0
        values[5:] *= 8.0
        expect_lower(abs(least(found, norm, 1, values) - t), 1e-9 * t)
    values[5] *= 1e3
    assert least(found, norm, 1, values) > 1.2 * t


def test_rows_without_live_units_need_no_numbers() -> None:
    found, weights = by_hand("relu", 0)
    done = branch_cells.leaf(found.split, tuple((1, 1) for _ in found.left))
    exact = np.abs(weights[2] @ weights[1] @ weights[0]).sum(1).max()
    branch_rows.prove_rows(done, "linf", exact * (1 + 1e-12), [], np.ones)
    with pytest.raises(Rejected, match="exceeds"):
        branch_rows.prove_rows(done, "linf", exact * (1 - 1e-12), [], np.ones)
    with pytest.raises(Rejected, match="no live units"):
        branch_rows.prove_rows(done, "linf", exact * 2, [0], np.ones)
