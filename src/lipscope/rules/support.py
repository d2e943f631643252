"""Which question has an answer for which kind of node, and why not where it has none: the support table of the documentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lipscope.network.nodes import KINDS, AffineNode, Node
from lipscope.rules.questions import absolute, box_image, evaluate, gain, join, linear_part, roundings, slopes

QUESTIONS: dict[str, Any] = {
    "evaluate": evaluate, "linear_part": linear_part, "absolute": absolute, "roundings": roundings,
    "slopes": slopes, "box_image": box_image, "gain": gain, "join": join,
}  # fmt: skip
"""Every question by name."""

_SOURCES = {"Input", "Constant"}
_SEVERAL = {"Add", "Concat", "Maximum", "Multiply", "Divide", "MatMul"}


def _not_affine(kind: type[Node]) -> str:
    if kind.__name__ in _SOURCES:
        return "it reads nothing, so there is no map"
    return "" if issubclass(kind, AffineNode) else "it is not an affine map"


def _not_entrywise(kind: type[Node]) -> str:
    return "" if kind.__name__ == "Elementwise" else "it is not a function of single entries"


def _no_gain(kind: type[Node]) -> str:
    if kind.__name__ in _SOURCES:
        return "it reads nothing; its constant is 1 (Input) or 0 (Constant)"
    if kind.__name__ in _SEVERAL:
        return "it has several inputs; ask join"
    if kind.__name__ == "Elementwise":
        return "its slopes scale the rows of the affine map before it"
    return "it is affine; its constant is the norm of its linear part" if issubclass(kind, AffineNode) else ""


def _no_join(kind: type[Node]) -> str:
    return "" if kind.__name__ in _SEVERAL | {"Discontinuous"} else "it has at most one input"


def _always(kind: type[Node]) -> str:
    return ""


_REASONS: dict[str, Callable[[type[Node]], str]] = {
    "evaluate": _always, "linear_part": _not_affine, "absolute": _not_affine, "roundings": _not_affine,
    "slopes": _not_entrywise, "box_image": _always, "gain": _no_gain, "join": _no_join,
}  # fmt: skip


def reason_without_rule(question: str, kind: type[Node]) -> str:
    """Why `question` has no rule for `kind`; empty where it has to have one."""
    return _REASONS[question](kind)


def has_rule(question: str, kind: type[Node]) -> bool:
    """Whether a rule is registered for the kind or a class that it is derived from."""
    dispatch = QUESTIONS[question].dispatch
    return dispatch(kind) is not dispatch(object)


def support_table() -> dict[str, dict[str, str]]:
    """For each kind and question `yes`, or the reason why there is no rule."""
    return {
        name: {question: reason_without_rule(question, kind) or "yes" for question in QUESTIONS}
        for name, kind in KINDS.items()
    }
