"""Fuzzing: damaged and malicious inputs are read right or refused with advice; they run no code, hang or fill memory.

    python -m research.fuzz lists --minutes 10            research/results/fuzz_lists.json
    python -m research.fuzz runs --cases 500 --seed 3
    python -m research.fuzz npz --case 0:17               one case again, with its traceback

TARGET is lists, manifests, npz, checkpoints or runs. Every case is made from a seed of the library's own by
``research.fuzz.mutations`` and depends on the seed and its number alone. Cases run in batches, each in a forked process
with limited memory and time. A case fails if anything but success or :class:`EffaceError` comes out, if code in the
file was run, if other examples or weights came out than a plain parser reads, after 20 seconds, or beyond 4 GB.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmarks.machine import machine, write_json
from research.fuzz.cases import MARK, FuzzCase, Target, WrongIdentity
from research.fuzz.files import Checkpoints, Npz
from research.fuzz.folders import Runs
from research.fuzz.texts import Lists, Manifests
from research.paths import RESULTS

from efface.errors import EffaceError

TARGETS: dict[str, type[Target]] = {
    "lists": Lists,
    "manifests": Manifests,
    "npz": Npz,
    "checkpoints": Checkpoints,
    "runs": Runs,
}
SECONDS, MEMORY, BATCH = 20, 4 * 2**30, 50
LARGEST = 2000
"""Longest reproducer that is stored, in characters of base64; a longer one is made again with --case."""


@dataclass
class Failure:
    """A kind of failure, with the first case that showed it."""

    kind: str
    """``exception``, ``code run``, ``wrong identity``, ``hang``, ``memory`` or ``died``."""
    what: str
    where: str
    case: str
    """SEED:NUMBER, for ``--case``."""
    seed: str
    """The file that the case was made from."""
    reproducer: str = ""
    """The changed file: base64 of its zlib-compressed bytes; empty if too long."""
    count: int = 1


@dataclass
class Tally:
    """The outcomes of a target."""

    cases: int = 0
    read: int = 0
    refused: int = 0
    failures: list[Failure] = field(default_factory=list)

    def add(self, found: Failure) -> None:
        """Count a failure; only the first of a kind at a place is kept in full."""
        for known in self.failures:
            if (known.kind, known.where) == (found.kind, found.where):
                known.count += 1
                return
        self.failures.append(found)


class Hang(BaseException):
    """A case took too long. No library code catches it: it is no ``Exception``."""


def rng_of(name: str, seed: int, number: int) -> random.Random:
    """The source of everything random in one case."""
    return random.Random(f"{name} {seed} {number}")


def judge(case: FuzzCase, folder: Path, seconds: float = SECONDS) -> tuple[str, str, str]:
    """Run a case; return its outcome (``read``, ``refused`` or a kind of failure), what happened, and where."""
    outcome, what, where = "read", "", ""
    try:
        with time_limit(seconds):
            case.check()
    except EffaceError as error:
        outcome, what = "refused", str(error)
        if not error.what.strip():
            outcome, where = "exception", "an error without a message"
    except Hang as error:
        outcome, what, where = "hang", f"more than {seconds} s", place(error)
    except MemoryError as error:
        outcome, what, where = "memory", f"more than {MEMORY >> 30} GB", place(error)
    except WrongIdentity as error:
        outcome, what, where = "wrong identity", str(error)[:600], case.seed
    except BaseException as error:
        outcome, what, where = (
            "exception",
            f"{type(error).__name__}: {error}"[:600],
            f"{type(error).__name__} {place(error)}",
        )
    if (folder / MARK).exists():
        outcome, what, where = "code run", f"code in the file was run; then: {what}"[:600], case.seed
    return outcome, what, where


def place(error: BaseException) -> str:
    """The last line of efface that an error went through, and where it was raised."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name != stop_hanging.__name__]
    ours = [frame for frame in frames if "/efface/" in frame.filename]
    shown = [f"{Path(frame.filename).name}:{frame.name}" for frame in (ours[-1:] + frames[-1:])]
    return " > ".join(dict.fromkeys(shown))


def stop_hanging(number: int, frame: Any) -> None:
    """Handle the alarm."""
    raise Hang


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`Hang` in the block after some seconds."""
    kept = signal.signal(signal.SIGALRM, stop_hanging)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)


def run_one(target: Target, name: str, seed: int, number: int, folder: Path) -> tuple[str, Failure | None]:
    """Make and judge one case in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    case = target.make(rng_of(name, seed, number), folder)
    outcome, what, where = judge(case, folder)
    if outcome in ("read", "refused"):
        return outcome, None
    packed = base64.b64encode(zlib.compress(case.content, 9)).decode()
    return outcome, Failure(
        outcome, what, where, f"{seed}:{number}", case.seed, packed if len(packed) <= LARGEST else ""
    )


def limit_memory(allowed: int = MEMORY) -> None:
    """Let this process take ``allowed`` bytes more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + allowed
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_batch(target: Target, name: str, seed: int, numbers: range, folder: Path, tally: Tally, until: float) -> int:
    """Run cases in a forked process until one kills it or the time is up; return the number of the next case."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work(target, name, seed, numbers, folder, writer, until)
    os.close(writer)
    at, rest, ready = numbers.start, b"", [child]
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while at < numbers.stop:
            ready, _, _ = select.select([pipe], [], [], SECONDS + 10)
            part = pipe.read(65536) if ready else b""
            if not part:
                break
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                word, failure = json.loads(line)
                _count(tally, word, failure and Failure(**failure))
                at += 1
    stuck = at < numbers.stop and not ready
    if stuck:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if at < numbers.stop and (stuck or os.WIFSIGNALED(status)):
        kind = "hang" if stuck else "died"
        what = "in compiled code" if stuck else f"signal {os.WTERMSIG(status)}"
        _count(tally, kind, Failure(kind, what, what, f"{seed}:{at}", ""))
        at += 1
    return at


def _work(target: Target, name: str, seed: int, numbers: range, folder: Path, writer: int, until: float) -> None:
    """The forked process: one line about each case, then leave without cleaning up."""
    code = 1
    try:
        limit_memory()
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        for number in numbers:
            if time.monotonic() > until:
                break
            outcome, failure = run_one(target, name, seed, number, folder)
            os.write(writer, json.dumps([outcome, failure and asdict(failure)]).encode() + b"\n")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _count(tally: Tally, word: str, failure: Failure | None) -> None:
    tally.cases += 1
    tally.read += word == "read"
    tally.refused += word == "refused"
    if failure is not None:
        tally.add(failure)


def fuzz(name: str, home: Path, *, seed: int = 0, cases: int | None = None, minutes: float | None = None) -> Tally:
    """Fuzz one target until the cases or the minutes are over."""
    torch.set_num_threads(1)  # a forked process cannot use the threads of its parent
    target, tally = TARGETS[name](home / "seeds"), Tally()
    until = time.monotonic() + 60 * minutes if minutes else float("inf")
    number, end = 0, cases or 10**9
    while number < end and time.monotonic() < until:
        batch = range(number, min(number + BATCH, end))
        after = run_batch(target, name, seed, batch, home / "case", tally, until)
        if after == number and time.monotonic() < until:
            raise RuntimeError(f"the process that runs the cases ended at once, at case {seed}:{number}")
        number = after
    return tally


def again(name: str, home: Path, case: str) -> int:
    """Run one case in this process, with its traceback."""
    seed, number = map(int, case.split(":"))
    torch.set_num_threads(1)
    target, folder = TARGETS[name](home / "seeds"), home / "case"
    folder.mkdir(parents=True)
    made = target.make(rng_of(name, seed, number), folder)
    print(f"made from {made.seed}, {len(made.content)} bytes: {made.content[:400]!r}")
    try:
        with time_limit(SECONDS):
            made.check()
    except BaseException:
        traceback.print_exc()
        return 1
    print("read")
    return 0


def main() -> int:
    """Read the command line; the exit code is 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m research.fuzz")
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--cases", type=int, help="number of cases per target, instead of minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", metavar="SEED:NUMBER", help="run one case again")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of fuzz_TARGET.json")
    asked = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="efface-fuzz-") as home:
        os.environ["XDG_CACHE_HOME"] = f"{home}/cache"
        if asked.case:
            return again(asked.target, Path(home), asked.case)
        for name in TARGETS if asked.target == "all" else [asked.target]:
            start = time.monotonic()
            minutes = asked.minutes or (None if asked.cases else 2.0)
            tally = fuzz(name, Path(home) / name, seed=asked.seed, cases=asked.cases, minutes=minutes)
            result = {"target": name, "seed": asked.seed, "minutes": round((time.monotonic() - start) / 60, 2)}
            write_json(
                asked.out / f"fuzz_{name}.json", result | asdict(tally) | {"machine": machine()}, hide=Path(home)
            )
            print(
                f"{name}: {tally.cases} cases, {tally.read} read, {tally.refused} refused, "
                f"{len(tally.failures)} failures"
            )
            for one in tally.failures:
                print(f"  {one.kind} x{one.count}, case {one.case} of {one.seed}: {one.what[:300]} [{one.where}]")
            failed |= bool(tally.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
