"""The factors of a network's product bound: what one forward pass calls, in order, and the Lipschitz constant of each.

For a chain of modules the product of the factors is an upper bound of the network's constant. A module or function that is
not understood is a factor of its own, infinite and with its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from lipscope.claims.errors import ModelError
from lipscope.dynamics.constants import function_constant, module_constant
from lipscope.dynamics.operators import OPERATORS, Convolution, Operator, Scale, TransposedConvolution, plain_type
from lipscope.dynamics.shadow import as_inputs, shadow, untouched, unwrapped


@dataclass(frozen=True)
class Factor:
    """One factor of the product.

    Attributes:
        name: of the layer in the user's model; a second operator of the same layer (another input size) gets a number.
        kind: its class, or `function NAME`.
        calls: how often the forward pass uses it: the factor counts to that power.
        operator: the layer as an operator with weights, or None.
        constant: the Lipschitz constant where there is no operator; inf where none is known; nan where there is one.
        reason: why the constant is inf, else empty.
        shape: of the input, without the batch axis.
    """

    name: str
    kind: str
    calls: int
    operator: Operator | None
    constant: float
    reason: str
    shape: tuple[int, ...]


def list_factors(model: nn.Module, probe: Tensor | tuple[Tensor, ...]) -> tuple[Factor, ...]:
    """The factors in the order of their first call, from one forward pass of a copy in eval mode on the probe.

    Modules that are not called do not count. The model itself, random states and buffers are left as they are.

    Raises:
        ModelError: the model cannot be copied, or does not take the probe.
    """
    live = unwrapped(model)
    inputs = as_inputs(probe, live)
    twin = shadow(model).eval()
    with untouched(), torch.no_grad():
        try:
            walk = _walked(twin, tuple(x[:1] for x in inputs))
        except (RuntimeError, ValueError, TypeError, IndexError):  # some models do not take a batch of one
            try:
                walk = _walked(shadow(model).eval(), inputs)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
                raise ModelError(
                    f"expected a probe that the model takes, got {shapes}: {error}; pass inputs as in training"
                ) from error
        return tuple(_counted(walk.calls, dict(live.named_modules())))


@dataclass(frozen=True)
class _Call:
    """One call of a module (with its name) or of a function."""

    name: str
    kind: str
    module: nn.Module | None
    shape: tuple[int, ...]
    constant: float = math.nan
    reason: str = ""


class _Walk(TorchFunctionMode):
    """Notes which modules and which functions outside of them are called; inside a known layer nothing is noted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self._names = {module: name for name, module in model.named_modules()}
        self._inside = 0
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        for module in self._names:
            closed = _closed(module)
            if closed or module._parameters:
                self._handles.append(module.register_forward_pre_hook(self._enter if closed else self._note))
            if closed:
                self._handles.append(module.register_forward_hook(self._leave))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._note(module, args)
        self._inside += 1

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        self._inside -= 1

    def _note(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._inside:
            return
        tensors = [a for a in args if isinstance(a, Tensor)]
        shape = tuple(tensors[0].shape[1:]) if tensors else ()
        name, kind = self._names[module] or "model", plain_type(module).__name__
        constant, reason = math.nan, ""
        self._inside += 1  # whatever is asked of the module to know its constant is not part of the forward pass
        if plain_type(module) not in OPERATORS:
            constant, reason = _other_constant(module, tensors, len(args), shape)
        self._inside -= 1
        self.calls.append(_Call(name, kind, module, shape, constant, reason))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) or _holds_tensors(a)]
        shape = tuple(args[0].shape[1:]) if args and isinstance(args[0], Tensor) else ()
        result = func(*args, **kwargs)
        if given and _moves(result):
            name = getattr(func, "__name__", str(func)).strip("_")
            if any(_holds_tensors(a) for a in given):
                found = (
                    math.inf,
                    f"{name} of several values: the product of factors says nothing of networks with branches",
                )
            else:
                self._inside += 1
                found = function_constant(name, func, args, kwargs)
                self._inside -= 1
            if found[0] not in (0.0, 1.0):  # what does not depend on its operand is no link of the chain
                self.calls.append(_Call(f"function {name}", f"function {name}", None, shape, *found))
        return result


def _holds_tensors(value: object) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value)


def _moves(result: object) -> bool:
    """Whether a result is a value that inputs can move: a tensor of real numbers, or several."""
    parts = result if isinstance(result, (list, tuple)) else [result]
    return any(isinstance(r, Tensor) and r.is_floating_point() and r.ndim > 0 for r in parts)


def _closed(module: nn.Module) -> bool:
    """Whether a module counts as a whole: the layers with weights that are followed, and everything without parts."""
    return plain_type(module) in OPERATORS or not any(module.children())


def _other_constant(module: nn.Module, tensors: list[Tensor], given: int, shape: tuple[int, ...]) -> tuple[float, str]:
    kind = plain_type(module).__name__
    if module._parameters and any(p is not None for p in module._parameters.values()):
        return math.inf, f"{kind} has parameters of its own and is not understood; its factor is unknown, not 1"
    if len(tensors) != 1 or given != 1:
        return math.inf, f"{kind} has {given} inputs; its factor is unknown, not 1"
    return module_constant(module, shape)


def _walked(twin: nn.Module, inputs: tuple[Tensor, ...]) -> _Walk:
    walk = _Walk(twin)
    walk.attach()
    try:
        with walk:
            twin(*inputs)
    finally:
        walk.detach()
    return walk


def _counted(calls: list[_Call], modules: dict[str, nn.Module]) -> Iterator[Factor]:
    """Calls of the same operator as one factor; names made unique."""
    found: dict[tuple[object, ...], Factor] = {}
    names: dict[str, int] = {}
    for call in calls:
        key = (call.module, _operand(call)) if call.module is not None else (len(found), call.name)
        if key in found:
            found[key] = replace(found[key], calls=found[key].calls + 1)
            continue
        names[call.name] = names.get(call.name, 0) + 1
        number = names[call.name]
        name = call.name if number == 1 else f"{call.name} ({number})"
        operator = None if call.module is None else _operator(modules[_original(call.name)], call.shape)
        constant, reason = call.constant, call.reason
        if operator is not None and (fault := _fault(operator)):
            operator, constant, reason = None, math.inf, fault
        found[key] = Factor(name, call.kind, 1, operator, constant, reason, call.shape)
    yield from found.values()


def _original(name: str) -> str:
    return "" if name == "model" else name


def _operand(call: _Call) -> tuple[int, ...]:
    """What of the input's shape the operator depends on: all of it for convolutions, nothing for dense and scale."""
    assert call.module is not None
    kind = OPERATORS.get(plain_type(call.module))
    if kind is not None and not issubclass(kind, (Convolution, TransposedConvolution)):
        return ()
    return call.shape


def _operator(module: nn.Module, shape: tuple[int, ...]) -> Operator | None:
    kind = OPERATORS.get(plain_type(module))
    return None if kind is None else kind(module, shape)


def _fault(operator: Operator) -> str:
    """Why an operator of a known class cannot be followed, or empty."""
    module = operator.module
    kind = plain_type(module).__name__
    if any(p is not None and p.is_complex() for p in module._parameters.values()):
        return f"{kind} has complex weights, which are not followed; its factor is unknown, not 1"
    if isinstance(operator, Scale):
        batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if batch != (getattr(module, "running_var", None) is not None):
            return f"{kind} has no fixed statistics of the usual kind; its factor is unknown, not 1"
        if "weight" in module._parameters:
            return ""
    if parametrize.is_parametrized(module, "weight") or module._parameters.get("weight") is not None:
        return ""  # the attribute itself is not looked at: a parametrization may count how often it is read
    if hasattr(module, "weight"):
        return (
            f"the weight of {kind} is set by a hook; use torch.nn.utils.parametrizations. Its factor is unknown, not 1"
        )
    return f"{kind} has no weight; its factor is unknown, not 1"


def log_product(factors: Sequence[Factor]) -> float:
    """The log of the product of all factors at the present weights, computed in float64 and not enclosed.

    inf if a factor has no finite constant, -inf if one is 0, nan where weights are not finite.
    """
    total = 0.0
    for factor in factors:
        value = factor.constant
        if factor.operator is not None:
            snapshot = factor.operator.snapshot()
            if not all(bool(torch.isfinite(part).all()) for part in snapshot):
                return math.nan
            with untouched(), torch.no_grad():
                value = factor.operator.expand(snapshot).norm
        total += factor.calls * (math.log(value) if value > 0 else -math.inf)
    return total
