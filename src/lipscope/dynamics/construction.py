"""What a model is made of beside the numbers in its parameters and buffers, so that a change of it is seen.

A twin shares the numbers. It knows nothing of a module that is exchanged, of a parameter that is replaced by another object, or of a
plain attribute that the training changes (an annealed factor); what is read of it then is about a model that is no more.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

INTERNAL = frozenset(nn.Module().__dict__) | {"_compiled_call_impl", "_trainer", "_fabric", "_current_fx_name"}
"""Attributes that are torch's own, or Lightning's notes about where in its loop it is."""

LONGEST = 100
"""Lists and dictionaries with more entries than this are data, not settings."""

FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)

Structure = list[tuple[int, tuple[tuple[str, int], ...], tuple[str, ...]]]
"""For every module its identity, its parameters by name, and the names of its buffers."""

Settings = list[tuple[str, object]]
"""Plain attributes of all modules, in order."""


def structure(model: nn.Module) -> Structure:
    """Compare two of them while the first one's modules and parameters are still there."""
    return [(id(m), tuple((k, id(p)) for k, p in m._parameters.items()), tuple(m._buffers)) for m in model.modules()]


def difference(model: nn.Module, names: Mapping[int, str], before: Structure) -> str:
    """The first module or parameter that is not what it was, in words; `names` are those of the modules before."""
    now = structure(model)
    at = {id(module): name for name, module in model.named_modules()}
    for old, new in zip(before, now, strict=False):
        if old[0] != new[0]:
            return f"module {names[old[0]]!r} is another one"
        if old != new:
            was, has = dict(old[1]), dict(new[1])
            changed = [k for k in {**was, **has} if was.get(k) != has.get(k)] or sorted({*old[2]} ^ {*new[2]})
            name = ".".join(part for part in (at[new[0]], changed[0]) if part)
            return (
                f"{name!r} is another one" if changed[0] in was and changed[0] in has else f"{name!r} has come or gone"
            )
    return "modules have come or gone"


def settings(model: nn.Module) -> Settings:
    """Numbers, words, functions and short collections of them, and tensors that are neither parameters nor computed."""
    found: Settings = []
    for module in model.modules():
        for key, value in module.__dict__.items():
            if key not in INTERNAL:
                known = _settled(value)
                if known is not None:
                    found.append((key, known))
    return found


def adopt(twin: nn.Module, live: nn.Module) -> None:
    """Give the modules of a twin the settings of their originals, of which it has as many in the same order."""
    for own, module in zip(twin.modules(), live.modules(), strict=True):
        for key, value in module.__dict__.items():
            if key not in INTERNAL and _settled(value) is not None:
                own.__dict__[key] = value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for key in [k for k in own.__dict__ if k not in module.__dict__ and _settled(own.__dict__[k]) is not None]:
            del own.__dict__[key]


def _settled(value: object) -> tuple[object, ...] | None:
    """What to compare a setting by; None for what is no setting."""
    if value is None or isinstance(value, bool | int | float | complex | str):
        return type(value).__name__, value
    if isinstance(value, FUNCTIONS):
        return "function", id(value)
    if isinstance(value, Tensor):
        return ("tensor", id(value), value._version) if value.is_leaf and not isinstance(value, nn.Parameter) else None
    if isinstance(value, list | tuple | set) and len(value) <= LONGEST:
        return _all(type(value).__name__, value)
    if isinstance(value, dict) and len(value) <= LONGEST:
        return _all("dict", (x for pair in value.items() for x in pair))
    return None


def _all(kind: str, values: Iterable[object]) -> tuple[object, ...] | None:
    """Those of all entries, None if one of them is no setting."""
    found = [_settled(v) for v in values]
    return None if None in found else (kind, *found)
