"""`lipscope ui`: the page of training runs, live."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipscope.claims.errors import UsageError
from lipscope.cli.console import stderr


def command(
    runs: Annotated[list[Path], typer.Argument(help="Runs, or folders with runs in them; new ones are found.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is reached from this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8470,
) -> None:
    """Show training RUNS while they are written: open the address that is printed. Ctrl-C ends it."""
    import socket

    import uvicorn

    from lipscope.report.live import create_app

    missing = [str(folder) for folder in runs if not folder.is_dir()]
    if missing:
        raise UsageError(
            f"expected folders with runs, got {', '.join(missing)}, where there is no folder; Observer(run=...) makes them"
        )
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    stderr().print(
        f"live    http://{host}:{listener.getsockname()[1]}/   (Ctrl-C ends it)", markup=False, soft_wrap=True
    )
    server = uvicorn.Server(uvicorn.Config(create_app(runs), log_level="warning"))
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        return
