"""Modules before they are traced: are they in eval mode, and how are they copied."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lipscope.claims.errors import ModelError, UsageError
from lipscope.network.nodes import Shape

_MODAL = (
    nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, nn.RReLU, nn.MultiheadAttention,
    nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.modules.rnn.RNNBase,
)  # fmt: skip


def plain_module(module: nn.Module) -> nn.Module:
    """The module behind `torch.compile` and data parallelism, in eval mode.

    Raises:
        ModelError: it is compiled to TorchScript, or in train mode.
    """
    for wrapper in ("_orig_mod", "module"):
        inner = getattr(module, wrapper, None)
        if isinstance(inner, nn.Module) and (wrapper == "_orig_mod" or isinstance(module, nn.DataParallel)):
            module = inner
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            "expected a module in Python, got TorchScript, which cannot be traced; load the original module"
        )
    evaluation_mode(module)
    return module


def evaluation_mode(module: nn.Module) -> None:
    """Raise `ModelError` if the module, or a layer in it that may behave differently, is in train mode."""
    if module.training:
        raise ModelError(
            f"expected a model in eval mode, got {type(module).__name__} in train mode; call model.eval() first (a factory: before it returns the model)"
        )
    names = [
        name
        for name, layer in module.named_modules()
        if layer.training and (isinstance(layer, _MODAL) or not type(layer).__module__.startswith("torch.nn."))
    ]
    if names:
        raise ModelError(
            f"expected all layers in eval mode, got {', '.join(map(repr, names[:10]))} in train mode; call model.eval() "
            "first, after the last layer was added"
        )


def example_shapes(shape: Sequence[int] | Sequence[Sequence[int]] | None) -> list[Shape]:
    """One shape an input.

    Raises:
        UsageError: none was given, or it has a length that is not positive.
    """
    if shape is None:
        raise UsageError("expected the shape of one example without its batch axis, got none; give input_shape")
    given: object = shape
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UsageError(f"expected a shape such as (3, 32, 32), got {shape!r}")
    several = bool(shape) and not isinstance(shape[0], int)
    found = [tuple(int(v) for v in s) for s in shape] if several else [tuple(int(v) for v in shape)]  # type: ignore[union-attr,arg-type]
    if any(v < 1 for s in found for v in s):
        raise UsageError(f"expected positive lengths in the input shape, got {shape!r}")
    return found


def is_narrow(module: nn.Module) -> bool:
    """Whether all of its real weights are float32 or narrower."""
    found = {t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()}
    return bool(found) and torch.float64 not in found


def double_copy(module: nn.Module) -> nn.Module:
    """A copy in float64 that computes with the exact values of the module's weights.

    Parametrised weights are taken as the module computes them in its own precision. `RMSNorm` without eps takes the one of
    its own precision.

    Raises:
        ModelError: a weight is complex, or not on the CPU's side of what can be copied.
    """
    names = [name for name, t in (*module.named_parameters(), *module.named_buffers()) if t.is_complex()]
    if names:
        raise ModelError(f"expected real weights, got complex numbers in {', '.join(names)}; write them as two tensors")
    twin = copy.deepcopy(module, _detached(module)).cpu()
    _materialise(twin)
    for layer in twin.modules():
        if isinstance(layer, nn.RMSNorm) and layer.eps is None:
            layer.eps = torch.finfo(next(layer.parameters(), torch.zeros(())).dtype).eps
    return twin.double().requires_grad_(False)


def _detached(module: nn.Module) -> dict[int, object]:
    """Copies of tensors that hooks have left on layers, which `deepcopy` refuses as they are results of computations."""
    found: dict[int, object] = {}
    for layer in module.modules():
        for value in layer.__dict__.values():
            if isinstance(value, Tensor) and not value.is_leaf:
                found[id(value)] = value.detach().clone()
    return found


def _materialise(module: nn.Module) -> None:
    """Replace parametrisations by the weights that they compute.

    The classes that torch makes for parametrised layers are shared with the original, so they are left alone.
    """
    with torch.no_grad():
        for layer in list(module.modules()):
            if not parametrize.is_parametrized(layer):
                continue
            weights = {name: getattr(layer, name).detach().clone() for name in layer.parametrizations}  # type: ignore[union-attr]
            layer.__class__ = type(layer).__bases__[0]
            del layer.parametrizations
            for name, value in weights.items():
                layer.register_parameter(name, nn.Parameter(value, requires_grad=False))
