"""The live page: the report of all runs in a folder, asked for again while trainers write."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse

from lipscope.claims.errors import UsageError
from lipscope.dynamics.store import Run, is_run, open_run
from lipscope.report.page import render
from lipscope.report.runs import RunFacts, gather_run

DELETED = "deleted; this is the last that was read"


class Runs:
    """The runs in some folders, each read on from where the last look ended. A run that is deleted keeps its last state."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self._open: dict[Path, Run] = {}
        self._facts: dict[Path, RunFacts] = {}
        self._names: dict[Path, str] = {}
        self._lock = threading.Lock()

    def look(self) -> tuple[list[RunFacts], str]:
        """The facts of all runs, and a token that changes whenever they do."""
        with self._lock:
            for place in self._places():
                if place not in self._open:
                    self._begin(place)
            for place in list(self._open):
                self._read(place)
            facts = [self._facts[place] for place in sorted(self._facts)]
        words = "|".join(f"{f.folder} {f.token} {f.state}" for f in facts)
        return facts, hashlib.sha256(words.encode()).hexdigest()[:16]

    def _places(self) -> list[Path]:
        """The folders themselves where they are runs, and the runs directly inside them."""
        found = [place for place in self._folders if is_run(place)]
        for folder in self._folders:
            if folder.is_dir():
                found += [place for place in folder.iterdir() if place.is_dir() and is_run(place)]
        return sorted(set(found))

    def _begin(self, place: Path) -> None:
        try:
            self._open[place] = open_run(place)
        except UsageError:  # half written, of another version, deleted meanwhile: looked at again next time
            return
        self._names.setdefault(place, f"r{len(self._names) + 1}")

    def _read(self, place: Path) -> None:
        run = self._open[place]
        try:
            if run.exists:
                run.refresh()
                facts, before = gather_run(run, self._names[place]), self._facts.get(place)
                self._facts[place] = facts if before is None or before.token != facts.token else before
                return
        except (sqlite3.Error, OSError):
            pass
        run.close()
        del self._open[place]
        if place in self._facts:
            self._facts[place] = replace(self._facts[place], state=DELETED)


def create_app(folders: list[Path]) -> FastAPI:
    """An application that serves the page at `/` and news at `/feed`.

    Args:
        folders: runs, or folders with runs in them; runs that appear later are found.
    """
    runs = Runs(folders)
    app = FastAPI(title="lipscope", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        facts, token = runs.look()
        return render([], facts, token)

    @app.get("/feed", response_model=None)
    def feed(token: str = "") -> Response:
        facts, now = runs.look()
        return Response(status_code=204) if now == token else HTMLResponse(render([], facts, now, parts=True))

    # The stores are read while the browser starts.
    threading.Thread(target=page, daemon=True).start()
    return app
