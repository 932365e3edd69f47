"""Banks and rehearsals of a tiny run: made as tasks, used by audits, refused where they do not belong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from efface.auditing.bank_file import load_bank, save_bank
from efface.auditing.observations import Observations
from efface.auditing.observers.model_observer import ModelObserver
from efface.errors import EffaceError
from efface.reporting.record import Record
from efface.runs import artifacts, audit, bank_plan, rehearsal_plan, rehearsals
from tests.commands import call

TINY = [
    "--set", "data.limit=260", "--set", "split={train: 60, valid: 40, holdout: 80, test: 40}",
    "--set", "recipe.backbone={width: 8, stride: 1}", "--set", "recipe.batch_size=20", "--set", "recipe.epochs=2",
]  # fmt: skip
WATCH = {"watch": {"views": 3}, "device": "cpu"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny original, two runs that forgot six examples, and a bank of four models."""
    home = tmp_path_factory.mktemp("runs")
    words = ["--data", "digits", "--objective", "simclr", "--out", home / "original", *TINY, "--quiet"]
    assert call("pretrain", *words) == 0
    for name, method in (("tuned", "finetune"), ("again", "retrain")):
        words = ["--forget", "@random:6", "--method", method, "--seed", 3, "--quiet", "--out", home / name]
        assert call("unlearn", home / "original", *words) == 0
    words = ["--bank", 6, "--out", home / "bank", "--set", "watch.views=3", "--jobs", 1, "--quiet"]
    assert call("references", home / "original", *words) == 0
    return home


def test_a_bank_holds_every_example_and_no_weights(home):
    bank = load_bank(home / "bank")
    assert (bank.models, len(bank.keys), bank.trained.sum(), bank.valid.sum()) == (6, 220, 60, 40)
    assert {"backbone.margin", "projector.margin", "backbone.alignment", "gradient_norm"} <= set(bank.scores)
    assert not np.isnan(bank.scores["projector.margin"]).any()
    assert np.isnan(bank.scores["projector.norm"][:, bank.valid]).all()
    names = sorted(path.suffix for path in (home / "bank").iterdir() if path.name.startswith("half-"))
    assert names == [".npz"] * 6


def test_a_bank_is_the_same_for_every_request_and_is_extended(home, tmp_path, efface):
    first = bank_plan.plan_bank(home / "original", home / "bank", 6, watch=_watch())
    later = bank_plan.plan_bank(home / "tuned", home / "bank", 8, watch=_watch())
    assert later.shared() == first.shared()
    assert later.left() == [6, 7]
    code, _, err = efface("references", home / "tuned", "--bank", 8, "--out", home / "bank", "--dry-run")
    assert code == 2 and "holds another reference bank" in err  # other views


def _watch():
    from efface.auditing.observers.settings import ObservationSettings

    return ObservationSettings(views=3)


def test_an_audit_is_calibrated_by_a_bank_and_says_so(home):
    judged = audit.audit_run(home / "tuned", WATCH, bank=home / "bank")
    assert judged.verdict.level == "A1"
    assert [one.signal for one in judged.verdict.signals] == ["backbone.margin", "projector.margin", "learned"]
    record = Record.load(home / "tuned")
    assert record.bank is not None and record.bank.models == 6 and not record.bank.divided
    assert "compares each example with 3 models that never saw it" in judged.verdict.sentence
    audit.report_run(home / "tuned")


def test_for_a_retrained_model_the_bank_is_the_rehearsal(home):
    judged = audit.audit_run(home / "again", WATCH, bank=home / "bank")
    held = judged.verdict.rehearsed
    assert held is not None and held.requests == 6 and held.examples == 60  # each is out of three models


@pytest.mark.parametrize("harm", ["views", "original", "missing"])
def test_a_bank_that_does_not_belong_is_refused(home, tmp_path, harm):
    settings, bank = dict(WATCH), home / "bank"
    if harm == "views":
        settings["watch"] = {"views": 4}
    elif harm == "missing":
        bank = tmp_path / "nothing"
    else:
        words = ["--data", "digits", "--objective", "simclr", "--out", tmp_path / "other", *TINY, "--quiet"]
        assert call("pretrain", *words, "--seed", 5) == 0
        assert call("unlearn", tmp_path / "other", "--forget", "@random:6", "--method", "finetune", "--quiet",
                    "--out", tmp_path / "run") == 0  # fmt: skip
        with pytest.raises(EffaceError, match="another original"):
            audit.audit_run(tmp_path / "run", settings, bank=bank)
        return
    with pytest.raises(EffaceError, match=r"observed in another way|no reference bank"):
        audit.audit_run(home / "tuned", settings, bank=bank)


@pytest.fixture(scope="module")
def rehearsed(home):
    """Finished rehearsals of the fine-tuned run, beside its original."""
    plan = rehearsal_plan.plan_rehearsals(home / "tuned", requests=5, watch=_watch())
    words = ["--requests", 5, "--set", "watch.views=3", "--jobs", 1, "--device", "cpu", "--quiet"]
    assert call("rehearse", home / "tuned", *words) == 0
    return plan


def test_rehearsals_are_resumed(home, tmp_path, efface):
    plan = rehearsal_plan.plan_rehearsals(home / "tuned", tmp_path / "r", requests=5, watch=_watch())
    rehearsal_plan.write_rehearsal_plan(home / "tuned", plan)
    rehearsals.make_rehearsal(plan.home, "rehearsal-002", "cpu")
    assert len(plan.left()) == 5
    words = [
        "--requests",
        5,
        "--set",
        "watch.views=3",
        "--jobs",
        1,
        "--device",
        "cpu",
        "--quiet",
        "--out",
        tmp_path / "r",
    ]
    code, _, _ = efface("rehearse", home / "tuned", *words)
    assert code == 0 and plan.left() == []


@pytest.fixture(scope="module")
def in_parts(home):
    """A run whose batches went through the network four images at a time: a ResNet, whose BatchNorm sees that."""
    words = ["--forget", "@random:6", "--method", "finetune", "--seed", 3, "--quiet", "--out", home / "parts"]
    assert call("unlearn", home / "original", *words, "--set", "recipe.micro_batch=4") == 0
    return home / "parts"


def test_rehearsals_compute_in_the_parts_of_the_run(home, in_parts, rehearsed, tmp_path, monkeypatch):
    """Another size of the parts is another procedure; neither stands for the other."""
    plan = rehearsal_plan.plan_rehearsals(in_parts, requests=5, watch=_watch())
    assert plan.micro_batch == 4 and plan.home != rehearsed.home and rehearsed.micro_batch is None
    rehearsal_plan.write_rehearsal_plan(in_parts, plan)
    assert rehearsal_plan.RehearsalPlan.load(plan.home).shared() == plan.shared()
    seen, unlearn = [], rehearsals.api.unlearn

    def watched(original, *words, **named):
        seen.append((original.model.micro_batch, original.recipe.micro_batch))
        return unlearn(original, *words, **named)

    monkeypatch.setattr(rehearsals.api, "unlearn", watched)
    for name in plan.names:
        rehearsals.make_rehearsal(plan.home, name, "cpu")
    assert seen == [(4, 4)] * 5
    judged = audit.audit_run(in_parts, WATCH)
    assert judged.verdict.rehearsed is not None  # found beside the original
    assert audit.audit_run(home / "tuned", WATCH, rehearsals=rehearsed.home).verdict.rehearsed is not None
    with pytest.raises(EffaceError, match=r"another recipe\.micro_batch"):
        audit.audit_run(in_parts, WATCH, rehearsals=rehearsed.home)


def test_a_bank_is_extended_with_the_epochs_it_was_begun_with(home, tmp_path):
    begun = bank_plan.plan_bank(home / "original", tmp_path / "bank", 2, share=1.0, watch=_watch())
    bank_plan.write_bank_plan(home / "original", begun)
    assert bank_plan.plan_bank(home / "original", tmp_path / "bank", 4, watch=_watch()).shared() == begun.shared()
    fresh = bank_plan.plan_bank(home / "original", tmp_path / "other", 4, watch=_watch())
    assert fresh.recipe["epochs"] == max(1, round(0.3 * begun.recipe["epochs"])) and begun.share == 1
    with pytest.raises(EffaceError, match="another reference bank"):
        bank_plan.plan_bank(home / "original", tmp_path / "bank", 4, share=0.3, watch=_watch())


def test_a_bank_computes_in_the_parts_of_the_run_it_was_begun_for(home, in_parts, tmp_path):
    plan = bank_plan.plan_bank(in_parts, tmp_path / "bank", 2, watch=_watch())
    assert plan.recipe["micro_batch"] == 4
    bank_plan.write_bank_plan(in_parts, plan)
    more = bank_plan.plan_bank(home / "original", tmp_path / "bank", 4, watch=_watch())
    assert more.shared() == plan.shared() and more.models == 4
    whole = bank_plan.plan_bank(in_parts, home / "bank", 6, watch=_watch())  # begun without
    assert whole.recipe.get("micro_batch") is None and whole.left() == []


def test_rehearsals_look_at_no_more_of_the_unseen_than_they_need(home, rehearsed, tmp_path, monkeypatch):
    """Finished rehearsals without this limit are continued without it."""
    assert rehearsed.unseen is None  # here are fewer than the limit
    monkeypatch.setattr(rehearsal_plan, "FEWEST_UNSEEN", 20)
    assert rehearsal_plan.plan_rehearsals(home / "tuned", requests=6, watch=_watch()).unseen is None
    plan = rehearsal_plan.plan_rehearsals(home / "tuned", tmp_path / "few", requests=5, watch=_watch())
    assert plan.unseen == 30  # five requests of six
    rehearsal_plan.write_rehearsal_plan(home / "tuned", plan)
    assert rehearsal_plan.RehearsalPlan.load(plan.home).shared() == plan.shared() != rehearsed.shared()
    for name in plan.names:
        rehearsals.make_rehearsal(plan.home, name, "cpu")
    looked = {(tuple(one.of("holdout", "keys")), tuple(one.of("renewed-holdout", "keys"))) for one in _stored(plan)}
    assert len(looked) == 1  # the same for all
    assert {len(keys) for keys in next(iter(looked))} == {30}
    whole = {tuple(one.of("holdout", "keys")) for one in _stored(rehearsed)}
    assert set(next(iter(looked))[0]) < set(next(iter(whole)))
    held = audit.audit_run(home / "tuned", WATCH, rehearsals=plan.home).verdict.rehearsed
    assert held is not None and held.requests == 5


def _stored(plan):
    return [Observations.load(plan.file_of(name)) for name in plan.names]


def test_rehearsals_compare_with_the_bank_of_the_request_however_few_they_look_at(home, tmp_path, monkeypatch):
    """Planted: a sample of the bank, against which everybody's margins lie elsewhere than in the request's audit."""
    monkeypatch.setattr(rehearsals, "MOST_OBSERVED", 10)
    monkeypatch.setattr(rehearsal_plan, "OLDER_BANK", 10)
    plan = rehearsal_plan.plan_rehearsals(home / "tuned", tmp_path / "few", requests=5, watch=_watch())
    assert plan.compared == 40
    rehearsal_plan.write_rehearsal_plan(home / "tuned", plan)
    seen, whole = [], ModelObserver.build_bank
    monkeypatch.setattr(ModelObserver, "build_bank", lambda self, rows: (seen.append(len(rows)), whole(self, rows))[1])
    observed = rehearsals.observe_rehearsal(plan, plan.names[1], "cpu")
    assert observed.count("retain") == 10
    assert seen == [40, 40], "for the margins as they are, and with statistics estimated anew"


def test_rehearsals_that_an_older_release_compared_with_fewer_say_what_to_do(home, tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal_plan, "OLDER_BANK", 10)
    plan = rehearsal_plan.plan_rehearsals(home / "tuned", tmp_path / "older", requests=5, watch=_watch())
    rehearsal_plan.write_rehearsal_plan(home / "tuned", replace(plan, compared=None))
    with pytest.raises(EffaceError, match=r"an older release's.*with 10 unseen examples.*with 40.*Delete that folder"):
        rehearsal_plan.write_rehearsal_plan(home / "tuned", plan)
    monkeypatch.undo()
    more = rehearsal_plan.plan_rehearsals(home / "tuned", tmp_path / "more", requests=5, watch=_watch())
    assert more.compared is None, "names of stored rehearsals stay where they were as they should be"


def test_an_audit_refuses_rehearsals_that_were_compared_with_fewer(home, rehearsed, monkeypatch):
    monkeypatch.setattr(rehearsal_plan, "OLDER_BANK", 10)  # those that are there were made without naming the bank
    with pytest.raises(EffaceError, match="another number of unseen examples that margins compare with"):
        audit.audit_run(home / "tuned", WATCH, rehearsals=rehearsed.home)


def test_rehearsals_are_found_and_reused(home, rehearsed):
    assert rehearsed.left() == []
    judged = audit.audit_run(home / "tuned", WATCH)
    held = judged.verdict.rehearsed
    assert held is not None and (held.requests, held.examples) == (5, 30)
    assert Record.load(home / "tuned").rehearsals is not None
    audit.report_run(home / "tuned")


def test_rehearsals_take_nothing_of_the_real_request(home, rehearsed):
    plan = rehearsed
    own = set(json.loads((home / "tuned" / "split.json").read_text())["parts"]["forget"])
    seen = [set()]
    for name in plan.names:
        stored = Observations.load(plan.file_of(name))
        forgotten = set(stored.of("forget", "keys").tolist())
        assert not own & forgotten
        if name != rehearsal_plan.BEFORE:
            assert not seen[-1] & forgotten  # disjoint
            seen.append(seen[-1] | forgotten)
        assert not own & set(stored.of("retain", "keys").tolist())


def test_rehearsals_of_another_procedure_are_refused(home, tmp_path, rehearsed):
    words = ["--forget", "@random:6", "--method", "finetune", "--set", "method.epochs=2", "--quiet"]
    assert call("unlearn", home / "original", *words, "--out", tmp_path / "longer") == 0
    plan = rehearsed
    with pytest.raises(EffaceError, match=r"does not stand for this request: another .*method"):
        audit.audit_run(tmp_path / "longer", WATCH, original=home / "original", rehearsals=plan.home)


def test_a_damaged_rehearsal_is_named(home, tmp_path, rehearsed):
    plan = rehearsed
    copied = tmp_path / "copied"
    shutil.copytree(plan.home, copied)
    file = next(copied.glob("rehearsal-001-*.npz"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(EffaceError, match="cannot be read as observations"):
        audit.audit_run(home / "tuned", WATCH, rehearsals=copied)


def _change(home, name, change):
    """Change stored scores of a copy of finished rehearsals; the file keeps its name and a digest of its own."""
    file = rehearsal_plan.RehearsalPlan.load(home).file_of(name)
    stored = Observations.load(file)
    file.unlink()
    artifacts.save_observations(file, change(stored))
    return file


def test_rehearsals_with_the_scores_of_others_are_refused(home, tmp_path, rehearsed):
    """Scores of models that forgot better, under the names of those that did not, would validate anything."""
    exchanged = Observations.load(rehearsed.file_of("rehearsal-003"))
    before = rehearsal_plan.BEFORE

    def keys(one, part, values):
        return replace(one, arrays=one.arrays | {f"{part}/keys": values})

    def overlap(one):
        return keys(one, "retain", np.r_[one.of("forget", "keys")[:1], one.of("retain", "keys")[1:]])

    cases = {
        "It was made as rehearsal-003-": ("rehearsal-001", lambda one: exchanged),
        "It is of the same model as rehearsal-00": ("rehearsal-001", lambda one: replace(one, model=exchanged.model)),
        "of another model than the original": (before, lambda one: replace(one, model=exchanged.model)),
        "not those of all rehearsals together": (
            before, lambda one: keys(one, "forget", np.char.add(one.of("forget", "keys"), "x"))),
        "both forgotten and retained": ("rehearsal-002", overlap),
    }  # fmt: skip
    for number, (said, (name, change)) in enumerate(cases.items()):
        copied = tmp_path / str(number)
        shutil.copytree(rehearsed.home, copied)
        _change(copied, name, change)
        with pytest.raises(EffaceError, match=said):
            audit.audit_run(home / "tuned", WATCH, rehearsals=copied)


def test_made_up_scores_are_found_where_rehearsals_are_made_again(home, tmp_path, rehearsed, efface):
    words = ["--requests", 5, "--set", "watch.views=3", "--jobs", 1, "--device", "cpu", "--recheck", 5]
    code, out, _ = efface("rehearse", home / "tuned", *words)
    assert code == 0 and "Made again, with the same scores: before, rehearsal-000" in out
    code, out, _ = efface("rehearse", home / "tuned", *words[:-1], 1, "--json", "--quiet")
    assert code == 0 and len(json.loads(out)["repeated"]) == 2
    copied = tmp_path / "copied"
    shutil.copytree(rehearsed.home, copied)

    def lower(one):
        name = "forget/score.backbone.margin"
        return replace(one, arrays=one.arrays | {name: one.arrays[name] - one.arrays[name].std()})

    _change(copied, "rehearsal-002", lower)
    assert audit.audit_run(home / "tuned", WATCH, rehearsals=copied).verdict.rehearsed is not None, "nothing shows it"
    code, _, err = efface("rehearse", home / "tuned", *words, "--out", copied)
    assert code == 2 and "holds other scores than the same task gives now: 'forget/score.backbone.margin'" in err
    code, _, err = efface("rehearse", home / "tuned", *words[:-1], 0)
    assert code == 2 and "--recheck cannot be 0" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["references", "RUN", "--bank", 5], "complementary pairs"),
        (["references", "RUN", "--bank", 4, "--unit", "group"], "no groups"),
        (["references", "RUN", "--bank", 4, "--epochs", "0%"], "--epochs cannot be"),
        (["references", "RUN", "--unit", "class"], "Add --bank"),
        (["rehearse", "RUN", "--size", 40], "requests of this kind fit into"),
        (["rehearse", "RUN", "--requests", 0], "--requests cannot be"),
        (["rehearse", "original"], "asked to forget nothing"),
        (["rehearse", "again"], "a reference bank is its rehearsal"),
        (
            ["unlearn", "original", "--forget", "@random:6", "--method", "reference_matching", "--out", "x"],
            "--bank DIR",
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_wrong_requests_are_told_what_to_do(home, efface, words, said, monkeypatch):
    monkeypatch.chdir(home)
    code, _, err = efface(*["tuned" if word == "RUN" else word for word in words])
    assert code == 2 and said in err, err
    assert "Traceback" not in err


def test_a_method_gets_one_half_of_a_bank_and_its_audit_the_other(home, efface):
    words = ["--forget", "@random:6", "--method", "reference_matching", "--bank", home / "bank", "--quiet"]
    code, _, err = efface("unlearn", home / "original", *words, "--out", home / "matched")
    assert code == 0, err
    meta = json.loads((home / "matched" / "meta.json").read_text())
    bank = load_bank(home / "bank")
    assert meta["method"]["bank"] == bank.part_for("method").digest
    judged = audit.audit_run(home / "matched", WATCH, bank=home / "bank")
    record = Record.load(home / "matched")
    assert record.bank is not None and record.bank.divided
    assert record.bank.digest == bank.part_for("audit").digest
    assert len(judged.evidence.calibration) == 1  # of three pairs, one is the audit's


def test_an_audit_refuses_models_that_the_method_was_given(home, tmp_path, efface):
    save_bank(load_bank(home / "bank").select_pairs([1, 0]), tmp_path / "exchanged.npz")  # the audit's pair is first
    words = ["--forget", "@random:6", "--method", "reference_matching", "--quiet", "--out", tmp_path / "matched"]
    code, _, err = efface("unlearn", home / "original", *words, "--bank", tmp_path / "exchanged.npz")
    assert code == 0, err
    with pytest.raises(EffaceError, match="belongs to the audit"):
        audit.audit_run(tmp_path / "matched", WATCH, bank=home / "bank")
    assert not (tmp_path / "matched" / "record.json").exists()
    judged = audit.audit_run(tmp_path / "matched", WATCH, bank=tmp_path / "exchanged.npz")
    assert len(judged.evidence.calibration) == 1  # here the other pair is the audit's


def test_auto_with_a_bank_takes_the_method_that_knows_it(home, efface):
    words = ["--forget", "@random:6", "--bank", home / "bank"]
    for name, method in (("chosen", "auto"), ("named", "reference_matching")):
        code, _, err = efface("unlearn", home / "original", *words, "--method", method, "--out", home / name)
        assert code == 0 and "takes no targets" not in err, err
    chosen, named = (json.loads((home / name / "meta.json").read_text()) for name in ("chosen", "named"))
    assert chosen["method"] == named["method"] and chosen["digest"] == named["digest"] and not chosen.get("search")
    more = ["--method", "auto", "--budget", "50", "--out", home / "budget"]
    code, _, err = efface("unlearn", home / "original", *words, *more)
    assert code == 0, err  # a budget asks for trials
    assert "auto with --budget or --stop takes no targets from a reference bank" in err
    assert json.loads((home / "budget" / "meta.json").read_text())["search"] is not None
