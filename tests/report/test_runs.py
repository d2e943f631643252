"""The page of training runs: facts and charts from a store, without a browser."""

from __future__ import annotations

import html
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipscope.claims.errors import UsageError
from lipscope.claims.quantity import Reading
from lipscope.dynamics.recorder import Entry, Recorder
from lipscope.dynamics.store import open_run
from lipscope.report import run_charts, write_report
from lipscope.report.live import DELETED, Runs
from lipscope.report.run_charts import MOST, thin
from lipscope.report.runs import RunFacts, gather_run
from report.run_samples import INFO, LAYERS, META, entry, write_run


def facts_of(folder: Path) -> RunFacts:
    with open_run(folder) as run:
        return gather_run(run, "r1")


def figures(page: str) -> dict[str, dict]:
    found = re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(text) for name, text in found}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000), st.integers(4, 200))
def test_thinned_lines_keep_ends_and_extremes(values: list[float], most: int) -> None:
    value = np.array(values)
    step, kept = thin(np.arange(len(value)), value, most)
    assert len(kept) <= most + 2
    assert (step[0], step[-1]) == (0, len(value) - 1)
    assert (kept.min(), kept.max()) == (value.min(), value.max())
    assert (np.diff(step) > 0).all()
    assert (kept == value[step]).all()


def test_alerts_that_come_again_are_told_once_and_warnings_first(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, META, INFO)
    layers = [f"block.{k}" for k in range(14)]
    for step in range(5):
        rows = [("gap", "info", layer, f"turned at {step}", 1.0) for layer in layers[: 14 if step == 1 else 2]]
        first = [("takes-over", "warning", "head", "it takes over", 9.0)] if step == 0 else []
        recorder.record(Entry(step, 1.7e9 + step, entry(step).readings, [*first, *rows]))
    recorder.close("finished")
    facts = facts_of(tmp_path)
    assert [(a.kind, a.layer, a.step, n) for a, n in facts.told[:4]] == [
        ("takes-over", "head", 0, 1), ("gap", "block.0", 4, 5), ("gap", "block.1", 4, 5), ("gap", "block.2", 1, 1)
    ]  # fmt: skip
    write_report([tmp_path], tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.index("it takes over") < page.index("turned at 4") and page.count("turned at 4") == 2
    assert "(the last of 5)" in page and "3 more kinds or layers" in page


def test_layers_stand_in_the_order_of_the_model(tmp_path: Path) -> None:
    """Normalizations are followed by the identity alone, which is written after the other norms."""
    rows = [("layer-norms", Reading("norm", 1.0, "estimate", layer)) for layer in ("conv", "head")]
    rows += [("identity", Reading(n, 1.0, "measured", x)) for x in ("conv", "bn", "head") for n in ("norm", "change")]
    recorder = Recorder(tmp_path, META, INFO)
    recorder.record(Entry(0, 1.7e9, rows))
    recorder.close("finished")
    assert facts_of(tmp_path).layers_of("norm") == ["conv", "bn", "head"]


def test_the_page_tells_how_much_was_read(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, META, INFO)
    own = [
        ("observer", Reading("steps_read", 0.0125, "measured")),
        ("observer", Reading("values_per_minute", 5097.4, "measured")),
    ]
    recorder.record(Entry(3, 1.7e9, [*entry(3).readings, *own]))
    recorder.close("finished")
    write_report([tmp_path], tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "At 1.25 % of the steps something was read, 5,097 values a minute of training." in page


def test_facts(tmp_path: Path) -> None:
    facts = facts_of(write_run(tmp_path / "a"))
    assert (facts.source, facts.state, facts.last_step) == ("a", "finished", 195)
    assert facts.latest("lower") == 2 + 1.95
    assert facts.growth == pytest.approx(3.95 / 2)
    assert facts.latest("upper") == pytest.approx(2 * (2 + 1.9))
    assert facts.proved_at == 190, "the bound is about the weights of that step, not of the last one"
    assert [row.name for row in facts.layers] == list(LAYERS)
    assert facts.layers[1].growth == pytest.approx(1.39)
    assert facts.closure == pytest.approx(1e-5 / 0.016)
    assert facts.explained == len(facts.values("total_change")[0]) > 1
    assert facts.budget == 0.05


def test_layers_that_the_identity_leaves_out_are_named(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run", {}, {})
    for step in (1, 2):
        unknown = Reading("log_product", math.inf, "estimate", note="no finite constant: 'attention'")
        recorder.record(Entry(step, 1.7e9, [*entry(step).readings, ("layer-norms", unknown)]))
    recorder.close("finished")
    write_report([tmp_path / "run"], tmp_path / "page.html")
    page = html.unescape((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert (
        "<strong>Not all of the network:</strong> no finite constant: 'attention'; the sums are about the other layers."
        in page
    )


def test_the_page_holds_the_charts_and_escapes_names(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", range(0, 50, 5))]
    write_report(runs, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    drawn = figures(page)
    assert f"{facts_of(runs[0]).explained} of 195 steps of the run were read" in page
    kinds = {"sandwich", "heat", "forces", "spectra", "ranks", "task", "overhead"}
    assert set(drawn) == {"runs-c-comparison", *(f"{r}-c-{k}" for r in ("r1", "r2") for k in kinds)}
    assert "proved upper bound, of the weights at step 190" in page
    assert "the norm was 3.9 then" in page, "an older bound stands beside the norm of its own step"
    assert "Not all of the network" not in page
    assert "≤ L ≤" not in page, "what was measured is no proved lower end"
    assert "Tiny<script>" not in page
    assert "<b>head" not in page
    assert "connect-src 'none'" in html.unescape(page)
    sandwich = {line["name"]: line for line in drawn["r1-c-sandwich"]["data"]}
    assert sandwich["proved upper bound"]["mode"] == "markers", "nothing is proved between two bounds"
    symbols = {name: line["marker"].get("symbol") for name, line in sandwich.items() if "marker" in line}
    proved = symbols.pop("proved upper bound")
    assert proved == "triangle-down" and proved not in symbols.values(), "what is not proved looks different"
    assert sandwich["proved upper bound"]["x"] == list(range(0, 200, 10)), "each at its own step"
    assert sandwich["largest on the probe"]["y"][-1] == 3.95


def test_the_stack_of_forces_adds_up_to_the_dashed_line(tmp_path: Path) -> None:
    figure = run_charts.forces(facts_of(write_run(tmp_path / "a")))
    assert figure is not None
    lines = figure["data"]
    stacked = [np.array(d["y"]) for d in lines if "stackgroup" in d]
    (total,) = [np.array(d["y"]) for d in lines if d["name"] == "sum of the forces"]
    np.testing.assert_allclose(sum(stacked), total, rtol=1e-3)
    assert {d["name"] for d in lines if d.get("stackgroup") == "down"} == {"noise"}


def test_bundles_and_runs_stand_on_one_page(tmp_path: Path) -> None:
    from report.samples import samples

    bundle = samples()["certified"].write(tmp_path / "bundle")
    write_report([write_run(tmp_path / "a"), bundle], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert 'id="r1"' in page
    assert 'id="b1"' in page


def test_an_empty_run_and_missing_values_are_said(tmp_path: Path) -> None:
    Recorder(tmp_path / "empty", META, INFO).close()
    recorder = Recorder(tmp_path / "odd", {}, {})
    reading = Reading("upper", float("inf"), "computed", note="layer 'x' (Odd) has no rule")
    recorder.record(Entry(3, 1.0, [("upper", reading)], [("takes-over", "warning", "x", "x takes <over>", 1.0)]))
    recorder.flush(now=True)
    recorder.close("failed")
    write_report([tmp_path / "empty", tmp_path / "odd"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Nothing has been measured yet." in page
    assert "layer &#39;x&#39; (Odd) has no rule" in page
    assert "x takes &lt;over&gt;" in page
    assert "1 alert" in page


def test_a_long_run_makes_a_small_page(tmp_path: Path) -> None:
    """A hundred thousand values: a line has no more points than a screen."""
    recorder = Recorder(tmp_path / "long", META, INFO)
    for step in range(3000):
        recorder.record(entry(step))
    recorder.flush(now=True)
    recorder.close()
    with open_run(tmp_path / "long") as run:
        assert 0 < sum(len(s) for s in run.all_series())
        facts = gather_run(run, "r1")
    for chart in (run_charts.sandwich, run_charts.forces, run_charts.task, run_charts.overhead):
        figure = chart(facts)
        assert figure is not None
        assert all(len(line["x"]) <= MOST + 2 for line in figure["data"])
    heat = run_charts.heat_map(facts)
    assert heat is not None
    assert len(heat["data"][0]["x"]) <= 240


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsageError, match="expected a bundle"):
        write_report([tmp_path / "nothing"], tmp_path / "page.html")


def test_a_folder_without_anything_is_told_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read its bundle\.json, and there is no run\.sqlite"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(UsageError, match=r"a bundle or a run at .*no such folder"):
        write_report([tmp_path / "nothing"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_feed_finds_runs_follows_them_and_outlives_their_files(tmp_path: Path) -> None:
    runs = Runs([tmp_path])
    assert runs.look()[0] == []
    recorder = Recorder(tmp_path / "a", META, INFO)
    recorder.record(entry(0))
    recorder.flush(now=True)
    facts, first = runs.look()
    assert [f.last_step for f in facts] == [0]
    assert runs.look()[1] == first, "nothing new"
    recorder.record(entry(10))
    recorder.flush(now=True)
    facts, second = runs.look()
    assert second != first
    assert facts[0].last_step == 10
    recorder.close()
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    (tmp_path / "a").rmdir()
    facts, third = runs.look()
    assert (facts[0].state, facts[0].last_step) == (DELETED, 10)
    assert runs.look()[1] == third
    write_run(tmp_path / "a", range(3))
    assert runs.look()[0][0].last_step == 2


def test_the_report_of_runs_needs_no_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "a", range(0, 20, 5))
    code = (
        "import sys\nfrom pathlib import Path\nfrom lipscope.report import write_report\nimport lipscope.report.live\n"
        f"write_report([Path({str(tmp_path / 'a')!r})], Path({str(tmp_path / 'p.html')!r}))\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "p.html").exists()


def test_the_table_of_runs_says_which_step_a_bound_is_of(tmp_path: Path) -> None:
    """Beside a measured value of a later step it would look like a bound below it."""
    late = write_run(tmp_path / "late", range(0, 200, 5))  # bounds at every tenth step, the last look is at 195
    write_run(tmp_path / "same", range(0, 200, 10))
    write_report([late, tmp_path / "same"], tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    table = page[page.index("Runs side by side") : page.index("runs-c-comparison")]
    assert table.count("at step") == 1 and "at step 190" in table
