"""A traced torch program as a graph: a walk that folds constants and lowers the rest, listing what it cannot.

Every value is a `Ref` (it depends on the input) or what torch itself computes (a constant). An operation that writes in
place is its other form, and its operand's name stands for the new value from there on; a program in which that would
be wrong, because another view of the same memory is read later, is told apart by `overlapping_writes`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from lipscope.claims.errors import LipscopeError, ModelError, ResourceError, UnsupportedOperation
from lipscope.network import nodes as n
from lipscope.network.load.lowering import Lowering, Ref
from lipscope.network.load.operation import Operation
from lipscope.network.load.torch_ops import HANDLERS, RANDOM, WITHOUT_HANDLER, Call, Refusal
from lipscope.network.load.torch_ops.rearrangement import PERMUTATIONS, RESHAPES
from lipscope.network.load.torch_ops.shapes import IDENTITIES
from lipscope.network.nodes import Shape

_MALFORMED = (
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    ZeroDivisionError,
    OverflowError,
    RuntimeError,
)
_INLINED = {"wrap_with_set_grad_enabled"}
_SILENT = {"_set_grad_enabled", "_assert_tensor_metadata", "_assert_scalar", "sym_size", "sym_numel", "_enter_autocast"}
_MAY_ALIAS = {*RESHAPES, *PERMUTATIONS, *IDENTITIES, "to", "type_as", "expand", "expand_as", "dropout", "feature_dropout",
              "alpha_dropout", "getitem"} - {"clone", "lift_fresh_copy"}  # fmt: skip


class Unknown:
    """A value behind a refused operation, of which not even the shape is known."""


UNKNOWN = Unknown()


def operator_name(target: object) -> str:
    """The operation's name without overload: `relu` for `aten.relu.default` and for `aten.relu_.default`."""
    packet = getattr(target, "overloadpacket", None)
    name = str(packet.__name__ if packet is not None else getattr(target, "__name__", target))
    return name.rstrip("_") if name.endswith("_") and not name.endswith("__") else name


def layer_name(node: fx.Node, operator_: str) -> str:
    """The path of the user's module, with the operation's name where it is not a layer of torch."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return operator_
    path, kind = str(stack[-1][0]), stack[-1][1]
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    path = path.removeprefix("L['self']").lstrip(".")
    layer = kind.startswith("torch.nn.modules.") and ".container." not in kind
    return path if path and layer else f"{path}.{operator_}".lstrip(".")


def _schema(target: object) -> torch._C.FunctionSchema | None:
    return getattr(target, "_schema", None)


def _written(node: fx.Node) -> fx.Node | None:
    """The operand that a node writes in place, if any."""
    schema = _schema(node.target)
    if schema is None or not schema.is_mutable:
        return None
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            return found if isinstance(found, fx.Node) else None
    return None


def _views(node: fx.Node) -> Iterator[fx.Node]:
    """The operands whose memory the node's value may share."""
    if node.op != "call_function":
        return
    schema = _schema(node.target)
    shares = operator_name(node.target) in _MAY_ALIAS or (
        schema is not None and any(r.alias_info is not None for r in schema.returns)
    )
    if shares:
        yield from node.all_input_nodes


def overlapping_writes(graph: fx.Graph) -> bool:
    """Whether a tensor is written in place of which another view is read later."""
    group: dict[fx.Node, set[fx.Node]] = {}
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        mine = {node}
        for other in _views(node):
            mine |= group[other]
        for member in mine:
            group[member] = mine
    for node in graph.nodes:
        target = _written(node)
        if target is None:
            continue
        for other in group[target] - {target}:
            if place[other] < place[node] and any(place[user] > place[node] for user in other.users):
                return True
    return False


class Walk:
    """One pass over a traced program."""

    def __init__(self, narrow: bool, lenient: bool = False) -> None:
        self.lowering = Lowering()
        self.narrow, self.lenient = narrow, lenient
        self.refused: list[UnsupportedOperation] = []
        self.operations: list[Operation] = []
        self.doubtful: set[fx.Node] = set()
        self.rounded = False
        """Whether the program rounds to less than double precision on the way."""

    def run(self, module: fx.GraphModule, inputs: Sequence[Any]) -> list[Any]:
        """The program's outputs, flattened; `inputs` are the values of its placeholders in order."""
        values: dict[fx.Node, Any] = {}
        given = iter(inputs)
        needed = _needed(module.graph)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                values[node] = _attribute(module, str(node.target))
            elif node.op == "output":
                return list(pytree.tree_leaves(self._resolved(node.args[0], values)))
            elif self.lenient or node in needed:
                values[node] = self._step(node, values)
        raise ModelError("expected a traced program with an output, got one without")

    def _resolved(self, tree: Any, values: dict[fx.Node, Any]) -> Any:
        return fx.map_arg(tree, lambda node: values.get(node, UNKNOWN))

    def _step(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if node.target is operator.getitem and not node.users:
            return UNKNOWN
        name = operator_name(node.target)
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            name = operator_name(node.args[0].target)
        self.lowering.layer = layer_name(node, name)
        before = len(self.lowering.nodes)
        if any(source in self.doubtful for source in node.all_input_nodes):
            self.doubtful.add(node)
        try:
            args = self._resolved(list(node.args), values)
            kwargs = self._resolved(dict(node.kwargs), values)
            value, status = self._value(node, name, args, kwargs)
            remark = ""
        except Refusal as refusal:
            value, status, remark = self._refuse(node, name, str(refusal))
        except LipscopeError as error:
            if not (self.lenient or node in self.doubtful):
                raise
            value, status, remark = self._refuse(node, name, str(error))
        except MemoryError as error:
            raise ResourceError(f"not enough memory for {name} at layer {self.lowering.layer!r}") from error
        except _MALFORMED as error:
            if not (self.lenient or node in self.doubtful):
                raise ModelError(
                    f"cannot make sense of {node.target} at layer {self.lowering.layer!r}: {error}; please report the model"
                ) from error
            value, status, remark = self._refuse(node, name, str(error))
        written = _written(node)
        if written is not None:
            values[written] = value
        if any(isinstance(x, n.Discontinuous) for x in self.lowering.nodes[before:]) and status == "supported":
            status = "discontinuous"
        self._note(node, name, value, status, remark)
        return value

    def _note(self, node: fx.Node, name: str, value: Any, status: str, remark: str) -> None:
        if node.target is operator.getitem and status not in ("unsupported", "discontinuous"):
            return
        if name in _SILENT or (_schema(node.target) is None and node.target is not operator.getitem):
            return
        first = value[0] if isinstance(value, list | tuple) and value else value
        shape = tuple(first.shape) if isinstance(first, Ref | Tensor) else None
        self.operations.append(Operation(name, self.lowering.layer, shape, status, remark))

    def _refuse(self, node: fx.Node, name: str, reason: str) -> tuple[Any, str, str]:
        self.refused.append(UnsupportedOperation(name, self.lowering.layer, reason))
        self.doubtful.add(node)
        return self._stand_in(node.meta.get("val")), "unsupported", reason

    def _stand_in(self, fake: Any) -> Any:
        """Tensors of the shapes that tracing found, so that the operations behind are examined as well."""
        if isinstance(fake, list | tuple):
            return [self._stand_in(part) for part in fake]
        if not isinstance(fake, Tensor) or any(not isinstance(s, int) for s in fake.shape):
            return UNKNOWN
        shape: Shape = tuple(fake.shape)
        zero = torch.zeros((), dtype=torch.float32).expand(shape).numpy()
        return self.lowering.put(n.Constant, [], shape, value=zero)

    def _value(self, node: fx.Node, name: str, args: list[Any], kwargs: dict[str, Any]) -> tuple[Any, str]:
        """The node's value and its status."""
        leaves = pytree.tree_leaves((args, kwargs))
        if node.target is operator.getitem:
            return self._item(args[0], args[1]), "supported"
        if name == "_set_grad_enabled":
            return None, "folded"
        if name in _INLINED:
            branch = next(a for a in args if isinstance(a, fx.GraphModule))
            return self.run(branch, args[args.index(branch) + 1 :]), "supported"
        if name in RANDOM:
            HANDLERS[name](Call(self.lowering, _callable(node), {}, self.narrow))
        if any(leaf is UNKNOWN for leaf in leaves):
            if name not in HANDLERS:
                raise Refusal(_without(name))
            return self._stand_in(node.meta.get("val")), "supported"
        if not any(isinstance(leaf, Ref) for leaf in leaves):
            return _callable(node)(*args, **kwargs), "folded"
        return self._lowered(node, name, args, kwargs), "supported"

    def _item(self, sequence: Any, index: Any) -> Any:
        if isinstance(sequence, Unknown):
            return UNKNOWN
        value = sequence[index]
        return value() if callable(value) and not isinstance(value, Tensor) else value

    def _lowered(self, node: fx.Node, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        overload = getattr(node.target, "_overloadname", "")
        handler = HANDLERS.get(f"{name}.{overload}") or HANDLERS.get(name)
        schema = _schema(node.target)
        if schema is None and all(not isinstance(leaf, Ref) for leaf in pytree.tree_leaves((args, kwargs))):
            return _callable(node)(*args, **kwargs)
        if handler is None or schema is None:
            raise Refusal(_without(name))
        arguments: dict[str, Any] = {}
        whole = set()
        for position, argument in enumerate(schema.arguments):
            given = args[position] if position < len(args) else kwargs.get(argument.name, argument.default_value)
            arguments[argument.name] = given
            source = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            if isinstance(source, fx.Node) and _is_whole(_dtype(source)):
                whole.add(argument.name)
        dtype = _dtype(node)
        if dtype is not None and dtype.is_complex:
            raise Refusal("complex numbers are not understood; write real and imaginary parts as two tensors")
        if name in ("to", "_to_copy", "type_as") and dtype in (torch.float32, torch.float16, torch.bfloat16):
            self.rounded = True
        call = Call(self.lowering, _functional(node.target, overload), arguments, self.narrow, frozenset(whole), dtype)
        return handler(call)


def _callable(node: fx.Node) -> Callable[..., Any]:
    if not callable(node.target):
        raise Refusal(f"{node.target} is not an operation that torch knows here; install the package that defines it")
    return node.target


def _functional(target: Any, overload: str) -> Callable[..., Any]:
    """The form of an operation that does not write in place."""
    packet = getattr(target, "overloadpacket", None)
    if packet is None or not packet.__name__.endswith("_") or packet.__name__.endswith("__"):
        return target  # type: ignore[no-any-return]
    plain = getattr(torch.ops.aten, packet.__name__.rstrip("_"), None)
    found: Callable[..., Any] = getattr(plain, overload, target)
    return found


def _without(name: str) -> str:
    return WITHOUT_HANDLER.get(name, "there is no rule for this operation")


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


def _is_whole(dtype: torch.dtype | None) -> bool:
    return dtype is not None and not dtype.is_floating_point and not dtype.is_complex


def _attribute(module: fx.GraphModule, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found.detach().clone() if isinstance(found, Tensor) else found


def _needed(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that the output depends on; writes in place count as needed."""
    stack = [node for node in graph.nodes if node.op == "output" or _written(node) is not None]
    seen = set(stack)
    while stack:
        for source in stack.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return seen
