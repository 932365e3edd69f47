"""The verdict in worlds where the truth is known: how often it gives each answer."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from efface import stats
from efface.auditing import signals
from efface.auditing.criteria import Criteria
from efface.auditing.evidence import Evidence
from efface.auditing.verdict import Verdict, judge, needed_examples
from efface.auditing.verdict_sentence import has_few_examples
from efface.errors import EffaceError
from tests.worlds import World, with_arrays

LARGE: dict[str, Any] = {"forget": 1500, "retain": 300, "holdout": 2000}


def words(make, runs=20, **sizes) -> Counter:
    """Count the words of the verdicts over ``runs`` worlds."""
    said: Counter = Counter()
    for seed in range(runs):
        verdict = judge(make(World(seed, **sizes)))
        check(verdict)
        said[verdict.word] += 1
    return said


def check(verdict: Verdict) -> None:
    """Check what holds for every verdict."""
    text = " ".join([verdict.sentence, *verdict.limits])
    assert not re.search("verified|guarantee|complian|certif", text, re.IGNORECASE)
    assert "δ = 0.05" in verdict.sentence and f"threat model {verdict.level}" in verdict.sentence
    assert all(limit.endswith(".") for limit in verdict.limits) and "nan" not in text
    assert all(one.low < one.value < one.high for one in verdict.signals)
    assert verdict.exit_code == {"removed": 0, "residue": 3, "over-forgotten": 3}.get(
        verdict.word, 5 if verdict.utility_lost else 4
    )


def subject(world, gain, **more):
    return world.model("u", {"retain": 1.0, "forget": gain}, **more)


def at_a0(gain):
    return lambda w: Evidence(w.original(), subject(w, gain))


def at_a1(gain, oracles=2):
    return lambda w: Evidence(w.original(), subject(w, gain), tuple(w.oracle(i) for i in range(oracles)))


# ---- how often ----


def test_the_untouched_model_is_residue():
    def untouched(w):
        original = w.original()
        return Evidence(original, original)

    assert words(untouched, **LARGE) == {"residue": 20}
    assert words(at_a1(1.0), **LARGE) == {"residue": 20}


@pytest.mark.parametrize("make", [at_a0(0.0), at_a1(0.0, 1), at_a1(0.0, 3)])
def test_an_exchangeable_subject_is_removed_when_there_are_enough_examples(make):
    said = words(make, **LARGE)
    assert said["removed"] >= 17 and said["residue"] + said["over-forgotten"] == 0


def test_an_exchangeable_subject_is_seldom_called_anything_else_when_there_are_few():
    said = words(at_a1(0.0, 2), runs=150, forget=60, retain=100, holdout=120)
    assert said["residue"] + said["over-forgotten"] <= 15  # a 5 % error; and at AUC 0.5 it is smaller
    assert said["inconclusive"] >= 135


def test_on_the_margin_the_error_is_held():
    """AUC exactly 0.5 + δ on two signals: "removed" and "residue" are both wrong, each at most alpha."""
    gain = 2**0.5 * 0.12566  # scores have variance 0.75 + 0.5**2 = 1, and Phi(0.12566) = 0.55
    said: Counter = Counter()
    for seed in range(150):
        w = World(seed, hardness=0.75**0.5, forget=400, retain=60, holdout=500, test=40, valid=0)
        said[judge(Evidence(w.original(), subject(w, gain))).word] += 1
    assert said["residue"] <= 16 and said["removed"] <= 16
    assert said["inconclusive"] > 110


@pytest.mark.parametrize("make", [at_a0(-0.6), at_a1(-0.4)])
def test_standing_out_downwards_is_over_forgotten(make):
    assert words(make, runs=10, **LARGE) == {"over-forgotten": 10}


@pytest.mark.parametrize(("make", "forget"), [(at_a0(0.0), 1), (at_a0(0.0), 5), (at_a1(0.0), 20)])
def test_few_examples_are_inconclusive(make, forget):
    said = words(make, runs=15, forget=forget, retain=200, holdout=1000)
    assert said["removed"] == 0 and said["inconclusive"] >= 13


def test_a_little_residue_that_hardness_hides_at_a0_shows_at_a1():
    sizes = {"forget": 800, "retain": 100, "holdout": 1500, "hardness": 4.0}
    assert words(at_a0(0.4), runs=8, **sizes)["residue"] == 0
    assert words(at_a1(0.4, 3), runs=8, **sizes)["residue"] == 8


# ---- power first ----


def test_without_power_the_answer_is_inconclusive_whatever_the_subject():
    def blind(w):
        return Evidence(w.model("original", {}), subject(w, 0.0))

    verdict = judge(blind(World(0, **LARGE)))
    check(verdict)
    assert verdict.word == "inconclusive"
    assert "cannot see these examples even before unlearning" in verdict.sentence
    verdict = judge(Evidence(World(0, **LARGE).model("original", {}), World(0, **LARGE).original()))
    assert verdict.word == "inconclusive"
    assert "stands out on backbone.margin, projector.margin" in " ".join(verdict.limits)


def test_power_is_the_low_end_of_the_95_percent_interval():
    close = set()
    for seed in range(40):
        w = World(seed, hardness=0.75**0.5, forget=200, retain=60, holdout=400, test=40, valid=0)
        original = w.model("original", {"forget": 0.38})
        criteria = Criteria(signals=("backbone.margin",))
        (one,) = judge(Evidence(original, w.oracle()), criteria).signals
        assert one.powered == (one.power[1] > 0.55)
        assert one.powered == (stats.one_sided_p_values(*placed(original), 0.55)[0] < 0.025)
        close.add(one.powered)
        both = judge(Evidence(original, w.oracle())).signals
        assert not any(s.powered for s in both) or max(s.power[1] for s in both) > 0.55
    assert close == {True, False}


def placed(observed):
    """DeLong components of the raw backbone margin."""
    return stats.placements(*(signals.scores(observed, p, "backbone.margin") for p in ("forget", "holdout")))


def hiding(world, name, gain, where):
    """A model whose ``where`` shows ``gain`` on the forget set while the other space shows nothing."""
    shown, clean = world.model(name, {"retain": 1.0, "forget": gain}), world.model(name, {"retain": 1.0})
    arrays = dict(clean.arrays)
    arrays |= {key: value for key, value in shown.arrays.items() if f"/{where}." in key}
    return dataclasses.replace(clean, arrays=arrays)


@pytest.mark.parametrize("where", ["backbone", "projector"])
def test_hiding_in_one_space_is_not_enough(where):
    w = World(1, **LARGE)
    verdict = judge(Evidence(w.original(), hiding(w, "u", 1.0, where)))
    assert verdict.word == "residue" and f"{where}.margin" in verdict.sentence
    assert {one.signal: one.word for one in verdict.signals}[f"{where}.margin"] == "residue"


def test_a_signal_without_power_is_named_but_must_still_be_equivalent():
    w = World(2, **LARGE)
    original = hiding(w, "original", 1.0, "projector")
    verdict = judge(Evidence(original, subject(w, 0.0)))
    assert verdict.word == "removed"
    assert "Without power in the original, so adding nothing: backbone.margin" in verdict.sentence
    assert any("backbone.margin has no power" in limit for limit in verdict.limits)
    assert judge(Evidence(original, hiding(w, "u", 1.0, "backbone"))).word == "residue"


def test_a_classifier_is_judged_on_its_logits_too():
    w = World(3, classifier=True, **LARGE)
    verdict = judge(Evidence(w.original(projector=False), subject(w, 0.0, projector=False)))
    assert [one.signal for one in verdict.signals] == ["backbone.margin", "logits.margin"]


# ---- the utility gate ----


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("make", [at_a0, at_a1])
def test_a_collapsed_subject_never_reads_as_removed(make, labelled):
    def collapsed(w):
        found = make(0.0)(w)
        return dataclasses.replace(found, subject=subject(w, 0.0, collapsed=True))

    said = words(collapsed, runs=6, labelled=labelled, **LARGE)
    assert said["removed"] == 0 and said["removed, utility lost"] >= 3


def test_constant_scores_are_a_collapse_even_where_features_are_not():
    w = World(4, **LARGE)
    arrays = dict(subject(w, 0.0).arrays)
    for part in ("forget", "holdout"):
        arrays[f"{part}/backbone.margin"] = np.full(w.sizes[part], 0.3, dtype=np.float32)
    verdict = judge(Evidence(w.original(), dataclasses.replace(subject(w, 0.0), arrays=arrays)))
    assert verdict.word == "removed, utility lost" and "collapsed" in verdict.sentence


@pytest.mark.parametrize("blur", [0.3, 8.0])
def test_lost_accuracy_is_said(blur):
    w = World(5, **LARGE)
    verdict = judge(Evidence(w.original(), subject(w, 0.0, blur=blur)))
    check(verdict)
    assert verdict.word == ("removed" if blur < 1 else "removed, utility lost")
    assert verdict.utility_drop is not None
    assert (verdict.utility_drop > 0.05) == (blur > 1) == ("kNN accuracy" in verdict.sentence)


def test_without_labels_the_gate_is_collapse_and_cka():
    w = World(6, labelled=False, **LARGE)
    assert judge(Evidence(w.original(), subject(w, 0.0))).utility_drop is None
    strange = subject(w, 0.0)
    strange.arrays["test/features"] = np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32)
    verdict = judge(Evidence(w.original(), strange))
    assert verdict.word == "removed, utility lost" and "CKA" in verdict.sentence


def test_no_features_no_verdict():
    w = World(7)
    bare = {name: x for name, x in w.original().arrays.items() if not name.endswith("features")}
    original = dataclasses.replace(w.original(), arrays=bare)
    with pytest.raises(EffaceError, match="no features of any never-trained part"):
        judge(Evidence(original, original))


# ---- what it needs, and what it refuses ----


def test_an_oracle_is_judged_against_the_others_and_alone_at_a0():
    w = World(8, **LARGE)
    oracles = [w.oracle(i) for i in range(3)]
    assert judge(Evidence(w.original(), oracles[0], tuple(oracles[1:]))).level == "A1"
    alone = judge(Evidence(w.original(), oracles[0]))
    assert alone.level == "A0" and any("no model was at hand" in limit for limit in alone.limits)
    with pytest.raises(EffaceError, match="says nothing about itself"):
        judge(Evidence(w.original(), oracles[0], tuple(oracles)))


def test_needed_is_given_where_more_would_decide():
    verdict = judge(at_a0(0.0)(World(9, forget=80, retain=200, holdout=1000)))
    assert verdict.word == "inconclusive"
    open_ = [one for one in verdict.signals if one.word == "inconclusive"]
    both = stats.needed_n(0.05, 1000, power=0.8 ** (1 / len(verdict.signals)))
    assert {one.needed for one in open_} == {both}
    assert f"about {open_[0].needed} forget examples" in verdict.sentence
    small = judge(at_a0(0.0)(World(9, forget=80, retain=200, holdout=150)))
    assert "no number of forget examples would decide" in small.sentence or small.word != "inconclusive"


def test_numbers_are_those_of_the_statistics():
    w = World(10)
    found = at_a1(0.0)(w)
    one = judge(found).signals[0]
    sides = [
        signals.calibrated_scores(found.subject, found.oracles, p, "backbone.margin") for p in ("forget", "holdout")
    ]
    assert (one.value, one.low, one.high) == stats.delong(sides[0], sides[1], 0.90)
    assert one.reference == 0.5
    sides = [
        signals.calibrated_scores(found.original, found.oracles, p, "backbone.margin") for p in ("forget", "holdout")
    ]
    value, low, high = stats.delong(sides[0], sides[1], 0.95)
    assert one.power[0] == value and one.power[1] <= low and one.power[2] >= high
    alone = judge(found, Criteria(signals=("backbone.margin",))).signals[0]  # nothing to correct for
    assert alone.power == (value, low, high) and alone.corrected == (alone.low, alone.high)


@pytest.mark.parametrize("effect", [0.0, 0.15, 0.25, 0.3, 0.4, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_shown_interval_decides_as_the_verdict_does(effect: float, seed: int):
    """Where a whisker lies wholly outside the margin, the word says so; where it does not, the word does not."""
    for sizes in ({"forget": 30, "holdout": 40}, {"forget": 150, "holdout": 200}):
        for one in judge(at_a0(effect)(World(seed, retain=200, **sizes))).signals:
            low, high = one.deciding
            assert (one.word == "residue") == (one.word != "removed" and low > 0.55)
            assert (one.word == "over-forgotten") == (one.word != "removed" and high < 0.45)
            assert (one.word == "removed") == (one.low > 0.45 and one.high < 0.55)
            assert one.powered == (one.power[1] > 0.55)
            assert one.corrected is not None and one.corrected[0] <= one.low and one.high <= one.corrected[1]


def test_too_few_examples_are_not_a_blind_attack():
    few = judge(at_a0(1.0)(World(2, forget=6, holdout=10, retain=200)))
    assert has_few_examples(few.signals, few.delta) and few.word == "inconclusive"
    assert "too few examples to tell" in few.sentence and "cannot see" not in few.sentence
    world = World(2, forget=900, holdout=1200, retain=300)
    blind = judge(Evidence(world.model("original", {"retain": 1.0}), world.model("subject", {"retain": 1.0})))
    assert not has_few_examples(blind.signals, blind.delta) and "cannot see" in blind.sentence


@pytest.mark.parametrize("wrong", [{"delta": 0.0}, {"delta": 0.5}, {"alpha": 1.0}, {"signals": ()}])
def test_criteria_that_decide_nothing_are_refused(wrong):
    with pytest.raises(EffaceError):
        Criteria(**wrong)


def test_chosen_signals_and_unknown_ones():
    found = at_a0(0.0)(World(11))
    assert [s.signal for s in judge(found, Criteria(signals=("gradient_norm",))).signals] == ["gradient_norm"]
    with pytest.raises(EffaceError, match="Did you mean 'gradient_norm'"):
        judge(found, Criteria(signals=("gradientnorm",)))


def test_a_wider_resolution_decides_sooner():
    sizes: dict[str, Any] = {"forget": 300, "retain": 200, "holdout": 600}
    found = [at_a1(0.0)(World(seed, **sizes)) for seed in range(6)]
    assert sum(judge(f, Criteria(delta=0.15)).word == "removed" for f in found) >= 5
    assert sum(judge(f).word == "removed" for f in found) < 5


# ---- the control: an attack that was blinded ----


def blurred(world, observed, size):
    """The same model behind a noisy output: every margin moves, the truth does not."""
    arrays = dict(observed.arrays)
    for name, values in observed.arrays.items():
        if name.endswith(".margin"):
            arrays[name] = values + size * world.rng.normal(size=len(values))
    return dataclasses.replace(observed, model="blurred", arrays=arrays)


@pytest.mark.parametrize("level", ["A0", "A1"])
def test_noise_on_the_output_is_not_removal(level):
    """The model still holds everything: only the attack is blinded, for the retained as well."""

    def noisy(w):
        oracles = (w.oracle(1), w.oracle(2)) if level == "A1" else ()
        return Evidence(w.original(), blurred(w, w.original(), 40.0), oracles)

    said = words(noisy, 10, hardness=0.3, **LARGE)
    assert said["removed"] == 0 and said["inconclusive"] >= 8
    verdict = judge(noisy(World(0, hardness=0.3, **LARGE)))
    assert "blinded" in verdict.sentence and any("Blinded" in limit for limit in verdict.limits)
    assert all(one.word == "removed" and one.blinded for one in verdict.signals)


@pytest.mark.parametrize("make", [at_a0(0.0), at_a1(0.0)])
def test_the_control_costs_an_oracle_nothing(make):
    said = words(make, 20, hardness=0.3, **LARGE)
    assert said["removed"] >= 16


def test_without_a_working_control_nothing_is_blinded():
    """Where not even the original shows its retained examples, that the subject does not proves nothing."""
    w = World(0, hardness=0.3, **LARGE)
    original = w.model("original", {"forget": 1.0, "retain": 0.0})
    verdict = judge(Evidence(original, w.model("u", {"forget": 0.0, "retain": 0.0})))
    assert verdict.word == "removed"
    assert all(one.retained is None and not one.blinded for one in verdict.signals)
    bare = [with_arrays(o, **{f"retain__{n.split('/')[1]}": None for n in o.arrays if n.startswith("retain/")
                              and n.endswith(".margin")}) for o in (original, w.model("v", {}))]  # fmt: skip
    assert all(one.retained is None for one in judge(Evidence(bare[0], bare[1])).signals)


def test_more_signals_need_more_examples_and_the_number_said_does_decide():
    """With two signals that must both lie inside, the n of one would decide less than four times in five."""
    one, two = (needed_examples(20, 1000, 0.5, Criteria(), count) for count in (1, 2))
    assert one is not None and two is not None and one == 400 < two < 700
    said = words(at_a1(0.0), 25, hardness=0.3, forget=two, retain=300, holdout=1000)
    assert said["removed"] >= 15
