"""What can go wrong, each with the exit code of the command line.

    LipscopeError
    ├── UsageError          2  wrong argument, norm, region, output
    │   └── ModelError      2  a model or file that cannot be read or analysed as it is
    ├── UnsupportedError    3  operations that are not understood, all of them
    ├── Interrupted         4  stopped by the user; carries what was reached
    ├── ResourceError       5  disk or memory
    └── InternalError       1  a bug of ours

Every message says what was expected, what came, which layer, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class LipscopeError(Exception):
    """Everything that lipscope raises on purpose."""

    exit_code = 1


class UsageError(LipscopeError):
    """An argument that does not make sense: a norm, a region, an output, an option."""

    exit_code = 2


class ModelError(UsageError):
    """A model or a file that cannot be read, or that cannot be analysed in the state it is in."""


@dataclass(frozen=True)
class UnsupportedOperation:
    """One operation that is not understood.

    Attributes:
        operator: its name in the source format.
        layer: the layer of the user's model.
        reason: what is missing and what to do.
    """

    operator: str
    layer: str
    reason: str


class UnsupportedError(LipscopeError):
    """The model has operations that are not understood; `operations` lists all of them."""

    exit_code = 3

    def __init__(self, operations: Sequence[UnsupportedOperation]) -> None:
        self.operations = tuple(operations)
        lines = "\n".join(f"  {o.operator} at {o.layer!r}: {o.reason}" for o in self.operations)
        super().__init__(
            f"expected only operations that lipscope understands, got {len(self.operations)} others; nothing was "
            f"guessed for them:\n{lines}\nRewrite these layers, or export the part of the model before them."
        )


class Interrupted(LipscopeError):
    """Stopped by the user; `result` is what was reached, if anything."""

    exit_code = 4

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class ResourceError(LipscopeError):
    """Not enough disk or memory."""

    exit_code = 5


class InternalError(LipscopeError):
    """A bug of lipscope's own; please report it."""
