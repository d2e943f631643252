"""The inputs that a model really has, and the shape of one example of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from lipscope.claims.errors import ModelError
from lipscope.network.nodes import Shape


@dataclass(frozen=True)
class ModelInput:
    """One input of a model.

    Attributes:
        name: its name in the file.
        shape: the shape with which the model is evaluated, batch axis (of length 1) included.
        example_shape: the same without the batch axis.
        dtype: the type that the model wants.
    """

    name: str
    shape: Shape
    example_shape: Shape
    dtype: np.dtype[Any]

    @property
    def whole(self) -> bool:
        """Whether it holds integers or truth values."""
        return self.dtype.kind not in "f"

    @property
    def refusal(self) -> str:
        """What to say of an input that does not hold real numbers."""
        return (
            f"it holds {self.dtype} numbers, and a Lipschitz constant is about real ones; bound the part of the model "
            "behind the first layer that turns them into real vectors"
        )


def model_inputs(graph: onnx.GraphProto, input_shapes: Sequence[Shape] | None) -> list[ModelInput]:
    """The inputs that are not initializers, with their shapes.

    `input_shapes` gives the shape of one example of every input in order, or of the only one that is open.

    A first axis of open length is the batch; a first axis of length 1 too, where there are more axes. A longer first
    axis is no batch if another input shows that the batch is open or 1 (the state of a recurrent network).

    Raises:
        ModelError: an input has open lengths and no shape is given, or it does not fit, or the batch has a
            fixed length above 1, or an input is no tensor.
    """
    stored = {t.name for t in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    if not inputs:
        raise ModelError("expected a model with an input, got one whose inputs are all initializers")
    dims = {value.name: _dims(value) for value in inputs}
    open_ones = [name for name, d in dims.items() if d is None or None in d[1:]]
    target = open_ones[0] if len(open_ones) == 1 else inputs[0].name if len(inputs) == 1 else None
    given: dict[str, Shape] = {}
    if input_shapes is not None and len(input_shapes) == len(inputs):
        given = dict(zip(dims, input_shapes, strict=True))
    elif input_shapes is not None and len(input_shapes) == 1 and target is not None:
        given = {target: input_shapes[0]}
    elif input_shapes is not None:
        raise ModelError(
            f"expected one shape for each of the {len(inputs)} inputs {list(dims)} in --input-shape, separated by ';', "
            f"got {len(input_shapes)}"
        )
    hint = target is not None
    free = any(d and len(d) > 1 and d[0] in (None, 1) for d in dims.values())
    return [_resolved(v, dims[v.name], given.get(v.name), hint or len(inputs) > 1, free) for v in inputs]


def _dims(value: onnx.ValueInfoProto) -> list[int | None] | None:
    """Lengths as declared, None for an open one; None if not even the rank is declared."""
    if not value.type.HasField("tensor_type"):
        raise ModelError(f"expected tensors as inputs, got a {value.type.WhichOneof('value')} for {value.name!r}")
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim]


def _resolved(
    value: onnx.ValueInfoProto, dims: list[int | None] | None, given: Sequence[int] | None, hint: bool, free: bool
) -> ModelInput:
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    if given is not None:
        shape, batched = _with_given(value.name, dims, tuple(int(s) for s in given))
        return ModelInput(value.name, shape, shape[1:] if batched else shape, dtype)
    if dims is None or None in dims[1:]:
        declared = "no shape" if dims is None else [d if d is not None else "?" for d in dims]
        raise ModelError(
            f"expected a fixed shape for input {value.name!r}, got {declared}; give the shape of one example without its "
            "batch with --input-shape, of every input where there are several"
        )
    first = dims[0] if dims else None
    long = len(dims) > 1 and first is not None and first > 1
    if long and not free:
        whole = f"; if the first axis is no batch, give --input-shape {','.join(map(str, dims))}" if hint else ""
        raise ModelError(
            f"expected an open batch axis or a batch of 1 for input {value.name!r}, got shape {dims}; export the model "
            f"with batch 1 or a dynamic batch axis{whole}"
        )
    shape = tuple(1 if d is None else d for d in dims)
    batched = len(shape) > 1 and not long
    return ModelInput(value.name, shape, shape[1:] if batched else shape, dtype)


def _with_given(name: str, dims: list[int | None] | None, given: Shape) -> tuple[Shape, bool]:
    """The full shape and whether its first axis is the batch, from the user's shape of one example."""
    if dims is None:
        return (1, *given), True
    fits = [d is None or d == s for d, s in zip(dims, (1, *given), strict=False)]
    if len(dims) == len(given) + 1 and all(fits):
        return (1, *given), True
    whole = [d is None or d == s for d, s in zip(dims, given, strict=False)]
    if len(dims) == len(given) and all(whole):
        return given, False
    shown = [d if d is not None else "?" for d in dims]
    raise ModelError(
        f"expected an --input-shape that fits input {name!r} of shape {shown} (without its batch axis), got {list(given)}"
    )
