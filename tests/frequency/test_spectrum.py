"""The whole of `lipscope spectrum`: the object it prints, what it stores, how it is checked, shown and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipscope.frequency.spectrum as module
from frequency.cases import loaded, noise, seeded
from harness.bundle_writer import seal
from lipscope.claims.errors import InternalError, UsageError
from lipscope.cli import main
from lipscope.frequency.bands import band_masks, custom_bands
from lipscope.frequency.data import Data
from lipscope.frequency.spectrum import Spectrum, Wishes, spectrum
from lipscope.report import write_report
from lipscope.report.spectra import gather_spectrum

KEYS = {"low", "high", "measured", "measured_se", "proved", "status"}


def network() -> nn.Module:
    """A classifier of 6 x 5 images with three classes."""
    return seeded(lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(90, 3)))


@pytest.fixture(scope="module")
def result() -> Spectrum:
    graph, layout = loaded(network(), (1, 6, 5))
    y = torch.arange(12) % 3
    data = Data(noise(12, 1, 6, 5), y, "noise", tuple(range(100, 112)), ("a note",))
    wishes = Wishes(heat_norm=1.0, budget=1e6, method="product")
    return spectrum(graph, data, layout, band_masks((6, 5), 3), wishes)


@pytest.fixture
def folder(result: Spectrum, tmp_path: Path) -> Path:
    result.save(tmp_path / "out")
    return tmp_path / "out"


def test_the_object_has_what_it_should(result: Spectrum) -> None:
    found: Any = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert {"model", "data", "bands", "total", "importance"} <= set(found)
    assert len(found["bands"]) == 3 and all(set(row) >= KEYS for row in found["bands"])
    for row in (*found["bands"], found["total"]):
        assert row["status"] == "certified" and row["measured"] <= row["proved"] * (1 + 1e-12)
        assert row["measured_mean"] <= row["measured"] and row["measured_at"] in range(100, 112)
    measured = [row["measured"] for row in found["bands"]]
    assert max(measured) <= found["total"]["measured"] * (1 + 1e-12)
    assert max(row["proved"] for row in found["bands"]) <= found["total"]["proved"]
    detail = found["importance_detail"]
    assert found["importance"] == detail["values"] and len(detail["se"]) == 3
    assert len(found["heatmap"]["values"]) == 6 and len(found["heatmap"]["values"][0]) == 5
    assert set(found["gradient"]["classes"]) == {"0", "1", "2"}
    assert abs(sum(found["gradient"]["power"]) - found["gradient"]["total"]) < 1e-12
    assert abs(found["noise"]["responses"][0]["response"] - found["gradient"]["total"]) < 1e-12
    assert found["noise"]["white_bound"] >= found["noise"]["responses"][0]["response"]
    assert [layer["kind"] for layer in found["transfer"]] == ["Conv", "relu"]
    assert found["notes"] == ["a note"] and not found["interrupted"]


def test_a_folder_holds_bundles_that_the_check_accepts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {p.name for p in folder.iterdir()} == {"spectrum.json", "total", "band-0", "band-1", "band-2"}
    with pytest.raises(SystemExit) as left:
        main(["check", str(folder), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert left.value.code in (0, None)
    assert found["accepted"] and set(found["bundles"]) == {"total", "band-0", "band-1", "band-2"}
    claim = json.loads((folder / "band-1" / "claim.json").read_text())
    claim["upper"]["value"] = {"float": "0x1p-30"}
    (folder / "band-1" / "claim.json").write_text(json.dumps(claim))
    (folder / "band-1" / "verdict.json").unlink()
    seal(folder / "band-1")
    with pytest.raises(SystemExit) as left:
        main(["check", str(folder)])
    assert left.value.code == 1
    assert "REJECTED" in capsys.readouterr().err


def test_saving_replaces_a_spectrum_and_nothing_else(result: Spectrum, folder: Path, tmp_path: Path) -> None:
    (folder / "stale").touch()
    result.save(folder)
    assert not (folder / "stale").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").touch()
    with pytest.raises(UsageError, match="nothing was overwritten"):
        result.save(other)


def test_the_page_shows_spectra_side_by_side(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "twin")
    page = tmp_path / "page.html"
    write_report([folder, tmp_path / "twin"], page)
    text = page.read_text(encoding="utf-8")
    for words in ("2 spectra", "Gains of the bands", "Radial profile", "Spectral importance", "Fourier heat map, twin"):
        assert words in text
    first = page.read_bytes()
    write_report([folder, tmp_path / "twin"], page)
    assert page.read_bytes() == first


def test_the_page_believes_the_verdicts_alone(folder: Path) -> None:
    assert [row.proved.status for row in gather_spectrum(folder, "s1").rows] == ["certified"] * 3
    (folder / "band-0" / "verdict.json").unlink()
    shutil.rmtree(folder / "band-1")
    document = json.loads((folder / "spectrum.json").read_text())
    document["bands"][2]["proved"] *= 0.5
    (folder / "spectrum.json").write_text(json.dumps(document))
    statuses = [row.proved.status for row in gather_spectrum(folder, "s1").rows]
    assert statuses == ["computed", "computed", "damaged"]
    assert gather_spectrum(folder, "s1").rows[2].proved.value is None


def test_a_bundle_about_other_frequencies_is_not_believed(folder: Path) -> None:
    document = json.loads((folder / "spectrum.json").read_text())
    narrow = [i for i in range(3) if "directions" in json.loads((folder / f"band-{i}" / "claim.json").read_text())]
    assert narrow
    document["bands"][narrow[0]]["frequencies"] += 1
    (folder / "spectrum.json").write_text(json.dumps(document))
    assert gather_spectrum(folder, "s1").rows[narrow[0]].proved.status == "damaged"


def test_the_page_of_one_band_says_what_it_is_about(folder: Path, tmp_path: Path) -> None:
    narrow = next(p for p in sorted(folder.glob("band-*")) if "directions" in (p / "claim.json").read_text())
    write_report([narrow], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "differ in this band of" in text and "changes in a band of" in text


def test_spectra_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    (folder / "spectrum.json").write_text("{")
    with pytest.raises(UsageError, match="lipscope spectrum -o"):
        write_report([folder], tmp_path / "page.html")
    (folder / "spectrum.json").write_text('{"schema": "other/1"}')
    with pytest.raises(UsageError, match="other/1"):
        write_report([folder], tmp_path / "page.html")


def small(bands: Any = None, **wishes: Any) -> Spectrum:
    graph, layout = loaded(network(), (1, 6, 5))
    data = Data(noise(4, 1, 6, 5), None, "noise", (0, 1, 2, 3))
    return spectrum(graph, data, layout, bands or band_masks((6, 5), 2), Wishes(budget=1e6, method="product", **wishes))


def test_what_is_not_wanted_or_not_possible_is_null() -> None:
    found: Any = small(bounds=False, depth_samples=0).to_json()
    assert found["importance"] is None and found["heatmap"] is None and found["transfer"] == []
    assert {row["status"] for row in found["bands"]} == {"no-bound"} and found["total"]["proved"] is None
    assert found["noise"]["white_bound"] is None and found["notes"] == []
    assert small(check=False).to_json()["total"]["status"] == "computed"  # type: ignore[index]


def test_custom_bands_have_no_transfer() -> None:
    mask = band_masks((6, 5), 2).masks
    assert small(custom_bands(mask), check=False).layers == ()


def test_a_bound_below_a_measurement_is_never_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.sensitivity

    def doubled(*arguments: Any, **more: Any) -> Any:
        found = real(*arguments, **more)
        return type(found)(100 * found.gains, found.total, found.power, found.exact)

    monkeypatch.setattr(module, "sensitivity", doubled)
    with pytest.raises(InternalError, match="below the measured gain"):
        small()


def test_an_interruption_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "prove_band_bounds", stopped)
    found = small()
    assert found.interrupted and found.bounds is None and found.measured.gains.shape == (4, 2)


# -------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(network().float(), (torch.zeros(1, 1, 6, 5),)), path)
    np.savez(tmp_path / "data.npz", x=noise(9, 6, 5).numpy(), y=np.arange(9) % 3)
    return str(path)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    return int(left.value.code or 0)


def test_the_command(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out, page = tmp_path / "data.npz", tmp_path / "out", tmp_path / "page.html"
    code = run(
        "spectrum",
        model,
        "--data",
        data,
        "--bands",
        2,
        "--method",
        "product",
        "-o",
        out,
        "--report",
        page,
        "--json",
        "--seed",
        3,
    )
    captured = capsys.readouterr()
    assert code == 0, captured.err
    found = json.loads(captured.out)
    assert [row["status"] for row in found["bands"]] == ["certified"] * 2
    assert found == json.loads((out / "spectrum.json").read_text())
    assert page.is_file() and found["data"]["samples"] == 9
    assert "200 examples were asked for" in found["notes"][0]


@pytest.mark.parametrize(("channels", "grid"), [(2, "31"), (7, "31")])
def test_the_command_knows_signals_by_their_convolutions(
    channels: int, grid: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = nn.Sequential(nn.Conv1d(channels, 2, 3), nn.Flatten(), nn.Linear(58, 2)).eval()
    torch.export.save(torch.export.export(network, (torch.zeros(1, channels, 31),)), tmp_path / "signals.pt2")
    np.savez(tmp_path / "[b]signals.npz", x=noise(4, channels, 31).numpy())
    assert (
        run(
            "spectrum",
            tmp_path / "signals.pt2",
            "--data",
            tmp_path / "[b]signals.npz",
            "--method",
            "product",
            "--no-check",
        )
        == 0
    )
    shown = capsys.readouterr().err
    assert f"of a {grid} grid" in shown and "[b]signals" in shown


def test_the_commands_options(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, page = tmp_path / "data.npz", tmp_path / "page.html"
    code = run("spectrum", model, "--data", data, "--kind", "round", "--method", "product", "--samples", 4, "--no-importance", "--no-check",
               "--mean", 0.5, "--std", 0.5, "--report", page, "--json")  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0, captured.err
    found = json.loads(captured.out)
    assert found["kind"] == "round" and found["data"]["samples"] == 4 and found["importance"] is None
    assert {row["status"] for row in found["bands"]} == {"computed"} and page.is_file()
    plain = small(bounds=False).to_json()
    assert found["total"]["measured"] > 1.2 * plain["total"]["measured"]  # type: ignore[index]  # divided by 0.5
    assert run("spectrum", model, "--data", data, "--samples", 4, "--no-check", "--method", "product") == 0
    assert "cycles per sample" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "nowhere"], "digits, fashion-mnist"),
        (["--data", "digits"], "on the grid"),
        (["--data", "DATA", "--kind", "oval"], "square, round, octave"),
        (["--data", "DATA", "--bands", "0"], "at least one band"),
        (["--data", "DATA", "--filler", "noise"], "filler"),
        (["--data", "DATA", "--budget", "0"], "budget"),
        (["--data", "DATA", "--heatmap", "0"], "--heatmap"),
        (["--data", "DATA", "--heatmap-frequencies", "3"], "--heatmap NORM"),
        (["--data", "DATA", "--method", "magic"], "method out of"),
        (["--data", "DATA", "--grid", "x"], "--grid"),
        (["--data", "DATA", "--grid", "7,7"], "divides"),
        (["--data", "DATA", "-o", "."], "choose another"),
    ],
)
def test_wrong_use(
    options: list[str], words: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(tmp_path / "data.npz") if o == "DATA" else o for o in options]
    assert run("spectrum", model, *options) == 2
    assert words in capsys.readouterr().err.replace("\n", " ")


def test_regressions_have_importance_and_a_map_of_changes(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = noise(9, 6, 5)
    for name, targets in (("three", noise(9, 3, seed=4)), ("two", noise(9, 2, seed=4))):
        np.savez(tmp_path / f"{name}.npz", x=x.numpy(), y=targets.numpy())
    common = ["--bands", 2, "--method", "product", "--no-check", "--heatmap", 2, "--heatmap-frequencies", 7, "--json"]
    assert run("spectrum", model, "--data", tmp_path / "three.npz", *common, "-o", tmp_path / "out") == 0
    found = json.loads(capsys.readouterr().out)
    with torch.no_grad():
        outputs = network().float().double()(x[:, None])
    detail = found["importance_detail"]
    error = (outputs - noise(9, 3, seed=4)).square().mean(dim=1)
    assert detail["full"] == pytest.approx(-float(error.mean()), rel=1e-9) and detail["gap"] < 1e-9
    heat = found["heatmap"]
    assert heat["quantity"] == "change of output" and (heat["sampled"], heat["distinct"]) == (7, 16)
    assert len(heat["band_mean"]) == len(heat["band_se"]) == 2 and heat["band_se"][1] > 0
    assert any("mean squared error" in note for note in found["notes"])
    write_report([tmp_path / "out"], tmp_path / "page.html")
    assert "7 of 16 frequencies were drawn" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert run("spectrum", model, "--data", tmp_path / "two.npz", *common) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["importance"] is None and any("3 outputs, the data 2 targets" in note for note in found["notes"])
