"""`lipscope inspect`: every operation with its status, before anything is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.table import Table

from lipscope.claims.errors import UnsupportedError
from lipscope.cli.console import InputShape, Json, Model, Weights, print_json, shapes, stderr

if TYPE_CHECKING:
    from lipscope.network.load.operation import Operation


def command(model: Model, json: Json = False, input_shape: InputShape = None, weights: Weights = None) -> None:
    """List every operation of MODEL: shape, layer, and whether it is supported. Exit code 3 if one is not."""
    from lipscope.network.load.load import list_operations

    operations = list_operations(model, input_shape=shapes(input_shape), weights=weights)
    unsupported = [o for o in operations if o.status == "unsupported"]
    if json:
        print_json({
            "source": model,
            "supported": not unsupported,
            "operations": [
                {"operator": o.operator, "layer": o.layer, "shape": o.shape and list(o.shape), "status": o.status, "remark": o.remark}
                for o in operations
            ],
        })  # fmt: skip
    else:
        show(operations)
    if unsupported:
        raise typer.Exit(UnsupportedError.exit_code)


def show(operations: list[Operation]) -> None:
    """The operations as a table on stderr, and a sentence that sums them up."""
    console = stderr()
    table = Table("operation", "layer", "shape", "status", "remark", box=None, pad_edge=False)
    colour = {"supported": "green", "folded": "dim", "discontinuous": "yellow", "unsupported": "bold red"}
    for o in operations:
        shape = "?" if o.shape is None else "x".join(map(str, o.shape)) or "scalar"
        table.add_row(o.operator, o.layer, shape, f"[{colour[o.status]}]{o.status}[/]", o.remark)
    console.print(table)
    counts = {status: sum(o.status == status for o in operations) for status in colour}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items() if count))
