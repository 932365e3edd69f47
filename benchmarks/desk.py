"""The desk with 100 000 requests: seconds until the page is open, and of the commands that look at the ledger.

    python -m benchmarks.desk [--requests 100000] [--repeats 5]

Results in benchmarks/results/desk.json. Each command is a process of its own, so that starting Python is part of it.
``cpu``: seconds of the processor of that process, which other work on the machine hardly delays.
"""

from __future__ import annotations

import argparse
import http.cookiejar
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bundles import bundle, signer

from benchmarks.machine import RESULTS, machine, summary, write_json
from efface.desk import open_desk
from efface.reporting.signing import create_keys, public_key_path

PAGES = {
    "inbox": "/",
    "last page of all": "/?show=all&page=2000",
    "search": "/?search=099999",
    "one request": "/requests/DSR-000500",
}
STATES = ("received",) * 6 + ("withdrawn",) * 4


def fill(home: Path, count: int) -> None:
    """Write a ledger of so many requests, four of ten of them withdrawn."""
    with open_desk(home) as desk, desk.ledger.writing("ops") as writer:
        model = {"original": "/x", "original_digest": "d", "head": "/x", "head_digest": "d", "head_batch": None}
        writer.append("model", "main", "added", model)
        for number in range(count):
            name, day = f"DSR-{number:06d}", f"2026-{1 + number * 12 // count:02d}-15"
            values = {"folded": name.casefold(), "state": "received", "goal": "individual", "model": "main"}
            values |= {"received": f"{day}T08:00:00Z", "deadline": f"2027-{day[5:]}"}
            values |= {"content": secrets.token_hex(32), "key_digest": secrets.token_hex(32)}
            writer.append("request", name, "received", values)
            if STATES[number % 10] == "withdrawn":
                writer.append("request", name, "withdrawn", {"state": "withdrawn"}, reason="by letter")


def processor() -> float:
    """Seconds of the processor that ended child processes have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def time_command(words: list[str], repeats: int) -> dict[str, Any]:
    """Time a command that ends."""
    times, busy = list[float](), list[float]()
    for _ in range(repeats):
        began, worked = time.perf_counter(), processor()
        subprocess.run([sys.executable, "-m", "efface", *words], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
        busy.append(processor() - worked)
    return summary(times) | {"cpu": summary(busy)}


def time_page(home: Path, repeats: int) -> dict[str, Any]:
    """Time the start of the page until its first page was read, and then its pages."""
    starts, start_cpu = list[float](), list[float]()
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in PAGES}
    for _ in range(repeats):
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "efface", "desk", "--desk", str(home), "--json", "--quiet"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
            browser.open(url, timeout=120).read()
            starts.append(time.perf_counter() - began)
            start_cpu.append(used_by(process.pid))
            for name, path in PAGES.items():
                asked, worked = time.perf_counter(), used_by(process.pid)
                browser.open(url.partition("/?")[0] + path, timeout=120).read()
                found[name][0].append(time.perf_counter() - asked)
                found[name][1].append(used_by(process.pid) - worked)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    start = summary(starts) | {"cpu": summary(start_cpu)}
    return {"start": start, **{name: summary(wall) | {"cpu": summary(busy)} for name, (wall, busy) in found.items()}}


def used_by(pid: int) -> float:
    """Seconds of the processor that a process has used so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "desk"
        began: Callable[[], float] = time.process_time
        start = began()
        fill(home, asked.requests)
        result: dict[str, Any] = {"requests": asked.requests, "filled_cpu_seconds": began() - start, **machine()}
        desk = ["--desk", str(home)]
        create_keys(Path(scratch) / "key.pem")
        (Path(scratch) / "b.intoto.jsonl").write_bytes(bundle("removed"))
        pem = public_key_path(Path(scratch) / "key.pem")
        pem.write_text(public_of())
        commands = {
            "request list": ["request", "list", *desk, "--quiet", "--json"],
            "request list --limit 50": ["request", "list", *desk, "--limit", "50"],
            "request list --search": ["request", "list", *desk, "--search", "099999"],
            "request list --due-by": ["request", "list", *desk, "--due-by", "2027-01-31"],
            "request verify": ["request", "verify", *desk],
            "request show": ["request", "show", "DSR-000500", *desk],
            "verify BUNDLE": ["verify", str(Path(scratch) / "b.intoto.jsonl"), "--key", str(pem)],
        }
        result["commands"] = {name: time_command(words, asked.repeats) for name, words in commands.items()}
        result["page"] = time_page(home, asked.repeats)
    write_json(RESULTS / "desk.json", result)


def public_of() -> str:
    """The public key of the bundle that is verified, as PEM."""
    from efface.reporting.signing import public_pem

    return public_pem(signer().public_key)


if __name__ == "__main__":
    main()
