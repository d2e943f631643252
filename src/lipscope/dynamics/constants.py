"""Lipschitz constants (l2) of what has no weights: activations, pooling, rearrangements, functions called in a forward pass.

The constants are those of `lipscope.rules`: the largest slope of an entrywise function, and for everything else whatever the
loader and the product bound make of the operation alone on its input's shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

import lipscope.rules  # noqa: F401  registers the rules that are asked below
from lipscope.bounds.method import Effort
from lipscope.bounds.problem import pose
from lipscope.bounds.product import Product
from lipscope.claims.claim import Claim, parse_output
from lipscope.claims.errors import LipscopeError, UnsupportedError
from lipscope.claims.regions import Everywhere
from lipscope.network.nodes import Elementwise
from lipscope.rules.questions import slopes

_Row = tuple[str, Mapping[str, str]]

_ENTRYWISE: Mapping[type[nn.Module], _Row] = {
    nn.ReLU: ("relu", {}),
    nn.LeakyReLU: ("leaky_relu", {"negative_slope": "negative_slope"}),
    nn.Tanh: ("tanh", {}),
    nn.Sigmoid: ("sigmoid", {}),
    nn.SiLU: ("silu", {}),
    nn.ELU: ("elu", {"alpha": "alpha"}),
    nn.SELU: ("selu", {}),
    nn.Mish: ("mish", {}),
    nn.Hardswish: ("hardswish", {}),
    nn.Softsign: ("softsign", {}),
}
"""Activation modules as entrywise functions, with the names of their parameters: what the loader would find, without a trace."""

_ISOMETRIC = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.PixelShuffle,
)
_ISOMETRIC_FUNCTIONS = frozenset(
    "relu relu_ flatten view reshape permute transpose movedim t contiguous clone squeeze unsqueeze ravel unflatten "
    "tanh neg to float double type_as detach requires_grad_ abs".split()
)


def module_constant(module: nn.Module, shape: tuple[int, ...]) -> tuple[float, str]:
    """The constant of a module without weights, in eval mode, on inputs of `shape` (without batch), and why it is inf.

    An upper bound in the sense of `lipscope.bounds`; inf with a reason where none is known.
    """
    kind = type(module)
    if kind in _ISOMETRIC:
        return 1.0, ""
    if kind in _ENTRYWISE:
        function, names = _ENTRYWISE[kind]
        arguments = {key: float(getattr(module, name)) for key, name in names.items()}
        if function == "silu":
            arguments = {"beta": 1.0}
        return entrywise_constant(function, arguments), ""
    if kind is nn.GELU:
        return entrywise_constant("gelu" if module.approximate == "none" else "gelu_tanh", {}), ""
    return traced_constant(module, shape)


def entrywise_constant(function: str, arguments: Mapping[str, float]) -> float:
    """The largest slope in size of a row of `lipscope.rules.functions` on the whole line, rounded upward."""
    node = Elementwise(inputs=(0,), shape=(1,), function=function, arguments=tuple(arguments.items()))
    low, high = slopes(node, None)
    return max(abs(float(low)), abs(float(high)))


def function_constant(
    name: str, function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[float, str]:
    """The constant of a function that a forward pass calls on one tensor, and why it is inf."""
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    if len(tensors) != 1 or not args or args[0] is not tensors[0]:
        return math.inf, f"{name} of several values: the product of factors says nothing of networks with branches"
    if name in _ISOMETRIC_FUNCTIONS:
        return 1.0, ""
    return traced_constant(_Applied(function, args[1:], dict(kwargs)), tuple(tensors[0].shape[1:]))


class _Applied(nn.Module):
    """A function with its other arguments."""

    def __init__(self, function: Callable[..., Tensor], rest: tuple[Any, ...], named: dict[str, Any]) -> None:
        super().__init__()
        self._function, self._rest, self._named = function, rest, named

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x, *self._rest, **self._named)


def traced_constant(module: nn.Module, shape: tuple[int, ...]) -> tuple[float, str]:
    """What the product bound proves of a module alone."""
    from lipscope.network.load.load import load  # brings torch.export, which takes seconds

    was_training = module.training
    try:
        graph = load(module.eval(), input_shape=shape).graph
        found = Product().run(pose(graph, Claim("l2", Everywhere(), parse_output("all", graph.output_size))), Effort())
    except (LipscopeError, RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        if isinstance(error, UnsupportedError):
            return math.inf, "; ".join(f"{o.operator} is not understood" for o in error.operations)
        return math.inf, str(error).splitlines()[0] if str(error) else type(error).__name__
    finally:
        module.train(was_training)
    if found.value is None or not math.isfinite(found.value):
        return math.inf, found.note or "no finite constant"
    return found.value, ""
