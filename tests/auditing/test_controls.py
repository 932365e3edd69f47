"""The controls of a verdict in worlds of known truth: what they catch, and how seldom they stop an honest model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from efface.auditing import controls
from efface.auditing.controls import Control, strictest, words_if_moved
from efface.auditing.criteria import Criteria
from efface.auditing.evidence import Evidence
from efface.auditing.verdict import judge, judge_signals
from tests.worlds import World, with_arrays

LARGE: dict[str, Any] = {"forget": 1500, "retain": 300, "holdout": 2000, "test": 500, "hardness": 0.3}
MATCHED = {"random": False, "matched": "class"}


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a control reads of a judged signal."""

    signal: str
    value: float
    word: str


def named(verdict) -> dict[str, Control]:
    return {one.name: one for one in verdict.controls}


def marked(observed, **meta):
    return dataclasses.replace(observed, meta=observed.meta | meta)


@pytest.mark.parametrize("level", ["A0", "A1"])
def test_a_holdout_that_was_trained_on_is_seen(level):
    """F and the holdout look alike, because the model knows both."""
    for seed in range(5):
        w = World(seed, **LARGE)
        oracles = (w.oracle(1), w.oracle(2)) if level == "A1" else ()
        subject = w.model("u", {"forget": 0.6, "holdout": 0.6, "retain": 1.0})
        verdict = judge(Evidence(w.original(), subject, oracles))
        assert all(one.word == "removed" for one in verdict.signals)
        assert verdict.word == "residue" and named(verdict)["unseen"].word == "failed"
        assert "do stand out" in verdict.sentence


def test_part_of_it_is_seen_too():
    """A quarter of F and of the holdout were trained on: less than the resolution, but the holdout tells."""
    w = World(3, **LARGE)
    half = w.model("u", {"forget": 0.15, "holdout": 0.15, "retain": 1.0})
    verdict = judge(Evidence(w.original(), half, (w.oracle(1), w.oracle(2))))
    assert verdict.word == "inconclusive" and named(verdict)["unseen"].word == "failed"


@pytest.mark.parametrize("trained", [False, True])
def test_a_matched_holdout_is_compared_with_test_examples_of_its_classes(trained):
    """F and holdout are of class 0 and 1 alone; the test part has all five, and other classes have other scores."""
    w = World(4, spare=3000, **LARGE)
    for part in ("forget", "holdout"):
        w.y[part] = w.y[part] % 2
    w.y["spare"] = 2 + w.y["spare"] % 3
    for part in w.sizes:
        w.hard[part] = w.hard[part] + 1.5 * (w.y[part] < 2)
    gain = {"forget": 0.6, "holdout": 0.6, "retain": 1.0} if trained else {"retain": 1.0}
    subject, original = marked(w.model("u", gain), **MATCHED), marked(w.original(), **MATCHED)
    found = controls.check_unseen(Evidence(original, subject), ("backbone.margin",), 0.05, 0.05)
    assert " by class" in found.note
    assert found.word == ("failed" if trained else "passed"), found.note
    fresh = controls.check_fresh(Evidence(original, subject), ("backbone.margin",), 0.05, 0.05)
    assert fresh is not None and fresh.word == ("failed" if trained else "passed")


def test_an_official_test_set_may_differ_by_itself():
    """Its pictures are harder for every model: at A0 it is compared by what changed, and F is not compared with it."""
    w = World(5, **LARGE)
    w.hard["test"] = w.hard["test"] - 1.0
    honest = marked(w.model("u", {"retain": 1.0}), official_test=True)
    verdict = judge(Evidence(w.original(), honest))
    assert verdict.word == "removed" and "fresh" not in named(verdict)
    assert judge(Evidence(w.original(), marked(honest, official_test=False))).word == "residue"
    cheat = marked(w.model("u", {"forget": 0.6, "holdout": 0.6, "retain": 1.0}), official_test=True)
    assert named(judge(Evidence(w.original(), cheat)))["unseen"].word == "failed"


def test_lowered_margins_do_not_hide_the_alignment():
    for seed in range(3):
        w = World(seed, **LARGE)
        original, taught = w.original(), w.model("u", {"retain": 1.0})
        pairs = {f"forget__{space}.pairs": original.of("forget", f"{space}.pairs") for space in taught.spaces}
        verdict = judge(Evidence(original, with_arrays(taught, **pairs), (w.oracle(1), w.oracle(2))))
        assert all(one.word == "removed" for one in verdict.signals)
        assert verdict.word == "inconclusive" and named(verdict)["alignment"].word == "failed"
        assert "views of the forgotten examples still agree more" in verdict.sentence


def test_what_cannot_be_controlled_is_not_removed():
    w = World(7, **LARGE)
    removed = w.model("u", {"retain": 1.0})
    assert judge(Evidence(w.original(), removed)).word == "removed"
    bare = {
        name: x for name, x in removed.arrays.items() if not (name.startswith("test/") and name.endswith(".margin"))
    }
    verdict = judge(Evidence(w.original(), dataclasses.replace(removed, arrays=bare)))
    assert verdict.word == "inconclusive" and named(verdict)["unseen"].word == "missing"
    verdict = judge(Evidence(w.original(), marked(removed, running_statistics=True)))
    assert verdict.word == "inconclusive" and named(verdict)["statistics"].word == "missing"
    few = World(7, **LARGE | {"test": controls.FEWEST - 1})
    assert named(judge(Evidence(few.original(), few.model("u", {"retain": 1.0}))))["unseen"].word == "missing"


def test_claimed_oracles_speak_against_and_never_for():
    w = World(8, **LARGE)
    original, residue, clean = w.original(), w.model("u", {"forget": 0.5}), w.model("v", {"retain": 1.0})
    copy = dataclasses.replace(residue, model="copy")
    for claims in (frozenset({"copy"}), frozenset()):
        word = judge(Evidence(original, residue, (copy,), claimed=claims)).word
        assert (word == "residue") == bool(claims), "a copy as its reference hides everything, if it is believed"
    stale = w.model("stale", {"forget": -0.5, "retain": 1.0})
    verdict = judge(Evidence(original, clean, (stale,), claimed=frozenset({"stale"})))
    assert verdict.word == "inconclusive" and verdict.level == "A0" and named(verdict)["claimed"].word == "failed"
    assert "never saw the forget set" not in verdict.sentence


def test_criteria_that_were_changed_need_the_fixed_ones_to_agree():
    w = World(9, **LARGE)
    leak = Evidence(w.original(), w.model("u", {"forget": 0.2, "retain": 1.0}))
    wide = Criteria(delta=0.15)
    assert judge(leak).word != "removed" == judge(leak, wide).word
    verdict = judge(leak, wide, fixed=Criteria())
    assert verdict.word == "inconclusive" and "delta: 0.15 instead of 0.05" in verdict.sentence
    clean = Evidence(w.original(), w.model("u", {"retain": 1.0}))
    assert judge(clean, wide, fixed=Criteria()).word == "removed"
    assert "fixed" not in named(judge(clean, Criteria(), fixed=Criteria()))


def test_honest_models_seldom_fail_a_control():
    """Each control may be wrong about an exchangeable model in at most α of worlds, in truth less."""
    failed = {"unseen": 0, "fresh": 0, "alignment": 0}
    for seed in range(60):
        w = World(seed, hardness=0.5, forget=300, retain=60, holdout=400, test=200, valid=0)
        verdict = judge(Evidence(w.original(), w.model("u", {"retain": 1.0}), (w.oracle(1),)))
        for name in failed:
            failed[name] += named(verdict)[name].word != "passed"
    assert failed["unseen"] <= 7 and failed["fresh"] <= 2 and failed["alignment"] <= 2, failed


def test_only_removed_is_ever_changed():
    against = Control("unseen", "missing", "inconclusive", "")
    for word in ("residue", "over-forgotten", "inconclusive", "removed, utility lost"):
        assert strictest(word, [against]) == word
    assert strictest("removed", [against]) == "inconclusive"
    assert strictest("removed", [against, Control("fresh", "failed", "residue", "")]) == "residue"
    assert strictest("removed", [Control("fresh", "passed", "residue", "")]) == "removed"


def test_the_whole_pool_is_sampled_as_the_spare_was():
    """Of 900 spare examples 300 were observed: a third of the holdout stands for it in the pool."""
    w = World(2, spare=300, **LARGE | {"holdout": 90})
    observed = marked(w.model("u", {}), **MATCHED, whole={"spare": 900})
    (_, pool, _), *_ = controls._likened(observed, "test", "holdout")
    assert {part: int(mask.sum()) for part, mask in pool} == {"holdout": 30, "spare": 300}
    assert judge_signals(Evidence(observed, observed), ("backbone.margin",), Criteria())
    rows = controls._first(observed, "holdout", np.arange(90), 30)
    assert (rows == controls._first(observed, "holdout", np.arange(90)[::-1], 30)).all(), "by key, not by place"


@pytest.mark.parametrize(
    ("moved", "word", "expected"),
    [(0.009, "inconclusive", {"removed"}), (0.011, "inconclusive", {"inconclusive"}), (0.009, "residue", {"residue"})],
)
def test_statistics_that_move_nothing_hide_nothing(moved, word, expected):
    """An interval that reaches past its bound by a hair is no sign of a hidden leak; a leak is one however small."""
    plain = [Judged("a", 0.52, "removed"), Judged("b", 0.5, "removed")]
    renewed = [Judged("a", 0.52 + moved, word), Judged("b", 0.5, "removed")]
    assert words_if_moved(plain, renewed) == expected | {"removed"}


def test_what_was_undecided_before_stays_so_with_new_statistics():
    assert words_if_moved([Judged("a", 0.53, "inconclusive")], [Judged("a", 0.53, "inconclusive")]) == {"inconclusive"}
    assert words_if_moved([], [Judged("a", 0.5, "inconclusive")]) == {"inconclusive"}
