"""What a folder of `lipscope bound --output pairs` says: which differences `pairs.json` lists, and what their own bundles claim and prove."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lipscope.claims.errors import UsageError
from lipscope.report.documents import read_bundle, read_document
from lipscope.report.facts import Facts, gather

MARKER = "pairs.json"
_PAIR = re.compile(r"[0-9]+-[0-9]+")


@dataclass(frozen=True)
class PairsFacts:
    """All differences of two outputs of one network.

    Attributes:
        folder: where they are, as the user named it.
        whole: the bundle about all outputs together.
        rows: those about the differences, in the order of the list; numbers and statuses are the bundles' own, as everywhere on the page.
        interrupted: whether the user stopped the search, so that differences are missing.
    """

    folder: Path
    whole: Facts
    rows: tuple[Facts, ...]
    interrupted: bool


def is_pairs(folder: Path) -> bool:
    """Whether this is such a folder."""
    return (folder / MARKER).is_file()


def gather_pairs(folder: Path) -> PairsFacts:
    """The facts of such a folder. Raises UsageError if the list or one of its bundles cannot be read."""
    table = read_document(folder, MARKER)
    names = [row["pair"].text() for row in table["pairs"].items()]
    for name in names:
        if not _PAIR.fullmatch(name):
            raise UsageError(
                f"expected pairs I-J in {folder / MARKER}, got {name!r}; write the folder again with lipscope bound -o"
            )
    rows = tuple(gather(read_bundle(folder / name)) for name in names)
    return PairsFacts(folder, gather(read_bundle(folder / "all")), rows, table["interrupted"].flag())
