"""Writing a result as a bundle, the folder that the checker reads; the schema is in docs/certificate.md."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lipscope.bounds.local.narrowing import stored
from lipscope.certificate.files import new_folder, replaceable, write_file
from lipscope.claims.errors import InternalError, UsageError
from lipscope.claims.regions import Ball, Box
from lipscope.network.graph import array_digest, encode
from lipscope.network.nodes import Array

if TYPE_CHECKING:
    from lipscope.bounds.method import Proof
    from lipscope.bounds.problem import Problem
    from lipscope.certificate.result import Result

SCHEMA = "lipscope-bundle/1"
Json = dict[str, object]


class _Arrays:
    """The bundle's arrays by digest; equal arrays are stored once."""

    def __init__(self, known: dict[str, Array]) -> None:
        self.by_digest = known

    def put(self, array: Array) -> Json:
        digest = array_digest(array)
        self.by_digest[digest] = array
        return {"array": digest}


class _Packed:
    """Arrays put one after the other into one vector for each dtype: a cover has thousands of them, most of them small."""

    def __init__(self) -> None:
        self.parts: dict[np.dtype[Any], list[Array]] = {}
        self.references: dict[np.dtype[Any], list[Json]] = {}
        self.lengths: dict[np.dtype[Any], int] = {}

    def put(self, array: Array) -> Json:
        start = self.lengths.get(array.dtype, 0)
        reference: Json = {"offset": start, "shape": list(array.shape)}
        self.parts.setdefault(array.dtype, []).append(array.reshape(-1))
        self.references.setdefault(array.dtype, []).append(reference)
        self.lengths[array.dtype] = start + array.size
        return reference

    def into(self, arrays: _Arrays) -> None:
        """Store the vectors, and complete the references."""
        for dtype, parts in self.parts.items():
            whole = arrays.put(np.concatenate(parts))
            for reference in self.references[dtype]:
                reference.update(whole)


def _number(value: float | None) -> Json | None:
    return None if value is None else {"float": float(value).hex()}


def write_bundle(result: Result, folder: Path) -> None:
    """Write the bundle of a result; an older bundle in its place is replaced.

    Raises:
        ResourceError: the disk is full; nothing is left behind.
        UsageError: the place cannot be written.
    """
    graph, stored = encode(result.problem.stored)
    arrays = _Arrays(stored)
    documents: dict[str, Json] = {
        "graph.json": graph,
        "claim.json": _claim(result, arrays),
        "proof.json": _proof(result, arrays),
        "witness.json": _witness(result, arrays),
        "agreement.json": _agreement(result, arrays),
        # Without the verdict: the bundle is the same before and after the check, and the verdict names its digest.
        "result.json": replace(result, verdict=None).to_json(),
    }
    with new_folder(folder, "bundle.json") as place:
        digests: dict[str, str] = {}
        (place / "arrays").mkdir()
        contents = {name: json.dumps(document, indent=1).encode() for name, document in documents.items()}
        for digest, array in arrays.by_digest.items():
            contents[f"arrays/{digest}.npy"] = _npy(array)
        for name, content in contents.items():
            (place / name).write_bytes(content)
            digests[name] = hashlib.sha256(content).hexdigest()
        if result.verdict is not None:
            (place / "verdict.json").write_bytes(json.dumps(result.verdict, indent=1).encode())
        index = {"schema": SCHEMA, "files": digests}
        (place / "bundle.json").write_bytes(json.dumps(index, indent=1, sort_keys=True).encode())


def try_folder(folder: Path, marker: str = "bundle.json") -> None:
    """Raise what `write_bundle` would raise about the place, before anything is computed; ours holds the file `marker`.

    Raises:
        ResourceError: the disk is full.
        UsageError: the place cannot be written, or holds something that is not a bundle.
    """
    missing = [p for p in (folder.absolute().parent, *folder.absolute().parent.parents) if not p.exists()]
    if folder.absolute() == Path.cwd() or folder.absolute() in Path.cwd().parents:
        raise UsageError(
            f"expected a new folder for the bundle, got {folder}, which the command runs in; choose another"
        )
    probe = (missing[-1] if missing else folder.absolute()).parent / f".{folder.name}.probe"
    if not replaceable(folder.absolute(), marker):
        with new_folder(folder, marker):
            pass  # raises, and says why
    write_file(probe, b"")
    probe.unlink()


def _npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    plain = np.array(array, order="C", copy=True)
    np.lib.format.write_array(buffer, plain.astype(plain.dtype.newbyteorder("<"), copy=False), allow_pickle=False)
    return buffer.getvalue()


def _claim(result: Result, arrays: _Arrays) -> Json:
    claim, upper = result.problem.claim, result.found
    region: Json = {"kind": claim.region.kind}
    if isinstance(claim.region, Box):
        region.update(lower=arrays.put(claim.region.lower), upper=arrays.put(claim.region.upper))
    elif isinstance(claim.region, Ball):
        region.update(center=arrays.put(claim.region.center), radius=_number(claim.region.radius))
    bands: Json = {}
    if claim.directions is not None:
        mask = arrays.put(claim.directions.mask)
        shape, axes = list(claim.directions.shape), list(claim.directions.axes)
        bands = {"directions": {"kind": "band", "mask": mask, "shape": shape, "axes": axes}}
    return {
        **bands,
        "model": result.problem.stored.digest,
        "input_norm": claim.norm,
        "output_norm": claim.norm,
        "region": region,
        "output": claim.output.text,
        "upper": {
            "status": "computed" if upper.value is not None else upper.status,
            "value": _number(upper.value),
            "failure": _number(upper.failure),
            "node": upper.node,
            "reason": upper.reason if upper.value is None else None,
        },
        "lower": {"value": _number(result.lower)},
    }


def _proof(result: Result, arrays: _Arrays) -> Json:
    if result.unbounded is not None:
        names = ("x", "direction") if result.unbounded.method == "polynomial" else ("x", "y")
        points = {name: arrays.put(p) for name, p in zip(names, result.unbounded.points, strict=True)}
        calm = {} if result.unbounded.calm is None else _derivation(*result.unbounded.calm, arrays)
        return {**calm, "method": result.unbounded.method, **points}
    if result.candidate is None or result.candidate.proof is None:
        return {"method": "none"}
    return _derivation(result.problem, result.candidate.proof, arrays)


def _derivation(problem: Problem, proof: Proof, arrays: _Arrays | _Packed) -> Json:
    if proof.cover is not None:
        packed = _Packed()
        cuts = [None if cut is None else [cut[0], _number(cut[1])] for cut in proof.cover.cuts]
        leaves = [_derivation(part, own, packed) for part, own in proof.cover.leaves]
        packed.into(_whole(arrays))
        return {"method": proof.method, "cover": cuts, "leaves": leaves}
    slopes, intervals = {}, {}
    for index, (low, high) in problem.slopes.items():
        slopes[str(index)] = {"lower": arrays.put(low.numpy()), "upper": arrays.put(high.numpy())}
        if problem.intervals is not None:
            operand = problem.graph.nodes[index].inputs[0]
            box = problem.intervals[operand]
            intervals[str(operand)] = {"lower": arrays.put(box.lower.numpy()), "upper": arrays.put(box.upper.numpy())}
    steps = []
    for step in proof.steps:
        entry: Json = {"node": step.node, "rule": step.rule}
        if step.evidence is not None:
            evidence = _stored(step.evidence, arrays)
            entry.update({"from": step.start, "norm": _number(step.norm), "evidence": evidence})
        steps.append(entry)
    document: Json = {"method": proof.method, "intervals": intervals, "slopes": slopes, "steps": steps}
    if problem.narrowing is not None and problem.narrowing.entries:
        rows, entries = stored(problem.narrowing)
        document |= {"lines": _stored(rows, arrays), "narrowed": _stored(entries, arrays)}
    return document


def _whole(arrays: _Arrays | _Packed) -> _Arrays:
    """A cover has no covers within."""
    if isinstance(arrays, _Packed):
        raise InternalError("a cover within a cover")
    return arrays


def _stored(value: object, arrays: _Arrays | _Packed) -> object:
    """A document with its arrays put into the bundle."""
    if isinstance(value, np.ndarray):
        return arrays.put(value)
    return {key: _stored(v, arrays) for key, v in value.items()} if isinstance(value, dict) else value


def _witness(result: Result, arrays: _Arrays) -> Json:
    if result.witness is None:
        return {}
    return {"x": arrays.put(result.witness.x), "y": arrays.put(result.witness.y)}


def _agreement(result: Result, arrays: _Arrays) -> Json:
    pairs = [{"input": arrays.put(x), "output": arrays.put(y)} for x, y in result.agreement]
    return {"dtype": result.dtype, "pairs": pairs}
