"""The page in a real browser, served by the command: what it shows, at the width of a desk and of a phone."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn", reason="the extra desk is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture
def address(desk, ids, url, tmp_path) -> Iterator[str]:
    """The address of a page in a process of its own."""
    desk.add("R1", ids[:3], asked_by="A. <b>Smith</b>")
    words = ["desk", "--desk", str(tmp_path / "desk"), "--ledger", url, "--json", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "efface", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate(timeout=60)[1]
        yield json.loads(line)["url"]
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and "The page was closed" in said and "Traceback" not in said


def render(address: str, folder: Path, *words: str) -> str:
    """What chromium makes of a page."""
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"]
    made = subprocess.run(
        [CHROMIUM, *options, *words, address], capture_output=True, text=True, timeout=120, check=True
    )
    return made.stdout


def test_it_listens_on_this_computer_only_and_opens_with_its_token(address):
    port = urlsplit(address).port
    assert port is not None and urlsplit(address).hostname == "127.0.0.1"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30)
    with socket.socket() as other:
        other.settimeout(10)
        assert other.connect_ex(("127.0.0.2", port)) != 0
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/add", data=b"id=R2", timeout=30)


@browser
def test_a_browser_shows_a_request_and_keeps_the_token_out_of_the_address(address, tmp_path):
    shown = render(address.replace("/?", "/requests/R1?"), tmp_path / "profile", "--dump-dom")
    assert "<h1>R1</h1>" in shown and "A. &lt;b&gt;Smith&lt;/b&gt;" in shown
    assert urlsplit(address).query.partition("=")[2] not in shown


@browser
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_draws_the_inbox(address, tmp_path, width):
    picture = tmp_path / "inbox.png"
    render(address, tmp_path / "profile", f"--screenshot={picture}", f"--window-size={width},900")
    content = picture.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (width, 900)
    assert len(set(content)) > 200 and len(content) > 5000, "more than an empty page"
