"""The page in Chromium: it opens from a file without a network, draws its charts, and fits the screen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.chromium

DRAWN = "[...document.querySelectorAll('[data-figure]')].every(e => e.querySelector('.main-svg .xtick, .main-svg .trace, .main-svg .points, .main-svg .hm'))"


def wait_until(page: Any, condition: str) -> None:
    """Ask again and again from outside: the page's own policy forbids it to evaluate text."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never became true: {condition}")


@contextmanager
def opened(chromium: Any, path: Path, width: int = 1280, scheme: str = "light") -> Iterator[Any]:
    """A page with its charts drawn; at the end it must have had no error and no request but for itself."""
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page, problems, requests = context.new_page(), [], []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    wait_until(page, DRAWN)
    yield page
    assert problems == []
    assert [url for url in requests if not url.startswith(("file://", "data:", "blob:"))] == []
    context.close()


@pytest.mark.parametrize("width", [360, 768, 1280, 1600])
def test_every_case_is_drawn_and_fits(chromium: Any, pages: dict[str, Path], width: int) -> None:
    with opened(chromium, pages["all"], width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        places = page.locator("[data-figure]")
        assert places.count() >= 30
        sizes = places.evaluate_all(
            "all => all.map(e => e.querySelector('.main-svg').getBoundingClientRect().width / e.clientWidth)"
        )
        assert all(0.98 <= size <= 1.001 for size in sizes)


@pytest.mark.parametrize("name", ["certified", "hostile", "unbounded", "independent"])
def test_single_pages_open(chromium: Any, pages: dict[str, Path], name: str) -> None:
    with opened(chromium, pages[name], 360) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator("h1").is_visible()
        assert page.locator(".modebar").count() == 0


def test_charts_follow_the_colour_scheme(chromium: Any, pages: dict[str, Path]) -> None:
    colour = "getComputedStyle(document.querySelector('.xtick text')).fill"
    ground = "getComputedStyle(document.body).backgroundColor"
    with opened(chromium, pages["certified"], scheme="dark") as page:
        dark = brightness(page.evaluate(colour)), brightness(page.evaluate(ground))
        before = page.evaluate(colour)
        page.emulate_media(color_scheme="light")
        wait_until(page, f"{colour} !== '{before}'")
        light = brightness(page.evaluate(colour)), brightness(page.evaluate(ground))
    assert dark[0] > 140 and dark[1] < 60, "light text on a dark ground"
    assert light[0] < 120 and light[1] > 200, "dark text on a light ground"


def test_prints_light_even_from_a_dark_screen(chromium: Any, pages: dict[str, Path]) -> None:
    colour = "getComputedStyle(document.querySelector('.xtick text')).fill"
    with opened(chromium, pages["certified"], scheme="dark") as page:
        before = brightness(page.evaluate(colour))
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert brightness(page.evaluate(colour)) < 120 < before
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert brightness(page.evaluate(colour)) == before


def test_bars_are_the_layers_norms(chromium: Any, pages: dict[str, Path]) -> None:
    with opened(chromium, pages["deep"]) as page:
        assert page.locator("#b1-layerchart").count() == 1
        assert page.locator("[data-figure=b1-layerchart] .bars .point").count() == 140


def test_hostile_names_run_nothing_and_show_as_they_are(chromium: Any, pages: dict[str, Path]) -> None:
    with opened(chromium, pages["hostile"]) as page:
        page.on("dialog", lambda dialog: pytest.fail("a name was run"))
        bar = page.locator("[data-figure=b1-layerchart] .bars .point").nth(2)
        bar.scroll_into_view_if_needed()
        bar.hover(force=True)
        page.wait_for_selector(".hoverlayer .hovertext")
        assert "1. </script><script>alert(" in page.locator(".hovertext").first.text_content()
        assert page.locator("h1").inner_text().endswith("{{7*7}}")


def brightness(colour: str) -> float:
    return sum(float(part) for part in re.findall(r"[\d.]+", colour)[:3]) / 3
