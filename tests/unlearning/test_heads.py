"""Heads on a frozen encoder: deletion equals refitting, and only what was fitted can be deleted."""

from __future__ import annotations

import numpy as np
import pytest

from efface.errors import EffaceError
from efface.unlearning.heads import NeighborHead, RidgeHead

CLASSES = ("a", "b", "c")


def rows(n: int = 400, d: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, float32 features of three overlapping classes, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    features = (rng.normal(size=(n, d)) + 1.2 * np.eye(3, d)[labels]).astype(np.float32)
    return np.array([f"{i:05d}" for i in range(n)]), features, labels


def reference_ridge(features: np.ndarray, labels: np.ndarray, penalty: float) -> np.ndarray:
    """The normal equations, one example at a time."""
    width = features.shape[1] + 1
    gram, moments = np.zeros((width, width)), np.zeros((width, 3))
    for x, y in zip(features.astype(np.float64), labels, strict=True):
        one = np.array([*x, 1.0])
        gram += np.outer(one, one)
        moments[:, y] += one
    for i in range(width - 1):
        gram[i, i] += penalty
    return np.linalg.inv(gram) @ moments


def test_ridge_matches_the_reference_implementation():
    keys, features, labels = rows()
    head = RidgeHead.fit(keys, features, labels, CLASSES, penalty=0.5)
    np.testing.assert_allclose(head.solve(), reference_ridge(features, labels, 0.5), rtol=1e-9, atol=1e-10)
    assert (head.predict(features) == labels).mean() > 0.6


@pytest.mark.parametrize("gone", [[3], list(range(40)), list(range(0, 400, 2))])
def test_deleting_equals_refitting_to_1e_9(gone):
    keys, features, labels = rows()
    kept = np.setdiff1d(np.arange(400), gone)
    head = RidgeHead.fit(keys, features, labels, CLASSES).without(keys[gone], features[gone], labels[gone])
    again = RidgeHead.fit(keys[kept], features[kept], labels[kept], CLASSES)
    assert np.abs(head.solve() - again.solve()).max() < 1e-9
    assert sorted(head.rows.tolist()) == sorted(again.rows.tolist())
    whole = RidgeHead.fit(keys, features, labels, CLASSES)
    assert np.abs(whole.solve() - again.solve()).max() > 1e-6, "planted: nothing deleted is far from it"


def test_a_whole_class_is_deleted_to_a_head_that_never_predicts_it():
    keys, features, labels = rows()
    gone = labels == 2
    head = RidgeHead.fit(keys, features, labels, CLASSES).without(keys[gone], features[gone], labels[gone])
    assert np.abs(head.solve()[:, 2]).max() < 1e-9
    assert not (head.predict(features) == 2).any()


def test_neighbors_without_rows_are_those_of_a_new_fit():
    keys, features, labels = rows()
    gone = np.arange(50)
    head = NeighborHead.fit(keys, features, labels, CLASSES, 7).without(keys[gone], features[gone], labels[gone])
    again = NeighborHead.fit(keys[50:], features[50:], labels[50:], CLASSES, 7)
    assert np.array_equal(head.scores(features), again.scores(features))


@pytest.mark.parametrize("kind", [RidgeHead, NeighborHead])
def test_what_was_not_fitted_in_this_form_is_refused_by_name(kind):
    keys, features, labels = rows(60)
    head = kind.fit(keys, features, labels, CLASSES)
    changed = features[:2].copy()
    changed[1, 0] += 1e-6
    for k, x, y in (
        (np.array(["new"]), features[:1], labels[:1]),
        (keys[:2], changed, labels[:2]),
        (keys[:1], features[:1], (labels[:1] + 1) % 3),
        (keys[[0, 0]], features[[0, 0]], labels[[0, 0]]),
    ):
        with pytest.raises(EffaceError, match=r"1 of .* rows were not fitted in this form"):
            head.without(k, x, y)
    once = head.without(keys[:1], features[:1], labels[:1])
    with pytest.raises(EffaceError, match="'00000'"):
        once.without(keys[:1], features[:1], labels[:1])
    assert len(head.rows) == 60, "the head it came from is as it was"


def test_nonsense_is_refused():
    keys, features, labels = rows(20)
    broken = features.copy()
    broken[3, 2] = np.nan
    with pytest.raises(EffaceError, match="finite"):
        RidgeHead.fit(keys, broken, labels, CLASSES)
    with pytest.raises(EffaceError, match="penalty"):
        RidgeHead.fit(keys, features, labels, CLASSES, penalty=0)
    with pytest.raises(EffaceError, match="3 classes"):
        RidgeHead.fit(keys, features, labels + 2, CLASSES)
    with pytest.raises(EffaceError, match="neighbors"):
        NeighborHead.fit(keys, features, labels, CLASSES, 0)
    empty = RidgeHead.fit(keys, features, labels, CLASSES).without(keys, features, labels)
    with pytest.raises(EffaceError, match="no rows"):
        empty.solve()
