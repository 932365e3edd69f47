"""How often `request run` and `erase` were cut, killed and repeated, and whether they ended in the same state.

    python -m research.desk_cuts                       all operations of both verbs, and 60 kills of each
    python -m research.desk_cuts --verb run --kills 60

``tests/desk/cuts.py`` makes the cuts; here they are counted. Kills come after a random time, wherever the process then
is; cuts come at one operation: a file opened for writing, renamed or removed, a folder made, a commit of the ledger.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from benchmarks.machine import write_json
from research.paths import RESULTS

RESULT = RESULTS / "desk_cuts.json"
SLICE = 20
"""Kills, or operations, of one job: what is known is written down after each."""
VERBS = ("run", "erase")
app = typer.Typer(add_completion=False)


class CuttingProcess:
    """A process that forks and cuts; see ``tests.desk.cuts``."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="desk-cuts-"))
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.desk.cuts", self.home / "work"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def __enter__(self) -> CuttingProcess:
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(120)
        shutil.rmtree(self.home, ignore_errors=True)

    def ask(self, **job: Any) -> dict[str, Any]:
        """Do a job, and return its counts and problems."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def add_counts(verb: str, way: str, answer: dict[str, Any]) -> None:
    """Add the counts of a job to those that are written down."""
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {"counts": []}
    row = next((one for one in known["counts"] if (one["verb"], one["way"]) == (verb, way)), None)
    if row is None:
        row = {"verb": verb, "way": way, "tried": 0, "killed": 0, "problems": []}
        known["counts"].append(row)
    row["operations"] = answer.get("operations")
    row["tried"] += answer["cuts"]
    row["killed"] += answer.get("killed", 0)
    row["problems"] += answer["problems"]
    write_json(RESULT, known)


@app.command()
def main(
    verb: Annotated[str | None, typer.Option(help="run or erase; by default both.")] = None,
    kills: Annotated[int, typer.Option(help="Kills after a random time, of each verb.")] = 60,
    every: Annotated[int, typer.Option(help="Cut at every so many operations; 0: at none.")] = 1,
    first: Annotated[int, typer.Option(help="Leave out so many operations at the start.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the times of kills.")] = 7,
) -> None:
    """Cut, repeat, compare; counts are added to research/results/desk_cuts.json."""
    verbs = VERBS if verb is None else (verb,)
    with CuttingProcess() as cutting:
        for name in verbs:
            for done in range(0, kills, SLICE):
                answer = cutting.ask(verb=name, kills=min(SLICE, kills - done), seed=seed + done)
                add_counts(name, "killed after a random time", answer)
            at, total = first, first + 1
            while every and at < total:
                answer = cutting.ask(verb=name, every=every, first=at, until=at + SLICE * every)
                add_counts(name, "cut at an operation", answer)
                at, total = at + SLICE * every, answer.get("operations", 0)


if __name__ == "__main__":
    app()
