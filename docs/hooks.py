"""Fills the tables of `support.md`, `studies.md` and `frequency.md` from the code when the documentation is built.

Each line `<!-- table: NAME -->` of a page is replaced by what the function `NAME` below returns, so that the page cannot
say anything that the code does not do.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

PAGES = ("support.md", "studies.md", "frequency.md")
MARK = re.compile(r"^<!-- table: (\w+) -->$", re.MULTILINE)

EXAMPLE_ARGUMENTS = {
    "negative_slope": 0.01, "beta": 1.0, "alpha": 1.0, "low": 0.0, "high": 6.0, "lambd": 0.5, "exponent": 3.0,
}  # fmt: skip
"""The parameters with which a function's slopes are shown."""


def on_page_markdown(markdown: str, *, page: object, **_: object) -> str:
    """The page with its tables; the hook that mkdocs calls for every page."""
    if page.file.src_uri not in PAGES:  # type: ignore[attr-defined]
        return markdown
    return fill(markdown)


def fill(markdown: str) -> str:
    """The text with every mark replaced by its table."""
    return MARK.sub(lambda found: TABLES[found[1]](), markdown)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def first_paragraph(documented: object) -> str:
    """The first paragraph of a docstring, on one line."""
    return inspect.cleandoc(documented.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def kinds() -> str:
    """Every kind of node: what it computes, and which rule gives its constant."""
    from lipscope.network.nodes import KINDS
    from lipscope.rules.support import has_rule

    def constant(name: str) -> str:
        kind = KINDS[name]
        if name in ("Input", "Constant"):
            return {"Input": "it is where the map begins: 1", "Constant": "0"}[name]
        if name == "Discontinuous":
            return "none where its jumps reach the output"
        if kind.affine:
            return "its segment's norm" + ("; `join` where branches meet" if has_rule("join", kind) else "")
        if has_rule("slopes", kind):
            return "slopes, see below"
        return (
            " and ".join(f"`{question}`" for question in ("gain", "join") if has_rule(question, kind)) + ", see below"
        )

    return table(
        ["kind", "value", "its constant"], ([f"`{n}`", first_paragraph(KINDS[n]), constant(n)] for n in sorted(KINDS))
    )


def closed_forms() -> str:
    """The constants of nonlinear kinds, asked of the rules for small examples on the whole space."""
    import numpy as np
    import torch

    from lipscope.claims.norms import NORMS
    from lipscope.network import nodes as n
    from lipscope.rules import Interval, NoRule, gain, join

    one, four = {"inputs": (0,), "shape": (1,), "name": "y"}, {"inputs": (0,), "shape": (4,), "name": "y"}
    pair = {"inputs": (0, 1), "shape": (4,), "name": "y"}
    windows = (np.array([[0, 3, 1], [1, 4, 1]], dtype=np.int64),)
    square = {"inputs": (0, 1), "shape": (2, 2), "name": "y"}
    single = [
        ("two overlapping windows of 3", n.MaxPool(inputs=(0,), shape=(2,), name="y", windows=windows)),
        ("4 entries", n.ReduceMax(**one, axes=(0,))), ("4 entries", n.Sort(**four, axis=0)),
        ("4 entries", n.Softmax(**four, axis=0)), ("4 entries", n.LogSoftmax(**four, axis=0)),
        ("4 entries", n.LogSumExp(**one, axes=(0,))), ("4 entries, eps = 1e-5", n.LayerNorm(**four, axes=(0,), eps=1e-5)),
        ("4 entries, eps = 1e-5", n.RMSNorm(**four, axes=(0,), eps=1e-5)), ("4 entries", n.ReduceL2(**one, axes=(0,))),
    ]  # fmt: skip
    several = [n.Add(**pair), n.Concat(**{**pair, "shape": (8,)}, axis=0), n.Maximum(**pair), n.Multiply(**pair),
               n.Divide(**pair), n.MatMul(**square)]  # fmt: skip
    everything = torch.full((4,), math.inf, dtype=torch.float64)
    whole = Interval(-everything, everything)

    def answer(ask: Callable[[], float]) -> str:
        try:
            return f"{ask():.6g}"
        except NoRule:
            return "needs a box"

    def one_input(node: n.Node) -> list[str]:
        return [answer(lambda norm=norm: gain(node, norm, whole)) for norm in NORMS]

    def several_inputs(node: n.Node) -> list[str]:
        return [answer(lambda norm=norm: join(node, norm, (3.0, 4.0), None)) for norm in NORMS]

    rows = [[f"`{node.kind}`", what, *one_input(node)] for what, node in single]
    rows += [[f"`{node.kind}`", "two inputs with constants 3 and 4", *several_inputs(node)] for node in several]
    return table(["kind", "example", *NORMS], rows)


def functions() -> str:
    """Every function of one variable with its slopes on the whole line and on two intervals."""
    import numpy as np
    import torch

    from lipscope.network.nodes import Elementwise
    from lipscope.rules import Interval, slopes
    from lipscope.rules.functions import FUNCTIONS

    def between(node: Elementwise, low: float, high: float) -> str:
        ends = [torch.tensor([x], dtype=torch.float64) for x in (low, high)]
        found = [float(end) for end in slopes(node, Interval(*ends))]
        if not all(map(math.isfinite, found)):
            return "unbounded"
        return "[" + ", ".join(f"{0.0 if abs(x) < 1e-200 else x:.5g}" for x in found) + "]"

    rows = []
    for name, function in sorted(FUNCTIONS.items()):
        given = [p for p in function.parameters if p != "slope"]
        node = Elementwise(
            inputs=(0,), shape=(1,), name=name, function=name,
            arguments=tuple((p, EXAMPLE_ARGUMENTS[p]) for p in given),
            slope=np.array([0.25]) if "slope" in function.parameters else None,
        )  # fmt: skip
        shown = ", ".join(f"{p} = {EXAMPLE_ARGUMENTS[p]:g}" for p in given) + (
            "slope = 0.25" if node.slope is not None else ""
        )
        symmetric = between(node, -1.0, 1.0) if function.start < 0 else "not defined there"
        rows.append([f"`{name}`", shown, between(node, function.start, math.inf), symmetric, between(node, 0.25, 1.0)])
    return table(["function", "shown for", "slopes everywhere", "on [-1, 1]", "on [0.25, 1]"], rows)


def listed(names: Iterable[str]) -> str:
    """Names in alphabetical order, and how many they are."""
    ordered = sorted(names)
    return ", ".join(f"`{name}`" for name in ordered) + f" ({len(ordered)} in all)."


def refused(reasons: Mapping[str, str]) -> str:
    """Names grouped by the reason of their refusal."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(f"`{name}`")
    return table(["operators", "why, and what to do"], ([", ".join(names), reason] for reason, names in groups.items()))


def onnx_operators() -> str:
    """The ONNX operators that are imported."""
    from lipscope.network.load.onnx_ops import HANDLERS

    return listed(HANDLERS)


def onnx_refused() -> str:
    """The ONNX operators that are refused on purpose, with the reason."""
    from lipscope.network.load.onnx_ops import WITHOUT_HANDLER

    return refused(WITHOUT_HANDLER)


def torch_operators() -> str:
    """The torch operators that are imported."""
    from lipscope.network.load.torch_ops import HANDLERS

    return listed(HANDLERS)


def torch_refused() -> str:
    """The torch operators that are refused on purpose, with the reason."""
    from lipscope.network.load.torch_ops import WITHOUT_HANDLER

    return refused(WITHOUT_HANDLER)


def methods() -> str:
    """The bound methods, with what they do."""
    from lipscope.bounds.auto import METHODS

    return table(["method", "what it does"], ([f"`{m.name}`", first_paragraph(type(m))] for m in METHODS))


def studies() -> str:
    """Every study with its claim and what the stored run says about it."""
    from lipscope.studies.study import find, names, stored

    verdicts = {True: "holds", False: "does not hold", None: "cannot tell"}
    rows = []
    for name in names():
        result = stored(name)
        said = "not run yet" if result is None else f"{verdicts[result['holds']]} ({result['seconds']:.0f} s)"
        rows.append([f"[`{name}`](#{name})", find(name).claim, said])
    return table(["study", "claim", "stored run"], rows)


def study_pages() -> str:
    """The description of every study, with the single numbers of its stored run."""
    from importlib.resources import files

    from lipscope.studies.study import names, stored

    parts = []
    for name in names():
        folder = files("lipscope.studies").joinpath(name.replace("-", "_"))
        parts.append(re.sub("^#", "##", folder.joinpath("README.md").read_text(encoding="utf-8"), flags=re.MULTILINE))
        if (result := stored(name)) is not None:
            scalars = [(k, v) for k, v in result["figures"].items() if isinstance(v, (int, float, str))]
            shown = [[f"`{k}`", f"{v:.6g}" if isinstance(v, float) else str(v)] for k, v in scalars]
            place = ", ".join(f"{k} {v}" for k, v in result["environment"].items() if v is not None)
            parts.append(f"### Stored run\n\n`{result['command']}`, {result['seconds']:.0f} s; {place}.")
            parts.append(table(["figure", "value"], shown) if shown else "")
    return "\n\n".join(parts)


def spectral_importance() -> str:
    """Score, accuracies and band gains of the networks of the stored run of `spectral-importance`."""
    from lipscope.studies.study import stored

    result = stored("spectral-importance")
    assert result is not None
    rows = [
        [name, *(with_error(found[key]) for key in ("accuracy", "attacked_accuracy", "score")),
         " ".join(f"{gain['mean']:.2f}" for gain in found["gain"])]
        for name, found in result["figures"]["networks"].items()
    ]  # fmt: skip
    return table(["network", "accuracy", "under attack", "score", "mean gain of the bands, low to high"], rows)


def spectral_importance_ranks() -> str:
    """How the networks' order by score, and by gain, agrees with that by accuracy under attack."""
    from lipscope.studies.study import stored

    result = stored("spectral-importance")
    assert result is not None
    found = result["figures"]["spearman_with_attacked_accuracy"]
    names = {
        "score": "score",
        "score_from_minimum": "score, smallest value subtracted",
        "gain": "largest mean band gain",
    }
    rows = [
        [text, f"{found[key]['median']:.2f}", " ".join(f"{value:.2f}" for value in found[key]["seeds"])]
        for key, text in names.items()
    ]
    return table(["order by", "rank correlation, median over seeds", "each seed"], rows)


def lipschitz_low_pass() -> str:
    """Gains and bounds of the lowest and the highest band in the stored run of `lipschitz-low-pass`."""
    from lipscope.studies.study import stored

    result = stored("lipschitz-low-pass")
    assert result is not None
    rows = [
        [name, with_error(found["accuracy"]), with_error(found["attacked_accuracy"]),
         *(cell for band in (0, -1) for cell in (
             with_error(found["mean"][band]), f"{found['largest'][band]['mean']:.3g}",
             f"{found['proved'][band]['mean']:.3g}")),
         with_error(found["gain_over_margin"])]
        for name, found in result["figures"]["networks"].items()
    ]  # fmt: skip
    bands = [f"{band}: {what}" for band in ("lowest", "highest") for what in ("mean gain", "largest", "proved")]
    return table(["network", "accuracy", "under attack", *bands, "gain over margin"], rows)


def with_error(figure: Mapping[str, float | None]) -> str:
    """A mean with its standard error over seeds."""
    mean, error = figure["mean"], figure["se"]
    return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"


TABLES: dict[str, Callable[[], str]] = {
    f.__name__: f
    for f in (
        kinds, closed_forms, functions, onnx_operators, onnx_refused, torch_operators, torch_refused, methods, studies,
        study_pages, spectral_importance, spectral_importance_ranks, lipschitz_low_pass,
    )
}  # fmt: skip
