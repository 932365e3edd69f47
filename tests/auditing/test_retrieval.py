"""Image and caption as evidence: retrieval, zero-shot accuracy, matrices of images and captions, the verdict."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from efface.auditing import representations, signals
from efface.auditing.audits import AUDITS
from efface.auditing.audits.alignment_matrix import AlignmentMatrix, cross_matrix
from efface.auditing.audits.oracle_gap import OracleGap
from efface.auditing.audits.retrieval import Retrieval
from efface.auditing.evidence import Evidence
from efface.auditing.observations import Observations
from efface.auditing.verdict import judge
from efface.errors import EffaceError
from tests.reference import clip as reference
from tests.worlds import World, by_name, with_arrays

LARGE = {"forget": 1500, "retain": 400, "holdout": 1500, "test": 400, "valid": 100}


@pytest.fixture(scope="module")
def world():
    return World(7, captioned=True)


@pytest.fixture(scope="module")
def evidence(world):
    subject = world.model("unlearned", {"retain": 1.0, "forget": 0.2})
    return Evidence(world.original(), subject, (world.oracle(1), world.oracle(2)))


def observed(images, captions, labels=None, prompts=None):
    arrays = {"test/image": np.float32(images), "test/text": np.float32(captions)}
    arrays |= {} if labels is None else {"test/labels": np.array(labels), "prompts/text": np.float32(prompts)}
    return Observations("m", "s", arrays | {"test/keys": np.array([f"{i}" for i in range(len(images))])}, {})


@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize("of_text", [False, True])
def test_recall_equals_the_reference_implementation_also_where_captions_are_the_same(k, of_text):
    rng = np.random.default_rng(0)
    u, v = rng.integers(-1, 2, (2, 14, 3)) + 0.0
    u[(u == 0).all(1)], v[(v == 0).all(1)] = 1.0, 1.0
    v[3] = v[4]
    found = representations.retrieval_recall(observed(u, v), "test", k, of_text=of_text)
    ways = (v, u) if of_text else (u, v)
    exact = [[np.round(row, 12).tolist() for row in way] for way in ways]
    # Rounding may order equal similarities differently, so only the mean over all must agree.
    assert found.mean() == pytest.approx(np.mean(reference.recall(*exact, k)), abs=0.08)
    assert ((found >= 0) & (found <= 1)).all()


def test_recall_is_one_for_pairs_that_fit_and_chance_for_a_collapsed_model():
    z = np.random.default_rng(1).normal(size=(3000, 8))
    assert representations.retrieval_recall(observed(z, z), "test", 1).mean() == 1
    same = np.ones((40, 4))
    assert representations.retrieval_recall(observed(same, same), "test", 1) == pytest.approx(np.full(40, 1 / 40))
    assert representations.mean_retrieval_recall(observed(z, z[::-1]), "test", 1) < 0.01
    assert representations.retrieval_recall(Observations("m", "s", {}, {}), "test", 1) is None


def test_zero_shot_counts_the_images_whose_class_s_name_fits_best():
    z = np.eye(3)[[0, 1, 2, 0, 1]] + 0.1
    seen = observed(z, z, [0, 1, 2, 1, -1], np.eye(3))
    assert representations.zero_shot(seen, "test") == (3, 4)
    assert representations.zero_shot(observed(z, z), "test") is None


def test_the_audit_finds_retained_pairs_and_loses_those_that_were_forgotten(evidence):
    found = by_name(Retrieval().findings(evidence))
    for way in ("image_to_text", "text_to_image"):
        kept, gone = (found[f"retrieval.{part}.{way}.recall_at_1"] for part in ("retain", "forget"))
        assert kept.value > 2 * gone.value and kept.better == "higher" and gone.better == "closer"
        assert gone.original > gone.value and abs(gone.value - gone.oracle) < 0.15
        assert "by chance 0.005" in gone.note
    for part in ("test", "retain", "forget"):
        shot = found[f"retrieval.{part}.zero_shot"]
        assert shot.interval[0] <= shot.value <= shot.interval[1] and "5 classes" in shot.note
    assert found["retrieval.retain.zero_shot"].value > 0.5


def test_without_captions_there_is_nothing_to_find(world):
    plain = World(3)
    assert Retrieval().findings(Evidence(plain.original(), plain.model("u"))) == []
    bare = with_arrays(world.original(), prompts__text=None)
    names = by_name(Retrieval().findings(Evidence(bare, dataclasses.replace(bare, model="u"))))
    assert names and not any(name.endswith("zero_shot") for name in names)


def test_every_finding_of_every_audit_is_fit_for_json(evidence):
    for audit in AUDITS.values():
        for finding in audit().findings(evidence):
            json.dumps(dataclasses.asdict(finding), allow_nan=False)


# ---- matrices of images and captions ----


def test_a_matrix_holds_the_cosine_of_each_image_and_each_caption():
    u, v = np.random.default_rng(0).normal(size=(2, 5, 3))
    matrix = cross_matrix(u, v)
    for i in range(5):
        for j in range(5):
            expected = u[i] @ v[j] / np.sqrt((u[i] @ u[i]) * (v[j] @ v[j]))
            assert matrix[i, j] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(EffaceError, match="cannot be computed"):
        cross_matrix(u, v[:3])


def test_the_forget_score_of_pairs_is_the_mean_drop_of_the_diagonal(evidence):
    found = by_name(AlignmentMatrix().findings(evidence))["alignment_matrix.pair.forget_score"]
    diagonals = [
        np.diag(cross_matrix(o.of("forget", "image"), o.of("forget", "text"))).mean() for _, o, _ in evidence.models()
    ]
    subject, original, *oracles = diagonals
    assert found.value == pytest.approx(original - subject)
    assert found.value > 0 and found.interval[0] <= found.value <= found.interval[1]
    assert found.oracle == pytest.approx(original - np.mean(oracles))
    details = found.details
    change = np.array(details["before"]) - np.array(details["after"])
    np.testing.assert_allclose(change, details["change"], atol=2e-4)
    assert change.shape == (40, 40) and len(details["keys"]) == 40


# ---- the verdict ----


def test_the_pair_is_what_the_verdict_of_an_image_text_model_rests_on(world):
    assert signals.prespecified_signals(world.original()) == ("backbone.margin", "pair.margin")
    assert signals.prespecified_signals(World(3).original()) == ("backbone.margin", "projector.margin")
    assert {"pair.margin", "pair.similarity"} <= set(signals.available_signals(world.original()))


def judged(gain, **more):
    w = World(9, captioned=True, hardness=0.3, **LARGE)
    return judge(Evidence(w.original(), w.model("u", {"retain": 1.0, **gain}, **more), (w.oracle(1), w.oracle(2))))


def test_pairs_that_look_never_trained_on_are_removed_and_pairs_that_still_fit_are_residue():
    assert judged({}).word == "removed"
    assert judged({"forget": 0.8}).word == "residue"
    assert judged({"forget": -0.8}).word == "over-forgotten"


def test_a_trace_in_the_pair_alone_is_residue():
    w = World(9, captioned=True, hardness=0.3, **LARGE)
    clean, original = w.model("u", {"retain": 1.0}), w.original()
    hidden = with_arrays(clean, forget__pair_margin=None)
    arrays = dict(hidden.arrays) | {"forget/pair.margin": original.of("forget", "pair.margin")}
    verdict = judge(Evidence(original, dataclasses.replace(hidden, arrays=arrays), (w.oracle(1), w.oracle(2))))
    assert verdict.word == "residue"
    assert {one.signal: one.word for one in verdict.signals}["backbone.margin"] == "removed"


def test_a_text_tower_that_was_ruined_is_no_success():
    """The images' features are as they were, so neighbors still vote right; but no caption finds its image."""
    w = World(10, captioned=True, hardness=0.3, **LARGE)
    clean = w.model("u", {"retain": 1.0, "test": 1.0})
    original = w.model("original", {"forget": 1.0, "retain": 1.0, "test": 1.0})
    for ruined, word in ((False, "removed"), (True, "removed, utility lost")):
        text = clean.of("test", "text")
        subject = with_arrays(clean, test__text=text[::-1] if ruined else text)
        verdict = judge(Evidence(original, subject, (w.oracle(1), w.oracle(2))))
        assert verdict.word == word and "recall@10 of pairs on test" in " ".join(verdict.limits)


def test_average_gap_counts_retrieval(evidence):
    found = by_name(OracleGap().findings(evidence))
    assert {"oracle_gap.recall1.forget", "oracle_gap.recall1.retain", "oracle_gap.recall1.test"} <= set(found)
    assert "oracle_gap.membership.forget.pair.margin" in found
