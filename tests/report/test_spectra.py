"""Spectra in Chromium: charts are drawn, nothing is fetched, and the page fits a telephone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from frequency.cases import loaded, noise, seeded
from lipscope.frequency.bands import band_masks
from lipscope.frequency.data import Data
from lipscope.frequency.spectrum import Wishes, spectrum
from lipscope.report import write_report
from report.test_browser import opened

pytestmark = pytest.mark.chromium


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spectra")
    wishes = Wishes(check=False, budget=1e6, method="product", heat_norm=1.0, depth_samples=4)
    for name in ("before", "after <b>"):
        network = seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)))
        graph, layout = loaded(network, (1, 6, 5))
        data = Data(noise(6, 1, 6, 5), torch.arange(6) % 3, "noise", tuple(range(6)))
        spectrum(graph, data, layout, band_masks((6, 5), 3), wishes).save(folder / name)
    write_report([folder / "before", folder / "after <b>"], folder / "page.html")
    return folder / "page.html"


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_charts_are_drawn_and_fit(chromium: Any, page: Path, width: int, scheme: str) -> None:
    with opened(chromium, page, width, scheme) as shown:
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        assert (
            shown.locator("[data-figure]").count() == 10
        )  # gains, profile, importance, noise; a heat map, lines and matrices for each
        assert shown.locator("[data-figure=s-gains] .scatterlayer .trace").count() == 4
        assert shown.locator("[data-figure=s-profile] .errorbar").count() > 0
        assert "after <b>" in shown.locator("[data-figure=s-gains] .legend").text_content()
        assert shown.locator("[data-figure=s-noise] .errorbar").count() == 6
        assert shown.locator("[data-figure=s1-transfer] .heatmaplayer .hm").count() == 2
        lines = shown.locator("[data-figure=s1-depth] .scatterlayer .trace .js-line").evaluate_all(
            "all => all.map(e => getComputedStyle(e).stroke)"
        )
        assert len(set(lines)) == 3  # colours that the page mixes, none of them black
        assert "rgb(0, 0, 0)" not in lines
