"""Arithmetic at the edges of double precision, and regions on which parts of a network are constant or undefined."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lipcheck
from harness.bundle_writer import Net, claim, proof, real, segment, write
from lipcheck.boxes import Box, Boxes
from lipcheck.bundle import Bundle
from lipcheck.errors import Rejected
from lipcheck.gains import join
from lipcheck.lines import Lines, prove_lines
from lipcheck.nodes import Network, Node, read_network
from lipcheck.rounding import norm_down, norm_up


def network(net: Net) -> Network:
    return read_network(Bundle({"graph.json": net.document()}, net.arrays.known))


def check(path: Path, net: Net, steps: list[dict[str, Any]], upper: float, **fields: Any) -> lipcheck.Verdict:
    document = net.document()
    slopes = fields.pop("slopes", {})
    statement = claim(document, fields.pop("norm", "l2"), upper, region=fields.pop("region", None))
    return lipcheck.check(write(path / "bundle", document, statement, proof(steps, slopes), net.arrays))


def box_region(net: Net, lower: list[float], upper: list[float]) -> dict[str, Any]:
    return {"kind": "box", "lower": net.arrays(lower), "upper": net.arrays(upper)}


# ------------------------------------------------------------------------------------------------ grid


def scaled_convolution(kind: str, scales: list[float]) -> Net:
    net = Net(1, 2, 4, 4)
    weight = np.array([[1.0, 0.5], [-0.25, 1.0]]).reshape(2, 2, 1, 1)
    last = net.add("Conv", 0, (1, 2, 4, 4), weight=weight, bias=None, stride=[1, 1], padding=[[0, 0], [0, 0]],
                   dilation=[1, 1], groups=1)  # fmt: skip
    for scale in scales:
        value = 1 / scale if kind == "DivConstant" else scale
        last = net.add(kind, last, (1, 2, 4, 4), value=np.full((1, 1, 1), value))
    return net


@pytest.mark.parametrize("kind", ["MulConstant", "DivConstant"])
def test_grid_refuses_scales_whose_product_underflows_on_the_way(tmp_path: Path, kind: str) -> None:
    """1.4 * 2^-1074 rounds to 2^-1074: a loss of 29% that later factors enlarge."""
    scales = [1.4 * 2.0**-537, 2.0**-537, 2.0**500]
    net = scaled_convolution(kind, scales)
    norm = float(np.linalg.svd(np.array([[1.0, 0.5], [-0.25, 1.0]]), compute_uv=False)[0])
    below = norm * 1.2 * 2.0**-574
    verdict = check(tmp_path, net, [segment(len(net.nodes) - 1, 0, below, "grid", counts=[4, 4])], below * (1 + 1e-9))
    assert verdict.upper["status"] == "rejected"
    assert "too large or too small" in verdict.upper["reasons"][0]


@pytest.mark.parametrize("kind", ["MulConstant", "DivConstant"])
def test_grid_takes_moderate_scales_and_zero(tmp_path: Path, kind: str) -> None:
    net = scaled_convolution(kind, [2.0**-300, 3.0 * 2.0**-300, 2.0**90])
    norm = float(np.linalg.svd(np.array([[1.0, 0.5], [-0.25, 1.0]]), compute_uv=False)[0]) * 3 * 2.0**-510
    step = [segment(len(net.nodes) - 1, 0, norm * (1 + 1e-8), "grid", counts=[4, 4])]
    verdict = check(tmp_path / "a", net, step, norm * (1 + 2e-8))
    assert verdict.accepted, verdict.reasons
    step = [segment(len(net.nodes) - 1, 0, norm * (1 - 1e-8), "grid", counts=[4, 4])]
    assert not check(tmp_path / "b", net, step, norm).accepted
    net = scaled_convolution("MulConstant", [0.0])
    assert check(tmp_path / "c", net, [segment(2, 0, 1e-9, "grid", counts=[4, 4])], 1.0).accepted


# ---------------------------------------------------------------------------------------------- quadratic


def quadratic_proof(net: Net, t: float) -> list[dict[str, Any]]:
    node = next(i for i, n in enumerate(net.nodes) if n["kind"] == "Elementwise")
    evidence = {"kind": "quadratic", "multipliers": {str(node): net.arrays([1.0])}}
    return [
        {"node": len(net.nodes) - 1, "rule": "quadratic", "from": 0, "norm": {"float": t.hex()}, "evidence": evidence}
    ]


def chain(weights: list[float]) -> Net:
    net = Net(1)
    last = 0
    for weight in weights:
        last = net.dense(last, np.array([[weight]]))
    last = net.elementwise(last, "relu")
    net.dense(last, np.array([[1.0]]))
    return net


def relu_slopes(net: Net) -> dict[str, Any]:
    node = next(i for i, n in enumerate(net.nodes) if n["kind"] == "Elementwise")
    return {str(node): {"lower": net.arrays([0.0]), "upper": net.arrays([1.0])}}


def test_quadratic_refuses_forms_that_underflow_on_the_way(tmp_path: Path) -> None:
    """The layers multiply to 1, in double precision to 0."""
    net = chain([1e-200, 1e-200, 1e200, 1e200])
    verdict = check(tmp_path, net, quadratic_proof(net, 0.5), 0.5 * (1 + 1e-9), slopes=relu_slopes(net))
    assert verdict.upper["status"] == "rejected"
    assert "underflow" in verdict.upper["reasons"][0]


def test_quadratic_proves_the_same_part_in_moderate_units(tmp_path: Path) -> None:
    net = chain([1e-20, 1e-20, 1e20, 1e20])
    verdict = check(tmp_path / "a", net, quadratic_proof(net, 1.0001), 1.001, slopes=relu_slopes(net))
    assert verdict.accepted, verdict.reasons
    assert not check(tmp_path / "b", net, quadratic_proof(net, 0.9999), 1.0, slopes=relu_slopes(net)).accepted


# -------------------------------------------------------------------------------------------------- boxes


def test_boxes_hold_huge_multiples_of_tiny_inputs() -> None:
    """u times a subnormal number is 0 in double precision, but huge weights make a rounding error of it."""
    rng = np.random.default_rng(0)
    net = Net(5)
    weight = rng.standard_normal((4, 5)) * 2.0**1015
    net.dense(0, weight)
    graph = network(net)
    for _ in range(20):
        x = rng.standard_normal(5) * 2.0**-1030
        box = Boxes(graph, Box(x, x))[1]
        for i in range(4):
            exact = sum(Fraction(w) * Fraction(v) for w, v in zip(weight[i].tolist(), x.tolist(), strict=True))
            assert Fraction(float(box.lo[i])) <= exact <= Fraction(float(box.hi[i]))


def test_products_hold_huge_multiples_of_tiny_numbers() -> None:
    rng = np.random.default_rng(1)
    net = Net(2, 3)
    other = rng.standard_normal((3, 2)) * 2.0**-1030
    constant = net.add("Constant", [], (3, 2), value=other)
    net.add("MatMul", [0, constant], (2, 2))
    graph = network(net)
    for _ in range(20):
        x = rng.standard_normal((2, 3)) * 2.0**1015
        box = Boxes(graph, Box(x.ravel(), x.ravel()))[2]
        for i, j in np.ndindex(2, 2):
            exact = sum(Fraction(float(x[i, k])) * Fraction(float(other[k, j])) for k in range(3))
            assert Fraction(float(box.lo[i, j])) <= exact <= Fraction(float(box.hi[i, j]))


# ------------------------------------------------------------------------------------------------ rounding


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("scale", [1.0, 2.0**-900, 2.0**900])
def test_norms_of_long_vectors_lose_a_few_units(norm: str, scale: float) -> None:
    x = np.abs(np.random.default_rng(2).standard_normal(100_000))
    parts = [Fraction(v) ** (1 if norm == "l1" else 2) for v in x.tolist()]
    exact = sum(parts)
    low, high = (Fraction(f(x * scale, norm)) / Fraction(scale) for f in (norm_down, norm_up))
    if norm == "l2":
        low, high = low**2, high**2
    assert low <= exact <= high
    assert high / low - 1 < 30 * Fraction(2) ** -53


def test_norms_of_exact_sums_are_exact() -> None:
    x = np.array([0.5, 0.25, 0.0, 8.0])
    assert norm_down(x, "l1") == norm_up(x, "l1") == 8.75
    assert norm_up(np.zeros(3), "l2") == norm_down(np.zeros(3), "l2") == 0.0
    huge = np.full(4, 1.7e308)
    assert norm_up(huge, "l1") == math.inf and norm_down(huge, "l1") <= 1.7e308 * 1.06


# --------------------------------------------------------------------------------------------------- gains


@pytest.mark.parametrize("kind", ["Add", "Concat", "Maximum", "Multiply", "MatMul", "Divide"])
def test_constants_of_zero_join_to_zero(kind: str) -> None:
    node = Node(kind, (0, 1), (2, 2), "joined", {"axis": 0})
    box = Box(np.full((2, 2), 1.0), np.full((2, 2), 3.0))
    for norm in ("l1", "l2", "linf"):
        assert join(node, norm, [0.0, 0.0], lambda i: box) == 0.0


def test_a_divisor_that_may_vanish_is_refused_even_with_constant_zero() -> None:
    node = Node("Divide", (0, 1), (2,), "quotient", {})
    with pytest.raises(lipcheck.errors.Rejected, match="divisor"):
        join(node, "l2", [0.0, 0.0], lambda i: Box(np.array([-1.0, 1.0]), np.array([1.0, 1.0])))


def test_sums_with_one_term_are_exact() -> None:
    node = Node("Add", (0, 1, 2), (2,), "sum", {})
    assert join(node, "l2", [0.0, 0.3, 0.0], lambda i: Box(np.zeros(2), np.zeros(2))) == 0.3


# ------------------------------------------------------------------------------------------- definedness


def test_constants_without_a_value_are_refused(tmp_path: Path) -> None:
    net = Net(2)
    constant = net.add("Constant", [], (2,), value=np.array([-1.0, 1.0]))
    root = net.elementwise(constant, "sqrt")
    net.add("Add", [0, root], (2,))
    verdict = check(tmp_path, net, [segment(3, 0, 1.0, "schur")], 1.5)
    assert verdict.upper["status"] == "rejected"
    assert "sqrt" in verdict.upper["reasons"][0]


@pytest.mark.parametrize("lower", [-1.0, 0.5])
def test_countable_values_need_a_network_that_is_defined(tmp_path: Path, lower: float) -> None:
    """log of (step + lower): the step is 0 or 1, so with lower = -1 it is undefined everywhere."""
    net = Net(1)
    step = net.add("Discontinuous", 0, (1,), operator="heaviside", axis=-1, arguments=[])
    net.nodes[step]["arguments"] = [["at_zero", {"float": "0x0p+0"}]]
    shifted = net.add("AddConstant", step, (1,), value=np.array([lower]))
    net.elementwise(shifted, "log")
    document = net.document()
    statement = claim(document, "l2", None, region=box_region(net, [-2.0], [2.0]), status="unbounded")
    evidence = {"method": "countable", "x": net.arrays([-1.0]), "y": net.arrays([1.0])}
    verdict = lipcheck.check(write(tmp_path / "bundle", document, statement, evidence, net.arrays))
    assert (verdict.upper["status"] == "unbounded") == (lower > 0), verdict.reasons
    statement = claim(document, "l2", None, status="unbounded")
    verdict = lipcheck.check(write(tmp_path / "everywhere", document, statement, evidence, net.arrays))
    assert verdict.upper["status"] == "rejected"


# ---------------------------------------------------------------------------------------- settled jumps


def signed(tmp_path: Path, lower: float, steps: list[dict[str, Any]], upper: float) -> lipcheck.Verdict:
    """x + sign(x) on the box [lower, 2]^2."""
    net = Net(2)
    sign = net.add("Discontinuous", 0, (2,), operator="sign", axis=-1, arguments=[])
    net.add("Add", [0, sign], (2,))
    return check(tmp_path, net, steps, upper, region=box_region(net, [lower] * 2, [2.0] * 2))


def test_a_jump_that_does_not_happen_on_the_region_is_a_constant(tmp_path: Path) -> None:
    whole = [segment(2, 0, 1.0 + 1e-12, "schur")]
    assert signed(tmp_path / "a", 0.5, whole, 1.0 + 2e-12).accepted
    assert signed(tmp_path / "b", 0.5, [{"node": 2, "rule": "join"}], 1.0).accepted
    for lower in (-0.5, 0.0):
        assert not signed(tmp_path / f"c{lower}", lower, whole, 1.0 + 2e-12).accepted
        assert not signed(tmp_path / f"d{lower}", lower, [{"node": 2, "rule": "join"}], 1.0).accepted


def test_a_network_that_is_constant_on_the_region_has_constant_zero(tmp_path: Path) -> None:
    net = Net(2)
    sign = net.add("Discontinuous", 0, (2,), operator="sign", axis=-1, arguments=[])
    net.dense(sign, np.eye(2))
    region = box_region(net, [0.5, -3.0], [2.0, -1.0])
    assert check(tmp_path / "a", net, [], 0.0, region=region).accepted
    assert not check(tmp_path / "b", net, [], 0.0).accepted


# ------------------------------------------------------------------------------------------- jumps and cells


def cells(net: Net, tree: list[Any], t: float) -> list[dict[str, Any]]:
    """One step by rule `branch`, without multipliers."""
    evidence = {"kind": "branch", "tree": tree, "multipliers": net.arrays(np.zeros(0))}
    return [{"node": len(net.nodes) - 1, "rule": "branch", "from": 0, "norm": real(t), "evidence": evidence}]


@pytest.mark.parametrize("bounded", [True, False])
def test_cells_of_the_calm_network_prove_no_jump(tmp_path: Path, bounded: bool) -> None:
    """relu(x - sign(x)) is x + 1 on [-1, -1/2], but with 0 for the sign it is 0 there. Everywhere,
    relu(x - sign(x)) - relu(x) is at most 1 apart and jumps at 0; with 0 for the sign it is 0. It jumps, but no cell shows that.
    """
    net = Net(1)
    sign = net.add("Discontinuous", 0, (1,), operator="sign", axis=-1, arguments=[])
    minus = net.add("MulConstant", sign, (1,), value=np.array([-1.0]))
    last = net.elementwise(net.add("Add", [0, minus], (1,)), "relu")
    leaf, empty = ["norm"], ["empty", [[0, "above", "0x1"]]]
    if bounded:
        region, tree = box_region(net, [-1.0], [-0.5]), [["split", 0, 0], leaf, empty]
    else:
        other = net.add("MulConstant", net.elementwise(0, "relu"), (1,), value=np.array([-1.0]))
        net.add("Add", [last, other], (1,))
        region = {"kind": "everywhere"}
        both = [["empty", [[0, "above", "0x1"], [1, "below", "0x1"]]], ["norm"]]
        tree = [["split", 0, 0], ["split", 1, 0], leaf, ["empty", [[0, "below", "0x1"], [1, "above", "0x1"]]]]
        tree += [["split", 1, 0], *both]
    document = net.document()
    steps = cells(net, tree, 0.0)
    points = {"x": net.arrays([-1.0]), "y": net.arrays([-0.5])}
    evidence = {"method": "jump", **points, "slopes": {}, "intervals": {}, "steps": steps}
    statement = claim(document, "l2", None, region=region, status="unbounded")
    verdict = lipcheck.check(write(tmp_path / "bundle", document, statement, evidence, net.arrays))
    assert verdict.upper["status"] == "rejected"
    assert "rule branch speaks of the values" in verdict.upper["reasons"][0]


def test_a_unit_that_nothing_moves_keeps_one_of_its_cells(tmp_path: Path) -> None:
    """x + relu(0 x): below 0 the unit is 0 identically, which is no inequality; both cells empty would prove the constant 0."""
    net = Net(1)
    dead = net.elementwise(net.dense(0, np.zeros((1, 1)), np.array([-0.0])), "relu")
    net.add("Add", [0, dead], (1,))
    above, below = ([["empty", [[0, side, "0x1"]]]] for side in ("above", "below"))
    assert check(tmp_path / "a", net, cells(net, [["split", 0, 0], ["norm"], *above], 1.01), 1.01).accepted
    assert not check(tmp_path / "b", net, cells(net, [["split", 0, 0], *below, *above], 0.0), 0.0).accepted


def test_cells_whose_numbers_leave_double_precision_are_refused_in_words(tmp_path: Path) -> None:
    net = Net(1)
    cut = net.elementwise(0, "relu")
    net.dense(net.dense(cut, np.array([[1e308]])), np.array([[1e308]]))
    verdict = check(tmp_path, net, cells(net, [["split", 0, 0], ["norm"], ["norm"]], 1e300), 1e300)
    assert "Jacobian is not proved" in verdict.upper["reasons"][0]


def test_long_chains_make_no_endless_numbers(tmp_path: Path) -> None:
    net = Net(1)
    last = 0
    for _ in range(1500):
        last = net.add("MulConstant", last, (1,), value=np.array([1.1]))
    net.elementwise(last, "relu")
    verdict = check(tmp_path, net, cells(net, [["split", 0, 0], ["norm"], ["norm"]], 1e300), 1e300)
    assert "bits" in verdict.upper["reasons"][0]


# ------------------------------------------------------------------------------------------------ lines


@pytest.mark.parametrize("width", [1.0, 1e-3])
def test_a_line_whose_proof_overflows_is_refused(width: float) -> None:
    """elu with alpha = -max has slopes from -max to 1, so that `fall` overflows and 0 * inf is NaN: 1 <= f fails at f(0) = 0."""
    largest = np.finfo(np.float64).max
    fields = {"function": "elu", "arguments": (("alpha", -largest),), "slope": None}
    node = Node("Elementwise", (0,), (1,), "elu", fields)
    zero, lo = np.zeros(1), np.full(1, -width)
    with pytest.raises(Rejected, match="below elu"):
        prove_lines(node, lo, np.full(1, 1.0), Lines((zero, zero + 1.0), (zero, zero + largest)))
