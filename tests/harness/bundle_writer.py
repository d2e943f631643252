"""A small writer of bundles for the tests of the checker; shares nothing with the producer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np


class Arrays:
    """Collects arrays by digest."""

    def __init__(self) -> None:
        self.known: dict[str, np.ndarray] = {}

    def __call__(self, values: Any, dtype: Any = np.float64) -> dict[str, str]:
        array = np.array(values, dtype=dtype, order="C")
        head = f"{array.dtype.str[1:]}:{','.join(map(str, array.shape))}:".encode()
        digest = hashlib.sha256(head + array.tobytes()).hexdigest()
        self.known[digest] = array
        return {"array": digest}


def real(value: float) -> dict[str, str]:
    return {"float": float(value).hex()}


class Net:
    """Builds `graph.json`."""

    def __init__(self, *shape: int) -> None:
        self.arrays = Arrays()
        self.nodes: list[dict[str, Any]] = [{"kind": "Input", "inputs": [], "shape": list(shape), "name": "input"}]

    def add(self, kind: str, inputs: int | list[int], shape: Any, **fields: Any) -> int:
        inputs = [inputs] if isinstance(inputs, int) else list(inputs)
        node = {"kind": kind, "inputs": inputs, "shape": [int(s) for s in shape], "name": f"{kind}{len(self.nodes)}"}
        for key, value in fields.items():
            node[key] = self.field(value)
        self.nodes.append(node)
        return len(self.nodes) - 1

    def field(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return self.arrays(value, value.dtype)
        if isinstance(value, (np.integer, bool, int, str)) or value is None:
            return value if not isinstance(value, np.integer) else int(value)
        if isinstance(value, float):
            return real(value)
        return [self.field(v) for v in value]

    def shape(self, index: int) -> list[int]:
        return self.nodes[index]["shape"]

    def dense(self, x: int, weight: np.ndarray, bias: np.ndarray | None = None, axis: int | None = None) -> int:
        shape = list(self.shape(x))
        axis = len(shape) - 1 if axis is None else axis
        shape[axis] = weight.shape[0]
        return self.add("Dense", x, shape, weight=weight, bias=bias, axis=axis)

    def elementwise(self, x: int, function: str, slope: np.ndarray | None = None, **arguments: float) -> int:
        pairs = [[k, float(v)] for k, v in arguments.items()]
        return self.add("Elementwise", x, self.shape(x), function=function, arguments=pairs, slope=slope)

    def document(self, output: int | None = None) -> dict[str, Any]:
        output = len(self.nodes) - 1 if output is None else output
        return {
            "nodes": self.nodes,
            "output": output,
            "input_shapes": [self.nodes[0]["shape"]],
            "output_shapes": [self.nodes[output]["shape"]],
            "source": "by hand",
        }


def model_digest(graph: dict[str, Any]) -> str:
    plain = {k: v for k, v in graph.items() if k != "source"}
    plain["nodes"] = [{k: v for k, v in node.items() if k != "name"} for node in graph["nodes"]]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def claim(graph: dict[str, Any], norm: str = "l2", upper: float | None = 1.0, lower: float = 0.0,
          region: Any = None, output: str = "all", failure: float = 0.0, status: str = "computed") -> dict[str, Any]:  # fmt: skip
    computed = status == "computed"
    return {
        "model": model_digest(graph),
        "input_norm": norm,
        "output_norm": norm,
        "region": region or {"kind": "everywhere"},
        "output": output,
        "upper": {
            "status": status,
            "value": real(upper) if computed else None,
            "failure": real(failure),
            "node": None if computed else 1,
            "reason": None if computed else "because",
        },
        "lower": {"value": real(lower)},
    }


def proof(steps: list[dict[str, Any]], slopes: Any = None, intervals: Any = None) -> dict[str, Any]:
    return {"method": "by hand", "intervals": intervals or {}, "slopes": slopes or {}, "steps": steps}


def segment(node: int, source: int, norm: float, kind: str = "schur", **fields: Any) -> dict[str, Any]:
    evidence = {"kind": kind, **fields}
    return {"node": node, "rule": "segment", "from": source, "norm": real(norm), "evidence": evidence}


def write(path: Path, graph: Any, claim_: Any, proof_: Any, arrays: Arrays, witness: Any = None,
          agreement: Any = None) -> Path:  # fmt: skip
    """Write a bundle with right digests."""
    (path / "arrays").mkdir(parents=True, exist_ok=True)
    documents = {"graph.json": graph, "claim.json": claim_, "proof.json": proof_, "witness.json": witness or {}}
    if agreement is not None:
        documents["agreement.json"] = agreement
    for name, document in documents.items():
        (path / name).write_text(json.dumps(document), encoding="utf-8")
    for digest, array in arrays.known.items():
        np.save(path / "arrays" / f"{digest}.npy", array)
    return seal(path)


def seal(path: Path) -> Path:
    """(Re)compute `bundle.json` from the files that are there."""
    files = {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in ("bundle.json", "verdict.json")
    }
    (path / "bundle.json").write_text(json.dumps({"schema": "lipscope-bundle/1", "files": files}), encoding="utf-8")
    return path
