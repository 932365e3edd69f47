"""Pairs of unlearned and retrained models: reference implementations, known answers, zero lines, planted bugs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr

from efface import stats
from efface.auditing.attacks import model_pairs
from efface.auditing.audits.ceiling import Ceiling
from efface.auditing.audits.populations import Populations
from efface.auditing.evidence import PAIRS, Evidence
from efface.auditing.verdict import judge
from efface.errors import EffaceError
from tests.reference import populations as reference
from tests.worlds import World, by_name


def normals(seed, *, count=32, n=50, effect=0.0):
    """Unlearned and retrained [count, n]; the unlearned remember every example by ``effect`` standard deviations."""
    rng = np.random.default_rng(seed)
    hard, sigma = 3 * rng.normal(size=n), np.exp(0.5 * rng.normal(size=n))
    unlearned, retrained = hard + sigma * rng.normal(size=(2, count, n))
    return unlearned + effect * sigma, retrained


def pairs(seed=0, count=PAIRS, gain=0.0, **sizes):
    """Evidence with ``count`` pairs of a method that leaves ``gain`` of the memory."""
    w = World(seed, **({"forget": 30, "retain": 20, "holdout": 30, "test": 5, "valid": 0} | sizes))
    left = {"retain": 1.0, "forget": gain}
    unlearned = tuple(w.model(f"unlearned {i}", left) for i in range(count))
    return Evidence(w.original(), w.model("u", left), tuple(w.oracle(i) for i in range(count)), {}, unlearned)


# ---- reference implementations ----


def test_ratios_against_the_loop():
    u, r = normals(0, count=6, n=4, effect=1.0)
    high, low = model_pairs.likelihood_ratios(u, r)
    for x in range(4):
        for i in range(6):
            assert high[i, x] == pytest.approx(reference.ratio(u[:, x], r[:, x], i, u[i, x]), abs=1e-9)
            assert low[i, x] == pytest.approx(reference.ratio(u[:, x], r[:, x], i, r[i, x]), abs=1e-9)


@pytest.mark.parametrize("effect", [0.0, 1.0, 8.0])
def test_the_forgetting_score_against_the_loop(effect):
    u, r = normals(1, count=7, n=6, effect=effect)
    u[:, 0] = np.round(u[:, 0])
    r[:, 0] = np.round(r[:, 0])  # ties
    expected = [reference.epsilon(list(a), list(b), 0.01) for a, b in zip(u.T, r.T, strict=True)]
    assert model_pairs.example_epsilons(u, r, 0.01) == pytest.approx(expected)
    assert model_pairs.forgetting_score(u, r, 0.01) == pytest.approx(reference.forgetting(expected))


def test_klom_against_the_loop():
    u, r = normals(2, count=12, n=5, effect=1.0)
    expected = [reference.kl(list(a), list(b), 20) for a, b in zip(u.T, r.T, strict=True)]
    assert model_pairs.example_divergences(u, r, 20) == pytest.approx(expected)


@pytest.mark.parametrize("effect", [0.0, 2.0, 200.0])
def test_klom_as_it_was_published_against_the_loop(effect):
    u, r = normals(12, count=12, n=5, effect=effect)
    expected = [reference.published_kl(list(a), list(b), 20) for a, b in zip(u.T, r.T, strict=True)]
    assert model_pairs.klom_published(u, r) == pytest.approx(np.mean(expected))


def test_klom_as_it_was_published_is_finite_where_all_scores_are_one_number():
    ones, zeros = np.ones((8, 2)), np.zeros((8, 2))
    assert model_pairs.klom_published(ones, ones) == 0.0
    assert 10 < model_pairs.klom_published(ones, zeros) < 12 and 10 < model_pairs.klom_published(zeros, ones) < 12


def test_a_narrow_population_is_told_by_two_thresholds():
    """One threshold calls half of the wide one wrongly; the competition's attacks have two."""
    rng = np.random.default_rng(13)
    wide, narrow = rng.normal(size=(64, 20)), 0.1 * rng.normal(size=(64, 20))

    def one_threshold(u, r, delta):
        cuts = [-math.inf, *np.sort(np.concatenate([u, r])), math.inf]
        rates = [(np.mean(r <= c), np.mean(u > c)) for c in cuts] + [(np.mean(r > c), np.mean(u <= c)) for c in cuts]
        return max(math.log(max(1 - delta - a, 1e-9) / b) for a, b in rates + [x[::-1] for x in rates] if a > 0 < b)

    both = [
        (model_pairs.example_epsilons(u[:, None], r[:, None])[0], one_threshold(u, r, 1e-5))
        for u, r in zip(narrow.T, wide.T, strict=True)
    ]
    assert all(two >= one - 1e-9 for two, one in both)
    assert np.mean([two - one for two, one in both]) > 0.4


# ---- known answers ----


@pytest.mark.parametrize(("effect", "tolerance"), [(0.0, 0.01), (1.0, 0.01), (2.0, 0.01)])
def test_ulira_reaches_the_true_ratio_and_says_nothing_of_equal_populations(effect, tolerance):
    u, r = normals(3, count=128, n=400, effect=effect)
    assert model_pairs.ulira(u, r) == pytest.approx(float(ndtr(effect / math.sqrt(2))), abs=tolerance)


def test_leaving_out_one_side_alone_would_call_equal_populations_over_forgotten():
    """The planted bug: each model is left out of its own law only, so it looks unlike its own kind."""
    u, r = normals(4, count=4, n=10_000)
    own, every = model_pairs._without_one, lambda s: (s.mean(axis=0), s.std(axis=0, ddof=1))

    def ratio(x, inside, outside):
        return model_pairs._log_normal(x, *inside) - model_pairs._log_normal(x, *outside)

    planted = stats.auc(ratio(u, own(u), every(r)).ravel(), ratio(r, every(u), own(r)).ravel())
    assert planted < 0.48
    assert model_pairs.ulira(u, r) == pytest.approx(0.5, abs=0.008)


def test_laws_fitted_with_the_judged_model_see_what_is_not_there():
    u, r = normals(5, count=8, n=3000)
    law_u, law_r = ((s.mean(axis=0), s.std(axis=0, ddof=1)) for s in (u, r))
    planted = [model_pairs._log_normal(x, *law_u) - model_pairs._log_normal(x, *law_r) for x in (u, r)]
    assert stats.auc(planted[0].ravel(), planted[1].ravel()) > 0.6


def test_zero_lines_and_ceilings():
    u, r = normals(6, count=32, n=200, effect=0.0)
    far, _ = normals(6, count=32, n=200, effect=50.0)
    assert model_pairs.null_statistic(model_pairs.ulira, r) == pytest.approx(0.5, abs=0.02)
    assert model_pairs.ulira(far, r) == 1.0
    zero = model_pairs.null_statistic(model_pairs.klom, r)
    same = model_pairs.klom(u[:16], r[16:])
    assert zero is not None and abs(zero - same) < 0.1 * zero  # as far as one half is from the other
    assert model_pairs.klom(far, r) <= model_pairs.largest_divergence(32)
    assert model_pairs.null_statistic(model_pairs.klom, r[:7]) is None
    finite = model_pairs.example_epsilons(u, r)
    assert finite.max() <= model_pairs.largest_epsilon(32) == pytest.approx(math.log((1 - 1e-5) * 32 - 1))
    assert model_pairs.forgetting_score(far, r) == 2.0**-12  # no attack errs: the last bin
    assert model_pairs.forgetting_from_epsilons(np.zeros(3)) == 1.0


def test_the_forgetting_score_of_equal_populations_depends_on_how_many_there_are():
    scores = [model_pairs.forgetting_score(*normals(7, count=count, n=100), delta=0.01) for count in (16, 64, 256)]
    assert scores[0] < scores[1] < scores[2] < 1  # so a score without its N, or its zero line, says nothing


def test_the_interval_covers_and_is_about_pairs():
    """One offset per model moves all its examples together: examples are no independent draws."""
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        u, r = rng.normal(size=(2, 16, 30)) + rng.normal(size=(2, 16, 1))
        _, low, high = model_pairs.jackknife(model_pairs.ulira, u + 0.5, r)
        covered += low < 0.5 + 0.06 < high or low < float(ndtr(0.5 / 2)) < high
    assert covered >= 51


# ---- planted bugs ----


def test_a_histogram_kl_that_drops_the_largest_and_is_nothing_for_disjoint_point_masses():
    def planted(u, r, bins=20):
        low, high = min(u.min(), r.min()), max(u.max(), r.max())
        edges = np.arange(bins) * (high - low) / bins + low  # the last edge is missing
        p, q = (np.histogram(x, edges)[0] / len(x) for x in (r, u))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.nansum(p * np.log(p / q))

    zeros, ones = np.zeros((8, 1)), np.ones((8, 1))
    assert planted(ones[:, 0], zeros[:, 0]) == np.inf and planted(zeros[:, 0], ones[:, 0]) == 0.0
    for u, r in ((ones, zeros), (zeros, ones)):
        assert model_pairs.klom(u, r) == pytest.approx(model_pairs.largest_divergence(8))
    assert model_pairs.klom(ones, ones) == 0.0
    largest = np.arange(8.0)[:, None]
    assert model_pairs.example_divergences(largest, largest[::-1])[0] == 0.0


def test_thresholds_between_zero_and_one_only():
    u, r = normals(8, count=16, n=10, effect=3.0)
    shifted = model_pairs.example_epsilons(u - 100, r - 100)

    def planted(u, r):
        rates = [((r > t).mean(), (u <= t).mean()) for t in np.linspace(0, 1, 101)]
        return max((math.log(0.99 - a) - math.log(b) for a, b in rates if b > 0 and a < 0.99), default=0.0)

    assert planted(u[:, 0] - 100, r[:, 0] - 100) <= 0.0
    assert shifted == pytest.approx(model_pairs.example_epsilons(u, r)) and shifted.min() > 1


def test_unpaired_scores_are_refused():
    with pytest.raises(EffaceError, match="At least 4 models"):
        model_pairs.ulira(np.zeros((3, 5)), np.zeros((3, 5)))
    with pytest.raises(EffaceError, match="cannot be paired"):
        model_pairs.ulira(np.zeros((8, 5)), np.zeros((8, 6)))


# ---- the audit ----


def test_the_audit_tells_a_method_that_forgets_from_one_that_does_not():
    good, bad = (by_name(Populations().findings(pairs(9, gain=gain))) for gain in (0.0, 1.0))
    name = "populations.projector.margin."
    auc = good[name + "ulira.auc"]
    assert auc.interval[0] < 0.5 < auc.interval[1] and abs(auc.oracle - 0.5) < 0.06 and auc.n == (32, 30)
    assert bad[name + "ulira.auc"].interval[0] > 0.7
    for part in ("retain", "holdout"):  # here only the forgotten differ
        assert abs(bad[name + f"ulira.{part}.auc"].value - 0.5) < 0.1 < bad[name + "ulira.auc"].value - 0.5
    assert bad[name + "forgetting_score"].value < good[name + "forgetting_score"].value / 2
    assert "no finite epsilon above 3.4 can be shown" in good[name + "forgetting_score"].note
    assert bad[name + "klom.forget"].value > 2 * good[name + "klom.forget"].value
    assert abs(bad[name + "klom.holdout"].value - good[name + "klom.holdout"].value) < 0.1
    assert abs(good[name + "klom.forget"].details["half"] - good[name + "klom.forget"].oracle) < 0.15
    assert len(bad[name + "ulira.auc"].details["worst"]) == 10
    assert bad[name + "ulira.auc"].details["worst"][0]["item"].startswith("forget/")


def test_fewer_pairs_are_no_a2():
    evidence = pairs(10, count=5)
    assert evidence.level == "A1" and pairs(10).level == "A2"
    (refused,) = Populations().findings(evidence)
    assert refused.value is None and "5 pairs" in refused.note and "32 are needed" in refused.note
    found = by_name(Ceiling().findings(evidence))
    assert found["ceiling.pairs"].value == 5 and "level A1" in found["ceiling.references"].note
    assert found["ceiling.example_epsilon"].value == pytest.approx(math.log((1 - 1e-5) * 5 - 1))
    assert found["ceiling.epsilon"].value == stats.epsilon_ceiling(30, 30)


def test_the_verdict_names_the_level():
    evidence = pairs(11, forget=40, holdout=60)
    verdict = judge(evidence)
    assert verdict.level == "A2" and any("32 pairs" in limit for limit in verdict.limits)


def test_a_pair_given_twice_is_refused():
    w = World(12, forget=5, retain=5, holdout=5, test=5)
    one = w.model("x", {})
    with pytest.raises(EffaceError, match="given twice"):
        Evidence(w.original(), w.model("u", {}), (w.oracle(),), {}, (one, one))
    with pytest.raises(EffaceError, match="an oracle"):
        Evidence(w.original(), w.model("u", {}), (one,), {}, (one,))
