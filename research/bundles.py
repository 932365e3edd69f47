"""Bundles and run folders that somebody changed: what is refused, and how it is named.

    python -m research.bundles mutants       more than 1 000 changed bundles, by reason code
    python -m research.bundles forgeries     files of runs that were exchanged or edited, and what is then said
    python -m research.bundles ids           a destroyed key, and a dictionary of all ids

The mutants are those of ``tests/reporting/test_mutated_bundles.py``. The forgeries are made on small classifiers that
know random labels by heart (``tests/forgeries.py``), one of which forgot nothing.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer
from benchmarks.machine import machine, write_json
from research.paths import RESULTS
from tests import forgeries
from tests.bundles import bundle, reason_of
from tests.desk.conftest import QUICK, TINY
from tests.forgeries import edit, judge
from tests.reporting.test_mutated_bundles import CASES, mutants

from efface.auditing.observations import Observations
from efface.desk import open_desk
from efface.errors import EffaceError
from efface.reporting.record import record_digest
from efface.reporting.redaction import hmac_digest
from efface.reporting.signing import create_keys, load_signer, public_key_path
from efface.reporting.verify import verify_bundle
from efface.runs import audit, sign, train
from efface.training.checkpoint import content_digest

RESULT = RESULTS / "bundles.json"
app = typer.Typer(add_completion=False)


def keep(name: str, value: Any) -> None:
    """Write one part of the result down beside the others."""
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    write_json(RESULT, known | {"machine": machine() | {"command": "python -m research.bundles"}, name: value})


@app.command("mutants")
def count_mutants() -> None:
    """Count what becomes of each mutated bundle."""
    good = {bundle(name) for name in CASES}
    seen, kinds, unexpected, same = Counter[str](), Counter[str](), 0, 0
    began = time.process_time()
    for kind, (content, expected) in mutants():
        reason = reason_of(content)
        same += content in good
        unexpected += reason not in expected
        seen[reason.value if reason else "accepted"] += 1
        kinds[kind] += 1
    keep("mutants", {
        "mutants": sum(seen.values()), "accepted": seen["accepted"], "unexpected": unexpected, "unchanged": same,
        "cpu_seconds": round(time.process_time() - began, 2), "reasons": dict(seen.most_common()), "kinds": dict(kinds),
    })  # fmt: skip


def said(act: Callable[[], Any]) -> str:
    """What an error says, or what was noticed; empty if nothing was."""
    heard: list[str] = []
    try:
        found = act()
    except EffaceError as error:
        return f"{error.what} {error.why}".strip()
    if isinstance(found, tuple):
        word, heard = found
        return f"verdict '{word}': " + " ".join(heard)
    return found or ""


@app.command("forgeries")
def try_forgeries() -> None:
    """Exchange and edit files of runs, and keep what is said."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="forgeries-") as folder:
        home = Path(folder)
        forgeries.make_runs(home)
        words = {name: judge(home / name).verdict.word for name in ("oracle", "lazy")}
        create_keys(home / "release.pem")
        signer = load_signer(home / "release.pem")
        numbers = itertools.count()

        def lazy() -> Path:
            copy = home / f"lazy-{next(numbers)}"
            shutil.copytree(home / "lazy", copy)
            return copy

        def forged_oracle() -> Any:
            oracle = lazy()
            edit(oracle / "meta.json", lambda meta: meta.update(method={"name": "retrain"}, exact=True), content_digest)
            return judge(lazy(), oracle).verdict.word, ["accepted"]

        def edited_description() -> Any:
            run = lazy()
            edit(run / "meta.json", lambda meta: meta.update(exact=True))
            return judge(run).verdict.word, ["accepted"]

        def swapped_observations() -> Any:
            run, heard = lazy(), list[str]()
            own, clean = (Observations.load(one / "observations.npz") for one in (run, home / "oracle"))
            Observations(own.model, own.split, clean.arrays, own.meta).save(run / "observations.npz")
            found = judge(run, say=heard).verdict.word
            return found, [one for one in heard if "not used" in one]

        def replaced_checkpoint() -> Any:
            run = lazy()
            shutil.copyfile(home / "oracle" / "checkpoint.safetensors", run / "checkpoint.safetensors")
            return judge(run).verdict.word, ["accepted"]

        def replaced_before_signing() -> Any:
            run = lazy()
            shutil.copyfile(home / "oracle" / "checkpoint.safetensors", run / "checkpoint.safetensors")
            return "signed", [str(sign.sign_run(run, signer).path)]

        def replaced_after_signing() -> Any:
            run = lazy()
            made = sign.sign_run(run, signer)
            other = home / "oracle" / "checkpoint.safetensors"
            found = verify_bundle(made.path, public_key_path(home / "release.pem"), other)
            return f"{found.reason.value}: the weights are another file" if found.reason else ""

        def edited_record() -> Any:
            run = lazy()
            edit(run / "record.json", lambda record: record["verdict"].update(word="removed"), record_digest)
            return audit.report_run(run) and ""

        tried = {
            "an oracle that is another run with an edited description": forged_oracle,
            "`meta.json` edited": edited_description,
            "observations of a retrained model under this model's header": swapped_observations,
            "the checkpoint replaced, then audited": replaced_checkpoint,
            "the checkpoint replaced after the audit, then signed": replaced_before_signing,
            "the weights replaced after signing, then verified": replaced_after_signing,
            "the verdict in the record edited, with a digest that fits": edited_record,
            "the report edited, then released at the desk": lambda: edited_report(home, signer),
        }
        rows = [{"forgery": name, "said": said(act).replace(f"{home}/", "")} for name, act in tried.items()]
    keep("forgeries", {"unforged": words, "rows": rows})


def edited_report(home: Path, signer: Any) -> Any:
    """Edit the report of a request that is about to be released."""
    with open_desk(home / "desk") as desk:
        train.pretrain_run(home / "tiny", TINY)
        ids = json.loads((home / "tiny" / "split.json").read_text())["parts"]["retain"]
        desk.add_model("main", home / "tiny", actor="ops")
        desk.add("R1", ids[:6])
        desk.plan(["R1"], QUICK)
        path = Path(desk.run().batch.folder) / "report.html"
        path.write_text(path.read_text(encoding="utf-8").replace("inconclusive", "removed"), encoding="utf-8")
        return "released", [str(desk.release("R1", signer, reason="tested").head)]


@app.command("ids")
def try_dictionary() -> None:
    """Look every id of the data up in a ledger: with the key of a request, and with the key destroyed."""
    with tempfile.TemporaryDirectory(prefix="dictionary-") as folder:
        home = Path(folder)
        train.pretrain_run(home / "tiny", TINY)
        parts = json.loads((home / "tiny" / "split.json").read_text())["parts"]
        ids = [one for part in parts.values() for one in part]
        with open_desk(home / "desk") as desk:
            desk.add_model("main", home / "tiny", actor="ops")
            desk.add("R1", parts["retain"][:7])
            desk.plan(["R1"], QUICK)
            held = set(json.loads(desk.rows(["R1"])[0]["items"]))
            secret = desk.private.key("R1")
            assert secret is not None
            with_key = sum(hmac_digest(secret, one) in held for one in ids)
            desk.private.destroy_key("R1")
            files = [one.read_bytes() for one in home.rglob("*") if one.is_file()]
            found = [value for name in ids for value in (hmac_digest(bytes(32), name), hmac_digest(b"R1", name))]
            without = sum(one in held for one in found)
            check = desk.verify()
            left = sum(secret in one or secret.hex().encode() in one for one in files)
    keep("dictionary", {
        "ids": len(ids), "in_the_request": 7, "found_with_the_key": with_key, "found_without": without,
        "files_that_hold_the_key": left, "chain_valid": check.valid, "events": check.events,
    })  # fmt: skip


if __name__ == "__main__":
    app()
