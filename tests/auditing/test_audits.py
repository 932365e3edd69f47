"""Audits: reference implementations, known answers, and worlds in which the truth is known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import efface.auditing.audits
from efface import stats
from efface.auditing import representations, signals
from efface.auditing.audits import AUDITS
from efface.auditing.audits.alignment_matrix import alignment_matrix
from efface.auditing.audits.collateral import Collateral
from efface.auditing.audits.membership import Membership
from efface.auditing.audits.oracle_gap import OracleGap, noise_floor
from efface.auditing.audits.utility import Utility
from efface.auditing.evidence import Cost, Evidence, RelearnedCopies
from efface.errors import EffaceError
from tests.reference import probes as reference
from tests.worlds import World, by_name, with_arrays


def every(evidence):
    return by_name([finding for audit in AUDITS.values() for finding in audit().findings(evidence)])


@pytest.fixture(scope="module")
def classifier_world():
    return World(3, classifier=True)


@pytest.fixture(scope="module")
def evidence(classifier_world):
    w = classifier_world
    return Evidence(
        w.original(),
        w.model("unlearned", {"retain": 1.0, "forget": 0.2}),
        (w.oracle(1), w.oracle(2)),
        {"subject": Cost(10, 500, 3.0), "oracle": Cost(200, 10_000, 30.0)},
    )


@pytest.fixture(scope="module")
def paired():
    w = World(7, captioned=True)
    subject = w.model("unlearned", {"retain": 1.0, "forget": 0.2})
    return Evidence(w.original(), subject, (w.oracle(1), w.oracle(2)))


def test_audits_are_named_after_their_files_and_their_findings_after_them(evidence, paired):
    stems = {path.stem for path in Path(efface.auditing.audits.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(AUDITS) == stems
    snapshots = {"subject": ((0, evidence.subject), (9, evidence.original))}
    trained_on = dataclasses.replace(evidence, relearned=(RelearnedCopies("retain", snapshots),))
    seen = evidence.subject
    own = {f"companions/{key}": seen.of("holdout", key)[:9] for key in ("keys", "backbone.margin")}
    unseen = dataclasses.replace(evidence, subject=dataclasses.replace(seen, arrays={**seen.arrays, **own}))
    special = {"retrieval": paired, "companions": unseen}
    for name, audit in AUDITS.items():
        found = audit().findings(special.get(name, trained_on))
        assert found and all(finding.name.startswith(f"{name}.") for finding in found)


def test_every_finding_is_finite_noted_and_fit_for_json(evidence):
    for finding in every(evidence).values():
        json.dumps(dataclasses.asdict(finding), allow_nan=False)
        assert finding.value is not None or finding.note
        if finding.interval is not None and finding.value is not None:
            low, high = finding.interval
            assert low <= finding.value <= high and low < high


def test_order_of_rows_changes_nothing(classifier_world, evidence):
    rng, shuffled = np.random.default_rng(0), []
    orders = {part: rng.permutation(n) for part, n in classifier_world.sizes.items()}
    for observed in (evidence.original, evidence.subject, *evidence.oracles):
        arrays = {name: x[orders[name.split("/")[0]]] for name, x in observed.arrays.items()}
        shuffled.append(dataclasses.replace(observed, arrays=arrays))
    other = every(Evidence(shuffled[0], shuffled[1], tuple(shuffled[2:]), evidence.costs))
    for name, finding in every(evidence).items():
        assert other[name].value == pytest.approx(finding.value, abs=2e-3), name


def test_evidence_that_cannot_be_compared_is_refused(classifier_world):
    w = classifier_world
    original, oracle = w.original(), w.oracle()
    with pytest.raises(EffaceError, match="different splits"):
        Evidence(original, w.model("u", split="another"))
    for oracles in [(oracle, oracle), (original,)]:
        with pytest.raises(EffaceError, match="An oracle is the subject, the original, or given twice"):
            Evidence(original, w.model("u"), oracles)
    with pytest.raises(EffaceError, match="says nothing about itself"):
        Evidence(original, oracle, (oracle,))


def test_references_see_the_same_examples(classifier_world):
    original, oracle = classifier_world.original(), classifier_world.oracle()
    swapped = with_arrays(oracle, forget__keys=oracle.of("forget", "keys")[::-1])
    with pytest.raises(EffaceError, match="same example in the same order"):
        signals.calibrated_scores(original, (swapped,), "forget", "backbone.margin")


# ---- utility ----


def test_neighbors_against_the_reference_implementation():
    rng = np.random.default_rng(2)
    bank, queries, y = rng.normal(size=(60, 5)), rng.normal(size=(25, 5)), rng.integers(0, 4, 60)
    for k, found in zip((1, 7, 200), representations.knn_vote(bank, y, queries, (1, 7, 200)), strict=True):
        assert found.tolist() == [reference.knn_vote(bank, y, q, k, 0.1) for q in queries]
    places = np.arange(0, 50, 2)
    for k, found in zip((1, 59), representations.knn_vote(bank, y, bank[places], (1, 59), own=places), strict=True):
        assert found.tolist() == [reference.knn_vote(bank, y, bank[i], k, 0.1, i) for i in places]


def test_neighbors_in_chunks_are_the_same(monkeypatch):
    rng = np.random.default_rng(3)
    bank, y, queries = rng.normal(size=(50, 4)), rng.integers(0, 3, 50), rng.normal(size=(40, 4))
    whole = representations.knn_vote(bank, y, queries, (5,), own=np.arange(40))
    monkeypatch.setattr(representations, "SIMILARITIES_AT_ONCE", 150)
    assert np.array_equal(whole[0], representations.knn_vote(bank, y, queries, (5,), own=np.arange(40))[0])


def test_label_free_measures_against_the_reference_implementation():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(30, 6)) + 1, rng.normal(size=(30, 4))
    y[:, :2] += x[:, :2]
    assert representations.uniformity(x) == pytest.approx(reference.uniformity(x), rel=1e-5)
    assert representations.effective_rank(x) == pytest.approx(reference.effective_rank(x), rel=1e-4)
    assert representations.linear_cka(x, y) == pytest.approx(reference.linear_cka(x, y), rel=1e-9)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert representations.linear_cka(x, 3 * x @ turn + 5) == pytest.approx(1)


@pytest.mark.parametrize("x", [np.ones((50, 8)), np.zeros((50, 8)), np.ones((50, 8)) * np.arange(1, 51)[:, None]])
def test_a_point_has_rank_one_and_resembles_nothing(x):
    noisy = x * (1 + 1e-7 * np.random.default_rng(5).normal(size=x.shape))
    other = np.random.default_rng(6).normal(size=(50, 8))
    for table in (x, noisy):
        assert representations.is_collapsed(table) and representations.effective_rank(table) == 1
    assert representations.linear_cka(np.ones((50, 8)), other) == 0
    assert not representations.is_collapsed(other) and representations.effective_rank(other) > 6


def test_utility_with_labels(evidence):
    found = by_name(Utility().findings(evidence))
    assert {f"utility.knn{k}.{p}" for k in (20, 200) for p in ("test", "retain", "forget")} <= set(found)
    assert found["utility.knn20.test"].value > 0.9 and found["utility.probe.test"].value > 0.9
    assert found["utility.probe.test"].note.startswith("C = ")
    assert found["utility.cka"].original == pytest.approx(1)
    y, logits = evidence.subject.of("forget", "labels"), evidence.subject.of("forget", "logits")
    assert found["utility.accuracy.forget"].value == np.mean(logits.argmax(1) == y)


def test_utility_without_labels_says_so_by_absence():
    world = World(8, labelled=False)
    found = by_name(Utility().findings(Evidence(world.original(), world.model("u"))))
    assert set(found) == {
        "utility.alignment.backbone",
        "utility.alignment.projector",
        "utility.uniformity",
        "utility.effective_rank",
        "utility.cka",
    }
    named = every(Evidence(world.original(), world.model("u"), (world.oracle(1), world.oracle(2))))
    assert not [name for name in named if "knn" in name or "accuracy." in name or "probe" in name]


def test_fewer_retained_than_neighbors_is_noted():
    world = World(9, retain=60)
    found = by_name(Utility().findings(Evidence(world.original(), world.model("u"))))
    assert "only 60 retained" in found["utility.knn200.test"].note
    assert found["utility.knn20.test"].note == ""


def test_the_probe_chooses_c_on_valid_and_refuses_one_class():
    rng, world = np.random.default_rng(10), World(10, retain=60, valid=400, dim=50)
    observed = world.original(blur=0.1)
    for part in ("retain", "valid", "test"):  # 45 of 50 dimensions are noise: a small C is better
        y = observed.of(part, "labels")
        x = rng.normal(size=(len(y), 50)).astype(np.float32)
        x[np.arange(len(y)), y] += 2
        observed.arrays[f"{part}/features"] = x
    both = representations.linear_probe(observed, "test", (0.1, 100.0))
    without = representations.linear_probe(with_arrays(observed, valid__labels=None), "test", (0.1, 100.0))
    assert both is not None and both.c == 0.1
    assert without is not None and without.c == 1.0
    seen = {f"valid__{name}": observed.of("retain", name) for name in ("features", "labels", "keys")}
    fooled = representations.linear_probe(with_arrays(observed, **seen), "test", (0.01, 100.0))
    fair = representations.linear_probe(observed, "test", (0.01,))
    assert fooled is not None and fair is not None
    assert fooled.c == 100.0 and fooled.right < fair.right  # valid decides, also where test knows better
    single = with_arrays(observed, retain__labels=np.zeros(60, dtype=np.int64))
    assert representations.linear_probe(single) is None


def test_features_that_are_not_finite_stop_the_audit(evidence):
    x = evidence.subject.of("test", "features").copy()
    x[0, 0] = np.inf
    with pytest.raises(EffaceError, match="1 of 200 features of 'test'"):
        Utility().findings(Evidence(evidence.original, with_arrays(evidence.subject, test__features=x)))


# ---- oracle gap, collateral, alignment matrix ----


def test_the_oracle_gap_of_an_oracle_is_the_noise_floor(classifier_world):
    w = classifier_world
    oracles = tuple(w.oracle(i) for i in range(4))
    like = by_name(OracleGap().findings(Evidence(w.original(), w.oracle(9), oracles)))
    average = like["oracle_gap.average"]
    assert average.value < 2 * average.oracle and average.original > 4 * average.oracle
    metrics = [f for n, f in like.items() if n.split(".")[1] in ("accuracy", "membership")]
    assert average.value == pytest.approx(np.mean([f.value for f in metrics]))
    assert {"oracle_gap.accuracy.forget", "oracle_gap.membership.retain.backbone.margin"} <= set(like)
    one = like["oracle_gap.membership.forget.projector.margin"]
    assert one.value == pytest.approx(abs(one.details["subject"] - np.mean(one.details["oracles"])))


def test_the_oracle_gap_without_labels_without_oracle_and_with_one(classifier_world):
    w = World(11, labelled=False)
    found = by_name(OracleGap().findings(Evidence(w.original(), w.model("u"), (w.oracle(),))))
    assert set(found) == {"oracle_gap.average"} | {
        f"oracle_gap.membership.{p}.{s}.margin" for p in ("forget", "retain") for s in ("backbone", "projector")
    }
    assert found["oracle_gap.average"].oracle is None and "one oracle" in found["oracle_gap.average"].note
    (alone,) = OracleGap().findings(Evidence(w.original(), w.model("u")))
    assert alone.value is None and "no oracle" in alone.note
    w = World(11)
    assert "oracle_gap.knn20.test" in by_name(OracleGap().findings(Evidence(w.original(), w.model("u"), (w.oracle(),))))


def test_output_divergence_is_to_the_oracles_and_not_to_itself(evidence):
    found = by_name(OracleGap().findings(evidence))["oracle_gap.outputs.forget"]
    models = (evidence.subject, *evidence.oracles)
    weights = [np.exp(o.of("forget", "logits").astype(np.float64)) for o in models]
    subject, first, second = (w / w.sum(axis=1, keepdims=True) for w in weights)
    gaps = [stats.js_divergence(subject, q).mean() for q in (first, second)]
    assert found.value == pytest.approx(np.mean(gaps))
    assert found.oracle == pytest.approx(stats.js_divergence(first, second).mean())


def test_the_noise_floor_leaves_the_oracle_out_of_its_own_mean():
    assert noise_floor([0.0, 1.0, 2.0]) == pytest.approx((1.5 + 0 + 1.5) / 3)
    assert noise_floor([0.2, 0.5]) == pytest.approx(0.3) and noise_floor([0.2]) is None


def test_cost_is_a_share_of_retraining(evidence):
    found = by_name(OracleGap().findings(evidence))
    assert [found[f"oracle_gap.cost.{what}"].value for what in ("steps", "examples", "seconds")] == [
        0.05,
        0.05,
        0.1,
    ]


def test_forgetting_everybody_a_little_shows_as_collateral():
    w = World(12)
    everybody = w.model("u", {"retain": 0.2, "forget": 0.0})
    evidence = Evidence(w.original(), everybody, (w.oracle(1), w.oracle(2)))
    found = by_name(Collateral().findings(evidence))
    for who in ("original", "oracle"):
        gap = found[f"collateral.backbone.margin.vs_{who}"]
        assert gap.interval[1] < -0.05
    like = by_name(Collateral().findings(Evidence(w.original(), w.oracle(3), (w.oracle(1), w.oracle(2)))))
    low, high = like["collateral.backbone.margin.vs_oracle"].interval
    assert low < 0 < high


def test_the_retained_are_compared_with_spare_where_there_is_one():
    w = World(13, spare=150)
    found = by_name(Collateral().findings(Evidence(w.original(), w.model("u"))))
    assert found["collateral.backbone.margin.auc"].n == (300, 150)
    assert by_name(Membership().findings(Evidence(w.original(), w.model("u"))))["membership.backbone.margin.auc"].n == (
        200,
        300,
    )


def test_alignment_matrix_against_the_reference_implementation():
    x = np.random.default_rng(14).normal(size=(5, 3, 4))
    assert alignment_matrix(x) == pytest.approx(reference.alignment_matrix(x), abs=1e-6)
    same = np.repeat(x[:, :1], 3, axis=1)
    assert np.diag(alignment_matrix(same)) == pytest.approx(np.ones(5), abs=1e-6)
    with pytest.raises(EffaceError, match="views >= 2"):
        alignment_matrix(x[:, 0])


def test_forget_score_of_the_untouched_model_is_zero(evidence):
    found = by_name(AUDITS["alignment_matrix"]().findings(Evidence(evidence.original, evidence.original)))
    assert found["alignment_matrix.backbone.forget_score"].value == 0
    found = by_name(AUDITS["alignment_matrix"]().findings(evidence))
    finding = found["alignment_matrix.backbone.forget_score"]
    assert finding.value > 0.02 and finding.oracle > finding.value
    assert len(finding.details["change"]) == len(finding.details["keys"]) == 40
