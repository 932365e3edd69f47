"""Pictures on disk that are erased, overwritten, renamed or moved after a run was made: what goes on and what not."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from efface.data.identity import IDENTITY, DataIdentity
from efface.data.pixel_caches import find_caches
from efface.data.split import read_split
from efface.errors import EffaceError
from efface.runs import audit, embed, references, relearn, run, train
from efface.runs.data_at_hand import DataChecks
from efface.training.checkpoint import content_digest
from tests.commands import JUDGED
from tests.pictures import raises

CLASSES = ("1", "2", "10", "dog")
FAST = {"name": "finetune", "epochs": 1}
QUICK = {"watch": {"views": 3, "gradient": False}, "device": "cpu"}
SETTINGS = {
    "split": {"train": 100, "valid": 30, "holdout": 60, "test": 40},
    "recipe": {"objective": "cross_entropy", "backbone": {"width": 8, "stride": 1}, "batch_size": 25, "epochs": 2},
    "device": "cpu",
}


def draw(folder: Path) -> None:
    """Write 60 pictures of each class; its bright row tells the class."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(60):
            x = rng.integers(0, 90, (8, 8, 3), dtype=np.uint8)
            x[2 * label] = 220
            Image.fromarray(x).save(folder / name / f"{number:02d}.png")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, an original, a first request for 12 of them, and its retrained reference; none of it was audited."""
    home = tmp_path_factory.mktemp("erased")
    draw(home / "pictures")
    data = {"source": str(home / "pictures"), "cache": str(home / "cache")}
    train.pretrain_run(home / "original", SETTINGS | {"data": data})
    kept = read_split(home / "original")["parts"]["retain"]
    (home / "first.txt").write_text("\n".join(kept[:12]), encoding="utf-8")
    (home / "second.txt").write_text("\n".join(kept[12:20]), encoding="utf-8")
    request = {"forget": str(home / "first.txt"), "device": "cpu"}
    train.unlearn_run(home / "original", home / "one", request | {"method": FAST})
    train.unlearn_run(home / "original", home / "oracle", request | {"method": "retrain", "seed": 1})
    return home


@pytest.fixture
def home(built: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of all of it whose files name each other."""
    copy = tmp_path / "home"
    shutil.copytree(built, copy)
    for path in copy.glob("*/config.yaml"):
        path.write_text(path.read_text(encoding="utf-8").replace(str(built), str(copy)), encoding="utf-8")
    return copy


def keys(folder: Path, part: str) -> list[str]:
    return read_split(folder)["parts"][part]


def erase(home: Path, names: list[str]) -> None:
    for name in names:
        (home / "pictures" / name).unlink()


def overwrite(home: Path, names: list[str]) -> None:
    for name in names:
        Image.new("RGB", (8, 8), (128, 128, 128)).save(home / "pictures" / name)


def second(home: Path, **more: object) -> dict[str, object]:
    return {"forget": str(home / "second.txt"), "method": FAST, "device": "cpu"} | more


class Said(list):
    """Collects what a verb says."""

    @property
    def progress(self) -> run.Progress:
        return run.Progress(say=self.append)

    def __contains__(self, words: object) -> bool:
        return any(str(words) in str(sentence) for sentence in self)


# ---- the record of a run ----


def test_every_run_of_a_chain_keeps_what_it_was_trained_on(home):
    metas = {name: json.loads((home / name / "meta.json").read_text()) for name in ("original", "one", "oracle")}
    for name, meta in metas.items():
        identity = DataIdentity.load(home / name, meta["identity"])
        assert identity.classes == ("1", "10", "2", "dog") and len(identity.keys) == 240
        assert stat.S_IMODE((home / name / IDENTITY).stat().st_mode) == 0o600
    assert metas["original"]["identity"] == metas["one"]["identity"]
    opened = run.open_run(home / "one")
    assert opened.at_hand.notes == () and not opened.split.absent
    assert opened.checkpoint().identity == metas["one"]["identity"]


def test_a_run_without_a_record_opens_and_says_so(home):
    path = home / "one" / "meta.json"
    meta = json.loads(path.read_text())
    del meta["identity"]
    path.write_text(json.dumps(meta | {"content_digest": content_digest(meta)}))
    (home / "one" / IDENTITY).unlink()
    opened = run.open_run(home / "one")
    assert "was not recorded" in opened.at_hand.notes[0]
    overwrite(home, keys(home / "one", "forget"))
    assert run.open_run(home / "one").at_hand.notes == opened.at_hand.notes
    made = train.unlearn_run(home / "one", home / "two", second(home))
    assert made.identity == "" and not (home / "two" / IDENTITY).exists()


def test_a_record_that_was_edited_or_is_gone_is_refused(home):
    DataIdentity.of(run.open_run(home / "one").data.take(range(200))).save(home / "one")
    raises(lambda: run.open_run(home / "one"), "not the one that the run was made with")
    (home / "one" / IDENTITY).unlink()
    raises(lambda: run.open_run(home / "one"), "identity.npz is missing")


# ---- erased ----


def test_after_erasure_everything_goes_on(home):
    said, original = Said(), home / "original"
    before = audit.audit_run(home / "one", QUICK, oracles=[home / "oracle"])
    gone = keys(home / "one", "forget")
    erase(home, [*gone, keys(home / "one", "test")[0]])
    opened = run.open_run(home / "one")
    assert {part: len(absent) for part, absent in opened.split.absent.items()} == {"forget": 12, "test": 1}
    # The stored observations are of the whole split: the verdict is the same as before.
    after = audit.audit_run(home / "one", QUICK, oracles=[home / "oracle"], progress=said.progress)
    assert after.verdict.word == before.verdict.word
    assert [one.value for one in after.findings] == [one.value for one in before.findings]
    assert "Not in the data any more: forget 12, test 1" in said and "observations stored while" in said
    record = json.loads((home / "one" / "record.json").read_text())
    assert record["split"]["absent"] == {"forget": 12, "test": 1} and record["request"]["count"] == 12
    assert record["split"]["sizes"]["forget"] == 12
    made = train.unlearn_run(home / "one", home / "two", second(home))
    assert made.parent == run.open_run(home / "one").checkpoint().model.digest()
    split = run.open_run(home / "two").split
    assert split.sizes()["earlier"] == 12 and not len(split.earlier)
    retrained = train.unlearn_run(home / "one", home / "oracle2", second(home, method="retrain", seed=2))
    assert retrained.exact
    both = audit.audit_run(home / "two", QUICK, oracles=[home / "oracle2"])
    assert both.sequence is not None and both.sequence.verdict is None and both.sequence.count == 20
    assert both.sequence.note.startswith("Not judged: 12 of the 20 examples") and len(both.sequence.steps) == 3
    kept = relearn.relearn_run(home / "two", {"relearn": {"steps": 2, "every": 1}, **QUICK}, oracles=[home / "oracle2"])
    assert kept.findings
    assert audit.report_run(home / "two").exists()
    # The first original was trained on all of it: what a later request forgot may be absent from its training set.
    assert run.open_run(original).split.absent["retain"] == tuple(gone)


def test_without_stored_observations_an_audit_says_what_it_cannot_see(home):
    erase(home, keys(home / "one", "forget")[:9])
    said = Said()
    result = audit.audit_run(home / "one", QUICK, oracles=[home / "oracle"], progress=said.progress)
    assert "Judged by 3 of 12 examples to forget: the other 9 are gone." in said
    assert len(result.evidence.subject.of("forget", "keys")) == 3
    assert not (home / "one" / "observations.npz").exists()  # that name is for the whole split
    erase(home, keys(home / "one", "forget")[9:])
    raises(lambda: audit.audit_run(home / "one", QUICK), "12 examples to forget are not in the data", "--data PATH")
    raises(lambda: relearn.relearn_run(home / "one", QUICK), "12 examples to forget are not in the data")


def test_whole_observations_are_never_overwritten_by_partial_ones(home):
    audit.audit_run(home / "one", QUICK)
    whole = (home / "one" / "observations.npz").read_bytes()
    erase(home, keys(home / "one", "forget")[:9])
    result = audit.audit_run(home / "one", QUICK, oracles=[home / "oracle"])  # the oracle was never observed
    assert (
        len(result.evidence.original.of("forget", "keys")) == len(result.evidence.oracles[0].of("forget", "keys")) == 3
    )
    assert (home / "one" / "observations.npz").read_bytes() == whole


@pytest.mark.parametrize("part", ["holdout", "valid", "test"])
def test_one_erased_picture_of_any_part_stops_nothing(home, part):
    erase(home, keys(home / "one", part)[:1])
    result = audit.audit_run(home / "one", QUICK, oracles=[home / "oracle"])
    record = json.loads((home / "one" / "record.json").read_text())
    assert result.record is None and record["split"]["absent"] == {part: 1}
    assert any(f"Not in the data any more: {part} 1" in warning for warning in record["warnings"])
    train.unlearn_run(home / "one", home / "two", second(home))


def test_retained_pictures_may_not_be_missing_unasked(home):
    lost = keys(home / "one", "retain")[-2:]
    erase(home, lost)
    for act in (
        lambda: audit.audit_run(home / "one", QUICK),
        lambda: train.unlearn_run(home / "one", home / "two", second(home)),
        lambda: references.plan_references(home / "one", home / "refs", 1),
    ):
        raises(act, "2 of 88 retained examples", lost[0], "--allow-absent")
    assert not (home / "two").exists() and not (home / "two.partial").exists()
    allowed = train.unlearn_run(home / "one", home / "two", second(home, allow_absent=True))
    split = run.open_run(home / "two").split
    assert split.sizes()["earlier"] == 14 and "retain" not in split.absent  # no longer trained on
    assert any("2 retained examples are not in the data" in one for one in split.provenance["warnings"])
    assert allowed.split == split.digest(run.open_run(home / "two").data)
    audit.audit_run(home / "one", QUICK | {"allow_absent": True})


def test_other_data_are_refused_whatever_is_allowed(home, tmp_path):
    draw(tmp_path / "others")
    for path in [*(tmp_path / "others").rglob("*.png")]:
        path.rename(path.with_name(f"x{path.name}"))
    checks = DataChecks(data=str(tmp_path / "others"), allow_absent=True, allow_changed=True)
    raises(lambda: run.open_run(home / "one", checks), "does not fit the data", "None of the 88 retained", "--data")
    with pytest.raises(EffaceError, match="3x8x8"):
        run.open_run(home / "one", DataChecks(data={"size": 4}))


def test_a_whole_class_may_be_erased_and_the_numbers_stay(tmp_path):
    """The folder of a class is gone, and all others keep their outputs; so does a set drawn with a limit."""
    draw(tmp_path / "pictures")
    data = {"source": str(tmp_path / "pictures"), "cache": str(tmp_path / "cache"), "limit": 200}
    small = {"train": 80, "valid": 20, "holdout": 50, "test": 40}
    train.pretrain_run(tmp_path / "original", SETTINGS | {"data": data, "split": small})
    train.unlearn_run(tmp_path / "original", tmp_path / "one", {"forget": "@class:10", "method": FAST, "device": "cpu"})
    before = run.open_run(tmp_path / "one")
    shutil.rmtree(tmp_path / "pictures" / "10")
    after = run.open_run(tmp_path / "one")
    assert set(after.split.absent) == {"forget", "holdout", "test", "valid"}
    assert after.data.classes[:4] == before.data.classes == ("1", "10", "2", "dog")
    label = {key: before.data.y[row] for row, key in enumerate(before.data.keys)}
    assert all(after.data.y[row] == label[after.data.keys[row]] for row in after.split.retain)
    made = train.unlearn_run(
        tmp_path / "one", tmp_path / "two", {"forget": "@random:5", "method": "retrain", "device": "cpu"}
    )
    assert made.recipe.classes == 4


def test_gray_is_not_guessed_anew_when_the_only_color_picture_is_erased(tmp_path):
    draw(tmp_path / "pictures")
    paths = sorted((tmp_path / "pictures").rglob("*.png"))
    for path in paths[1:]:
        Image.open(path).convert("L").save(path)
    data = {"source": str(tmp_path / "pictures"), "cache": str(tmp_path / "cache")}
    split = SETTINGS["split"] | {"train": 110}
    train.pretrain_run(tmp_path / "original", SETTINGS | {"data": data, "split": split})
    key = paths[0].relative_to(tmp_path / "pictures").as_posix()
    paths[0].unlink()
    opened = run.open_run(tmp_path / "original", DataChecks(allow_absent=True))
    assert opened.data.shape == (3, 8, 8)
    assert not opened.at_hand.difference.changed.any()
    assert key not in opened.data.keys


# ---- overwritten ----


def test_requested_pictures_that_are_others_by_now_are_an_error(home):
    asked = (home / "second.txt").read_text().split("\n")
    overwrite(home, asked)
    raises(
        lambda: train.unlearn_run(home / "one", home / "two", second(home)),
        "8 of 8 requested examples are not the pictures that were trained on", asked[0], "allow_changed=true",
    )  # fmt: skip
    assert not (home / "two").exists()
    train.unlearn_run(home / "one", home / "two", second(home, allow_changed=True))
    warnings = run.open_run(home / "two", DataChecks(allow_changed=True)).split.provenance["warnings"]
    assert any("8 of 8 requested examples are not the pictures" in one for one in warnings)
    # An audit of the run knows it too, and does not judge by pictures that were never trained on.
    raises(lambda: audit.audit_run(home / "two", QUICK), "8 of 8 requested examples are not the pictures")
    raises(lambda: audit.audit_run(home / "two", QUICK | {"allow_changed": True}), "8 examples to forget are not in")


def test_one_of_the_requested_pictures_is_another(home):
    asked = (home / "second.txt").read_text().split("\n")
    overwrite(home, asked[:1])
    raises(lambda: train.unlearn_run(home / "one", home / "two", second(home)), "1 of 8 requested examples", asked[0])


def test_a_swap_of_files_is_noticed(home):
    one, other = (home / "pictures" / key for key in (home / "second.txt").read_text().split("\n")[:2])
    held = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(held)
    raises(lambda: train.unlearn_run(home / "one", home / "two", second(home)), "2 of 8 requested examples")


def test_overwriting_as_erasure_counts_as_absent_for_later_requests(home):
    overwrite(home, keys(home / "one", "forget"))
    raises(lambda: audit.audit_run(home / "one", QUICK), "12 of 12 requested examples")
    train.unlearn_run(home / "one", home / "two", second(home))
    opened = run.open_run(home / "two")
    assert opened.split.sizes()["earlier"] == 12 and not len(opened.split.earlier)
    assert any("12 of them have other pictures" in note for note in opened.at_hand.notes)


def test_changed_pictures_of_other_parts_are_counted(home):
    overwrite(home, [*keys(home / "one", "retain")[-3:], *keys(home / "one", "holdout")[:2]])
    audit.audit_run(home / "one", QUICK)
    warnings = json.loads((home / "one" / "record.json").read_text())["warnings"]
    assert any(one.startswith("3 of 88 retain examples are other pictures") for one in warnings)
    assert any("holdout 2 (2 of them have other pictures under their names)" in one for one in warnings)
    task = references.plan_references(home / "one", home / "refs", 1)
    references.write_reference_plan(home / "one", task)
    raises(lambda: references.run_task(home / "refs", task.tasks[0].name, device="cpu"), "3 of 88 training examples")


def test_a_training_that_was_cut_does_not_resume_with_other_pictures(home, monkeypatch):
    settings = SETTINGS | {"data": {"source": str(home / "pictures"), "cache": str(home / "cache")}, "seed": 5}

    class Cut(Exception):
        pass

    def cut(step, total):
        if step["step"] > 6:
            raise Cut

    with pytest.raises(Cut):
        train.pretrain_run(home / "cut", settings, progress=run.Progress(steps=cut))
    assert (home / "cut.partial" / "epoch.pt").exists()
    trained = keys(home / "cut.partial", "retain")[:4]
    held = {name: (home / "pictures" / name).read_bytes() for name in trained}
    overwrite(home, trained)
    raises(
        lambda: train.pretrain_run(home / "cut", settings), "4 of 100 training examples have changed", "mixture",
        "cut.partial",
    )  # fmt: skip
    for name, content in held.items():
        (home / "pictures" / name).write_bytes(content)
    erase(home, trained[:1])
    raises(lambda: train.pretrain_run(home / "cut", settings), "training examples have changed")
    (home / "pictures" / trained[0]).write_bytes(held[trained[0]])
    resumed = train.pretrain_run(home / "cut", settings)
    assert resumed.model.digest() == train.pretrain_run(home / "whole", settings).model.digest()


# ---- renamed, reordered ----


def test_the_checkpoints_numbers_hold_when_the_data_list_classes_otherwise(home):
    changed = DataChecks(data={"classes": ["dog", "2", "1", "10"]})
    opened = run.open_run(home / "one", changed)
    assert opened.data.classes == ("1", "10", "2", "dog")
    assert not opened.at_hand.difference.changed.any()


def test_an_empty_new_class_is_named_and_a_renamed_one_refused(home, tmp_path):
    shutil.copytree(home / "pictures" / "1", home / "pictures" / "00new")
    opened = run.open_run(home / "one")
    assert opened.data.classes == ("1", "10", "2", "dog", "00new")
    assert any("'00new'" in note for note in opened.at_hand.notes)
    assert not opened.at_hand.difference.changed.any()
    # A manifest keeps the keys when a class gets another name.
    rows = ["key,path,label"]
    for path in sorted((home / "pictures").rglob("*.png")):
        key = path.relative_to(home / "pictures").as_posix()
        if not key.startswith("00new"):
            label = path.parent.name
            rows.append(f"{key},{path},{'hound' if label == 'dog' else label}")
    (home / "table.csv").write_text("\n".join(rows), encoding="utf-8")
    checks = DataChecks(data=str(home / "table.csv"))
    raises(lambda: run.open_run(home / "one", checks), "that the checkpoint does not know: 'hound'", "'dog'")


def test_a_relabelled_example_to_forget_is_an_error(home):
    asked = (home / "second.txt").read_text().split("\n")
    rows = ["key,path,label"]
    for path in sorted((home / "pictures").rglob("*.png")):
        key = path.relative_to(home / "pictures").as_posix()
        label = ("1" if path.parent.name != "1" else "2") if key in asked[:3] else path.parent.name
        rows.append(f"{key},{path},{label}")
    (home / "table.csv").write_text("\n".join(rows), encoding="utf-8")
    request = second(home, data=str(home / "table.csv"))
    raises(
        lambda: train.unlearn_run(home / "one", home / "two", request),
        "3 of 8 requested examples do not have the classes that were trained on",
    )


# ---- moved ----


def test_a_relative_path_is_found_from_another_directory(tmp_path, monkeypatch):
    draw(tmp_path / "here" / "pictures")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    data = {"source": "pictures", "cache": "cache"}
    train.pretrain_run(Path("original"), SETTINGS | {"data": data})
    stored = yaml.safe_load(Path("original/config.yaml").read_text())
    assert stored["data"] == {name: str(tmp_path / "here" / value) for name, value in data.items()}
    assert stored["data_given"] == data
    monkeypatch.chdir(tmp_path / "there")
    request = {"forget": "@random:5", "method": FAST, "device": "cpu"}
    train.unlearn_run(tmp_path / "here" / "original", Path("one"), request)
    monkeypatch.chdir(tmp_path)
    assert len(run.open_run(Path("there/one")).split.forget) == 5
    assert not (tmp_path / "there" / "cache").exists()
    # Both moved together: the path as it was given leads there.
    (tmp_path / "here").rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(run.open_run(Path("original")).split.retain) == 100


def test_moved_data_are_named_with_an_option(home, efface):
    (home / "pictures").rename(home / "moved")
    code, _, err = efface("audit", home / "one", "--set", "watch.views=3", "--quiet")
    assert code == 2 and f"The data are no longer at {home / 'pictures'}" in err and "--data PATH" in err
    moved = ["--data", home / "moved"]
    code, _, err = efface("audit", home / "one", *moved, "--set", "watch={views: 3, gradient: false}", "--quiet")
    assert code in JUDGED, err
    words = ["--forget", home / "second.txt", "--method", "finetune", "--set", "method.epochs=1", "--out", home / "two"]
    code, _, err = efface("unlearn", home / "one", *moved, *words, "--quiet")
    assert code == 0, err
    assert run.open_run(home / "two").request["data"]["source"] == str(home / "moved")
    code, _, err = efface("relearn", home / "two", *moved, "--steps", 2, "--every", 1, "--quiet")
    assert code == 0, err
    plan = references.plan_references(home / "one", home / "refs", 1, 0, DataChecks(data=str(home / "moved")))
    assert plan.data["source"] == str(home / "moved")


def test_runs_and_data_that_were_moved_together_find_each_other(home):
    train.unlearn_run(home / "one", home / "two", second(home, method="finetune"))
    away = home.with_name("away")
    home.rename(away)
    checks = {"data": str(away / "pictures")}
    result = audit.audit_run(away / "two", QUICK | checks)
    assert result.sequence is not None and result.sequence.verdict is not None and len(result.sequence.steps) == 3
    assert len(embed.forgotten_by(away / "two")) == 20
    plan = references.plan_references(away / "one", away / "refs", 1, 0, DataChecks(data=checks["data"]))
    assert len(plan.tasks) == 1
    # A folder of that name with other weights is not taken for it.
    shutil.rmtree(away / "original")
    shutil.copytree(away / "oracle", away / "original")
    raises(lambda: audit.audit_run(away / "one", QUICK | checks), "The original is no longer at", "--original")


# ---- what stays ----


def test_caches_of_decoded_pictures_are_named_and_purged_on_request(home):
    said = Said()
    made = train.unlearn_run(home / "one", home / "two", second(home), progress=said.progress)
    asked = [*keys(home / "two", "forget"), *keys(home / "two", "earlier")]
    assert set(find_caches(run.open_run(home / "two").data, asked).values()) == {20}
    (cache,) = find_caches(run.open_run(home / "two").data, asked)
    assert cache.parent == home / "cache"
    assert made.purged[f"decoded pictures in {cache}"].startswith("kept: it holds 20 forgotten pictures")
    assert f"decoded pictures in {cache}" in json.loads((home / "two" / "meta.json").read_text())["purged"]
    assert str(cache) in said
    data = run.open_run(home / "two", DataChecks(data={"size": 8})).data  # decoded into a second cache
    assert len(find_caches(data, asked)) == 2
    audit.audit_run(home / "two", QUICK)
    erase(home, asked)
    audit.audit_run(home / "two", QUICK)
    record = (home / "two" / "record.json").read_text()
    assert str(cache) in record and "kept: it holds 20" in record
    audit.audit_run(home / "two", QUICK | {"purge_cache": True})
    data = run.open_run(home / "two").data
    assert not cache.exists() and not find_caches(data, asked) and Path(data.x.filename).is_file()
    assert "removed: it held 20 forgotten pictures" in (home / "two" / "record.json").read_text()
    request = second(home, forget="@random:3", purge_cache=True)
    purged = train.unlearn_run(home / "two", home / "three", request).purged
    assert any(text.startswith("removed: it held 3") for text in purged.values())


def test_caches_of_data_that_were_moved_since_are_found_too(home):
    asked = (home / "second.txt").read_text().split("\n")
    (old,) = find_caches(run.open_run(home / "original").data, asked)
    (home / "pictures").rename(home / "moved")
    made = train.unlearn_run(home / "one", home / "two", second(home, data=str(home / "moved"), purge_cache=True))
    assert not old.exists() or f"decoded pictures in {old}" in made.purged


def test_ids_never_trained_on_are_skipped_on_request_and_left_out_of_an_index(home, efface):
    asked = (home / "second.txt").read_text().split("\n")
    unseen = [*keys(home / "one", "test")[:3], *keys(home / "one", "holdout")[:2]]
    (home / "all.txt").write_text("\n".join([*asked, *unseen, keys(home / "one", "forget")[0]]), encoding="utf-8")
    words = ["unlearn", home / "one", "--forget", home / "all.txt", "--method", "finetune", "--set", "method.epochs=1"]
    code, _, err = efface(*words, "--out", home / "two", "--quiet")
    assert code == 2 and "6 of 14 ids were not trained on" in err
    code, _, err = efface(*words, "--out", home / "two", "--skip-never-trained", "--quiet")
    assert code == 0, err
    assert sorted(keys(home / "two", "forget")) == sorted(asked)
    said = Said()
    made = embed.embed_checkpoint(home / "two", home / "index.npz", {"device": "cpu"}, progress=said.progress)
    with np.load(home / "index.npz") as index:
        assert not set(index["keys"]) & {*asked, *unseen, *keys(home / "one", "forget")}
    assert made.forgotten == 8 + 5 + 12


def test_an_index_is_rebuilt_from_moved_and_erased_data(home):
    gone = keys(home / "one", "forget")
    erase(home, gone)
    overwrite(home, keys(home / "one", "retain")[:2])
    said = Said()
    made = embed.embed_checkpoint(home / "one", home / "index.npz", {"device": "cpu"}, progress=said.progress)
    assert made.rows == 240 - 12 and made.forgotten == 0
    assert "2 of 228 images are not the pictures" in said
