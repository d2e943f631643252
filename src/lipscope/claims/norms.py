"""The norms in which a constant is measured."""

from __future__ import annotations

from typing import Literal, get_args

from lipscope.claims.errors import UsageError

Norm = Literal["l1", "l2", "linf"]
NORMS: tuple[Norm, ...] = get_args(Norm)
DUAL: dict[Norm, Norm] = {"l1": "linf", "l2": "l2", "linf": "l1"}
"""The dual norm: the constant of `x -> <a, x>` in the norm p is the dual norm of a."""


def parse_norm(text: str) -> Norm:
    """The norm that `text` names.

    Raises:
        UsageError: there is no such norm.
    """
    if text not in NORMS:
        raise UsageError(f"expected a norm out of {', '.join(NORMS)}, got {text!r}")
    return text
