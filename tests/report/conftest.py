from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipscope.report import write_report
from report.samples import samples


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """A Chromium browser; tests that need it are skipped where there is none."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of every sample by its name, and `all` of them on one page."""
    folder = tmp_path_factory.mktemp("pages")
    bundles = {name: sample.write(folder / "bundles" / name) for name, sample in samples().items()}
    written = {}
    for name, sources in {
        **{name: [bundle] for name, bundle in bundles.items()},
        "all": list(bundles.values()),
    }.items():
        written[name] = folder / f"{name}.html"
        write_report(sources, written[name])
    return written
