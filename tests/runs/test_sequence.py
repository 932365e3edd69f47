"""Sequential requests: forgotten examples stay out of training, and all requests are judged as well as the last."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import torch

from efface import cli
from efface.auditing.observations import Observations
from efface.auditing.observers.weight_changes import relative_change
from efface.auditing.sequential import RequestSequence, measure_step, worst_exit_code
from efface.data.dataset import Data
from efface.data.split import SPLIT_PARTS, Split, merge_requests, partition, select_forget_set
from efface.errors import EffaceError
from efface.reporting.record import Record
from efface.runs import audit, run, train
from efface.training.batch import Subset
from efface.training.checkpoint import Checkpoint
from tests import tiny
from tests.worlds import World

TINY = {
    "data": {"source": "digits", "limit": 400},
    "split": {"train": 120, "valid": 60, "holdout": 120, "test": 80},
    "recipe": {"objective": "cross_entropy", "backbone": {"width": 8, "stride": 1}, "batch_size": 30, "epochs": 2},
}
QUICK = {"watch": {"views": 3, "gradient": False}}


@pytest.fixture(scope="module")
def data():
    x, y = tiny.images(300)
    keys = [f"k{row:03d}" for row in range(300)]
    return Data.from_arrays(x, y, keys, group=np.array(["p", "q"])[np.arange(300) % 2], classes=("a", "b", "c"))


# ---- splits ----


def requests(data, *selectors):
    split = partition(data, train=120, valid=40, holdout=100, test=40)
    for selector in selectors:
        split = select_forget_set(split, data, selector, 0)
    return split


def test_what_was_forgotten_stays_out_of_training_through_any_number_of_requests(data):
    split = requests(data, "@random:10", "@random:12", "@random:5")
    assert split.sizes()["earlier"] == 22
    assert len(split.train) == 120 - 22
    assert not np.isin(split.earlier, split.train).any()
    whole = merge_requests(split, data)
    assert sorted(whole.forget) == sorted([*split.earlier, *split.forget])
    assert whole.retain.tolist() == split.retain.tolist()
    assert whole.provenance["random"] is True
    assert whole.provenance["selector"] == "@random:10, then @random:12, then @random:5"
    assert not len(whole.earlier)
    whole.check(len(data))


def test_the_holdout_of_all_requests_is_matched_to_all_of_them(data):
    split = requests(data, "@class:a", "@class:b")
    assert set(data.y[split.holdout]) == {1}
    whole = merge_requests(split, data)
    assert set(data.y[whole.holdout]) == {0, 1}
    assert whole.provenance["matched"] == "class"
    assert whole.provenance["random"] is False
    mixed = merge_requests(requests(data, "@random:10", "@class:b"), data)
    assert mixed.provenance["random"] is False
    grouped = merge_requests(requests(data, "@random:10", "@group:p"), data)
    assert grouped.provenance["matched"] == "group"


def test_a_first_request_is_its_own_whole(data):
    split = requests(data, "@random:10")
    assert merge_requests(split, data) is split
    assert "earlier" not in split.sizes()
    assert set(split.to_dict(data)["parts"]) == set(SPLIT_PARTS[:-1])


def test_a_split_with_earlier_requests_is_stored_and_found_again(data):
    split = requests(data, "@random:10", "@class:b")
    stored = json.loads(json.dumps(split.to_dict(data)))
    again = Split.from_dict(data, stored)
    assert again.digest(data) == split.digest(data)
    assert again.earlier.tolist() == split.earlier.tolist()
    assert again.digest(data) != dataclasses.replace(split, earlier=split.earlier[:0]).digest(data)
    planted = dataclasses.replace(split, retain=np.sort(np.append(split.retain, split.earlier[0])))
    with pytest.raises(EffaceError, match="retain and earlier share 1"):
        planted.check(len(data))


# ---- drift ----


def test_drift_is_measured_against_the_one_before_and_the_first():
    world = World(classes=3)
    first = world.original()
    turned = dataclasses.replace(first, model="2", arrays=dict(first.arrays))
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(world.dim, world.dim)))[0]
    turned.arrays["test/features"] = (first.of("test", "features") @ rotation).astype(np.float32)
    third = dataclasses.replace(first, model="3", arrays=dict(first.arrays))
    third.arrays["test/features"] = np.random.default_rng(1).normal(size=first.of("test", "features").shape)
    assert measure_step([first], forgotten=0).cka_first is None
    second = measure_step([first, turned], forgotten=3)
    assert second.cka_before == pytest.approx(1, abs=1e-4)
    last = measure_step([first, turned, third], forgotten=5)
    assert last.cka_before is not None and last.cka_before < 0.2
    assert last.cka_first == pytest.approx(last.cka_before, abs=1e-4)
    assert last.utility is not None and measure_step([first], forgotten=0).utility > last.utility
    unlabelled = Observations("u", "s", {k: v for k, v in first.arrays.items() if not k.endswith("labels")}, first.meta)
    assert measure_step([unlabelled], forgotten=0).utility is None


def test_weights_that_moved_by_a_tenth_moved_by_a_tenth():
    before = tiny.recipe("moco").start(0)
    after = tiny.recipe("moco").start(0)
    assert relative_change(before, after) == 0
    with torch.no_grad():
        for name, value in after.state_dict().items():
            if value.is_floating_point() and name not in ("mean", "std"):
                value.mul_(3.0 if name.startswith("queue") else 1.1)
    assert relative_change(before, after) == pytest.approx(0.1, rel=1e-5)


def test_a_trace_is_worse_than_no_answer_and_no_answer_than_removed():
    assert worst_exit_code(0) == 0
    assert worst_exit_code(0, 4) == 4
    assert worst_exit_code(4, 3) == worst_exit_code(3, 0) == 3
    assert RequestSequence(steps=(), count=1, note="gone").exit_code == 4


# ---- run folders ----


def call(*words):
    kept, sys.argv = sys.argv, ["efface", *map(str, words)]
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        sys.argv = kept
    return stopped.value.code or 0


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """An original, a first request, a second from its result, and an oracle for both."""
    home = tmp_path_factory.mktemp("chain")
    train.pretrain_run(home / "original", TINY)
    train.unlearn_run(
        home / "original", home / "one", {"forget": "@random:20", "method": {"name": "neggrad", "epochs": 1}}
    )
    train.unlearn_run(home / "one", home / "two", {"forget": "@class:3", "method": {"name": "finetune", "epochs": 1}})
    train.unlearn_run(home / "one", home / "oracle", {"forget": "@class:3", "method": "retrain", "seed": 1})
    train.unlearn_run(home / "original", home / "careless", {"forget": "@class:3", "method": "retrain", "seed": 1})
    return home


def parts(folder):
    return json.loads((folder / "split.json").read_text())["parts"]


def test_the_second_run_never_trains_on_the_first_request(chain, monkeypatch):
    gone = set(parts(chain / "one")["forget"])
    assert set(parts(chain / "two")["earlier"]) == gone
    seen: set[int] = set()
    opened = run.open_run(chain / "one")
    serve = Subset.of

    def watched(data, positions, *more):
        seen.update(int(p) for p in positions)
        return serve(data, positions, *more)

    monkeypatch.setattr(Subset, "of", watched)
    for method in ("scrub", "retrain"):
        settings = {"forget": "@class:5", "method": method}
        train.unlearn_run(chain / "one", chain / f"watched-{method}", settings)
    assert seen
    assert not gone & set(opened.data.keys[sorted(seen)].tolist())


def test_the_audit_judges_the_last_request_and_all_of_them(chain):
    result = audit.audit_run(chain / "two", QUICK, oracles=[chain / "oracle"])
    record = Record.load(chain / "two")
    assert record.sequence is not None and record.sequence == result.sequence
    assert record.request.count == len(parts(chain / "two")["forget"])
    whole = len(parts(chain / "one")["forget"]) + record.request.count
    assert record.sequence.count == whole
    assert record.sequence.verdict is not None and record.sequence.verdict.level == "A1"
    assert record.sequence.findings
    digests = [json.loads((chain / name / "meta.json").read_text())["digest"] for name in ("original", "one", "two")]
    assert [one.digest for one in record.sequence.steps] == digests == list(record.lineage)
    assert [one.forgotten for one in record.sequence.steps] == [0, 20, whole]
    first, one, two = record.sequence.steps
    assert first.moved_first is None and one.moved_before == one.moved_first
    models = [Checkpoint.load(chain / name).model for name in ("original", "one", "two")]
    assert two.moved_before == pytest.approx(relative_change(models[1], models[2]))
    assert two.moved_first == pytest.approx(relative_change(models[0], models[2]))
    assert result.exit_code == worst_exit_code(result.verdict.exit_code, record.sequence.verdict.exit_code)
    page = (chain / "two" / "report.html").read_text(encoding="utf-8")
    assert "All requests so far" in page and "Drift over the requests" in page
    split = merge_requests(run.open_run(chain / "two").split, run.open_run(chain / "two").data)
    digest = split.digest(run.open_run(chain / "two").data)
    shown = Observations.load(chain / "two" / f"{digests[0][:8]}-observations-{digest[:8]}.npz")
    assert shown.count("forget") == whole
    assert not list((chain / "original").glob("*observations*")), "it was never told whom others want forgotten"


def test_a_first_request_has_no_sequence(chain):
    assert audit.audit_run(chain / "one", QUICK).sequence is None
    assert Record.load(chain / "one").sequence is None


def test_no_bare_id_of_any_request_is_in_the_record(chain):
    audit.audit_run(chain / "two", QUICK)
    text = (chain / "two" / "record.json").read_text(encoding="utf-8")
    for key in (*parts(chain / "two")["forget"], *parts(chain / "two")["earlier"]):
        assert f'"{key}"' not in text


def test_an_oracle_that_trained_on_an_earlier_request_is_refused(chain):
    message = r"cannot be used.*trained on \d+ of the examples of earlier requests.*one with"
    with pytest.raises(EffaceError, match=message):
        audit.audit_run(chain / "two", QUICK, oracles=[chain / "careless"])


def test_without_the_first_original_it_is_said_and_never_passes(chain, tmp_path, capfd):
    for name in ("one", "two", "oracle"):
        shutil.copytree(chain / name, tmp_path / name)
    for name, source in (("one", tmp_path / "gone"), ("two", tmp_path / "one"), ("oracle", tmp_path / "one")):
        path = tmp_path / name / "config.yaml"
        text = path.read_text()
        asked = next(line for line in text.splitlines() if line.startswith("from: "))
        path.write_text(text.replace(asked, f"from: {source}"))
    code = call("audit", tmp_path / "two", "--oracle", tmp_path / "oracle", "--set", "watch.views=3", "--json")
    out = capfd.readouterr()[0]
    answer = json.loads(out.splitlines()[-1])
    assert code in (3, 4)
    assert answer["all_requests"]["verdict"] == "inconclusive"
    assert "not there any more" in answer["all_requests"]["sentence"]
    assert "All " in out
    again = audit.audit_run(tmp_path / "two", QUICK, oracles=[tmp_path / "oracle"], original=chain / "original")
    assert again.sequence is not None and again.sequence.verdict is not None
