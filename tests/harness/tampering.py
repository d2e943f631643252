"""Bundles with something changed and all digests right again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def tampered(source: Path, folder: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], None], name: str = "proof.json") -> Path:  # fmt: skip
    """A copy in which a document was changed, with all digests right again."""
    documents = {p.name: json.loads(p.read_text()) for p in source.glob("*.json") if p.name not in ("bundle.json", "verdict.json")}  # fmt: skip
    arrays = {p.stem: np.load(p) for p in (source / "arrays").glob("*.npy")}
    change(documents[name], arrays)
    target = folder / "bundle"
    (target / "arrays").mkdir(parents=True)
    files = {}
    for file, document in documents.items():
        (target / file).write_text(json.dumps(document))
        files[file] = hashlib.sha256((target / file).read_bytes()).hexdigest()
    for digest, array in arrays.items():
        path = target / "arrays" / f"{digest}.npy"
        np.save(path, array)
        files[f"arrays/{digest}.npy"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (target / "bundle.json").write_text(json.dumps({"schema": "lipscope-bundle/1", "files": files}))
    return target


def put(array: np.ndarray, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    head = f"{array.dtype.str[1:]}:{','.join(map(str, array.shape))}:".encode()
    digest = hashlib.sha256(head + array.tobytes()).hexdigest()
    arrays[digest] = array
    return {"array": digest}
