"""Every verb that writes, cut at every change to the file system: the same command goes on to the same final state.

By default some of the cuts are made, so that the suite stays short; EFFACE_ALL_CUTS=1 makes all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

ALL = bool(os.environ.get("EFFACE_ALL_CUTS"))
LOOK = ["--set", "watch={views: 2, gradient: false, bank: 20, cap: 20, test_cap: 20}", "--device", "cpu", "--quiet"]


def jobs(home: Path) -> dict[str, tuple[int, list[list[object]]]]:
    """By verb: how many cuts to skip by default, and the commands."""
    base, work = home / "base", home / "work"
    settings = ["--config", home / "tiny.yaml", "--device", "cpu", "--quiet"]
    unlearn = ["unlearn", work / "original", "--forget", "@random:0.2", "--device", "cpu", "--quiet"]
    stated = base.with_name("vectors")
    return {
        "pretrain": (7, [["pretrain", "--out", work / "new", *settings]]),
        "pretrain over a run": (9, [["pretrain", "--out", work / "tuned", "--force", *settings]]),
        "unlearn": (5, [[*unlearn, "--method", "finetune", "--out", work / "new"]]),
        "retrain": (9, [[*unlearn, "--method", "retrain", "--out", work / "new"]]),
        "audit": (7, [["audit", work / "tuned", *LOOK]]),
        "audit elsewhere": (9, [["audit", work / "tuned", "--out", work / "evidence", *LOOK]]),
        "report": (1, [["report", work / "audited", "--quiet"]]),
        "relearn": (5, [["relearn", work / "tuned", "--steps", 1, "--every", 1, *LOOK]]),
        "references": (13, [["references", work / "tuned", "--out", work / "refs", "--count", 1, *LOOK[-3:]]]),
        "references --bank": (
            23,
            [["references", work / "original", "--bank", 4, "--out", work / "bank", "--jobs", 1, *LOOK]],
        ),
        "rehearse": (
            23,
            [["rehearse", work / "tuned", "--requests", 5, "--size", 4, "--out", work / "tried", "--jobs", 1, *LOOK]],
        ),
        "bench": (
            23,
            [["bench", base.with_name("grid.yaml"), "--out", work / "compared", "--jobs", 1, "--quiet"]],
        ),
        "canaries plan": (
            2,
            [["canaries", "plan", "--data", "digits", "--count", 20, "--seed", 1, "--out", work / "plan", "--quiet"]],
        ),
        "canaries guess": (
            7,
            [["canaries", "guess", work / "forgot", "--plan", work / "coins", *LOOK, "--set", "watch.cap=99"]],
        ),
        "embed npz": (1, [["embed", work / "tuned", "--out", work / "v.npz", "--device", "cpu", "--quiet"]]),
        "embed npy": (3, [["embed", work / "tuned", "--out", work / "v.npy", "--device", "cpu", "--quiet"]]),
        "audit embeddings": (
            2,
            [["audit", "--embeddings", f"{stated}0.npy", f"{stated}1.npy", "--out", work / "judged", "--quiet"]],
        ),
    }


VERBS = list(jobs(Path()))
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ask, Path]]:
    """The process that forks and cuts, with a folder of runs from which each cut starts."""
    home = tmp_path_factory.mktemp("cuts")
    recipe = {"objective": {"name": "simclr"}, "backbone": {"width": 4, "stride": 1}, "epochs": 2, "batch_size": 20}
    split = {"train": 40, "valid": 60, "holdout": 60, "test": 40}
    tiny = {"data": {"source": "digits", "limit": 300}, "split": split, "recipe": recipe}
    (home / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    with_coins = tiny | {"split": split | {"canaries": str(home / "base" / "coins")}}
    (home / "coins.yaml").write_text(yaml.safe_dump(with_coins))
    family = {"recipe": recipe | {"objective": {"name": "cross_entropy"}}}
    grid = tiny | {"forget": {"some": "@random:0.2"}, "seeds": {"selection": [0], "reporting": [10]}, "jobs": 1}
    grid |= {"watch": {"views": 2, "gradient": False, "bank": 20, "cap": 20, "test_cap": 20}, "device": "cpu"}
    grid |= {"families": {"classifier": family}, "methods": {"finetune": {"epochs": 1}}}
    (home / "grid.yaml").write_text(yaml.safe_dump({name: value for name, value in grid.items() if name != "recipe"}))
    for number in range(2):
        vectors = np.random.default_rng(number).normal(size=(40, 2, 6)).astype(np.float32)
        np.save(home / f"vectors{number}.npy", vectors)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cuts", home],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None

    def send(**job: Any) -> dict[str, Any]:
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    base, common = home / "base", ["--device", "cpu", "--quiet"]
    forget = ["unlearn", base / "original", "--forget", "@random:0.2", "--method", "finetune"]
    data = ["--set", "data={source: digits, limit: 300}"]
    made = [
        ["pretrain", "--config", home / "tiny.yaml", "--out", base / "original", *common],
        [*forget, "--out", base / "tuned", *common],
        [*forget, "--seed", 3, "--out", base / "audited", *common],
        ["audit", base / "audited", *LOOK],
        ["canaries", "plan", *data, "--count", 20, "--out", base / "coins", "--quiet"],
        ["pretrain", "--config", home / "coins.yaml", "--out", base / "planned", *common],
        ["unlearn", base / "planned", "--forget", base / "coins" / "included.txt", "--method", "finetune",
         "--out", base / "forgot", *common],
    ]  # fmt: skip
    answer = send(prepare=True, words=[[str(word) for word in words] for words in made])
    assert all(code in (0, 3, 4, 5) for code in answer["codes"]), answer
    for path in base.glob("*/config.yaml"):
        path.write_text(path.read_text().replace(str(base), str(home / "work")))
    try:
        yield send, home
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


@pytest.mark.parametrize("full", [False, True], ids=["killed", "disk full"])
@pytest.mark.parametrize("verb", VERBS)
def test_the_same_command_goes_on_after_every_cut(ask, verb, full):
    send, home = ask
    every, words = jobs(home)[verb]
    every, first = (1, 0) if ALL else (every * (3 if full else 1) + 1, 1 if full else 0)
    answer = send(words=[[str(word) for word in one] for one in words], every=every, first=first, full=full)
    with (home.parent / "cuts.jsonl").open("a") as kept:
        kept.write(json.dumps({"verb": verb, "full": full, **answer}) + "\n")
    assert answer["cuts"] > 0 and not answer["problems"], "\n".join(answer["problems"][:3])
