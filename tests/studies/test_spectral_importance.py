"""spectral-importance: a tiny run on digits, the verdict, and what the stored run and the documentation say."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from harness.pages import ROOT, read
from lipscope.claims.errors import Interrupted, UsageError
from lipscope.studies.spectral_importance import STUDY, Settings, judge, measure
from lipscope.studies.study import stored

TINY = Settings(seeds=(0,), data="digits", train=200, test=60, images=12, gain_images=5, epochs=2, bands=3)


def test_a_tiny_run_measures_every_network_and_keeps_the_random_state() -> None:
    before = torch.get_rng_state()
    figures = STUDY.run(TINY).figures
    assert torch.equal(before, torch.get_rng_state())
    assert figures["data"] == "digits" and len(figures["runs"]) == len(figures["networks"]) == 6
    assert figures["largest_gap"] < 1e-4
    for run in figures["runs"]:
        assert len(run["gain"]) == len(run["importance"]["values"]) == 3
        assert run["importance"]["images"] == 12
    constrained = next(r for r in figures["runs"] if r["network"] == "constrained to 4")
    assert max(constrained["gain"]) < 4
    again = STUDY.run(TINY).figures
    assert again["runs"] == figures["runs"]


@pytest.mark.parametrize(("median", "gap", "holds"), [
    (0.886, 1e-8, True), (0.88, 1e-8, False), (-0.9, 1e-8, False), (1.0, 1e-3, None),
])  # fmt: skip
def test_the_verdict(median: float, gap: float, holds: bool | None) -> None:
    figures = {"spearman_with_attacked_accuracy": {"score": {"median": median}}, "largest_gap": gap}
    assert judge(figures, Settings()) is holds


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"seeds": ()}, {"attacks": (0.1,)}, {"images": 2000}):
        with pytest.raises(UsageError):
            Settings(**wrong)  # type: ignore[arg-type]


def test_stopped_it_keeps_the_networks_that_are_done() -> None:
    def stop(message: str, share: float) -> None:
        if "Gaussian" in message:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        measure(TINY, stop)
    assert [run["network"] for run in stopped.value.result["runs"]] == ["standard"]  # type: ignore[index]


def test_the_stored_run_is_consistent_with_itself() -> None:
    result = stored("spectral-importance")
    assert result is not None and len(result["settings"]["seeds"]) >= 3
    figures = result["figures"]
    for name, network in figures["networks"].items():
        own = [run for run in figures["runs"] if run["network"] == name]
        scores = [run["score"] for run in own]
        assert network["score"]["mean"] == pytest.approx(np.mean(scores))
        assert network["score"]["se"] == pytest.approx(np.std(scores, ddof=1) / len(scores) ** 0.5)
        for run in own:
            detail = run["importance"]
            assert abs(sum(detail["values"]) - (detail["full"] - detail["empty"])) < 1e-4
    for seed, found in zip(
        result["settings"]["seeds"], figures["spearman_with_attacked_accuracy"]["score"]["seeds"], strict=True
    ):
        own = [run for run in figures["runs"] if run["seed"] == seed]
        orders = [np.argsort(np.argsort([run[key] for run in own])) for key in ("score", "attacked_accuracy")]
        assert found == pytest.approx(float(np.corrcoef(*orders)[0, 1]))


def test_the_documentation_shows_the_negative_result_of_the_stored_run() -> None:
    spec = importlib.util.spec_from_file_location("frequency_page", ROOT / "docs/hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page, result = hooks.fill(read("docs/frequency.md")), stored("spectral-importance")
    assert result is not None and result["holds"] is False  # if it ever holds, the page has to say so
    assert "The score did not rank networks by robustness" in page and "<!--" not in page
    for name, found in result["figures"]["networks"].items():
        assert f"| {name} | {found['accuracy']['mean']:.3f} ± " in page
    assert f"| score | {result['figures']['spearman_with_attacked_accuracy']['score']['median']:.2f} |" in page
