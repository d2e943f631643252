"""The live page in Chromium: it opens, draws, changes while a run is written, and survives the run's deletion."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from lipscope.dynamics.recorder import Recorder
from lipscope.report.live import create_app
from report.run_samples import INFO, META, entry, write_run
from report.test_browser import DRAWN, wait_until

pytestmark = pytest.mark.chromium


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = uvicorn.Server(uvicorn.Config(create_app([folder]), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def looking(chromium: Any, address: str, width: int = 1280) -> Iterator[Any]:
    context = chromium.new_context(viewport={"width": width, "height": 900})
    page, problems, requests = context.new_page(), [], []
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    wait_until(page, DRAWN)
    yield page
    assert problems == []
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
    context.close()


def test_follows_a_run_and_outlives_it(chromium: Any, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a", META, INFO)
    for step in range(0, 20, 5):
        recorder.record(entry(step))
    recorder.flush(now=True)
    with serving(tmp_path) as address, looking(chromium, address) as page:
        points = "document.querySelector('#r1-c-sandwich').textContent.length"
        before = page.evaluate(points)
        assert page.locator("#r1-now").inner_text().startswith("At step 15")
        page.evaluate("document.querySelector('[data-figure=\"r1-c-sandwich\"]').dataset.mark = 'kept'")
        for step in range(20, 60, 5):
            recorder.record(entry(step))
        recorder.flush(now=True)
        wait_until(page, "document.querySelector('#r1-now').textContent.includes('At step 55')")
        assert page.evaluate(points) > before
        kept = "document.querySelector('[data-figure=\"r1-c-sandwich\"]').dataset.mark"
        assert page.evaluate(kept) == "kept", "the chart is drawn anew in its place"
        write_run(tmp_path / "b", range(0, 30, 10))
        wait_until(page, "document.querySelector('#r2') !== null")
        wait_until(page, DRAWN)
        recorder.close()
        shutil.rmtree(tmp_path / "a")
        wait_until(page, "document.querySelector('#r1-now').textContent.includes('deleted')")
        wait_until(page, DRAWN)
        assert page.locator("#feed").inner_text() == "live"


def test_opens_before_there_is_a_run_and_fits_a_telephone(chromium: Any, tmp_path: Path) -> None:
    with serving(tmp_path) as address, looking(chromium, address, 360) as page:
        assert "No run has been written" in page.locator("main").inner_text()
        write_run(tmp_path / "a")
        wait_until(page, "document.querySelectorAll('[data-figure]').length >= 7")
        wait_until(page, DRAWN)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_says_when_the_server_has_gone(chromium: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    context = chromium.new_context()
    page = context.new_page()
    with serving(tmp_path) as address:
        page.goto(address)
        wait_until(page, DRAWN)
    wait_until(page, "document.querySelector('#feed').textContent.includes('no connection')")
    assert page.locator("h1").is_visible()
    context.close()
