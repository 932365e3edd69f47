"""Planted bugs: mistakes found in public unlearning code, each run here next to our implementation.

Every test implements the bug, shows the wrong answer it gives, and checks that ours does not give it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from efface import stats
from efface.auditing import representations, signals
from efface.auditing.attacks import fitted
from efface.auditing.audits import AUDITS
from efface.auditing.audits.collateral import Collateral
from efface.auditing.audits.membership import Membership
from efface.auditing.criteria import Criteria
from efface.auditing.evidence import Evidence
from efface.auditing.verdict import EXIT_CODES, judge
from efface.errors import EffaceError
from tests.auditing import test_membership
from tests.worlds import World, by_name, pair, with_arrays

LARGE: dict[str, Any] = {"forget": 1500, "retain": 300, "holdout": 2000}
SIGNAL = "backbone.margin"


def unlearned(world, gain=0.0, **more):
    return world.model("u", {"retain": 1.0, "forget": gain}, **more)


def test_retain_examples_used_as_nonmembers():
    """AUC(F vs R): 0.5 for the untouched model, which is then praised, and far from it for the oracle."""

    def planted(observed):
        return stats.auc(*(signals.scores(observed, p, SIGNAL) for p in ("forget", "retain")))

    w = World(0, **LARGE)
    original, oracle = w.original(), w.oracle()
    assert abs(planted(original) - 0.5) < abs(planted(oracle) - 0.5) - 0.1
    ours = [stats.auc(*pair(o, "forget", SIGNAL)) for o in (original, oracle)]
    assert abs(ours[1] - 0.5) < abs(ours[0] - 0.5) - 0.1
    for part in ("forget", "retain"):
        assert signals.nonmember_part(original, part) in ("holdout", "spare")
    assert judge(Evidence(original, original)).word == "residue"


def test_tied_scores_ranked_by_position():
    """Ranks from argsort: constant scores get an AUC of 1.0 or 0.0, by which group came first."""

    def planted(members, nonmembers):
        ranks = np.argsort(np.argsort(np.concatenate([members, nonmembers]), kind="stable"), kind="stable")
        m = len(members)
        return (ranks[:m].sum() - m * (m - 1) / 2) / (m * len(nonmembers))

    same = np.full(40, 0.7)
    assert planted(same, same) == 0.0
    assert stats.auc(same, same) == 0.5
    distinct = np.arange(40.0)
    assert planted(distinct, distinct + 0.5) == stats.auc(distinct, distinct + 0.5)  # only ties reveal the bug


def test_an_exception_scored_as_one_half():
    """``except: return 0.5``: a model that answers NaN is the best unlearned of all."""

    def planted(members, nonmembers):
        try:
            return stats.auc(members, nonmembers)
        except EffaceError:
            return 0.5

    w = World(1)
    score = unlearned(w).of("forget", SIGNAL).copy()
    score[0] = np.nan
    broken = with_arrays(unlearned(w), **{f"forget__{SIGNAL}": score})
    assert planted(*pair(broken, "forget", SIGNAL)) == 0.5
    with pytest.raises(EffaceError, match="not finite"):
        judge(Evidence(w.original(), broken))
    with pytest.raises(EffaceError, match="not finite"):
        Membership().findings(Evidence(w.original(), broken))


def test_efficacy_printed_in_the_wrong_direction(monkeypatch):
    """1 - membership rate ("efficacy") reported as the rate: the oracle looks the most attacked."""
    w = World(2, classifier=True, hardness=0.5, forget=400, retain=400, holdout=400)
    evidence, ours = Evidence(w.original(), unlearned(w), (w.oracle(),)), fitted.mia_svc

    def planted(observed, part="forget"):
        result = ours(observed, part)
        return dataclasses.replace(result, recall=1 - result.recall)

    def rate():
        return by_name(Membership().findings(evidence))["membership.logits.mia_svc.rate"]

    test_membership.check_direction_of_the_svc(rate())
    monkeypatch.setattr(fitted, "mia_svc", planted)
    upside_down = rate()
    assert upside_down.oracle > upside_down.original  # the model that never saw F is attacked most
    with pytest.raises(AssertionError):
        test_membership.check_direction_of_the_svc(upside_down)


@pytest.mark.parametrize("signal", [n for n in signals.signal_names(("backbone", "projector")) if n != signals.LEARNED])
def test_a_signal_with_the_wrong_sign(signal, monkeypatch):
    """A loss, an entropy or a gradient norm used as it is: what was never unlearned is not seen as residue."""
    captioned = signal.startswith("pair.")
    w = World(3, classifier=not captioned, captioned=captioned, hardness=0.3, forget=600, holdout=800)
    untouched, ours = w.original(), signals.scores

    def planted(observed, part, name):
        return -ours(observed, part, name) if name == signal else ours(observed, part, name)

    def word():
        return judge(Evidence(untouched, untouched), Criteria(signals=(signal,))).word

    assert word() == "residue"
    monkeypatch.setattr(signals, "scores", planted)
    assert word() == "inconclusive"  # the attack seems to have no power
    assert signals.has_signal(untouched, "forget", signal)


def test_modified_entropy_that_depends_on_the_batch():
    """The true class is overwritten by column: every label of the batch changes every row."""

    def planted(logits, labels):
        log_p, log_rest = signals.log_probabilities(logits)
        p = np.exp(log_p)
        reversed_p, log_reversed = 1 - p, log_rest.copy()
        modified_p, modified_log = p.copy(), log_reversed.copy()
        modified_p[:, labels] = reversed_p[:, labels]  # should be [arange(n), labels]
        modified_log[:, labels] = log_p[:, labels]
        return -(modified_p * modified_log).sum(axis=1)

    rng = np.random.default_rng(4)
    logits, y = rng.normal(size=(8, 5)), rng.integers(0, 5, 8)

    def alone(function):
        return np.concatenate([function(logits[i : i + 1], y[i : i + 1]) for i in range(8)])

    assert not np.allclose(planted(logits, y), alone(planted))
    assert np.array_equal(signals.modified_entropy(logits, y), alone(signals.modified_entropy))
    assert np.allclose(signals.modified_entropy(logits, y), alone(planted))


def test_js_divergence_averaged_over_classes_and_infinite_on_one_hot():
    """Divided by the class count it shrinks with every class added; without 0 log 0 = 0 it is inf or nan."""

    def planted(p, q):
        middle = (p + q) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return (p * np.log(p / middle) + q * np.log(q / middle)).mean(axis=1) / 2

    p, q = np.eye(4)[[0, 1]], np.eye(4)[[1, 2]]
    assert not np.isfinite(planted(p, q)).any()
    assert stats.js_divergence(p, q) == pytest.approx([np.log(2)] * 2)
    a, b = np.array([[0.9, 0.1]]), np.array([[0.2, 0.8]])
    padded = [np.pad(x, ((0, 0), (0, 6)), constant_values=1e-12) for x in (a, b)]
    assert planted(*padded) == pytest.approx(planted(a, b) / 4, rel=1e-6)
    assert stats.js_divergence(*padded) == pytest.approx(stats.js_divergence(a, b), rel=1e-6)


def test_thresholds_searched_between_zero_and_one():
    """linspace(0, 1): where all similarities are negative, or margins large, the attack sees nothing."""

    def planted(members, nonmembers):
        return max(((members >= t).mean() + (nonmembers < t).mean()) / 2 for t in np.linspace(0, 1, 101))

    rng = np.random.default_rng(5)
    for shift in (-5.0, 40.0):
        a, b = shift + 1 + 0.1 * rng.normal(size=200), shift + 0.1 * rng.normal(size=200)
        assert planted(a, b) == 0.5
        assert stats.best_threshold(a, b)[1] > 0.99


def test_the_threshold_chosen_on_the_evaluated_items():
    """The best cut of pure noise is above chance on the scores it was chosen on."""
    planted, ours = [], []
    for seed in range(40):
        observed = World(seed, forget=25, retain=60, holdout=40, test=5, valid=0).oracle()
        planted.append(stats.best_threshold(*pair(observed, "forget", SIGNAL))[1])
        ours.append(fitted.cross_fitted_attack(observed, "forget", SIGNAL, fitted.fit_threshold).balanced_accuracy)
    error = np.std(ours) / 40**0.5
    assert np.mean(planted) > 0.57
    assert abs(np.mean(ours) - 0.5) < 3 * error < 0.05


def test_a_classifier_attack_fitted_on_the_evaluated_items():
    """EncoderMI fitted on F and H themselves tells an oracle's F from H, which is impossible."""
    observed = World(6, forget=60, retain=80, holdout=60, hardness=0.3).oracle()
    f, h = (np.sort(observed.of(p, "backbone.pairs").astype(float), axis=1) for p in ("forget", "holdout"))
    score, _ = fitted.fit_vector_attack(f, h)
    assert stats.auc(score(f), score(h)) > 0.65
    ours = fitted.encodermi_v(observed, "forget", "backbone")
    assert abs(ours.v10.mean() - 0.5) < 0.12


def test_a_histogram_that_drops_the_largest_sample():
    """Edges from arange stop short of the largest score; the KL of disjoint point masses becomes 0 or nan."""

    def planted(a, b, bins=10):
        low, high = min(a.min(), b.min()), max(a.max(), b.max())
        edges = np.arange(bins) * (high - low) / bins + low
        return [np.histogram(x, edges)[0] for x in (a, b)]

    zeros, ones = np.zeros(5), np.ones(5)
    _, q = planted(zeros, ones)
    assert q.sum() == 0  # all five are lost
    counts = stats.histogram({"zeros": zeros, "ones": ones}, 10)["counts"]
    assert sum(counts["zeros"]) == sum(counts["ones"]) == 5
    assert not np.any(np.minimum(counts["zeros"], counts["ones"]))  # disjoint, and shown to be
    assert stats.auc(ones, zeros) == 1.0


def test_a_cap_that_covers_two_classes_of_ten():
    """``x[:cap]`` of data sorted by class; and every tenth row of data in rounds holds one class only."""
    keys = np.array([f"train/{i:05d}" for i in range(1000)])
    by_class, in_rounds = np.arange(1000) // 100, np.arange(1000) % 10
    assert len(set(by_class[:200])) == 2 and len(set(in_rounds[::10])) == 1
    for y in (by_class, in_rounds):
        counts = np.bincount(y[signals.random_order_by_key(keys)[:200]], minlength=10)
        assert counts.min() >= 10 and counts.max() <= 35
    order = np.random.default_rng(7).permutation(1000)
    assert set(keys[order][signals.random_order_by_key(keys[order])[:200]]) == set(
        keys[signals.random_order_by_key(keys)[:200]]
    )


def test_the_order_of_the_same_keys_is_computed_once_and_cannot_be_changed(monkeypatch):
    keys = np.array([f"kept/{i}" for i in range(100)])
    first = signals.random_order_by_key(keys)
    assert signals.random_order_by_key(keys.copy()) is first and not first.flags.writeable
    assert signals.random_order_by_key(keys.astype(object)) is first
    shorter = keys[:50]
    order = signals.random_order_by_key(shorter)
    assert (shorter[order] == [key for key in keys[first] if key in set(shorter)]).all()
    monkeypatch.setattr(signals, "KEPT_BYTES", 0)
    fresh = signals.random_order_by_key(keys)
    assert fresh is not first and (fresh == first).all()
    assert len(signals.random_order_by_key(keys[:0])) == 0


def test_capped_accuracy_covers_every_class():
    """Judged on the first rows only, a model that lost eight classes keeps its accuracy."""
    w = World(8, classes=10, test=400, retain=400)
    for part in ("test", "retain"):
        order = np.argsort(w.y[part], kind="stable")
        w.y[part], w.x[part] = w.y[part][order], w.x[part][order]
    broken = w.original()
    broken.arrays["test/features"][80:] = np.random.default_rng(8).normal(size=(320, 12))
    hits = (
        representations.knn_vote(
            broken.of("retain", "features"),
            broken.of("retain", "labels"),
            broken.of("test", "features")[:80],
            (20,),
        )[0]
        == broken.of("test", "labels")[:80]
    )
    assert hits.mean() > 0.9
    ((right, of),) = representations.knn_accuracy(broken, "test", (20,), cap=80) or []
    assert of == 80 and right / of < 0.5


def test_forget_arrays_that_are_never_read():
    """A forget loader that is built and not used: no number moves when the forgotten examples do."""
    w = World(9, classifier=True)
    evidence, rng = Evidence(w.original(), unlearned(w), (w.oracle(),)), np.random.default_rng(9)
    moved = unlearned(w)
    for name in [n for n in moved.arrays if n.startswith("forget/") and n.split("/")[1] not in ("keys", "labels")]:
        x = moved.arrays[name]
        moved.arrays[name] = (x[rng.permutation(len(x))] * 0.5).astype(x.dtype)
    other = dataclasses.replace(evidence, subject=moved)
    for name in ("membership", "oracle_gap", "utility", "alignment_matrix"):
        before, after = (by_name(AUDITS[name]().findings(e)) for e in (evidence, other))
        assert any(before[n].value != after[n].value for n in before if "forget" in n or name == "membership")
    assert judge(other) != judge(evidence)


def test_inconclusive_is_not_success():
    """Missing or weak evidence printed as "pending" with exit code 0: a gate that lets everything through."""
    assert {word for word, code in EXIT_CODES.items() if code == 0} == {"removed", "validated"}
    w = World(10, forget=5)
    verdict = judge(Evidence(w.original(), unlearned(w)))
    assert verdict.word == "inconclusive" and verdict.exit_code == 4


def test_absence_of_proof_read_as_proof_of_absence():
    """p > 0.05 read as "removed": with few examples everything passes, also what was never unlearned."""

    def planted(observed):
        return stats.permutation(*pair(observed, "forget", SIGNAL), draws=199) > 0.05

    passed, words = 0, []
    for seed in range(10):
        w = World(seed, forget=12)
        passed += planted(unlearned(w, 0.5))
        words.append(judge(Evidence(w.original(), unlearned(w, 0.5))).word)
    assert passed >= 5 and "removed" not in words


def test_an_attack_without_power_taken_for_unlearning():
    """An attack that is blind to the original finds nothing after unlearning either."""
    w = World(11, **LARGE)
    blind = w.model("original", {})
    assert abs(stats.auc(*pair(blind, "forget", SIGNAL)) - 0.5) < 0.05  # "removed", says the bug
    assert judge(Evidence(blind, blind)).word == "inconclusive"


def test_a_zero_width_interval_at_complete_separation():
    """DeLong's variance is 0 at AUC 1: three examples would be certain."""
    a, b = np.array([5.0, 6.0, 7.0]), np.arange(4.0)
    assert stats.welch(*stats.placements(a, b))[0] == 0.0
    _, low, high = stats.delong(a, b)
    assert low < 0.35 and high == 1.0


def test_a_collapsed_encoder_taken_for_a_forgetful_one():
    """All scores equal: AUC 0.5 exactly, the best number there is."""
    w = World(12, **LARGE)
    collapsed = unlearned(w, collapsed=True)
    assert stats.auc(*pair(collapsed, "forget", SIGNAL)) == 0.5
    assert judge(Evidence(w.original(), collapsed)).word != "removed"
    assert judge(Evidence(w.original(), collapsed, (w.oracle(),))).word != "removed"


def test_forgetting_everybody_taken_for_forgetting_the_forget_set():
    """A model that lost all memory would pass on F alone; the retained examples tell: in the verdict's control too."""
    w = World(13, **LARGE)
    blank = w.model("u", {})
    answer = judge(Evidence(w.original(), blank))
    assert answer.word == "inconclusive" and all(one.word == "removed" and one.blinded for one in answer.signals)
    gap = by_name(Collateral().findings(Evidence(w.original(), blank, (w.oracle(),))))
    assert gap[f"collateral.{SIGNAL}.vs_oracle"].interval[1] < -0.1


def test_an_oracle_calibrated_with_itself():
    """A score minus itself is 0 for everybody: AUC 0.5 for any model at all."""
    w = World(14)
    original = w.original()
    zero = signals.calibrated_scores(original, (original,), "forget", SIGNAL)
    assert not zero.any()
    with pytest.raises(EffaceError, match="says nothing about itself"):
        Evidence(w.original(), w.oracle(), (w.oracle(),))
    with pytest.raises(EffaceError, match="the original"):
        Evidence(original, unlearned(w), (original,))
