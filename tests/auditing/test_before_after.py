"""The attacker with both models and the neighbors of a forgotten class: worlds of known truth, loops, planted bugs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from efface import stats
from efface.auditing import signals
from efface.auditing.attacks.class_neighbors import Neighbors, class_logits, forgotten_classes
from efface.auditing.attacks.discriminant import fisher_direction
from efface.auditing.attacks.signal_tables import shared_signals
from efface.auditing.attacks.two_models import attack_with_both, describe_both
from efface.auditing.audits.before_after import BeforeAfter
from efface.auditing.audits.neighbor_class import NeighborClass
from efface.auditing.evidence import Evidence
from tests.reference import model_comparisons as reference
from tests.worlds import World, by_name, with_arrays

SIZES: dict[str, Any] = {"forget": 150, "retain": 300, "holdout": 300, "test": 60, "valid": 0}


def sized(**changed: Any) -> dict[str, Any]:
    return SIZES | changed


@pytest.fixture(scope="module")
def world():
    w = World(0, hardness=1.0, **SIZES)
    return w, w.original(), tuple(w.oracle(i) for i in range(3))


def measured(audit, original, subject, oracles=()):
    return by_name(audit().findings(Evidence(original, subject, oracles)))


# ---- before and after ----


def test_retraining_shows_who_asked_and_nothing_done_does_not(world):
    w, original, oracles = world
    found = measured(BeforeAfter, original, w.model("u", {"retain": 1.0}), oracles)
    asked = found["before_after.requested.auc"]
    assert asked.value > 0.7 and asked.oracle == pytest.approx(asked.value, abs=0.08)
    assert asked.original == pytest.approx(0.5, abs=0.08), "the original alone tells no member from another"
    idle = measured(BeforeAfter, original, w.model("v", {"retain": 1.0, "forget": 1.0}), oracles)
    low, high = idle["before_after.requested.auc"].interval
    assert low < 0.5 < high


def test_over_forgetting_is_easier_to_see_with_both_models(world):
    w, original, oracles = world
    name = "before_after.forget.auc"
    well, over = (
        measured(BeforeAfter, original, w.model("u", {"retain": 1.0, "forget": gain}), oracles)[name]
        for gain in (0.0, -1.0)
    )
    assert over.value > over.oracle + 0.05 and abs(well.value - well.oracle) < 0.1


def test_a_second_model_that_saw_the_retained_exposes_them_more():
    w = World(1, hardness=0.2, **sized(retain=900, holdout=900))
    original, *oracles = [w.original(noise=1.5), *(w.oracle(i, noise=1.5) for i in range(3))]
    gain = measured(BeforeAfter, original, w.model("u", {"retain": 1.0}, noise=1.5), tuple(oracles))[
        "before_after.retain.gain"
    ]
    assert gain.interval[0] > 0 and gain.value == pytest.approx(gain.oracle, abs=0.04)
    lost = measured(BeforeAfter, original, w.model("v", {}, noise=1.5), tuple(oracles))["before_after.retain.gain"]
    assert abs(lost.value) < gain.value, "one that forgot everybody tells nothing of the retained"


def test_the_original_beside_itself_gains_nothing(world):
    _, original, oracles = world
    found = measured(BeforeAfter, original, original, oracles)
    assert all(one.value is None and "nothing changed" in one.note for one in found.values())
    names = shared_signals((original,), ("retain", "holdout"))
    assert describe_both(original, original, "retain", names).shape[1] == len(names)
    alone = attack_with_both(original, original, "retain", "holdout", names)
    copied = dataclasses.replace(original, model="copy")
    gain = attack_with_both(original, copied, "retain", "holdout", names).gain_over(alone, 0.95)
    assert abs(gain[0]) < 0.01


def test_an_attack_evaluated_on_what_it_was_fitted_on_sees_what_is_not_there():
    """Planted: no halves. Two models that know nothing of anybody, and an attacker who succeeds."""
    w = World(3, **sized(forget=40, holdout=40))
    before, after = w.model("original", {}), w.model("u", {})
    names = shared_signals((before, after), ("forget", "holdout"))
    a, b = (describe_both(before, after, part, names) for part in ("forget", "holdout"))
    direction = fisher_direction(a, b)
    assert stats.auc(a @ direction, b @ direction) > 0.7
    held = attack_with_both(before, after, "forget", "holdout", names)
    assert float(held.v10.mean()) == pytest.approx(float(held.v01.mean()))
    assert abs(held.auc - 0.5) < 0.15


def test_every_half_is_scored_by_the_other(world):
    w, original, _ = world
    after = w.model("u", {"retain": 1.0})
    names = shared_signals((original, after), ("forget", "holdout"))
    whole = attack_with_both(original, after, "forget", "holdout", names)
    scores = signals.scores(after, "forget", "backbone.margin").copy()
    order = signals.random_order_by_key(after.of("forget", "keys"))
    scores[order[0]] += 100  # one example of the first half: the others of that half are scored as before
    other = with_arrays(after, **{"forget__backbone.margin": scores.astype("f4")})
    moved = attack_with_both(original, other, "forget", "holdout", names)
    assert not np.array_equal(whole.v10[order[1::2]], moved.v10[order[1::2]])


def test_few_examples_are_not_attacked():
    w = World(4, **sized(forget=12))
    found = measured(BeforeAfter, w.original(), w.model("u", {"retain": 1.0}))
    assert found["before_after.forget.auc"].value is None and "too few" in found["before_after.forget.auc"].note
    assert found["before_after.retain.auc"].value is not None


# ---- neighbor class ----


def class_world(seed, sends, *, classifier=True):
    """Observations of a model that sends pictures of the forgotten class 0 to the classes by ``sends``, [classes]."""
    rng = np.random.default_rng(seed)
    w = World(0, **SIZES, classifier=classifier)
    made = w.model(f"model {seed}", {"retain": 1.0})
    arrays = {}
    for part in ("forget", "holdout"):
        n = SIZES[part]
        arrays[f"{part}__labels"] = np.zeros(n, dtype=np.int64)
        if classifier:
            arrays[f"{part}__logits"] = (np.log(sends) + 0.5 * rng.normal(size=(n, 5))).astype("f4")
        else:
            mixed = sends @ w.centers
            arrays[f"{part}__features"] = (mixed + 0.3 * rng.normal(size=(n, w.dim))).astype("f4")
    arrays["retain__labels"] = 1 + np.arange(SIZES["retain"]) % 4
    x = w.centers[arrays["retain__labels"]] + 0.3 * rng.normal(size=(SIZES["retain"], w.dim))
    arrays["retain__features"] = x.astype("f4")
    return with_arrays(made, **arrays)


LIKE, FLAT, HELD = (
    np.array(p) for p in ([0.01, 0.1, 0.7, 0.1, 0.09], [0.01, 0.25, 0.24, 0.25, 0.25], [0.8, 0.02, 0.14, 0.02, 0.02])
)


@pytest.fixture(scope="module")
def retrained():
    return tuple(class_world(10 + i, LIKE) for i in range(3))


@pytest.mark.parametrize("classifier", [True, False])
def test_a_class_that_was_refused_is_told_from_one_that_was_never_seen(classifier):
    references = tuple(class_world(10 + i, LIKE, classifier=classifier) for i in range(3))
    original = class_world(1, HELD, classifier=classifier)
    flat, like = (class_world(2 + i, p, classifier=classifier) for i, p in enumerate((FLAT, LIKE)))
    refused, true = (measured(NeighborClass, original, one, references) for one in (flat, like))
    name = "neighbor_class.detection"
    assert refused[name].value < 0.1 and true[name].value == pytest.approx(0.5, abs=0.06)
    assert refused[name].oracle == pytest.approx(0.5, abs=0.03) and len(refused[name].details["oracles"]) == 3
    apart = "neighbor_class.divergence"
    assert refused[apart].value > 10 * true[apart].value and true[apart].value < 0.01


def test_the_share_does_not_hold_the_forgotten_class(retrained):
    """Planted: with the class itself among the probabilities, what it goes to instead is not compared at all."""
    held = class_world(4, HELD)
    seen = Neighbors.of(held, np.array([0]))
    assert seen.shares["forget"].shape[1] == 4 and seen.shares["forget"].sum(axis=1) == pytest.approx(1.0)
    logits = held.of("forget", "logits")[0].astype(float).tolist()
    assert seen.shares["forget"][0] == pytest.approx(reference.share_without(logits, {0}))
    assert seen.margins["forget"][0] == pytest.approx([reference.neighbor_score(logits, k) for k in range(1, 5)])
    found = measured(NeighborClass, held, class_world(5, HELD), retrained)
    assert found["neighbor_class.divergence"].value < 0.01, "the same geometry without the class"
    assert found["neighbor_class.detection"].value < 0.05, "but it is still held to be the class"


def test_members_of_the_class_are_told_by_their_neighbors(retrained):
    seen = class_world(6, LIKE)
    logits = seen.of("forget", "logits").copy()
    logits[:, 2] += 1
    sharper = with_arrays(seen, forget__logits=logits)
    original = class_world(1, HELD)
    name = "neighbor_class.members"
    told, unseen = (measured(NeighborClass, original, one, retrained)[name] for one in (sharper, seen))
    assert told.value > 0.8 and unseen.interval[0] < 0.5 < unseen.interval[1]
    alone = measured(NeighborClass, original, sharper)
    assert set(alone) == {name} and alone[name].value > 0.8


def test_a_request_that_leaves_some_of_the_class_is_not_one_for_a_class():
    """Planted: of a class that is partly retained, pictures are rightly sent to the class itself."""
    whole = class_world(7, LIKE)
    assert forgotten_classes(whole).tolist() == [0]
    y = whole.of("retain", "labels").copy()
    y[0] = 0
    partly = with_arrays(whole, retain__labels=y)
    assert not len(forgotten_classes(partly))
    found = measured(NeighborClass, partly, dataclasses.replace(partly, model="u"))
    assert [one.note for one in found.values()] == ["no class was forgotten as a whole"]
    unknown = with_arrays(whole, forget__labels=np.full(SIZES["forget"], -1))
    single = with_arrays(whole, retain__labels=np.ones(SIZES["retain"], dtype=np.int64))
    bare = with_arrays(whole, retain__labels=None)
    assert not any(len(forgotten_classes(one)) for one in (unknown, single, bare))


def test_an_encoder_has_a_column_for_each_retained_class():
    logits, columns = class_logits(class_world(8, LIKE, classifier=False), "forget")
    assert columns.tolist() == [1, 2, 3, 4] and logits.argmax(axis=1).tolist() == [1] * SIZES["forget"]
