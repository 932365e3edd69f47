"""The bench: a tiny grid end to end, reuse of results, failures, the selection of settings, and interruption."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from efface import api
from efface.auditing.observations import Observations
from efface.bench import runner
from efface.bench.grid import build_grid, read_grid
from efface.bench.page import render_bench
from efface.bench.plan import Scenario, TaskKind, load_divided, plan_bench
from efface.bench.runner import run_bench
from efface.bench.selection import best_setting, score_setting
from efface.bench.tables import RESULTS
from efface.bench.worker import JOURNAL, TASK_OBSERVATIONS, TaskJob, read_outcome, run_bench_task
from efface.data.dataset import Data
from efface.data.split import select_forget_set
from efface.errors import DiskError, EffaceError
from efface.files import disk_errors
from efface.runs.run import Progress
from tests import tiny
from tests.commands import refused

GRID = {
    "data": {"source": "digits", "limit": 300},
    "split": {"train": 60, "valid": 60, "holdout": 100, "test": 60},
    "forget": {"some": "@random:0.2"},
    "seeds": {"selection": [0], "reporting": [10]},
    "watch": {"views": 2, "bank": 40, "cap": 60, "test_cap": 60},
    "families": {
        "classifier": {
            "recipe": {
                "objective": {"name": "cross_entropy"},
                "backbone": {"width": 4, "stride": 1},
                "epochs": 3,
                "batch_size": 20,
                "views": {"shift": 1, "flip": False},
            }
        }
    },
    "methods": {
        "finetune": [{"epochs": 1, "optim": {"lr": 0.001}}, {"epochs": 1, "optim": {"lr": 0.1}}],
        "neggrad": {"epochs": 1},
        "exploding": {"name": "finetune", "epochs": 2, "optim": {"lr": 1.0e30}},
        "lethevit": {},
    },
    "jobs": 2,
}
FAILED = 5


def journal(home: Path) -> Counter[str]:
    """How often each task was run."""
    return Counter(json.loads(line)["made"] for line in (home / JOURNAL).read_text(encoding="utf-8").splitlines())


def expected(values: dict) -> set[str]:
    """Originals, observations and oracles that the grid asks for."""
    planned = plan_bench(build_grid(values))
    names: set[str] = set()
    for world in planned.worlds((*planned.grid.seeds.selection, *planned.grid.seeds.reporting)):
        tasks = [planned.original(world), planned.look(world), *planned.oracles(world)]
        names |= {f"{task.kind}/{task.digest[:16]}" for task in tasks}
    return names


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The grid, run once."""
    home = tmp_path_factory.mktemp("bench")
    return run_bench(build_grid(GRID), home)


@pytest.fixture
def copied(done, tmp_path):
    """A copy of the finished bench that a test may change."""
    return Path(shutil.copytree(done.folder, tmp_path / "bench"))


# ---- end to end ----


def test_every_task_is_run_exactly_once(done):
    made = journal(done.folder)
    assert set(made.values()) == {1}
    assert expected(GRID) <= set(made)
    assert done.made == len(done.results["rows"]) * 2 + 2 - 1  # a failed cell has no judgment of its own to make
    rows = done.results["rows"]
    assert {row["seed"] for row in rows if row["role"] == "reporting"} == {10}
    assert {row["label"] for row in rows} >= {"original", "oracle 1", "oracle 2", "finetune", "neggrad", "exploding"}
    for row in rows:
        if row["status"] == "done":
            assert 0 <= row["utility"] <= 1
            alone = row["label"].startswith("oracle") and row["role"] == "selection"  # compared with itself alone
            assert (row["gap"] is None) == alone, row["label"]
            assert row["curves"]


def test_files_hold_every_row(done):
    results = json.loads((done.folder / "results.json").read_text(encoding="utf-8"))
    assert results == json.loads(json.dumps(done.results))
    assert len((done.folder / "cells.csv").read_text(encoding="utf-8").splitlines()) == len(results["rows"]) + 1
    assert (done.folder / "findings.csv").stat().st_size > 1000
    ranking = (done.folder / "ranking.csv").read_text(encoding="utf-8")
    assert all(label in ranking for label in ("finetune", "neggrad", "exploding", "oracle", "original"))


def test_the_ranking_is_by_gap_with_the_noise_floor_of_retrained_models(done):
    (world,) = done.results["ranking"]
    gaps = [line["gap"]["mean"] for line in world["methods"] if line["gap"]]
    assert gaps == sorted(gaps)
    oracles = [row["gap"] for row in done.results["rows"] if row["kind"] == "oracle" and row["role"] == "reporting"]
    assert len(oracles) == 2
    assert world["floor"]["mean"] == pytest.approx(np.mean(oracles))
    assert world["floor"]["mean"] > 0


def test_the_page_is_whole_and_loads_nothing(done):
    page = (done.folder / "bench.html").read_text(encoding="utf-8")
    for words in ("noise floor", "Cost, gap, utility", "card-finetune", "ROC of logits.margin", "lethevit needs a tr"):
        assert words in page, words
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert (
        render_bench(json.loads((done.folder / RESULTS).read_text(encoding="utf-8"))) == page
    )  # from the figures alone


def test_a_failed_cell_is_recorded_and_the_others_finish(done):
    rows = [row for row in done.results["rows"] if row["label"] == "exploding"]
    assert [row["status"] for row in rows] == ["failed"]
    assert "task" in rows[0]["error"], "the error names the term that was not finite"
    assert rows[0]["error"].split(".")[0] in (done.folder / "bench.html").read_text(encoding="utf-8")
    assert list(done.failed) == ["classifier, some, seed 10: exploding"]
    assert all(row["status"] == "done" for row in done.results["rows"] if row["label"] != "exploding")


def test_methods_that_do_not_apply_are_reported(done):
    (unfit,) = done.results["unfit"]
    assert (unfit["label"], "transformer" in unfit["reason"]) == ("lethevit", True)


def test_a_group_is_a_forget_set_and_an_unknown_group_is_reported(tmp_path):
    x, y = tiny.images(300)
    group = np.array(["anna", "ben", "cem"])[np.arange(300) % 3]
    np.savez(tmp_path / "people.npz", x=x, y=y, group=group)
    forgotten = {"anna": "@group:anna", "eve": "@group:eve", "a few": "@random:0.05"}
    planned = plan_bench(build_grid({**GRID, "data": str(tmp_path / "people.npz"), "forget": forgotten}))
    one = planned.families["classifier"]
    assert list(one.forget) == ["anna", "a few"]
    assert one.shape["a few"]["forget"] == 3
    (unknown,) = [unfit for unfit in one.unfit if unfit.forget]
    assert (unknown.forget, unknown.reason) == ("eve", "There is no group called 'eve'. Known: anna, ben, cem.")
    data, split = load_divided(one, 10)
    split = select_forget_set(split, data, one.forget["anna"], 10)
    assert set(data.group[split.forget]) == set(data.group[split.holdout]) == {"anna"}
    assert len(split.forget) == one.shape["anna"]["forget"] > 10


# ---- a second call ----


def test_a_second_call_runs_nothing(copied):
    before = (copied / JOURNAL).read_bytes()
    second = run_bench(build_grid(GRID), copied)
    assert second.made == 0
    assert second.kept == len(journal(copied)) + 0
    assert (copied / JOURNAL).read_bytes() == before
    assert list(second.failed) == ["classifier, some, seed 10: exploding"]


def test_a_task_that_was_killed_before_its_line_was_written_gets_it_later(copied):
    lines = (copied / JOURNAL).read_text(encoding="utf-8").splitlines(keepends=True)
    (copied / JOURNAL).write_text("".join(lines[:-1]), encoding="utf-8")
    assert run_bench(build_grid(GRID), copied).made == 0
    again = journal(copied)
    assert again[json.loads(lines[-1])["made"]] == 1 and set(again.values()) == {1} and len(again) == len(lines)


def test_only_an_added_method_is_run(copied):
    more = copy.deepcopy(GRID)
    more["methods"]["ssd"] = {}
    before = journal(copied)
    run_bench(build_grid(more), copied)
    fresh = journal(copied) - before
    assert Counter(name.split("/")[0] for name in fresh) == {"cells": 1, "judged": 1}


def test_a_truncated_result_is_reported_and_run_again_after_it_is_removed(copied):
    name = next(name for name in journal(copied) if name.startswith("judged/"))
    path = copied / name / "outcome.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(EffaceError, match=r"outcome\.json cannot be read") as refused:
        run_bench(build_grid(GRID), copied)
    assert str(path.parent) in refused.value.remedy
    shutil.rmtree(path.parent)
    assert run_bench(build_grid(GRID), copied).made == 1


def test_retry_runs_only_failed_tasks(copied):
    before = journal(copied)
    run_bench(build_grid(GRID), copied, retry=True)
    repeated = Counter({name: count for name, count in (journal(copied) - before).items() if count})
    (name,) = repeated
    assert name.startswith("cells/")
    assert "error" in read_outcome(copied / name)


def test_two_benches_in_one_folder_are_refused(copied):
    with runner._bench_lock(copied), pytest.raises(EffaceError, match="Another bench is running"):
        run_bench(build_grid(GRID), copied)


# ---- progress ----


def test_the_remaining_time_is_estimated_for_each_kind_and_includes_upcoming_cells(tmp_path):
    grid = build_grid({**GRID, "jobs": 1})
    planned = plan_bench(grid)
    work = runner.BenchRunner(tmp_path, grid, Progress())
    worlds = list(planned.worlds((0, 10)))
    cells = [planned.cell(world, "neggrad", 0) for world in worlds]
    tasks = [planned.original(world) for world in worlds] + cells
    work.tasks = {task.digest: task for task in tasks}
    assert (work.count(), work.left()) == ("0/4", "?")
    work.seconds[TaskKind.ORIGINAL] = [600.0]
    work.state[tasks[0].digest] = {}
    assert (work.count(), work.left()) == ("1/4", "over 10:00"), "the time of originals is not used for cells"
    work.state[tasks[1].digest] = {}
    work.seconds[TaskKind.CELL] = [50.0, 70.0]
    assert work.left() == "2:00"
    work.upcoming, work.seconds[TaskKind.JUDGMENT] = 3, [5.0]
    assert (work.count(), work.left()) == ("2/10", "over 5:15")
    work.busy = 3
    assert work.left() == "over 1:45"


# ---- the selection of settings ----


def with_changes(seen: Observations, **changed: np.ndarray) -> Observations:
    """A copy of the observations with some arrays replaced."""
    return Observations(seen.model, seen.split, {**seen.arrays, **changed}, seen.meta)


def test_a_part_of_a_grid_plans_the_same_tasks():
    """A grid with one of two forget sets plans the same tasks for it, so that a grid can be run in parts."""
    whole = build_grid({**GRID, "forget": {"a tenth": "@random:0.1", "sevens": "@class:7"}})
    part = whole.select(forget=["sevens"])
    assert all(list(one.forget or {}) == ["sevens"] for one in part.families.values())
    of_whole, of_part = plan_bench(whole), plan_bench(part)
    world = Scenario("classifier", "sevens", 0)
    assert of_part.cell(world, "finetune", 1).digest == of_whole.cell(world, "finetune", 1).digest
    assert of_part.original(world).digest == of_whole.original(world).digest
    with pytest.raises(EffaceError, match=r"no forget set called 'seven'\. Did you mean 'sevens'"):
        whole.select(forget=["seven"])


def test_bf16_changes_the_tasks_and_applies_to_every_model_of_a_world(monkeypatch, tmp_path):
    usual, fast = plan_bench(build_grid(GRID)), plan_bench(build_grid({**GRID, "bf16": True}))
    world, home = Scenario("classifier", "some", 10), tmp_path / "bench"
    seen: list[tuple[str, bool]] = []
    for name in ("pretrain", "unlearn"):
        real = getattr(api, name)

        def spied(*args, _real=real, _name=name, bf16=False, **kwargs):
            seen.append((_name, bf16))
            return _real(*args, bf16=bf16, **kwargs)

        monkeypatch.setattr(api, name, spied)
    for planned, asked in ((usual, False), (fast, True)):
        tasks = [planned.original(world), planned.oracles(world)[0], planned.cell(world, "finetune", 0)]
        for task in tasks:
            original = task.original.folder(home) if task.original else None
            made = run_bench_task(TaskJob(task.kind, task.folder(home), task.request, original))
            assert "error" not in made, made
        assert seen == [("pretrain", asked), ("unlearn", asked), ("unlearn", asked)]
        seen.clear()
    assert len(list(home.glob("*/*/outcome.json"))) == 6


def test_the_selection_never_reads_the_oracle(copied):
    """Replace the oracle of the selection seed by the setting that was not selected."""
    grid = build_grid(GRID)
    planned = plan_bench(grid)
    world = Scenario("classifier", "some", 0)
    (before,) = [
        p for p in json.loads((copied / "results.json").read_text("utf-8"))["picks"] if p["label"] == "finetune"
    ]
    other = 1 - before["by_oracle"]
    cells = [planned.cell(world, "finetune", number) for number in (0, 1)]
    (oracle,) = planned.oracles(world)
    planted, true = (Observations.load(one.folder(copied) / TASK_OBSERVATIONS) for one in (cells[other], oracle))
    replace(planted, model=true.model).save(oracle.folder(copied) / TASK_OBSERVATIONS)
    for cell in cells:
        shutil.rmtree(planned.judgment(cell).folder(copied))
    after = run_bench(grid, copied).results
    (now,) = [p for p in after["picks"] if p["label"] == "finetune"]
    assert now["chosen"] == before["chosen"]
    assert now["scores"] == pytest.approx(before["scores"], abs=0)
    assert now["by_oracle"] == other
    assert now["gaps"][other] == 0


def test_a_full_disk_is_no_result_of_a_task(copied, monkeypatch):
    """The same command does the task again, as after any other interruption."""
    planned = plan_bench(build_grid(GRID))
    task = planned.look(Scenario("classifier", "some", 0))
    folder, original = task.folder(copied), task.original.folder(copied)
    before = (folder / TASK_OBSERVATIONS).read_bytes()
    job = TaskJob(task.kind, folder, task.request, original)
    for error in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        shutil.rmtree(folder)

        def write(self, path, error=error):
            with disk_errors(Path(path)):
                raise OSError(error, os.strerror(error))

        with monkeypatch.context() as patched:
            patched.setattr(Observations, "save", write)
            with pytest.raises(DiskError):
                run_bench_task(job)
        assert not folder.exists(), "its failure would be its outcome for ever"
        assert "error" not in run_bench_task(job)
        assert (folder / TASK_OBSERVATIONS).read_bytes() == before


def test_the_score_uses_only_forget_and_validation_examples(done):
    planned = plan_bench(build_grid(GRID))
    world = Scenario("classifier", "some", 0)
    original = Observations.load(planned.look(world).folder(done.folder) / TASK_OBSERVATIONS)
    cell = planned.cell(world, "finetune", 1)
    seen = Observations.load(cell.folder(done.folder) / TASK_OBSERVATIONS)
    plain = score_setting(original, seen)
    rng = np.random.default_rng(0)
    for name, array in seen.arrays.items():
        if name.split("/")[0] in ("holdout", "test", "spare"):
            noise = rng.permutation(array.reshape(-1)).reshape(array.shape)
            assert score_setting(original, with_changes(seen, **{name: noise})) == plain, name
    changed = with_changes(seen, **{"valid/logits": rng.permutation(seen.of("valid", "logits"))})
    assert score_setting(original, changed).drop > plain.drop


def test_the_best_setting_has_the_lowest_mean_and_finished_on_every_seed():
    assert best_setting([{"score": [0.2, 0.4]}, None, {"score": [0.1, 0.3]}], "score") == 2
    assert best_setting([None, None], "score") is None
    assert best_setting([{"gap": []}, {"gap": [0.5]}], "gap") == 1


# ---- the command line ----


def written(tmp_path: Path, values: dict, name: str = "tiny.yaml") -> Path:
    path = tmp_path / name
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_the_exit_code_shows_that_a_cell_failed(efface, copied, tmp_path):
    path = written(tmp_path, GRID)
    code, out, _ = efface("bench", path, "--out", copied, "--json")
    summary = json.loads(out.splitlines()[-1])
    assert code == FAILED
    assert (summary["made"], len(summary["failed"])) == (0, 1)
    fine = copy.deepcopy(GRID)
    del fine["methods"]["exploding"]
    assert efface("bench", written(tmp_path, fine), "--out", copied, "--quiet")[0] == 0


BAD = {
    "an unknown method": ({"methods": {"finetun": {}}}, ["finetun", "Did you mean 'finetune'"]),
    "an unknown field": ({"methods": {"finetune": {"lrr": 1}}}, ["methods.finetune.lrr"]),
    "an unknown key": ({"metods": {}}, ["metods", "Did you mean 'methods'"]),
    "no methods": ({"methods": {}}, ["no methods"]),
    "no families": ({"families": {}}, ["no families"]),
    "an unknown selector": ({"forget": {"some": "@rndom:0.1"}}, ["@rndom", "Did you mean '@random'"]),
    "the same seeds": ({"seeds": {"selection": [10], "reporting": [10]}}, ["[10]", "both select and report"]),
    "unknown data": ({"data": "digitz"}, ["digitz", "Did you mean 'digits'"]),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_invalid_grids_are_refused_in_the_words_of_the_user(efface, tmp_path, case):
    changed, said = BAD[case]
    refused(efface("bench", written(tmp_path, {**GRID, **changed}), "--out", tmp_path / "out"), *said)
    assert not list((tmp_path / "out").glob("*/*"))


def test_a_missing_grid_file(efface, tmp_path):
    refused(efface("bench", tmp_path / "nowhere.yaml"), "nowhere.yaml")


# ---- interruption ----


def test_after_a_kill_the_same_call_finishes_without_losing_or_repeating_a_task(done, tmp_path):
    path, home = written(tmp_path, GRID), tmp_path / "out"
    words = [sys.executable, "-m", "efface", "bench", str(path), "--out", str(home), "--quiet", "--json"]
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 120
    while not (home / JOURNAL).exists() or len(journal(home)) < 4:
        assert first.poll() is None and time.monotonic() < until, "it ended before it could be killed"
        time.sleep(0.02)
    workers = children(first.pid)
    first.send_signal(signal.SIGKILL)
    first.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < until, "its worker processes are still running"
        time.sleep(0.05)
    before = journal(home)
    second = subprocess.run(words, capture_output=True, text=True, timeout=300)
    summary = json.loads(second.stdout.splitlines()[-1])
    tasks = journal(home)
    assert second.returncode == FAILED, second.stderr
    assert set(tasks.values()) == {1}
    assert set(tasks) == set(journal(done.folder))
    assert len(before) < len(tasks)
    assert summary["made"] <= len(tasks) - len(before)
    assert not list(home.glob("*/*.partial"))
    for name in tasks:  # the same task must give the same result in both benches
        if name.startswith(TaskKind.CELL):
            one, other = read_outcome(home / name), read_outcome(done.folder / name)
            assert one.get("digest") == other.get("digest")


def children(pid: int) -> list[str]:
    """Ids of the child processes of a process."""
    return subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()


# ---- the examples ----

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_can_be_planned(path, monkeypatch):
    """Names, sizes of splits, recipes and methods fit; noise stands in for the data, since blanks are all copies."""
    monkeypatch.setattr("efface.bench.plan.load_data", stand_in)

    planned = plan_bench(read_grid(path))
    for one in planned.families.values():
        assert one.entries
        assert not [unfit for unfit in one.unfit if unfit.forget], one.unfit


def stand_in(settings):
    named = settings["data"]["source"] if isinstance(settings["data"], dict) else settings["data"]
    side, channels, count = {"digits": (8, 1, 1797), "fashion-mnist": (28, 1, 70_000)}.get(named, (32, 3, 60_000))
    classes = {"cifar100": [f"c{n}" for n in range(100)], "cifar10": [*"abcdefghi", "dog"]}.get(named)
    if named == "fashion-mnist":
        classes = [*"abcdefghi", "Sandal"]
    y = np.arange(count) % len(classes or "0123456789")
    official = None if named == "digits" else np.where(np.arange(count) < count - 10_000, "train", "test")
    x = np.random.default_rng(0).integers(0, 256, (count, channels, side, side), dtype=np.uint8)
    return Data.from_arrays(x, y, classes=classes, official=official, name=named)


def test_the_bench_can_be_imported_without_file_locks():
    code = "import sys; sys.modules['fcntl'] = None; import efface.bench.runner"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
