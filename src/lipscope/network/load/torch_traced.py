"""A program in ATen operations, however it was traced."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from lipscope.network.nodes import Shape


@dataclass(frozen=True)
class Traced:
    """A program in ATen operations.

    Attributes:
        module: its operations.
        constants: values of its placeholders, None where the user's inputs come.
        run_shapes: shapes of the user's inputs, batch axis included.
        batched: for each input, whether its first axis is the batch.
        dtypes: types of the user's inputs.
        outputs: for each output of the program, whether it is the user's.
        double: whether the program was traced in double precision.
    """

    module: fx.GraphModule
    constants: tuple[Tensor | None, ...]
    run_shapes: tuple[Shape, ...]
    batched: tuple[bool, ...]
    dtypes: tuple[torch.dtype, ...]
    outputs: tuple[bool, ...] | None
    double: bool


@contextmanager
def quiet() -> Iterator[None]:
    """Torch's tracing machinery warns of its own future; that is no concern of the user's."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module=r"torch\.")
        warnings.filterwarnings("ignore", message=r"(?s)The tensor attributes? .* assigned during export")
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
        yield


def main_dtype(module: nn.Module) -> torch.dtype:
    """The type of a module's first real weight; float64 without weights."""
    found = [t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    return found[0] if found else torch.float64
