"""One ATen operation with its arguments, as the handlers of the operations see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipscope.network.load.lowering import Lowering, Operand, Ref
from lipscope.network.nodes import Array, Shape


class Refusal(Exception):
    """An operation that cannot be imported; the text says what is missing and what to do."""


def as_array(value: Tensor | float, narrow: bool) -> Array:
    """A constant as a numpy array.

    Args:
        value: a tensor or a number.
        narrow: whether the user's weights were float32 or narrower; a float64 array whose entries all are float32
            numbers is then kept as float32, which is what was stored.
    """
    if not isinstance(value, Tensor):
        return np.asarray(value, dtype=np.float64)
    plain = value.detach().cpu()
    if plain.dtype in (torch.float16, torch.bfloat16):
        plain = plain.float()
    array: Array = plain.resolve_conj().resolve_neg().contiguous().numpy()
    if narrow and array.dtype == np.float64 and array.ndim:
        with np.errstate(over="ignore"):
            short = array.astype(np.float32)
        if np.array_equal(short.astype(np.float64), array, equal_nan=True):
            return short
    return array.copy()


def number(value: float) -> Array:
    """A number as a constant."""
    return np.asarray(value, dtype=np.float64)


@dataclass(frozen=True)
class Call:
    """An operation whose arguments are known.

    Attributes:
        lowering: where its nodes go.
        target: the ATen operation.
        arguments: by the names of its schema, defaults filled in; a tensor is a `Ref` if it depends on the input and
            a torch tensor if not.
        narrow: whether the user's weights were float32 or narrower.
        whole: the names of the arguments that hold integers or truth values.
        dtype: type of the result, if it is known.
    """

    lowering: Lowering
    target: Callable[..., Any]
    arguments: dict[str, Any]
    narrow: bool
    whole: frozenset[str] = frozenset()
    dtype: torch.dtype | None = None

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    @property
    def x(self) -> Ref:
        """The first argument as a tensor."""
        return self.lowering.as_ref(self.operand(next(iter(self.arguments))))

    def operand(self, name: str) -> Operand:
        """A tensor or number."""
        return self.converted(self.arguments[name])

    def converted(self, value: Any) -> Operand:
        """A value as an operand of `Lowering`."""
        if isinstance(value, Ref):
            return value
        if not isinstance(value, Tensor | int | float):
            raise Refusal(f"expected a tensor or a number among its arguments, got {type(value).__name__}")
        return as_array(value, self.narrow)

    def replaced(self, /, **arguments: Any) -> Call:
        """The same operation with other arguments."""
        return replace(self, arguments={**self.arguments, **arguments})

    def ref(self, name: str) -> Ref:
        """An argument as a tensor of the graph."""
        return self.lowering.as_ref(self.operand(name))

    def array(self, name: str) -> Array:
        """An argument that has to be constant.

        Raises:
            Refusal: it depends on the input.
        """
        value = self.operand(name)
        if isinstance(value, Ref):
            raise Refusal(f"its {name} depends on the input of the network; only a constant {name} is understood")
        return value

    def maybe_array(self, name: str) -> Array | None:
        """An optional argument that has to be constant."""
        return None if self.arguments.get(name) is None else self.array(name)

    def number(self, name: str) -> float:
        """An argument that has to be one constant number."""
        value = self.array(name)
        if value.size != 1:
            raise Refusal(f"expected one number as its {name}, got an array of shape {list(value.shape)}")
        return float(value.reshape(()))

    def constants(self) -> bool:
        """Whether no argument after the first depends on the input."""
        rest = list(self.arguments.values())[1:]
        return not any(isinstance(leaf, Ref) for leaf in torch.utils._pytree.tree_leaves(rest))

    def on(self, replacement: Any) -> Any:
        """The operation itself, run by torch with another first argument."""
        first, *_ = self.arguments
        return run(self.target, {**self.arguments, first: replacement})

    def result_shape(self) -> Shape:
        """The shape of the result of an operation that moves entries of its first argument."""
        return tuple(self.on(torch.empty(self.x.shape, device="meta")).shape)

    def rearranged(self, *names: str) -> Ref:
        """The result of an operation that only moves entries of the named arguments: it is run on their numbers.

        All other tensors have to be constant.
        """
        chosen = names or (next(iter(self.arguments)),)
        numbered = dict(self.arguments)
        pieces, start = [], 0
        for name in chosen:
            piece = self.ref(name)
            size = int(np.prod(piece.shape, dtype=np.int64))
            numbered[name] = torch.arange(start, start + size, dtype=torch.float64).reshape(piece.shape)
            pieces.append(self.lowering.reshape(piece, (size,)))
            start += size
        if any(isinstance(leaf, Ref) for leaf in torch.utils._pytree.tree_leaves(numbered)):
            raise Refusal("its indices depend on the input of the network; only constant indices are understood")
        moved = run(self.target, numbered)
        return self.lowering.take(self.lowering.concat(pieces, 0), moved.to(torch.int64).numpy(), 0)


def run(target: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """An ATen operation on arguments given by name."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return target(*arguments.values())
    positional = [arguments[a.name] for a in schema.arguments if not a.kwarg_only]
    named = {a.name: arguments[a.name] for a in schema.arguments if a.kwarg_only}
    return target(*positional, **named)


Result = Operand | Tensor | float | Sequence[Any] | None
Handler = Callable[[Call], Result]
Handlers = Mapping[str, Handler]


def pairs(values: Sequence[int], rank: int) -> list[int]:
    """One number an axis, from one for all or one each."""
    return [int(v) for v in (list(values) * rank if len(values) == 1 else values)]
