"""Attacks with references: reference implementations, and Gaussians with a known likelihood ratio and AUC."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import t as student_t
from sklearn.metrics import roc_auc_score, roc_curve

from efface import stats
from efface.auditing.attacks import reference_models
from efface.auditing.audits.membership import Membership
from efface.auditing.evidence import Evidence
from efface.errors import EffaceError
from tests.reference import likelihood as reference
from tests.worlds import World, by_name

N = 30_000


def gaussians(seed, *, count, effect=1.0, sigma=None, level=0.0, n=N):
    """Members and non-members [n] under one model, and ``count`` models that saw both and that saw neither [K, 2n]:
    each example has a hardness of its own, membership adds ``effect`` σ(x).
    """
    rng = np.random.default_rng(seed)
    hard = level + 2 * rng.normal(size=2 * n)
    s = np.ones(2 * n) if sigma is None else sigma(rng, 2 * n)
    member = np.repeat([1.0, 0.0], n)
    x = hard + s * (effect * member + rng.normal(size=2 * n))
    out = hard + s * rng.normal(size=(count, 2 * n))
    inside = hard + s * (effect + rng.normal(size=(count, 2 * n)))
    return x, inside, out, s


def auc(score):
    return stats.auc(score[: len(score) // 2], score[len(score) // 2 :])


def truth(effect, count=None):
    """AUC of the ideal ratio, or with a mean known from ``count`` references only."""
    widened = 1.0 if count is None else np.sqrt(1 + 1 / count)
    return float(ndtr(effect / np.sqrt(2) / widened))


def two(rng, n):
    """Half of the examples are five times as noisy."""
    return np.where(rng.random(n) < 0.5, 1.0, 5.0)


# ---- reference implementations ----


def test_online_and_offline_against_the_papers_equations():
    x, inside, out, _ = gaussians(0, count=6, n=10)
    assert reference_models.lira_online(x, inside, out) == pytest.approx(reference.online(x, inside, out))
    t = reference_models.lira_offline(x, out, out, reference_models.fit_own_variance)
    assert ndtr(t) == pytest.approx(reference.offline_tail(x, out))


def test_the_predictive_law_is_the_bayesian_integral():
    rng = np.random.default_rng(1)
    seen, pool = rng.normal(size=(3, 4)), np.sqrt(1 / rng.gamma(3, 1 / 3, 4000)) * rng.normal(size=(3, 4000))
    law = reference_models.fit_student_t(seen, pool)
    freedom, variance = reference_models.fit_variance_prior(pool.var(axis=0, ddof=1), 2)
    assert law.freedom == pytest.approx(freedom + 2) and 4 < freedom < 9 and variance == pytest.approx(1, abs=0.15)
    x = np.array([0.3, -1.0, 2.0, 5.0])
    expected = [reference.predictive(x[i], list(seen[:, i]), freedom, variance) for i in range(4)]
    assert law.log_density(x) == pytest.approx(expected, rel=1e-4)


def test_densities_are_densities():
    law = reference_models.ScoreDistribution(np.array([1.0]), np.array([2.0]), 5.0)
    assert law.log_density(np.array([0.0])) == pytest.approx(student_t.logpdf(0.0, 5, 1, 2))
    normal = reference_models.ScoreDistribution(np.array([1.0]), np.array([2.0]))
    assert normal.log_density(np.array([0.0])) == pytest.approx(reference.log_normal(0.0, 1.0, 2.0))


# ---- known answers ----


@pytest.mark.parametrize("effect", [0.5, 1.5])
def test_online_lira_reaches_the_true_likelihood_ratio(effect):
    x, inside, out, _ = gaussians(2, count=128, effect=effect)
    assert auc(reference_models.lira_online(x, inside, out)) == pytest.approx(truth(effect), abs=0.01)
    assert auc(reference_models.lira_online(x, inside, out, reference_models.fit_shared_variance)) == pytest.approx(
        truth(effect), abs=0.01
    )


@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_offline_with_few_references_loses_what_the_mean_costs_and_no_more(count):
    x, _, out, _ = gaussians(3, count=count)
    for fit in (reference_models.fit_shared_variance, reference_models.fit_student_t):
        assert auc(reference_models.lira_offline(x, out, out, fit)) == pytest.approx(truth(1.0, count), abs=0.01)


def test_a_variance_of_its_own_from_few_references_is_worse_than_the_bayesian_one():
    x, _, out, _ = gaussians(4, count=2)
    alone, drawn = (
        auc(reference_models.lira_offline(x, out, out, fit))
        for fit in (reference_models.fit_own_variance, reference_models.fit_student_t)
    )
    assert drawn > alone + 0.02
    x, _, out, _ = gaussians(4, count=8, sigma=two)
    everybody, drawn = (
        auc(reference_models.lira_offline(x, out, out, fit))
        for fit in (reference_models.fit_shared_variance, reference_models.fit_student_t)
    )
    assert drawn == pytest.approx(truth(1.0, 8), abs=0.01) and drawn > everybody + 0.01


def test_one_variance_for_unequal_examples_has_the_auc_of_their_mixture():
    x, _, out, _ = gaussians(5, count=256, effect=1.0, sigma=two, n=8000)
    expected = np.mean([ndtr(a / np.hypot(a, b)) for a in (1, 5) for b in (1, 5)])
    assert auc(reference_models.lira_offline(x, out, out, reference_models.fit_shared_variance)) == pytest.approx(
        expected, abs=0.01
    )


def test_rmia_where_its_ratio_is_the_likelihood_ratio():
    """p far from 1 and a = 1: log r(x) is the margin less the references' mean, so the ideal AUC is reached; and the
    population term, which every example is compared with alike, changes no order.
    """
    x, _, out, _ = gaussians(6, count=64, level=-20.0)
    log_p, log_out = -np.logaddexp(0, -x), -np.logaddexp(0, -out)
    ratio = reference_models.rmia_ratio(log_p, log_out, a=1.0)
    assert auc(ratio) == pytest.approx(truth(1.0), abs=0.01)
    population = ratio[N:]
    score = np.concatenate(
        [reference_models.rmia_score(ratio[:N], population), reference_models.rmia_score(population, population)]
    )
    assert auc(score) == pytest.approx(auc(ratio), abs=1e-4)
    fair = reference_models.rmia_score(population, population, itself=True)
    assert (fair.min(), fair.max(), fair.mean()) == pytest.approx((0, 1, 0.5))


def test_rmia_calibrates_by_default_where_probabilities_are_small():
    x, _, out, _ = gaussians(6, count=64, level=-20.0)
    log_p, log_out = -np.logaddexp(0, -x), -np.logaddexp(0, -out)
    assert auc(reference_models.rmia_ratio(log_p, log_out)) == pytest.approx(truth(1.0), abs=0.01)
    raw = auc(x)
    assert auc(reference_models.rmia_ratio(log_p, log_out, a=0.3)) == pytest.approx(raw, abs=0.01)
    assert raw < truth(1.0) - 0.1


def test_curves_are_scikit_learns():
    x, inside, out, _ = gaussians(7, count=8, n=500)
    score = np.round(reference_models.lira_online(x, inside, out), 1)  # with ties
    y = np.repeat([1, 0], 500)
    assert stats.auc(score[:500], score[500:]) == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    fpr, tpr, cuts = roc_curve(y, score, drop_intermediate=False)
    ours = stats.roc(score[:500], score[500:])
    assert np.array_equal(ours[0], fpr) and np.array_equal(ours[1], tpr) and np.array_equal(ours[2], cuts)
    best = tpr[fpr <= 0.01].max()
    assert stats.tpr_at_fpr(score[:500], score[500:], 0.01).value == best


def test_the_prior_is_infinite_where_variances_do_not_differ():
    rng = np.random.default_rng(8)
    same = rng.normal(size=(4, 20_000)).var(axis=0, ddof=1)
    freedom, variance = reference_models.fit_variance_prior(same, 3)
    assert freedom > 100 and variance == pytest.approx(1, abs=0.02)
    assert reference_models.fit_variance_prior(np.zeros(5), 3) == (np.inf, 1.0)


def test_one_reference_has_no_variance():
    x, _, out, _ = gaussians(9, count=1, n=20)
    with pytest.raises(EffaceError, match="One reference has no variance"):
        reference_models.fit_own_variance(out, out)
    for fit in (reference_models.fit_shared_variance, reference_models.fit_student_t):
        order = np.argsort(reference_models.lira_offline(x, out, out, fit))
        assert np.array_equal(order, np.argsort(x - out[0]))


# ---- in the audit ----


def test_every_attack_sees_the_original_and_not_an_oracle():
    w = World(10, forget=300, holdout=400, retain=100)
    subject = w.model("u", {"retain": 1.0, "forget": 0.0})
    found = by_name(Membership().findings(Evidence(w.original(), subject, (w.oracle(1), w.oracle(2), w.oracle(3)))))
    for attack in ("calibrated", "lira", "bayes", "rmia"):
        for signal in ("projector.margin", "projector.alignment"):
            one = found[f"membership.{signal}.{attack}.auc"]
            assert one.original > 0.6 and abs(one.value - 0.5) < 0.08 and abs(one.oracle - 0.5) < 0.08
    assert "membership.gradient_norm.lira.auc" in found and "membership.gradient_norm.rmia.auc" not in found
    assert found["membership.backbone.margin.lira.tpr_at_1_in_100"].value is not None
    assert found["membership.backbone.margin.lira.tpr_at_1_in_1000"].value is None


@pytest.mark.parametrize("attack", ["encodermi_v", "encodermi_s"])
def test_encodermi_with_shadow_encoders(attack):
    w = World(11, forget=150, holdout=160, retain=160, hardness=0.5)
    found = by_name(Membership().findings(Evidence(w.original(), w.oracle(3), (w.oracle(1), w.oracle(2)))))
    for name in (f"membership.backbone.{attack}.auc", f"membership.backbone.{attack}.shadow.auc"):
        assert found[name].original > 0.6 and abs(found[name].value - 0.5) < 0.1
