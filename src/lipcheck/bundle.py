"""Reading a bundle: every file once, its digest checked before anything in it is looked at."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcheck.errors import Rejected, Unreadable

SCHEMA = "lipscope-bundle/1"
DOCUMENTS = ("graph.json", "claim.json", "proof.json", "witness.json", "agreement.json", "result.json")
DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
_ARRAY_FILE = re.compile(r"arrays/([0-9a-f]{64})\.npy")
_HEX = re.compile(r"[0-9a-f]{64}")
_HEX_FLOAT = re.compile(r"-?(inf|0x[0-9a-f]{1,40}(\.[0-9a-f]{0,40})?p[+-]?[0-9]{1,6})")

Array = NDArray[Any]


@dataclass(frozen=True)
class Bundle:
    """The files of a bundle, all with the digests that `bundle.json` lists.

    Attributes:
        documents: the parsed JSON files by name.
        arrays: the arrays by digest; nobody writes to them.
    """

    documents: Mapping[str, Any]
    arrays: Mapping[str, Array]

    def array(self, value: object) -> Array:
        """The array that `{"array": "<digest>"}` names, or a part of it, `{"array": "<digest>", "offset": n, "shape": [..]}`.

        Raises:
            Rejected: it is not such a reference, or the array is not in the bundle.
        """
        if isinstance(value, dict) and set(value) == {"array", "offset", "shape"}:
            return self._part(value)
        if not isinstance(value, dict) or set(value) != {"array"} or not isinstance(value["array"], str):
            raise Rejected(f"expected a reference to an array, got {_short(value)}")
        if value["array"] not in self.arrays:
            raise Rejected(f"expected array {_short(value['array'])} in the bundle, it is not there")
        return self.arrays[value["array"]]

    def _part(self, value: dict[str, Any]) -> Array:
        """The entries from `offset` on of a vector, row-major in `shape`."""
        whole, shape = self.array({"array": value["array"]}), value["shape"]
        if whole.ndim != 1 or not isinstance(shape, list) or len(shape) > 32:
            raise Rejected(f"expected a part of a vector, got {_short(value)}")
        sizes = tuple(integer(d, "a part's shape", 0, whole.size) for d in shape)
        start = integer(value["offset"], "a part's offset", 0, whole.size)
        if start + math.prod(sizes) > whole.size:
            raise Rejected("a part goes beyond the end of its vector")
        if math.prod(max(d, 1) for d in sizes) > 2**40:  # empty, and too long for numpy all the same
            raise Rejected(f"expected the shape of an array, got {_short(value)}")
        return whole[start : start + math.prod(sizes)].reshape(sizes)

    def vector(self, value: object, size: int, what: str) -> NDArray[np.float64]:
        """A finite float64 vector of the given size.

        Raises:
            Rejected: it is anything else.
        """
        return self.floats(value, (size,), what)

    def floats(self, value: object, shape: tuple[int, ...], what: str) -> NDArray[np.float64]:
        """A finite float64 array of the given shape.

        Raises:
            Rejected: it is anything else.
        """
        array = self.array(value)
        if array.dtype != np.float64 or array.shape != shape:
            raise Rejected(f"expected {what} as float64 of shape {list(shape)}, got {array.dtype} {list(array.shape)}")
        if not np.isfinite(array).all():
            raise Rejected(f"expected finite numbers in {what}, got NaN or infinite ones")
        return array


def real(value: object, what: str) -> float:
    """The number that `{"float": "<hex float>"}` stands for; it may be infinite.

    Raises:
        Rejected: it is anything else.
    """
    if isinstance(value, dict) and set(value) == {"float"} and isinstance(value["float"], str):
        text = value["float"]
        if _HEX_FLOAT.fullmatch(text):
            try:
                return float.fromhex(text)
            except (ValueError, OverflowError):
                pass
    raise Rejected(f'expected {what} as {{"float": "<hex float>"}}, got {_short(value)}')


def finite_real(value: object, what: str) -> float:
    """As `real`, but finite."""
    number = real(value, what)
    if not math.isfinite(number):
        raise Rejected(f"expected a finite {what}, got {number}")
    return number


def keys(value: object, names: set[str], what: str) -> dict[str, Any]:
    """The JSON object itself, which has exactly these keys.

    Raises:
        Rejected: it is no object, or has other keys.
    """
    if not isinstance(value, dict):
        raise Rejected(f"expected {what} to be an object, got {_short(value)}")
    if set(value) != names:
        raise Rejected(f"expected {what} to have the keys {sorted(names)}, got {_short(sorted(value))}")
    return value


def integer(value: object, what: str, low: int = 0, high: int = 2**53) -> int:
    """A JSON integer in `low..high` (inclusive).

    Raises:
        Rejected: it is anything else; truth values are not integers.
    """
    if type(value) is not int or not low <= value <= high:
        raise Rejected(f"expected {what} as an integer in {low}..{high}, got {_short(value)}")
    return value


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, (dict, list)) else f"{type(value).__name__} of length {len(value)}"
    return text if len(text) <= 120 else text[:117] + "..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def parse_json(data: bytes, name: str) -> Any:
    """The document in `data`: strict JSON, no key twice, no NaN.

    Raises:
        Unreadable: it is not.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"expected JSON in {name}, got {_short(str(error))}") from None


def _listed(root: Path) -> dict[str, str]:
    data = _read(root / "bundle.json")
    document = parse_json(data, "bundle.json")
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise Unreadable(f"expected bundle.json with schema {SCHEMA}, got {_short(document)}")
    files = document.get("files")
    if set(document) != {"schema", "files"} or not isinstance(files, dict):
        raise Unreadable("expected bundle.json to hold schema and files and nothing else")
    for name, digest in files.items():
        if name not in DOCUMENTS and not _ARRAY_FILE.fullmatch(name):
            raise Unreadable(f"bundle.json lists {_short(name)}, which is no file of a bundle")
        if not isinstance(digest, str) or not _HEX.fullmatch(digest):
            raise Unreadable(f"bundle.json has no sha256 for {name}")
    missing = [name for name in ("graph.json", "claim.json") if name not in files]
    if missing:
        raise Unreadable(f"bundle.json does not list {', '.join(missing)}")
    return files


def _read(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise Unreadable(f"expected a regular file {path.name}, it is missing or something else")
    try:
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        raise Unreadable(f"cannot read {path.name}: {error}") from None


def _present(root: Path) -> set[str]:
    found: set[str] = set()
    for folder, folders, names in os.walk(root):
        base = Path(folder).relative_to(root)
        for name in folders:
            if (base / name).as_posix() != "arrays" or (Path(folder) / name).is_symlink():
                raise Rejected(f"expected no folder but arrays, got {_short((base / name).as_posix())}")
        found.update((base / name).as_posix() for name in names)
    return found - {"bundle.json", "verdict.json"}


def array_digest(array: Array) -> str:
    """sha256 (hex) of dtype, shape and the little-endian row-major bytes."""
    head = f"{array.dtype.str[1:]}:{','.join(map(str, array.shape))}:".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def parse_npy(data: bytes, name: str) -> Array:
    """The array in an `.npy` file, without pickle; nothing is allocated that the file does not hold.

    Raises:
        Rejected: it is not one, has another dtype than the schema allows, or its length is not what its shape says.
    """
    try:
        if data[:6] != b"\x93NUMPY" or data[6:8] not in (b"\x01\x00", b"\x02\x00"):
            raise ValueError("no .npy file of version 1 or 2")
        width = 2 if data[6] == 1 else 4
        start = 8 + width
        end = start + int.from_bytes(data[8:start], "little")
        if end > min(len(data), 10_000):
            raise ValueError("a header past the end of the file")
        header = ast.literal_eval(data[start:end].decode("ascii").strip())
        if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
            raise ValueError("a header with other keys")
        descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
        if (
            not isinstance(descr, str)
            or descr[:1] not in "<|"
            or descr[1:] not in DTYPES
            or not isinstance(fortran, bool)
        ):
            raise ValueError(f"dtype {descr!r:.40}")
        if (
            not isinstance(shape, tuple)
            or len(shape) > 32
            or any(type(d) is not int or not 0 <= d < 2**40 for d in shape)
        ):
            raise ValueError(f"shape {shape!r:.80}")
        dtype, body = np.dtype(descr), data[end:]
        if math.prod(shape) * dtype.itemsize != len(body):
            raise ValueError(f"shape {shape} of {descr} in {len(body)} bytes")
        if descr[1:] == "b1" and body.strip(b"\x00\x01"):
            raise ValueError("truth values other than 0 and 1")
        array = np.frombuffer(body, dtype=dtype).reshape(shape, order="F" if fortran else "C")
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise Rejected(f"expected an array in {name}, got {_short(str(error))}") from None
    return array


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read all files and check their digests.

    Raises:
        Unreadable: there is no `bundle.json` of this schema, or a document is not JSON.
        Rejected: a file is missing, extra or different, or an array is not what its name says.
    """
    root = Path(path)
    if not root.is_dir():
        raise Unreadable(f"expected a folder, got {_short(str(path))}")
    files = _listed(root)
    present = _present(root)
    for name in sorted(set(files) ^ present):
        kind = "missing" if name in files else "not listed in bundle.json"
        raise Rejected(f"expected exactly the files of bundle.json, {_short(name)} is {kind}")
    documents: dict[str, Any] = {}
    arrays: dict[str, Array] = {}
    for name, digest in files.items():
        data = _read(root / name)
        if hashlib.sha256(data).hexdigest() != digest:
            raise Rejected(f"{name} is not the file that bundle.json lists: its sha256 differs")
        match = _ARRAY_FILE.fullmatch(name)
        if match is None:
            documents[name] = parse_json(data, name)
            continue
        array = parse_npy(data, name)
        if array_digest(array) != match[1]:
            raise Rejected(f"the content of {name} does not have the digest of its name")
        array.flags.writeable = False
        arrays[match[1]] = array
    return Bundle(documents, arrays)


__all__ = ["Array", "Bundle", "array_digest", "finite_real", "integer", "keys", "read_bundle", "real"]
