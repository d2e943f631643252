"""Reading a `.pt2` file without executing anything that is in it.

`torch.export.load` unpickles example inputs and some constants, evaluates shape expressions and guards as Python code, and
resolves the names of operations anywhere in torch. So the archive is looked into first: what would be unpickled, compiled or
evaluated is left out or refused, and what is left is written to a copy that torch reads.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from lipscope.claims.errors import ModelError
from lipscope.network.load.torch_traced import quiet

_LIMIT = 1 << 36
"""Bytes that an archive may unfold to."""

_EXECUTED = ("data/aotinductor/", "data/executorch/", "xl_model_weights/", "mtia/")
_DROPPED = ("data/sample_inputs/", "extra/")
_TARGET = re.compile(
    r"torch\.ops\.(aten|higher_order)\.\w+(\.\w+)?|torch\.sym_\w+|_operator\.(\w+)|torch\._C\._set_grad_enabled"
)
_OPERATORS = {
    "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pos", "pow", "getitem", "eq", "ne", "lt", "le", "gt", "ge",
    "and_", "or_", "not_", "abs",
}  # fmt: skip
_SYMPY = {
    "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Eq", "Ne", "Lt", "Le", "Gt", "Ge",
    "And", "Or", "Not", "oo", "int_oo", "FloorDiv", "ModularIndexing", "CleanDiv", "CeilDiv", "PythonMod", "Equality",
    "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "true", "false", "True", "False", "Abs",
    "CeilToInt", "FloorToInt", "IntTrueDiv", "FloatTrueDiv", "ToFloat", "TruncToInt", "RoundToInt", "NegativeInfinity", "Infinity",
}  # fmt: skip
_CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_EXPRESSION = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.operator,
               ast.unaryop, ast.Compare, ast.cmpop, ast.Tuple)  # fmt: skip


def load_program(path: Path) -> ExportedProgram:
    """The exported program in a file.

    Raises:
        ModelError: there is no such file, it is no `.pt2` archive or cut off, or it holds parts that torch would unpickle,
            compile or evaluate and that cannot be left out.
    """
    if not path.is_file():
        raise ModelError(f"expected a .pt2 file at {path}, found none; check the path")
    if not zipfile.is_zipfile(path):
        raise ModelError(
            f"expected a .pt2 archive (a zip file) at {path}, got something else; write it with torch.export.save"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            copy = _harmless(archive, path)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}; is the file cut off?") from error
    try:
        with quiet():
            return torch.export.load(copy)
    except Exception as error:
        raise ModelError(
            f"torch {torch.__version__} cannot read {path}: {type(error).__name__}: {error}; export the model again with "
            "this version"
        ) from error


def _harmless(archive: zipfile.ZipFile, path: Path) -> io.BytesIO:
    """A copy of the archive in which nothing is left that would run."""
    entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > _LIMIT:
        raise ModelError(f"expected less than {_LIMIT} bytes in {path}, got more")
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise ModelError(f"expected each name once in {path}, got duplicates; export the model again")
    root = {name.split("/", 1)[0] for name in names}
    if len(root) != 1 or not any(_inside(name).startswith("models/") for name in names):
        raise ModelError(
            f"expected an archive of torch.export.save in {path}, got another one or one of torch before 2.8; export the "
            "model again"
        )
    programs = [name for name in names if _inside(name).startswith("models/")]
    if len(programs) != 1:
        raise ModelError(f"expected one program in {path}, got {len(programs)}; save them in files of their own")
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as target:
        for entry in entries:
            content = _checked(_inside(entry.filename), archive.read(entry), path)
            _write_aligned(target, entry.filename, content)
    copy.seek(0)
    return copy


def _write_aligned(target: zipfile.ZipFile, name: str, content: bytes) -> None:
    """One stored record; tensors begin at multiples of 64 bytes, which the reader of torch may rely on."""
    entry = zipfile.ZipInfo(name)
    assert target.fp is not None
    used = target.fp.tell() + 30 + len(name.encode())
    gap = (-used) % 64
    gap += 64 if 0 < gap < 4 else 0
    if gap:
        entry.extra = b"FB" + (gap - 4).to_bytes(2, "little") + b"Z" * (gap - 4)
    target.writestr(entry, content)


def _inside(name: str) -> str:
    return name.split("/", 1)[1] if "/" in name else name


def _checked(name: str, content: bytes, path: Path) -> bytes:
    """The content of one record as it may be read."""
    if name.startswith(_EXECUTED):
        raise ModelError(
            f"expected a program in {path}, got compiled code ({name}), which is not run; save the exported program"
        )
    if name.startswith(_DROPPED):
        return b"" if name.startswith("data/sample_inputs/") else content
    if name.startswith("models/"):
        return _program(content, path)
    if name.startswith(("data/weights/", "data/constants/")):
        if name.endswith(".json"):
            _no_pickles(json.loads(content), path)
        elif name.endswith(".pt"):
            _plain_tensors(name, content, path)
        elif not re.fullmatch(r"data/(weights/weight_|constants/tensor_)\d+", name):
            raise ModelError(
                f"expected weights and tensors in {path}, got {name}, which may run code when it is read; remove it"
            )
    return content


def _no_pickles(config: Any, path: Path) -> None:
    """Raise if a tensor is stored as a pickle, or is no tensor."""
    for name, entry in config.get("config", {}).items():
        if entry.get("use_pickle") or not str(entry.get("path_name", "")).startswith(("weight_", "tensor_")):
            raise ModelError(
                f"expected plain numbers for {name!r} in {path}, got a pickle, which is not loaded because that would run "
                "code; export a model whose weights and constants are plain tensors"
            )
        _safe_text(name, path)


def _plain_tensors(name: str, content: bytes, path: Path) -> None:
    """An older archive's pickle of tensors: read as tensors only, else refused."""
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(
            f"expected tensors in {name} of {path}, got other Python objects, which are not loaded because that would run code; "
            "export the model again"
        ) from error


# ------------------------------------------------------------------------------------------------- the program


def _program(content: bytes, path: Path) -> bytes:
    """The program without guards and traces of its source, its names and expressions checked."""
    document = json.loads(content)
    if not isinstance(document, dict) or "graph_module" not in document:
        raise ModelError(f"expected a program of torch.export in {path}, got something else; export the model again")
    document["guards_code"] = []
    for key, value in _entries(document):
        if key == "metadata" and isinstance(value, dict):
            for name in [n for n in value if n != "nn_module_stack"]:
                del value[name]
    for key, value in _entries(document):
        if key == "target" and isinstance(value, str):
            _safe_target(value, path)
        elif key == "expr_str" and isinstance(value, str):
            _safe_expression(value, path)
        elif key in ("in_spec", "out_spec") and isinstance(value, str):
            _safe_structure(value, path)
        elif isinstance(value, str):
            _safe_text(value, path)
        if isinstance(value, dict):
            for name in value:
                _safe_text(name, path)
    return json.dumps(document).encode()


def _entries(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a document with the name it stands under; deletions during the walk are seen."""
    yield key, tree
    if isinstance(tree, dict):
        for name, value in list(tree.items()):
            yield from _entries(value, str(name))
    elif isinstance(tree, list):
        for value in tree:
            yield from _entries(value, key)


def _safe_target(target: str, path: Path) -> None:
    """Operations of ATen and arithmetic of shapes; other names could be any function of torch. Weights' paths are names."""
    match = _TARGET.fullmatch(target)
    if match is not None and (match.group(3) is None or match.group(3) in _OPERATORS):
        return
    if target.startswith(("torch.", "_operator", "math", "#")):
        raise ModelError(
            f"expected operations of torch.ops.aten in {path}, got {target!r}, which is not called; rewrite that layer"
        )
    _safe_text(target, path)


def _safe_text(text: str, path: Path) -> None:
    """Names may end up in code that torch generates: quotes, backslashes and line ends are refused."""
    if re.search(r"[\"\\\n\r`]", text):
        raise ModelError(f"expected plain names in {path}, got {text[:80]!r}; export the model again")


def _safe_structure(text: str, path: Path) -> None:
    """How inputs and outputs are nested: plain containers only, as others are looked up by the name of their module."""
    for key, value in _entries(json.loads(text) if text else None):
        if key == "type" and value is not None and value not in _CONTAINERS:
            raise ModelError(
                f"expected tuples, lists and dicts around the tensors of {path}, got {value!r}; return plain ones"
            )


def _safe_expression(text: str, path: Path) -> None:
    """Shape expressions are evaluated by sympy: only calls of its arithmetic and names of symbols are let through."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ModelError(f"expected arithmetic of shapes in {path}, got {text[:80]!r}") from error
    for node in ast.walk(tree):
        known = isinstance(node, _EXPRESSION)
        if isinstance(node, ast.Call):
            known = isinstance(node.func, ast.Name) and node.func.id in _SYMPY
        if isinstance(node, ast.Name):
            known = node.id in _SYMPY or re.fullmatch(r"[a-z]{1,3}\d+", node.id) is not None
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            known = re.fullmatch(r"[A-Za-z_]\w{0,63}", node.value) is not None
        if not known:
            raise ModelError(
                f"expected arithmetic of shapes in {path}, got {text[:80]!r}, which is not evaluated; export the model again"
            )
