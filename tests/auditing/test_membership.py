"""Membership signals, attacks and findings: reference implementations, and worlds in which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from efface import stats
from efface.auditing import representations, signals
from efface.auditing.attacks import fitted, reference_models
from efface.auditing.audits import AUDITS
from efface.auditing.audits.membership import Membership
from efface.auditing.evidence import Evidence
from efface.errors import EffaceError
from tests.reference import membership as reference
from tests.worlds import World, by_name, pair, with_arrays


@pytest.fixture(scope="module")
def evidence():
    w = World(3, classifier=True)
    subject = w.model("unlearned", {"retain": 1.0, "forget": 0.2})
    return Evidence(w.original(), subject, (w.oracle(1), w.oracle(2)))


# ---- signals ----


@pytest.mark.parametrize("scale", [1.0, 5.0, 40.0])
@pytest.mark.parametrize("name", ["confidence", "cross_entropy", "margin", "modified_entropy"])
def test_signals_from_logits(name, scale):
    rng = np.random.default_rng(1)
    logits, y = (scale * rng.normal(size=(30, 4))), rng.integers(0, 4, 30)
    expected = [getattr(reference, name)(row, label) for row, label in zip(logits, y, strict=True)]
    sign = -1 if name == "modified_entropy" else 1
    assert sign * signals.FROM_LOGITS[name](logits, y) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_signals_stay_finite_where_a_probability_is_exactly_one():
    logits, y = np.array([[800.0, 0.0, -800.0]] * 3), np.array([0, 1, 2])
    assert signals.FROM_LOGITS["margin"](logits, y) == pytest.approx([800, -800, -1600])
    for score in signals.FROM_LOGITS.values():
        assert np.isfinite(score(logits, y)).all()


def test_unknown_signal_is_named(evidence):
    with pytest.raises(EffaceError, match=r"no signal called 'backbone.marging'.*Did you mean 'backbone"):
        signals.scores(evidence.subject, "forget", "backbone.marging")


def test_unlabelled_examples_have_no_label_signal(evidence):
    y = evidence.subject.of("forget", "labels").copy()
    y[::2] = -1
    observed = with_arrays(evidence.subject, forget__labels=y)
    kept = signals.scores(evidence.subject, "forget", "logits.margin")[1::2]
    assert np.array_equal(signals.scores(observed, "forget", "logits.margin"), kept)
    kept = signals.scores(evidence.subject, "forget", "gradient_norm")[1::2]
    assert np.array_equal(signals.scores(observed, "forget", "gradient_norm"), kept)
    assert len(signals.scores(observed, "forget", "backbone.margin")) == len(y)
    right, of = representations.accuracy(observed, "forget") or (0, 0)
    assert 0 < right <= of == len(y) // 2
    for audit in AUDITS.values():
        audit().findings(Evidence(evidence.original, observed))


def test_a_signal_that_is_no_number_stops_the_audit(evidence):
    broken = evidence.subject.of("forget", "projector.margin").copy()
    broken[3] = np.nan
    observed = with_arrays(evidence.subject, **{"forget__projector.margin": broken})
    with pytest.raises(EffaceError, match=r"1 of 200 .*not finite"):
        Membership().findings(Evidence(evidence.original, observed))


# ---- membership ----


def test_membership_sees_the_original_and_not_the_oracle(evidence):
    found = by_name(Membership().findings(evidence))
    for signal in ("backbone.margin", "projector.margin", "logits.margin", "gradient_norm"):
        auc = found[f"membership.{signal}.auc"]
        assert auc.original > 0.6 and abs(auc.oracle - 0.5) < 0.06
        assert found[f"membership.retain.{signal}.auc"].value > 0.6
    raw, calibrated = (
        found["membership.backbone.margin.auc"],
        found["membership.backbone.margin.calibrated.auc"],
    )
    assert calibrated.original > raw.original + 0.05  # the shared hardness is gone
    assert abs(calibrated.oracle - 0.5) < 0.06
    assert found["membership.backbone.encodermi_v.auc"].original > 0.6
    assert raw.value == stats.auc(*pair(evidence.subject, "forget", "backbone.margin"))


def test_with_one_oracle_the_oracle_has_no_calibrated_number(evidence):
    found = by_name(Membership().findings(Evidence(evidence.original, evidence.subject, evidence.oracles[:1])))
    for attack in ("calibrated", "lira", "rmia"):
        finding = found[f"membership.backbone.margin.{attack}.auc"]
        assert finding.oracle is None and finding.value is not None and finding.original is not None


def test_at_a0_nothing_is_calibrated(evidence):
    found = by_name(Membership().findings(Evidence(evidence.original, evidence.subject)))
    assert not [name for name in found if "calibrated" in name or "lira" in name or "rmia" in name]


def test_calibrated_and_rmia_against_the_reference_implementations(evidence):
    subject, oracles = evidence.subject, evidence.oracles

    def all_of(part):
        return [signals.scores(o, part, "backbone.margin") for o in (subject, *oracles)]

    (x, *x_refs), (z, *z_refs) = all_of("forget"), all_of("holdout")
    assert signals.calibrated_scores(subject, oracles, "forget", "backbone.margin") == pytest.approx(
        reference.calibrated(x, x_refs)
    )
    ours = reference_models.rmia(subject, oracles, "forget", "backbone.margin", gamma=1.1, a=0.3)
    assert ours == pytest.approx(reference.rmia(x, x_refs, z, z_refs, 1.1, 0.3))
    own = reference_models.rmia(subject, oracles, "holdout", "backbone.margin")
    n = len(z)
    expected = [(s * n - 1) / (n - 1) for s in reference.rmia(z, z_refs, z, z_refs, 1.0, 1.0)]
    assert own == pytest.approx(expected, abs=1e-12)


def test_lira_with_one_variance_orders_as_calibrated_does(evidence):
    both = [
        [score(evidence.subject, evidence.oracles, p, "backbone.margin") for p in ("forget", "holdout")]
        for score in (reference_models.lira, signals.calibrated_scores)
    ]
    assert stats.auc(*both[0]) == stats.auc(*both[1])
    assert both[0][0] / both[1][0] == pytest.approx(np.full(200, (both[0][1] / both[1][1])[0]))


def test_low_false_positive_rates_need_enough_nonmembers(evidence):
    found = by_name(Membership().findings(evidence))
    assert found["membership.backbone.margin.tpr_at_1_in_100"].value is not None
    refused = found["membership.backbone.margin.tpr_at_1_in_1000"]
    assert refused.value is None and "at least 1000 non-members; there are 300" in refused.note


def test_figures_have_ends_few_points_and_everybody(evidence):
    details = by_name(Membership().findings(evidence))["membership.backbone.margin.auc"].details
    assert set(details["roc"]) == {"subject", "original", "oracle 1", "oracle 2"}
    for curve in details["roc"].values():
        assert len(curve["fpr"]) == len(curve["tpr"]) <= 200
        assert (curve["fpr"][0], curve["tpr"][0], curve["fpr"][-1], curve["tpr"][-1]) == (0, 0, 1, 1)
    assert sum(details["histogram"]["counts"]["original members"]) == 200
    assert sum(details["histogram"]["counts"]["subject non-members"]) == 300


@pytest.mark.parametrize("spare", [0, 80])
@pytest.mark.parametrize("part", ["forget", "retain"])
def test_attacks_are_never_judged_on_what_they_were_fitted_on(part, spare):
    observed = World(5, forget=31, retain=77, holdout=51, spare=spare).original()
    judged: list[tuple[str, int]] = []
    for fold in fitted.cross_fit_folds(observed, part, "backbone.margin"):
        used = {(rows.part, int(i)) for rows in fold.fit for i in rows.at}
        seen = [(rows.part, int(i)) for rows in fold.judge for i in rows.at]
        assert not used & set(seen)
        assert len({p for p, _ in used}) == 2
        judged += seen
    other = signals.nonmember_part(observed, part)
    assert other == ("spare" if part == "retain" and spare else "holdout")
    assert {i for p, i in judged if p == other} == set(range(observed.count(other)))  # each once
    assert sum(p == other for p, _ in judged) == observed.count(other)


def test_what_is_fitted_is_what_the_folds_say():
    """A spy in place of the attack gets exactly the rows of the folds, and no forgotten example."""
    observed = World(6, forget=30, retain=60, holdout=40).original()
    forgotten, given = set(signals.scores(observed, "forget", "backbone.margin")), []

    def spy(members, others):
        given.append((set(members), set(others)))
        return (lambda scores: scores), 0.0

    fitted.cross_fitted_attack(observed, "forget", "backbone.margin", spy)
    assert len(given) == 2
    for members, others in given:
        assert members == set(signals.scores(observed, "retain", "backbone.margin"))
        assert len(others) == 20 and not (members | others) & forgotten
    assert not given[0][1] & given[1][1]


def test_a_perfect_and_a_blind_attack():
    world = World(7, hardness=0.1)
    told = fitted.cross_fitted_attack(world.original(noise=0.01), "forget", "backbone.margin", fitted.fit_threshold)
    assert told.recall > 0.95 and told.false_rate < 0.05 and told.balanced_accuracy > 0.95
    assert told.precision and told.precision > 0.95 and told.v10.mean() == pytest.approx(told.v01.mean(), abs=0.01) == 1
    flat = with_arrays(
        world.original(),
        **{f"{p}__backbone.margin": np.ones(world.sizes[p]) for p in ("forget", "retain", "holdout")},
    )
    blind = fitted.cross_fitted_attack(flat, "forget", "backbone.margin", fitted.fit_threshold)
    assert blind.balanced_accuracy == 0.5 and blind.precision is None
    assert fitted.encodermi_v(World(7).original(collapsed=True), "forget", "backbone").v10.mean() == 0.5


def check_direction_of_the_svc(rate):
    """The share called member falls when F is forgotten, and the note says how other papers report it."""
    assert rate.original > rate.oracle + 0.05
    assert "1 - this" in rate.note


def test_the_svc_says_which_way_it_counts(evidence):
    found = by_name(Membership().findings(evidence))
    rate, result = found["membership.logits.mia_svc.rate"], fitted.mia_svc(evidence.subject)
    false_rate = found["membership.logits.mia_svc.false_rate"]
    assert (rate.value, false_rate.value) == (result.recall, result.false_rate)
    assert result.recall != result.false_rate
    check_direction_of_the_svc(rate)


def test_a_score_at_the_threshold_is_called_member_on_both_sides():
    w = World(8, forget=40, retain=40, holdout=40)
    said = {"forget": np.ones(40), "retain": np.ones(40), "holdout": np.arange(40) % 4 == 0}
    coarse = with_arrays(w.original(), **{f"{p}__backbone.margin": x.astype(float) for p, x in said.items()})
    told = fitted.cross_fitted_attack(coarse, "forget", "backbone.margin", fitted.fit_threshold)
    assert told.recall == 1 and told.false_rate == pytest.approx(0.25)
    assert told.precision == pytest.approx(0.8) and told.balanced_accuracy == pytest.approx(0.875)
