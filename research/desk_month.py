"""A month at the desk: thirty deletion requests about one model.

    python -m research.desk_month                    by commands, with the ledger in SQLite
    python -m research.desk_month --on-the-page      in a browser on the page, with the ledger in PostgreSQL

1 800 pictures of Fashion-MNIST on disk, a SimCLR encoder that 600 of them trained, requests of single people (groups),
of random examples, and one whole class; two are withdrawn and one is refused after its run. Six runs answer the others.
In the end the pictures are deleted, what remembers is erased, and one more request is answered without them.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from benchmarks.machine import machine, summary, write_json
from PIL import Image
from research.desk_clerks import Clerk, CommandClerk, browser_clerk, call
from research.paths import RESULTS, RUNS

import efface
from efface.desk import BatchState, Desk, RequestBatch, open_desk

PEOPLE = 150
"""Invented people whose pictures these are: a request of a person names all of theirs."""
SIZES = {"train": 600, "valid": 200, "holdout": 600, "test": 400}
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
app = typer.Typer(add_completion=False)


def draw(home: Path) -> Path:
    """Write pictures of clothes with a table of whose they are."""
    data = efface.load("fashion-mnist", limit=sum(SIZES.values()))
    pool = np.flatnonzero(data.official == "train")
    assert data.y is not None
    owners = np.random.default_rng(2).integers(0, PEOPLE, len(pool))
    (home / "pictures").mkdir(parents=True)
    rows = []
    for number, (place, owner) in enumerate(zip(pool, owners, strict=True)):
        name = f"pictures/{number:04d}.png"
        Image.fromarray(data.x[place, 0]).save(home / name)
        rows.append([name, int(data.y[place]), f"p{owner:03d}"])
    write_table(home / "clothes.csv", rows)
    return home / "clothes.csv"


def write_table(path: Path, rows: list[list[Any]]) -> None:
    """Write the table of the pictures."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["path", "label", "group"], *rows])


def delete_pictures(table: Path, gone: set[str]) -> None:
    """Delete pictures and their rows, as the owner of the data does."""
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    for name in gone:
        (table.parent / name).unlink()
    write_table(table, [row for row in rows if row[0] not in gone])


def pretrain(home: Path, table: Path, epochs: int) -> Path:
    """Train the model that all requests are about."""
    settings = {
        "data": {"source": str(table), "cache": str(home / "cache")},
        "split": SIZES,
        "recipe": {
            "objective": {"name": "simclr", "temperature": 0.1, "dim": 64},
            "backbone": {"name": "resnet8", "width": 16, "stride": 2},
            "epochs": epochs,
            "batch_size": 64,
            "optim": {"lr": 0.1, "warmup": 0.05},
        },
    }
    (home / "original.yaml").write_text(yaml.safe_dump(settings))
    call("pretrain", "--config", home / "original.yaml", "--out", home / "original", "--device", "cpu", "--quiet")
    return home / "original"


def one_week(clerk: Clerk, number: int, first: int, asked: tuple[str, ...]) -> None:
    """Add, plan, run and release the requests of one week."""
    names = [f"DSR-2026-{first + i:04d}" for i in range(len(asked))]
    for name, forget in zip(names, asked, strict=True):
        goal = "class" if forget.startswith("@class") else "individual"
        clerk.add(name, forget, goal, f"owner of {name}", f"2026-11-{1 + 5 * number:02d}")
    for name in names:
        if WITHDRAWN.get(name) == "received":
            clerk.close(name, "withdraw", "withdrawn by letter")
    planned = [name for name in names if WITHDRAWN.get(name) != "received"]
    clerk.plan(planned)
    for name in planned:
        if name in WITHDRAWN:
            clerk.close(name, "withdraw", "withdrawn by phone")
    left = [name for name in planned if name not in WITHDRAWN]
    clerk.run(left[0])
    if REFUSED in left:
        clerk.close(REFUSED, "refuse", "needed for a legal claim")
        clerk.run(next(name for name in left if name != REFUSED))
    clerk.release(next(name for name in left if name != REFUSED))


def forgotten(run: str) -> set[str]:
    """The ids that the runs of a chain were asked to forget."""
    parts = json.loads((Path(run) / "split.json").read_text())["parts"]
    return {*parts["forget"], *parts.get("earlier", ())}


@contextmanager
def ready_clerk(home: Path, url: str | None) -> Iterator[Clerk]:
    """A clerk in front of a terminal, or of the page."""
    key = home / "release.pem"
    if url is None:
        yield CommandClerk(home / "desk", None, key)
        return
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("Chromium is not installed.")
    with browser_clerk(home / "desk", url, key, chromium) as clerk:
        yield clerk


@contextmanager
def server(wanted: bool) -> Iterator[str | None]:
    """The URL of a private PostgreSQL server; None if none is wanted."""
    if not wanted:
        yield None
        return
    from tests.desk.servers import postgresql

    home = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # the path of a socket must be short
    try:
        with postgresql(home) as url:
            yield url
    finally:
        shutil.rmtree(home, ignore_errors=True)


@app.command()
def main(
    on_the_page: Annotated[bool, typer.Option(help="In a browser and PostgreSQL, not by commands and SQLite.")] = False,
    epochs: Annotated[int, typer.Option(help="Epochs of the original.")] = 120,
    weeks: Annotated[int, typer.Option(help="How many of the six runs are made.")] = len(WEEKS),
) -> None:
    """Replay the month, and write research/results/desk_month.json or desk_month_page.json."""
    torch.set_num_threads(1)
    name = "desk_month_page" if on_the_page else "desk_month"
    home = RUNS / name
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    original = pretrain(home, draw(home), epochs)
    call("keys", "new", home / "release.pem")
    os.environ["EFFACE_ACTOR"] = "ops"
    with server(on_the_page) as url, open_desk(home / "desk", url) as desk:
        desk.add_model("main", original, actor="ops")
        with ready_clerk(home, url) as clerk:
            result = replay_month(clerk, desk, home, weeks)
    result = {"machine": machine(), "ledger": "postgresql" if on_the_page else "sqlite", **result}
    write_json(RESULTS / f"{name}.json", result)


def replay_month(clerk: Clerk, desk: Desk, home: Path, weeks: int) -> dict[str, Any]:
    """All requests, then the erasure, then one more request; returns what the desk holds in the end."""
    first = 1
    for number, asked in enumerate(WEEKS[:weeks]):
        one_week(clerk, number, first, asked)
        first += len(asked)
    runs = [one for one in desk.batches() if one.state is BatchState.RELEASED]
    vectors = home / "vectors.npz"
    call("embed", home / "original", "--out", vectors, "--device", "cpu", "--quiet")
    gone = forgotten(runs[-1].folder)
    delete_pictures(home / "clothes.csv", gone)
    back = erase_all(clerk, desk, runs, vectors)
    with np.load(vectors) as file:
        left = set(file["keys"].tolist()) & gone
    name, forget = LAST
    clerk.add(name, forget, "individual", f"owner of {name}", "2026-11-29")
    clerk.plan([name])
    clerk.run(name)
    clerk.release(name)
    signed = sorted((home / "desk" / "bundles").glob("*.jsonl"))
    good = [clerk.verify(path) for path in signed]
    return facts(desk, clerk, home) | {
        "bundles": len(signed), "bundles_verified": sum(good), "forgotten": len(gone), "vectors_left": len(left),
        "restored_backup": back,
    }  # fmt: skip


def erase_all(clerk: Clerk, desk: Desk, runs: list[RequestBatch], vectors: Path) -> dict[str, Any]:
    """Erase what remembers each request; for those of the first run, restore a backup of the vectors in between.

    With the keys of the other requests destroyed, nobody could tell any more that a backup holds them.
    """
    for run in runs[1:]:
        for name in run.requests:
            clerk.erase(name, [vectors], destroy_key=True)
    backup = vectors.with_name("backup.npz")
    shutil.copy(vectors, backup)
    for name in runs[0].requests:
        clerk.erase(name, [vectors], destroy_key=False)
    before = desk.replay()
    shutil.copy(backup, vectors)
    listed = desk.replay()
    for name in runs[0].requests:
        clerk.erase(name, [vectors], destroy_key=True)
    backup.unlink()
    return {
        "before": len(before), "listed": sorted(one.request for one in listed), "asked": list(runs[0].requests),
        "after": len(desk.replay()),
    }  # fmt: skip


def facts(desk: Desk, clerk: Clerk, home: Path) -> dict[str, Any]:
    """What the desk holds: states, runs and verdicts, the chain, what was erased, how long each action took."""
    requests = {one.id: one for one in desk.requests()}
    chain, check = desk.model("main"), desk.verify()
    outcomes: Counter[str] = Counter()
    for one in requests:
        outcomes.update(f"{artefact.kind}: {artefact.outcome}" for artefact in desk.artefacts(one))
    runs = []
    for batch in desk.batches():
        verdict = batch.verdict
        every = verdict.get("all_requests") or {}
        runs.append({
            "batch": batch.number, "state": batch.state.value, "requests": list(batch.requests),
            "examples": sum(requests[one].count or 0 for one in batch.requests),
            "verdict": verdict.get("word"), "level": verdict.get("level"),
            "all_requests": every and {key: every[key] for key in ("word", "count")},
        })  # fmt: skip
    return {
        "counts": desk.counts(),
        "runs": runs,
        "head": {"folder": Path(chain.head).relative_to(home).as_posix(), "digest": chain.head_digest},
        "chain": {"valid": check.valid, "events": check.events, "head": check.head, "problems": list(check.problems)},
        "replay": [one.as_dict() for one in desk.replay()],
        "erased": dict(sorted(outcomes.items())),
        "seconds": {verb: summary([round(one, 2) for one in took]) for verb, took in clerk.seconds.items()},
    }


if __name__ == "__main__":
    app()
