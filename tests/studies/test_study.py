"""What holds for every study, the framework around them, and `lipscope study` as a user meets it."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from harness.pages import ROOT, read
from lipscope.claims.errors import Interrupted, UsageError
from lipscope.claims.progress import Progress
from lipscope.cli import main
from lipscope.studies.study import Figures, Outcome, Study, find, names, stored

SECTIONS = ["Claim", "What it tests", "What it does not test", "Settings", "Tolerance", "Seeds", "How to read it"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return int(left.value.code or 0)


# ---------------------------------------------------------------- every study


@pytest.mark.parametrize("name", names())
def test_a_study_describes_itself(name: str) -> None:
    study = find(name)
    assert study.name == name
    assert study.claim.endswith(".") and "\n" not in study.claim
    text = files("lipscope.studies").joinpath(name.replace("-", "_"), "README.md").read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"# {name}"
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS


@pytest.mark.parametrize("name", names())
def test_the_stored_run_is_judged_as_it_says(name: str) -> None:
    study, result = find(name), stored(name)
    assert result is not None, f"run lipscope study {name} -o src/lipscope/studies/{name.replace('-', '_')}/result.json"
    assert set(result) == {"study", "claim", "holds", "figures", "settings", "seconds", "environment", "command"}
    assert (result["study"], result["claim"]) == (name, study.claim)
    assert result["settings"] == json.loads(json.dumps(asdict(study.settings))), "stored with other settings"
    assert study.judge(result["figures"], study.restore(result["settings"])) is result["holds"]
    assert result["command"] == f"lipscope study {name}"
    environment = result["environment"]
    assert environment["torch"] and environment["python"] and environment["date"] and environment["threads"] >= 1
    assert result["seconds"] > 0


@pytest.mark.parametrize("name", names())
def test_default_settings_survive_json(name: str) -> None:
    study = find(name)
    assert study.restore(json.loads(json.dumps(asdict(study.settings)))) == study.settings


def test_the_studies_of_the_sandwich_are_there() -> None:
    assert {"toy-sandwich", "mnist1d-evolution", "double-descent", "bias-variance"} <= set(names())


def test_the_documentation_shows_every_study_with_its_stored_run() -> None:
    spec = importlib.util.spec_from_file_location("studies_page", ROOT / "docs/hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = hooks.fill(read("docs/studies.md"))
    assert "<!--" not in page
    for name in names():
        assert f"[`{name}`](#{name})" in page and f"\n## {name}\n" in page and f"`lipscope study {name}`, " in page


# ---------------------------------------------------------------- the framework


@dataclass(frozen=True)
class Small:
    steps: int = 3
    rate: float = 0.5
    widths: tuple[int, ...] = (1, 2)
    word: str = "a"
    fast: bool = False
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UsageError("expected steps >= 0")


def measure(settings: Small, progress: Progress) -> dict[str, object]:
    progress("half", 0.5)
    if settings.word == "stop":
        raise Interrupted("stopped", {"steps": 1})
    if settings.word == "stop at once":
        raise Interrupted("stopped")
    return {"steps": settings.steps, "inner": {1: (float("nan"), 2.0)}}


def judge(figures: Figures, settings: Small) -> bool | None:
    return None if settings.fast else figures["steps"] == 3


STUDY = Study("small", "Three is three.", Small(), measure, judge)


def test_a_run_is_measured_and_judged() -> None:
    seen: list[tuple[str, float]] = []
    outcome = STUDY.run(progress=lambda message, fraction: seen.append((message, fraction)))
    assert (outcome.holds, outcome.interrupted, outcome.claim) == (True, False, "Three is three.")
    assert outcome.settings == asdict(Small())
    assert seen == [("half", 0.5)]
    assert STUDY.run(Small(steps=4)).holds is False
    assert STUDY.run(Small(fast=True)).holds is None


def test_an_outcome_is_strict_json() -> None:
    document = STUDY.run().to_json("small")
    assert list(document) == ["study", "claim", "holds", "figures", "settings", "seconds"]
    assert document["figures"] == {"steps": 3, "inner": {"1": [None, 2.0]}}
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_an_interrupted_run_keeps_its_figures_and_claims_nothing() -> None:
    outcome = STUDY.run(Small(word="stop"))
    assert (outcome.figures, outcome.holds, outcome.interrupted) == ({"steps": 1}, None, True)
    with pytest.raises(Interrupted):
        STUDY.run(Small(word="stop at once"))


def test_settings_are_read_by_their_types() -> None:
    read = STUDY.read(["steps=7", "rate=1e-3", "widths=4, 5,6", "word=b=c", "fast=True", "limit=2"])
    assert read == Small(7, 1e-3, (4, 5, 6), "b=c", True, 2.0)
    assert STUDY.read(["limit=none"]).limit is None
    assert STUDY.read([]) == Small()
    assert STUDY.read(["steps=1", "steps=2"]).steps == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("steps", "KEY=VALUE"), ("depth=3", "steps, rate, widths"), ("steps=1.5", "expected int for the setting steps"),
        ("rate=x", "expected float"), ("rate=nan", "finite"), ("rate=inf", "finite"), ("fast=maybe", "expected bool"),
        ("widths=1,x", "expected int"), ("steps=-1", "steps >= 0"), ("=3", "KEY=VALUE"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(change: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        STUDY.read([change])


def test_settings_must_be_a_dataclass_instance() -> None:
    with pytest.raises(TypeError, match="instance of a dataclass"):
        Study("x", "y.", Small, measure, judge)


def test_an_unknown_name_lists_what_exists() -> None:
    with pytest.raises(UsageError) as refused:
        find("sandwich")
    assert all(name in str(refused.value) for name in names())
    for wrong in ("study", "toy_sandwich", "", "../x", "data"):
        with pytest.raises(UsageError):
            find(wrong)


def test_listing_names_imports_no_study_and_no_torch() -> None:
    code = (
        "import sys; from lipscope.studies.study import names; assert 'toy-sandwich' in names(); "
        "assert 'lipscope.studies.toy_sandwich' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_listing_with_claims_needs_no_optional_package() -> None:
    code = (
        "import sys; from lipscope.studies.study import find, names; [find(n) for n in names()]; "
        "assert not {'mnist1d', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- the command

QUICK = ("--set", "steps=20", "--set", "grid_points=5")


def test_the_command_prints_one_json_object_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_state, target = torch.get_rng_state(), tmp_path / "result.json"
    assert run("study", "toy-sandwich", "--json", *QUICK, "-o", str(target)) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert list(document) == ["study", "claim", "holds", "figures", "settings", "seconds"]
    assert document["study"] == "toy-sandwich" and document["settings"]["steps"] == 20
    assert "claim" not in err
    written = json.loads(target.read_text())
    assert {key: written[key] for key in document} == document
    assert written["environment"]["torch"] == torch.__version__
    assert written["command"] == "lipscope study toy-sandwich --set=steps=20 --set=grid_points=5"
    assert torch.equal(torch.get_rng_state(), random_state)


def test_without_json_the_verdict_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("study", "toy-sandwich", *QUICK) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["holds"] is None
    assert "this run cannot tell" in err


def test_a_claim_that_does_not_hold_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lipscope.studies.study.find", lambda name: STUDY)
    assert run("study", "small", "--json", "--set", "steps=4") == 0
    assert json.loads(capsys.readouterr().out)["holds"] is False


def test_interrupted_it_prints_what_was_reached(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("lipscope.studies.study.find", lambda name: STUDY)
    assert run("study", "small", "--set", "word=stop", "-o", str(tmp_path / "r.json")) == 4
    out, err = capsys.readouterr()
    assert json.loads(out)["figures"] == {"steps": 1} and json.loads(out)["holds"] is None
    assert "stopped by you" in err
    assert json.loads((tmp_path / "r.json").read_text())["holds"] is None


def test_wrong_use_leaves_with_2_and_says_what_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (("nonsense",), "toy-sandwich"), (("toy-sandwich", "--set", "steps"), "KEY=VALUE"),
        (("toy-sandwich", "-o", str(tmp_path)), "expected a file"), (("toy-sandwich", "--set", "steps=-1"), "steps >= 0"),
        (("toy-sandwich", "-o", str(tmp_path / "no" / "r.json")), "expected a file"), (("--set", "a=b"), "expected the name"),
    ):  # fmt: skip
        assert run("study", *arguments) == 2, arguments
        out, err = capsys.readouterr()
        assert out == "" and words in " ".join(err.split()) and "Traceback" not in err, arguments


def test_without_a_name_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("study") == 0
    out, err = capsys.readouterr()
    assert out == "" and all(name in err for name in names())
    assert run("study", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["studies"]
    assert [entry["study"] for entry in listed] == names()
    assert all(entry["claim"] for entry in listed)


def test_an_outcome_cannot_be_changed() -> None:
    outcome = Outcome("c.", True, {}, {})
    with pytest.raises(AttributeError):
        outcome.holds = False  # type: ignore[misc]
