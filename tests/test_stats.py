"""Statistics: compared with scikit-learn, scipy, reference implementations and known answers.

The coverage of the intervals is measured by simulation.
"""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score, roc_curve

from efface import stats
from efface.errors import EffaceError
from tests.reference import stats as reference

SCORES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)
"""Few distinct values, so that ties are common; some are negative, so that a search on [0, 1] fails."""


def labelled(members, nonmembers):
    return np.r_[np.ones(len(members)), np.zeros(len(nonmembers))], np.r_[members, nonmembers]


@settings(max_examples=150, deadline=None)
@given(SCORES, SCORES)
def test_auc_is_the_share_of_ordered_pairs(a, b):
    a, b = np.array(a), np.array(b)
    assert stats.auc(a, b) == pytest.approx(reference.auc(a, b), abs=1e-12)
    assert stats.auc(a, b) == pytest.approx(roc_auc_score(*labelled(a, b)), abs=1e-12)
    assert stats.auc(a, b) + stats.auc(b, a) == pytest.approx(1, abs=1e-12)
    v10, v01 = stats.placements(a, b)
    assert v10.mean() == pytest.approx(v01.mean(), abs=1e-12)
    assert v10.mean() == pytest.approx(stats.auc(a, b), abs=1e-12)


def test_auc_matches_scikit_learn_on_many_tied_and_continuous_scores():
    rng = np.random.default_rng(0)
    for digits in (0, 1, 8):
        a, b = rng.normal(0.3, 1, 3000).round(digits), rng.normal(0, 1, 2000).round(digits)
        assert stats.auc(a, b) == pytest.approx(roc_auc_score(*labelled(a, b)), abs=1e-13)


def test_auc_ignores_order_dtype_and_monotone_maps():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.5, 1, 50).astype(np.float32), rng.normal(0, 1, 70).astype(np.float32)
    exact = stats.auc(a, b)
    assert stats.auc(a[::-1], rng.permutation(b)) == exact
    assert stats.auc(a.astype(np.float64), b.astype(np.float64)) == exact
    assert stats.auc(np.exp(a.astype(np.float64)), np.exp(b.astype(np.float64))) == exact


@settings(max_examples=100, deadline=None)
@given(SCORES, SCORES)
def test_roc_holds_every_distinct_score_and_groups_ties(a, b):
    fpr, tpr, cut = stats.roc(np.array(a), np.array(b))
    assert list(zip(fpr, tpr, cut, strict=True)) == reference.roc(a, b)
    assert np.trapezoid(tpr, fpr) == pytest.approx(stats.auc(np.array(a), np.array(b)), abs=1e-12)


def test_roc_equals_scikit_learn_exactly():
    rng = np.random.default_rng(2)
    a, b = rng.normal(-3, 1, 400).round(1), rng.normal(-3.5, 2, 300).round(1)
    for ours, theirs in zip(stats.roc(a, b), roc_curve(*labelled(a, b), drop_intermediate=False), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("statistic", [stats.roc, stats.auc, stats.delong])
def test_no_statistic_builds_the_matrix_of_all_pairs(statistic):
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=10_000), rng.normal(size=10_000)
    tracemalloc.start()
    try:
        statistic(a, b)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10e6  # about 1 MB; the matrix of pairs would take 100 MB even as booleans


def test_best_threshold_finds_the_best_cut_of_negative_scores():
    a, b = np.array([-1.0, -2.0, -9.0]), np.array([-3.0, -4.0, -5.0])
    assert stats.best_threshold(a, b) == (-2.0, pytest.approx((2 / 3 + 1) / 2))
    assert stats.best_threshold(np.zeros(3), np.zeros(4)) == (math.inf, 0.5)


# ---- intervals ----


def test_delong_variance_against_the_reference_implementation_and_brunner_munzel():
    rng = np.random.default_rng(4)
    a, b = rng.normal(0.4, 2, 25).round(1), rng.normal(0, 1, 40).round(1)
    error, freedom = stats.welch(*stats.placements(a, b))
    variance, expected_freedom = reference.delong_variance(a, b)
    assert error**2 == pytest.approx(variance, rel=1e-10)
    assert freedom == pytest.approx(expected_freedom, rel=1e-10)
    # The same t on the plain scale is the Brunner-Munzel statistic.
    t = (stats.auc(a, b) - 0.5) / error
    assert abs(t) == pytest.approx(abs(scipy_stats.brunnermunzel(a, b).statistic), rel=1e-9)


@pytest.mark.parametrize("members", [1, 5, 20, 300])
@pytest.mark.parametrize("nonmembers", [1, 50, 1000])
def test_perfect_separation_is_not_certainty(members, nonmembers):
    value, low, high = stats.delong(np.arange(members) + 10.0, -np.arange(nonmembers) - 1.0)
    assert (value, high) == (1.0, 1.0)
    # Exact: all of the min(m, n) disjoint pairs are in order with probability at most AUC^min(m, n).
    assert low == pytest.approx(0.025 ** (1 / min(members, nonmembers)), rel=1e-9)
    value, low, high = stats.delong(-np.arange(members) - 1.0, np.arange(nonmembers) + 10.0)
    assert (value, low) == (0.0, 0.0)
    assert high == pytest.approx(1 - 0.025 ** (1 / min(members, nonmembers)), rel=1e-9)


def test_constant_scores_give_one_half_with_a_wide_interval():
    value, low, high = stats.delong(np.full(50, 3.0), np.full(80, 3.0))
    assert value == 0.5
    assert low < 0.37 and high > 0.63


@pytest.mark.parametrize("kind", ["normal", "wide", "mixture"])
@pytest.mark.parametrize(("members", "truth"), [(20, 0.55), (50, 0.5), (50, 0.8), (200, 0.65)])
def test_coverage_of_the_90_percent_interval(kind, members, truth):
    rng, missed = np.random.default_rng(5), np.zeros(2)
    runs, n = 600, 300
    for _ in range(runs):
        b = rng.normal(0, 1, n)
        if kind == "mixture":  # some members score above everybody, the others below
            a = np.where(rng.random(members) < truth, 9.0, -9.0) + rng.normal(0, 0.1, members)
        else:
            s = 4.0 if kind == "wide" else 1.0
            a = rng.normal(np.sqrt(1 + s * s) * scipy_stats.norm.ppf(truth), s, members)
        _, low, high = stats.delong(a, b, 0.90)
        missed += (low > truth, high < truth)
    assert (missed / runs < 0.085).all()  # nominal 0.05 a side; three standard errors are 0.027
    assert (missed / runs).sum() > 0.005  # and not so wide as to say nothing


def test_few_examples_fall_back_to_the_exact_interval():
    rng = np.random.default_rng(6)
    caught = 0
    for _ in range(400):  # two members that happen to score high together must not look certain
        a = np.where(rng.random(2) < 0.5, 9.0, -9.0) + rng.normal(0, 0.01, 2)
        caught += stats.delong(a, rng.normal(size=500), 0.90)[1] > 0.5
    assert caught / 400 < 0.05


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([3, 12, 60]), st.floats(0.2, 0.8))
def test_one_sided_p_values_invert_the_interval(seed, members, null):
    rng = np.random.default_rng(seed)
    v = stats.placements(rng.normal(0.4, 1, members).round(1), rng.normal(0, 1, 40).round(1))
    _, low, high = stats.interval(*v, level=0.90)
    above, below = stats.one_sided_p_values(*v, null)
    if abs(low - null) > 1e-9:
        assert (above < 0.05) == (low > null)
    if abs(high - null) > 1e-9:
        assert (below < 0.05) == (high < null)


def test_paired_difference_is_tighter_than_two_intervals_and_covers():
    rng = np.random.default_rng(8)
    missed, widths = 0, []
    for _ in range(400):
        base_a, base_b = rng.normal(0.5, 1, 80), rng.normal(0, 1, 100)
        first = (base_a + rng.normal(0, 0.3, 80), base_b + rng.normal(0, 0.3, 100))
        second = (base_a + rng.normal(0, 0.3, 80), base_b + rng.normal(0, 0.3, 100))
        value, low, high = stats.delong_difference(first, [second], 0.90)
        missed += not low <= 0 <= high
        assert value == pytest.approx(stats.auc(*first) - stats.auc(*second), abs=1e-12)
        _, single_low, single_high = stats.delong(first[0], first[1], 0.90)
        widths.append((high - low) / (single_high - single_low))
    assert 0.05 < missed / 400 < 0.15
    assert max(widths) < 0.75


def test_paired_difference_with_itself_is_zero_but_not_certain():
    a, b = np.arange(30.0), np.arange(40.0) - 3
    value, low, high = stats.delong_difference((a, b), [(a, b)])
    assert value == 0 and low < -0.05 and high > 0.05
    with pytest.raises(EffaceError, match="counts differ"):
        stats.delong_difference((a, b), [(a[1:], b)])


# ---- exact proportions, tests, sample sizes ----


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (1, 30), (17, 40), (0, 1), (1, 1)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_clopper_pearson(hits, n, level):
    assert stats.clopper_pearson(hits, n, level) == pytest.approx(reference.clopper_pearson(hits, n, level), abs=1e-9)
    known = scipy_stats.binomtest(hits, n).proportion_ci(level)
    assert stats.clopper_pearson(hits, n, level) == pytest.approx((known.low, known.high), abs=1e-9)


def test_tpr_at_fpr_needs_enough_nonmembers():
    rng = np.random.default_rng(9)
    a, b = rng.normal(2, 1, 200), rng.normal(0, 1, 999)
    too_low = stats.tpr_at_fpr(a, b, 0.001)
    assert too_low.value is None and too_low.interval is None
    assert "1000" in too_low.note and "999" in too_low.note
    measured = stats.tpr_at_fpr(a, b, 0.01)
    cut = np.sort(b)[::-1][9]  # the tenth largest: nine may pass
    assert measured.value == np.mean(a > cut)
    assert measured.interval == stats.clopper_pearson(int((a > cut).sum()), 200)


def test_tpr_at_fpr_counts_ties_against_the_attack():
    tied = stats.tpr_at_fpr(np.ones(10), np.ones(200), 0.01)
    assert tied.value == 0.0


def test_permutation_against_all_relabellings():
    a, b = np.array([3.0, 4.0, 4.0]), np.array([1.0, 2.0, 4.0, 0.0])
    assert stats.permutation(a, b, draws=4000) == pytest.approx(reference.exact_permutation(a, b), abs=0.03)
    assert stats.permutation(np.ones(5), np.ones(7)) == 1.0
    assert stats.permutation(np.arange(50) + 99.0, np.arange(50.0), draws=199) == 1 / 200


def test_bootstrap_is_deterministic_and_covers_the_mean():
    x = np.random.default_rng(10).normal(5, 2, 400)
    low, high = stats.bootstrap(lambda v: float(v.mean()), x)
    assert (low, high) == stats.bootstrap(lambda v: float(v.mean()), x)
    reach = 1.96 * x.std() / 20
    assert low == pytest.approx(x.mean() - reach, abs=0.05) and high == pytest.approx(x.mean() + reach, abs=0.05)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm(p):
    assert stats.holm(p) == pytest.approx(reference.holm(p))


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03], [0.2], [0.0, 0.0, 0.5], [0.024, 0.026], [0.9, 0.6, 0.001, 0.02]])
def test_holm_factors_decide_as_holm_does(p):
    factors = stats.holm_factors(p)
    assert all(1 <= one <= len(p) + 1e-9 for one in factors)
    for alpha in (0.001, 0.01, 0.025, 0.05, 0.1, 0.3):
        assert [a < alpha for a in stats.holm(p)] == [v < alpha / f for v, f in zip(p, factors, strict=True)]


def test_holm_known_answer():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_needed_n_decides_about_as_often_as_promised():
    needed = stats.needed_n(0.05, 3000)
    assert needed is not None and 250 < needed < 450
    rng = np.random.default_rng(11)
    decided = 0
    for _ in range(300):  # two one-sided tests at 5 % decide exactly if the 90 % interval lies inside the margin
        _, low, high = stats.delong(rng.normal(size=needed), rng.normal(size=3000), 0.90)
        decided += low > 0.45 and high < 0.55
    assert 0.72 < decided / 300 < 0.88
    assert stats.needed_n(0.05, 200) is None  # no forget set is large enough for such a holdout
    assert stats.needed_n(0.05, 1000, truth=0.55) is None  # on the margin no number of examples suffices
    outside = stats.needed_n(0.05, 1000, truth=0.75)
    assert outside is not None and outside < 30


def test_epsilon_ceiling_grows_with_n():
    assert stats.epsilon_ceiling(10, 10) < stats.epsilon_ceiling(100, 1000) < 6
    assert stats.epsilon_ceiling(100, 1000) == pytest.approx(math.log(0.025**0.01 / (1 - 0.025**0.001)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("statistic", [stats.auc, stats.delong, stats.roc, stats.best_threshold, stats.permutation])
def test_a_score_that_is_not_finite_raises(statistic, bad):
    good, broken = np.arange(20.0), np.array([1.0, bad, 3.0])
    with pytest.raises(EffaceError, match="1 of 3 member scores are not finite"):
        statistic(broken, good)
    with pytest.raises(EffaceError, match="1 of 3 non-member scores are not finite"):
        statistic(good, broken)


def test_no_scores_raise():
    with pytest.raises(EffaceError, match="expected"):
        stats.auc(np.array([]), np.arange(3.0))


# ---- figures and distances ----


@settings(max_examples=50, deadline=None)
@given(SCORES, SCORES)
def test_histogram_counts_every_score_on_shared_edges(a, b):
    made = stats.histogram({"a": np.array(a), "b": np.array(b)}, bins=7)
    assert sum(made["counts"]["a"]) == len(a) and sum(made["counts"]["b"]) == len(b)
    assert len(made["edges"]) == 8


def test_histogram_of_one_point_mass():
    made = stats.histogram({"a": np.full(4, 1.0), "b": np.full(3, 1.0 + 1e-16)})
    assert sum(made["counts"]["a"]) == 4 and sum(made["counts"]["b"]) == 3


def test_js_divergence():
    rng = np.random.default_rng(12)
    p, q = rng.dirichlet(np.ones(5), 6), rng.dirichlet(np.ones(5), 6)
    expected = [reference.js_divergence(a, b) for a, b in zip(p, q, strict=True)]
    assert stats.js_divergence(p, q) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("more", "fewer"), [(0, 0), (0, 5), (5, 0), (4, 4), (20, 9), (300, 250)])
def test_the_sign_test_is_the_exact_binomial_one(more, fewer):
    known = scipy_stats.binomtest(more, more + fewer, alternative="greater").pvalue if more + fewer else 1.0
    assert stats.sign_test(more, fewer) == pytest.approx(known, abs=1e-12)
