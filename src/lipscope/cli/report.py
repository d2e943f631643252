"""`lipscope report`: one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipscope.cli.console import stderr


def command(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="BUNDLE|RUN...",
            help="What `lipscope bound -o`, `lipscope spectrum -o` or the training observer wrote.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path("report.html"),
) -> None:
    """Write one HTML page about bundles and training runs that can be read offline."""
    from lipscope.report import write_report

    write_report(folders, output)
    stderr().print(f"report  {output}", markup=False, soft_wrap=True)
