"""`lipscope report`: one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipscope.cli.console import stderr


def command(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles that `lipscope bound -o` wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path("report.html"),
) -> None:
    """Write one HTML page about BUNDLES that can be read offline."""
    from lipscope.report import write_report

    write_report(bundles, output)
    stderr().print(f"report  {output}", markup=False, soft_wrap=True)
