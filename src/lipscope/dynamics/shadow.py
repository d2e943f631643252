"""Looking at a model without leaving a trace: a copy without hooks, and a guard around everything that draws or differentiates."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lipscope.claims.errors import ModelError

HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called", "_non_full_backward_hooks",
)  # fmt: skip


def unwrapped(model: nn.Module) -> nn.Module:
    """The module behind `torch.compile`, `DataParallel` and `DistributedDataParallel`; the same parameters."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def shadow(model: nn.Module) -> nn.Module:
    """A deep copy of the model behind its wrappers, without anybody's hooks; the flags are those of the original.

    Raises:
        ModelError: it cannot be copied, for example because a layer holds a tensor that is not a leaf.
    """
    source = unwrapped(model)
    if isinstance(source, torch.jit.ScriptModule):
        raise ModelError("expected a module in Python, got TorchScript; follow the module that it was made from")
    with untouched():
        try:
            twin = copy.deepcopy(source)
        except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
            raise ModelError(
                f"expected a model that can be copied, got {type(source).__name__}, which cannot: {error}; with the old "
                "weight_norm or spectral_norm use torch.nn.utils.parametrizations instead"
            ) from error
    for module in twin.modules():
        for hooks in HOOKS:
            getattr(module, hooks, {}).clear()
    return twin


@contextmanager
def untouched() -> Iterator[None]:
    """Whatever is drawn inside is drawn from copies of torch's generators; gradients are on and nothing is cast inside."""
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if started else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        yield


def call(twin: nn.Module, live: nn.Module, inputs: tuple[Tensor, ...], parameters: Mapping[str, Tensor]) -> Tensor:
    """The output of a shadow with the given parameters and with copies of the live model's buffers, which stay as they are.

    Raises:
        ModelError: the output is not one tensor.
    """
    buffers = {name: value.detach().clone() for name, value in live.named_buffers()}
    output = functional_call(twin, {**buffers, **parameters}, inputs)
    if not isinstance(output, Tensor):
        raise ModelError(f"expected a model with one tensor as output, got {type(output).__name__}; wrap the model")
    return output


def as_inputs(probe: Tensor | tuple[Tensor, ...], model: nn.Module) -> tuple[Tensor, ...]:
    """The probe as the model's arguments.

    Raises:
        ModelError: it is empty, or on another device than the model.
    """
    inputs = probe if isinstance(probe, tuple) else (probe,)
    if not inputs or any(x.ndim == 0 or not len(x) for x in inputs):
        raise ModelError("expected a probe with at least one example, got none; pass a tensor (B, ...)")
    home = next((p.device for p in itertools.chain(model.parameters(), model.buffers())), None)
    for x in inputs:
        if home is not None and x.device != home:
            raise ModelError(
                f"expected the probe on {home}, where the model is, got {x.device}; move it with .to({home})"
            )
    return tuple(x.detach() for x in inputs)


def train_mode(modules: Mapping[str, nn.Module], kinds: tuple[type[nn.Module], ...]) -> list[str]:
    """Names of the modules of some kinds that are in train mode."""
    return [name for name, module in modules.items() if isinstance(module, kinds) and module.training]
