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
from plotly.offline import get_plotlyjs

from lipscope.report import numbers, words
from lipscope.report.charts import Figure, interval_chart, layer_chart
from lipscope.report.facts import Facts


def render(reports: Sequence[Facts]) -> str:
    """One HTML document about the bundles, in the given order."""
    scripts = [_newlines(get_plotlyjs()), _newlines(_asset("charts.js"))]
    return (
        _environment()
        .get_template("page.html")
        .render(
            reports=reports,
            style=Markup(_asset("style.css")),
            scripts=[Markup(script) for script in scripts],
            hashes=" ".join(f"'sha256-{_hash(script)}'" for script in scripts),
            title=_title(reports),
        )
    )


def embed(figure: Figure) -> Markup:
    """A figure as JSON that cannot end the script element it stands in."""
    text = json.dumps(figure, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _title(reports: Sequence[Facts]) -> str:
    if len(reports) > 1:
        return f"{len(reports)} Lipschitz constants"
    return f"Lipschitz constant of {reports[0].source}"


def _asset(name: str) -> str:
    return files("lipscope.report").joinpath("assets", name).read_text(encoding="utf-8")


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
        embed=embed,
        interval_chart=interval_chart,
        layer_chart=layer_chart,
        command=_command,
    )
    return environment


def _command(program: str, facts: Facts) -> str:
    """A command line about the bundle, quoted for a shell."""
    return f"{program} {shlex.quote(str(facts.folder))}"
