"""All differences of two outputs: every bound above the truth, one set of multipliers for all, bundles that are checked whole."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from bounds.test_quadratic import he_network, he_weights
from harness.exact import one_hidden_layer
from harness.expect import expect_lower, expect_upper
from lipscope import bound, bound_pairs, load
from lipscope.bounds.auto import candidates
from lipscope.bounds.differences import AllOutputs
from lipscope.bounds.method import Effort
from lipscope.bounds.problem import pose
from lipscope.bounds.product import Product
from lipscope.bounds.quadratic.elimination import smallest_rho
from lipscope.bounds.quadratic.forms import piece
from lipscope.bounds.quadratic.pairs import shared_multipliers
from lipscope.claims.claim import Claim, parse_output
from lipscope.claims.errors import UsageError
from lipscope.cli import app
from lipscope.cli.bound import number_of_bytes

PAIRS = list(itertools.combinations(range(3), 2))


def small() -> nn.Sequential:
    """As a factory for the command line."""
    return he_network((8, 6, 3), 2)


def test_every_pair_meets_the_enumeration() -> None:
    """Eight inputs, six units: all patterns are reachable, and the enumeration of each difference is the truth."""
    (first, _), (last, _) = he_weights((8, 6, 3), 2)
    found = bound_pairs(load(small(), input_shape=(8,)), "l2", method="lipsdp", budget=5)
    assert [r.problem.claim.output.text for r in found.pairs] == ["0-1", "0-2", "1-2"]
    for result, (i, j) in zip(found.pairs, PAIRS, strict=True):
        exact = one_hidden_layer(first, (last[i] - last[j])[None], (0.0, 1.0), "l2")
        assert result.upper.status == "certified", result.upper
        expect_upper(result.upper.value, exact.lo)
        expect_lower(result.upper.value, exact.hi * 1.02)  # the best multipliers may miss the truth, not by much here
        expect_lower(result.lower, exact.hi)
        expect_lower(result.upper.value, np.sqrt(2) * found.whole.upper.value * (1 + 1e-6))
    assert found.accepted


@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_other_norms_have_pairs_too(norm: str) -> None:
    (first, _), (last, _) = he_weights((8, 6, 3), 2)
    found = bound_pairs(load(small(), input_shape=(8,)), norm, method="product", budget=3, check=False)
    for result, (i, j) in zip(found.pairs, PAIRS, strict=True):
        expect_upper(result.upper.value, one_hidden_layer(first, (last[i] - last[j])[None], (0.0, 1.0), norm).lo)


@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU], ids=["relu", "gelu"])
def test_shared_multipliers_prove_every_difference(act: type[nn.Module]) -> None:
    """As they are, for the graph of the difference; at exactly the share of rho that they were scaled for."""
    model = load(he_network((5, 9, 8, 3), 1, act), input_shape=(5,))
    whole = bound(model, "l2", method="lipsdp", budget=5, check=False)
    assert whole.candidate is not None
    assert whole.candidate.proof is not None
    shared = shared_multipliers(whole.problem, whole.candidate.proof, PAIRS)
    assert set(shared) == set(PAIRS)
    for i, j in PAIRS:
        problem = pose(model.graph, Claim(output=parse_output(f"{i}-{j}", 3)))
        part = piece(problem, 0, problem.graph.output)
        values = np.concatenate([shared[i, j][node] for node, _ in part.owners])
        own = bound(model, "l2", output=f"{i}-{j}", method="lipsdp", budget=5, check=False).upper.value
        proved = float(np.sqrt(smallest_rho(part.stacked, values)))
        expect_upper(proved, own * (1 - 1e-6))
        expect_lower(proved, np.sqrt(2) * whole.upper.value * (1 + 1e-8))
        assert not np.isfinite(smallest_rho(part.stacked, values * 1e-3))


def test_a_proof_without_a_last_quadratic_step_shares_nothing() -> None:
    model = load(small(), input_shape=(8,))
    whole = bound(model, "l2", method="product", budget=5, check=False)
    assert whole.candidate is not None
    assert whole.candidate.proof is not None
    assert shared_multipliers(whole.problem, whole.candidate.proof, PAIRS) == {}


def test_the_shared_multipliers_are_used_where_time_is_short() -> None:
    """Where nothing else is searched, the closed form is replaced by what all outputs have shown."""
    model = load(he_network((6, 20, 20, 4), 1), input_shape=(6,))
    problem = pose(model.graph, Claim(output=parse_output("0-1", 4)))
    whole = bound(model, "l2", method="lipsdp", budget=5, check=False)
    assert whole.candidate is not None
    assert whole.candidate.proof is not None
    from lipscope.bounds.quadratic.method import EclipseFast

    alone = EclipseFast().run(problem, Effort())
    problem.shared["multipliers"] = shared_multipliers(whole.problem, whole.candidate.proof, [(0, 1)])[0, 1]
    helped = EclipseFast().run(problem, Effort())
    assert helped.value < alone.value
    assert "by the multipliers of all outputs" in helped.note


@pytest.mark.parametrize(("norm", "factor"), [("l1", 1.0), ("l2", np.sqrt(2)), ("linf", 2.0)])
@pytest.mark.parametrize("region", ["everywhere", "box:-1,1"])
def test_no_difference_is_worse_than_all_outputs_together(norm: str, factor: float, region: str) -> None:
    """`branch` closes the whole; a difference has no time for it, and product alone would be far above."""
    model = load(he_network((4, 6, 6, 3), 0), input_shape=(4,))
    whole = bound(model, norm, region, method="branch", budget=20, check=False)
    known = AllOutputs(whole.problem, whole.candidate)
    for i, j in PAIRS:
        problem = pose(model.graph, replace(whole.problem.claim, output=parse_output(f"{i}-{j}", 3)))
        product = Product().run(problem, Effort())
        known.tell(problem)
        found = [*candidates(problem, Effort(), "product")]
        assert [c.method for c in found] == ["branch", "product"]
        expect_lower(found[0].value, factor * whole.upper.value * (1 + 1e-9))
        assert found[0].value < product.value
        expect_upper(found[0].value, bound(model, norm, region, f"{i}-{j}", "branch", 20, check=False).lower)


def test_bounds_of_differences_from_all_outputs_are_checked() -> None:
    """On a ball with a budget that leaves the differences nothing: boxes are those of all outputs, and so the proof holds."""
    model = load(he_network((4, 8, 8, 3), 0), input_shape=(4,))
    found = bound_pairs(model, "linf", "box:-0.5,0.5", "branch", budget=3)
    assert found.accepted
    for result in found.pairs:
        assert result.upper.status == "certified"
        assert result.candidates[0].note == "from the bound of all outputs"
        expect_lower(result.upper.value, 2 * found.whole.upper.value * (1 + 1e-9))
        assert result.problem.narrowing.lines.keys() == found.whole.problem.narrowing.lines.keys()


def test_a_model_with_one_output_has_no_pairs() -> None:
    with pytest.raises(UsageError, match="at least two outputs"):
        bound_pairs(load(he_network((3, 4, 1)), input_shape=(3,)))


def test_the_command_writes_bundles_that_are_checked_whole(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "weights.pt")
    folder = tmp_path / "pairs"
    command = [
        "bound",
        f"{__name__}:small",
        "--input-shape",
        "8",
        "--budget",
        "3",
        "--output",
        "pairs",
        "--memory",
        "1G",
    ]
    run = CliRunner().invoke(app, [*command, "-o", str(folder), "--json"])
    assert run.exit_code == 0, run.output
    document = json.loads(run.stdout)
    assert document["claim"]["output"] == "pairs"
    assert [row["pair"] for row in document["pairs"]] == ["0-1", "0-2", "1-2"]
    assert all(row["lower"] <= row["upper"] and row["status"] == "certified" for row in document["pairs"])
    assert json.loads((folder / "pairs.json").read_text())["pairs"] == document["pairs"]
    assert CliRunner().invoke(app, ["check", str(folder)]).exit_code == 0
    again = CliRunner().invoke(app, [*command, "-o", str(folder)])  # an older one is replaced, and the table is shown
    assert again.exit_code == 0, again.output
    assert "0-2" in again.stderr
    claim = folder / "0-2" / "claim.json"
    claim.write_text(claim.read_text().replace('"0-2"', '"0-1"'))
    assert CliRunner().invoke(app, ["check", str(folder)]).exit_code == 1


@pytest.mark.parametrize(("text", "expected"), [(None, None), ("1000", 1000), ("2G", 2 * 10**9), ("1.5kB", 1500)])
def test_bytes(text: str | None, expected: int | None) -> None:
    assert number_of_bytes(text) == expected


@pytest.mark.parametrize("text", ["0", "-1", "many", "2GiB", "", "G"])
def test_no_bytes(text: str) -> None:
    with pytest.raises(UsageError, match="number of bytes"):
        number_of_bytes(text)
