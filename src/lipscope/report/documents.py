"""Reading a bundle's files for the report: documents with located errors, and whether the files are the listed ones."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lipscope.claims.errors import UsageError

DOCUMENTS = ("graph.json", "claim.json", "proof.json", "witness.json", "agreement.json", "result.json")
_LISTED = re.compile(r"(?:[a-z]+\.json|arrays/[0-9a-f]{64}\.npy)")
_REMEDY = "write the bundle again with lipscope bound -o"


@dataclass(frozen=True)
class Field:
    """A value in a JSON document together with where it stands, so that every complaint can say it.

    Attributes:
        value: what `json.loads` gave.
        where: the file and the path inside it.
    """

    value: object
    where: str

    def _wrong(self, expected: str) -> UsageError:
        got = "nothing" if self.value is None else repr(self.value)
        got = got if len(got) <= 60 else got[:57] + "..."
        return UsageError(f"expected {expected} at {self.where}, got {got}; {_REMEDY}")

    def __getitem__(self, key: str) -> Field:
        found = self.get(key)
        if found is None:
            raise Field(None, f"{self.where} {key}")._wrong("a value")
        return found

    def get(self, key: str) -> Field | None:
        """The entry of an object, None where it is missing or null. Raises UsageError if this is no object."""
        if not isinstance(self.value, dict):
            raise self._wrong("an object")
        found = self.value.get(key)
        return None if found is None else Field(found, f"{self.where} {key}")

    def keys(self) -> list[str]:
        """The keys of an object. Raises UsageError if this is none."""
        if not isinstance(self.value, dict):
            raise self._wrong("an object")
        return list(self.value)

    def items(self) -> Iterator[Field]:
        """The entries of a list. Raises UsageError if this is none."""
        if not isinstance(self.value, list):
            raise self._wrong("a list")
        return (Field(value, f"{self.where}[{index}]") for index, value in enumerate(self.value))

    def text(self) -> str:
        """A string. Raises UsageError if it is something else."""
        if not isinstance(self.value, str):
            raise self._wrong("text")
        return self.value

    def flag(self) -> bool:
        """A truth value. Raises UsageError if it is something else."""
        if not isinstance(self.value, bool):
            raise self._wrong("true or false")
        return self.value

    def count(self) -> int:
        """An integer, 0 or more. Raises UsageError if it is something else."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < 0:
            raise self._wrong("an integer, 0 or more")
        return self.value

    def number(self) -> float:
        """A number that is not NaN, plain or as `{"float": "<hex float>"}`. Raises UsageError if it is something else."""
        value = self.value
        if isinstance(value, dict) and set(value) == {"float"} and isinstance(value["float"], str):
            try:
                value = float.fromhex(value["float"])
            except (ValueError, OverflowError):
                raise self._wrong("a hex float") from None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong("a number")
        try:
            number = float(value)
        except OverflowError:
            raise self._wrong("a number in the range of float64") from None
        if math.isnan(number):
            raise self._wrong("a number")
        return number

    def finite(self) -> float:
        """A finite number, 0 or more. Raises UsageError if it is something else."""
        number = self.number()
        if not 0 <= number < math.inf:
            raise self._wrong("a finite number, 0 or more,")
        return number

    def shape(self) -> tuple[int, ...]:
        """A list of integers. Raises UsageError if it is something else."""
        return tuple(entry.count() for entry in self.items())


@dataclass(frozen=True)
class Bundle:
    """The documents of a bundle, and what is wrong with its files.

    Attributes:
        folder: where it is, as the user named it.
        documents: the JSON documents by file name.
        verdict: the checker's verdict, None where there is none.
        digest: sha256 of `bundle.json`.
        faults: what does not agree with the digests, in words; empty if the files are the listed ones.
    """

    folder: Path
    documents: dict[str, Field]
    verdict: Field | None
    digest: str
    faults: tuple[str, ...]

    def __getitem__(self, name: str) -> Field:
        return self.documents[name]

    def array(self, reference: Field) -> NDArray[np.float64]:
        """The array of numbers that `{"array": "<digest>"}` names. Raises UsageError if it cannot be read."""
        path = self._path(reference)
        try:
            with path.open("rb") as file:
                array = npy.read_array(file, allow_pickle=False)
            return np.asarray(array, dtype=np.float64)
        except (OSError, ValueError, TypeError, EOFError, MemoryError) as error:
            raise UsageError(f"expected an array in {path}, for {reference.where}: {error}; {_REMEDY}") from None

    def parameters(self, reference: Field) -> int | None:
        """How many floating-point numbers an array holds, 0 for integers; None where it cannot be read."""
        try:
            with self._path(reference).open("rb") as file:
                version = npy.read_magic(file)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read(file)
        except (OSError, ValueError, UsageError):
            return None
        return math.prod(shape) if dtype.kind == "f" else 0

    def _path(self, reference: Field) -> Path:
        name = f"arrays/{reference['array'].text()}.npy"
        if not _LISTED.fullmatch(name):
            raise UsageError(f"expected the digest of an array at {reference.where}; {_REMEDY}")
        return self.folder / name


def read_bundle(folder: Path) -> Bundle:
    """The documents of a bundle; every listed file is read to compare its digest.

    Raises:
        UsageError: the folder is not a bundle, or one of its documents is missing or is not JSON.
    """
    if not folder.is_dir():
        raise UsageError(
            f"expected a bundle or a run at {folder}, there is no such folder; lipscope bound MODEL -o BUNDLE makes a bundle, "
            "Observer(run=...) a run"
        )
    if not (folder / "bundle.json").exists():
        raise UsageError(
            f"expected a bundle or a run at {folder}, cannot read its bundle.json, and there is no run.sqlite; "
            "lipscope bound MODEL -o BUNDLE makes a bundle, Observer(run=...) a run"
        )
    index = read_document(folder, "bundle.json")
    schema = index["schema"].text()
    if schema != "lipscope-bundle/1":
        raise UsageError(
            f"expected schema lipscope-bundle/1 in {folder / 'bundle.json'}, got {schema!r}; use a lipscope that knows it"
        )
    documents = {name: read_document(folder, name) for name in DOCUMENTS}
    verdict = read_document(folder, "verdict.json") if (folder / "verdict.json").exists() else None
    faults = [*_file_faults(folder, index["files"]), *_model_faults(documents)]
    return Bundle(folder, documents, verdict, _sha256(folder / "bundle.json"), tuple(faults))


def read_document(folder: Path, name: str) -> Field:
    """A JSON object in a folder. Raises UsageError if it cannot be read or is something else."""
    try:
        content = (folder / name).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"expected a bundle at {folder}, cannot read its {name}: {reason}; {_REMEDY}") from None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"expected JSON in {folder / name}, got something else: {error}; {_REMEDY}") from None
    if not isinstance(document, dict):
        raise UsageError(f"expected an object in {folder / name}, got a {type(document).__name__}; {_REMEDY}")
    return Field(document, str(folder / name))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_faults(folder: Path, files: Field) -> Iterator[str]:
    """Where the files differ from the list in `bundle.json`; names that lead out of the bundle are not opened."""
    listed = set(files.keys())
    for name in sorted(listed):
        if not _LISTED.fullmatch(name):
            yield f"bundle.json lists {name!r}, which is no file of a bundle"
        elif not (folder / name).is_file():
            yield f"{name} is listed, but missing"
        else:
            try:
                same = _sha256(folder / name) == files[name].text()
            except OSError as error:
                yield f"{name} cannot be read: {error.strerror}"
                continue
            if not same:
                yield f"{name} is not the file that was written: its sha256 differs from the one in bundle.json"
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    for name in sorted(present - listed - {"bundle.json", "verdict.json"}):
        yield f"{name} is in the folder, but not listed in bundle.json"


def _model_faults(documents: dict[str, Field]) -> Iterator[str]:
    """Whether the stored network is the one that the claim names."""
    graph, claimed = documents["graph.json"], documents["claim.json"]["model"].text()
    nodes = [{key: value for key, value in _object(node).items() if key != "name"} for node in graph["nodes"].items()]
    plain = {key: value for key, value in _object(graph).items() if key != "source"} | {"nodes": nodes}
    found = "sha256:" + hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    if found != claimed:
        yield f"claim.json is about model {claimed[:19]}…, graph.json is model {found[:19]}…"


def _object(field: Field) -> dict[str, object]:
    return {key: field.value[key] for key in field.keys()}  # type: ignore[index]
