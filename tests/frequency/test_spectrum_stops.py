"""A spectrum that is stopped, that cannot have all its parts, or that is about something else than images with classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lipscope.bounds.auto as auto
import lipscope.frequency.band_bounds as bands_module
import lipscope.frequency.spectrum as module
from frequency.cases import loaded, noise, seeded
from lipscope.cli.spectrum import show
from lipscope.frequency.bands import band_masks
from lipscope.frequency.data import Data
from lipscope.frequency.spectrum import Spectrum, Wishes, spectrum
from lipscope.report import write_report
from lipscope.report.spectra import gather_spectrum


def network() -> nn.Module:
    """A classifier of 6 x 5 images with three classes."""
    return seeded(lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(90, 3)))


def small(**wishes: Any) -> Spectrum:
    graph, layout = loaded(network(), (1, 6, 5))
    data = Data(noise(4, 1, 6, 5), None, "noise", (0, 1, 2, 3))
    return spectrum(graph, data, layout, band_masks((6, 5), 2), Wishes(budget=1e6, method="product", **wishes))


STAGES = ("measuring the Jacobian", "proving band 2", "bound 2 of", "spectral importance", "Fourier heat map")


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_keeps_what_it_reached(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipscope.frequency.heatmap.GROUP", 40)
    seen: list[float] = []

    def progress(message: str, share: float) -> None:
        seen.extend([share] * message.startswith(stage))
        if len(seen) > (0 if stage.startswith(("proving", "bound")) else 1):
            raise KeyboardInterrupt

    graph, layout = loaded(network(), (1, 6, 5))
    count = 260  # more than a batch of everything
    data = Data(noise(count, 1, 6, 5), torch.arange(count) % 3, "noise", tuple(range(count)))
    wishes = Wishes(heat_norm=1.0, budget=1e6, method="product", check=stage.startswith("bound"))
    found = spectrum(graph, data, layout, band_masks((6, 5), 3), wishes, progress=progress)
    assert found.interrupted
    reached = STAGES.index(stage)
    assert len(found.data.x) == (32 if reached == 0 else count) == len(found.measured.gains)
    assert (found.bounds is None) == (reached == 0)
    if found.bounds is not None:
        directed = [r.problem.claim.directions is not None for r in found.bounds.bands]
        assert directed == ([True, False, False] if reached == 1 else [True] * 3)
        statuses = [r.upper.status for r in found.bounds.results.values()]
        assert statuses == (["certified", "computed", "computed", "computed"] if reached == 2 else ["computed"] * 4)
    assert (found.importance is not None) == (reached >= 3) and (found.heat_map is not None) == (reached == 4)
    if reached == 3:
        assert found.importance is not None and found.importance.images < count
    if reached == 4:
        assert found.heat_map is not None and found.heat_map.sampled < found.heat_map.distinct
    if reached not in (1, 2):
        assert any("stopped after" in note for note in found.notes)
    found.save(tmp_path / "out")
    assert gather_spectrum(tmp_path / "out", "s").interrupted


def test_methods_that_were_stopped_stop_the_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    real = auto.candidates

    def stopped(*arguments: Any) -> Any:
        for candidate in real(*arguments):
            yield replace(candidate, interrupted=True)

    monkeypatch.setattr(auto, "candidates", stopped)
    found = small()
    assert found.interrupted and found.bounds is not None and found.layers == ()
    assert all(result is found.bounds.total for result in found.bounds.bands)

    def first_only(*arguments: Any) -> Any:
        yield next(iter(real(*arguments)))
        raise KeyboardInterrupt

    monkeypatch.setattr(auto, "candidates", first_only)
    assert small().bounds is not None
    monkeypatch.setattr(auto, "candidates", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert small().bounds is None


def test_a_single_output_is_the_log_odds_of_label_one() -> None:
    graph, layout = loaded(seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 1))), (1, 6, 5))
    y = torch.arange(8) % 2
    data = Data(noise(8, 1, 6, 5), y, "noise", tuple(range(8)))
    found = spectrum(graph, data, layout, band_masks((6, 5), 2), Wishes(bounds=False, heat_norm=0.5, depth_samples=0))
    odds = module.graph_model(graph, layout)(data.x)[:, 0]
    assert found.importance is not None and found.heat_map is not None
    value = nn.functional.logsigmoid((2 * y - 1) * odds).mean()
    assert found.importance.full == pytest.approx(float(value), abs=1e-14)
    assert found.heat_map.quantity == "error" and found.heat_map.clean == float(((odds > 0) != y).double().mean())
    assert sum("log odds" in note for note in found.notes) == 1
    three = spectrum(graph, replace(data, y=y + 1), layout, band_masks((6, 5), 2), Wishes(bounds=False, heat_norm=0.5))
    assert three.importance is None and three.heat_map is None
    assert sum("floating point targets" in note for note in three.notes) == 2


def test_an_image_is_no_score_of_classes() -> None:
    graph, layout = loaded(seeded(lambda: nn.Conv2d(1, 2, 3)), (1, 6, 5))
    data = Data(noise(4, 1, 6, 5), torch.arange(4), "noise", (0, 1, 2, 3))
    found = spectrum(graph, data, layout, band_masks((6, 5), 2), Wishes(bounds=False, heat_norm=0.5))
    assert found.importance is None and any("no scores of classes" in note for note in found.notes)
    assert found.heat_map is not None and found.heat_map.quantity == "change of output"


def test_white_noise_is_bounded_by_the_better_of_bands_and_everything() -> None:
    found: Any = small(check=False).to_json()
    whole = min(30, 3) * found["total"]["proved"] ** 2
    assert found["noise"]["responses"][0]["response"] <= found["noise"]["white_bound"] <= whole * (1 + 1e-12)


def test_volumes_have_a_page_without_a_picture_of_their_map(tmp_path: Path) -> None:
    network = seeded(lambda: nn.Sequential(nn.Conv3d(1, 1, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)))
    graph, layout = loaded(network, (1, 3, 3, 4))
    data = Data(noise(4, 1, 3, 3, 4), torch.arange(4) % 2, "noise", (0, 1, 2, 3))
    found = spectrum(graph, data, layout, band_masks((3, 3, 4), 2), Wishes(bounds=False, heat_norm=0.5))
    found.save(tmp_path / "out")
    write_report([tmp_path / "out"], tmp_path / "page.html")
    assert gather_spectrum(tmp_path / "out", "s").heat is None and (tmp_path / "page.html").is_file()


def test_bands_with_the_plain_bound_are_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bands_module, "affordable", lambda _: False)
    found = small(check=False)
    found.save(tmp_path / "out")
    assert gather_spectrum(tmp_path / "out", "s").plain == 2
    write_report([tmp_path / "out"], tmp_path / "page.html")
    assert "2 of 2 bands have the bound of all directions" in (tmp_path / "page.html").read_text()
    show(found)
    assert "2 of 2 bands have the bound of all directions" in capsys.readouterr().err
