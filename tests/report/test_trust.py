"""What the page believes: files against their digests, the verdict against the claim, numbers rounded the safe way."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipscope.claims.errors import LipscopeError, UsageError
from lipscope.report import write_report
from lipscope.report.charts import ticks
from lipscope.report.documents import read_bundle
from lipscope.report.facts import gather
from lipscope.report.numbers import down, up
from lipscope.report.page import render
from report.reading import Page
from report.samples import Sample, model_digest, real

FOREIGN = "The verdict does not belong to this bundle."
DAMAGED = "The files of this bundle are not the ones that were written."


def shown(bundle: Path) -> str:
    write_report([bundle], bundle.parent / "page.html")
    return Page(bundle.parent / "page.html").text


def edit(bundle: Path, name: str, change: Callable[[dict], None]) -> None:
    document = json.loads((bundle / name).read_text())
    change(document)
    (bundle / name).write_text(json.dumps(document))


def _swap_upper(verdict: dict) -> None:
    verdict["upper"].update(value=real(9.0), proved=real(9.0))


def _swap_lower(verdict: dict) -> None:
    verdict["lower"].update(value=real(9.5), proved=real(9.5))


CHANGES: dict[str, Callable[[dict], None]] = {
    "another upper bound": _swap_upper,
    "another lower bound": _swap_lower,
    "proved more than claimed": lambda v: v["upper"].update(proved=real(9.8)),
    "proved less than claimed": lambda v: v["lower"].update(proved=real(8.9)),
    "proved nothing": lambda v: v["upper"].update(proved=None),
    "another status": lambda v: v["upper"].update(status="unbounded"),
    "an unknown status": lambda v: v["upper"].update(status="excellent"),
    "no lower bound": lambda v: v["lower"].update(status="none", value=None, proved=None),
    "an unknown lower status": lambda v: v["lower"].update(status="fine"),
    "another schema": lambda v: v.update(schema="lipscope-verdict/9"),
    "another bundle": lambda v: v.update(bundle="sha256:" + "0" * 64),
    "accepted although rejected": lambda v: v["lower"].update(status="rejected", reasons=["no"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_verdict_that_contradicts_the_bundle_is_not_believed(name: str, tmp_path: Path) -> None:
    bundle = Sample().write(tmp_path / "bundle")
    assert FOREIGN not in shown(bundle)
    edit(bundle, "verdict.json", CHANGES[name])
    text = shown(bundle)
    assert FOREIGN in text and "✓ certified" not in text and "computed, not checked" in text


def test_a_verdict_that_names_this_bundle_is_believed(tmp_path: Path) -> None:
    import hashlib

    bundle = Sample().write(tmp_path / "bundle")
    digest = hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    edit(bundle, "verdict.json", lambda v: v.update(bundle=digest))
    assert FOREIGN not in shown(bundle)


def test_a_rejection_of_unreadable_claims_still_counts(tmp_path: Path) -> None:
    """The checker names no value where it could not read the claim."""
    bundle = Sample().reject("upper", "the proof is none").write(tmp_path / "bundle")
    edit(bundle, "verdict.json", lambda v: v["upper"].update(value=None))
    text = shown(bundle)
    assert FOREIGN not in text and "✕ rejected" in text


def test_status_is_the_verdicts_and_never_the_results(tmp_path: Path) -> None:
    sample = Sample(checked=False)
    assert sample.result["upper"]["status"] == "certified"
    assert "✓ certified" not in shown(sample.write(tmp_path / "bundle"))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a changed claim": lambda b: edit(b, "claim.json", lambda c: c["upper"].update(value=real(1.0))),
    "a changed proof": lambda b: edit(b, "proof.json", lambda p: p["steps"][0].update(norm=real(1.0))),
    "a changed array": lambda b: next((b / "arrays").iterdir()).write_bytes(b"\x93NUMPY rubbish"),
    "a missing array": lambda b: next((b / "arrays").iterdir()).unlink(),
    "an extra file": lambda b: (b / "extra.txt").write_text("hello"),
    "a name that leads out": lambda b: edit(
        b, "bundle.json", lambda i: i["files"].update({"../../secret.json": "0" * 64})
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_said_in_red_and_nothing_is_certified(name: str, tmp_path: Path) -> None:
    bundle = Sample(region="box").write(tmp_path / "bundle")
    DAMAGES[name](bundle)
    text = shown(bundle)
    assert DAMAGED in text and FOREIGN.rstrip(".") in text
    assert text.count("✕ files damaged") == 2 and "computed, not checked" not in text and "✓ certified" not in text
    assert ("is listed, but missing" in text) == (name == "a missing array")


def test_a_model_that_is_not_the_claims_is_damage(tmp_path: Path) -> None:
    sample = Sample()
    sample.claim["model"] = "sha256:" + "0" * 64
    assert "claim.json is about model sha256:0000" in shown(sample.write(tmp_path / "bundle"))


def _remove(name: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / name).unlink()


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda bundle: (bundle / name).write_bytes(content)


REFUSALS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no result": (_remove("result.json"), "cannot read its result.json"),
    "no claim": (_remove("claim.json"), "cannot read its claim.json"),
    "no index": (_remove("bundle.json"), "cannot read its bundle.json"),
    "broken JSON": (_write("result.json", b"{"), "expected JSON in"),
    "not UTF-8": (_write("proof.json", b"\xff\xfe"), "not UTF-8"),
    "a list": (_write("result.json", b"[]"), "expected an object in"),
    "deep JSON": (_write("result.json", b"[" * 100000), "expected JSON in"),
    "broken verdict": (_write("verdict.json", b"no"), "expected JSON in"),
    "empty verdict": (_write("verdict.json", b"{}"), "expected a value at"),
    "text for a number": (
        lambda b: edit(b, "result.json", lambda r: r.update(seconds="soon")),
        "result.json seconds, got 'soon'",
    ),
    "NaN": (
        lambda b: edit(b, "claim.json", lambda c: c["lower"].update(value={"float": "nan"})),
        "expected a number at",
    ),
    "rubbish for a float": (
        lambda b: edit(b, "claim.json", lambda c: c["lower"].update(value={"float": "x"})),
        "expected a hex float at",
    ),
    "number for layers": (lambda b: edit(b, "result.json", lambda r: r.update(layers=3)), "expected a list at"),
    "another schema": (
        lambda b: edit(b, "bundle.json", lambda i: i.update(schema="other/2")),
        "expected schema lipscope-bundle/1",
    ),
    "negative shape": (
        lambda b: edit(b, "graph.json", lambda g: g["nodes"][0].update(shape=[-1])),
        "expected an integer, 0 or more",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_unreadable_bundles_are_refused_in_words(name: str, tmp_path: Path) -> None:
    bundle = Sample().write(tmp_path / "bundle")
    break_it, message = REFUSALS[name]
    break_it(bundle)
    with pytest.raises(UsageError) as error:
        write_report([bundle], tmp_path / "page.html")
    assert message in str(error.value) and str(bundle) in str(error.value)
    assert not (tmp_path / "page.html").exists()


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    bundle = Sample().write(tmp_path / "bundle")
    with pytest.raises(UsageError, match="at least one bundle"):
        write_report([], tmp_path / "page.html")
    with pytest.raises(UsageError, match="no such folder"):
        write_report([tmp_path / "nothing"], tmp_path / "page.html")
    with pytest.raises(LipscopeError, match="cannot write"):
        write_report([bundle], tmp_path / "missing" / "page.html")
    with pytest.raises(LipscopeError, match="cannot write"):
        write_report([bundle], bundle)


def test_a_full_disk_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, page = Sample().write(tmp_path / "bundle"), tmp_path / "page.html"
    page.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LipscopeError, match="the disk is full") as error:
        write_report([bundle], page)
    assert error.value.exit_code == 5 and page.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "page.html"]


def leaves(value: object, path: tuple = ()) -> list[tuple]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(leaf for key, child in children for leaf in leaves(child, (*path, key)))]


def planted(document: dict, path: tuple, value: object) -> None:
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value


ODD = [
    None,
    -1,
    0,
    1e308,
    5e-324,
    True,
    "x",
    "",
    [],
    {},
    [[]],
    {"float": "inf"},
    {"float": "-0x1p+0"},
    {"float": "0x1p+1023"},
    10**400,
    math.inf,
]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_odd_value_gives_a_page_or_a_refusal_in_words(data: st.DataObject) -> None:
    """The digests fit, so that it is the reading that is tested."""
    sample = Sample([2.0, 3.0], region="box", output="1")
    name = data.draw(st.sampled_from(["graph", "claim", "proof", "agreement", "result", "verdict"]))
    document = getattr(sample, name)
    path = data.draw(st.sampled_from(leaves(document)[1:]))
    planted(document, path, data.draw(st.sampled_from(ODD)))
    if name == "graph":
        try:
            sample.claim["model"] = model_digest(sample.graph)
        except (TypeError, AttributeError, KeyError):
            pass
    with tempfile.TemporaryDirectory() as place:
        try:
            page = render([gather(read_bundle(sample.write(Path(place) / "bundle")))])
        except UsageError as error:
            assert "bundle" in str(error)
        else:
            assert "</html>" in page[-20:]
            assert not re.search(r"\bnan\b", page[page.index("<main") : page.index("<footer")])


def _value(text: str) -> Fraction:
    text = text.replace("−", "-")
    mantissa, _, power = text.partition(" × 10")
    exponent = int(power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))) if power else 0
    return Fraction(mantissa) * Fraction(10) ** exponent


@given(st.floats(min_value=0, allow_infinity=False), st.integers(2, 10))
def test_shown_numbers_enclose_the_true_one(value: float, digits: int) -> None:
    low, high = _value(down(value, digits)), _value(up(value, digits))
    assert low <= Fraction(value) <= high
    assert high - low <= Fraction(value) / 10 ** (digits - 1)


@given(st.floats(-12, 12), st.floats(1e-3, 24))
def test_ticks_lie_on_the_axis_and_say_their_position(low: float, span: float) -> None:
    marks = ticks(low, low + span)
    assert len(marks) <= 9
    for position, text in marks:
        assert low - 1e-9 <= position <= low + span + 1e-9
        written = (
            text.replace("·", " × ") if "·" in text else f"1 × {text}" if any(c in text for c in "⁰¹²³⁴⁵⁶⁷⁸⁹") else text
        )
        assert math.isclose(float(_value(written)), 10**position, rel_tol=1e-3)
