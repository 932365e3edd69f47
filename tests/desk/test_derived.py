"""Erasing reaches what was derived from examples: heads, kept stages, reference banks, rehearsals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from efface.auditing.observers.settings import ObservationSettings
from efface.desk import open_desk
from efface.desk.derived import drop_from_head, find_derived, rows_of_head
from efface.desk.forgotten import ForgottenIds
from efface.errors import EffaceError
from efface.reporting.record import Record
from efface.reporting.signing import create_keys, load_signer
from efface.runs import bank_plan, heads, reference_bank, rehearsal_plan, train
from efface.runs.head_store import HeadStore
from efface.runs.heads import HeadSettings, check_head, fit_head
from tests.desk.conftest import QUICK
from tests.runs.test_shards import SETTINGS

NAMES = [f"p/{number}.png" for number in range(40)]
GONE = NAMES[3:6]


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    path = tmp_path_factory.mktemp("key") / "release.pem"
    create_keys(path)
    return load_signer(path)


@pytest.fixture
def forgotten():
    return ForgottenIds(b"k" * 32, [*GONE, "missing"], [])


@pytest.fixture
def vectors(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.array(["cat", "dog"])[np.arange(40) % 2]
    path = tmp_path / "place" / "a-vectors.npz"  # before the heads in the order of names
    path.parent.mkdir()
    np.savez(path, embeddings=rng.normal(size=(40, 4)).astype(np.float32), keys=np.array(NAMES), labels=labels)
    return path


@pytest.mark.parametrize("kind", ["ridge", "knn"])
def test_rows_of_the_forgotten_leave_a_head(vectors, forgotten, kind):
    folder = vectors.parent / "head"
    fit_head(vectors, folder, HeadSettings(kind, neighbors=3))
    [found] = find_derived(folder, forgotten, remove=False) or []
    assert (found.kind, found.action, found.count) == ("head", "rewrite", 3)
    assert drop_from_head(folder, forgotten) == 3 and check_head(folder).passed
    described = HeadStore(folder).describe()
    assert described.rows == 37 and not (folder / described.deletions[0].record).with_suffix(".key").exists()
    assert find_derived(folder, forgotten, remove=True) == [] and drop_from_head(folder, forgotten) == 0


def test_a_head_from_which_nothing_can_be_subtracted_is_listed(vectors, forgotten):
    folder = vectors.parent / "head"
    fit_head(vectors, folder, HeadSettings("ridge"))
    vectors.unlink()
    [found] = find_derived(folder, forgotten, remove=True) or []
    assert found.action == "list" and "efface heads delete" in found.detail and found.count == 3
    [unknown] = find_derived(folder, ForgottenIds(b"k" * 32, None, []), remove=True) or []
    assert unknown.action == "list" and "is not known" in unknown.detail
    (folder / "head.json").write_text("{")
    [damaged] = find_derived(folder, forgotten, remove=True) or []
    assert (damaged.kind, damaged.action) == ("folder", "list")
    assert find_derived(vectors.parent, forgotten, remove=True) is None


def test_what_fails_names_no_id(vectors, forgotten, monkeypatch):
    from efface.desk.remains import erase_remains

    folder = vectors.parent / "head"
    fit_head(vectors, folder, HeadSettings("knn", neighbors=3))
    [found] = find_derived(folder, forgotten, remove=False) or []

    def fail(*words, **more):
        raise EffaceError(f"{GONE[0]} is no row.", f"Nor is {GONE[1]}.")

    monkeypatch.setattr(heads, "delete_rows", fail)
    failed = erase_remains(found, forgotten)
    assert failed.outcome == "failed" and "is no row" in failed.detail
    assert not any(name in failed.detail for name in GONE)
    lost = erase_remains(found, ForgottenIds(None, GONE, []))
    assert lost.outcome == "failed" and not any(name in lost.detail for name in GONE)


def answer(desk, name, ids, signer, **more):
    desk.add(name, ids)
    desk.plan([name], QUICK | more)
    desk.run([name])
    desk.release(name, signer, reason="tested")


def test_a_head_goes_before_the_vectors_that_it_was_fitted_on(desk, ids, signer, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    keys = ids[:20]
    rows = np.random.default_rng(0).normal(size=(20, 4))
    np.savez(place / "a.npz", embeddings=rows, keys=np.array(keys), labels=np.array(["cat", "dog"] * 10))
    fit_head(place / "a.npz", place / "head", HeadSettings("ridge"))
    answer(desk, "R1", keys[:3], signer)
    erased = {(one.kind, one.outcome): one for one in desk.erase("R1", places=[place])}
    assert ("vectors", "rewritten") in erased and erased["head", "rewritten"].count == 3
    assert check_head(place / "head").passed and HeadStore(place / "head").describe().rows == 17


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded") / "original"
    train.pretrain_run(folder, SETTINGS)
    return folder


def test_kept_stages_go_and_superseded_models_are_not_lost_from_sight(sharded, signer, tmp_path):
    original = tmp_path / "original"
    shutil.copytree(sharded, original)
    ids = json.loads((original / "split.json").read_text())["parts"]["retain"]
    with open_desk(tmp_path / "desk") as desk:
        desk.add_model("main", original)
        answer(desk, "R1", ids[:2], signer, method="shards")
        head = desk.model("main").head
        erased = {(one.kind, one.outcome): one for one in desk.erase("R1")}
        assert erased["kept stages", "removed"].count == 2 and not (original / "shards").exists()
        assert (tmp_path / "desk" / "runs" / "0001" / "shards" / "index.json").exists()
        assert erased["superseded model", "listed"].place == str(original)
        answer(desk, "R2", ids[2:4], signer, method="shards")
        assert desk.model("main").head != head and desk.batches()[-1].verdict["word"]


def test_with_list_and_key_gone_listed_models_can_still_be_removed(desk, ids, original, signer, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    desk.add_model("other", copy)
    desk.add("R1", ids[:3], model="other")
    desk.plan(["R1"], QUICK)
    desk.run(["R1"])
    desk.release("R1", signer, reason="tested")
    desk.erase("R1")
    again = {(one.kind, one.outcome) for one in desk.erase("R1")}
    assert ("superseded model", "listed") in again, "as the first time"
    desk.private.destroy_list("R1")
    desk.private.destroy_key("R1")
    assert ("superseded model", "listed") in {(one.kind, one.outcome) for one in desk.erase("R1")}
    planned = [(one.kind, one.outcome) for one in desk.erase("R1", remove_models=True, dry_run=True)]
    assert planned == [("superseded model", "removed")] and copy.exists()
    assert [one.outcome for one in desk.erase("R1", remove_models=True)] == ["removed"] and not copy.exists()
    assert desk.verify().valid


def test_banks_and_rehearsals_are_listed_as_a_whole_or_removed(desk, ids, original, signer, tmp_path):
    answer(desk, "R1", ids[:3], signer)
    folder = Path(desk.model("main").head)
    watch = ObservationSettings(views=2, gradient=False, bank=20, cap=20, test_cap=20)
    bank = bank_plan.plan_bank(original, tmp_path / "place" / "bank", 2, watch=watch)
    bank_plan.write_bank_plan(original, bank)
    reference_bank.make_bank(bank, jobs=1, device="cpu")
    desk.add("R3", ids[6:8])
    with pytest.raises(EffaceError, match="There is no reference at"):
        desk.plan(["R3"], QUICK | {"audit": QUICK["audit"] | {"bank": str(tmp_path / "nowhere")}})
    answer(desk, "R2", ids[3:6], signer, audit=QUICK["audit"] | {"bank": str(bank.home)})
    assert Record.load(Path(desk.model("main").head)).bank is not None
    by_itself = {one.kind: one.place for one in desk.erase("R2", dry_run=True)}
    assert by_itself["reference bank"] == str(bank.home), "the plan named it"
    plan = rehearsal_plan.plan_rehearsals(folder, tmp_path / "place" / "rehearsals", requests=5, watch=watch)
    rehearsal_plan.write_rehearsal_plan(folder, plan)
    before = {one: one.read_bytes() for one in (tmp_path / "place").rglob("*.npz")}
    erased = {one.kind: one for one in desk.erase("R1", places=[tmp_path / "place"])}
    for kind in ("reference bank", "rehearsals"):
        assert erased[kind].outcome == "listed" and erased[kind].count == 3, kind
        assert "--remove-models" in erased[kind].detail
    assert {one: one.read_bytes() for one in (tmp_path / "place").rglob("*.npz")} == before, "no rows were cut out"
    erased = {one.kind: one for one in desk.erase("R1", places=[tmp_path / "place"], remove_models=True)}
    assert {erased[kind].outcome for kind in ("reference bank", "rehearsals")} == {"removed"}
    assert list((tmp_path / "place").iterdir()) == []


def test_rows_of_a_head_are_known_by_the_list_only(vectors, forgotten):
    folder = vectors.parent / "head"
    fit_head(vectors, folder, HeadSettings("knn", neighbors=3))
    assert rows_of_head(folder, forgotten) == GONE
    assert rows_of_head(folder, ForgottenIds(b"k" * 32, None, [])) == []
