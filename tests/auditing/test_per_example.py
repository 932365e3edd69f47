"""Residual memorization of single examples and exposure of the others, in worlds where both are known."""

from __future__ import annotations

import numpy as np
import pytest

from efface.auditing.attacks.residuals import Residuals, discoveries, p_values
from efface.auditing.audits.per_example import PerExample
from efface.auditing.evidence import Evidence
from tests.worlds import World, by_name, with_arrays

SIGNAL = "backbone.margin"
LARGE = {"forget": 200, "retain": 200, "holdout": 400, "test": 5, "valid": 0}


def remembers(observed, part, rows, gain):
    """Return the model with ``gain`` more memory of some rows of a part."""
    scores = observed.of(part, SIGNAL).copy()
    scores[rows] += gain
    return with_arrays(observed, **{f"{part}__{SIGNAL}": scores})


@pytest.fixture(scope="module")
def world():
    w = World(0, hardness=3.0, **LARGE)
    return w, tuple(w.oracle(i) for i in range(8))


def found_of(original, subject, oracles):
    return by_name(PerExample().findings(Evidence(original, subject, oracles)))


def test_an_oracle_remembers_nobody_and_the_original_all(world):
    w, oracles = world
    one = found_of(w.original(), w.model("u", {"retain": 1.0}), oracles)
    beyond, residual = one[f"per_example.{SIGNAL}.beyond"], one[f"per_example.{SIGNAL}.residual"]
    assert beyond.interval[0] < 0.05 < beyond.interval[1] and beyond.original > 0.3
    assert abs(beyond.oracle - 0.05) < 0.03
    assert abs(residual.value) < 0.15 and residual.interval[0] < residual.value < residual.interval[1]
    assert residual.original == pytest.approx(1.0, abs=0.12) and abs(residual.oracle) < 0.05
    assert beyond.details["discoveries"] <= 4


def test_the_one_that_is_still_known_is_found_however_hard_it_is(world):
    """By raw score the worst are the easiest; here the hardest example is the one that is remembered."""
    w, oracles = world
    subject = w.model("u", {"retain": 1.0})
    hardest = int(np.argmin(w.hard["forget"]))
    subject = remembers(subject, "forget", [hardest], 4.0)
    assert subject.of("forget", SIGNAL)[hardest] < np.quantile(subject.of("forget", SIGNAL), 0.5)  # the planted bug
    worst = found_of(w.original(), subject, oracles)[f"per_example.{SIGNAL}.worst"]
    rows = worst.details["worst"]
    assert len(rows) == 10 and rows[0]["item"] == subject.of("forget", "keys")[hardest]
    assert rows[0]["low"] > 1 and rows[0]["p"] < 0.01 and worst.value == rows[0]["residual"]
    ratios = [row["residual"] / (row["high"] - row["low"]) for row in rows]
    assert ratios == sorted(ratios, reverse=True)  # by what stands out most, given how noisy the example is
    assert len(worst.details["curve"]["residual"]) == 200


def test_a_shift_of_everybody_is_no_memory_of_anyone(world):
    w, oracles = world
    subject = w.model("u", {"retain": 1.0})
    moved = with_arrays(
        subject, **{f"{p}__{SIGNAL}": subject.of(p, SIGNAL) + 5.0 for p in ("forget", "holdout", "retain")}
    )
    original = w.original()
    first, second = (found_of(original, s, oracles) for s in (subject, moved))
    for name, finding in first.items():
        if SIGNAL in name and finding.value is not None:
            assert second[name].value == pytest.approx(finding.value, abs=1e-4)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_intervals_cover(count):
    """Never-trained examples fall outside in one case of twenty, whatever the number of references."""
    outside, total, early = 0, 0, []
    for seed in range(12):
        w = World(seed, hardness=2.0, **LARGE)
        made = Residuals.of(w.model("u", {}, noise=1.0), tuple(w.oracle(i, noise=0.3) for i in range(count)), SIGNAL)
        outside += int((np.abs(made.forget) > made.half_width * made.scale).sum())
        total += len(made.forget)
        early.append((made.p <= 0.05).mean())
    assert outside / total == pytest.approx(0.05, abs=0.02)
    assert np.mean(early) == pytest.approx(0.05, abs=0.02)


def test_conformal_p_against_the_loop():
    rng = np.random.default_rng(1)
    x, h = rng.normal(size=9).round(1), rng.normal(size=20).round(1)
    expected = [(1 + sum(b >= a for b in h)) / 21 for a in x]
    assert p_values(x, h) == pytest.approx(expected)
    assert p_values(np.array([9.0]), h)[0] == pytest.approx(1 / 21)  # never 0


def test_discoveries():
    assert discoveries(np.array([0.001, 0.06, 0.5, 0.9])) == 1
    assert discoveries(np.array([0.02, 0.04, 0.07, 0.09])) == 4
    assert discoveries(np.array([0.5])) == 0


def test_without_references_nothing_is_said_of_the_forgotten_but_of_the_retained(world):
    w, _ = world
    one = found_of(w.original(), w.model("u", {"retain": 1.0}), ())
    assert one[f"per_example.{SIGNAL}.beyond"].value is None
    assert f"per_example.{SIGNAL}.worst" not in one
    assert one[f"per_example.{SIGNAL}.retained.risen"].value is not None


def test_a_risen_exposure_of_the_retained_is_seen(world):
    w, oracles = world
    name = f"per_example.{SIGNAL}.retained."
    calm = found_of(w.original(), w.model("u", {"retain": 1.0}), oracles)
    assert calm[name + "risen"].interval[0] < 0.05 < calm[name + "risen"].interval[1]
    assert calm[name + "rise"].interval[0] < 0 < calm[name + "rise"].interval[1]
    some = remembers(w.model("u", {"retain": 1.0}), "retain", slice(0, 40), 4.0)
    onion = found_of(w.original(), some, oracles)
    assert onion[name + "risen"].interval[0] > 0.15 and onion[name + "risen"].details["discoveries"] > 20
    assert onion[name + "rise"].interval[0] > 0.4
    assert abs(onion[name + "risen"].oracle - 0.05) < 0.03
    spared = found_of(w.original(), w.model("u", {}), oracles)
    assert spared[name + "rise"].interval[1] < -0.7  # everybody was forgotten a little


def test_no_key_of_a_retained_example_is_told(world):
    w, oracles = world
    for finding in found_of(w.original(), w.model("u", {"retain": 1.0}), oracles).values():
        assert "retain/" not in str(finding.details)


def test_an_original_on_trial_has_no_rise(world):
    w, oracles = world
    original = w.original()
    names = found_of(original, original, oracles)
    assert not [name for name in names if "retained" in name]
