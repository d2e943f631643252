"""Reading an ONNX file: plain or gzipped, with external data, checked before anything is built from it."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import inliner, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from lipscope.claims.errors import ModelError

OPSETS = range(7, 25)
"""The versions of the standard operators whose meaning is implemented."""

_HALF = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}


def read_model(path: Path) -> onnx.ModelProto:
    """The model in a file, its local functions inlined, its external data loaded, half precision widened to float32.

    Widening is exact for the weights; what the model would round to half precision on the way is computed in float32.

    Raises:
        ModelError: there is no such file, it is no ONNX model, it is cut off, its external data is missing, too short
            or outside its folder, it holds sparse tensors, or its opset is not one of `OPSETS`.
    """
    model = _parse(path)
    _check_opset(model, path)
    for tensor in list(_tensors(model)):
        _load_external(tensor, path)
    if model.functions:
        model = inliner.inline_local_functions(model)
    if any(graph.sparse_initializer for graph in _graphs(model.graph)):
        raise ModelError(f"expected dense weights in {path}, got sparse initializers; export the model with dense ones")
    _widen(model)
    return model


def standard_opset(model: onnx.ModelProto) -> int:
    """The version of the standard operators that the model declares (0: none)."""
    return max((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _parse(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise ModelError(f"expected an .onnx file, got the folder {path}; name the file inside it")
    if not path.exists():
        raise ModelError(f"expected an .onnx file at {path}, found nothing; check the path")
    try:
        content = path.read_bytes()
        if path.suffix == ".gz" or content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ModelError(f"cannot read {path}: {error}; is the file cut off or not readable?") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(
            f"expected an ONNX model in {path}, got {len(content)} bytes that do not parse as one; the file is cut off "
            "or in another format"
        ) from error
    if not model.graph.output or model.ir_version < 1:
        raise ModelError(
            f"expected an ONNX model in {path}, got {len(content)} bytes without a graph and outputs; is it another "
            "format, or an empty file?"
        )
    _check_names(model, path)
    return model


def _check_names(model: onnx.ModelProto, path: Path) -> None:
    """Names that are not UTF-8 come out of the parser as bytes; only damaged files have them."""
    names = [tensor.name for tensor in _tensors(model)]
    for node in _nodes(model):
        names += [node.op_type, node.domain, node.name, *node.input, *node.output, *(a.name for a in node.attribute)]
    names += [value.name for value in (*model.graph.input, *model.graph.output)]
    damaged = [name for name in names if not isinstance(name, str)]
    if damaged:
        raise ModelError(
            f"expected names in UTF-8 in {path}, got {damaged[0]!r}; the file is damaged, export or copy it again"
        )


def _check_opset(model: onnx.ModelProto, path: Path) -> None:
    opset = standard_opset(model)
    if opset not in OPSETS:
        raise ModelError(
            f"expected ONNX opset {OPSETS.start} to {OPSETS.stop - 1} in {path}, got {opset or 'none'}; export the model "
            "with opset_version=17, or convert it with onnx.version_converter"
        )


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and the graphs inside its nodes' attributes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: weights, and tensors in attributes, subgraphs and functions."""
    for graph in _graphs(model.graph):
        yield from graph.initializer
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _load_external(tensor: onnx.TensorProto, path: Path) -> None:
    if not uses_external_data(tensor):
        return
    folder = path.parent.resolve()
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file = (folder / location).resolve()
    if not location or Path(location).is_absolute() or not file.is_relative_to(folder):
        raise ModelError(
            f"expected the external data of {tensor.name!r} inside the folder of {path}, got the location {location!r}; "
            "it is not read"
        )
    if not file.is_file():
        raise ModelError(
            f"expected the external data of {tensor.name!r} at {file}, found no file; copy it next to {path}"
        )
    try:
        load_external_data_for_tensor(tensor, str(folder))
        numpy_helper.to_array(tensor)
    except (ValueError, OSError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"the external data of {tensor.name!r} in {file} does not hold {list(tensor.dims)} numbers: {error}; is the "
            "file cut off?"
        ) from error
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


def _widen(model: onnx.ModelProto) -> None:
    """Replace half precision by float32 in weights, casts and declared types."""
    for tensor in _tensors(model):
        if tensor.data_type in _HALF:
            wide = numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name)
            tensor.CopyFrom(wide)
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i in _HALF:
                attribute.i = onnx.TensorProto.FLOAT
    for graph in _graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in _HALF:
                value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
