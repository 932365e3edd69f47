"""Who answers the requests of ``research.desk_month``: by commands, or in a browser on the page of the desk."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface import cli

if TYPE_CHECKING:
    from playwright.sync_api import Page

METHOD = "margin_matching"
WATCH = "audit.watch={views: 4, gradient: false}"
FINISHED = (0, 3, 4, 5)
"""Exit codes of a run whose audit ended."""
LONGEST_MS = 900_000


def call(*words: object, expect: Sequence[int] = (0,)) -> dict[str, Any]:
    """Run a command of efface in this process, and return its result."""
    said, failed = io.StringIO(), io.StringIO()
    kept, sys.argv = sys.argv, ["efface", *map(str, words), "--json"]
    code: Any = 0
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(failed):
            cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = kept
    if code not in expect:
        raise RuntimeError(f"efface {' '.join(map(str, words))}: exit code {code}: {failed.getvalue()[-2000:]}")
    print(f"{code}  efface {' '.join(map(str, words))[:110]}", flush=True)
    return {"exit_code": code, **json.loads(said.getvalue().splitlines()[-1])}


def timed(act: Callable[..., Any]) -> Callable[..., Any]:
    """Keep how long each call of an action of a clerk takes, in seconds."""

    @wraps(act)
    def keep(clerk: Clerk, *given: Any, **named: Any) -> Any:
        began = time.monotonic()
        made = act(clerk, *given, **named)
        clerk.seconds.setdefault(act.__name__, []).append(time.monotonic() - began)
        return made

    return keep


class Clerk(ABC):
    """Answers requests.

    Args:
        desk: Folder of the desk.
        ledger: URL of the ledger; None: SQLite in the folder.
        key: The private key that signs.

    """

    def __init__(self, desk: Path, ledger: str | None, key: Path) -> None:
        self.key, self.public = key, key.with_suffix(".pub.pem")
        self.common: list[Any] = ["--desk", desk, *(["--ledger", ledger] if ledger else [])]
        self.seconds: dict[str, list[float]] = {}

    @abstractmethod
    def add(self, name: str, forget: str, goal: str, asked_by: str, received: str) -> None:
        """Write a request down."""

    @abstractmethod
    def close(self, name: str, verb: str, reason: str) -> None:
        """Refuse or withdraw a request."""

    @abstractmethod
    def plan(self, names: Sequence[str]) -> None:
        """Plan requests, to be answered by one run."""

    @abstractmethod
    def run(self, name: str) -> None:
        """Run what was planned with a request."""

    @abstractmethod
    def release(self, name: str) -> None:
        """Release the run of a request."""

    @abstractmethod
    def erase(self, name: str, places: Sequence[Path], *, destroy_key: bool) -> None:
        """Erase what remembers a request."""

    @abstractmethod
    def verify(self, bundle: Path) -> bool:
        """Whether a bundle is good."""


class CommandClerk(Clerk):
    """Answers by commands."""

    @timed
    def add(self, name: str, forget: str, goal: str, asked_by: str, received: str) -> None:
        """By ``efface request add``."""
        words = ["--forget", forget, "--goal", goal, "--asked-by", asked_by, "--received", received]
        call("request", "add", name, *words, *self.common)

    @timed
    def close(self, name: str, verb: str, reason: str) -> None:
        """By ``efface request refuse`` or ``withdraw``."""
        call("request", verb, name, "--reason", reason, *self.common)

    @timed
    def plan(self, names: Sequence[str]) -> None:
        """By ``efface request plan``."""
        call("request", "plan", *names, "--method", METHOD, "--device", "cpu", "--set", WATCH, *self.common)

    @timed
    def run(self, name: str) -> None:
        """By ``efface request run``, which takes all that was planned together."""
        call("request", "run", *self.common, "--quiet", expect=FINISHED)

    @timed
    def release(self, name: str) -> None:
        """By ``efface request release``."""
        call("request", "release", name, "--key", self.key, "--reason", "the best that the method gives", *self.common)

    @timed
    def erase(self, name: str, places: Sequence[Path], *, destroy_key: bool) -> None:
        """By ``efface erase``."""
        words: list[Any] = [word for place in places for word in ("--place", place)]
        words += ["--destroy-key"] if destroy_key else []
        call("erase", name, *words, "--key", self.key, *self.common, expect=(0, 3))

    @timed
    def verify(self, bundle: Path) -> bool:
        """By ``efface verify``."""
        return bool(call("verify", bundle, "--key", self.public)["accepted"])


class BrowserClerk(Clerk):
    """Answers in a browser, on the page that ``efface desk`` serves."""

    page: Page
    address: str

    def _open(self, name: str) -> None:
        self.page.goto(f"{self.address}/requests/{name}")

    def _press(self, button: str) -> None:
        """Press a button, and wait for the page that follows; a page that says what is wrong raises."""
        with self.page.expect_navigation(timeout=LONGEST_MS):
            self.page.get_by_role("button", name=button, exact=True).click()
        wrong = self.page.locator("[role=alert], .box.bad:has-text('failed')")
        if wrong.count():
            raise RuntimeError(f"{button}: {self.page.title()}: {wrong.first.inner_text()}")
        print(f"page  {button}: {self.page.title()}", flush=True)

    def _wait_for_work(self, name: str) -> None:
        box = self.page.locator("#progress [data-state]")
        self.page.wait_for_function(
            "() => document.querySelector('#progress [data-state]')?.dataset.state !== 'running'", timeout=LONGEST_MS
        )
        self._open(name)
        state = box.get_attribute("data-state")
        if state != "done":
            raise RuntimeError(f"{name}: the work ended as {state}: {box.inner_text()}")

    @timed
    def add(self, name: str, forget: str, goal: str, asked_by: str, received: str) -> None:
        """With the form of a new request."""
        self.page.goto(f"{self.address}/add")
        for field, value in (("id", name), ("forget", forget), ("asked_by", asked_by), ("received", received)):
            self.page.fill(f"#{field}", value)
        self.page.select_option("#goal", goal)
        self._press("Write it down")

    @timed
    def close(self, name: str, verb: str, reason: str) -> None:
        """With the form to refuse or withdraw."""
        self._open(name)
        self.page.locator("summary", has_text=verb.capitalize()).click()
        self.page.fill(f"#{verb}-reason", reason)
        self._press(verb.capitalize())

    @timed
    def plan(self, names: Sequence[str]) -> None:
        """With the form of a plan, in which the others are ticked."""
        self._open(names[0])
        self.page.select_option("#method", METHOD)
        for other in names[1:]:
            self.page.get_by_label(f"{other} (").check()
        self._press("Make the plan")
        self._wait_for_work(names[0])

    @timed
    def run(self, name: str) -> None:
        """With the button of the plan."""
        self._open(name)
        self._press("Start: unlearn and audit")
        self._wait_for_work(name)

    @timed
    def release(self, name: str) -> None:
        """With the form below the verdict."""
        self._open(name)
        reason = self.page.locator("#release-reason")
        if reason.count():
            reason.fill("the best that the method gives")
        self._press("Release and sign")

    @timed
    def erase(self, name: str, places: Sequence[Path], *, destroy_key: bool) -> None:
        """With the form of what else remembers: first looked, then erased."""
        self._open(name)
        self.page.fill("#places", "\n".join(map(str, places)))
        self.page.set_checked("#destroy_key", destroy_key)
        self._press("Look, and change nothing")
        self.page.check("#sure")
        self._press("Erase")

    @timed
    def verify(self, bundle: Path) -> bool:
        """With the form to verify a bundle."""
        self.page.goto(f"{self.address}/verify")
        self.page.set_input_files("#bundle", bundle)
        self._press("Verify")
        return self.page.locator(".box.good").count() == 1


@contextmanager
def browser_clerk(desk: Path, ledger: str | None, key: Path, chromium: str) -> Iterator[BrowserClerk]:
    """Serve the page in a process of its own, open it in chromium, and end both."""
    from playwright.sync_api import sync_playwright

    clerk = BrowserClerk(desk, ledger, key)
    settings = [f"method={METHOD}", "device=cpu", WATCH]
    words = ["--key", key, *(word for one in settings for word in ("--set", one)), "--json", "--quiet"]
    command = [sys.executable, "-m", "efface", "desk", *map(str, [*clerk.common, *words])]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        clerk.address = url.partition("/?")[0]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            clerk.page = browser.new_page()
            clerk.page.goto(url)
            yield clerk
            browser.close()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
