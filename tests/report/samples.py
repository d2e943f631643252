"""Bundles written by hand, in the form of docs/certificate.md: what the report must be able to show."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

Json = dict[str, Any]


def real(value: float | None) -> Json | None:
    return None if value is None else {"float": float(value).hex()}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(arrays: dict[str, bytes], array: np.ndarray) -> Json:
    """The reference to an array that is added to the bundle."""
    digest = sha256(f"{array.dtype.str[1:]}:{','.join(map(str, array.shape))}:".encode() + array.tobytes())
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    arrays[f"arrays/{digest}.npy"] = buffer.getvalue()
    return {"array": digest}


def model_digest(graph: Json) -> str:
    nodes = [{k: v for k, v in node.items() if k != "name"} for node in graph["nodes"]]
    plain = {k: v for k, v in graph.items() if k != "source"} | {"nodes": nodes}
    return "sha256:" + sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())


class Sample:
    """A chain of dense layers with ReLUs between, whose documents a test may change before they are written."""

    def __init__(
        self, norms: list[float] | None = None, *, slack: float = 1.0005, lower: float = 8.9312, names: list[str] | None = None,
        source: str = "classifier.onnx", norm: str = "l2", status: str = "computed", reason: str | None = None, node: int | None = None,
        region: str = "everywhere", output: str = "all", failure: float = 0.0, checked: bool = True, branch: bool = False,
    ) -> None:  # fmt: skip
        norms = [2.1, 1.75, 0.9, 2.96] if norms is None else norms
        names = names or [f"features.{2 * i}" for i in range(len(norms))]
        self.arrays: dict[str, bytes] = {}
        self.extra: dict[str, bytes] = {}
        self.graph = self._graph(norms, names, source, branch)
        value = float(np.prod(norms)) * 1.0000001 if status == "computed" else None
        self.claim: Json = {
            "model": model_digest(self.graph), "input_norm": norm, "output_norm": norm, "region": self._region(region), "output": output,
            "upper": {"status": status, "value": real(value), "failure": real(failure), "node": node, "reason": reason},
            "lower": {"value": real(lower)},
        }  # fmt: skip
        self.proof = self._proof(norms, branch) if status == "computed" else {"method": "none"}
        self.witness: Json = (
            {"x": put(self.arrays, np.zeros(4)), "y": put(self.arrays, np.ones(4))} if lower > 0 else {}
        )
        self.agreement: Json = {
            "dtype": "float32",
            "pairs": [{"input": put(self.arrays, np.ones(4)), "output": put(self.arrays, np.ones(4))}] * 3,
        }
        self.result = self._result(value, lower, norms, names, slack, status, reason)
        self.verdict: Json | None = self._verdict(value, lower, failure, status) if checked else None

    def _graph(self, norms: list[float], names: list[str], source: str, branch: bool) -> Json:
        nodes: list[Json] = [{"kind": "Input", "inputs": [], "shape": [1, 4], "name": "input"}]
        for norm, name in zip(norms, names, strict=True):
            weight = put(self.arrays, (norm * np.eye(4)).astype(np.float32))
            bias = put(self.arrays, np.zeros(4, np.float32))
            nodes.append(
                {
                    "kind": "Dense",
                    "inputs": [len(nodes) - 1],
                    "shape": [1, 4],
                    "name": name,
                    "weight": weight,
                    "bias": bias,
                    "axis": 1,
                }
            )
            relu = {
                "kind": "Elementwise",
                "inputs": [len(nodes) - 1],
                "shape": [1, 4],
                "name": f"{name}.relu",
                "function": "relu",
            }
            nodes.append({**relu, "arguments": [], "slope": None})
        if branch:
            nodes.append({"kind": "Add", "inputs": [2, len(nodes) - 1], "shape": [1, 4], "name": "residual"})
        return {
            "nodes": nodes,
            "output": len(nodes) - 1,
            "input_shapes": [[4]],
            "output_shapes": [[4]],
            "source": source,
        }

    def _region(self, kind: str) -> Json:
        if kind == "box":
            return {"kind": kind, "lower": put(self.arrays, np.zeros(4)), "upper": put(self.arrays, np.ones(4))}
        if kind == "ball":
            return {"kind": kind, "center": put(self.arrays, np.zeros(4)), "radius": real(0.25)}
        return {"kind": kind}

    def _proof(self, norms: list[float], branch: bool) -> Json:
        evidences = [
            {"kind": "cholesky", "side": "input", "axis": 2, "bounds": [0, 2, 4]},
            {"kind": "grid", "counts": [32, 32]},
            {"kind": "lanczos", "side": "input", "starts": 3, "steps": 40, "failure": real(1e-9)},
            {"kind": "schur"},
        ]
        steps: list[Json] = [
            {"node": 2 * i + 2, "rule": "segment", "from": 2 * i, "norm": real(norm), "evidence": evidences[i % 4]}
            for i, norm in enumerate(norms)
        ]
        if branch:
            steps.append({"node": 2 * len(norms) + 1, "rule": "join"})
        return {"method": "product", "intervals": {}, "slopes": {}, "steps": steps}

    def _result(
        self,
        value: float | None,
        lower: float,
        norms: list[float],
        names: list[str],
        slack: float,
        status: str,
        reason: str | None,
    ) -> Json:
        layers = [
            {"name": name, "kind": "Dense", "lower": n / (slack if i % 3 else slack**20), "upper": n, "tight": i % 3 > 0 or slack == 1,
             "evidence": "cholesky", "seconds": 0.01 * i}
            for i, (n, name) in enumerate(zip(norms, names, strict=True))
        ]  # fmt: skip
        candidates: list[Json] = [
            {"method": "product", "value": value, "seconds": 0.012, "note": None if value else reason}
        ]
        if value is not None:
            candidates.append({"method": "triangle", "value": value * 3.7, "seconds": 1.5, "note": None})
            candidates.append(
                {"method": "lipsdp", "value": None, "seconds": 0.0, "note": "refused: more than 1000 hidden units"}
            )
        return {
            "model": {"source": self.graph["source"], "digest": self.claim["model"], "inputs": [[4]], "outputs": [[4]]},
            "claim": {"input_norm": self.claim["input_norm"], "output_norm": self.claim["input_norm"], "region": {"kind": "everywhere"}, "output": self.claim["output"]},
            "lower": {"value": lower, "method": "difference quotient of a pair, found by hill climbing on the Jacobian", "status": "certified", "witness": "witness.json: inputs x and y"},
            "upper": {"value": value, "method": "product", "status": "certified" if value else status, "proof": "deterministic", "node": None, "reason": reason},
            "exact": False, "ratio": None, "seconds": 1.234, "cpu_seconds": 1.1, "interrupted": False,
            "layers": layers if value is not None else [], "candidates": candidates, "warnings": [],
        }  # fmt: skip

    def _verdict(self, value: float | None, lower: float, failure: float, status: str) -> Json:
        product, steps = 1.0, []
        for step in self.proof.get("steps", []):
            product = product * float.fromhex(step["norm"]["float"]) if step["rule"] == "segment" else product + 1
            steps.append({"node": step["node"], "rule": step["rule"], "constant": real(product), "seconds": 0.02})
        return {
            "schema": "lipscope-verdict/1", "checker": "lipcheck 0.1.0", "accepted": True,
            "upper": {"status": "certified" if value is not None else status, "value": real(value), "proved": real(value), "failure": real(failure), "reasons": []},
            "lower": {"status": "certified" if lower > 0 else "none", "value": real(lower), "proved": real(lower), "reasons": []},
            "agreement": {"pairs": 3, "largest_relative_error": 1.2e-7}, "steps": steps, "seed": None, "seconds": 1.2,
        }  # fmt: skip

    def set_upper(self, value: float) -> Sample:
        """Claim, result and verdict of another upper bound."""
        self.claim["upper"]["value"] = real(value)
        self.result["upper"]["value"] = self.result["candidates"][0]["value"] = value
        if self.verdict is not None:
            self.verdict["upper"].update(value=real(value), proved=real(value))
        return self

    def reject(self, side: str, reason: str) -> Sample:
        """The checker refuses one side."""
        assert self.verdict is not None
        self.verdict["accepted"] = False
        self.verdict[side].update(status="rejected", proved=None, reasons=[reason])
        return self

    def write(self, folder: Path) -> Path:
        """Write the bundle."""
        documents = {"graph.json": self.graph, "claim.json": self.claim, "proof.json": self.proof, "witness.json": self.witness,
                     "agreement.json": self.agreement, "result.json": self.result}  # fmt: skip
        contents = {name: json.dumps(document, indent=1).encode() for name, document in documents.items()} | self.arrays
        (folder / "arrays").mkdir(parents=True)
        for name, content in (contents | self.extra).items():
            (folder / name).write_bytes(content)
        index = {"schema": "lipscope-bundle/1", "files": {name: sha256(content) for name, content in contents.items()}}
        (folder / "bundle.json").write_text(json.dumps(index))
        if self.verdict is not None:
            (folder / "verdict.json").write_text(json.dumps(self.verdict))
        return folder


HOSTILE = '</script><script>alert("&amp;")</script><img src=x onerror=alert(1)> "\'{{7*7}}'


def samples() -> dict[str, Sample]:
    """One bundle for each case that the report is designed for."""
    deep = [1 + 0.9 * np.sin(i) ** 2 for i in range(140)]
    wide = [1e-12, 1e12, 3e5, 2e-6, 0.5]
    exact = Sample([2.0, 1.5], slack=1.0, lower=3.0).set_upper(3.0)
    independent = Sample([2.0, 0.0], slack=1.0, lower=0.0).set_upper(0.0)
    return {
        "certified": Sample(),
        "computed": Sample(checked=False),
        "box": Sample(region="box", output="3-1", norm="linf"),
        "ball": Sample(region="ball", output="2", failure=1e-9),
        "no-bound": Sample(
            status="no-bound",
            node=4,
            reason="Multiply of two values has no constant everywhere; give a box region",
            lower=1.5,
        ),
        "unbounded": Sample(
            status="unbounded", node=4, reason="the output jumps where sign changes its value", lower=123.4
        ),
        "lower 0": Sample(lower=0.0),
        "independent": independent,
        "exact": exact,
        "deep": Sample(deep, lower=12.0, names=[f"backbone.stage{i // 10}.block{i}.conv" for i in range(140)]),
        "wide": Sample(wide, lower=1e-9),
        "long names": Sample(names=["encoder.layers." + "attention_output_projection_" * 12, "b", "c" * 300, "d"]),
        "hostile": Sample(names=[HOSTILE, "<b>bold</b>", "$x^2$", "&lt;"], source=HOSTILE),
        "rejected": Sample().reject("upper", "step at node 4: t²I − G is not proved positive semidefinite"),
        "lower rejected": Sample().reject("lower", "x and y are equal"),
        "branch": Sample(branch=True),
        "branch unchecked": Sample(branch=True, checked=False),
    }
