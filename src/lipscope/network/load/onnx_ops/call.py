"""One ONNX node with its operands, as the handlers of the operators see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import helper

from lipscope.claims.errors import ModelError
from lipscope.network.load.lowering import Lowering, Operand, Ref
from lipscope.network.load.onnx_reference import run_node
from lipscope.network.nodes import Array


class Refusal(Exception):
    """A node that cannot be imported; the text says what is missing and what to do."""


@dataclass(frozen=True)
class Call:
    """An ONNX node whose operands are known.

    Attributes:
        lowering: where its nodes go.
        node: the node as it was read.
        opset: version of the standard operators.
        operands: a tensor that depends on the input, a constant, or None for an optional input that is left out.
        whole: for each operand, whether it holds integers or truth values.
        wanted: the indices of the outputs that somebody reads.
    """

    lowering: Lowering
    node: onnx.NodeProto
    opset: int
    operands: tuple[Operand | None, ...]
    whole: tuple[bool, ...]
    wanted: frozenset[int]

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """The node's attributes by name, texts decoded."""
        found = {a.name: helper.get_attribute_value(a) for a in self.node.attribute}
        return {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or what holds where it is not given."""
        return self.attributes.get(name, default)

    def has(self, index: int) -> bool:
        """Whether an operand is given."""
        return index < len(self.operands) and self.operands[index] is not None

    def operand(self, index: int) -> Operand:
        """An operand that has to be there."""
        value = self.operands[index] if index < len(self.operands) else None
        if value is None:
            raise ModelError(
                f"expected input {index} of {self.node.op_type} at layer {self.lowering.layer!r}, got {len(self.operands)} "
                "inputs; the file is malformed"
            )
        return value

    def given(self) -> list[Operand]:
        """All operands of an operator that takes any number of them."""
        return [self.operand(i) for i in range(len(self.operands))]

    @property
    def x(self) -> Ref:
        """The first operand as a tensor."""
        return self.ref(0)

    def ref(self, index: int) -> Ref:
        """An operand as a tensor; a constant becomes a node."""
        return self.lowering.as_ref(self.operand(index))

    def constant(self, index: int, what: str) -> Array:
        """An operand that has to be a constant.

        Raises:
            Refusal: it depends on the input.
        """
        value = self.operand(index)
        if isinstance(value, Ref):
            raise Refusal(f"its {what} depend on the input of the network; only constant {what} are understood")
        return value

    def maybe_constant(self, index: int, what: str) -> Array | None:
        """An optional operand that has to be a constant."""
        return self.constant(index, what) if self.has(index) else None

    def integers(self, name: str, index: int, input_since: int) -> list[int] | None:
        """Numbers that are an attribute before opset `input_since` and an input from it on; None if not given."""
        if self.opset < input_since:
            values = self.attribute(name)
            return None if values is None else [int(v) for v in values]
        array = self.maybe_constant(index, name)
        return None if array is None else [int(v) for v in np.reshape(array, -1)]

    def rearranged(self, *indices: int) -> Ref:
        """The result of an operator that only moves entries of the given operands: it is run on their numbers.

        All other operands have to be constant.
        """
        operands: list[Array | None] = []
        pieces, start = [], 0
        for index, value in enumerate(self.operands):
            if index in indices:
                piece = self.ref(index)
                size = int(np.prod(piece.shape, dtype=np.int64))
                operands.append(np.arange(start, start + size, dtype=np.int64).reshape(piece.shape))
                pieces.append(self.lowering.reshape(piece, (size,)))
                start += size
            else:
                operands.append(None if value is None else self.constant(index, "indices"))
        (moved,) = run_node(self.node, operands, self.opset)
        return self.lowering.take(self.lowering.concat(pieces, 0), moved, 0)


Result = Operand | Sequence[Operand | None]
Handler = Callable[[Call], Result]
Handlers = Mapping[str, Handler]
