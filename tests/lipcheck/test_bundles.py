"""Whole bundles: honest ones are accepted, hostile ones are rejected or unreadable, never a traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lipcheck
from harness.bundle_writer import Arrays, Net, claim, proof, real, seal, segment, write

W1 = np.array([[1.0, -2.0], [0.5, 1.0], [1.0, 1.0]])
B1 = np.array([0.1, -5.0, 0.2])
W2 = np.array([[1.0, 2.0, -1.0], [0.0, 3.0, 1.0]])


def norm2(matrix: np.ndarray) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False)[0])


CHOLESKY: dict[str, Any] = {"side": "input", "axis": None, "bounds": []}


def parts(slack: float = 1e-6) -> dict[str, Any]:
    """A small ReLU network on a box where unit 1 is dead: everything that `write` takes."""
    net = Net(2)
    net.dense(0, W1, B1)
    net.elementwise(1, "relu")
    net.dense(2, W2)
    lower, upper = np.array([-1.0, -1.0]), np.array([1.0, 1.0])
    region = {"kind": "box", "lower": net.arrays(lower), "upper": net.arrays(upper)}
    radius = np.abs(W1).sum(axis=1)
    interval = {"lower": net.arrays(B1 - radius - 1e-9), "upper": net.arrays(B1 + radius + 1e-9)}
    slopes = {"lower": net.arrays([0.0, 0.0, 0.0]), "upper": net.arrays([1.0, 0.0, 1.0])}
    first = norm2(W1 * [[1], [0], [1]]) * (1 + slack)
    second = norm2(W2 * [1, 0, 1]) * (1 + slack)
    steps = [segment(2, 0, first, "cholesky", **CHOLESKY), segment(3, 2, second, "cholesky", **CHOLESKY)]
    x, y = np.array([0.9, -0.3]), np.array([0.8, -0.1])
    value = [W2 @ np.maximum(W1 @ v + B1, 0) for v in (x, y)]
    attained = float(np.linalg.norm(value[0] - value[1]) / np.linalg.norm(x - y))
    graph = net.document()
    pairs = [{"input": net.arrays(x.reshape(1, 2)), "output": net.arrays(value[0])}]
    return {
        "graph": graph,
        "claim_": claim(graph, "l2", first * second * (1 + 1e-9), attained * (1 - 1e-12), region),
        "proof_": proof(steps, {"2": slopes}, {"1": interval}),
        "arrays": net.arrays,
        "witness": {"x": net.arrays(x), "y": net.arrays(y)},
        "agreement": {"dtype": "float64", "pairs": pairs},
    }


def test_an_honest_bundle_is_accepted(tmp_path: Path) -> None:
    folder = write(tmp_path, **parts())
    found = lipcheck.check(folder)
    assert found.accepted, found.reasons
    stored = json.loads((folder / "verdict.json").read_text())
    assert stored == found.document
    assert stored["upper"]["status"] == "certified" and stored["lower"]["status"] == "certified"
    assert stored["agreement"] == {"pairs": 1, "largest_relative_error": pytest.approx(0, abs=1e-14)}
    assert [s["node"] for s in stored["steps"]] == [2, 3] and stored["seed"] is None
    assert float.fromhex(stored["upper"]["proved"]["float"]) <= float.fromhex(stored["upper"]["value"]["float"])
    assert lipcheck.check(folder).accepted  # a verdict in the folder changes nothing


def test_agreement_speaks_of_values_and_not_of_boxes_that_grew(tmp_path: Path) -> None:
    """A deep network whose boxes of float64 are wider than its values: each layer of rotations and abs() keeps lengths
    and doubles the widths.
    """
    rng = np.random.default_rng(0)
    net, matrices, width = Net(16), [], 16
    for layer in range(60):
        matrix = np.linalg.qr(rng.normal(size=(width, width)))[0]
        matrices.append(matrix)
        net.dense(2 * layer, matrix)
        net.elementwise(2 * layer + 1, "abs")
    x = rng.normal(size=width)
    value = x
    for matrix in matrices:
        value = np.abs(matrix @ value)
    graph = net.document()
    pairs = [{"input": net.arrays(x.reshape(1, width)), "output": net.arrays(value)}]
    folder = write(
        tmp_path, graph=graph, claim_=claim(graph, "l2", 1.0), proof_=proof([]), arrays=net.arrays,
        agreement={"dtype": "float64", "pairs": pairs},
    )  # fmt: skip
    assert lipcheck.check(folder).document["agreement"]["largest_relative_error"] < 1e-12


def test_exit_codes(tmp_path: Path) -> None:
    good = write(tmp_path / "good", **parts())
    bad = write(tmp_path / "bad", **parts(-1e-6))
    for folder, code in ((good, 0), (bad, 1), (tmp_path / "nowhere", 2), (tmp_path, 2)):
        done = subprocess.run(
            [sys.executable, "-m", "lipcheck", str(folder), "--json", "--quiet"],
            capture_output=True, text=True, check=False, env={"PYTHONPATH": str(Path(lipcheck.__file__).parents[1])},
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        if code < 2:
            assert json.loads(done.stdout)["accepted"] == (code == 0)


def test_the_checker_imports_neither_torch_nor_scipy_nor_lipscope() -> None:
    code = "import sys, lipcheck, lipcheck.__main__; print([m for m in ('torch', 'scipy', 'lipscope') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": str(Path(lipcheck.__file__).parents[1])})  # fmt: skip
    assert done.stdout.strip() == "[]"


Edit = Callable[[dict[str, Any]], None]


def put(path: str, value: Any) -> Edit:
    """Replace the entry at a dotted path; an array is stored first."""

    def edit(p: dict[str, Any]) -> None:
        target, keys = p, path.split("/")
        for key in keys[:-1]:
            target = target[int(key)] if isinstance(target, list) else target[key]
        last: Any = int(keys[-1]) if isinstance(target, list) else keys[-1]
        target[last] = p["arrays"](value) if isinstance(value, np.ndarray) else value

    return edit


def remove(path: str) -> Edit:
    def edit(p: dict[str, Any]) -> None:
        target, keys = p, path.split("/")
        for key in keys[:-1]:
            target = target[int(key)] if isinstance(target, list) else target[key]
        del target[int(keys[-1]) if isinstance(target, list) else keys[-1]]

    return edit


INF, NAN = {"float": "inf"}, {"float": "nan"}
ATTACKS: dict[str, Edit] = {
    "slopes too narrow": put("proof_/slopes/2/upper", np.array([1.0, 0.0, 0.999999])),
    "slopes that kill a live unit": put("proof_/slopes/2/upper", np.array([0.0, 0.0, 1.0])),
    "slopes reversed": put("proof_/slopes/2/lower", np.array([2.0, 0.0, 0.0])),
    "slopes nan": put("proof_/slopes/2/lower", np.array([np.nan, 0.0, 0.0])),
    "slopes wrong shape": put("proof_/slopes/2/lower", np.zeros(2)),
    "slopes missing": put("proof_/slopes", {}),
    "slopes of a dense node": put("proof_/slopes", {"1": {}}),
    "intervals too narrow": put("proof_/intervals/1/upper", np.array([3.0, -3.6, 2.2])),
    "interval of no node": put("proof_/intervals", {"17": {}}),
    "interval key": put("proof_/intervals", {"-1": {}}),
    "first step missing": remove("proof_/steps/0"),
    "second step missing": remove("proof_/steps/1"),
    "no steps": put("proof_/steps", []),
    "steps reversed": lambda p: p["proof_"]["steps"].reverse(),
    "step repeated": lambda p: p["proof_"]["steps"].append(p["proof_"]["steps"][0]),
    "segment over a nonlinear node": put("proof_/steps/1/from", 0),
    "segment from itself": put("proof_/steps/1/from", 3),
    "segment from a later node": put("proof_/steps/0/from", 3),
    "segment from nowhere": put("proof_/steps/0/from", -1),
    "norm inf": put("proof_/steps/1/norm", INF),
    "norm nan": put("proof_/steps/1/norm", NAN),
    "norm negative": put("proof_/steps/1/norm", real(-5.0)),
    "norm zero": put("proof_/steps/1/norm", real(0.0)),
    "norm too small": put("proof_/steps/1/norm", real(norm2(W2 * [1, 0, 1]) * (1 - 1e-6))),
    "norm as a number": put("proof_/steps/1/norm", 100.0),
    "norm as a decimal": put("proof_/steps/1/norm", {"float": "100.0"}),
    "gain of a dense node": put("proof_/steps/1", {"node": 3, "rule": "gain"}),
    "gain of relu": put("proof_/steps/0", {"node": 2, "rule": "gain"}),
    "join of a dense node": put("proof_/steps/1", {"node": 3, "rule": "join"}),
    "unknown rule": put("proof_/steps/1/rule", "trust"),
    "unknown evidence": put("proof_/steps/1/evidence", {"kind": "trust me"}),
    "evidence of another norm": put("proof_/steps/1/evidence", {"kind": "sums"}),
    "evidence with more fields": put("proof_/steps/1/evidence/more", 1),
    "bounds": put("proof_/steps/1/evidence/bounds", [0, 3]),
    "axis": put("proof_/steps/1/evidence/axis", 7),
    "proof is a list": put("proof_", []),
    "proof is null": put("proof_", None),
    "step is a list": put("proof_/steps/0", []),
    "claim too low": put("claim_/upper/value", real(2.0)),
    "claim inf": put("claim_/upper/value", INF),
    "claim nan": put("claim_/upper/value", NAN),
    "claim negative": put("claim_/upper/value", real(-1.0)),
    "failure negative": put("claim_/upper/failure", real(-0.1)),
    "failure one": put("claim_/upper/failure", real(1.0)),
    "other model": put("claim_/model", "sha256:" + "0" * 64),
    "mixed norms": put("claim_/output_norm", "linf"),
    "norm l3": put("claim_/input_norm", "l3"),
    "larger region": put("claim_/region/upper", np.array([4.0, 4.0])),
    "region reversed": put("claim_/region/upper", np.array([-4.0, 4.0])),
    "region nan": put("claim_/region/upper", np.array([np.nan, 4.0])),
    "region inf": put("claim_/region/upper", np.array([np.inf, 4.0])),
    "region float32": put("claim_/region", {"kind": "box", "lower": 1, "upper": 2}),
    "everywhere with intervals": put("claim_/region", {"kind": "everywhere"}),
    "lower too high": put("claim_/lower/value", real(5.0)),
    "lower inf": put("claim_/lower/value", INF),
    "lower negative": put("claim_/lower/value", real(-1.0)),
    "witness the same": lambda p: p["witness"].update(y=p["witness"]["x"]),
    "witness outside": put("witness/x", np.array([1.0000000000000002, 0.0])),
    "witness nan": put("witness/x", np.array([np.nan, 0.0])),
    "witness too short": put("witness/x", np.array([0.5])),
    "witness missing": put("witness", {}),
    "output too large": put("claim_/output", "2"),
    "output nonsense": put("claim_/output", "0-"),
    "output number": put("claim_/output", 0),
    "output padded": put("claim_/output", "00"),
    "unbounded": put(
        "claim_/upper", {"status": "unbounded", "value": None, "failure": real(0.0), "node": 2, "reason": "x"}
    ),
    "status certified": put("claim_/upper/status", "certified"),
    "cyclic": put("graph/nodes/1/inputs", [1]),
    "forward": put("graph/nodes/1/inputs", [2]),
    "negative input": put("graph/nodes/1/inputs", [-1]),
    "second input": put("graph/nodes/2", {"kind": "Input", "inputs": [], "shape": [3], "name": ""}),
    "negative size": put("graph/nodes/1/shape", [-3]),
    "huge shape": put("graph/nodes/1/shape", [2**62]),
    "float shape": put("graph/nodes/1/shape", [3.0]),
    "true shape": put("graph/nodes/1/shape", [True]),
    "other shape": put("graph/nodes/1/shape", [4]),
    "empty shape": put("graph/nodes/1/shape", [0]),
    "nested lists": put("graph/nodes/1/shape", [[3]]),
    "weight of the wrong shape": put("graph/nodes/1/weight", W1.T.copy()),
    "weight nan": put("graph/nodes/1/weight", W1 * np.nan),
    "weight elsewhere": put("graph/nodes/1/weight", {"array": "../../etc/passwd"}),
    "weight unknown": put("graph/nodes/1/weight", {"array": "0" * 64}),
    "weight a number": put("graph/nodes/1/weight", 3),
    "unknown kind": put("graph/nodes/1/kind", "Magic"),
    "kind a list": put("graph/nodes/1/kind", []),
    "unknown function": put("graph/nodes/2/function", "magic"),
    "argument of another function": put("graph/nodes/2/arguments", [["alpha", real(1.0)]]),
    "extra field": put("graph/nodes/1/extra", 1),
    "missing field": remove("graph/nodes/1/bias"),
    "output index": put("graph/output", 9),
    "output index negative": put("graph/output", -1),
    "no nodes": put("graph/nodes", []),
    "node a number": put("graph/nodes/1", 7),
}


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_attacks_with_right_digests(tmp_path: Path, attack: str) -> None:
    from harness.bundle_writer import model_digest

    changed = parts()
    ATTACKS[attack](changed)
    if attack != "other model":
        try:
            changed["claim_"]["model"] = model_digest(changed["graph"])
        except (TypeError, AttributeError):
            pass
    folder = write(tmp_path, **changed)
    try:
        found = lipcheck.check(folder)
    except lipcheck.Unreadable as error:
        assert str(error)
        return
    assert not found.accepted
    assert found.reasons and all(found.reasons)
    assert not any("internal" in r or "Error:" in r for r in found.reasons), found.reasons


def test_true_variations_are_accepted(tmp_path: Path) -> None:
    """Wider statements are still true."""
    edits: dict[str, Edit] = {
        "wider slopes": put("proof_/slopes/2/lower", np.array([-1.0, 0.0, 0.0])),
        "a looser norm": lambda p: (put("proof_/steps/1/norm", real(9.0))(p), put("claim_/upper/value", real(1e3))(p)),
        "a smaller region": put("claim_/region/lower", np.array([-0.5, -1.0])),
        "no intervals": put("proof_/intervals", {}),
        "no lower bound": lambda p: (put("witness", {})(p), put("claim_/lower/value", real(0.0))(p)),
    }
    for name, edit in edits.items():
        changed = parts()
        edit(changed)
        found = lipcheck.check(write(tmp_path / name, **changed))
        assert found.accepted, (name, found.reasons)


def test_files_that_do_not_belong(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", **parts())
    (folder / "extra.json").write_text("{}")
    assert not lipcheck.check(folder).accepted
    with pytest.raises(lipcheck.Unreadable):
        lipcheck.check(seal(folder))
    folder = write(tmp_path / "b", **parts())
    next((folder / "arrays").iterdir()).unlink()
    assert not lipcheck.check(folder).accepted
    folder = write(tmp_path / "c", **parts())
    victim = next((folder / "arrays").iterdir())
    np.save(victim, np.load(victim) * 1.5)
    assert not lipcheck.check(folder).accepted
    assert not lipcheck.check(seal(folder)).accepted  # the name is the digest of the content
    # Smaller weights under the old name would make every claim but the lower bound true, and fit the model's digest.
    changed = parts()
    changed["witness"], changed["claim_"]["lower"] = {}, {"value": real(0.0)}
    folder = write(tmp_path / "e", **changed)
    assert lipcheck.check(folder).accepted
    np.save(folder / "arrays" / f"{changed['graph']['nodes'][3]['weight']['array']}.npy", W2 * 0.5)
    assert not lipcheck.check(seal(folder)).accepted
    folder = write(tmp_path / "d", **parts())
    (folder / "proof.json").rename(tmp_path / "elsewhere")
    (folder / "proof.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(lipcheck.Unreadable):
        lipcheck.check(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": "lipscope-bundle/2", "files": {}}', "[" * 100_000, '{"schema": NaN}',
                                  '{"schema": "lipscope-bundle/1", "files": {"../x": ""}}', "\xff", "1" * 5000])  # fmt: skip
def test_unreadable_bundle_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "bundle.json").write_text(text, encoding="latin-1")
    with pytest.raises(lipcheck.Unreadable):
        lipcheck.check(tmp_path)


@pytest.mark.parametrize(
    "header",
    ["{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }", "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
     "{'descr': '<f8', 'fortran_order': False, 'shape': (-2,), }", "{'descr': '<c16', 'fortran_order': False, 'shape': (1,), }",
     "__import__('os')", "{", "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (2,), }"],
)  # fmt: skip
def test_hostile_arrays(tmp_path: Path, header: str) -> None:
    folder = write(tmp_path, **parts())
    victim = next((folder / "arrays").iterdir())
    text = header.encode() + b" " * (117 - len(header) % 64) + b"\n"
    victim.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 16)
    found = lipcheck.check(seal(folder))
    assert not found.accepted and found.reasons


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_is_noticed_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Changed with and without repaired digests: rejected, unreadable, or the claim is still true."""
    folder = write(tmp_path_factory.mktemp("fuzz"), **parts())
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    victim = data.draw(st.sampled_from(files))
    content = bytearray(victim.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    victim.write_bytes(bytes(content))
    if victim.name != "bundle.json":
        assert not accepted(folder)
        if accepted(seal(folder)):
            still_true(folder)
    elif accepted(folder):
        still_true(folder)
    shutil.rmtree(folder)


def accepted(folder: Path) -> bool:
    try:
        return lipcheck.check(folder).accepted
    except lipcheck.Unreadable:
        return False


def still_true(folder: Path) -> None:
    """The network is the known one (its digest is in the claim): the exact constant lies between the bounds."""
    stored = json.loads((folder / "claim.json").read_text())
    exact = max(norm2(W2 @ np.diag(d) @ W1) for d in ([1, 0, 1], [1, 0, 0], [0, 0, 1]))
    sides = {"I": W2[0], "J": W2[1]}
    if stored["output"] != "all":
        row = {"0": sides["I"], "1": sides["J"], "0-1": sides["I"] - sides["J"], "1-0": sides["I"] - sides["J"]}[
            stored["output"]
        ]
        exact = max(norm2(row[None] @ np.diag(d) @ W1) for d in ([1, 0, 1], [1, 0, 0], [0, 0, 1]))
    if stored["upper"]["status"] == "computed" and stored["input_norm"] == "l2":
        assert float.fromhex(stored["upper"]["value"]["float"]) >= exact
    assert float.fromhex(stored["lower"]["value"]["float"]) <= exact * (1 + 1e-12)


@pytest.mark.parametrize("output", ["0", "1", "0-1"])
def test_selected_outputs(tmp_path: Path, output: str) -> None:
    p = parts()
    row = {"0": W2[:1], "1": W2[1:], "0-1": W2[:1] - W2[1:]}[output]
    t = norm2(row * [1, 0, 1])
    p["claim_"]["upper"]["value"] = real(norm2(W1 * [[1], [0], [1]]) * t * (1 + 1e-5))
    for slack, expected in ((1e-6, True), (-1e-6, False)):
        p["claim_"].update(output=output, lower={"value": real(0.0)})
        p["proof_"]["steps"][1] = segment(5, 2, t * (1 + slack), "cholesky", **CHOLESKY)
        p["witness"] = {}
        assert lipcheck.check(write(tmp_path / f"{output}{expected}", **p)).accepted == expected


def witness_of(
    net: Net, x: np.ndarray, y: np.ndarray, lower: float, region: Any = None, norm: str = "l2"
) -> dict[str, Any]:
    graph = net.document()
    stored = claim(graph, norm, None, lower, region, status="no-bound")
    witness = {"x": net.arrays(x), "y": net.arrays(y)}
    return {"graph": graph, "claim_": stored, "proof_": {}, "arrays": net.arrays, "witness": witness}


def test_close_witnesses_are_evaluated_in_higher_precision(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    net = Net(1, 2, 5, 5)
    net.add("Conv", 0, (1, 3, 5, 5), weight=rng.standard_normal((3, 2, 3, 3)), bias=rng.standard_normal(3) * 1e3, stride=[1, 1],
            padding=[[1, 1], [1, 1]], dilation=[1, 1], groups=1)  # fmt: skip
    net.add("BatchNorm", 1, (1, 3, 5, 5), mean=np.ones(3), variance=np.ones(3), weight=np.full(3, 2.0), bias=np.ones(3),
            eps=0.5, axis=1)  # fmt: skip
    net.elementwise(2, "gelu")
    net.add("Reshape", 3, (75,))
    net.dense(4, rng.standard_normal((4, 75)))
    x = rng.standard_normal(50)
    y = x + 1e-11 * rng.standard_normal(50)
    net_parts = witness_of(net, x, y, 0.0)
    found = lipcheck.check(write(tmp_path / "a", **net_parts))
    coarse = float.fromhex(found.lower["proved"]["float"])
    net_parts["claim_"]["lower"] = {"value": real(1e9)}
    found = lipcheck.check(write(tmp_path / "b", **net_parts))
    fine = float.fromhex(found.lower["proved"]["float"])
    assert not found.accepted and fine > coarse
    net_parts["claim_"]["lower"] = {"value": real(fine * (1 - 1e-15))}
    assert lipcheck.check(write(tmp_path / "c", **net_parts)).accepted


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_the_ball_is_exact(tmp_path: Path, norm: str) -> None:
    net = Net(2)
    net.dense(0, np.eye(2))
    corner = {"l1": [0.5, 0.5], "l2": [0.6, 0.8], "linf": [1.0, 1.0]}[norm]
    inside = {"l1": True, "l2": 0.6**2 + 0.8**2 <= 1, "linf": True}[norm]
    from fractions import Fraction

    if norm == "l2":
        inside = Fraction(0.6) ** 2 + Fraction(0.8) ** 2 <= 1
    region = {"kind": "ball", "center": net.arrays([0.0, 0.0]), "radius": real(1.0)}
    y = np.zeros(2)
    assert (
        lipcheck.check(write(tmp_path / "a", **witness_of(net, np.array(corner), y, 0.5, region, norm))).accepted
        == inside
    )
    outside = np.nextafter(corner, 2)
    assert not lipcheck.check(write(tmp_path / "b", **witness_of(net, outside, y, 0.5, region, norm))).accepted


def test_unbounded_polynomial(tmp_path: Path) -> None:
    net = Net(2)
    a, b = net.dense(0, np.array([[1.0, 0.0]])), net.dense(0, np.array([[0.0, 1.0]]))
    net.add("Multiply", [a, b], (1,))
    graph = net.document()
    for name, direction, region, expected in (
        ("good", [1.0, 1.0], None, True),
        ("straight", [1.0, 0.0], None, False),
        ("box", [1.0, 1.0], {"kind": "box", "lower": net.arrays([0.0, 0]), "upper": net.arrays([1.0, 1])}, False),
    ):
        stored = {"method": "polynomial", "x": net.arrays([0.3, 0.1]), "direction": net.arrays(direction)}
        found = lipcheck.check(
            write(tmp_path / name, graph, claim(graph, status="unbounded", region=region), stored, net.arrays)
        )
        assert found.accepted == expected, found.reasons
        assert not expected or found.upper["status"] == "unbounded"
    net.elementwise(3, "tanh")
    graph = net.document()
    stored = {"method": "polynomial", "x": net.arrays([0.3, 0.1]), "direction": net.arrays([1.0, 1.0])}
    assert not lipcheck.check(
        write(tmp_path / "tanh", graph, claim(graph, status="unbounded"), stored, net.arrays)
    ).accepted


def test_unbounded_countable(tmp_path: Path) -> None:
    def bundle(name: str, around: bool, operator: str, x: float, y: float) -> lipcheck.Verdict:
        net = Net(1)
        arguments = [["threshold", 0.0], ["value", 0.0]] if operator == "threshold" else []
        net.add("Discontinuous", 0, (1,), operator=operator, axis=-1, arguments=arguments)
        net.elementwise(1, "tanh")
        if around:
            net.add("Add", [2, 0], (1,))
        graph = net.document()
        stored = {"method": "countable", "x": net.arrays([x]), "y": net.arrays([y])}
        return lipcheck.check(write(tmp_path / name, graph, claim(graph, status="unbounded"), stored, net.arrays))

    assert bundle("good", False, "sign", -1.0, 1.0).accepted
    assert not bundle("same", False, "sign", 1.0, 2.0).accepted
    assert not bundle("around", True, "sign", -1.0, 1.0).accepted
    assert not bundle("uncountable", False, "threshold", -1.0, 1.0).accepted


def test_a_segment_must_start_at_a_dominating_node(tmp_path: Path) -> None:
    """x + W x with a segment that starts behind the skip connection, and one that forgets it."""
    net = Net(2)
    net.dense(0, np.eye(2) * 3)
    net.dense(1, np.eye(2))
    net.add("Add", [2, 0], (2,))
    graph = net.document()
    first = segment(1, 0, 3.0 * (1 + 1e-9), "cholesky", **CHOLESKY)
    for name, steps, upper, expected in (
        ("through", [first, segment(3, 1, 2.0, "schur")], 7.0, False),
        ("whole", [segment(3, 0, 4.0 * (1 + 1e-9), "cholesky", **CHOLESKY)], 4.0001, True),
        ("join", [first, segment(2, 1, 1 + 1e-9, "schur"), {"node": 3, "rule": "join"}], 4.0001, True),
        ("low", [first, segment(2, 1, 1 + 1e-9, "schur"), {"node": 3, "rule": "join"}], 3.9999, False),
    ):
        found = lipcheck.check(write(tmp_path / name, graph, claim(graph, "l2", upper), proof(steps), net.arrays))
        assert found.accepted == expected, (name, found.reasons)


def test_constants_have_constant_zero(tmp_path: Path) -> None:
    net = Net(2)
    net.add("Constant", [], (2,), value=np.array([1.0, 2.0]))
    net.add("Multiply", [0, 1], (2,))
    net.add("Maximum", [2, 1], (2,))
    graph = net.document()
    region = {"kind": "box", "lower": net.arrays([-1.0, -1]), "upper": net.arrays([1.0, 1])}
    steps = [{"node": 2, "rule": "join"}, {"node": 3, "rule": "join"}]
    for upper, where, expected in ((2.0 + 1e-9, region, True), (1.99, region, False), (2.1, None, False)):
        found = lipcheck.check(
            write(tmp_path / f"{upper}", graph, claim(graph, "linf", upper, region=where), proof(steps), net.arrays)
        )
        assert found.accepted == expected, found.reasons


def test_writer_digests_are_the_checkers() -> None:
    arrays = Arrays()
    reference = arrays(np.arange(6.0).reshape(2, 3))["array"]
    assert lipcheck.bundle.array_digest(arrays.known[reference]) == reference
