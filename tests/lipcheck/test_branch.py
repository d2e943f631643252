"""The checker's rule `branch`: what it accepts, and what it refuses when a tree has been tampered with."""

from __future__ import annotations

import copy
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flint import fmpq
from torch import nn

import lipcheck
from harness.tampering import put, tampered
from lipcheck import branch as rule
from lipscope import bound, load
from lipscope.bounds.branch import rows as branch_rows
from lipscope.bounds.branch import workers
from lipscope.claims.regions import Ball, Box, Everywhere, Region

Tree = list[Any]


def network(seed: int = 3, bias: bool = True) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Linear(2, 4, bias), nn.ReLU(), nn.Linear(4, 3, bias), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module.eval()


@functools.cache
def written(norm: str, kind: str, rows: bool = True) -> Path:
    """A bundle of the method, in l1 and linf with or without inequalities for rows; the folder lives as long as the tests."""
    center = np.array([0.1, -0.2])
    where: Region = {"everywhere": Everywhere(), "box": Box(center - 1, center + 1), "ball": Ball(center, 0.7)}[kind]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(workers, "PATIENCE", np.inf)  # other processes would not see the next one
        if not rows:
            patched.setattr(branch_rows, "MOST_SIZE", 0)
        result = bound(load(network(), input_shape=(2,)), norm, where, method="branch", budget=60, check=False)
    folder = Path(tempfile.mkdtemp(prefix="lipscope-branch-"))
    result.save(folder / "bundle", check=False)
    return folder / "bundle"


def evidence(proof: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = proof["steps"][0]["evidence"]
    return found


def tree_of(source: Path) -> Tree:
    tree: Tree = evidence(json.loads((source / "proof.json").read_text()))["tree"]
    return tree


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("kind", ["everywhere", "box", "ball"])
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_untouched_bundles_are_accepted(norm: str, kind: str, rows: bool, tmp_path: Path) -> None:
    """Those without inequalities for rows are what was written before there were any."""
    verdict = lipcheck.check(tampered(written(norm, kind, rows), tmp_path, lambda proof, arrays: None))
    assert verdict.upper["status"] == "certified", verdict.reasons


def refused(source: Path, folder: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], None], word: str) -> None:  # fmt: skip
    verdict = lipcheck.check(tampered(source, folder, change))
    assert verdict.upper["status"] == "rejected"
    assert word in " ".join(verdict.upper["reasons"]), verdict.upper["reasons"]


def position(tree: Tree, kind: str) -> int:
    return next(i for i, entry in enumerate(tree) if entry[0] == kind)


def edited(change: Callable[[Tree], None]) -> Callable[[dict[str, Any], dict[str, np.ndarray]], None]:
    return lambda proof, arrays: change(evidence(proof)["tree"])


def _drop_last(tree: Tree) -> None:
    tree.pop()


def _add_leaf(tree: Tree) -> None:
    tree.append(["norm"])


def _swap_sides(tree: Tree) -> None:
    entry = tree[position(tree, "empty")]
    entry[1][0][1] = "below" if entry[1][0][1] == "above" else "above"


def _zero_weight(tree: Tree) -> None:
    tree[position(tree, "empty")][1][0][2] = "0x0"


def _other_weight(tree: Tree) -> None:
    entry = next(e for e in tree if e[0] == "empty" and len(e[1]) > 1)
    entry[1][0][2] = hex(int(entry[1][0][2], 16) * 8)


def _negative_weight(tree: Tree) -> None:
    tree[position(tree, "empty")][1][0][2] = "-0x1"


def _same_inequality_twice(tree: Tree) -> None:
    entry = tree[position(tree, "empty")]
    entry[1].append(list(entry[1][0]))


def _nothing_at_all(tree: Tree) -> None:
    tree[position(tree, "empty")][1] = []


def _claim_empty(tree: Tree) -> None:
    """A leaf that has a bound is said to be empty, with the weights of one that is."""
    tree[position(tree, "norm")] = copy.deepcopy(tree[position(tree, "empty")])


def _unknown_unit(tree: Tree) -> None:
    tree[0][1] = 99


def _split_again(tree: Tree) -> None:
    tree[1:1] = [["split", tree[0][1], tree[0][2]], ["norm"]]


def _unknown_leaf(tree: Tree) -> None:
    tree[position(tree, "norm")] = ["trust me"]


CHANGES = {
    "a leaf is missing": (_drop_last, "ends early"), "a leaf too many": (_add_leaf, "goes on after"),
    "wrong side": (_swap_sides, "cell"), "weight 0": (_zero_weight, "positive weights"),
    "negative weight": (_negative_weight, "positive weights"), "twice": (_same_inequality_twice, "different"),
    "no weights": (_nothing_at_all, "weights"), "not empty": (_claim_empty, "cell"),
    "unknown unit": (_unknown_unit, "unit"), "split twice": (_split_again, "threshold"), "unknown leaf": (_unknown_leaf, "leaf"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_tampered_trees_are_refused(name: str, tmp_path: Path) -> None:
    change, word = CHANGES[name]
    refused(written("linf", "box", False), tmp_path, edited(change), word)


def test_weights_that_do_not_cancel_are_refused(tmp_path: Path) -> None:
    """Everywhere the weights must cancel exactly."""
    source = written("linf", "everywhere", False)
    assert any(e[0] == "empty" and len(e[1]) > 1 for e in tree_of(source)), (
        "the test needs a cell with two inequalities"
    )
    refused(source, tmp_path, edited(_other_weight), "empty")


def test_a_smaller_bound_is_refused(tmp_path: Path) -> None:
    def change(proof: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        step = proof["steps"][0]
        step["norm"] = {"float": (float.fromhex(step["norm"]["float"]) * (1 - 1e-3)).hex()}

    refused(written("linf", "box", False), tmp_path, change, "sum")


@pytest.mark.parametrize("factor", [0.0, -1.0, 1e-3, 1e6])
def test_wrong_multipliers_are_refused(factor: float, tmp_path: Path) -> None:
    source = written("l2", "everywhere")
    assert ["quadratic"] in tree_of(source), "the test needs a cell with multipliers"

    def change(proof: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        values = arrays.pop(evidence(proof)["multipliers"]["array"])
        evidence(proof)["multipliers"] = put(values * factor, arrays)

    refused(source, tmp_path, change, "multipliers")


@pytest.mark.parametrize("extra", [-1, 1])
def test_too_few_and_too_many_multipliers_are_refused(extra: int, tmp_path: Path) -> None:
    def change(proof: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        values = arrays.pop(evidence(proof)["multipliers"]["array"])
        evidence(proof)["multipliers"] = put(values[:-1] if extra < 0 else np.append(values, 1.0), arrays)

    refused(written("l2", "everywhere"), tmp_path, change, "multiplier")


def test_the_proof_of_another_pattern_is_refused(tmp_path: Path) -> None:
    """Above and below of the first split change places: their leaves prove the bound of the wrong cells."""

    def change(tree: Tree) -> None:
        def end(start: int) -> int:
            open_cells = 1
            while open_cells:
                open_cells += 1 if tree[start][0] == "split" else -1
                start += 1
            return start

        middle = end(1)
        tree[1:] = tree[middle:] + tree[1:middle]

    refused(written("linf", "box", False), tmp_path, edited(change), "step branch")


@pytest.mark.parametrize("kind", ["everywhere", "box"])
def test_a_proof_about_another_region_is_refused(kind: str, tmp_path: Path) -> None:
    """The cells that are empty on a small ball are not on a larger region."""
    source = written("linf", "ball", False)

    def change(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        claim["region"] = {"kind": "everywhere"} if kind == "everywhere" else {
            "kind": "box", "lower": put(np.full(2, -50.0), arrays), "upper": put(np.full(2, 50.0), arrays),
        }  # fmt: skip

    verdict = lipcheck.check(tampered(source, tmp_path, change, "claim.json"))
    assert verdict.upper["status"] == "rejected"


def test_a_unit_that_is_zero_identically_says_nothing_below() -> None:
    """`v < 0` is no inequality where v is 0 on a whole cell; with it every network could be proved constant."""
    split = _by_hand(np.zeros((1, 1)), np.zeros(1))
    below = rule.leaf(split, ((0, 0),))
    with pytest.raises(lipcheck.errors.Rejected, match="strictly"):
        rule.prove_empty(below, [[0, "below", "0x1"]])
    rule.prove_empty(rule.leaf(split, ((1, 1),)), [[0, "above", "0x1"]])  # v > 0 holds nowhere


def test_a_tree_that_would_take_too_long_is_refused() -> None:
    split = _by_hand(np.ones((1, 1)), np.zeros(1))
    with pytest.raises(lipcheck.errors.Rejected, match="tree"):
        rule.prove_branch(split, "l2", 1.0, [["norm"]] * (rule.MOST_NODES + 1), np.zeros(0))
    with pytest.raises(lipcheck.errors.Rejected, match="weights"):
        rule.prove_branch(split, "l2", 1.0, [["empty", [[0, "above", "0x" + "f" * 20_000]]]], np.zeros(0))
    for broken in (
        [],
        {},
        None,
        [[]],
        [["split", 0]],
        [["split", 0, True], ["norm"], ["norm"]],
        [None],
        [["empty", 3]],
    ):
        with pytest.raises(lipcheck.errors.Rejected):
            rule.prove_branch(split, "l2", 1.0, broken, np.zeros(0))


def _by_hand(weight: np.ndarray, bias: np.ndarray) -> rule.Split:
    """`relu(weight x + bias)` on [-1, 1]."""
    from lipcheck.boxes import Box as CheckerBox
    from lipcheck.nodes import Network, Node
    from lipcheck.region import Region as CheckerRegion

    n = weight.shape[1]
    nodes = (
        Node("Input", (), (n,), "input", {}),
        Node("Dense", (0,), (len(weight),), "dense", {"weight": weight, "bias": bias, "axis": 0}),
        Node("Elementwise", (1,), (len(weight),), "relu", {"function": "relu", "arguments": (), "slope": None}),
    )
    box = CheckerBox(-np.ones(n), np.ones(n))
    return rule.Split(Network(nodes, 2, "", (True,) * 3), CheckerRegion("box", "l2", box), None)


def test_definiteness_is_not_granted_to_singular_matrices_below_zero() -> None:
    one, tiny = fmpq(1), fmpq(1, 2**60)
    assert rule._semidefinite([[one, fmpq(0)], [fmpq(0), one]])
    assert not rule._semidefinite([[one, one], [one, one - tiny]])
    assert not rule._semidefinite([[one, one + tiny], [one + tiny, one]])
    assert not rule._semidefinite([[-one]])
