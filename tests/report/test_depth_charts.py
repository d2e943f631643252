"""Charts of transfer between bands and of noise: every number in them is the one in the file, or follows from it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from frequency.cases import loaded, noise, seeded
from lipscope.frequency.bands import band_masks
from lipscope.frequency.data import Data
from lipscope.frequency.spectrum import Wishes, spectrum
from lipscope.report import depth_charts, spectrum_charts, write_report
from lipscope.report.charts import colour
from lipscope.report.spectra import SpectrumFacts, gather_spectrum


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A strided network, whose second grid is so coarse that it has no frequency in some rings."""
    network = seeded(
        lambda: nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv1d(2, 2, 3, stride=4), nn.Flatten(), nn.Linear(6, 3))
    )  # fmt: skip
    graph, layout = loaded(network, (1, 12))
    data = Data(noise(6, 1, 12), torch.arange(6) % 3, "noise", tuple(range(6)))
    wishes = Wishes(check=False, budget=1e6, method="product", heat_norm=1.0, importance=False)
    place = tmp_path_factory.mktemp("depth") / "out"
    spectrum(graph, data, layout, band_masks((12,), 4), wishes).save(place)
    return place


@pytest.fixture
def facts(folder: Path) -> SpectrumFacts:
    return gather_spectrum(folder, "s1")


def stored(folder: Path) -> Any:
    return json.loads((folder / "spectrum.json").read_text())


def test_lines_are_the_gains_of_the_file(folder: Path, facts: SpectrumFacts) -> None:
    figure: Any = depth_charts.depth(facts, [facts])
    layers = stored(folder)["transfer"]
    assert len(figure["data"]) == 4 and figure["data"][0]["x"] == [1, 2, 3]
    for band, line in enumerate(figure["data"]):
        assert line["y"] == [layer["gain"][band] for layer in layers]
        assert line["error_y"]["array"] == [layer["gain_se"][band] for layer in layers]
    for layer in layers:
        assert all(abs(g - sum(row)) < 1e-12 * g for g, row in zip(layer["gain"], layer["energy"], strict=True))
    assert figure["data"][0]["line"]["color"] == colour("hot") | {"to": "cold", "share": 0.0}
    assert figure["data"][3]["line"]["color"]["share"] == 1.0


def test_matrices_are_shares_with_gaps_where_a_coarse_grid_has_no_frequency(folder: Path, facts: SpectrumFacts) -> None:
    figure: Any = depth_charts.transfer(facts)
    layers = stored(folder)["transfer"]
    assert [one["xaxis"] for one in figure["data"]] == ["x", "x2", "x3"]
    assert [len(one["z"][0]) for one in figure["data"]] == [4, 4, 4]
    assert len(layers[2]["high"]) < 4
    for one, layer in zip(figure["data"], layers, strict=True):
        present = [row["high"] in layer["high"] for row in stored(folder)["bands"]]
        for shares, energies in zip(one["z"], layer["energy"], strict=True):
            assert [s is not None for s in shares] == present
            known = [s for s in shares if s is not None]
            assert abs(sum(known) - 1) < 1e-12
            assert known == [e / sum(energies) for e in energies]
    axes = [figure["layout"][name]["domain"] for name in ("xaxis", "xaxis2", "xaxis3")]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(axes))
    assert [note["text"].split(".")[0] for note in figure["layout"]["annotations"]] == ["1", "2", "3"]


def test_a_band_that_does_not_arrive_has_neither_a_point_nor_a_share(folder: Path, tmp_path: Path) -> None:
    document = stored(folder)
    document["transfer"][1]["energy"][2] = [0.0] * 4
    document["transfer"][1]["gain"][2] = 0.0
    (tmp_path / "spectrum.json").write_text(json.dumps(document))
    facts = gather_spectrum(tmp_path, "s1")
    lines: Any = depth_charts.depth(facts, [facts])
    matrices: Any = depth_charts.transfer(facts)
    assert lines["data"][2]["y"][1] is None and matrices["data"][1]["z"][2] == [None] * 4


def test_of_deep_networks_so_many_layers_are_drawn(folder: Path, tmp_path: Path) -> None:
    document = stored(folder)
    document["transfer"] = [document["transfer"][0] | {"layer": f"<i>{k}"} for k in range(40)]
    (tmp_path / "spectrum.json").write_text(json.dumps(document))
    facts = gather_spectrum(tmp_path, "s1")
    numbers = [number for number, _ in depth_charts.chosen(facts)]
    assert len(numbers) == len(set(numbers)) == depth_charts.MOST
    assert (numbers[0], numbers[-1]) == (1, 40) and numbers == sorted(numbers)
    figure: Any = depth_charts.transfer(facts)
    assert all("<" not in note["text"] for note in figure["layout"]["annotations"])
    bottoms = [figure["layout"][key]["domain"][0] for key in figure["layout"] if key.startswith("yaxis")]
    assert min(bottoms) >= 0
    write_report([tmp_path], tmp_path / "page.html")
    assert "12 of 40 layers" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_networks_side_by_side_share_their_scales(folder: Path, facts: SpectrumFacts, tmp_path: Path) -> None:
    document = stored(folder)
    for layer in document["transfer"]:
        layer["gain"] = [100 * g for g in layer["gain"]]
    document["heatmap"]["values"] = [v + 3 for v in document["heatmap"]["values"]]
    (tmp_path / "spectrum.json").write_text(json.dumps(document))
    other = gather_spectrum(tmp_path, "s2")
    ranges = [depth_charts.depth(one, [facts, other])["layout"]["yaxis"]["range"] for one in (facts, other)]  # type: ignore[index]
    assert ranges[0] == ranges[1]
    assert facts.heat is not None and other.heat is not None
    maps: Any = [spectrum_charts.heat(one, [facts.heat, other.heat]) for one in (facts.heat, other.heat)]
    values = [v for one in (facts, other) for row in one.heat.values for v in row]  # type: ignore[union-attr]
    assert {(m["data"][0]["zmin"], m["data"][0]["zmax"]) for m in maps} == {(min(values), max(values))}
    alone: Any = spectrum_charts.heat(facts.heat)
    assert alone["data"][0]["zmax"] < maps[0]["data"][0]["zmax"]


def test_noise_has_a_bar_for_each_law_and_the_bound_in_words(
    folder: Path, facts: SpectrumFacts, tmp_path: Path
) -> None:
    figure: Any = depth_charts.noise([facts])
    found = stored(folder)["noise"]
    assert figure["data"][0]["x"] == ["white", "1/f", "1/f²"]
    assert figure["data"][0]["y"] == [n["response"] for n in found["responses"]]
    assert figure["data"][0]["error_y"]["array"] == [n["response_se"] for n in found["responses"]]
    assert facts.white_bound == found["white_bound"] >= found["responses"][0]["response"]
    write_report([folder], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "For white noise the bounds of the bands allow at most" in text and "Through the layers" in text
    del found["white_bound"]
    (tmp_path / "spectrum.json").write_text(json.dumps(stored(folder) | {"noise": found, "transfer": []}))
    write_report([tmp_path], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "allow at most" not in text and "Through the layers" not in text


def test_damaged_figures_are_refused_with_their_place(folder: Path, tmp_path: Path) -> None:
    document = stored(folder)
    document["transfer"][0]["energy"][0][0] = -1.0
    (tmp_path / "spectrum.json").write_text(json.dumps(document))
    with pytest.raises(Exception, match=r"transfer\[0\] energy"):
        gather_spectrum(tmp_path, "s1")
