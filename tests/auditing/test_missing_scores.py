"""Examples without a label have no score of a classifier, wherever scores are stored, and are never taken for a 0."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from efface import api
from efface.auditing import signals
from efface.auditing.observations import Observations
from efface.auditing.observers.settings import ObservationSettings
from efface.auditing.pooled_placements import Rehearsal, pool_placements
from efface.auditing.reference_bank import ReferenceBank
from efface.auditing.rehearsal_controls import _changes
from efface.data.dataset import Data
from efface.data.split import partition, select_forget_set
from efface.errors import EffaceError
from efface.runs.procedure import half_as_rehearsal
from efface.runs.rehearsals import keep_scores
from efface.runs.stored_rehearsals import compare_scores
from tests.tiny import images, recipe

SIGNALS = ("backbone.margin", "logits.margin", "logits.modified_entropy", "gradient_norm")
PARTS = {"forget": 10, "retain": 12, "holdout": 30, "control": 20}


def observe(seed: int, unlabelled: int = 8) -> Observations:
    """Observations of a classifier where the last examples of every part but ``forget`` have no label."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for part, n in PARTS.items():
        known = np.arange(n) % 3
        known[n if part == "forget" else n - unlabelled :] = -1
        arrays |= {
            f"{part}/keys": np.array([f"{part}{row}" for row in range(n)]),
            f"{part}/labels": known,
            f"{part}/logits": rng.normal(size=(n, 3)).astype("f"),
            f"{part}/gradient_norm": (1 + rng.random(n)).astype("f"),
            f"{part}/backbone.margin": rng.normal(size=n).astype("f"),
        }
    return Observations(f"m{seed}", "split", arrays, {"spaces": ["backbone"], "classifier": True})


def as_older(kept: Observations) -> Observations:
    """Finished scores as older releases stored them: 0 where there is none."""
    return replace(kept, arrays={
        name: np.nan_to_num(value) if "/score." in name else value for name, value in kept.arrays.items()
    })  # fmt: skip


def make_bank(observed: Observations, models: int = 6) -> ReferenceBank:
    """A bank of random scores, NaN where the observations have none."""
    keys = np.concatenate([observed.of(part, "keys") for part in PARTS])
    trained = np.char.startswith(keys, "forget") | np.char.startswith(keys, "retain")
    rng = np.random.default_rng(1)
    half = [trained & (rng.random(len(keys)) < 0.5) for _ in range(models // 2)]
    inside = np.stack([side for one in half for side in (one, trained & ~one)])
    scores: dict[str, np.ndarray] = {}
    for name in SIGNALS:
        known = np.concatenate([np.isin(np.arange(n), signals.scored_rows(observed, part, name))
                                for part, n in PARTS.items()])  # fmt: skip
        scores[name] = np.where(known, rng.normal(size=inside.shape), np.nan).astype("f")
    return ReferenceBank("original", keys, trained, inside, scores, np.zeros(len(keys), bool))


def keep_in_file(kept: Observations, folder) -> Observations:
    """Finished scores that were written and read again."""
    kept.save(folder / "kept.npz")
    return Observations.load(folder / "kept.npz")


STORED = {
    "observed": lambda one, folder: one,
    "kept": lambda one, folder: keep_scores(one),
    "in a file": lambda one, folder: keep_in_file(keep_scores(one), folder),
    "of an older release": lambda one, folder: keep_in_file(as_older(keep_scores(one)), folder),
    "kept again": lambda one, folder: keep_scores(as_older(keep_scores(one))),
}


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("how", STORED)
def test_the_same_examples_have_a_score_however_it_is_stored(tmp_path, how, signal):
    one = observe(0)
    stored = STORED[how](one, tmp_path)
    for part, n in PARTS.items():
        rows = signals.scored_rows(stored, part, signal)
        assert len(rows) == (n if signal == "backbone.margin" or part == "forget" else n - 8)
        np.testing.assert_array_equal(rows, signals.scored_rows(one, part, signal))
        np.testing.assert_array_equal(
            signals.scores(stored, part, signal).astype("f"), signals.scores(one, part, signal).astype("f")
        )


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("how", STORED)
def test_rehearsals_pool_what_was_observed(tmp_path, how, signal):
    raw = [observe(seed) for seed in range(5)]
    one, two = (pool_placements([Rehearsal(each) for each in some], signal)
                for some in (raw, [STORED[how](each, tmp_path) for each in raw]))  # fmt: skip
    assert two.value == pytest.approx(one.value, abs=1e-6) and len(two.others) == len(one.others)


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("how", STORED)
def test_a_bank_calibrates_those_that_have_a_score(tmp_path, how, signal):
    one = observe(0)
    bank, stored = make_bank(one), STORED[how](one, tmp_path)
    references = bank.calibrate(stored)
    for part in PARTS:
        for reference in references:
            rows = signals.scored_rows(reference, part, signal)
            np.testing.assert_array_equal(rows, signals.scored_rows(one, part, signal))
        found = signals.calibrated_scores(stored, references, part, signal)
        assert len(found) == len(signals.scored_rows(one, part, signal)) and np.isfinite(found).all()


@pytest.mark.parametrize("signal", SIGNALS)
def test_half_a_bank_is_a_rehearsal_of_those_that_have_a_score(signal):
    one = observe(0)
    half = half_as_rehearsal(make_bank(one), 1, one)
    for part in ("holdout", "control"):
        assert len(half.scores(part, signal)) == len(signals.scored_rows(one, part, signal))
    assert np.isfinite(half.scores("holdout", signal)).all()


def test_a_signal_that_no_model_of_a_bank_shows_on_a_part_is_not_there():
    one = observe(0)
    bank = make_bank(one)
    bank.scores["gradient_norm"][:, np.char.startswith(bank.keys, "control")] = np.nan
    half = half_as_rehearsal(bank, 0, one)
    assert not signals.has_signal(half.observed, "control", "gradient_norm")
    assert signals.has_signal(half.observed, "holdout", "gradient_norm")


@pytest.mark.parametrize("signal", SIGNALS)
def test_changes_since_the_original_are_of_those_that_have_a_score(signal):
    before, after = (Rehearsal(keep_scores(observe(seed))) for seed in (0, 1))
    (changed,) = _changes([after], before, [signal])
    for part in ("holdout", "control"):
        rows = signals.scored_rows(after.observed, part, signal)
        np.testing.assert_array_equal(signals.scored_rows(changed.observed, part, signal), rows)


def test_what_an_older_release_stored_is_the_same_when_it_is_made_again():
    kept = keep_scores(observe(0))
    assert compare_scores(as_older(kept), kept) == "" and compare_scores(kept, kept) == ""
    lost = kept.of("holdout", "score.gradient_norm").copy()
    lost[0] = np.nan
    harmed = replace(kept, arrays=kept.arrays | {"holdout/score.gradient_norm": lost})
    assert compare_scores(harmed, kept) == "'holdout/score.gradient_norm' is of other examples"
    moved = replace(
        kept, arrays=kept.arrays | {"holdout/score.gradient_norm": kept.of("holdout", "score.gradient_norm") * 5}
    )
    assert compare_scores(moved, kept) == "'holdout/score.gradient_norm'"


def test_scores_of_other_examples_are_not_compared():
    one = observe(0)
    references = make_bank(observe(0, unlabelled=4)).calibrate(replace(one, arrays={
        name: value for name, value in one.arrays.items() if not name.endswith("/labels")
    }))  # fmt: skip
    with pytest.raises(EffaceError, match="Other examples of 'holdout' have a score of gradient_norm"):
        signals.calibrated_scores(one, references, "holdout", "gradient_norm")


def test_an_infinite_score_in_a_file_is_refused(tmp_path):
    kept = keep_scores(observe(0))
    wrong = np.full(PARTS["holdout"], np.inf, dtype="f")
    with pytest.raises(EffaceError, match="not finite"):
        keep_in_file(replace(kept, arrays=kept.arrays | {"holdout/score.gradient_norm": wrong}), tmp_path)
    plain = observe(0)
    wrong = np.full(PARTS["holdout"], np.nan, dtype="f")
    with pytest.raises(EffaceError, match="not finite"):
        keep_in_file(replace(plain, arrays=plain.arrays | {"holdout/gradient_norm": wrong}), tmp_path)


def test_partly_labelled_data_is_audited_with_a_bank():
    x, y = images(160)
    keys = np.array([f"k{row:03d}" for row in range(160)])
    divided = partition(Data(x, keys, y=y, classes=("a", "b", "c")), valid=20, holdout=40, test=30)
    y = y.copy()
    y[divided.holdout[:10]] = -1
    data = Data(x, keys, y=y, classes=("a", "b", "c"))
    split = select_forget_set(divided, data, "@random:20", allow_duplicates=True)
    original = api.pretrain(data, divided, recipe=recipe("cross_entropy", epochs=1), device="cpu")
    tuned = api.unlearn(original, data, split, "finetune", device="cpu", epochs=1)
    settings = ObservationSettings(views=2, bank=20)
    before, after = (api.observe(one, data, split, settings, device="cpu") for one in (original, tuned))
    rows = np.concatenate([divided.retain, divided.holdout, divided.test, divided.valid])
    trained, rng = np.isin(rows, divided.retain), np.random.default_rng(0)
    half = [trained & (rng.random(len(rows)) < 0.5) for _ in range(2)]
    inside = np.stack([side for one in half for side in (one, trained & ~one)])
    names = ("backbone.margin", "backbone.alignment", "logits.margin", "gradient_norm")
    scores = {name: rng.normal(size=inside.shape).astype("f") for name in names}
    for name in ("logits.margin", "gradient_norm"):
        scores[name][:, y[rows] < 0] = np.nan
    bank = ReferenceBank(original.model.digest(), keys[rows], trained, inside, scores, np.isin(rows, divided.valid))
    judged = api.judge_observations(before, after, bank=bank)
    assert judged.verdict.level == "A1"
