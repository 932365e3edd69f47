"""The page for people who use a keyboard, a screen reader, a phone or a dark screen: in chromium, with axe-core."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from efface.desk import RequestState
from efface.reporting.signing import create_keys, load_signer
from tests.accessibility import look
from tests.desk.conftest import QUICK

pytest.importorskip("uvicorn", reason="the extra desk is not installed")
PATIENCE = 120_000
"""Milliseconds to wait for a page: the first one that erases loads PyTorch."""


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("key") / "release.pem"
    create_keys(path)
    return path


@pytest.fixture
def address(desk, url, key, tmp_path) -> Iterator[str]:
    """The address of the page, served by the command, with a key and plans that run in a second."""
    (tmp_path / "plan.yaml").write_text(json.dumps(QUICK))
    words = ["desk", "--desk", str(tmp_path / "desk"), "--ledger", url, "--key", str(key), "--json", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "efface", *words, "--config", str(tmp_path / "plan.yaml")],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def in_every_state(desk, ids, key) -> dict[str, str]:
    """Requests in all states; returns the paths of the pages to look at."""
    for number, chosen in enumerate((ids[:3], ids[3:6], ids[6:9], ids[9:12], ids[12:15]), 1):
        desk.add(f"R{number}", chosen, asked_by="A. Smith", received="2026-11-01", deadline="2026-11-20")
    for name in ("R1", "R2"):
        desk.plan([name], QUICK)
        desk.run([name])
    desk.release("R1", load_signer(key), reason="tested")
    desk.plan(["R3"], QUICK)
    desk.refuse("R5", "needed for a legal claim")
    states = {"R1": "released", "R2": "audited", "R3": "planned", "R4": "received", "R5": "refused"}
    assert {name: desk.request(name).state.value for name in states} == states
    paths = {"inbox": "/", "all": "/?show=all", "new": "/add", "models": "/models", "model": "/models/main"}
    paths |= {"verify": "/verify", "ledger": "/ledger", "nothing": "/nowhere"}
    return paths | {state: f"/requests/{name}" for name, state in states.items()}


def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(address, desk, ids, key, browser):
    paths = in_every_state(desk, ids, key)
    context = browser.new_context(bypass_csp=True)  # axe-core is a script that the page would not load
    page, wrong = context.new_page(), dict[str, list[str]]()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    for name, path in paths.items():
        page.goto(address.partition("/?")[0] + path)
        if name == "released":
            page.click("text=Look, and change nothing")
        for summary in page.locator("summary").all():
            summary.click()
        wrong |= look(page, name)
    context.close()
    assert wrong == {}


class KeyboardUser:
    """Somebody without a mouse: reaches things with Tab, and sees where the focus is."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def reach(self, *, selector: str = "", text: str = "") -> None:
        """Press Tab until something has the focus: what a selector means, or a button or link of a text."""
        for _ in range(150):
            self.page.keyboard.press("Tab")
            found = self.page.evaluate(
                """([selector, text]) => {
                    const now = document.activeElement, style = getComputedStyle(now);
                    const there = selector ? now.matches(selector) : now.textContent.trim() === text;
                    const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
                    return there ? (seen ? "seen" : "hidden") : "";
                }""",
                [selector, text],
            )
            if found:
                assert found == "seen", f"nothing shows that {selector or text} has the focus"
                return
        raise AssertionError(f"{selector or text} cannot be reached with Tab on {self.page.url}")

    def enter(self, selector: str, text: str) -> None:
        """Type into a field."""
        self.reach(selector=selector)
        self.page.keyboard.type(text)

    def press(self, text: str, key: str = "Enter") -> None:
        """Press a button or follow a link, and wait for the page that comes."""
        self.reach(text=text)
        with self.page.expect_navigation(timeout=PATIENCE):
            self.page.keyboard.press(key)

    def wait_for_work(self) -> None:
        self.page.wait_for_function(
            "() => document.querySelector('#progress [data-state]')?.dataset.state !== 'running'", timeout=PATIENCE
        )
        self.page.reload()


def test_one_request_by_keyboard_alone(address, desk, ids, browser):
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    user = KeyboardUser(page)
    page.goto(address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    user.press("New request")
    user.enter("#id", "R1")
    user.enter("#forget", ids[0])
    page.keyboard.press("Enter")
    page.keyboard.type(ids[1])
    user.enter("#asked_by", "A. Smith")
    user.press("Write it down")
    assert page.url.endswith("/requests/R1"), page.content()
    user.press("Make the plan", "Space")
    user.wait_for_work()
    user.press("Start: unlearn and audit")
    user.wait_for_work()
    assert desk.request("R1").state is RequestState.AUDITED
    if page.locator("#release-reason").count():
        user.enter("#release-reason", "the best that the method gives")
    user.press("Release and sign")
    assert desk.request("R1").state is RequestState.RELEASED
    user.press("Look, and change nothing")
    user.reach(selector="#sure")
    page.keyboard.press("Space")
    user.press("Erase")
    assert {one.outcome for one in desk.artefacts("R1")} >= {"removed"}
    page.close()
