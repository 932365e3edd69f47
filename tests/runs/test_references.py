"""Plans of references: tasks named by content, done once on any machine, merged by copying, and used by the audit."""

from __future__ import annotations

import json
import shutil
from itertools import product

import numpy as np
import pytest

from efface.auditing.observations import Observations
from efface.errors import EffaceError
from efface.files import hold_lock
from efface.reporting.record import Record
from efface.runs import audit, references
from efface.runs.folder import partial_path
from efface.training import checkpoint
from efface.training.checkpoint import Checkpoint, content_digest, read_meta
from tests.commands import call

TINY = [
    "--set", "data.limit=260", "--set", "split={train: 60, valid: 40, holdout: 80, test: 40}",
    "--set", "recipe.backbone={width: 8, stride: 1}", "--set", "recipe.batch_size=20", "--set", "recipe.epochs=2",
]  # fmt: skip
WATCH = {"watch": {"views": 3}, "device": "cpu"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny original, and a run that forgot a fifth of it."""
    home = tmp_path_factory.mktemp("runs")
    assert (
        call("pretrain", "--data", "digits", "--objective", "simclr", "--out", home / "original", *TINY, "--quiet") == 0
    )
    words = ["--forget", "@random:0.2", "--method", "finetune", "--set", "method.epochs=1", "--quiet"]
    assert call("unlearn", home / "original", *words, "--out", home / "run") == 0
    return home


@pytest.fixture(scope="module")
def filled(home):
    """A finished plan of two references and one pair."""
    made = references.plan_references(home / "run", home / "refs", count=2, pairs=1)
    references.write_reference_plan(home / "run", made)
    for task in made.tasks:
        references.run_task(home / "refs", task.name, device="cpu")
    return made


@pytest.fixture(scope="module")
def by_hand(home, filled):
    """The first reference, made with `efface unlearn`."""
    seed = Checkpoint.load(home / "refs" / filled.tasks[0].name).seed
    words = ["--forget", "@random:0.2", "--method", "retrain", "--seed", seed, "--out", home / "by-hand", "--quiet"]
    assert call("unlearn", home / "original", *words) == 0
    return home / "by-hand"


def test_a_plan_names_each_task_by_what_goes_into_it(home, tmp_path):
    one, more = (references.plan_references(home / "run", tmp_path / "a", n, pairs=p) for n, p in ((3, 1), (2, 4)))
    names = {task.name for task in one.tasks}
    assert [task.kind for task in one.tasks] == ["out", "original", "in", "out", "out"]
    assert len(names) == 5 and names < {task.name for task in more.tasks}
    assert sum(task.kind == "out" for task in more.tasks) == 4  # as many as pairs
    (inside,) = [task for task in one.tasks if task.kind == "in"]
    assert inside.needs[0] in names and inside.needs[0].startswith("original-")
    assert len({(task.kind, task.seed) for task in one.tasks}) == 5


def test_the_models_are_what_their_tasks_say(home, filled, by_hand):
    start, split = read_meta(home / "original"), json.loads((home / "run" / "split.json").read_text())
    out = Checkpoint.load(home / "refs" / filled.tasks[0].name)
    assert out.exact and out.parent == start["digest"] and out.seed == start["seed"] + references.FIRST_SEED
    assert (out.meta()["recipe"], out.split) == (start["recipe"], read_meta(home / "run")["split"])
    assert read_meta(by_hand)["digest"] == out.model.digest()  # the same oracle, bit for bit
    (inside,) = [task for task in filled.tasks if task.kind == "in"]
    made, original = (read_meta(home / "refs" / name) for name in (inside.name, inside.needs[0]))
    assert made["method"] == read_meta(home / "run")["method"] and not made["exact"]
    assert made["parent"] == original["digest"] and original["parent"] is None and original["method"] is None
    assert json.loads((home / "refs" / inside.name / "split.json").read_text())["parts"] == split["parts"]


def test_a_finished_task_is_not_repeated(home, filled):
    folders = [home / "refs" / task.name / "meta.json" for task in filled.tasks]
    before = [path.stat().st_mtime_ns for path in folders]
    assert references.run_all_tasks(filled, jobs=1, device="cpu") == 0
    assert [path.stat().st_mtime_ns for path in folders] == before


def test_two_machines_share_a_plan_and_merge_by_copying(home, tmp_path, filled):
    plan = references.plan_references(home / "run", tmp_path / "a", count=2)
    references.write_reference_plan(home / "run", plan)
    (tmp_path / "b").mkdir()
    for name in ("plan.json", "split.json", "tasks.jsonl"):
        shutil.copy(tmp_path / "a" / name, tmp_path / "b" / name)  # no run, no original
    for place, task in zip("ab", plan.tasks, strict=True):
        assert call("references", "--out", tmp_path / place, "--task", task.name, "--quiet", "--device", "cpu") == 0
    shutil.copytree(tmp_path / "b" / plan.tasks[1].name, tmp_path / "a" / plan.tasks[1].name)
    folders = references.list_finished(tmp_path / "a")["out"]
    assert [folder.name for folder in folders] == [task.name for task in plan.tasks]
    digests = [read_meta(folder)["digest"] for folder in folders]
    assert digests == [read_meta(home / "refs" / task.name)["digest"] for task in filled.tasks if task.kind == "out"]


def test_an_interrupted_task_resumes(home, tmp_path, filled, monkeypatch):
    plan = references.plan_references(home / "run", tmp_path / "cut", count=1)
    references.write_reference_plan(home / "run", plan)
    (task,) = plan.tasks
    kept = checkpoint.EpochStore.save

    def cut(self, *given):
        kept(self, *given)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.EpochStore, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        references.run_task(tmp_path / "cut", task.name, device="cpu")
    monkeypatch.undo()
    assert partial_path(tmp_path / "cut" / task.name).exists() and not plan.done(task)
    with pytest.raises(EffaceError, match="no finished reference"):
        references.list_finished(tmp_path / "cut")
    references.run_task(tmp_path / "cut", task.name, device="cpu")
    assert read_meta(tmp_path / "cut" / task.name)["digest"] == read_meta(home / "refs" / task.name)["digest"]


def test_one_process_per_task(home, tmp_path):
    plan = references.plan_references(home / "run", tmp_path / "locked", count=1)
    references.write_reference_plan(home / "run", plan)
    with (
        hold_lock(tmp_path / "locked" / f"{plan.tasks[0].name}.task"),
        pytest.raises(EffaceError, match="another process"),
    ):
        references.run_task(tmp_path / "locked", plan.tasks[0].name)


def test_a_dry_run_prints_time_and_disk_space_and_writes_nothing(home, tmp_path, capfd):
    words = ["--count", 3, "--pairs", 2, "--jobs", 2, "--dry-run", "--json"]
    assert call("references", home / "run", "--out", tmp_path / "none", *words) == 0
    out = capfd.readouterr().out
    told = json.loads(out.splitlines()[-1])
    assert not (tmp_path / "none").exists()
    assert {kind: row["left"] for kind, row in told["kinds"].items()} == {"out": 3, "original": 2, "in": 2}
    cost, tuned = (read_meta(home / name)["cost"]["seconds"] for name in ("original", "run"))
    assert told["seconds"] == pytest.approx(3 * cost * 48 / 60 + 2 * cost + 2 * tuned)
    assert told["bytes"] > 7 * 10_000 and "minutes of one process" in out and "MB of disk" in out


def test_all_tasks_in_processes(home, tmp_path, capfd):
    assert call("references", home / "run", "--out", tmp_path / "r", "--count", 1, "--jobs", 1, "--device", "cpu") == 0
    assert "all 1 models are there" in capfd.readouterr().out
    assert len(references.list_finished(tmp_path / "r")["out"]) == 1


def test_the_audit_uses_all_references(home, filled, capfd):
    outs = references.list_finished(home / "refs")["out"]
    result = audit.audit_run(home / "run", WATCH, oracles=[outs[0]], references=home / "refs")
    assert (len(result.evidence.oracles), len(result.evidence.unlearned)) == (2, 1)  # the one named is taken once
    record = Record.load(home / "run")
    assert {"oracle 1", "oracle 2", "unlearned 1"} <= set(record.checkpoints)
    assert Observations.load(outs[1] / "observations.npz").model == read_meta(outs[1])["digest"]
    named = {finding.name: finding for finding in record.findings}
    assert named["ceiling.references"].value == 2 and named["ceiling.pairs"].value == 1
    worst = [row["item"] for row in named["per_example.projector.margin.worst"].details["worst"]]
    assert len(set(worst)) == 10 and all(item.startswith("item:") for item in worst)
    page = (home / "run" / "report.html").read_text(encoding="utf-8")
    assert worst[0] in page and "Level and ceiling" in page and 'href="findings.json#/0"' in page
    rows = json.loads((home / "run" / "findings.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in rows] == [finding.name for finding in record.findings]


def test_a_model_that_is_no_half_of_a_pair_is_refused(home, filled, tmp_path):
    shutil.copytree(home / "refs", tmp_path / "refs")
    (inside,) = references.list_finished(tmp_path / "refs")["in"]
    meta = json.loads((inside / "meta.json").read_text())
    meta["method"]["epochs"] = 7
    (inside / "meta.json").write_text(json.dumps(meta | {"content_digest": content_digest(meta)}))
    with pytest.raises(EffaceError, match="its method differs"):
        audit.audit_run(home / "run", WATCH, references=tmp_path / "refs")


def test_plans_that_are_refused(home, filled, by_hand, tmp_path):
    with pytest.raises(EffaceError, match=r"asked to forget nothing|no longer at"):
        references.plan_references(home / "original", tmp_path)
    with pytest.raises(EffaceError, match="cannot be planned"):
        references.plan_references(home / "run", tmp_path, count=0)
    with pytest.raises(EffaceError, match="has no pairs: its method retrains"):
        references.plan_references(by_hand, tmp_path, pairs=2)
    with pytest.raises(EffaceError, match="no plan of references"):
        references.ReferencePlan.load(tmp_path)
    for name, text in product(("plan.json", "tasks.jsonl"), ("[1, 2]", '{"a": 1}', '{"format"', "3")):
        shutil.copytree(home / "refs", tmp_path / "spoilt", dirs_exist_ok=True)
        (tmp_path / "spoilt" / name).write_text(text)
        with pytest.raises(EffaceError, match=r"cannot be read|is not a"):
            references.ReferencePlan.load(tmp_path / "spoilt")
    with pytest.raises(EffaceError, match="another run"):
        references.write_reference_plan(by_hand, references.plan_references(by_hand, home / "refs", count=1))
    with pytest.raises(EffaceError, match="no task called"):
        references.run_task(home / "refs", "out-1")
    assert call("references") == 2


def test_pairs_are_not_the_run_itself(home, filled):
    digests = [read_meta(home / "refs" / task.name)["digest"] for task in filled.tasks]
    own = [read_meta(home / name)["digest"] for name in ("run", "original")]
    assert len({*digests, *own}) == len(digests) + 2
    assert not np.array_equal(*([task.seed for task in filled.tasks], [0] * len(digests)))
