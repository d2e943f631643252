"""An ONNX model as a graph: a walk over its nodes that folds constants and lowers the rest, listing what it cannot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from lipscope.claims.errors import LipscopeError, ModelError, ResourceError, UnsupportedError, UnsupportedOperation
from lipscope.network import nodes as n
from lipscope.network.load.lowering import Lowering, Operand, Ref
from lipscope.network.load.model import SourceModel
from lipscope.network.load.onnx_file import read_model, standard_opset
from lipscope.network.load.onnx_inputs import ModelInput, model_inputs
from lipscope.network.load.onnx_ops import HANDLERS, WITHOUT_HANDLER, Call, Refusal
from lipscope.network.load.onnx_reference import run_node, runner
from lipscope.network.load.operation import Operation
from lipscope.network.nodes import Array, Shape

_WHOLE_RESULT = {"ArgMax", "ArgMin", "Shape", "Size", "NonZero"}
_TRUTH_RESULT = {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or"}
_MALFORMED = (ValueError, TypeError, IndexError, KeyError, AttributeError, ZeroDivisionError, OverflowError)


def load_onnx(path: Path, input_shapes: Sequence[Shape] | None = None) -> SourceModel:
    """The graph of an ONNX model, and the model's own evaluation by the reference evaluator.

    Args:
        path: an `.onnx` or `.onnx.gz` file.
        input_shapes: shape of one example of each input without its batch axis; needed where the model leaves it open.

    Raises:
        ModelError: the file cannot be read, or its shapes are open, or it has a fixed batch.
        UnsupportedError: it has operations that are not understood; all of them are listed.
    """
    path = Path(path)
    model = read_model(path)
    opset = standard_opset(model)
    inputs = model_inputs(model.graph, input_shapes)
    walk = _Walk(model, opset, inputs)
    walk.run()
    if walk.refused:
        raise UnsupportedError(walk.refused)
    outputs = [walk.value(value.name) for value in model.graph.output]
    shapes = [np.shape(x) if not isinstance(x, Ref) else x.shape for x in outputs]
    graph = walk.lowering.finish(
        outputs,
        [x.example_shape for x in inputs],
        [_without_batch(s) for s in shapes],
        path.name,
    )
    run = runner(model, [x.name for x in inputs], [x.dtype for x in inputs], opset)
    double = any(x.dtype == np.float64 for x in inputs)
    return SourceModel(graph, run, tuple(x.shape for x in inputs), "float64" if double else "float32")


def list_operations(path: Path, input_shapes: Sequence[Shape] | None = None) -> list[Operation]:
    """Every node of an ONNX model in its order, with what becomes of it. Unsupported operations do not raise.

    Raises:
        ModelError: the file cannot be read, or its shapes are open.
    """
    model = read_model(Path(path))
    walk = _Walk(model, standard_opset(model), model_inputs(model.graph, input_shapes), lenient=True)
    walk.run()
    return walk.operations


def _without_batch(shape: Shape) -> Shape:
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


def _layer(node: onnx.NodeProto) -> str:
    return node.name or next((name for name in node.output if name), "")


class _Walk:
    """One pass over a model's nodes in order.

    Every name gets a value: a tensor of the graph, a constant array, or None if not even its shape is known (then
    something before it was refused). The result of a refused node is replaced by a tensor of the shape that ONNX's
    shape inference gives, so that the nodes behind it are examined as well.
    """

    def __init__(self, model: onnx.ModelProto, opset: int, inputs: Sequence[ModelInput], lenient: bool = False) -> None:
        self.model, self.opset, self.inputs, self.lenient = model, opset, inputs, lenient
        self.lowering = Lowering()
        self.values: dict[str, Operand | None] = {}
        self.whole: set[str] = set()
        self.doubtful: set[str] = set()
        self.refused: list[UnsupportedOperation] = []
        self.operations: list[Operation] = []
        self.guesses: dict[str, Shape] | None = None
        self.read = _names_read(model.graph) | {x.name for x in model.graph.output}

    def value(self, name: str) -> Operand:
        """The value of an output.

        Raises:
            ModelError: no node produces it.
        """
        found = self.values.get(name)
        if found is None:
            raise ModelError(f"expected a tensor {name!r} among the nodes' outputs, got none; the file is malformed")
        return found

    def run(self) -> None:
        """Examine all nodes (`lenient`), or those that an output of the model depends on."""
        graph = self.model.graph
        self._initializers(graph)
        refs = self.lowering.inputs([x.shape for x in self.inputs])
        for source, ref in zip(self.inputs, refs, strict=True):
            self.values[source.name] = ref
            if source.whole and source.name in self.read:
                self.whole.add(source.name)
                self.doubtful.add(source.name)
                self._note("Input", source.name, source.refusal)
                self.operations.append(Operation("Input", source.name, source.shape, "unsupported", source.refusal))
        self._nodes(graph.node if self.lenient else _needed(graph))

    def _initializers(self, graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            try:
                self.values[tensor.name] = numpy_helper.to_array(tensor)
            except (ValueError, TypeError, KeyError) as error:
                raise ModelError(
                    f"expected {list(tensor.dims)} numbers in {tensor.name!r}, got data that do not fit: {error}; "
                    "the file is cut off or malformed"
                ) from error

    def _nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        for node in nodes:
            self.lowering.layer = _layer(node)
            before = len(self.lowering.nodes)
            place = len(self.operations)
            status, remark = self._examine(node)
            if status == "supported" and any(isinstance(x, n.Discontinuous) for x in self.lowering.nodes[before:]):
                status = "discontinuous"
            if node.op_type == "Cast" and status == "supported":
                remark = "roundings of the narrower type are left out"
            first = next((name for name in node.output if name), "")
            value = self.values.get(first)
            shape = None if value is None else tuple(np.shape(value) if not isinstance(value, Ref) else value.shape)
            self.operations.insert(place, Operation(node.op_type, _layer(node), shape, status, remark))

    def _examine(self, node: onnx.NodeProto) -> tuple[str, str]:
        """Give the node's outputs their values; its status and a remark."""
        try:
            missing = [x for x in node.input if x and x not in self.values]
            if missing:
                raise ModelError(
                    f"node {_layer(node)!r} ({node.op_type}) reads {missing[0]!r}, which nothing before it produces; "
                    "the file is malformed"
                )
            return self._lowered(node), ""
        except Refusal as refusal:
            return self._refuse(node, str(refusal))
        except LipscopeError as error:
            if self._after_refusal(node):
                return self._unexamined(node)
            if not self.lenient:
                raise
            return self._refuse(node, str(error))
        except MemoryError as error:
            raise ResourceError(f"not enough memory for the constants of {_layer(node)!r} ({node.op_type})") from error
        except _MALFORMED as error:
            if self._after_refusal(node):
                return self._unexamined(node)
            if not self.lenient:
                raise ModelError(
                    f"cannot make sense of {node.op_type} at layer {_layer(node)!r}: {error}; check the model with "
                    "onnx.checker.check_model"
                ) from error
            return self._refuse(node, str(error))

    def _after_refusal(self, node: onnx.NodeProto) -> bool:
        return any(name in self.doubtful for name in node.input)

    def _refuse(self, node: onnx.NodeProto, reason: str) -> tuple[str, str]:
        """Note a node that cannot be imported, and guess its outputs."""
        self._note(node.op_type, _layer(node), reason)
        self._stand_in(node)
        return "unsupported", reason

    def _unexamined(self, node: onnx.NodeProto) -> tuple[str, str]:
        """A node that does not fit a guessed shape: nothing is said against it."""
        self._stand_in(node)
        return "supported", "not examined in full: it follows an operation that is not understood"

    def _stand_in(self, node: onnx.NodeProto) -> None:
        for name in filter(None, node.output):
            self.doubtful.add(name)
            self.values[name] = self._guess(name)

    def _note(self, operator: str, layer: str, reason: str) -> None:
        self.refused.append(UnsupportedOperation(operator, layer, reason))

    def _guess(self, name: str) -> Ref | None:
        """A stand-in of the shape that ONNX infers, or None."""
        if self.guesses is None:
            self.guesses = _inferred_shapes(self.model, self.inputs)
        shape = self.guesses.get(name)
        if shape is None:
            return None
        return self.lowering.put(n.Constant, [], shape, value=np.broadcast_to(np.float32(0), shape))

    def _lowered(self, node: onnx.NodeProto) -> str:
        if node.domain not in ("", "ai.onnx"):
            raise Refusal(
                f"operators of the domain {node.domain!r} are not understood; export with standard operators, without "
                "the optimisations of a runtime"
            )
        if node.op_type == "If":
            return self._branch(node)
        operands = tuple(self.values[name] if name else None for name in node.input)
        handler = HANDLERS.get(node.op_type)
        unknown = any(name and value is None for name, value in zip(node.input, operands, strict=True))
        random = WITHOUT_HANDLER.get(node.op_type, "").startswith("its value is random")
        if not unknown and not random and not any(isinstance(x, Ref) for x in operands) and not _subgraphs(node):
            return self._folded(node, operands)
        if handler is None:
            raise Refusal(WITHOUT_HANDLER.get(node.op_type, "there is no rule for this operator"))
        if unknown:
            self._stand_in(node)
            return "supported"
        wanted = frozenset(i for i, name in enumerate(node.output) if name in self.read)
        whole = tuple(self._is_whole(name) for name in node.input)
        result = handler(Call(self.lowering, node, self.opset, operands, whole, wanted))
        self._assign(node, [result] if isinstance(result, (Ref, np.ndarray)) else list(result), wanted, whole)
        constant = all(not isinstance(self.values.get(name), Ref) for name in node.output if name)
        return "folded" if constant else "supported"

    def _assign(
        self, node: onnx.NodeProto, results: Sequence[Operand | None], wanted: frozenset[int], whole: Sequence[bool]
    ) -> None:
        absent = [i for i in sorted(wanted) if i >= len(results) or results[i] is None]
        if absent:
            raise Refusal(f"its output {node.output[absent[0]]!r} is used, and only its first output is understood")
        given = [w for w, name in zip(whole, node.input, strict=True) if name]
        to = next((a.i for a in node.attribute if a.name == "to"), None) if node.op_type == "Cast" else None
        keeps = node.op_type in _WHOLE_RESULT | _TRUTH_RESULT or (bool(given) and all(given))
        if to is not None:
            keeps = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(to)).kind in "iub"
        for name, value in zip(node.output, results, strict=False):
            if name:
                self.values[name] = value
                if keeps:
                    self.whole.add(name)
                if self._after_refusal(node):
                    self.doubtful.add(name)

    def _is_whole(self, name: str) -> bool:
        value = self.values.get(name)
        return value.dtype.kind in "iub" if isinstance(value, np.ndarray) else name in self.whole

    def _folded(self, node: onnx.NodeProto, operands: Sequence[Operand | None]) -> str:
        """A node that reads constants alone is evaluated once."""
        arrays: list[Array | None] = [x for x in operands if not isinstance(x, Ref)]
        if any(a.HasField("sparse_tensor") for a in node.attribute):
            raise Refusal("sparse constants are not understood; export dense ones")
        try:
            found = run_node(node, arrays, self.opset)
        except MemoryError:
            raise
        except Exception as error:
            raise Refusal(f"this constant cannot be computed: {error}") from error
        self.values.update(zip(filter(None, node.output), found, strict=True))
        return "folded"

    def _branch(self, node: onnx.NodeProto) -> str:
        """An `If` whose condition is constant is replaced by the branch that is taken."""
        condition = self.values[node.input[0]]
        if condition is None or isinstance(condition, Ref):
            raise Refusal("its condition depends on the input; export the branch that is wanted")
        wanted = "then_branch" if bool(np.reshape(condition, ())) else "else_branch"
        branch = next(a.g for a in node.attribute if a.name == wanted)
        self.read |= _names_read(branch) | {x.name for x in branch.output}
        self._initializers(branch)
        self._nodes(branch.node)
        for name, inner in zip(node.output, branch.output, strict=True):
            self.values[name] = self.values.get(inner.name)
            if inner.name in self.doubtful:
                self.doubtful.add(name)
            if inner.name in self.whole:
                self.whole.add(name)
        return "supported"


def _subgraphs(node: onnx.NodeProto) -> bool:
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def _names_read(graph: onnx.GraphProto) -> set[str]:
    """The names that a graph's nodes read, those inside subgraphs included."""
    found: set[str] = set()
    for node in graph.node:
        found.update(filter(None, node.input))
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= _names_read(attribute.g) | {x.name for x in attribute.g.output}
    return found


def _needed(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that an output depends on, in order."""
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted & set(filter(None, node.output)):
            kept.append(node)
            wanted.update(filter(None, node.input))
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    wanted |= _names_read(attribute.g) | {x.name for x in attribute.g.output}
    return kept[::-1]


def _inferred_shapes(model: onnx.ModelProto, inputs: Sequence[ModelInput]) -> dict[str, Shape]:
    """The shapes that ONNX infers from the inputs' shapes, open lengths of a first axis taken as 1."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {x.name: x for x in inputs}
    for value in copy.graph.input:
        if value.name in known:
            del value.type.tensor_type.shape.dim[:]
            for length in known[value.name].shape:
                value.type.tensor_type.shape.dim.add().dim_value = length
    try:
        copy = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return {}
    found = {}
    for value in (*copy.graph.value_info, *copy.graph.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
            if dims and dims[0] <= 0:
                dims[0] = 1
            if all(d > 0 for d in dims):
                found[value.name] = tuple(dims)
    return found
