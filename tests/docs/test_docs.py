"""The pages' code is run, the tables are made from the code, and links and figures can be believed."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from harness.pages import ROOT, blocks, read
from lipscope.bounds.auto import METHODS
from lipscope.cli import main
from lipscope.network.load.onnx_ops import HANDLERS
from lipscope.network.nodes import KINDS
from lipscope.rules.functions import FUNCTIONS

EXECUTED = (
    "README.md",
    "docs/index.md",
    "docs/tutorial.md",
    "docs/follow.md",
    "docs/python.md",
    "docs/extending.md",
    "docs/frequency.md",
    "docs/spectrum.md",
)
PROSE = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


@pytest.fixture
def nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files go to a folder of the test; random state, threads and the table of ONNX operators are put back."""
    monkeypatch.chdir(tmp_path)
    handlers, threads = dict(HANDLERS), torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)
    HANDLERS.clear()  # type: ignore[attr-defined]
    HANDLERS.update(handlers)  # type: ignore[attr-defined]


def run(command: str) -> None:
    """Run a `lipscope` command line; raise unless it leaves with 0."""
    words = shlex.split(command)
    assert words[0] == "lipscope", command
    with pytest.raises(SystemExit) as left:
        main(words[1:])
    assert left.value.code in (0, None), f"{command} left with {left.value.code}"


def expect_shown(shown: str, printed: str) -> None:
    """What a page shows is what its code printed: the same words, numbers to 5 per cent. Times are not compared."""
    lines = [line for line in printed.splitlines() if line.strip()]
    for line in filter(str.strip, shown.splitlines()):
        if not re.search(r"\d s\b", line):
            assert any(_same(line.split(), other.split()) for other in lines), (
                f"{line!r} was not printed, but\n{printed}"
            )


def _same(shown: list[str], printed: list[str]) -> bool:
    return len(shown) == len(printed) and all(
        _same_word(a.strip(",:"), b.strip(",:")) for a, b in zip(shown, printed, strict=True)
    )


def _same_word(shown: str, printed: str) -> bool:
    if shown.startswith("sha256:"):
        return printed.startswith("sha256:")  # the weights' last bits depend on the library's version
    try:
        return abs(float(shown) - float(printed)) <= 0.05 * abs(float(printed))
    except ValueError:
        return shown == printed


@pytest.mark.usefixtures("nothing_stays")
@pytest.mark.parametrize("page", EXECUTED)
def test_the_code_of_a_page_runs_and_prints_what_is_shown(page: str, capfd: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    executed, printed = 0, ""
    for language, content in blocks(page):
        if language == "python":
            exec(compile(content, page, "exec"), namespace)
            executed += 1
            printed = capfd.readouterr().out
        elif language == "console":
            for line in content.splitlines():
                if line.startswith("$ "):
                    run(line[2:])
            expect_shown(
                "\n".join(line for line in content.splitlines() if not line.startswith("$ ")), capfd.readouterr().err
            )
        elif language == "text":
            expect_shown(content, printed)
    assert executed


@pytest.mark.parametrize("printed", ["", "0.45 <= K <= 1.60, certified", "0.45 <= K <= 1.43, computed", "1.43"])
def test_a_page_that_shows_something_else_is_found(printed: str) -> None:
    expect_shown("0.45 <= K <= 1.43, certified", "0.451 <= K <= 1.43, certified")
    with pytest.raises(AssertionError):
        expect_shown("0.45 <= K <= 1.43, certified", printed)


def hooks() -> ModuleType:
    """The module that fills the page of what is supported."""
    spec = importlib.util.spec_from_file_location("documentation_hooks", ROOT / "docs/hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_support_page_names_everything_that_the_code_has() -> None:
    page = hooks().fill(read("docs/support.md"))
    names = {*KINDS, *FUNCTIONS, *HANDLERS, *(method.name for method in METHODS)}
    missing = sorted(name for name in names if f"`{name}`" not in page)
    assert not missing
    assert "<!--" not in page


def test_the_support_page_shows_what_the_rules_say() -> None:
    tables = hooks().TABLES
    rows = {line.split(" | ")[0].strip("| `"): line for line in tables["functions"]().splitlines()}
    assert "[-0.1289, 1.1289]" in rows["gelu"]
    assert "unbounded" in rows["exp"] and "[0.36788, 2.7183]" in rows["exp"]
    closed = {line.split(" | ")[0].strip("| `"): line for line in tables["closed_forms"]().splitlines()}
    assert closed["Softmax"].count("0.5") == 3
    assert closed["MatMul"].count("needs a box") == 3


def test_every_table_of_the_hook_is_used_once() -> None:
    module = hooks()
    marks = [mark for page in module.PAGES for mark in module.MARK.findall(read(f"docs/{page}"))]
    assert sorted(marks) == sorted(module.TABLES)


@pytest.mark.parametrize("page", PROSE)
def test_links_of_a_page_lead_to_files(page: str) -> None:
    text = re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_readme_tells_the_test_command() -> None:
    assert re.search(r"^make test\b", read("README.md"), re.MULTILINE)
    assert re.search(r"^test:", read("Makefile"), re.MULTILINE)


def test_every_make_target_that_is_told_exists() -> None:
    targets = set(re.findall(r"^(\w+):", read("Makefile"), re.MULTILINE))
    told = {target for page in PROSE for target in re.findall(r"\bmake (\w+)(?:`|  )", read(page))}
    assert told <= targets, told - targets
    assert "test" in told
