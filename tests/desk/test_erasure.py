"""Erasing: what remembers is found, removed or written again, checked, and said; later requests go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from efface.desk import RequestState, erasure, open_desk, run_erasure
from efface.desk.run_erasure import erase_run
from efface.desk.vectors import vector_ids
from efface.errors import EffaceError
from efface.reporting.signing import create_keys, load_signer, public_key_path
from efface.reporting.verify import verify_bundle
from efface.runs import audit, embed, references, sign, train
from tests.desk.conftest import QUICK
from tests.runs.test_erased_data import SETTINGS, draw


@pytest.fixture(scope="session")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("key") / "release.pem"
    create_keys(path)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Pictures with names of people, and a model that was trained on them."""
    home = tmp_path_factory.mktemp("erase")
    draw(home / "pictures")
    for path in sorted((home / "pictures").glob("*/*.png")):
        path.rename(path.with_name(f"person-{path.parent.name}-{path.name}"))
    data = {"source": str(home / "pictures"), "cache": str(home / "cache")}
    train.pretrain_run(home / "original", SETTINGS | {"data": data})
    return home


@pytest.fixture
def home(built, tmp_path):
    copy = tmp_path / "home"
    shutil.copytree(built, copy)
    path = copy / "original" / "config.yaml"
    path.write_text(path.read_text().replace(str(built), str(copy)))
    return copy


def retained(home):
    return json.loads((home / "original" / "split.json").read_text())["parts"]["retain"]


def answer(desk, name, ids, signer, **more):
    desk.add(name, ids, asked_by="Ann Example")
    desk.plan([name], QUICK | more)
    batch = desk.run([name]).batch
    desk.release(name, signer, reason="tested")
    return batch


def outcomes(erased):
    return {(one.kind, one.outcome) for one in erased}


def holding(folder, names):
    """The files that hold one of the names: as text, or in an array of texts."""
    found = []
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        content = path.read_bytes()
        if path.suffix == ".npz":
            with np.load(path) as file:
                content += "".join(
                    str(file[one].tolist()) for one in file.files if file[one].dtype.kind == "U"
                ).encode()
        if any(name.encode(form) in content for name in names for form in ("utf-8", "utf-16-le", "utf-32-le")):
            found.append(path.name)
    return found


def test_nothing_remembers_and_later_requests_work_with_the_pictures_gone(home, key):
    signer = load_signer(key)
    with open_desk(home / "desk") as desk:
        desk.add_model("main", home / "original")
        ids = retained(home)
        batch = answer(desk, "R1", ids[:6], signer)
        later = answer(desk, "R2", ids[6:12], signer)
        vectors = home / "vectors.npz"
        embed.embed_checkpoint(home / "original", vectors, {"device": "cpu"})
        assert set(ids[:6]) <= set(vector_ids(vectors))
        desk.add("R9", ids[50:51])
        with pytest.raises(EffaceError, match="is received: what it is about is still needed"):
            desk.erase("R9")
        before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file() and "ledger" not in p.name}
        names = [Path(one).name for one in ids[:6]]
        assert {"split.json", "observations.npz", "R1.json", "vectors.npz"} <= set(holding(home, names))
        planned = desk.erase("R1", places=[vectors], destroy_key=True, dry_run=True)
        assert {p: p.read_bytes() for p in before} == before, "a dry run changes nothing"
        with_pictures = desk.erase("R1", places=[vectors], destroy_key=True, signer=signer)
        assert ("key", "listed") in outcomes(with_pictures), "ids are still to be recognized"
        assert outcomes(planned) ^ outcomes(with_pictures) == {("key", "listed"), ("key", "removed")}
        assert {("pictures", "listed"), ("split", "listed"), ("vectors", "rewritten")} <= outcomes(with_pictures)
        assert {("forget list", "removed"), ("observations", "removed")} <= outcomes(with_pictures)
        assert not set(ids[:6]) & set(vector_ids(vectors)) and set(ids[6:12]) <= set(vector_ids(vectors))
        for name in ids[:6]:
            (home / "pictures" / name).unlink()
        again = desk.erase("R1", destroy_key=True)
        assert {("split", "rewritten"), ("key", "removed"), ("superseded model", "listed")} <= outcomes(again)
        assert ("decoded pictures", "removed") in outcomes([*with_pictures, *again])
        assert holding(home, names) == []
        assert desk.verify().valid and desk.replay() == []
        assert {one.kind for one in desk.erase("R1")} >= {"key", "split"}, "the same again only says it again"
        with pytest.raises(EffaceError, match="Nobody can tell any more"):
            desk.erase("R1", places=[home / "pictures"])
        amended = desk.amended_path("R1")
        found = verify_bundle(amended, public_key_path(key), Path(batch.folder) / "checkpoint.safetensors")
        assert found.reason is None and found.stated is not None
        stated = {(one.kind, one.outcome): one for one in found.stated.downstream}
        assert stated["vectors", "rewritten"].entries == 6 and stated["observations", "removed"].artefacts >= 1
        assert any("superseded model: listed" in one for one in found.stated.out_of_scope)
        third = answer(desk, "R3", ids[12:18], signer)
        assert third.start == later.folder and third.verdict["all_requests"]["count"] == 18
        assert desk.request("R3").state is RequestState.RELEASED and desk.verify().valid
        assert holding(home, names) == [], "nor does a later run name them again"


def test_a_cached_picture_goes_and_the_model_before_too_if_asked(home, key):
    signer = load_signer(key)
    with open_desk(home / "desk") as desk:
        desk.add_model("main", home / "original")
        ids = retained(home)
        answer(desk, "R1", ids[:6], signer)
        answer(desk, "R2", ids[6:12], signer)
        for name in ids[:6]:
            (home / "pictures" / name).unlink()
        caches = [one for one in (home / "cache").iterdir() if one.is_dir()]
        erased = desk.erase("R1", remove_models=True)
        assert ("decoded pictures", "removed") in outcomes(erased) and not any(one.exists() for one in caches)
        assert ("superseded model", "removed") in outcomes(erased) and not (home / "original").exists()
        assert desk.replay() == []
        third = answer(desk, "R3", ids[12:18], signer)
        assert third.verdict["all_requests"]["word"] == "inconclusive", "nothing is left to compare all requests with"


def test_a_restored_backup_is_listed_and_erased_again(home, key):
    signer = load_signer(key)
    vectors = home / "vectors.npz"
    with open_desk(home / "desk") as desk:
        desk.add_model("main", home / "original")
        ids = retained(home)
        batch = answer(desk, "R1", ids[:6], signer)
        embed.embed_checkpoint(home / "original", vectors, {"device": "cpu"})
        for name in ids[:6]:
            (home / "pictures" / name).unlink()
        shutil.copytree(batch.folder, home / "backup")
        shutil.copy(vectors, home / "backup.npz")
        desk.erase("R1", places=[vectors])
        assert desk.replay() == []
        shutil.copy(home / "backup.npz", vectors)
        shutil.copytree(home / "backup", batch.folder, dirs_exist_ok=True)
        found = desk.replay()
        assert {Path(one.place).name for one in found} >= {"vectors.npz", "split.json", "observations.npz"}
        assert {one.request for one in found} == {"R1"}
        again = desk.erase("R1", places=[vectors])  # by its key: the list is gone
        assert ("superseded model", "listed") in outcomes(again), "its split does not have the ids any more"
        assert desk.replay() == []
        assert not set(ids[:6]) & set(vector_ids(vectors)) and desk.replay_gaps() == []
        desk.private.destroy_key("R1")
        assert desk.replay_gaps() == ["R1"], "nobody could tell whose rows a backup holds"


def test_references_trained_on_the_forgotten_go(home, key):
    signer = load_signer(key)
    with open_desk(home / "desk") as desk:
        desk.add_model("main", home / "original")
        ids = retained(home)
        first = answer(desk, "R1", ids[:6], signer)
        plan = references.plan_references(Path(first.folder), home / "refs", count=1)
        references.write_reference_plan(Path(first.folder), plan)
        made = references.run_task(plan.home, plan.tasks[0].name, device="cpu")
        answer(desk, "R2", ids[6:12], signer)
        (home / "models").mkdir()
        shutil.copy(home / "original" / "checkpoint.safetensors", home / "models" / "ema.safetensors")
        (home / "models" / "people.txt").write_text("\n".join(ids[6:9]))
        erased = desk.erase("R2", places=[home / "refs", home / "models"])
        found = {(one.kind, one.outcome): one for one in erased}
        assert found["reference", "removed"].place == str(made) and not made.exists()
        assert found["average", "listed"] and found["list of ids", "listed"].count == 3
        erased = desk.erase("R2", places=[home / "models"], remove_models=True)
        assert ("average", "removed") in outcomes(erased) and not (home / "models" / "ema.safetensors").exists()


def test_oracles_of_earlier_audits_are_found_by_themselves(home, key):
    signer, ids = load_signer(key), retained(home)
    (home / "ids.txt").write_text("\n".join(ids[:6]))
    asked = {"forget": str(home / "ids.txt"), "method": "retrain", "seed": 1, "device": "cpu"}
    train.unlearn_run(home / "original", home / "oracle", asked)
    with open_desk(home / "desk") as desk:
        desk.add_model("main", home / "original")
        answer(desk, "R1", ids[:6], signer, oracles=[str(home / "oracle")])
        answer(desk, "R2", ids[6:12], signer)
        found = {one.place: (one.kind, one.outcome, one.count) for one in desk.erase("R2", dry_run=True)}
        assert found[str(home / "oracle")] == ("checkpoint", "listed", 6)
        found = {one.place: one.outcome for one in desk.erase("R2", remove_models=True)}
        assert found[str(home / "oracle")] == "removed" and not (home / "oracle").exists()


def test_of_a_withdrawn_request_only_its_own_files_go(home):
    ids = retained(home)
    with open_desk(home / "desk") as desk:
        desk.add_model("main", home / "original")
        desk.add("R1", ids[:6])
        desk.plan(["R1"], QUICK)
        folder = Path(desk.run(["R1"]).batch.folder)
        desk.withdraw("R1", "they changed their mind")
        split = (home / "original" / "split.json").read_bytes()
        erased = desk.erase("R1", destroy_key=True)
        assert outcomes(erased) == {
            ("unused run", "removed"), ("list of ids", "removed"), ("forget list", "removed"), ("key", "removed"),
        }  # fmt: skip
        assert not folder.exists() and (home / "original" / "split.json").read_bytes() == split
        assert desk.verify().valid and desk.replay() == []


def test_a_run_without_a_desk(home, key):
    ids, run = retained(home), home / "one"
    (home / "ids.txt").write_text("\n".join(ids[:6]))
    settings = {"forget": str(home / "ids.txt"), "method": QUICK["method"], "device": "cpu"}
    train.unlearn_run(home / "original", run, settings)
    audit.audit_run(run, QUICK["audit"])
    sign.sign_run(run, load_signer(key))
    vectors = home / "vectors.npz"
    embed.embed_checkpoint(home / "original", vectors, {"device": "cpu"})
    (home / "ids.txt").unlink()
    for name in ids[:6]:
        (home / "pictures" / name).unlink()
    planned = erase_run(run, places=[vectors], dry_run=True)
    assert not (run / "erasure.json").exists()
    begun = {"format": 1, "state": "intended", "places": [str(vectors)]}
    found = [(one, {"removed": "remove", "rewritten": "rewrite", "listed": "list"}[one.outcome]) for one in planned]
    begun["found"] = [
        {"kind": one.kind, "place": one.place, "action": action, "detail": one.detail, "count": one.count}
        for one, action in found
    ]
    (run / "erasure.json").write_text(json.dumps(begun))  # as a call that was cut has left it
    erased = erase_run(run, signer=load_signer(key))
    assert outcomes(erased) == outcomes(planned)
    assert {("vectors", "rewritten"), ("split", "rewritten"), ("decoded pictures", "removed")} <= outcomes(erased)
    assert holding(home, [Path(one).name for one in ids[:6]]) == []
    [amended] = run.glob("*.erased.intoto.jsonl")
    assert verify_bundle(amended, public_key_path(key), run / "checkpoint.safetensors").reason is None
    (home / "more.txt").write_text("\n".join(ids[6:12]))
    train.unlearn_run(run, home / "two", settings | {"forget": str(home / "more.txt")})
    audit.audit_run(home / "two", QUICK["audit"])
    with pytest.raises(EffaceError, match="asked to forget nothing"):
        erase_run(home / "original")


class CutError(BaseException):
    """What ends a call as a kill would."""


def cut_after(monkeypatch, module, count):
    """Let an erasure end after so many artefacts."""
    real, done = module.erase_remains, []

    def erase(*words):
        if len(done) == count:
            raise CutError
        done.append(words)
        return real(*words)

    monkeypatch.setattr(module, "erase_remains", erase)


def answered(home, key):
    """A desk with a request that was released, its ids, and vectors; the pictures are gone."""
    desk = open_desk(home / "desk")
    desk.add_model("main", home / "original")
    ids = retained(home)[:6]
    answer(desk, "R1", ids, load_signer(key))
    embed.embed_checkpoint(home / "original", home / "vectors.npz", {"device": "cpu"})
    for name in ids:
        (home / "pictures" / name).unlink()
    return desk, ids


@pytest.mark.parametrize("at", [0, 2, 4, "the list is gone"])
def test_the_call_after_a_cut_does_what_it_is_asked_as_well(home, key, monkeypatch, at):
    desk, ids = answered(home, key)
    with desk, monkeypatch.context() as patched:
        if at == "the list is gone":
            patched.setattr(erasure, "_write_outcomes", lambda *words: (_ for _ in ()).throw(CutError))
        else:
            cut_after(patched, erasure, at)
        with pytest.raises(CutError):
            desk.erase("R1")
        assert (desk.private.forget_list("R1") is None) == (at == "the list is gone")
        with pytest.raises(CutError):
            desk.erase("R1", remove_models=True)
        patched.undo()
        vectors = home / "vectors.npz"
        planned = desk.erase("R1", places=[vectors], destroy_key=True, dry_run=True)
        erased = desk.erase("R1", places=[vectors], destroy_key=True)
        assert outcomes(planned) == outcomes(erased)
        wanted = {("vectors", "rewritten"), ("key", "removed"), ("superseded model", "removed")}
        assert wanted | {("forget list", "removed"), ("split", "rewritten")} <= outcomes(erased)
        assert outcomes(desk.show("R1").artefacts) == outcomes(erased)
        assert not set(ids) & set(vector_ids(vectors)) and not (home / "original").exists()
        assert desk.verify().valid and desk.replay() == []
        events = len(list(desk.ledger.events("request R1")))
        assert outcomes(desk.erase("R1", places=[vectors])) == outcomes(erased)
        assert len(list(desk.ledger.events("request R1"))) == events


def test_what_cannot_be_searched_for_after_a_cut_is_said(home, key, monkeypatch):
    desk, _ = answered(home, key)
    with desk:
        with monkeypatch.context() as patched:
            patched.setattr(erasure, "_write_outcomes", lambda *words: (_ for _ in ()).throw(CutError))
            with pytest.raises(CutError):
                desk.erase("R1", destroy_key=True)
        assert desk.private.key("R1") is None
        with pytest.raises(EffaceError, match="Nobody can tell any more"):
            desk.erase("R1", places=[home / "vectors.npz"])
        assert ("key", "removed") in outcomes(desk.show("R1").artefacts), "what was cut has ended"
        assert outcomes(desk.erase("R1", remove_models=True)) == {("superseded model", "removed")}


@pytest.mark.parametrize("at", [0, 2, "all but the outcome"])
def test_the_call_after_a_cut_does_what_it_is_asked_as_well_without_a_desk(home, monkeypatch, at):
    ids, run, vectors = retained(home)[:6], home / "one", home / "vectors.npz"
    settings = {"forget": "@keys:" + ",".join(ids), "method": QUICK["method"], "device": "cpu"}
    train.unlearn_run(home / "original", run, settings)
    embed.embed_checkpoint(home / "original", vectors, {"device": "cpu"})
    for name in ids:
        (home / "pictures" / name).unlink()
    real = run_erasure._write

    def write(folder, content):
        if content["state"] == "done":
            raise CutError
        real(folder, content)

    with monkeypatch.context() as patched:
        if at == "all but the outcome":
            patched.setattr(run_erasure, "_write", write)
        else:
            cut_after(patched, run_erasure, at)
        with pytest.raises(CutError):
            erase_run(run)
    erased = erase_run(run, places=[vectors], remove_models=True)
    assert {("vectors", "rewritten"), ("split", "rewritten"), ("superseded model", "removed")} <= outcomes(erased)
    assert not set(ids) & set(vector_ids(vectors)) and not (home / "original").exists()
    again = home / "again.npz"
    np.savez(again, embeddings=np.zeros((2, 3), "f"), keys=np.array([ids[0], "other"]))
    assert ("vectors", "rewritten") in outcomes(erase_run(run, places=[again])), "ids are known by their tokens"
    (run / "items.key").unlink()
    with pytest.raises(EffaceError, match="Nobody can tell any more"):
        erase_run(run, places=[again])
