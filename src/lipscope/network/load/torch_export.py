"""An `nn.Module` or an exported program as a graph, by way of `torch.export`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from lipscope.claims.errors import ModelError, UnsupportedError
from lipscope.network.load.lowering import Ref
from lipscope.network.load.model import SourceModel
from lipscope.network.load.operation import Operation
from lipscope.network.load.torch_fx import trace_symbolically
from lipscope.network.load.torch_module import double_copy, example_shapes, is_narrow, plain_module
from lipscope.network.load.torch_ops import as_array
from lipscope.network.load.torch_traced import Traced, main_dtype, quiet
from lipscope.network.load.torch_walk import Walk, overlapping_writes
from lipscope.network.nodes import Array, Shape

InputShape = Sequence[int] | Sequence[Sequence[int]]


def from_module(module: nn.Module, input_shape: InputShape) -> SourceModel:
    """The graph of a module in eval mode; the source's own evaluation is that of a copy in double precision.

    Args:
        module: it is copied, never changed.
        input_shape: shape of one example without its batch axis; one shape an input where there are several.

    Raises:
        ModelError: the module is in train mode, or cannot be traced: its path depends on values of the input.
        UnsupportedError: some operations are not understood; all of them are listed.
    """
    module = plain_module(module)
    shapes = example_shapes(input_shape)
    narrow = is_narrow(module)
    twin, traced = trace(module, shapes)
    walk, outputs = _walked(traced, narrow)
    if walk.refused:
        raise UnsupportedError(walk.refused)
    graph = _graph(walk, outputs, traced, type(module).__name__)
    double = traced.double and not walk.rounded
    return SourceModel(graph, _runner(twin, traced.dtypes), traced.run_shapes, "float64" if double else "float32", True)


def trace(module: nn.Module, shapes: Sequence[Shape]) -> tuple[nn.Module, Traced]:
    """A copy of the module and its program: in double precision if it can, else as it is; by export, else by `fx`.

    Raises:
        ModelError: none of the ways succeeds.
    """
    failures: list[str] = []
    for make in (double_copy, copy.deepcopy):
        try:
            twin = make(module)
        except (RuntimeError, TypeError) as error:
            raise ModelError(
                f"cannot copy {type(module).__name__}: {error}; the model has to support copy.deepcopy"
            ) from error
        batched = [(1, *s) for s in shapes]
        for way in (_tried, _export, trace_symbolically):
            try:
                traced = way(twin, batched)
                if traced is not None:
                    return twin, traced
            except (MemoryError, ModelError):
                raise
            except Exception as error:  # noqa: BLE001 - tracing runs the user's code, which may raise anything
                failures.append(
                    f"{_WAYS.get(way.__name__, way.__name__)}: {type(error).__name__}: {_first_line(error)}"
                )
                if way is _tried:
                    break
    if all(reason.startswith(_WAYS["_tried"]) for reason in failures):
        raise ModelError(
            f"{type(module).__name__} fails on inputs of shape {[[1, *s] for s in shapes]}, a batch of one: "
            f"{failures[-1].partition(': ')[2]}; check the input shape"
        )
    reasons = "\n".join(f"  {reason}" for reason in dict.fromkeys(failures))
    raise ModelError(
        f"expected a model whose path does not depend on the values of its input, got {type(module).__name__}, which could "
        f"not be traced with inputs of shape {[[1, *s] for s in shapes]}:\n{reasons}\nReplace branches on values by "
        "tensor operations, or check the input shape."
    )


_WAYS = {"_tried": "calling it", "_export": "torch.export", "trace_symbolically": "torch.fx"}


def _tried(module: nn.Module, shapes: Sequence[Shape]) -> None:
    """Call the module once: if it fails on its own, no tracer is to blame."""
    with torch.no_grad():
        module(*(torch.zeros(s, dtype=main_dtype(module)) for s in shapes))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]


def _export(module: nn.Module, shapes: Sequence[Shape]) -> Traced:
    examples = tuple(torch.zeros(s, dtype=main_dtype(module)) for s in shapes)
    with quiet():
        program = torch.export.export(module, examples)
        return _traced(program, None)


def from_exported(program: ExportedProgram, input_shape: InputShape | None = None) -> SourceModel:
    """The graph of an exported program; the source's own evaluation is the program, in its own precision.

    Args:
        program: exported in eval mode, with batch 1 or a dynamic batch axis.
        input_shape: shape of one example; needed where the program leaves more than the batch open.

    Raises:
        ModelError: its shapes are open, it has a fixed batch, or inputs that are not real numbers.
        UnsupportedError: some operations are not understood; all of them are listed.
    """
    with quiet():
        traced = _traced(program, input_shape)
    walk, outputs = _walked(traced, _program_narrow(program))
    if walk.refused:
        raise UnsupportedError(walk.refused)
    graph = _graph(walk, outputs, traced, "exported program")
    double = traced.double and not walk.rounded
    return SourceModel(graph, _interpreter(traced), traced.run_shapes, "float64" if double else "float32")


def list_operations_torch(
    source: nn.Module | ExportedProgram, input_shape: InputShape | None = None
) -> list[Operation]:
    """Every operation in its order, with what becomes of it. Unsupported operations do not raise.

    Raises:
        ModelError: the model cannot be traced at all.
    """
    if isinstance(source, ExportedProgram):
        with quiet():
            traced, narrow = _traced(source, input_shape), _program_narrow(source)
    else:
        source = plain_module(source)
        _, traced = trace(source, example_shapes(input_shape))
        narrow = is_narrow(source)
    walk, _ = _walked(traced, narrow, lenient=True)
    return walk.operations


def _program_narrow(program: ExportedProgram) -> bool:
    return not any(t.dtype == torch.float64 for t in program.state_dict.values())


def _traced(program: ExportedProgram, input_shape: InputShape | None) -> Traced:
    if overlapping_writes(program.graph_module.graph):
        program = program.run_decompositions({})
    placeholders = [node for node in program.graph_module.graph.nodes if node.op == "placeholder"]
    constants: list[Tensor | None] = []
    inputs: list[Tensor] = []
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind == InputKind.USER_INPUT:
            value = node.meta.get("val")
            if not isinstance(value, Tensor):
                raise ModelError(
                    f"expected tensors as inputs, got {type(value).__name__} for {node.name!r}; fix it before the export"
                )
            inputs.append(value)
            constants.append(None)
        else:
            constants.append(_constant(program, spec))
    given = None if input_shape is None else example_shapes(input_shape)
    if given is not None and len(given) != len(inputs):
        raise ModelError(f"expected shapes for {len(inputs)} inputs, got {len(given)}")
    resolved = [_resolved(x, None if given is None else given[i]) for i, x in enumerate(inputs)]
    outputs = tuple(spec.kind == OutputKind.USER_OUTPUT for spec in program.graph_signature.output_specs)
    return Traced(
        program.graph_module, tuple(constants), tuple(s for s, _ in resolved), tuple(b for _, b in resolved),
        tuple(x.dtype for x in inputs), outputs, all(x.dtype == torch.float64 for x in inputs),
    )  # fmt: skip


def _constant(program: ExportedProgram, spec: Any) -> Tensor:
    for table in (program.state_dict, program.constants):
        if spec.target in table:
            value = table[spec.target]
            if isinstance(value, Tensor):
                if value.is_complex():
                    raise ModelError(
                        f"expected real weights, got complex numbers in {spec.target!r}; write them as two tensors"
                    )
                return value.detach().clone() if spec.kind != InputKind.PARAMETER else value.detach()
    raise ModelError(f"expected a tensor for {spec.target!r} in the exported program, got none; export it again")


def _resolved(value: Tensor, given: Shape | None) -> tuple[Shape, bool]:
    """The shape of an input with every open length decided, and whether its first axis is the batch."""
    if not value.dtype.is_floating_point:
        raise ModelError(
            f"expected inputs of real numbers, got {value.dtype}; there is no Lipschitz constant of integers"
        )
    dims = [s if isinstance(s, int) else None for s in value.shape]
    if given is not None:
        for shape, batched in (((1, *given), True), (given, False)):
            if len(shape) == len(dims) and all(d in (None, s) for d, s in zip(dims, shape, strict=True)):
                return shape, batched
        raise ModelError(
            f"expected an input shape that fits {['?' if d is None else d for d in dims]}, got {list(given)}"
        )
    if any(d is None for d in dims[1:]):
        raise ModelError(
            f"expected a fixed shape, got {['?' if d is None else d for d in dims]}; give the shape of one example without "
            "its batch as input_shape"
        )
    if dims and dims[0] is not None and dims[0] > 1 and len(dims) > 1:
        raise ModelError(
            f"expected batch 1 or a dynamic batch axis, got the shape {dims}; export the model with a batch of 1 or a "
            f"dynamic batch axis, or, if the first axis is no batch, give input_shape={dims}"
        )
    shape = tuple(1 if d is None else d for d in dims)
    return shape, len(shape) > 1


def _walked(traced: Traced, narrow: bool, lenient: bool = False) -> tuple[Walk, list[Any]]:
    walk = Walk(narrow, lenient)
    refs = iter(walk.lowering.inputs(traced.run_shapes))
    outputs = walk.run(traced.module, [next(refs) if c is None else c for c in traced.constants])
    return walk, _of_user(outputs, traced.outputs)


def _of_user(outputs: Sequence[Any], mine: tuple[bool, ...] | None) -> list[Any]:
    """The user's outputs that are tensors."""
    if mine is not None and len(mine) == len(outputs):
        outputs = [x for x, keep in zip(outputs, mine, strict=True) if keep]
    return [x for x in outputs if isinstance(x, Ref | Tensor)]


def _graph(walk: Walk, outputs: list[Any], traced: Traced, source: str) -> Any:
    if not outputs:
        raise ModelError("expected a model that returns tensors, got none")
    operands = [x if isinstance(x, Ref) else as_array(x, False) for x in outputs]
    examples = [s[1:] if b else s for s, b in zip(traced.run_shapes, traced.batched, strict=True)]
    shapes = [tuple(x.shape) for x in operands]
    return walk.lowering.finish(operands, examples, [s[1:] if len(s) > 1 and s[0] == 1 else s for s in shapes], source)


def _tensors(arrays: Sequence[Array], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    return [torch.from_numpy(np.array(x)).to(dtype) for x, dtype in zip(arrays, dtypes, strict=True)]


def _arrays(outputs: Sequence[Any]) -> list[Array]:
    return [y.detach().to(torch.float64).numpy().copy() for y in outputs if isinstance(y, Tensor)]


def _runner(module: nn.Module, dtypes: Sequence[torch.dtype]) -> Callable[[Sequence[Array]], list[Array]]:
    def run(arrays: Sequence[Array]) -> list[Array]:
        with torch.no_grad():
            return _arrays(pytree.tree_leaves(module(*_tensors(arrays, dtypes))))

    return run


def _interpreter(traced: Traced) -> Callable[[Sequence[Array]], list[Array]]:
    """The program's operations run by torch one after the other, on copies of what it may write to."""

    def run(arrays: Sequence[Array]) -> list[Array]:
        inputs = iter(_tensors(arrays, traced.dtypes))
        given = [next(inputs) if c is None else c.clone() for c in traced.constants]
        with torch.no_grad():
            found = pytree.tree_leaves(fx.Interpreter(traced.module).run(*given))
        return _arrays(_of_user(found, traced.outputs))

    return run
