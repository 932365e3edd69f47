"""Run a command again and again, cut at each change that it makes to the file system, and repeat it after each cut.

A process of its own imports the package once. For each cut it forks a child that counts, with an audit hook, what
changes files under the working folder: files opened for writing, renamed, removed, folders made and removed. The child
ends at operation N without any clean-up, as a killed process does: before the operation, or, for a file that is opened
to be written, right after it was emptied. With ``full`` the operation fails as on a full disk instead.

Usage: ``python -m tests.cuts HOME``, with jobs as JSON lines on standard input: ``{"words": [[...], ...], "every": k,
"full": bool, "prepare": name}``. It prints one JSON line per job: ``{"cuts": n, "problems": [...]}``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import sys
import time
import traceback
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EVENTS = {"os.rename": 0, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.link": 0, "os.symlink": 0, "os.truncate": 0}
CUT, BUG = 77, 78
KEYED = re.compile(r"(item:|hmac-sha256:)[0-9a-f]{12,64}")
"""Digests under a secret that is drawn for each run."""
VOLATILE = {
    "created",
    "seconds",
    "environment",
    "cost",
    "files",
    "config_digest",
    "content_digest",
    "salt",
    "commitment",
    "key_digest",
    "values",
}
"""Entries of JSON files that differ between two runs of the same command: times, and what is drawn secretly."""


class Cutter:
    """An audit hook that ends the process at operation ``at``; with 0 it only counts, and without a home it sleeps."""

    def __init__(self) -> None:
        self.home, self.at, self.full, self.count, self.what = "", 0, False, 0, ""

    def start(self, home: Path | str, at: int = 0, full: bool = False) -> None:
        """Count from now on, below ``home``."""
        self.home, self.at, self.full, self.count, self.what = str(home), at, full, 0, ""

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.home:
            return
        if event == "open":
            path, mode, flags = args
            flags = flags or 0
            changes = bool(flags & WRITING) or any(c in str(mode or "") for c in "wax+")
        elif event in EVENTS:
            path, changes, flags = args[0], True, 0
        else:
            return
        if not changes or not isinstance(path, str | bytes | os.PathLike):
            return
        name = os.fsdecode(path)
        if not name.startswith(self.home) or name.endswith(".lock"):
            return
        self.operation(f"before {event} {name[len(self.home) :]}")
        if event == "open":
            self.operation(f"after {event} {name[len(self.home) :]}", name if flags & os.O_TRUNC else "")

    def operation(self, what: str, emptied: str = "") -> None:
        """Count one operation, and cut at the chosen one."""
        self.count += 1
        if self.count != self.at:
            return
        self.what = what
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        if emptied:
            with contextlib.suppress(OSError):
                os.close(os.open(emptied, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        os._exit(CUT)


CUTTER = Cutter()


def call(words: list[str]) -> int:
    """Run a command and return its exit code; an exception that is no answer of the program is a bug."""
    from efface import cli

    sys.argv = ["efface", *words]
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
        return code if isinstance(code, int) else int(bool(code))
    return 0


def perform(job: dict[str, Any], home: Path | str, at: int = 0) -> tuple[int, str, int, str]:
    """Run the commands of a job in this process: exit code, output, operations, where it was cut."""
    said, streams = io.StringIO(), (sys.stdout, sys.stderr)
    code = 0
    sys.stdout = sys.stderr = said
    CUTTER.start(home, at, bool(job.get("full")))
    try:
        for words in job["words"]:
            code = call(words)
            if code not in (0, 3, 4, 5):
                break
    except BaseException:
        code = BUG
        said.write(traceback.format_exc())
    finally:
        CUTTER.home = ""
        sys.stdout, sys.stderr = streams
    return code, said.getvalue()[-3000:], CUTTER.count, CUTTER.what


def child(job: dict[str, Any], home: Path, at: int) -> tuple[int, str, str]:
    """Run the commands of a job in a fork, cut at operation ``at``: exit code, output, where."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code, said, _, what = perform(job, home, at)
        os.write(write, json.dumps([said, what]).encode())
        os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    said, what = json.loads(text) if text else ("", "")
    return os.waitstatus_to_exitcode(status), said, what


def state(home: Path) -> dict[str, str]:
    """What is in the folder in the end: digests of files, without times and without temporary files and locks."""
    found: dict[str, str] = {}
    for path in sorted(home.rglob("*")):
        name = str(path.relative_to(home))
        if path.is_file() and not name.endswith((".tmp", ".lock", ".html")):
            found[name] = hashlib.sha256(_content(path).encode()).hexdigest()[:12]
    return found


def _content(path: Path) -> str:
    return KEYED.sub("keyed", _raw_content(path))


def _raw_content(path: Path) -> str:
    if path.name in ("items.key", "coins.json", "journal.jsonl"):
        return "secret, or times"
    if path.suffix in (".json", ".jsonl"):
        lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
        return json.dumps([_stable(json.loads(line)) for line in lines], sort_keys=True)
    if path.suffix == ".npz":
        import numpy as np

        with np.load(path, allow_pickle=False) as file:
            arrays = [(name, file[name].tobytes()[:100_000]) for name in sorted(file.files) if name != "__header__"]
            header = json.loads(str(file["__header__"])) if "__header__" in file.files else {}
            header.pop("digest", None)  # of times, too
            return str([arrays, _stable(header)])
    if path.suffix == ".csv":
        return str(len(path.read_text().splitlines()))
    return path.read_bytes().hex()


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        if "second" in str(value.get("name", "")):
            return value["name"]  # a finding about time
        return {key: _stable(one) for key, one in value.items() if key not in VOLATILE and "second" not in str(key)}
    return [_stable(one) for one in value] if isinstance(value, list) else value


def try_cuts(job: dict[str, Any], base: Path, home: Path) -> dict[str, Any]:
    """Do a job once without a cut, then once for each cut, each time from the same start."""

    def restart() -> None:
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(base, home)

    restart()
    code, said, total, _ = perform(job | {"full": False}, home)  # here: what it imports, all forks then have
    if code not in (0, 3, 4, 5):
        return {"cuts": 0, "problems": [f"without a cut: exit code {code}: {said}"]}
    wanted, problems, done = state(home), [], 0
    for at in range(1 + job.get("first", 0), total + 1, job.get("every", 1)):
        restart()
        done += 1
        first, said, what = child(job, home, at)
        if first not in (CUT, 0, 3, 4, 5, 2 if job.get("full") else CUT):
            problems.append(f"cut {at} ({what}): exit code {first}: {said[-1200:]}")
            continue
        ended, said, _ = child(job | {"full": False}, home, 0)
        finished = ended == 2 and ("exists already" in said or "never drawn again" in said)
        if ended not in (0, 3, 4, 5) and not finished:
            problems.append(f"cut {at} ({what}): the same command then ends with {ended}: {said[-1200:]}")
        elif state(home) != wanted:
            now = state(home)
            differ = [name for name in wanted.keys() | now.keys() if wanted.get(name) != now.get(name)]
            problems.append(f"cut {at} ({what}): another final state: {differ}")
    return {"operations": total, "cuts": done, "problems": problems}


class InThisProcess(Executor):
    """Runs each call at once, in this thread."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call; what cuts it is not caught."""
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def in_this_process() -> None:
    """Let the tasks of bench and references run in this process, so that their operations are cut as well."""
    from efface.tasks import runner
    from efface.tasks.executors import OpenedPlace

    runner.open_executor = lambda place, jobs, notes: OpenedPlace(InThisProcess(), 1)


def main() -> None:
    """Read jobs, print their results."""
    import torch

    torch.set_num_threads(1)
    from efface.runs import audit, audit_embeddings, canaries, embed, relearn, train  # noqa: F401  (imported once)
    from efface.training import devices

    devices.prefers_bfloat16 = lambda device: False
    in_this_process()
    sys.addaudithook(CUTTER)
    base, home = Path(sys.argv[1]) / "base", Path(sys.argv[1]) / "work"
    for line in sys.stdin:
        job = json.loads(line)
        if job.get("prepare"):
            base.mkdir(exist_ok=True)
            os.chdir(base)
            codes = [perform({"words": [words]}, base) for words in job["words"]]
            sys.stdout.write(
                json.dumps({"codes": [code for code, *_ in codes], "said": [said[-500:] for _, said, *_ in codes]})
                + "\n"
            )
        else:
            home.mkdir(exist_ok=True)
            os.chdir(home.parent)
            began = time.monotonic()
            sys.stdout.write(
                json.dumps(try_cuts(job, base, home) | {"seconds": round(time.monotonic() - began, 1)}) + "\n"
            )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
