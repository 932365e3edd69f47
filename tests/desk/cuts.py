"""Cut `efface request run` and `efface erase` again and again, and repeat the same command after each cut.

As ``tests.cuts``: a process imports the package once and forks a child for each cut. Here a commit of the ledger counts
as an operation as well, and a child can also be killed after a time, wherever it then is.

Usage: ``python -m tests.desk.cuts HOME``, with jobs as JSON lines: ``{"verb": "run", "every": 3, "first": 0}`` cuts at
every third operation, ``{"verb": "erase", "kills": 20, "seed": 1}`` kills 20 times after a random time.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests import cuts
from tests.commands import JUDGED
from tests.cuts import CUT, CUTTER, perform

PLAN = [
    "--method", "finetune", "--device", "cpu", "--set", "method.epochs=1", "--quiet",
    "--set", "audit.watch={views: 2, gradient: false, bank: 20, cap: 20, test_cap: 20}",
]  # fmt: skip
DRAWN = re.compile(r"cache/[0-9a-f]{32}|name:[0-9a-f]{12}")
"""Caches are named after times of files, and names of lists are keyed with a secret that is drawn."""
LEFT = re.compile(r', "decoded pictures in [^"]*[.]partial[^"]*"(?:: "[^"]*")?')
"""What is said about a cache that a cut left half made: it holds pictures as well, until it is removed."""
FINISHED = ("No request about 'main' is planned",)
"""What the same command says if it was cut after its last step."""


def prepare(home: Path) -> dict[str, list[str]]:
    """Make a model and a desk in ``home/work``, copies of it before each verb, and return the verbs."""
    from efface.desk import open_desk
    from efface.reporting.signing import create_keys, load_signer
    from efface.runs import embed, train
    from tests.runs.test_erased_data import SETTINGS, draw

    work = home / "work"
    work.mkdir(parents=True)
    draw(work / "pictures")
    train.pretrain_run(
        work / "original", SETTINGS | {"data": {"source": str(work / "pictures"), "cache": str(work / "cache")}}
    )
    ids = json.loads((work / "original" / "split.json").read_text())["parts"]["retain"]
    key = home / "key.pem"
    create_keys(key)
    settings = {"method": {"name": "finetune", "epochs": 1}, "device": "cpu"}
    settings["audit"] = {"watch": {"views": 2, "gradient": False, "bank": 20, "cap": 20, "test_cap": 20}}
    with open_desk(work / "desk") as desk:
        desk.add_model("main", work / "original", actor="ops")
        for name, part in (("R0", ids[:5]), ("R1", ids[5:10]), ("R2", ids[8:14])):
            desk.add(name, part, asked_by="A. Smith")
        desk.plan(["R0"], settings)
        desk.run(["R0"])
        desk.release("R0", load_signer(key), reason="tested")
        desk.plan(["R1", "R2"], settings)
    shutil.copytree(work, home / "base-run")
    with open_desk(work / "desk") as desk:
        desk.run()
        desk.release("R1", load_signer(key), reason="tested")
        embed.embed_checkpoint(work / "original", work / "vectors.npz", {"device": "cpu"})
    for name in ids[5:10]:
        (work / "pictures" / name).unlink()
    shutil.copytree(work, home / "base-erase")
    common = ["--desk", str(work / "desk"), "--quiet"]
    erase = ["erase", "R1", "--place", str(work / "vectors.npz"), "--destroy-key", "--key", str(key), *common]
    return {"run": ["request", "run", *common], "erase": erase}


def state(work: Path) -> dict[str, Any]:
    """What the ledger and the folders say in the end, without times."""
    from efface.desk import open_desk
    from efface.reporting.predicates import UNLEARNING

    with open_desk(work / "desk") as desk:
        desk.ledger.catch_up()
        check = desk.verify()
        found: dict[str, Any] = {
            "valid": check.problems,
            "requests": {one.id: (one.state, one.batch, one.count) for one in desk.requests()},
            "batches": {one.number: (one.state, one.digest, one.weights, one.verdict) for one in desk.batches()},
            "heads": [(one.name, one.head, one.head_digest) for one in desk.models()],
            "events": [(one.subject, one.action) for one in desk.ledger.events()],
            "journal": sum(1 for _ in desk.ledger.journal.lines()) == check.events,
            "replay": [one.line() for one in desk.replay()],
            "artefacts": {one.id: [vars(a) for a in desk.artefacts(one.id)] for one in desk.requests()},
        }
    bundles: dict[str, Any] = {}
    for path in sorted((work / "desk" / "bundles").glob("*.jsonl")):
        envelope = json.loads(path.read_text().splitlines()[0])
        stated = json.loads(base64.b64decode(envelope["payload"]))
        assert stated["predicateType"] == UNLEARNING
        bundles[path.name] = stated["predicate"]["downstream"]
    found["bundles"] = bundles
    names = [str(one.relative_to(work)) for one in work.rglob("*") if one.is_file()]
    passing = (".tmp", ".lock")
    found["files"] = sorted(
        one for one in names if not one.endswith(passing) and not one.startswith(("pictures", "cache"))
    )
    caches = [one.parent.name for one in (work / "cache").glob("*/index.json")]
    found["caches"] = sum(len(one) == 32 for one in caches)  # what a cut left of another is removed after a while
    for folder in (work / "desk" / "runs", work / "original"):
        for path in sorted(one for one in folder.rglob("*") if one.is_file() and one.suffix not in (".html", *passing)):
            content = DRAWN.sub("drawn", LEFT.sub("", cuts._content(path)))
            found[str(path.relative_to(work))] = hashlib.sha256(content.encode()).hexdigest()[:12]
    return json.loads(json.dumps(found, default=str))


def difference(wanted: Any, now: Any) -> Any:
    """What differs between two states: of mappings and lists only the entries that do."""
    if isinstance(wanted, dict) and isinstance(now, dict):
        names = [one for one in wanted | now if wanted.get(one) != now.get(one)]
        return {one: difference(wanted.get(one), now.get(one)) for one in names}
    if isinstance(wanted, list) and isinstance(now, list):
        return [[one for one in wanted if one not in now], [one for one in now if one not in wanted]]
    return [wanted, now]


def child(words: list[str], work: Path, at: int = 0, after: float | None = None) -> tuple[int, str, str]:
    """Run a command in a fork, cut at operation ``at`` or killed after some seconds: exit code, and what it said."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        code, said, _, what = perform({"words": [words]}, work, at)
        os.write(write, json.dumps([said, what]).encode())
        os._exit(code)
    os.close(write)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    said, what = json.loads(text) if text else ("", "")
    return os.waitstatus_to_exitcode(status), said, what


def try_job(job: dict[str, Any], words: list[str], home: Path) -> dict[str, Any]:
    """Run a command once without a cut, then once for each cut, each time from the same start."""
    work, base = home / "work", home / f"base-{job['verb']}"

    def restart() -> None:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(base, work)

    restart()
    began = time.monotonic()
    code, said, total, _ = perform({"words": [words]}, work)
    took = time.monotonic() - began
    if code not in JUDGED:
        return {"cuts": 0, "problems": [f"without a cut: exit code {code}: {said}"]}
    wanted, problems, done, cut = state(work), [], 0, 0
    draw = random.Random(job.get("seed", 0))
    points: list[tuple[int, float | None]] = [(0, draw.uniform(0, took)) for _ in range(job.get("kills", 0))]
    if "kills" not in job:
        last = min(total, job.get("until", total))
        points = [(at, None) for at in range(1 + job.get("first", 0), last + 1, job.get("every", 1))]
    for at, after in points:
        restart()
        done += 1
        first, said, what = child(words, work, at, after)
        cut += first in (CUT, -signal.SIGKILL)
        if first not in (CUT, -signal.SIGKILL, *JUDGED):
            problems.append(f"cut {at or after} ({what}): exit code {first}: {said[-1200:]}")
            continue
        ended, said, _ = child(words, work)
        finished = ended == 2 and any(one in said for one in FINISHED)
        if ended not in JUDGED and not finished:
            problems.append(f"cut {at or after} ({what}): the same command then ends with {ended}: {said[-1200:]}")
            continue
        now = state(work)
        if now != wanted:
            problems.append(
                f"cut {at or after} ({what}): another final state: {json.dumps(difference(wanted, now))[:3000]}"
            )
    return {"operations": total, "cuts": done, "killed": cut, "problems": problems}


def main() -> None:
    """Read jobs, print their results."""
    import torch

    torch.set_num_threads(1)
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    from efface.desk import erasure, planning, releasing, replaying, running  # noqa: F401  (imported once)
    from efface.reporting import amendment  # noqa: F401
    from efface.runs import audit, sign, train  # noqa: F401
    from efface.training import devices

    devices.prefers_bfloat16 = lambda device: False

    def before_commit(connection: Any) -> None:
        if CUTTER.home:
            CUTTER.operation("before a commit")

    event.listen(Engine, "commit", before_commit)
    sys.addaudithook(CUTTER)
    home = Path(sys.argv[1])
    verbs = prepare(home)
    for line in sys.stdin:
        job = json.loads(line)
        sys.stdout.write(json.dumps(try_job(job, verbs[job["verb"]], home)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
