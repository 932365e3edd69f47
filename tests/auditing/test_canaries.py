"""Canaries: the bound against a reference implementation, coins that stay secret, guesses that do not peek."""

import json
import math
import stat
import subprocess
import sys

import numpy as np
import pytest

import efface
from efface.auditing.attacks import canary_guessing
from efface.auditing.attacks.canary_bound import count_needed_guesses, lower_bound, p_value, perfect_guess_bound
from efface.auditing.observations import Observations
from efface.data import canaries
from efface.errors import EffaceError
from efface.runs.canary_plan import plan_canaries
from tests.reference import canaries as reference

KEYS = [f"item/{i:04d}" for i in range(400)]


@pytest.mark.parametrize(("m", "r", "v"), [(20, 20, 15), (40, 10, 10), (40, 12, 5), (9, 9, 0), (30, 30, 1)])
@pytest.mark.parametrize("delta", [0.0, 1e-3])
def test_the_p_value_equals_the_reference_implementation(m, r, v, delta):
    for epsilon in (0.0, 0.3, 1.0, 4.0):
        assert p_value(m, r, v, epsilon, delta) == pytest.approx(reference.p_value(m, r, v, epsilon, delta), abs=1e-9)


@pytest.mark.parametrize(("m", "r", "v", "delta"), [(60, 40, 33, 0.0), (60, 40, 33, 1e-4), (25, 25, 25, 1e-3)])
def test_the_bound_equals_the_reference_implementation(m, r, v, delta):
    assert lower_bound(m, r, v, 0.95, delta) == pytest.approx(reference.lower_bound(m, r, v, 0.05, delta), abs=2e-3)


@pytest.mark.parametrize("m", [10, 100, 1000])
def test_perfect_guesses_give_the_known_ceiling(m):
    q = 0.05 ** (1 / m)
    assert perfect_guess_bound(m) == pytest.approx(math.log(q / (1 - q)), abs=1e-5)
    assert count_needed_guesses(perfect_guess_bound(m) - 1e-4) == m


def test_chance_proves_nothing_and_more_right_proves_more():
    assert lower_bound(100, 100, 50) == 0 and lower_bound(100, 100, 0) == 0
    bounds = [lower_bound(300, 100, v) for v in range(50, 101, 10)]
    assert bounds == sorted(bounds) and bounds[-1] > 2
    assert lower_bound(100, 100, 80, delta=1e-3) < lower_bound(100, 100, 80)
    assert lower_bound(100, 100, 80, level=0.99) < lower_bound(100, 100, 80, level=0.9)


def test_the_bound_holds_for_randomized_response():
    rng, epsilon, m = np.random.default_rng(0), 1.0, 200
    right = rng.binomial(m, 1 / (1 + math.exp(-epsilon)), 4000)
    exceeding = {int(v): lower_bound(m, m, int(v)) > epsilon for v in np.unique(right)}
    over = np.mean([exceeding[int(v)] for v in right])
    assert 0.02 < over <= 0.06  # 5 % at most, and not much less: the bound is sharp here


def test_impossible_counts_are_refused():
    for m, r, v, epsilon, delta in ((5, 6, 1, 1, 0), (5, 4, 5, 1, 0), (5, 5, 5, -1, 0), (5, 5, 5, 1, 2)):
        with pytest.raises(EffaceError, match="impossible"):
            p_value(m, r, v, epsilon, delta)


# ---- plans ----


def test_coins_are_fair_and_different_each_time_unless_seeded():
    one, other = canaries.draw_coins(KEYS), canaries.draw_coins(KEYS)
    assert one.included != other.included
    assert 140 < len(one.split_keys()[0]) < 260
    assert canaries.draw_coins(KEYS, 50, seed=3).included == canaries.draw_coins(KEYS, 50, seed=3).included
    assert len(canaries.draw_coins(KEYS, 50).included) == 50


def test_a_plan_tells_no_coin_and_cannot_be_changed_afterwards(tmp_path):
    coins = canaries.draw_coins(KEYS, 60)
    made = canaries.write_canary_plan(tmp_path / "p", coins)
    public = json.loads((tmp_path / "p" / canaries.PUBLIC).read_text())
    assert set(public) == {"format", "keys", "guesses", "commitment", "data"} and made.guesses == 20
    assert public["keys"] == sorted(coins.included)
    for secret in (canaries.COINS, canaries.INCLUDED, canaries.EXCLUDED):
        assert stat.S_IMODE((tmp_path / "p" / secret).stat().st_mode) == 0o600
    assert canaries.read_coins(tmp_path / "p").included == coins.included
    path = tmp_path / "p" / canaries.COINS
    path.write_text(path.read_text().replace("true", "false", 1))
    with pytest.raises(EffaceError, match="prove nothing"):
        canaries.read_coins(tmp_path / "p")
    with pytest.raises(EffaceError, match="never drawn again"):
        canaries.write_canary_plan(tmp_path / "p", coins)


@pytest.mark.parametrize(("count", "guesses"), [(5, None), (500, None), (60, 7), (60, 80), (60, 0)])
def test_plans_that_cannot_be_are_refused(tmp_path, count, guesses):
    with pytest.raises(EffaceError):
        canaries.write_canary_plan(tmp_path / "p", canaries.draw_coins(KEYS, count), guesses)


def test_a_split_trains_on_the_included_and_never_on_the_excluded(tmp_path):
    data = efface.load("digits", limit=400)
    coins = canaries.draw_coins(data.keys.tolist(), 60)
    canaries.write_canary_plan(tmp_path / "p", coins, data=data.digest())
    split = efface.split(data, train=150, valid=40, holdout=60, test=60, canaries=str(tmp_path / "p"))
    inside, outside = (set(side) for side in coins.split_keys())
    assert inside <= set(data.keys[split.retain].tolist()) and len(split.retain) == 150 + len(inside)
    assert outside <= set(data.keys[split.holdout].tolist()) and len(split.holdout) == 60 + len(outside)
    elsewhere = set(data.keys[np.concatenate([split.valid, split.test])].tolist())
    assert not elsewhere & (inside | outside)
    with pytest.raises(EffaceError, match="are not in the data"):
        efface.split(efface.load("digits", limit=20), train=5, valid=5, holdout=5, test=5, canaries=str(tmp_path / "p"))


# ---- guesses ----


def seen(coins, gain, seed=0, model="m"):
    """Observations in which included canaries (the forget set) score ``gain`` higher."""
    rng, arrays = np.random.default_rng(seed), {}
    inside, outside = coins.split_keys()
    parts = {"forget": inside, "holdout": [*outside[::2], "other"], "spare": outside[1::2], "retain": ["x", "y"]}
    for part, keys in parts.items():
        arrays[f"{part}/keys"] = np.array(keys)
        arrays[f"{part}/projector.margin"] = rng.normal(size=len(keys)) + (gain if part == "forget" else 0)
        arrays[f"{part}/backbone.margin"] = rng.normal(size=len(keys))
    return Observations(model, "s", arrays, {"spaces": ["backbone", "projector"]})


def found(gain, **more):
    coins = canaries.draw_coins(KEYS, 300, seed=1)
    public = canaries.CanaryPlan(tuple(coins.included), 100, "", "")
    made = canary_guessing.canary_findings(public, coins, seen(coins, 9.0, model="o"), seen(coins, gain, 1), **more)
    return {one.name: one for one in made}


def test_the_bound_follows_what_is_left():
    strong, nothing = found(9.0), found(0.0)
    assert strong["canaries.projector.margin.right"].value == 1
    assert strong["canaries.projector.margin.epsilon"].value == pytest.approx(perfect_guess_bound(300, 100), abs=1e-5)
    assert nothing["canaries.projector.margin.epsilon"].value == 0
    assert nothing["canaries.projector.margin.epsilon"].original == pytest.approx(
        perfect_guess_bound(300, 100), abs=1e-5
    )
    assert found(9.0, signal="backbone.margin")["canaries.backbone.margin.epsilon"].value < 1


def test_guesses_depend_on_scores_and_not_on_parts():
    coins = canaries.draw_coins(KEYS, 300, seed=1)
    public = canaries.CanaryPlan(tuple(coins.included), 100, "", "")
    flipped = canaries.InclusionCoins({key: not one for key, one in coins.included.items()})
    values = np.random.default_rng(5).normal(size=300)
    guesses = canary_guessing.guess_inclusion(values, public)
    assert sum(guesses.values()) == 50 and len(guesses) == 100
    a, b = (canary_guessing.reveal_coins(guesses, public, c).right for c in (coins, flipped))
    assert a + b == 100
    constant = canary_guessing.reveal_coins(canary_guessing.guess_inclusion(np.zeros(300), public), public, coins)
    assert constant.epsilon == 0 and 30 < constant.right < 70


def test_chance_guesses_are_rarely_called_a_leak():
    coins = canaries.draw_coins(KEYS, 300, seed=1)
    public = canaries.CanaryPlan(tuple(coins.included), 100, "", "")
    bounds = [
        canary_guessing.reveal_coins(
            canary_guessing.guess_inclusion(np.random.default_rng(i).normal(size=300), public), public, coins
        ).epsilon
        for i in range(300)
    ]
    assert np.mean(np.array(bounds) > 0) <= 0.08


def test_a_canary_that_was_not_observed_is_an_error():
    coins = canaries.draw_coins(KEYS, 300, seed=1)
    public = canaries.CanaryPlan((*coins.included, "zzz"), 100, "", "")
    with pytest.raises(EffaceError, match="1 of 301 canaries were not observed"):
        canary_guessing.score_canaries(seen(coins, 1.0), public.keys, "projector.margin")


def test_planning_from_a_source_and_from_a_file_of_keys(tmp_path):
    settings = {"data": {"source": "digits", "limit": 100}}
    made = plan_canaries(tmp_path / "a", settings, count=40)
    assert made.coins == 40 and made.guesses == 14 and made.ceiling == pytest.approx(perfect_guess_bound(40, 14))
    keys = canaries.read_canary_plan(tmp_path / "a").keys
    (tmp_path / "keys.txt").write_text("\n".join(keys[:20]))
    again = plan_canaries(tmp_path / "b", settings, keys=str(tmp_path / "keys.txt"))
    assert canaries.read_canary_plan(tmp_path / "b").keys == keys[:20] and again.coins == 20
    with pytest.raises(EffaceError, match="how many canaries"):
        plan_canaries(tmp_path / "c", settings)
    with pytest.raises(EffaceError, match="no other settings"):
        plan_canaries(tmp_path / "c", {"data": {"source": "digits"}, "seed": 1}, count=20)


def test_planning_needs_no_torch(tmp_path):
    code = "import sys; from efface.runs import canary_plan; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
