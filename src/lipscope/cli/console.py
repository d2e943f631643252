"""What all commands share: output streams, progress, the options that say which model."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.status import Status

from lipscope.claims.errors import UsageError
from lipscope.claims.progress import Progress

if TYPE_CHECKING:
    from lipscope.network.load.load import LoadedModel

PATIENCE = 2.0
"""Seconds after which a user is told what is going on."""

Model = Annotated[str, typer.Argument(help="An .onnx, .onnx.gz or .pt2 file, or package.module:factory.")]
InputShape = Annotated[
    str | None,
    typer.Option("--input-shape", help="Shape of one example without its batch, as 1,28,28; inputs separated by ';'."),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="A .safetensors, .pt or .pth file for package.module:factory.")
]
Mean = Annotated[
    str | None, typer.Option("--mean", help="Subtracted before the model: one number, or one per channel, as .1,.2,.3.")
]
Std = Annotated[
    str | None, typer.Option("--std", help="Divided by before the model; the constant is then in raw units.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]


def stderr() -> Console:
    """The console for tables and messages."""
    return Console(stderr=True, highlight=False)


def complain(message: str, code: int) -> int:
    """Print an error on stderr and return the exit code."""
    console = stderr()
    console.print("[bold red]error:[/] ", end="")
    console.print(message, markup=False, soft_wrap=True)
    return code


def print_json(document: object) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress report that says nothing for the first two seconds; a spinner on a terminal, lines elsewhere."""
    console = stderr()
    began: float | None = None  # of the first report: loading a model is not what is being waited for
    last = time.monotonic()
    status: Status | None = None

    def show(message: str, fraction: float) -> None:
        nonlocal began, last, status
        now = time.monotonic()
        began = now if began is None else began
        if now - began < PATIENCE:
            return
        text = f"{message} ({fraction:.0%}, {now - began:.0f} s)"
        if console.is_terminal:
            if status is None:
                status = console.status(text)
                status.start()
            status.update(text)
        elif now - last >= PATIENCE:
            last = now
            console.print(text, markup=False)

    try:
        yield show
    finally:
        if status is not None:
            status.stop()


def numbers(text: str | None, option: str) -> float | list[float] | None:
    """One number, or a list of numbers separated by commas."""
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"expected numbers separated by commas for {option}, got {text!r}") from None
    return values[0] if len(values) == 1 else values


def shapes(text: str | None) -> list[int] | list[list[int]] | None:
    """The shape of one example, or of each input."""
    if text is None:
        return None
    parts = text.split(";")
    if not all(re.fullmatch(r"\s*[1-9]\d*\s*(,\s*[1-9]\d*\s*)*", part) for part in parts):
        raise UsageError(f"expected a shape of positive integers such as 1,28,28 for --input-shape, got {text!r}")
    found = [[int(n) for n in part.split(",")] for part in parts]
    return found[0] if len(found) == 1 else found


def read_model(
    model: str, input_shape: str | None, weights: Path | None, mean: str | None, std: str | None
) -> LoadedModel:
    """The model that the command's arguments name."""
    from lipscope.api import load

    return load(
        model, input_shape=shapes(input_shape), weights=weights, mean=numbers(mean, "--mean"), std=numbers(std, "--std")
    )


def figure(value: object) -> str:
    """A number for people, six significant digits; a dash where there is none."""
    return f"{value:.6g}" if isinstance(value, (int, float)) else "-"
