"""One self-contained page about bundles, spectra and training runs: reads files, knows no torch, needs no network to be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lipscope.certificate.files import write_file
from lipscope.claims.errors import UsageError
from lipscope.dynamics.store import is_run, open_run
from lipscope.report.documents import read_bundle
from lipscope.report.facts import gather
from lipscope.report.page import render
from lipscope.report.pairs import gather_pairs, is_pairs
from lipscope.report.runs import RunFacts, gather_run
from lipscope.report.spectra import gather_spectrum, is_spectrum

__all__ = ["write_report"]


def write_report(folders: Sequence[Path], output: Path) -> None:
    """Write one HTML page about bundles, spectra and runs that can be read offline; the same folders give the same bytes.

    The page proves nothing itself: it says what the bundles claim and what the checker's verdict in them says, and
    it recomputes the digests of the files to see that the verdict can be about them.

    Args:
        folders: that `lipscope bound -o`, `lipscope spectrum -o` or the training observer wrote, in the order in which they are shown;
            of one with all differences of two outputs, the bundle about all outputs, and a table of the others.
        output: the page to write; its folder must exist.

    Raises:
        UsageError: no folder was given, one of them cannot be read, or the page cannot be written.
        ResourceError: the disk is full; nothing is left behind.
    """
    if not folders:
        raise UsageError(
            "expected at least one bundle or run to report on, got none; name the folder that lipscope bound -o wrote"
        )
    places = [Path(folder) for folder in folders]
    differences = [gather_pairs(place) for place in places if is_pairs(place)]
    tables = {pairs.folder: pairs.whole for pairs in differences}
    bundles = [
        tables[place] if place in tables else gather(read_bundle(place))
        for place in places
        if not (is_run(place) or is_spectrum(place))
    ]
    spectra = [gather_spectrum(place, f"s{k}") for k, place in enumerate(filter(is_spectrum, places), start=1)]
    runs = [_run(place, f"r{k}") for k, place in enumerate(filter(is_run, places), start=1)]
    write_file(Path(output), render(bundles, runs, spectra=spectra, differences=differences).encode())


def _run(place: Path, name: str) -> RunFacts:
    with open_run(place) as run:
        return gather_run(run, name)
