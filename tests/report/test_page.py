"""The page without a browser: nothing is loaded, everything is there, and names are names."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest

from lipscope.report import write_report
from lipscope.report.page import embed
from report.reading import Page
from report.samples import HOSTILE, Sample, samples

NAMES = list(samples())


def page_of(sample: Sample, folder: Path) -> Page:
    write_report([sample.write(folder / "bundle")], folder / "page.html")
    return Page(folder / "page.html")


@pytest.fixture(scope="module")
def read(pages: dict[str, Path]) -> dict[str, Page]:
    return {name: Page(path) for name, path in pages.items()}


@pytest.mark.parametrize("name", [*NAMES, "all"])
def test_is_well_formed_and_loads_nothing(read: dict[str, Page], name: str) -> None:
    page = read[name]
    assert page.stack == []
    for tag, attributes in page.tags:
        assert "src" not in attributes, (tag, attributes)
        assert not any(key.startswith("on") for key in attributes), (tag, attributes)
        if (target := attributes.get("href")) is not None:
            assert target.startswith("#") or target == "data:,"
    assert not re.search(r"@import|url\(", "".join(page.styles))
    assert {tag for tag, _ in page.tags}.isdisjoint({"iframe", "object", "embed", "img", "base", "form"})


@pytest.mark.parametrize("name", [*NAMES, "all"])
def test_links_and_labels_lead_somewhere(read: dict[str, Page], name: str) -> None:
    page = read[name]
    ids = [str(a["id"]) for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        target = attributes.get("href") or ""
        if target.startswith("#"):
            assert target[1:] in ids
        for key in ("aria-labelledby", "data-figure"):
            assert attributes.get(key, ids[0]) in ids
    assert all(a.get("aria-label") for _, a in page.tags if "data-figure" in a)
    assert sum(tag == "table" for tag, _ in page.tags) == sum(tag == "caption" for tag, _ in page.tags)
    assert {"header", "main", "nav", "footer"} <= {tag for tag, _ in page.tags}
    assert len(page.all("h1")) == 1


def test_headings_go_down_one_level_at_a_time(read: dict[str, Page]) -> None:
    for page in (read["certified"], read["all"]):
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
        assert all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("name", NAMES)
def test_has_all_sections_in_order(read: dict[str, Page], name: str) -> None:
    ids = [str(a["id"]) for _, a in read[name].tags if "id" in a]
    wanted = [f"b1-{part}" for part in ("result", "layers", "methods", "proof", "network", "check")]
    assert [i for i in ids if i in wanted] == wanted


def test_plotly_is_inlined_once_and_only_known_scripts_may_run(read: dict[str, Page]) -> None:
    page = read["all"]
    programs = [data for attributes, data in page.scripts if "type" not in attributes]
    assert len(programs) == 2 and "plotly.js (cartesian - minified) v" in programs[0][:200]
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    hashes = {base64.b64encode(hashlib.sha256(p.encode()).digest()).decode() for p in programs}
    assert set(re.findall(r"'sha256-([^']+)'", str(policy))) == hashes
    assert "default-src 'none'" in str(policy) and "script-src 'unsafe-inline'" not in str(policy)


def test_plotly_is_the_published_file_whose_sum_stands_beside_it() -> None:
    folder = files("lipscope.report").joinpath("assets", "plotly")
    script = folder.joinpath("plotly-cartesian.min.js").read_bytes()
    note = folder.joinpath("README.md").read_text(encoding="utf-8")
    (version,) = re.findall(rb"^\* plotly\.js \(cartesian - minified\) v(\S+)$", script[:200], flags=re.M)
    assert f"plotly.js-cartesian-dist-min@{version.decode()}\n" in note
    assert f"sha256: {hashlib.sha256(script).hexdigest()}\n" in note
    assert "MIT License" in folder.joinpath("LICENSE").read_text(encoding="utf-8")


def test_hostile_names_stay_names(read: dict[str, Page]) -> None:
    page = read["hostile"]
    assert HOSTILE in page.texts[0] or any(HOSTILE in text for text in page.texts)
    assert "<b>bold</b>" in page.texts and "&lt;" in page.texts and "$x^2$" in page.texts
    assert not page.all("img") and "alert" not in "".join(d for a, d in page.scripts if not a)[-5000:]
    hovers = page.figures["b1-layerchart"]["data"]
    shown = " ".join(text for trace in hovers for text in trace.get("text", []))
    assert "&lt;b&gt;bold" in shown and "<b>" not in shown and "&amp;lt;" in shown
    assert page.html.count("<script>") == 2, "two programs; a name must not open a third"


def test_an_embedded_figure_cannot_end_its_script() -> None:
    figure = {"data": ["</script><!--<script>", "a & b"], "layout": {"title": "]]>"}}
    assert not set(embed(figure)) & set("<>&") and json.loads(embed(figure)) == figure


def test_headline_of_a_certified_bundle(read: dict[str, Page]) -> None:
    text = read["certified"].text
    assert "9.791" in text and "8.931" in text and "✓ certified" in text and "upper / lower 1.097" in text
    assert "No two inputs can change the output by more than 9.791 times their distance." in text
    assert "Two inputs are known that reach 8.931 times their distance." in text
    assert "Checked by lipcheck 0.1.0" in text and "deterministic" in text and "not checked" not in text.lower()


def test_says_of_every_layer_method_step_and_node_what_is_known(read: dict[str, Page]) -> None:
    text = read["certified"].text
    for part in (
        "features.4.relu", "Elementwise: relu", "9 nodes, 80 parameters", "chosen: the smallest bound", "beaten: 3.7 times",
        "refused: more than 1000 hidden units", "32 × 32 frequency grid", "Lanczos from 3 random vectors", "Schur’s test", "verified Cholesky",
        "computed by the source model in float32, agree to 1.2 × 10⁻⁷", "That the executed float program stays within the constant",
        "Exact real arithmetic on the stored weights", "lipscope check ", "python -m lipcheck ", "1.23 s (1.1 s of processor time)",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("computed", ["Not checked.", "○ computed, not checked", "If the computed bound holds", "deterministic, not checked", "Nothing yet."]),
        ("box", ["ℓ∞ of inputs", "box: every input from 0.0 to 1.0", "difference of outputs 3 and 1", "No two inputs in the box"]),
        ("ball", ["closed ℓ₂ ball of radius 0.25", "output 2", "with probability at least 1 − 1.1 × 10⁻⁹", "up to a probability of 1.1 × 10⁻⁹"]),
        ("no-bound", ["No bound", "— no bound found", "features.2.relu Multiply of two values", "That is not a proof that there is none"]),
        ("unbounded", ["Unbounded", "∞ unbounded, proved", "the output jumps where sign", "No finite number bounds", "No finite constant exists."]),
        ("lower 0", ["∞ (lower bound 0)", "· needs no proof", "no pair of inputs that shows more is stored"]),
        ("independent", ["No two inputs can change the output at all.", "= exact"]),
        ("exact", ["= exact", "exact to 10⁻⁹", "by more than 3 times"]),
        ("deep", ["backbone.stage13.block139.conv", "8.943 × 10²⁰"]),
        ("wide", ["1 × 10⁻⁹", "1 × 10¹²", "9.9 × 10⁻¹³"]),
        ("rejected", ["The checker rejected a claim", "✕ rejected", "refused the upper bound of 9.791. Do not use it.", "refused by the checker"]),
        ("lower rejected", ["refused the pair of inputs behind the lower bound", "lower bound: x and y are equal"]),
        ("branch", ["This network has branches", "join"]),
        ("branch unchecked", ["in a network with branches only the checker’s verdict gives it", "Not checked"]),
    ],
)  # fmt: skip
def test_each_case_is_said_in_words(read: dict[str, Page], name: str, parts: list[str]) -> None:
    for part in parts:
        assert part in read[name].text, part


@pytest.mark.parametrize("name", ["rejected", "computed", "unbounded", "no-bound"])
def test_nothing_unproved_is_called_a_certified_or_proved_upper_bound(read: dict[str, Page], name: str) -> None:
    text = read[name].text
    assert "proved upper bound 9" not in text
    assert text.count("✓ certified") == (0 if name == "computed" else 1), (
        "only the lower bound of the others is certified"
    )


def test_overview_comes_first_and_has_a_row_for_each_bundle(read: dict[str, Page]) -> None:
    page = read["all"]
    ids = [str(a["id"]) for _, a in page.tags if "id" in a]
    assert ids.index("overview") < ids.index("b1") and f"b{len(NAMES)}" in ids
    rows = [a for a in page.all("a") if re.fullmatch(r"#b\d+", a.get("href") or "")]
    assert len(rows) == len(NAMES)
    assert "overview" not in {a.get("id") for _, a in read["certified"].tags}


def test_branch_without_verdict_draws_no_product(read: dict[str, Page]) -> None:
    drawn = {
        name: [t["name"] for t in read[name].figures["b1-layerchart"]["data"]]
        for name in ("branch", "branch unchecked", "computed")
    }
    assert "bound up to the layer" in drawn["branch"] and "bound up to the layer" in drawn["computed"]
    assert "bound up to the layer" not in drawn["branch unchecked"]


def test_interval_chart_has_the_band_and_a_mark_for_each_value(read: dict[str, Page]) -> None:
    figure = read["certified"].figures["b1-interval"]
    band = figure["layout"]["shapes"][0]
    assert 10 ** band["x0"] == pytest.approx(8.9312) and 10 ** band["x1"] == pytest.approx(9.7902, rel=1e-4)
    assert len(figure["data"][0]["x"]) == 2 and figure["data"][0]["marker"]["symbol"].count("diamond") == 1


def test_same_bundles_same_bytes(tmp_path: Path) -> None:
    bundle = Sample().write(tmp_path / "bundle")
    for name in ("a.html", "b.html"):
        write_report([bundle], tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_command_is_quoted_for_a_shell(tmp_path: Path) -> None:
    bundle = Sample().write(tmp_path / "my bundle; rm -rf x")
    write_report([bundle], tmp_path / "page.html")
    assert f"lipscope check '{bundle}'" in Page(tmp_path / "page.html").text


def test_warnings_and_interruption_are_shown(tmp_path: Path) -> None:
    sample = Sample()
    sample.result.update(warnings=["dropout was on & is ignored <here>"], interrupted=True)
    text = page_of(sample, tmp_path).text
    assert "dropout was on & is ignored <here>" in text and "interrupted: the best so far" in text


def test_needs_no_torch() -> None:
    program = "import sys, lipscope.report; assert not {'torch', 'onnx', 'scipy', 'lipcheck'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_text_has_enough_contrast_in_both_schemes(read: dict[str, Page]) -> None:
    """WCAG AA: 4.5 to 1 for text on its ground."""
    light, dark = "".join(read["certified"].styles).split("prefers-color-scheme: dark", 1)
    for css in (light, dark.split("}", 1)[0]):
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", css))
        pairs = [
            ("ink", "paper"),
            ("ink", "card"),
            ("muted", "paper"),
            ("muted", "card"),
            ("accent", "paper"),
            ("lower", "card"),
        ]
        for text, ground in [*pairs, *((tone, f"{tone}-bg") for tone in ("good", "warn", "bad", "plain"))]:
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def _contrast(one: str, other: str) -> float:
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
