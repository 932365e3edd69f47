"""Whether stored vectors still fit: reference implementation, and encoders with a known difference."""

from __future__ import annotations

import json

import numpy as np
import pytest

from efface.auditing.compatibility import Compatibility, CompatibilityCriteria, compare_embeddings
from efface.errors import EffaceError
from tests.reference import compatibility as reference


def rows(n: int = 40, d: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


RULE = CompatibilityCriteria(neighbors=3)


def test_it_is_its_equations():
    old = rows()
    new = old + 0.5 * rows(seed=1)
    found = compare_embeddings(old, new, CompatibilityCriteria(neighbors=3, queries=15))
    cosines = sorted(reference.cosine(a, b) for a, b in zip(old.tolist(), new.tolist(), strict=True))
    assert found.cosine is not None
    assert found.cosine["mean"] == pytest.approx(np.mean(cosines), abs=1e-6)
    assert found.cosine["least"] == pytest.approx(cosines[0], abs=1e-6)
    assert found.cosine["low"] == pytest.approx(np.quantile(cosines, 0.05), abs=1e-6)
    asked = new[:15].tolist()
    assert found.overlap == pytest.approx(reference.overlap(asked, old.tolist(), new.tolist(), 3))
    assert found.drift == pytest.approx(reference.overlap(old[:15].tolist(), old.tolist(), new.tolist(), 3, asked))
    assert 0.1 < found.overlap < 1 and found.overlap != found.drift


def test_the_same_encoder_may_keep_its_vectors():
    found = compare_embeddings(rows(), 3 * rows(), RULE)  # lengths do not matter to a cosine
    assert found.keep and found.overlap == found.drift == 1 and found.cosine is not None
    assert found.cosine["least"] == pytest.approx(1)


def test_a_rotated_space_must_be_rebuilt_although_its_neighbors_are_the_same():
    turn = np.linalg.qr(rows(6, 6, 3))[0].astype(np.float32)
    found = compare_embeddings(rows(), rows() @ turn, RULE)
    assert found.drift == 1 and not found.keep
    assert found.overlap is not None and found.overlap < 0.5


def test_a_few_moved_images_are_seen_by_the_quantile_and_not_by_the_mean():
    new = rows(200).copy()
    new[:20] *= -1
    found = compare_embeddings(rows(200), new, CompatibilityCriteria(neighbors=3, min_overlap=0, min_cosine=0.5))
    assert found.cosine is not None and found.cosine["mean"] > 0.5 and not found.keep


def test_neighbors_alone_can_forbid_it():
    old = np.ones((40, 6), np.float32) + 0.01 * rows()
    new = np.ones((40, 6), np.float32) + 0.01 * rows(seed=1)
    found = compare_embeddings(old, new, RULE)
    assert found.cosine is not None and found.cosine["low"] > 0.99
    assert len(found.reasons) == 1 and "neighbor overlap" in found.reasons[0]


def test_other_widths_must_be_rebuilt():
    found = compare_embeddings(rows(d=6), rows(d=5), RULE)
    assert found.cosine is None and not found.keep and "6 numbers before and 5 after" in found.reasons[0]
    assert "REBUILT" in "\n".join(found.lines(0))


def test_thresholds_are_the_users():
    old, new = rows(), rows() + 0.3 * rows(seed=1)
    assert not compare_embeddings(old, new, RULE).keep
    assert compare_embeddings(old, new, CompatibilityCriteria(neighbors=3, min_cosine=0.5, min_overlap=0.1)).keep


@pytest.mark.parametrize("forgotten", [0, 7])
def test_the_page_says_rule_figures_and_that_forgotten_rows_go_in_any_case(forgotten: int):
    page = "\n".join(compare_embeddings(rows(), rows(), RULE).lines(forgotten))
    assert "may be kept" in page and ">= 0.95" in page and ">= 0.9" in page and "REBUILT" not in page
    assert "In any case" in page and "must be removed from the index" in page
    assert ("7 of these images were forgotten" in page) == bool(forgotten)
    page = "\n".join(compare_embeddings(rows(), rows(seed=1), RULE).lines(forgotten))
    assert "must be REBUILT" in page and "must be removed" in page


def test_it_can_be_written_down():
    found: Compatibility = compare_embeddings(rows(), rows(seed=1), RULE)
    assert json.loads(json.dumps(found.as_dict()))["keep"] is False


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (rows(3), rows(3), "more images than 3 neighbors"),
        (rows(9), rows(8), "9 old and 8 new"),
        (rows(9), np.full((9, 6), np.nan, np.float32), "new encoder gives embeddings that are not finite"),
    ],
)
def test_what_cannot_be_compared(old: np.ndarray, new: np.ndarray, said: str):
    with pytest.raises(EffaceError, match=said):
        compare_embeddings(old, new, RULE)


def test_settings_out_of_range():
    for wrong in ({"min_cosine": 2}, {"neighbors": 0}, {"queries": 0}):
        with pytest.raises(EffaceError, match="cannot be"):
            CompatibilityCriteria(**wrong)
