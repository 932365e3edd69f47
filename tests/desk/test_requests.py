"""From a request to its release: plan, run, release, refuse, withdraw, discard, export."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import threading
import zipfile
from pathlib import Path

import pytest

from efface.data.split import read_split
from efface.desk import BatchState, RequestState, open_desk
from efface.errors import EffaceError
from efface.reporting.signing import create_keys, load_signer, public_key_path
from efface.reporting.verify import verify_bundle
from tests.commands import JUDGED
from tests.desk.conftest import QUICK


@pytest.fixture(scope="session")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("key") / "release.pem"
    create_keys(path)
    return path


@pytest.fixture(scope="session")
def signer(key):
    return load_signer(key)


def test_two_requests_one_after_the_other_and_the_head_moves(desk, ids, original, key, signer, tmp_path):
    desk.add("R1", ids[:6], asked_by="A. Smith")
    plan = desk.plan(["R1"], QUICK)
    assert (plan.counts, plan.total, plan.retained, plan.earlier) == ({"R1": 6}, 6, 114, 0)
    assert plan.retraining_steps == 2 * 4 and plan.steps == 4 and plan.method["name"] == "finetune"
    assert not (desk.home / "runs").exists(), "a plan changes nothing"
    made = desk.run()
    assert made.batch.state is BatchState.AUDITED and not made.resumed
    assert made.exit_code in JUDGED
    assert set(read_split(Path(made.batch.folder))["parts"]["forget"]) == set(ids[:6])
    model = desk.model("main")
    assert (model.head, [one.number for one in model.open]) == (str(original.absolute()), [1])
    desk.add("R2", ids[4:9])
    with pytest.raises(EffaceError, match="forgotten them already"):
        desk.plan(["R2"], QUICK)
    skipping = QUICK | {"skip_never_trained": True}
    assert desk.plan(["R2"], skipping).earlier == 6
    second = desk.run(["R2"]).batch
    assert (second.start, second.start_batch) == (made.batch.folder, 1)
    assert second.verdict["all_requests"]["count"] == 9, "all requests are audited together"
    with pytest.raises(EffaceError, match="made from the model of batch 1, which is audited"):
        desk.release("R2", signer, reason="tested")
    if made.exit_code:
        with pytest.raises(EffaceError, match="Give a reason"):
            desk.release("R1", signer)
    desk.release("R1", signer, reason="tested")
    released = desk.release("R2", signer, reason="tested")
    model = desk.model("main")
    assert model.head == released.head == second.folder and [one.number for one in model.released] == [1, 2]
    for name, batch in (("R1", made.batch), ("R2", second)):
        found = verify_bundle(
            desk.bundle_path(name), public_key_path(key), Path(batch.folder) / "checkpoint.safetensors"
        )
        assert found.reason is None and found.stated is not None and found.stated.request_id == name
    assert desk.verify().valid and desk.replay() == []
    archive = desk.export("R2", tmp_path / "R2.zip")
    with zipfile.ZipFile(archive) as opened:
        names = set(opened.namelist())
        held = b"".join(opened.read(name) for name in names)
    assert names == {"request.json", "bundle.intoto.jsonl", "report.html", "record.json", "record.schema.json"}
    assert b"A. Smith" not in held and not [one for one in ids[:9] if f'"{one}"'.encode() in held]


@pytest.mark.parametrize("name", ["report.html", "record.json"])
def test_an_edited_report_or_record_is_named(desk, ids, signer, tmp_path, name):
    desk.add("R1", ids[:6])
    desk.plan(["R1"], QUICK)
    path = Path(desk.run().batch.folder) / name
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace("residue", "removed") + " ", encoding="utf-8")
    with pytest.raises(EffaceError, match=f"{name} is not the one that the audit of batch 1 wrote"):
        desk.release("R1", signer, reason="tested")
    assert not desk.bundle_path("R1").exists() and desk.request("R1").state is RequestState.AUDITED
    path.write_text(whole, encoding="utf-8")
    desk.release("R1", signer, reason="tested")
    path.write_text(whole + " ", encoding="utf-8")
    with pytest.raises(EffaceError, match=f"{name} is not the one"):
        desk.export("R1", tmp_path / "R1.zip")
    assert not (tmp_path / "R1.zip").exists()
    path.unlink()
    assert desk.export("R1", tmp_path / "R1.zip").exists(), "what is gone shows nothing"


def test_several_requests_in_one_run(desk, ids, signer):
    desk.add("R1", ids[:5])
    desk.add("R2", ids[3:9])
    desk.add("R3", "@class:3", goal="class")
    plan = desk.plan(["R1", "R2"], QUICK)
    assert plan.counts == {"R1": 5, "R2": 6} and plan.total == 9
    desk.plan(["R3"], QUICK | {"seed": 3})
    with pytest.raises(EffaceError, match="planned with different settings"):
        desk.run(["R1", "R3"])
    made = desk.run()
    assert made.batch.requests == ("R1", "R2")
    assert {desk.request(one).state for one in ("R1", "R2")} == {RequestState.AUDITED}
    outcome = desk.release("R1", signer, reason="tested")
    assert set(outcome.bundles) == {"R1", "R2"} and desk.request("R2").state is RequestState.RELEASED
    third = desk.run()
    assert third.batch.requests == ("R3",) and third.batch.start == made.batch.folder


def test_a_group_named_after_a_person_is_not_in_the_ledger(desk, original):
    desk.add("R1", "@class:3", goal="class")
    desk.plan(["R1"], QUICK)
    desk.run()
    assert "@class" not in "".join(line.body for line in desk.ledger.journal.lines())


def test_a_refused_request_takes_its_run_with_it_and_the_others_are_planned_again(desk, ids):
    desk.add("R1", ids[:5])
    desk.add("R2", ids[5:9])
    desk.plan(["R1", "R2"], QUICK)
    desk.run()
    assert desk.refuse("R1", "needed for a legal claim").state is RequestState.REFUSED
    assert desk.batch(1).state is BatchState.ABANDONED
    assert (desk.request("R2").state, desk.request("R2").batch) == (RequestState.PLANNED, None)
    again = desk.run(["R2"]).batch
    assert again.number == 2 and again.start_batch is None
    assert set(read_split(Path(again.folder))["parts"]["forget"]) == set(ids[5:9])
    assert desk.discard("R2", "another method").state is RequestState.PLANNED
    assert desk.plan(["R2"], QUICK | {"seed": 5}).settings["seed"] == 5
    assert desk.verify().valid


def test_a_model_that_another_was_made_from_is_not_given_up(desk, ids):
    for name, part in (("R1", ids[:4]), ("R2", ids[4:8])):
        desk.add(name, part)
        desk.plan([name], QUICK)
        desk.run([name])
    with pytest.raises(EffaceError, match="Batch 2 was made from the model of batch 1"):
        desk.withdraw("R1", "they changed their mind")
    desk.withdraw("R2", "they changed their mind")
    assert desk.withdraw("R1", "they changed their mind").state is RequestState.WITHDRAWN


def test_a_run_that_diverges_is_given_up(desk, ids):
    desk.add("R1", ids[:4])
    wild = QUICK | {"method": {"name": "finetune", "epochs": 1, "optim": {"lr": 1e30}}}
    desk.plan(["R1"], wild)
    with pytest.raises(EffaceError, match="no longer a finite number"):
        desk.run()
    assert desk.request("R1").state is RequestState.PLANNED and desk.batch(1).state is BatchState.ABANDONED
    desk.plan(["R1"], QUICK)
    assert desk.run().batch.number == 2


def test_an_edited_list_is_refused(desk, ids):
    desk.add("R1", ids[:4])
    desk.plan(["R1"], QUICK)
    path = desk.private.list_path("R1")
    stored = json.loads(path.read_text())
    stored["keys"][0] = ids[50]
    path.write_text(json.dumps(stored))
    with pytest.raises(EffaceError, match="is not the one that was planned"):
        desk.run()
    assert desk.batches() == []


def test_a_start_that_was_replaced_is_refused(desk, ids, original, tmp_path):
    desk.add_model("other", shutil.copytree(original, tmp_path / "other"))
    desk.add("R1", ids[:4], model="other")
    desk.plan(["R1"], QUICK)
    meta = tmp_path / "other" / "meta.json"
    meta.write_text(meta.read_text().replace('"digest": "', '"digest": "0', 1))
    with pytest.raises(EffaceError):
        desk.run()
    assert desk.batches() == []


def test_a_restored_models_folder_is_noticed(desk, ids, original):
    for name, part in (("R1", ids[:4]), ("R2", ids[4:8])):
        desk.add(name, part)
        desk.plan([name], QUICK)
        desk.run([name])
    folder = Path(desk.batch(2).folder)
    shutil.copy(original / "checkpoint.safetensors", folder / "checkpoint.safetensors")
    assert [(one.what, one.request) for one in desk.replay()] == [("model replaced", "R2")]
    shutil.rmtree(folder)
    shutil.rmtree(desk.batch(1).folder)
    assert [(one.what, one.request) for one in desk.replay()] == [("model missing", "R1"), ("model missing", "R2")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "method"),
        ({"method": "finetun"}, "Did you mean"),
        ({"method": "finetune", "forget": "@class:3"}, "no setting 'forget'"),
        ({"method": "finetune", "colour": 3}, "no setting 'colour'"),
        ({"method": "finetune", "audit": {"watc": {}}}, "no setting 'watc'"),
        ({"method": "finetune", "oracles": ["nowhere"]}, "no reference at nowhere"),
    ],
)
def test_a_wrong_plan_changes_nothing(desk, ids, settings, message):
    desk.add("R1", ids[:4])
    with pytest.raises(EffaceError, match=message):
        desk.plan(["R1"], settings)
    assert desk.request("R1").state is RequestState.RECEIVED


def hold(home, url, started, enough):
    with open_desk(home, url) as other, other.hold_model("main"):
        started.set()
        enough.wait(60)


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_of_two_runners_one_is_refused_or_waits(desk, ids):
    desk.add("R1", ids[:4])
    desk.plan(["R1"], QUICK)
    context = multiprocessing.get_context("spawn")
    started, enough = context.Event(), context.Event()
    url = desk.ledger.engine.url.render_as_string(hide_password=False)
    other = context.Process(target=hold, args=(desk.home, url, started, enough))
    other.start()
    assert started.wait(60)
    for act in (desk.run, lambda: desk.withdraw("R1", "they changed their mind")):
        with pytest.raises(EffaceError, match="Somebody else is working on the model 'main'"):
            act()
    assert desk.batches() == [] and desk.request("R1").state is RequestState.PLANNED
    threading.Timer(0.5, enough.set).start()
    assert desk.run(wait=True).batch.number == 1
    other.join(60)
    assert other.exitcode == 0 and desk.verify().valid


def run_all(home, url, wait):
    with open_desk(home, url) as other:
        other.run(["R1"], wait=wait)


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_two_runners_of_the_same_requests_make_one_run(desk, ids):
    desk.add("R1", ids[:4])
    desk.plan(["R1"], QUICK)
    context = multiprocessing.get_context("spawn")
    url = desk.ledger.engine.url.render_as_string(hide_password=False)
    work = [context.Process(target=run_all, args=(desk.home, url, True)) for _ in range(2)]
    for one in work:
        one.start()
    for one in work:
        one.join(120)
    assert sorted(one.exitcode for one in work) == [0, 1], "the second finds that it is done"
    assert [one.state for one in desk.batches()] == [BatchState.AUDITED] and desk.verify().valid
