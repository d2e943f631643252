"""The source's own arithmetic: the reference evaluator of `onnx`, repaired where it contradicts the operators' schemas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from lipscope.claims.errors import ModelError
from lipscope.network.load.onnx_repairs import repairs
from lipscope.network.nodes import Array


def run_node(node: onnx.NodeProto, operands: Sequence[Array | None], opset: int) -> list[Array]:
    """The outputs of one node on constants, by the reference evaluator."""
    names = [f"x{i}" if value is not None else "" for i, value in enumerate(operands)]
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    del alone.input[:], alone.output[:]
    alone.input.extend(names)
    outputs = [name for name in node.output if name]
    alone.output.extend(node.output)
    graph = helper.make_graph(
        [alone],
        "node",
        [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in names if name],
        [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in outputs],
    )
    evaluator = ReferenceEvaluator(graph, opsets={"": opset}, new_ops=repairs(opset))
    feed = {name: np.asarray(value) for name, value in zip(names, operands, strict=True) if value is not None}
    with np.errstate(all="ignore"):
        found = dict(zip(outputs, evaluator.run(None, feed), strict=True))
    return [np.asarray(found[name]) for name in node.output if name]


def runner(
    model: onnx.ModelProto, names: Sequence[str], dtypes: Sequence[np.dtype[Any]], opset: int
) -> Callable[[Sequence[Array]], list[Array]]:
    """The model as a function of float64 arrays, computed in the model's own precision."""
    try:
        evaluator = ReferenceEvaluator(model, new_ops=repairs(opset))
    except Exception as error:
        raise ModelError(
            f"onnx's reference evaluator cannot read this model, so the graph cannot be compared: {error}"
        ) from error

    def run(arrays: Sequence[Array]) -> list[Array]:
        feed = {name: np.asarray(x).astype(dtype) for name, x, dtype in zip(names, arrays, dtypes, strict=True)}
        try:
            with np.errstate(all="ignore"):
                return [np.asarray(y, dtype=np.float64) for y in evaluator.run(None, feed)]
        except MemoryError:
            raise
        except Exception as error:
            raise ModelError(
                f"onnx's reference evaluator cannot run this model, so the graph cannot be compared: {error}"
            ) from error

    return run
