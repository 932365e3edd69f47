"""A month at the desk: thirty deletion requests about one model, through the command line.

    python -m research.desk_month                          ledger in SQLite
    python -m research.desk_month --ledger postgresql://user@host/name

Digits as pictures on disk, a SimCLR encoder that 600 of them trained, requests of single people (groups), of random
examples, and one whole class; two are withdrawn and one is refused after its run. Six runs answer the others. In the
end the pictures are deleted, what remembers is erased, and one more request is answered without them.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from benchmarks.machine import machine, write_json
from PIL import Image
from research.paths import RESULTS, RUNS
from sklearn.datasets import load_digits

from efface import cli

HOME = RUNS / "desk_month"
PEOPLE = 150
"""Invented writers of the digits: a request of a person names all of theirs."""
WEEKS: tuple[tuple[str, ...], ...] = (
    ("@group:p003", "@group:p010", "@random:6", "@group:p017", "@group:p021"),
    ("@group:p030", "@random:9", "@group:p041", "@group:p048", "@group:p052"),
    ("@class:9",),
    ("@group:p060", "@group:p066", "@random:12", "@group:p071", "@group:p077", "@group:p080"),
    ("@group:p085", "@group:p090", "@group:p096", "@random:5", "@group:p101", "@group:p104"),
    ("@group:p110", "@group:p113", "@random:8", "@group:p119", "@group:p125", "@group:p130"),
)
"""Requests of one run, by what they ask for: 29, and one more after the pictures are gone."""
WITHDRAWN = {"DSR-2026-0005": "received", "DSR-2026-0017": "planned"}
REFUSED = "DSR-2026-0023"
LAST = ("DSR-2026-0030", "@group:p140")
PLAN = ["--method", "margin_matching", "--device", "cpu", "--set", "audit.watch={views: 4, gradient: false}"]
app = typer.Typer(add_completion=False)


def call(*words: object, expect: tuple[int, ...] = (0,)) -> dict[str, Any]:
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
    print(f"{code}  efface {' '.join(map(str, words))[:150]}", flush=True)
    return {"exit_code": code, **json.loads(said.getvalue().splitlines()[-1])}


def draw(home: Path) -> Path:
    """Write the digits as pictures with a table of who wrote which."""
    x, y = load_digits(return_X_y=True)
    writers = np.random.default_rng(0).integers(0, PEOPLE, len(x))
    (home / "pictures").mkdir(parents=True)
    rows = []
    for number, (pixels, label, writer) in enumerate(zip(x, y, writers, strict=True)):
        name = f"pictures/digit-{number:04d}.png"
        Image.fromarray((pixels.reshape(8, 8) * 15).astype(np.uint8)).save(home / name)
        rows.append([name, label, f"p{writer:03d}"])
    write_table(home / "digits.csv", rows)
    return home / "digits.csv"


def write_table(path: Path, rows: list[list[Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["path", "label", "group"], *rows])


def delete_pictures(home: Path, gone: set[str]) -> None:
    """Delete pictures and their rows, as the owner of the data does."""
    with open(home / "digits.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    for name in gone:
        (home / name).unlink()
    write_table(home / "digits.csv", [row for row in rows if row[0] not in gone])


def pretrain(home: Path, table: Path, epochs: int) -> Path:
    """Train the model that all requests are about."""
    settings = {
        "data": {"source": str(table), "cache": str(home / "cache")},
        "split": {"train": 600, "valid": 200, "holdout": 600, "test": 297},
        "recipe": {
            "objective": {"name": "simclr", "temperature": 0.1, "dim": 64},
            "backbone": {"name": "resnet8", "width": 16, "stride": 1},
            "epochs": epochs,
            "batch_size": 64,
            "optim": {"lr": 0.1, "warmup": 0.05},
        },
    }
    (home / "original.yaml").write_text(yaml.safe_dump(settings))
    call("pretrain", "--config", home / "original.yaml", "--out", home / "original", "--device", "cpu", "--quiet")
    return home / "original"


def one_week(number: int, first: int, asked: tuple[str, ...], common: list[Any], key: Path) -> dict[str, Any]:
    """Add, plan, run and release the requests of one week."""
    names = [f"DSR-2026-{first + i:04d}" for i in range(len(asked))]
    for name, forget in zip(names, asked, strict=True):
        goal = "class" if forget.startswith("@class") else "individual"
        day = f"2026-11-{min(28, 1 + 5 * number):02d}"
        words = ["--forget", forget, "--goal", goal, "--asked-by", f"writer of {name}", "--received", day]
        call("request", "add", name, *words, *common)
    for name in names:
        if WITHDRAWN.get(name) == "received":
            call("request", "withdraw", name, "--reason", "withdrawn by letter", *common)
    planned = [name for name in names if name not in WITHDRAWN or WITHDRAWN[name] == "planned"]
    call("request", "plan", *planned, *PLAN, *common)
    for name in names:
        if WITHDRAWN.get(name) == "planned":
            call("request", "withdraw", name, "--reason", "withdrawn by phone", *common)
    made = call("request", "run", *common, "--quiet", expect=(0, 3, 4))
    if REFUSED in planned:
        call("request", "refuse", REFUSED, "--reason", "needed for a legal claim", *common)
        made = call("request", "run", *common, "--quiet", expect=(0, 3, 4))
    batch = made["batch"]
    released = call(
        "request", "release", batch["requests"][0], "--key", key, "--reason", "the best that the method gives", *common
    )
    verdict = batch["verdict"]
    every = verdict.get("all_requests") or {}
    return {
        "batch": batch["number"],
        "requests": batch["requests"],
        "verdict": verdict["word"],
        "level": verdict["level"],
        "all_requests": every and {name: every[name] for name in ("word", "count")},
        "certified": released["certified"],
        "bundles": released["bundles"],
        "run": batch["folder"],
    }


def forgotten(run: str) -> set[str]:
    """The ids that the runs of a chain were asked to forget."""
    parts = json.loads((Path(run) / "split.json").read_text())["parts"]
    return {*parts["forget"], *parts.get("earlier", ())}


@app.command()
def main(
    ledger: Annotated[str | None, typer.Option(help="Where the ledger is; by default SQLite.")] = None,
    epochs: Annotated[int, typer.Option(help="Epochs of the original.")] = 120,
    weeks: Annotated[int, typer.Option(help="How many of the six runs are made.")] = len(WEEKS),
) -> None:
    """Replay the month, and write research/results/desk_month.json."""
    torch.set_num_threads(1)
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    original = pretrain(HOME, draw(HOME), epochs)
    key = HOME / "release.pem"
    call("keys", "new", key)
    common = ["--desk", HOME / "desk", *(["--ledger", ledger] if ledger else [])]
    os.environ["EFFACE_ACTOR"] = "ops"
    call("request", "model", original, *common)
    first, runs = 1, []
    for number, asked in enumerate(WEEKS[:weeks]):
        runs.append(one_week(number, first, asked, common, key))
        first += len(asked)
    vectors = HOME / "vectors.npz"
    call("embed", original, "--out", vectors, "--device", "cpu", "--quiet")
    gone = forgotten(runs[-1]["run"])
    delete_pictures(HOME, gone)
    outcomes: Counter[str] = Counter()
    for run in runs:
        for name in run["requests"]:
            place = ["--place", vectors]
            erased = call("erase", name, *place, "--key", key, "--destroy-key", *common, expect=(0, 3))
            outcomes.update(f"{one['kind']}: {one['outcome']}" for one in erased["artefacts"])
    left = set(np.load(vectors)["keys"].tolist()) & gone
    name, forget = LAST
    call("request", "add", name, "--forget", forget, "--received", "2026-11-30", *common)
    call("request", "plan", name, *PLAN, *common)
    last = call("request", "run", *common, "--quiet", expect=(0, 3, 4))["batch"]
    call("request", "release", name, "--key", key, "--reason", "the best that the method gives", *common)
    good = [call("verify", path, "--key", HOME / "release.pub.pem")["accepted"] for path in bundles(HOME)]
    listed = call("request", "list", *common)
    result = {
        "machine": machine(),
        "ledger": "postgresql" if ledger else "sqlite",
        "counts": listed["counts"],
        "runs": [{k: v for k, v in run.items() if k not in ("bundles", "run")} for run in runs],
        "after_erasing": {"verdict": last["verdict"]["word"], "all_requests": last["verdict"].get("all_requests")},
        "bundles_verified": sum(good),
        "bundles": len(good),
        "erased": dict(sorted(outcomes.items())),
        "vectors_left": len(left),
        "chain": call("request", "verify", *common),
        "replay": call("request", "replay", *common, expect=(0, 3))["items"],
    }
    write_json(RESULTS / ("desk_month_postgresql.json" if ledger else "desk_month.json"), result)


def bundles(home: Path) -> list[Path]:
    """The signed bundles of the desk."""
    return sorted((home / "desk" / "bundles").glob("*.jsonl"))


if __name__ == "__main__":
    app()
