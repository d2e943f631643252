"""A folder of all differences of two outputs: one bundle in full, the others a table that trusts no more than the bundles do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lipscope.claims.errors import UsageError
from lipscope.report import write_report
from report.reading import Page
from report.samples import Sample

PAIRS = {"0-1": 8.5, "0-2": 7.25, "1-2": 6.125}


def written(folder: Path, pairs: list[str] | None = None) -> Path:
    Sample().write(folder / "all")
    for name, lower in PAIRS.items():
        Sample(output=name, lower=lower, checked=name != "1-2").write(folder / name)
    rows = [{"pair": name, "status": "certified", "lower": 0.0, "upper": 0.0} for name in pairs or PAIRS]
    (folder / "pairs.json").write_text(json.dumps({"pairs": rows, "interrupted": False}))
    return folder


def test_the_differences_are_a_table(tmp_path: Path) -> None:
    folder = written(tmp_path / "pairs")
    claim = folder / "0-2" / "claim.json"
    claim.write_text(claim.read_text() + " ")  # damage shows, whatever pairs.json says
    write_report([folder], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    table = page.text.split("Differences of two outputs of classifier.onnx", 1)[1].split("status", 1)[1]
    rows = [
        table.split(a, 1)[1].split(b, 1)[0] for a, b in zip(PAIRS, [*list(PAIRS)[1:], "classifier.onnx"], strict=True)
    ]
    assert "8.5" in rows[0]
    assert "certified" in rows[0]
    assert "damaged" in rows[1]
    assert "certified" not in rows[1]
    assert "6.125" in rows[2]
    assert "not checked" in rows[2]
    assert "0.0" not in rows[0]  # the numbers are those of the bundles
    assert page.html.count("<table") == 1 + Page(alone(tmp_path)).html.count("<table")


def alone(folder: Path) -> Path:
    """The page of the bundle about all outputs only."""
    write_report([folder / "pairs" / "all"], folder / "alone.html")
    return folder / "alone.html"


def test_names_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected pairs I-J"):
        write_report([written(tmp_path / "pairs", ["../0-1"])], tmp_path / "page.html")
    (tmp_path / "pairs" / "pairs.json").write_text("[]")
    with pytest.raises(UsageError, match="expected an object"):
        write_report([tmp_path / "pairs"], tmp_path / "page.html")
