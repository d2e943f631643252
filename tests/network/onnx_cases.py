"""Tiny ONNX models, and the comparison of what the importer makes of them with two independent evaluators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from lipscope.network.graph import Graph
from lipscope.network.load.model import SourceModel
from lipscope.network.load.onnx_import import load_onnx
from lipscope.rules import evaluate

onnxruntime.set_default_logger_severity(4)


def value_of(graph: Graph, x: np.ndarray) -> np.ndarray:
    """The graph's output at one flattened input."""
    values: list[torch.Tensor] = []
    for node in graph:
        if not node.inputs and node.kind == "Input":
            values.append(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64).reshape(1, *node.shape)))
        else:
            values.append(evaluate(node, *(values[i] for i in node.inputs)))
            if node.kind != "Constant":
                assert tuple(values[-1].shape[1:]) == node.shape, (node.kind, node.name, values[-1].shape, node.shape)
    return values[graph.output].expand(1, *graph.nodes[graph.output].shape).numpy().reshape(-1)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int | str | None]],
    constants: dict[str, np.ndarray] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    ir: int = 8,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of a few nodes; output shapes are left open."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def read(model: onnx.ModelProto, *input_shapes: Sequence[int] | None) -> SourceModel:
    """The model through a file and the importer."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return load_onnx(path, [tuple(s) for s in input_shapes if s is not None] or None)


def largest_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the largest output."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(
        np.max(np.abs(found - expected), initial=0.0) / max(float(np.max(np.abs(expected), initial=0.0)), 1e-6)
    )


def agrees(
    model: onnx.ModelProto,
    low: float = -2.0,
    high: float = 2.0,
    runtime: bool = True,
    reference: bool = True,
    input_shape: Sequence[int] | None = None,
    tolerance: float = 2e-5,
) -> SourceModel:
    """Assert that the graph computes what the model computes; hand the source back for further assertions."""
    source = read(model, input_shape)
    rng = np.random.default_rng(0)
    session = None
    if runtime:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    for _ in range(2):
        arrays = [rng.uniform(low, high, shape).astype(np.float32).astype(np.float64) for shape in source.run_shapes]
        found = value_of(source.graph, np.concatenate([a.reshape(-1) for a in arrays]))
        if reference:
            outputs = source.run(arrays)
            assert len(outputs) == len(source.graph.output_shapes)
            for output, shape in zip(outputs, source.graph.output_shapes, strict=True):
                assert output.shape[output.ndim - len(shape) :] == shape
            assert largest_error(found, np.concatenate([y.reshape(-1) for y in outputs])) <= tolerance
        if session is not None:
            wanted = {"tensor(float)": np.float32, "tensor(double)": np.float64}
            feed = {v.name: a.astype(wanted[v.type]) for v, a in zip(session.get_inputs(), arrays, strict=True)}
            ran = [np.asarray(y, dtype=np.float64).reshape(-1) for y in session.run(None, feed)]
            assert largest_error(found, np.concatenate(ran)) <= tolerance
    return source
