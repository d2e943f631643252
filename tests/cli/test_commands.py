"""The command line as a user meets it: outputs, streams and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lipscope.cli import main


def write_onnx(
    path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], shape=("N", 3), opset: int = 17
) -> Path:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, k) for k, w in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    w = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    v = np.random.default_rng(1).standard_normal((4, 2)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"), helper.make_node("Relu", ["a"], ["b"], name="act"),
        helper.make_node("MatMul", ["b", "v"], ["y"], name="last"),
    ]  # fmt: skip
    return write_onnx(tmp_path / "model.onnx", nodes, {"w": w, "v": v})


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    return int(left.value.code or 0)


def test_bound_check_report(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, page = tmp_path / "out", tmp_path / "report.html"
    assert run("bound", model, "--norm", "l2", "-o", bundle, "--budget", "3") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "certified" in err
    assert run("check", bundle) == 0
    assert "accepted" in capsys.readouterr().err
    assert run("report", bundle, "-o", page) == 0
    assert "certified" in page.read_text()


def test_json_is_all_of_stdout(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bound", model, "--json", "--budget", "3") == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) >= {
        "model",
        "claim",
        "lower",
        "upper",
        "ratio",
        "seconds",
        "cpu_seconds",
        "layers",
        "candidates",
    }
    assert document["upper"]["status"] == "certified"
    assert document["upper"]["proof"] == "deterministic"
    assert document["model"]["inputs"] == [[3]]
    assert document["model"]["outputs"] == [[2]]
    assert document["lower"]["value"] <= document["upper"]["value"]
    assert run("bound", model, "--json", "--no-check", "--budget", "3") == 0
    assert json.loads(capsys.readouterr().out)["upper"]["status"] == "computed"


def test_inspect(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", model) == 0
    err = capsys.readouterr().err
    assert all(word in err for word in ("MatMul", "first", "act", "last", "3 supported"))
    assert run("inspect", model, "--json") == 0
    assert [o["layer"] for o in json.loads(capsys.readouterr().out)["operations"]] == ["first", "act", "last"]


def test_options_do_something(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def value(*options: str) -> float:
        assert run("bound", model, "--json", "--budget", "2", "--no-check", *options) == 0
        return float(json.loads(capsys.readouterr().out)["upper"]["value"])

    plain = value()
    assert value("--norm", "linf") != plain
    assert value("--norm", "l1") != plain
    assert value("--output", "0") < plain
    assert value("--output", "0-1") != value("--output", "0")
    assert value("--region", "box:1,1.001") < plain
    assert value("--std", "0.5") == pytest.approx(2 * plain, rel=1e-6)
    assert value("--mean", "5", "--region", "box:1,1.001") != value("--region", "box:1,1.001")
    assert value("--method", "product") > plain


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--norm", "l3"], "expected a norm"), (["--region", "box:2,1"], "lower <= upper"),
        (["--region", "box:missing.npz"], "missing.npz"), (["--output", "7"], "expected an output below 2"),
        (["--method", "magic"], "expected a method"), (["--budget", "0"], "budget"), (["--budget", "-1"], "budget"),
        (["--input-shape", "a"], "expected a shape"), (["--mean", "x"], "expected numbers"), (["--std", "0"], "std"),
        (["--budget", "soon"], "valid number"), (["--frobnicate"], "frobnicate"),
    ],
)  # fmt: skip
def test_wrong_use(model: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bound", model, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in " ".join(err.split())
    assert "Traceback" not in err


def test_unreadable_models(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(model.read_bytes()[:50])
    empty = tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    for wrong in (
        tmp_path / "none.onnx",
        truncated,
        empty,
        tmp_path,
        text,
        tmp_path / "none.pt2",
        "no.such.module:factory",
    ):
        for command in ("bound", "inspect"):
            assert run(command, wrong) == 2, wrong
            err = capsys.readouterr().err
            assert "error:" in err
            assert "Traceback" not in err


def test_nan_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w = np.eye(3, dtype=np.float32)
    w[0, 0] = np.nan
    path = write_onnx(tmp_path / "nan.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"], name="head")], {"w": w})
    assert run("bound", path) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "finite" in err
    assert "head" in err


def test_operations_that_are_not_understood_are_all_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="strange"), helper.make_node("NonZero", ["x"], ["b"], name="odd"),
        helper.make_node("Relu", ["a"], ["y"], name="fine"),
    ]  # fmt: skip
    path = write_onnx(tmp_path / "odd.onnx", nodes, {}, (1, 3, 3))
    assert run("bound", path) == 3
    err = capsys.readouterr().err
    assert "Det" in err
    assert "strange" in err
    assert run("inspect", path) == 3


def test_a_network_with_a_jump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_onnx(tmp_path / "sign.onnx", [helper.make_node("Sign", ["x"], ["y"], name="decide")], {})
    assert run("bound", path, "--json") == 0
    upper = json.loads(capsys.readouterr().out)["upper"]
    assert (upper["status"], upper["value"], upper["node"]) == ("unbounded", None, "decide")


def test_a_tampered_bundle(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "out"
    assert run("bound", model, "-o", bundle, "--budget", "2") == 0
    claim = json.loads((bundle / "claim.json").read_text())
    claim["upper"]["value"] = {"float": (1e-3).hex()}
    (bundle / "claim.json").write_text(json.dumps(claim))
    capsys.readouterr()
    assert run("check", bundle) == 1
    assert "REJECTED" in capsys.readouterr().err
    assert run("check", tmp_path / "nothing") == 2
    assert run("report", tmp_path / "nothing", "-o", tmp_path / "page.html") == 2
    assert not (tmp_path / "page.html").exists()


def test_a_place_that_is_not_a_bundle_is_left_alone(model: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    assert run("bound", model, "-o", mine, "--budget", "2") == 2
    assert (mine / "notes.txt").read_text() == "keep"


SLOW = """
import torch
from torch import nn
def slow():
    layers = []
    for _ in range(3):
        layers += [nn.Conv2d(32, 32, 5, padding=2), nn.ReLU()]
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), *layers).eval()
"""


@pytest.mark.parametrize("stage", [b"product", b"lower bound: climbing"])
def test_ctrl_c_keeps_what_was_reached(tmp_path: Path, stage: bytes) -> None:
    (tmp_path / "nets.py").write_text(SLOW)
    bundle = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "lipscope", "bound", "nets:slow", "--input-shape", "1,24,24", "--budget", "500", "--json", "-o", str(bundle)],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background inherits that it is ignored
    )  # fmt: skip
    try:
        seen = b""
        deadline = time.monotonic() + 60
        os.set_blocking(process.stderr.fileno(), False)
        while stage not in seen and time.monotonic() < deadline:
            seen += os.read(process.stderr.fileno(), 65536) if _readable(process.stderr) else b""
            time.sleep(0.1)
        os.set_blocking(process.stderr.fileno(), True)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert stage in seen and process.returncode == 4
    document = json.loads(out)
    assert document["interrupted"] is True
    assert document["upper"]["status"] == "computed"
    assert document["upper"]["value"] >= document["lower"]["value"]
    assert run("check", bundle) == 0


def _readable(stream) -> bool:
    import select

    return bool(select.select([stream], [], [], 0)[0])


def test_a_bad_target_is_refused_before_anything_is_computed(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the search was begun")

    monkeypatch.setattr("lipscope.api.bound", never)
    for target in (".", "..", "file", "file/below", "/proc/nowhere"):
        assert run("bound", model, "-o", target) == 2, target
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "file"}


def test_the_answer_is_printed_even_if_the_bundle_cannot_be_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import errno

    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    from lipscope.certificate import bundle

    original = bundle.new_folder

    def failing(target: Path, marker: str):
        if target.name == "out":
            monkeypatch.setattr(Path, "write_bytes", full)
        return original(target, marker)

    monkeypatch.setattr(bundle, "new_folder", failing)
    assert run("bound", model, "-o", tmp_path / "out", "--json", "--budget", "2") == 5
    out, err = capsys.readouterr()
    assert json.loads(out)["upper"]["status"] == "certified"
    assert "disk is full" in err
    for extra in ([], ["-o", tmp_path / "out"], ["--output", "pairs"]):  # by now the temporary folder is full as well
        assert run("bound", model, "--budget", "2", *extra) == 5
        err = capsys.readouterr().err
        assert "computed" in err and "certified" not in err and "not checked" in err and "disk is full" in err
        assert "\nbundle " not in err  # none was written
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx"}


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, lipscope, lipscope.cli; sys.exit(any(m in sys.modules for m in ('torch', 'onnx', 'plotly', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    planted = code.replace("lipscope.cli;", "lipscope.cli, torch;")  # the test can fail
    assert subprocess.run([sys.executable, "-c", planted], check=False).returncode == 1


def test_settled_jumps_are_constants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_onnx(tmp_path / "sign.onnx", [helper.make_node("Sign", ["x"], ["y"], name="decide")], {})
    assert run("bound", path, "--json", "--region", "box:0.5,2") == 0
    upper = json.loads(capsys.readouterr().out)["upper"]
    assert (upper["status"], upper["value"]) == ("certified", 0.0)
