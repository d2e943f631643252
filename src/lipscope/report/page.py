"""The page: templates filled with facts and words, everything inlined, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import jinja2
from markupsafe import Markup

from lipscope.report import depth_charts, frequency_charts, numbers, run_charts, spectrum_charts, words
from lipscope.report.charts import Figure, interval_chart, layer_chart
from lipscope.report.facts import Facts
from lipscope.report.pairs import PairsFacts
from lipscope.report.runs import RunFacts
from lipscope.report.spectra import SpectrumFacts

PLOTLY = "plotly/plotly-cartesian.min.js"
"""What draws the charts; see the README beside it."""

BOUNDS = (
    "How far the output of a network can move when its input moves by one unit: a proved upper bound, and a pair of inputs that "
    "shows how close it is."
)
SPECTRA = (
    "How much a network amplifies changes of its input, by their frequency: what was measured at data points, and what was proved "
    "for all inputs."
)
TRAINING = (
    "How far the output of a network can move when its input moves by one unit, while it is trained: what was measured on a probe, "
    "what was proved, and which force moved it."
)


def render(
    bundles: Sequence[Facts],
    runs: Sequence[RunFacts] = (),
    token: str = "",
    parts: bool = False,
    spectra: Sequence[SpectrumFacts] = (),
    differences: Sequence[PairsFacts] = (),
) -> str:
    """One HTML document about bundles, runs and spectra, in the given order.

    Args:
        bundles: of `lipscope bound`.
        runs: of the training observer.
        token: of the state that is shown; with one the page asks its server for news.
        parts: leave out scripts and style: news for a page that has them.
        spectra: of `lipscope spectrum`.
        differences: of `lipscope bound --output pairs`; the bundles about all outputs are among `bundles`.
    """
    names = [PLOTLY, "charts.js", *(["live.js"] if token else [])]
    scripts = [] if parts else [_newlines(script) for script in map(_asset, names)]
    return (
        _environment()
        .get_template("page.html")
        .render(
            bundles=bundles,
            runs=runs,
            spectra=spectra,
            differences=differences,
            alone_on_page=len(bundles) + len(runs) + len(spectra) == 1,
            token=token,
            lead=BOUNDS if bundles else SPECTRA if spectra else TRAINING,
            style=Markup("" if parts else _asset("style.css")),
            scripts=[Markup(script) for script in scripts],
            hashes=" ".join(f"'sha256-{_hash(script)}'" for script in scripts),
            title=_title(bundles, runs, spectra),
        )
    )


def embed(figure: Figure) -> Markup:
    """A figure as JSON that cannot end the script element it stands in."""
    text = json.dumps(figure, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _title(bundles: Sequence[Facts], runs: Sequence[RunFacts], spectra: Sequence[SpectrumFacts]) -> str:
    parts = []
    if bundles:
        parts.append(
            f"{len(bundles)} Lipschitz constants" if len(bundles) > 1 else f"Lipschitz constant of {bundles[0].source}"
        )
    if spectra:
        parts.append(f"{len(spectra)} spectra" if len(spectra) > 1 else f"Spectrum of {spectra[0].source}")
    if runs:
        parts.append(f"{len(runs)} training runs" if len(runs) > 1 else f"Training run {runs[0].source}")
    return " and ".join(parts) or "Training runs"


def _asset(name: str) -> str:
    return files("lipscope.report").joinpath("assets", *name.split("/")).read_text(encoding="utf-8")


def _newlines(script: str) -> str:
    """The script as an HTML parser hands it on, which is what its hash is taken of."""
    return script.replace("\r\n", "\n").replace("\r", "\n")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        words=words,
        numbers=numbers,
        charts=run_charts,
        spectrum_charts=spectrum_charts,
        depth_charts=depth_charts,
        frequency_charts=frequency_charts,
        embed=embed,
        interval_chart=interval_chart,
        layer_chart=layer_chart,
        command=_command,
    )
    return environment


def _command(program: str, facts: Facts) -> str:
    """A command line about the bundle, quoted for a shell."""
    return f"{program} {shlex.quote(str(facts.folder))}"
