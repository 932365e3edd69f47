"""What a procedure may not hide: criteria chosen afterwards, signals it was not observed on, a request unlike it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from efface.auditing.criteria import Criteria
from efface.auditing.evidence import Evidence
from efface.auditing.observations import Observations
from efface.auditing.pooled_placements import Rehearsal
from efface.auditing.validation import decide_with_rehearsals
from efface.auditing.verdict import judge
from efface.errors import EffaceError
from efface.reporting.recheck import require_same_verdict
from efface.runs.procedure import RehearsedProcedure

FIXED = Criteria()
SIZES = {"retain": 300, "holdout": 600, "control": 400, "test": 200}
UNSEEN = {part: np.random.default_rng(9).normal(size=(2, SIZES[part])) for part in ("holdout", "control")}


def observe(model, shifts, count, seed, name, without=()):
    """A model that shows ``count`` forgotten examples above the never-trained ones, by a shift in each space."""
    rng, arrays = np.random.default_rng(seed), {}
    for part, size in {"forget": count, **SIZES}.items():
        owner = name if part == "forget" else ""
        arrays[f"{part}/keys"] = np.array([f"{part}{owner}{number:04d}" for number in range(size)])
        arrays[f"{part}/features"] = np.random.default_rng(7).normal(size=(size, 8)).astype("f")
        for number, space in enumerate(("backbone", "projector")):
            base = UNSEEN[part][number] if part in UNSEEN else rng.normal(size=size)
            above = {"forget": shifts[number], "retain": 2.5}.get(part, 0.0)
            arrays[f"{part}/{space}.margin"] = (base + above + 0.05 * rng.normal(size=size)).astype("f")
            arrays[f"{part}/{space}.pairs"] = np.clip(0.5 + 0.1 * rng.normal(size=(size, 3)), 0, 1).astype("f")
    kept = {key: value for key, value in arrays.items() if key.split("/")[1] not in without}
    return Observations(model, "s" * 64, kept, {"spaces": ["backbone", "projector"], "random": True})


ORIGINAL = observe("o" * 64, (2.5, 2.5), 25, 1, "real")
BEFORE = Rehearsal(observe("o" * 64, (2.5, 2.5), 1000, 5, "all"))


def request(shifts, count=25):
    """The evidence of one real request."""
    original = ORIGINAL if count == 25 else observe("o" * 64, (2.5, 2.5), count, 1, "real")
    return Evidence(original, observe("u" * 64, shifts, count, 2, "real"))


def procedure(shifts, count=25, requests=40, before=BEFORE, without=()):
    """A procedure that leaves a shift in each space on every rehearsed request."""
    made = [observe(f"m{n}", shifts, count, 10 + n, f"set{n}-", without) for n in range(requests)]
    return RehearsedProcedure(before, tuple(Rehearsal(one) for one in made), f"{count} random examples")


def word_of(rehearsed, evidence, criteria=FIXED, fixed=FIXED):
    """The combined word and its exit code."""
    direct = judge(evidence, criteria, fixed=fixed)
    found = decide_with_rehearsals(direct, rehearsed.judge(evidence, criteria, fixed))
    return found.word, found.exit_code


@pytest.fixture(scope="module")
def clean():
    """A procedure that leaves nothing."""
    return procedure((0, 0))


def test_a_procedure_that_leaves_nothing_is_validated(clean):
    assert word_of(clean, request((0, 0))) == ("validated", 0)


@pytest.mark.parametrize(
    ("shifts", "chosen"),
    [((0.45, 0.45), Criteria(delta=0.2)), ((0, 1.5), Criteria(signals=("backbone.margin",)))],
    ids=["a wider delta", "the clean signal alone"],
)
def test_criteria_that_were_chosen_afterwards_validate_nothing(shifts, chosen):
    """Planted: rehearsals that are judged by the changed criteria alone."""
    leaves, evidence = procedure(shifts), request(shifts)
    assert word_of(leaves, evidence)[1] == 3
    assert word_of(leaves, evidence, chosen) == ("inconclusive", 4)
    assert word_of(leaves, evidence, chosen, fixed=chosen) == ("validated", 0), "as it would be, had they been fixed"


def test_other_criteria_validate_what_the_fixed_ones_do_too(clean):
    assert word_of(clean, request((0, 0)), Criteria(delta=0.06)) == ("validated", 0)


@pytest.mark.parametrize("without", [("projector.margin",), ("projector.margin", "projector.pairs")])
def test_a_deciding_signal_that_rehearsals_were_not_observed_on_is_missing(without):
    """Planted: the signal that shows the leak is left out of the stored scores, and the others decide."""
    evidence = request((0, 0.35))
    assert word_of(procedure((0, 1.5)), evidence)[1] == 3
    stripped = procedure((0, 1.5), without=without)
    assert word_of(stripped, evidence) == ("inconclusive", 4)
    rehearsed = stripped.judge(evidence, FIXED)
    assert ("signals", "missing") in [(one.name, one.word) for one in rehearsed.controls]
    only_before = replace(procedure((0, 0)), before=Rehearsal(observe("o", (2.5, 2.5), 1000, 5, "all", without)))
    assert word_of(only_before, request((0, 0))) == ("inconclusive", 4)


@pytest.mark.parametrize("without", ["backbone.pairs", "projector.pairs"])
def test_a_control_of_rehearsals_that_cannot_be_made_is_missing(without):
    found = procedure((0, 0), without=(without,)).judge(request((0, 0)), FIXED)
    assert ("alignment", "missing") in [(one.name, one.word) for one in found.controls]
    assert found.word == "inconclusive"


@pytest.mark.parametrize(("shifts", "word"), [((0, 0), "validated"), ((2.5, 2.5), "inconclusive")])
def test_a_request_of_an_exact_run_must_look_like_what_the_models_of_a_bank_left_out(shifts, word):
    """Planted: six examples that an "exact" model remembers as before, beside halves that never saw theirs."""
    halves = procedure((0, 0), count=300, requests=8, before=None)
    assert word_of(halves, request(shifts, 6))[0] == word


def test_a_record_of_an_older_release_that_compared_nothing_says_so(clean):
    """Its word does not follow any more: the request itself was not looked at."""
    evidence = request((0, 0))
    direct = judge(evidence, FIXED, fixed=FIXED)
    verdict = decide_with_rehearsals(direct, clean.judge(evidence, FIXED, FIXED))
    record = SimpleNamespace(verdict=verdict, schema_version=3, observations={}, checkpoints={})
    require_same_verdict(Path("run"), record, {})
    record.verdict = replace(verdict, rehearsed=replace(verdict.rehearsed, release=()))
    with pytest.raises(EffaceError, match="older releases left that out") as caught:
        require_same_verdict(Path("run"), record, {})
    assert "efface audit" in caught.value.remedy
