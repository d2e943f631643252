"""What is said about a network: the claim, its two sides, and how sure they are."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from lipscope.claims.directions import Directions
from lipscope.claims.errors import UsageError
from lipscope.claims.norms import Norm
from lipscope.claims.regions import Everywhere, Region

Status = Literal["certified", "computed", "no-bound", "unbounded"]


@dataclass(frozen=True)
class Output:
    """What of the network's value counts: `all` of it, entry `first`, or entry `first` minus entry `second`."""

    first: int | None = None
    second: int | None = None

    @property
    def text(self) -> str:
        """`all`, `I` or `I-J`."""
        if self.first is None:
            return "all"
        return str(self.first) if self.second is None else f"{self.first}-{self.second}"


def parse_output(text: str, size: int) -> Output:
    """The output that `all`, `I` or `I-J` names, for a network with `size` outputs, counted from 0.

    Raises:
        UsageError: the text is none of these, an index is too large, or the two are equal.
    """
    if text == "all":
        return Output()
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not match:
        raise UsageError(f"expected all, I or I-J as output, counted from 0, got {text!r}")
    indices = [int(part) for part in match.groups() if part is not None]
    if max(indices) >= size:
        raise UsageError(f"expected an output below {size} (the model has {size}, counted from 0), got {text!r}")
    if len(indices) == 2 and indices[0] == indices[1]:
        raise UsageError(f"expected two different outputs, got {text!r}, whose difference is 0")
    return Output(*indices)


@dataclass(frozen=True)
class Claim:
    """The question: in which norm, where, of which output, and between which inputs (any two, unless directions are given)."""

    norm: Norm = "l2"
    region: Region = field(default_factory=Everywhere)
    output: Output = field(default_factory=Output)
    directions: Directions | None = None
