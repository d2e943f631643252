"""The one way in: a user's model of any kind as a graph that was shown to compute what the model computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram

from lipscope.claims.errors import ModelError, UsageError
from lipscope.network import nodes as n
from lipscope.network.graph import Graph, GraphBuilder, finite_weights
from lipscope.network.load.agreement import SAMPLES, Pair, check_agreement
from lipscope.network.load.factory import build, is_factory
from lipscope.network.load.model import SourceModel
from lipscope.network.load.torch_export import from_exported, from_module, list_operations_torch
from lipscope.network.load.torch_module import example_shapes
from lipscope.network.load.weights import is_torchscript, load_weights
from lipscope.network.nodes import Array, Shape

if TYPE_CHECKING:
    from lipscope.network.load.operation import Operation

Source = nn.Module | ExportedProgram | str | Path
InputShape = Sequence[int] | Sequence[Sequence[int]]
Numbers = float | Sequence[float]
Reals = NDArray[np.float64]

SOFTPLUS_THRESHOLD = 20.0
"""PyTorch's default for `beta x`; a smaller one is refused, a larger one has a smaller jump."""

_WEIGHTS_ONLY = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".safetensors")


@dataclass(frozen=True)
class LoadedModel:
    """A user's model, ready to be analysed.

    Attributes:
        graph: what it computes, in raw input units.
        agreement: inputs and the source model's own outputs there, float64 vectors.
        dtype: precision of the source's evaluation, `float32` or `float64`.
        warnings: what the user should know, in words.
    """

    graph: Graph
    agreement: tuple[Pair, ...]
    dtype: str
    warnings: tuple[str, ...] = ()


def load(
    source: Source,
    input_shape: InputShape | None = None,
    weights: str | Path | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
) -> LoadedModel:
    """A model as a graph, shown to compute what the source model computes.

    Args:
        source: a module in eval mode, an exported program, the path of an `.onnx`, `.onnx.gz` or `.pt2` file, or
            `package.module:factory`.
        input_shape: shape of one example without its batch axis; needed for modules and factories.
        weights: a `.safetensors`, `.pt` or `.pth` file of weights for a factory or a module, which is copied first.
        mean: what the user's pipeline subtracts from the raw input before the model, one number or one a channel.
        std: what it divides by then. With these the constant is in units of the raw input.

    Raises:
        UsageError: an argument does not fit.
        ModelError: the file cannot be read, the model is in train mode, is not deterministic, or graph and model disagree.
        UnsupportedError: some operations are not understood; all of them are listed.
    """
    found, name = _source_model(source, input_shape, weights)
    shift, scale = _raw_units(mean, std, found.graph)
    plain = replace(found.graph, source=name)
    finite_weights(plain)
    if shift is not None or scale is not None:
        plain, found = _normalised(plain, shift, scale), _in_raw_units(found, plain, shift, scale)
    graph, pairs = _agreeing(found, plain, 0.0 if shift is None else shift, 1.0 if scale is None else scale)
    notes = () if isinstance(source, str | Path) and _is_onnx(source) else _softplus_jumps(found.graph)
    return LoadedModel(graph, tuple(pairs), found.dtype, (*_warnings(len(pairs)), *notes))


def _agreeing(
    source: SourceModel, plain: Graph, shift: Reals | float, scale: Reals | float
) -> tuple[Graph, list[Pair]]:
    """The graph with patterns recognised if it agrees with the source, else the graph as it was imported if that does.

    A pattern takes a constant that was rounded to single precision for the exact one; in double precision that may show.
    """
    from lipscope.network.load.patterns import recognise

    recognised = recognise(plain)
    try:
        return recognised, check_agreement(source, recognised, shift, scale)
    except ModelError:
        if len(recognised) == len(plain):
            raise
        pairs = check_agreement(source, plain, shift, scale)
        return plain, pairs


def _warnings(compared: int) -> tuple[str, ...]:
    if compared == SAMPLES:
        return ()
    return (
        f"graph and model were compared on {compared} of {SAMPLES} inputs; on the others the model is not finite, or its own "
        "roundings hide what it computes",
    )


def _softplus_jumps(graph: Graph) -> tuple[str, ...]:
    """What PyTorch's softplus does that the graph's, the function of real numbers, does not."""
    found = [node for node in graph.nodes if isinstance(node, n.Elementwise) and node.function == "softplus"]
    if not found:
        return ()
    jump = max(math.log1p(math.exp(-SOFTPLUS_THRESHOLD)) / dict(node.arguments)["beta"] for node in found)
    names = ", ".join(dict.fromkeys(repr(node.name) for node in found))
    return (
        f"softplus in {names} is taken as log(1 + exp(beta x))/beta; PyTorch's replaces it by x above its threshold, where "
        f"it jumps by up to {jump:.3g}: the bounds are those of the function without the jump",
    )


def list_operations(
    source: Source, input_shape: InputShape | None = None, weights: str | Path | None = None
) -> list[Operation]:
    """Every operation of a model in its order, with what becomes of it. Unsupported operations do not raise.

    Raises:
        ModelError: the model cannot be read at all.
    """
    opened = _opened(source, weights)
    if isinstance(opened, Path):
        from lipscope.network.load.onnx_import import list_operations as list_onnx

        return list_onnx(opened, _shapes(input_shape))
    return list_operations_torch(opened, input_shape)


# ------------------------------------------------------------------------------------------------------ sources


def _source_model(
    source: Source, input_shape: InputShape | None, weights: str | Path | None
) -> tuple[SourceModel, str]:
    opened = _opened(source, weights)
    if isinstance(opened, Path):
        from lipscope.network.load.onnx_import import load_onnx

        return load_onnx(opened, _shapes(input_shape)), opened.name
    name = source if isinstance(source, str | Path) else type(opened).__name__
    if isinstance(opened, ExportedProgram):
        return from_exported(opened, input_shape), Path(name).name
    if input_shape is None:
        raise UsageError(
            f"expected input_shape, the shape of one example without its batch axis, for {name}; for instance "
            "input_shape=(3, 32, 32), or --input-shape 3,32,32"
        )
    return from_module(opened, input_shape), str(name)


def _opened(source: Source, weights: str | Path | None) -> nn.Module | ExportedProgram | Path:
    """A module or program, or the path of an ONNX file."""
    if isinstance(source, nn.Module):
        return source if weights is None else _weighted(_copied(source), weights)
    if isinstance(source, ExportedProgram):
        _no_weights(weights, "an exported program")
        return source
    if not isinstance(source, str | Path):
        raise UsageError(
            f"expected a module, an exported program, a path or package.module:factory, got {type(source).__name__}"
        )
    path = Path(source)
    if _is_onnx(path):
        _no_weights(weights, "an ONNX file")
        return path
    if path.suffix == ".pt2":
        from lipscope.network.load.pt2_archive import load_program

        _no_weights(weights, "a .pt2 file")
        return load_program(path)
    if isinstance(source, str) and is_factory(source) and not path.exists():
        model = build(source)
        return model if weights is None else _weighted(model, weights)
    raise _unreadable(path)


def _is_onnx(path: str | Path) -> bool:
    return Path(path).name.endswith((".onnx", ".onnx.gz"))


def _unreadable(path: Path) -> ModelError:
    advice = (
        "write a function that builds the model and pass package.module:factory with --weights, or export it with "
        "torch.export.save(torch.export.export(model, (example,)), 'model.pt2')"
    )
    if path.is_file() and is_torchscript(path):
        return ModelError(f"expected an .onnx or .pt2 file, got the TorchScript archive {path}; {advice}")
    if path.suffix in _WEIGHTS_ONLY:
        return ModelError(
            f"expected a model, got {path}, which holds weights or a pickled module; a pickle is not loaded because that "
            f"would run code; {advice}"
        )
    found = "a file of another kind" if path.exists() else "nothing"
    return ModelError(
        f"expected an .onnx, .onnx.gz or .pt2 file or package.module:factory, got {str(path)!r}: found {found}"
    )


def _no_weights(weights: str | Path | None, kind: str) -> None:
    if weights is not None:
        raise UsageError(f"expected no weights beside {kind}, which has its own, got {weights}")


def _copied(module: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(module)


def _weighted(module: nn.Module, weights: str | Path) -> nn.Module:
    load_weights(module, weights)
    return module


def _shapes(input_shape: InputShape | None) -> list[Shape] | None:
    """The shapes that the user gave, one an input."""
    return None if input_shape is None else list(example_shapes(input_shape))


# ------------------------------------------------------------------------------------------------ normalisation


def _raw_units(mean: Numbers | None, std: Numbers | None, graph: Graph) -> tuple[Reals | None, Reals | None]:
    """Shift and scale in the shape of the graph's input, or None."""
    shift = None if mean is None else _per_channel("mean", mean, graph)
    scale = None if std is None else _per_channel("std", std, graph)
    if scale is not None and not (scale > 0).all():
        raise UsageError(f"expected std > 0, got {std}")
    return shift, scale


def _per_channel(name: str, value: Numbers, graph: Graph) -> Reals:
    """One number, or one a channel: the first axis of an example, or the last where only that fits."""
    numbers = np.asarray(value, dtype=np.float64)
    if not np.isfinite(numbers).all() or numbers.ndim > 1:
        raise UsageError(f"expected {name} to be one finite number or a list of them, got {value!r}")
    whole = graph.nodes[0].shape
    if numbers.size == 1:
        return np.full((1,) * len(whole), float(numbers.reshape(())))
    if len(graph.input_shapes) != 1:
        raise UsageError(
            f"expected one number as {name} for a model with {len(graph.input_shapes)} inputs, got {numbers.size}"
        )
    example = graph.input_shapes[0]
    fits = [axis for axis in dict.fromkeys((0, len(example) - 1)) if example and example[axis] == numbers.size]
    if len(fits) != 1:
        what = "both the first and the last axis" if fits else "neither the first nor the last axis"
        raise UsageError(
            f"expected one {name} a channel, got {numbers.size} numbers, which fit {what} of {list(example)}"
        )
    axis = fits[0] + len(whole) - len(example)
    return numbers.reshape([-1 if i == axis else 1 for i in range(len(whole))])


def _normalised(graph: Graph, shift: Reals | None, scale: Reals | None) -> Graph:
    """The graph behind `(x - shift) / scale`."""
    builder = GraphBuilder()
    shape = graph.nodes[0].shape
    last = builder.add(graph.nodes[0])
    if shift is not None:
        last = builder.add(n.AddConstant(inputs=(last,), shape=shape, name="mean", value=-shift))
    if scale is not None:
        last = builder.add(n.DivConstant(inputs=(last,), shape=shape, name="std", value=scale))
    number = {0: last}
    for index, node in enumerate(graph.nodes[1:], start=1):
        number[index] = builder.add(replace(node, inputs=tuple(number[i] for i in node.inputs)))
    return builder.build(number[graph.output], graph.input_shapes, graph.output_shapes, graph.source)


def _in_raw_units(source: SourceModel, graph: Graph, shift: Reals | None, scale: Reals | None) -> SourceModel:
    """The source behind the same normalisation, computed in float64."""
    whole = graph.nodes[0].shape

    def run(arrays: Sequence[Array]) -> list[Array]:
        normal = []
        for array in arrays:
            x = np.asarray(array, dtype=np.float64)
            centred = x if shift is None else x + -_fitting(shift, x, whole)
            normal.append(centred if scale is None else centred / _fitting(scale, x, whole))
        return source.run(normal)

    return replace(source, run=run)


def _fitting(value: Reals, x: Array, whole: Shape) -> Reals:
    """A constant for the graph's input as one for an input of the source, which may have other axes if there are several."""
    return value if value.size > 1 or x.ndim == len(whole) else value.reshape(())
