"""A small bench on this machine, on a Dask cluster and in a queue of jobs, each killed in the middle in every way.

    python -m research.killed_benches                          three times each
    python -m research.killed_benches --rounds 10 --on dask

The same grid is run by ``local``, by a Dask scheduler with two workers, and by submitit's local executor. Killed with
SIGKILL, after a random number of tasks and a random time: a process of a task, the scheduler (which is then started
again), or the command (which is then given again). Counted are tasks that are lost or were made twice, files of results
that differ from those of a bench that nobody killed, and processes that are still there 10 s after the command was
killed. Every round is written to research/results/killed_benches.json when it is over.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from benchmarks.machine import machine, read_json, write_json
from research.paths import RESULTS, ROOT
from tests.bench.test_bench import journal
from tests.bench.test_places import SMALL, outcomes, untimed
from tests.tasks.clusters import PYTHON, DaskCluster, alive

RESULT = RESULTS / "killed_benches.json"
MARK = "EFFACE_KILLED_BENCH"
"""Environment variable by which the processes of a command are found, also after it has ended."""
ORPHAN_SECONDS = 10.0
CASES = {
    "local": ("process of a task", "command"),
    "dask": ("process of a task", "scheduler", "command"),
    "slurm": ("process of a task", "command"),
}
TASK_PROCESSES = {"local": "multiprocessing.spawn", "slurm": "submitit"}
"""What the command line of a process of a task holds."""


class KilledCommand:
    """The command that runs the bench, with the processes that it starts."""

    def __init__(self, grid: Path, home: Path, on: str) -> None:
        self.mark = uuid.uuid4().hex
        words = [sys.executable, "-m", "efface", "bench", grid, "--out", home, "--on", on, "--quiet"]
        self.home = home
        self.log = home.with_suffix(".log").open("ab")
        self.process = subprocess.Popen(
            list(map(str, words)), stdout=self.log, stderr=self.log, cwd=ROOT, start_new_session=True,
            env=os.environ | PYTHON | {MARK: self.mark},
        )  # fmt: skip

    def processes(self, holding: str = "") -> list[int]:
        """Processes of the command that are alive, itself left out."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes()
                words = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            pid = int(folder.name)
            if marked and pid != self.process.pid and holding in words and alive(pid):
                found.append(pid)
        return found

    def wait_for(self, met: Callable[[], Any], seconds: float = 600.0) -> bool:
        """Wait until something is so or the command has ended; whether it became so."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            if met():
                return True
            time.sleep(0.02)
        return False

    def finish(self) -> int:
        """Wait for the end; returns the exit code."""
        code = self.process.wait(1200)
        self.log.close()
        return code


def count_done(home: Path) -> int:
    """Number of tasks that are done."""
    return sum(journal(home).values()) if (home / "journal.jsonl").exists() else 0


def run_round(
    place: str, what: str, grid: Path, home: Path, usual: Path, *, at: int, more: float = 0.0
) -> dict[str, Any]:
    """Run the bench, kill a part of it once, and compare what it made in the end with ``usual``.

    Args:
        place: Where the tasks run, one of ``CASES``.
        what: What is killed.
        grid: The file of the grid.
        home: The folder of the bench.
        usual: The folder of the same bench that nobody killed.
        at: Number of tasks after which it is killed.
        more: Seconds after that.

    """
    cluster = DaskCluster(Path(tempfile.mkdtemp(dir=home.parent)))
    try:
        if place == "dask":
            cluster.begin()
        on = {"local": "local", "dask": cluster.on, "slurm": "slurm:any?cluster=local"}[place]
        command = KilledCommand(grid, home, on)
        reached = command.wait_for(lambda: count_done(home) >= at and (home / "originals").exists())
        time.sleep(more)
        found: dict[str, Any] = {"on": place, "killed": what, "after": count_done(home), "orphans": 0}
        found["in time"] = reached and command.process.poll() is None
        if what == "command":
            command.process.kill()
            command.finish()
            time.sleep(ORPHAN_SECONDS)
            found["orphans"] = len(command.processes())
            command = KilledCommand(grid, home, on)
        elif what == "scheduler":
            cluster.scheduler.kill()
            cluster.scheduler.wait()
            cluster.begin()
        elif place == "dask":
            cluster.parts[random.choice((1, 2))].kill()
        else:
            one = random.choice(command.processes(TASK_PROCESSES[place]) or [0])
            found["in time"] = found["in time"] and bool(one)
            if one:
                os.kill(one, signal.SIGKILL)
        found["exit"] = command.finish()
    finally:
        cluster.end()
    made, wanted = journal(home), journal(usual)
    files = [untimed(json.loads((one / "results.json").read_text(encoding="utf-8"))) for one in (usual, home)]
    found["lost"] = len(set(wanted) - set(made))
    found["twice"] = sum(count > 1 for count in made.values())
    found["same results"] = files[0] == files[1] and outcomes(usual) == outcomes(home)
    found["left"] = sorted(path.name for path in home.rglob("*") if path.suffix in (".partial", ".tmp"))
    return found


def main() -> None:
    """Run all rounds, and write each down when it is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="How often each part of each bench is killed.")
    parser.add_argument("--on", choices=sorted(CASES), help="Only this one.")
    chosen = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="killed-benches-"))
    try:
        grid = work / "grid.yaml"
        grid.write_text(yaml.safe_dump(SMALL), encoding="utf-8")
        usual = work / "usual"
        if KilledCommand(grid, usual, "local").finish():
            raise SystemExit((work / "usual.log").read_text(encoding="utf-8"))
        rounds = read_json(RESULT)["rounds"] if RESULT.exists() else []
        for number in range(chosen.rounds):
            for place, parts in CASES.items():
                for what in parts if chosen.on in (None, place) else ():
                    done = [one for one in rounds if (one["on"], one["killed"]) == (place, what) and one["in time"]]
                    if len(done) > number:
                        continue
                    home = work / f"{place}-{what}-{len(rounds)}".replace(" ", "-")
                    at, more = random.randrange(6), random.uniform(0, 1.5)
                    found = run_round(place, what, grid, home, usual, at=at, more=more)
                    print(json.dumps(found), flush=True)
                    rounds.append(found)
                    write_json(RESULT, {"machine": machine(), "tasks": len(journal(usual)), "rounds": rounds})
        bad = [one for one in rounds if one["lost"] or one["twice"] or not one["same results"] or one["orphans"]]
        if bad:
            raise SystemExit(f"{len(bad)} rounds with a problem")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
