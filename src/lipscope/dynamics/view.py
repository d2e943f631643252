"""An eval-mode twin of the model in training, for looking at it: the twin's parameters share memory with the model's.

Nothing that is done with the twin is seen by training, as long as nobody writes into its parameters: it has its own
modules (flags, hooks), its own buffers, and its own parameter objects without gradients.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipscope.claims.errors import ModelError, UsageError
from lipscope.dynamics.construction import Settings, adopt, difference, settings, structure
from lipscope.dynamics.shadow import HOOKS, unwrapped
from lipscope.network.load.torch_module import double_copy


def is_compiled(model: nn.Module) -> bool:
    """Whether the model, or a module in it, runs through `torch.compile`."""
    wrapped = isinstance(getattr(model, "_orig_mod", None), nn.Module)
    return wrapped or any(getattr(m, "_compiled_call_impl", None) is not None for m in model.modules())


@contextmanager
def isolated(device: torch.device, draws: bool = True) -> Iterator[None]:
    """Inside, whatever computes leaves no trace: grad mode, autocast and, where something `draws`, random states."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        if not draws:
            yield
            return
        numbers, words = np.random.get_state(), random.getstate()
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                yield
        finally:
            np.random.set_state(numbers)
            random.setstate(words)


class ModelChanged(ModelError):
    """The model has other modules or parameters than the one that the twin was made of."""


class View:
    """The twin of a model. `model` computes what the model would compute in eval mode, with the weights of this moment.

    Attributes:
        live: the model itself.
        model: its twin.
        settings: the plain attributes that the twin has since it was last refreshed.

    Raises:
        ModelError: the model cannot be copied, or has parameters that are not there yet or live on several machines.
    """

    def __init__(self, model: nn.Module) -> None:
        self.live = unwrapped(model)
        for name, parameter in self.live.named_parameters():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise ModelError(
                    f"expected a model whose parameters exist, got the lazy {name!r}; run one batch through it first"
                )
            if parameter.is_meta:
                raise ModelError(f"expected parameters with values, got {name!r} on meta; load the weights first")
            if type(parameter).__name__ == "DTensor" or hasattr(parameter, "device_mesh"):
                raise ModelError(f"expected whole parameters, got {name!r}, which is sharded over machines")
        self.model = _skeleton(self.live)
        self.settings: Settings = settings(self.live)
        self._pairs = list(zip(self.model.parameters(), self.live.parameters(), strict=True))
        self._structure = structure(self.live)
        self._names = {id(module): name for name, module in self.live.named_modules()}
        self._kept = list(self.live.modules())  # as long as they are there, nothing else has their identity
        self._double: nn.Module | None = None
        self.refresh()

    @property
    def device(self) -> torch.device:
        """Where the first parameter is."""
        return next((p.device for p in self.live.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Of the first real parameter."""
        return next((p.dtype for p in self.live.parameters() if p.is_floating_point()), torch.float32)

    def refresh(self) -> nn.Module:
        """The twin, brought up to the weights, buffers and plain attributes of this moment.

        Raises:
            ModelChanged: the model has other modules or parameters than it had.
        """
        if structure(self.live) != self._structure:
            raise ModelChanged(
                f"expected the model that the observer was made for, got one that was rebuilt: "
                f"{difference(self.live, self._names, self._structure)}; nothing more is read. Close this observer and make a new one "
                "with the same run="
            )
        now = settings(self.live)
        if now != self.settings:
            adopt(self.model, self.live)
            self.settings = now
        with torch.no_grad():
            for twin, live in self._pairs:
                twin.data = live.detach()
            for own, buffer in zip(self.model.buffers(), self.live.buffers(), strict=True):
                if own.shape != buffer.shape or own.dtype != buffer.dtype:
                    own.data = buffer.detach().clone()
                else:
                    own.copy_(buffer)
        self._double = None
        return self.model

    def check(self, inputs: Tensor) -> None:
        """Compare the twin with a new one: what it knows nothing of (an object among the attributes, another `forward`) may have changed.

        Raises:
            ModelChanged: at these inputs they have different outputs.
        """
        with torch.no_grad():
            new, own, again = _skeleton(self.live)(inputs), self.model(inputs), self.model(inputs)
        # The same operations on copies that lie elsewhere in memory may round otherwise.
        room = 1e3 * torch.finfo(own.dtype).eps * float(own.abs().max()) if own.is_floating_point() else 0.0
        if not torch.equal(own, again):  # it draws, or counts: its graph is compared with it before anything is proved
            return
        if bool(own.isfinite().all()) and not float((new - own).abs().max()) <= room:
            raise ModelChanged(
                f"expected the model that the observer was made for, got one that computes something else by "
                f"{float((new - own).abs().max()):.1e} with the same weights: an object among its attributes, or its forward, is another one; "
                "nothing more is read. Close this observer and make a new one with the same run="
            )

    def double(self) -> nn.Module:
        """A copy in float64 with the weights since `refresh`, parametrised weights taken as they are computed."""
        if self._double is None:
            self._double = double_copy(self.model)
        return self._double

    @contextmanager
    def differentiable(self, model: nn.Module) -> Iterator[None]:
        """Inside, the parameters of the twin, or of its copy in float64, ask for gradients where the model's own do."""
        asking = {name for name, p in self.live.named_parameters() if p.requires_grad}
        chosen = [p for name, p in model.named_parameters() if name in asking]
        for parameter in chosen:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in chosen:
                parameter.requires_grad_(False)

    def own_copy(self) -> nn.Module:
        """A copy whose parameters are its own, for code that is not known to leave them alone."""
        return copy.deepcopy(self.model).requires_grad_(False)


def _skeleton(live: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}
    for parameter in live.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for layer in live.modules():
        for key, value in layer.__dict__.items():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()  # deepcopy refuses results of computations
            elif key in ("_trainer", "_fabric"):  # a Lightning module knows its trainer, which is no part of the model
                memo[id(value)] = None
    try:
        twin = copy.deepcopy(live, memo)
    except Exception as error:
        raise ModelError(
            f"cannot copy {type(live).__name__}: {type(error).__name__}: {error}; the observer needs a model that "
            "copy.deepcopy can copy"
        ) from error
    for layer in twin.modules():
        for kind in HOOKS:
            hooks = layer.__dict__.get(kind)
            if hooks:
                for key in [k for k, hook in hooks.items() if not _computes_weights(hook)]:
                    del hooks[key]
    return twin.eval()


def _computes_weights(hook: object) -> bool:
    """Whether a hook is torch's own, as of `torch.nn.utils.spectral_norm`, without which a layer has no weight."""
    return type(hook).__module__.startswith("torch.nn.utils.")


def check_probe(view: View, inputs: Tensor, targets: Tensor | None, what: str = "probe") -> Tensor:
    """The model's outputs at the probe, or at other data, whose name is `what`.

    Raises:
        UsageError: it is on another device, its shape does not fit, or inputs and targets differ in number.
    """
    if inputs.device != view.device:
        raise UsageError(
            f"expected a {what} on {view.device}, where the model is, got one on {inputs.device}; move it with .to(...)"
        )
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        raise UsageError(f"expected a {what} of finite numbers, got some that are nan or inf; look at the data")
    if inputs.ndim < 1 or len(inputs) == 0:
        raise UsageError(f"expected a {what} with at least one example, got shape {list(inputs.shape)}")
    if targets is not None and (targets.ndim == 0 or len(targets) != len(inputs)):
        raise UsageError(
            f"expected one target for each of the {len(inputs)} examples of the {what} (inputs of shape {list(inputs.shape)}, "
            f"the first axis is the batch), got targets of shape {list(targets.shape)}"
        )
    if targets is not None and targets.device != inputs.device:
        raise UsageError(f"expected the {what}'s targets on {inputs.device}, got them on {targets.device}")
    try:
        with isolated(view.device), torch.no_grad():
            outputs = view.model(inputs)
    except Exception as error:
        raise UsageError(
            f"expected a {what} that the model accepts, got inputs of shape {list(inputs.shape)} and {inputs.dtype}, on which "
            f"{type(view.live).__name__} fails: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.ndim < 1 or len(outputs) != len(inputs):
        shape = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UsageError(
            f"expected a model that returns one tensor with a row an example, got {shape}; a model with other outputs is "
            "watched through a module that picks one"
        )
    return outputs


def seen_by_others(view: View, inputs: Tensor, outputs: Tensor) -> str:
    """Why values that are about single examples are not, in words; empty where the first example alone gives its row.

    Args:
        view: with the model.
        inputs: of the probe.
        outputs: of the model at all of them, from `check_probe`.
    """
    if len(inputs) < 2:
        return ""
    try:
        with isolated(view.device), torch.no_grad():
            alone = view.model(inputs[:1])
        largest = float(outputs.abs().max())
        # Sums in another order differ by far less.
        share = 0.1 if outputs.dtype in (torch.float16, torch.bfloat16) else 1e-2
        if float((alone - outputs[:1]).abs().max()) <= share * largest or not math.isfinite(largest):
            return ""
        found = "it has another output alone than among the others"
    except Exception as error:  # noqa: BLE001 - any model, any error
        found = f"alone it gives {type(error).__name__}: {error}"
    return (
        f"an example of the probe depends on the others, or on chance, in eval mode ({found}): nothing is logged of "
        "derivatives at single examples; a normalization without running statistics does that"
    )
