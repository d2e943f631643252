"""One self-contained page about one or several bundles: reads files, knows no torch, needs no network to be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lipscope.certificate.files import write_file
from lipscope.claims.errors import UsageError
from lipscope.report.documents import read_bundle
from lipscope.report.facts import gather
from lipscope.report.page import render

__all__ = ["write_report"]


def write_report(bundles: Sequence[Path], output: Path) -> None:
    """Write one HTML page about bundles that can be read offline; the same bundles give the same bytes.

    The page proves nothing itself: it says what the bundles claim and what the checker's verdict in them says, and
    it recomputes the digests of the files to see that the verdict can be about them.

    Args:
        bundles: folders that `lipscope bound -o` wrote, in the order in which they are shown.
        output: the page to write; its folder must exist.

    Raises:
        UsageError: no bundle was given, one of them cannot be read, or the page cannot be written.
        ResourceError: the disk is full; nothing is left behind.
    """
    if not bundles:
        raise UsageError(
            "expected at least one bundle to report on, got none; name the folder that lipscope bound -o wrote"
        )
    facts = [gather(read_bundle(Path(folder))) for folder in bundles]
    write_file(Path(output), render(facts).encode())
