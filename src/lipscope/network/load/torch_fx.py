"""The second way to trace a module: `torch.fx` proves that its path does not depend on values, then its calls are recorded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, nn
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx

from lipscope.claims.errors import ModelError
from lipscope.network.load.torch_traced import Traced, main_dtype, quiet
from lipscope.network.load.torch_walk import overlapping_writes
from lipscope.network.nodes import Shape


def trace_symbolically(module: nn.Module, shapes: Sequence[Shape]) -> Traced:
    """The program of a module in ATen operations, with every shape resolved.

    Raises:
        ModelError: the program writes into tensors of which another view is read later.
        Exception: whatever tracing raises, where values of the input steer the module.
    """
    dtype = main_dtype(module)
    examples = [torch.zeros(s, dtype=dtype) for s in shapes]
    symbolic = fx.symbolic_trace(module)
    with quiet(), torch.no_grad(), traceback.preserve_node_meta():
        traced = make_fx(fx.Interpreter(symbolic).run, pre_dispatch=True)(*examples)
    if overlapping_writes(traced.graph):
        raise ModelError(
            "expected a model that does not write into tensors it reads elsewhere, got one that does; use operations that "
            "return new tensors instead of those that end in '_' or assign to slices"
        )
    return Traced(
        traced, (None,) * len(shapes), tuple(shapes), (True,) * len(shapes), (dtype,) * len(shapes), None,
        dtype == torch.float64,
    )  # fmt: skip
