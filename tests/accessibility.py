"""Pages in chromium, for people who use a screen reader, a phone or a dark screen: axe-core, widths and cut labels."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SCHEMES = ("light", "dark")
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
PICTURES = os.environ.get("EFFACE_PICTURES")
"""A folder for pictures of all pages, to be looked at."""
CUT_LABELS = """() => [...document.querySelectorAll("svg text")].filter(text => {
    const outer = text.ownerSVGElement.getBoundingClientRect(), box = text.getBoundingClientRect();
    return box.left < outer.left - 0.5 || box.right > outer.right + 0.5
        || box.top < outer.top - 0.5 || box.bottom > outer.bottom + 0.5;
}).map(text => text.textContent)"""
"""Texts of figures that reach beyond their figure."""


@contextmanager
def open_browser() -> Iterator[Any]:
    """Start chromium; skip the test where it, playwright or axe-core is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def findings(page: Any, within: str | None = None) -> list[str]:
    """What axe-core finds wrong with a page, or with the elements of a CSS selector."""
    from axe_playwright_python.sync_playwright import Axe

    response = Axe().run(page, context=within, options=RULES).response
    assert len(response["passes"]) > 10, "it looked"
    return [f"{one['id']} ({one['impact']}): {one['nodes'][0]['html'][:150]}" for one in response["violations"]]


def look(page: Any, name: str, *, load: str | None = None, within: str | None = None) -> dict[str, list[str]]:
    """What is wrong with a page at both sizes and in both color schemes.

    The page is the one that is open, or that of an address which is loaded again each time: its script may look at the
    color scheme then only.
    """
    wrong = dict[str, list[str]]()
    for (size, (width, height)), scheme in itertools.product(SIZES.items(), SCHEMES):
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        if load:
            page.goto(load)
            page.wait_for_timeout(300)  # a script makes what scrolls reachable by keyboard
        if PICTURES:
            page.screenshot(path=Path(PICTURES) / f"{name}-{size}-{scheme}.png", full_page=True)
        wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        found = [*findings(page, within), *([f"{wider} pixels too wide"] if wider > 0 else [])]
        found += [f"cut: {text}" for text in page.evaluate(CUT_LABELS)]
        wrong |= {f"{name}, {size}, {scheme}": found} if found else {}
    return wrong


def look_at_files(browser: Any, files: Mapping[str, Path], within: str | None = None) -> dict[str, list[str]]:
    """What is wrong with pages on disk, by name; fails if one of them asks a server for something."""
    context, wrong, asked = browser.new_context(bypass_csp=True), dict[str, list[str]](), set[str]()
    page = context.new_page()
    page.on("request", lambda one: asked.add(one.url) if one.url.startswith("http") else None)
    for name, path in files.items():
        wrong |= look(page, name, load=path.as_uri(), within=within)
    context.close()
    assert asked == set()
    return wrong
