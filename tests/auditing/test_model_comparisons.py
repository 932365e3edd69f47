"""Share of non-members, relative distance and oracle direction: loops, worlds of known truth, planted bugs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy.special import stdtrit

from efface.auditing.attacks.discriminant import SHRINKAGE, fisher_direction
from efface.auditing.attacks.ratios import ratio_of_means
from efface.auditing.audits.nonmember_share import NonmemberShare, share_of_nonmembers
from efface.auditing.audits.oracle_direction import OracleDirection, common_parts
from efface.auditing.audits.relative_distance import RelativeDistance, centered, projections, squares
from efface.auditing.evidence import Evidence
from tests.reference import model_comparisons as reference
from tests.worlds import World, by_name, with_arrays

SIZES: dict[str, Any] = {"forget": 120, "retain": 300, "holdout": 300, "test": 60, "valid": 0}
SIGNAL = "backbone.margin"


def sized(**changed: Any) -> dict[str, Any]:
    return SIZES | changed


@pytest.fixture(scope="module")
def world():
    w = World(0, hardness=1.0, **SIZES)
    return w, w.original(), tuple(w.oracle(i) for i in range(4))


def measured(audit, original, subject, oracles=()):
    return by_name(audit().findings(Evidence(original, subject, oracles)))


def turned(observed, seed=0):
    """The same model with its features rotated and scaled, its units in another order."""
    d = observed.of("test", "features").shape[1]
    q = 3.0 * np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    names = [name for name in observed.arrays if name.endswith("/features")]
    return with_arrays(observed, **{name.replace("/", "__"): observed.arrays[name] @ q for name in names})


# ---- ratios and discriminant ----


def test_ratio_and_interval_against_the_roots():
    rng = np.random.default_rng(0)
    groups = [rng.normal(size=(n, 2)) @ [[1.0, 0.4], [0.0, 1.0]] + [1.0, 3.0] for n in (20, 30)]
    found = ratio_of_means(groups)
    assert found is not None
    t = float(stdtrit(19, 0.975))
    expected = reference.fieller([g.tolist() for g in groups], t)
    assert (found.value, found.low, found.high) == pytest.approx(expected)
    assert found.shifted(-1, 1).low == pytest.approx(1 - found.high)


def test_no_ratio_where_the_bottom_may_be_zero():
    rng = np.random.default_rng(1)
    assert ratio_of_means([rng.normal((5.0, 0.1), size=(50, 2))]) is None
    assert ratio_of_means([rng.normal((5.0, -2.0), size=(50, 2))]) is None, "below zero is no separation either"
    assert ratio_of_means([np.ones((1, 2))]) is None


def test_the_interval_of_a_ratio_covers():
    rng, inside = np.random.default_rng(2), 0
    for _ in range(400):
        found = ratio_of_means([rng.normal((0.5, 1.0), size=(40, 2))])
        inside += found is not None and found.low < 0.5 < found.high
    assert inside / 400 == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("shape", [(30, 4), (6, 40)])
def test_direction_against_the_loop(shape):
    """Also where there are more features than examples, solved the other way round."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=shape) + 0.5, rng.normal(size=shape)
    matrix = np.array(reference.discriminant(a.tolist(), b.tolist(), SHRINKAGE))
    assert matrix @ fisher_direction(a, b) == pytest.approx(a.mean(axis=0) - b.mean(axis=0))


# ---- non-member share ----


def test_share_against_the_loop():
    rng = np.random.default_rng(4)
    f, h, r, n = (rng.normal(size=size) + shift for size, shift in ((20, 0.5), (40, 0), (50, 2), (30, 0)))
    apart = share_of_nonmembers(f, h, r, n, 0.95, "spare")
    same = share_of_nonmembers(f, h, r, h, 0.95, "holdout")
    assert apart is not None and apart.value == pytest.approx(reference.share(f, h, r, n))
    assert same is not None and same.value == pytest.approx(reference.share(f, h, r, h))


@pytest.mark.parametrize("left", [0.0, 0.5, 1.0])
def test_the_share_is_what_was_mixed(left):
    """A part of the forgotten is as known as before, the rest is not known at all."""
    w = World(5, hardness=0.3, **sized(forget=400, retain=900, holdout=900))
    known, unknown = w.original(), w.oracle()
    kept = np.arange(400) < 400 * left
    arrays = {
        name.replace("/", "__"): np.where(
            kept.reshape(-1, *[1] * (x.ndim - 1)), known.arrays[name], unknown.arrays[name]
        )
        for name, x in known.arrays.items()
        if name.startswith("forget/") and x.dtype.kind == "f"
    }
    subject = dataclasses.replace(with_arrays(unknown, **arrays), model="u")
    one = measured(NonmemberShare, known, subject)["nonmember_share.signals"]
    assert one.value == pytest.approx(1 - left, abs=0.12) and one.interval[0] < 1 - left < one.interval[1]
    assert one.original == pytest.approx(0.0, abs=0.12)


def test_over_forgetting_is_a_share_above_one(world):
    """Planted: a share cut off at 1 cannot tell over-forgetting from forgetting."""
    w, original, oracles = world
    less = measured(NonmemberShare, original, w.model("u", {"retain": 1.0, "forget": -1.0}), oracles)
    one = less["nonmember_share.signals"]
    assert one.value > 1.5 and one.interval[0] > 1 and min(one.value, 1) == 1 == pytest.approx(one.oracle, abs=0.2)


def test_no_share_where_members_look_like_others(world):
    w, original, _ = world
    flat = measured(NonmemberShare, original, w.model("u", {}))["nonmember_share.signals"]
    assert flat.value is None and "cannot be told apart" in flat.note and flat.original is not None
    small = World(6, **sized(forget=10))
    found = measured(NonmemberShare, small.original(), small.model("u", {"retain": 1.0}))
    assert all(one.value is None for one in found.values())


def test_a_direction_used_on_its_own_examples_sees_what_is_not_there():
    """Planted: with 100 features of pure noise the direction separates the examples that it was fitted on."""
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(2, 120, 100))
    w = fisher_direction(a, b)
    gap = (a @ w).mean() - (b @ w).mean()
    fresh = [rng.normal(size=(5000, 100)) @ w for _ in range(2)]
    assert gap > np.std(fresh[0]) and abs(fresh[0].mean() - fresh[1].mean()) < 0.1 * gap
    w = World(8, hardness=1.0, **SIZES)
    noise = w.model("u", {})
    arrays = {f"{p}__features": rng.normal(size=(SIZES[p], 100)).astype("f4") for p in ("forget", "retain", "holdout")}
    found = measured(NonmemberShare, w.original(), with_arrays(noise, **arrays))
    assert found["nonmember_share.features"].value is None


# ---- relative distance ----


def test_statistic_against_the_loop_over_pairs():
    rng = np.random.default_rng(9)
    s, o, r = rng.normal(size=(3, 7, 2)) + np.array([0.3, 1.0, 0.0])[:, None, None]
    both = np.concatenate([o, r])
    width = float(np.median(squares(both, both)[np.triu_indices(14, 1)]))
    t, whole = projections(s, o, r).mean(axis=0)
    expected = reference.squared_mmd(s, r, width) - reference.squared_mmd(s, o, width)
    assert t == pytest.approx(expected) and whole == pytest.approx(reference.squared_mmd(o, r, width))


def test_pairs_of_an_example_with_itself_would_pull_to_the_original():
    """Planted: s and o are the same model's of the same examples, but for noise; with i = j they look nearer."""
    rng = np.random.default_rng(10)
    base = rng.normal(size=(40, 2))
    s, o, r = base + 0.01, base, rng.normal(size=(40, 2))  # all three from one distribution
    both = np.concatenate([o, r])
    width = float(np.median(squares(both, both)[np.triu_indices(80, 1)]))
    h = [np.exp(-squares(x, y) / width) for x, y in ((r, r), (s, r), (o, o), (s, o))]
    planted = h[0].mean() - 2 * h[1].mean() - h[2].mean() + 2 * h[3].mean()
    assert planted > 3 * abs(projections(s, o, r)[:, 0].mean())


def test_original_and_retrained_are_at_the_ends(world):
    w, original, oracles = world
    found = measured(RelativeDistance, original, w.model("u", {"retain": 1.0, "forget": 0.0}), oracles)
    one = found["relative_distance.position"]
    assert abs(one.value) < 0.2 and one.original == 1.0 and abs(one.oracle) < 0.1
    assert one.details["p_nearer_retrained"] < 0.001 and "nearer to: retrained" in one.note
    kept = measured(RelativeDistance, original, w.model("u", {"retain": 1.0, "forget": 0.9}), oracles)
    one = kept["relative_distance.position"]
    assert one.value > 0.8 and one.details["p_nearer_original"] < 0.001 and "nearer to: original" in one.note
    untouched = measured(RelativeDistance, original, original, oracles)["relative_distance.position"]
    assert untouched.value == 1.0 and untouched.interval is None


def test_a_shift_of_all_scores_changes_nothing(world):
    w, original, oracles = world
    subject = w.model("u", {"retain": 1.0, "forget": 0.5})
    moved = with_arrays(
        subject, **{f"{p}__{SIGNAL}": subject.of(p, SIGNAL) + 4.0 for p in ("forget", "retain", "holdout", "test")}
    )
    a, b = (measured(RelativeDistance, original, s, oracles)["relative_distance.position"] for s in (subject, moved))
    assert a.value == pytest.approx(b.value, abs=1e-5)
    tables = {p: [o.of(p, SIGNAL)[:, None] for o in (original, moved, *oracles)] for p in ("forget", "holdout")}
    s, _, r = centered(tables, 2)
    assert abs(s.mean() - r.mean()) < 1, "less the holdout's mean: not four units away"


def test_it_says_nothing_without_references_or_difference(world):
    w, original, oracles = world
    alone = measured(RelativeDistance, original, w.model("u"), ())["relative_distance.position"]
    assert alone.value is None and "no retrained" in alone.note
    one = measured(RelativeDistance, original, w.model("u"), oracles[:1])["relative_distance.position"]
    assert one.value is not None and one.oracle is None
    same = w.model("original", {"retain": 1.0})
    flat = measured(RelativeDistance, same, w.model("u"), oracles)["relative_distance.position"]
    assert flat.value is None and "do not tell" in flat.note


def test_false_alarms_of_the_relative_test():
    """A model half-way is called nearer to either side in at most one case of ten."""
    alarms = 0
    for seed in range(40):
        w = World(seed, hardness=0.5, forget=60, retain=20, holdout=150, test=5, valid=0)
        oracles = tuple(w.oracle(i) for i in range(3))
        rng = np.random.default_rng(seed)
        half = (rng.random(60) < 0.5)[:, None]
        a, b = w.original(), w.oracle(9)
        arrays = {
            name.replace("/", "__"): np.where(half if x.ndim == 2 else half[:, 0], x, b.arrays[name])
            for name, x in a.arrays.items()
            if name.startswith("forget/") and x.dtype.kind == "f"
        }
        subject = dataclasses.replace(with_arrays(b, **arrays), model="u")
        one = measured(RelativeDistance, a, subject, oracles)["relative_distance.position"]
        alarms += "undecided" not in one.note
    assert alarms <= 12, "the mean of the mixture varies with the draw, too"


# ---- oracle direction ----


def displaced(w, name, seed, step, amount):
    """A model whose features of F are moved by ``amount`` of a step that every member's take."""
    rng = np.random.default_rng(seed)
    made = w.model(name, {"retain": 1.0, "forget": amount})
    features = {
        part: (w.x[part] + 0.3 * rng.normal(size=w.x[part].shape) + (amount * step if part == "forget" else 0))
        for part in ("forget", "holdout", "test", "retain")
    }
    return with_arrays(made, **{f"{part}__features": x.astype("f4") for part, x in features.items()})


@pytest.fixture(scope="module")
def moved():
    w = World(11, **SIZES)
    step = np.random.default_rng(1).normal(size=w.dim)
    original = displaced(w, "original", 1, step, 1.0)
    oracles = tuple(displaced(w, f"oracle {i}", 10 + i, step, 0.0) for i in range(4))
    return w, step, original, oracles


def test_parts_against_the_loop():
    rng = np.random.default_rng(12)
    g, o, *r = rng.normal(size=(6, 5, 3))
    a, b = (r[0] + r[2]) / 2, (r[1] + r[3]) / 2
    for x, column in ((g, 0), (o, 1)):
        expected = [
            (reference.common(x[i], a[i], o[i], b[i]) + reference.common(x[i], b[i], o[i], a[i])) / 2 for i in range(5)
        ]
        assert common_parts(g, o, r)[:, column] == pytest.approx(expected)


@pytest.mark.parametrize("amount", [0.0, 0.5, 1.0])
def test_what_is_left_of_the_step_is_found_in_both_spaces(moved, amount):
    w, step, original, oracles = moved
    found = measured(OracleDirection, original, displaced(w, "u", 30, step, amount), oracles)
    for space in ("features", "signals"):
        one = found[f"oracle_direction.{space}.residual"]
        assert one.value == pytest.approx(amount, abs=0.25), space
        assert one.original == 1.0 and abs(one.oracle) < 0.15


def test_rotated_scaled_and_permuted_features_change_nothing(moved):
    w, step, original, oracles = moved
    subject = displaced(w, "u", 30, step, 0.5)
    a = measured(OracleDirection, original, subject, oracles)
    b = measured(OracleDirection, original, turned(subject), oracles)
    for name, one in a.items():
        assert b[name].value == pytest.approx(one.value, abs=1e-4)


def test_one_reference_on_both_sides_looks_like_a_half(moved):
    """Planted: the noise of a single retrained model is a residual of half the way."""
    w, step, original, oracles = moved
    fresh = displaced(w, "fresh", 50, 0 * step, 0.0)
    g, o, r = (x.of("holdout", "features").astype(float) for x in (fresh, original, oracles[0]))
    planted = ((g - r) * (o - r)).sum() / ((o - r) ** 2).sum()
    assert planted == pytest.approx(0.5, abs=0.05)
    found = measured(OracleDirection, original, fresh, oracles[:1])
    assert all(one.value is None and "two retrained models" in one.note for one in found.values())


def test_what_an_unlearned_model_shares_with_the_original_anyway_is_no_memory(moved):
    """Planted: without taking off the holdout's part, lineage is a residual. The model started from the original."""
    _, step, original, oracles = moved
    kin = {
        f"{part}__features": original.of(part, "features") - (step.astype("f4") if part == "forget" else 0)
        for part in ("forget", "holdout", "test", "retain")
    }
    heir = dataclasses.replace(with_arrays(original, **kin), model="u")
    describe = [o.of("forget", "features").astype(float) for o in (heir, original, *oracles)]
    parts = common_parts(describe[0], describe[1], describe[2:])
    assert parts[:, 0].sum() / parts[:, 1].sum() > 0.05
    one = measured(OracleDirection, original, heir, oracles)["oracle_direction.features.residual"]
    assert abs(one.value) < 0.1
