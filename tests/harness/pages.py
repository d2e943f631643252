"""The documentation's pages as the tests see them: fenced blocks and sections."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(page: str) -> str:
    """The text of a page by its path from the repository's root."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block, in order."""
    return FENCE.findall(read(page))


def section(page: str, heading: str) -> str:
    """What stands below a heading of the second level.

    Raises:
        AssertionError: there is no such heading, or there are several.
    """
    found = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", read(page), re.MULTILINE | re.DOTALL)
    if len(found) != 1:
        raise AssertionError(f"expected one heading {heading!r} in {page}, got {len(found)}")
    return str(found[0])
