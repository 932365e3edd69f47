"""Reference banks: complementary halves, calibration by the models that never saw an example, the learned attack."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from efface import stats
from efface.auditing import signals
from efface.auditing.attacks.learned import attach_scores, fit_attack
from efface.auditing.audits import AUDITS
from efface.auditing.bank_file import HalfScores, join_halves, load_bank, save_bank
from efface.auditing.calibration import calibrate_evidence
from efface.auditing.evidence import Evidence
from efface.auditing.observations import Observations
from efface.auditing.reference_bank import ReferenceBank, draw_halves
from efface.auditing.verdict import judge
from efface.errors import EffaceError
from tests.auditing.bank_worlds import SIGNALS, World


def test_halves_are_halves_and_more_pairs_leave_the_earlier_ones():
    units = [f"u{i}" for i in range(101)]
    drawn = draw_halves(units, 4, 7)
    assert (drawn.sum(axis=1) == 50).all()
    assert np.array_equal(draw_halves(units, 6, 7)[:4], drawn)
    assert np.array_equal(draw_halves(units[::-1], 4, 7)[:, ::-1], drawn)  # depends on names, not on their order
    overlap = (drawn[0] & drawn[1]).sum()
    assert 10 < overlap < 40  # two pairs are divided differently


def test_every_example_is_scored_by_exactly_the_models_that_never_saw_it():
    world = World.of(0, 40, 40)
    bank = world.bank(6)
    out = bank.out_scores(SIGNALS[0])
    assert out.shape == (3, 80)
    for row in range(80):
        for pair in range(3):
            models = [m for m in (2 * pair, 2 * pair + 1) if not bank.inside[m, row]]
            assert out[pair, row] in [bank.scores[SIGNALS[0]][m, row] for m in models]
            assert len(models) == (1 if bank.trained[row] else 2)


def test_never_trained_examples_use_both_models_of_a_pair_about_equally():
    bank = World.of(1, 40, 400).bank(4)
    sides = bank.chosen[0, ~bank.trained] % 2
    assert 150 < sides.sum() < 250


def test_a_pair_that_is_not_complementary_is_refused():
    bank = World.of(0, 40, 40).bank(4)
    inside = bank.inside.copy()
    inside[1, 0] = inside[0, 0]
    with pytest.raises(EffaceError, match="not a pair"):
        ReferenceBank(bank.original, bank.keys, bank.trained, inside, bank.scores, bank.valid)
    inside = bank.inside.copy()
    inside[0, -1] = True  # a never-trained example
    with pytest.raises(EffaceError, match="not a pair"):
        ReferenceBank(bank.original, bank.keys, bank.trained, inside, bank.scores, bank.valid)


def test_the_parts_for_a_method_and_for_its_audit_share_no_model():
    bank = World.of(0, 40, 40).bank(8)
    method, audit = bank.part_for("method"), bank.part_for("audit")
    seen = {one.tobytes() for one in method.scores[SIGNALS[0]]}
    assert not seen & {one.tobytes() for one in audit.scores[SIGNALS[0]]}
    assert method.models == audit.models == 4
    with pytest.raises(EffaceError, match="cannot be divided"):
        World.of(0, 40, 40).bank(2).part_for("audit")


def test_a_retrained_model_has_no_advantage_under_a_bank():
    """Exchangeability: the AUC of what an oracle never saw is 0.5, whatever the difficulty of the examples."""
    values = []
    for seed in range(40):
        world = World.of(seed, 200, 200)
        forget = world.draw(40)
        oracle = world.observe(forget, world.trained & ~forget)
        references = world.bank(4).calibrate(oracle)
        pair = [signals.calibrated_scores(oracle, references, part, SIGNALS[0]) for part in ("forget", "holdout")]
        values.append(stats.auc(*pair))
    assert abs(np.mean(values) - 0.5) < 3 * np.std(values) / np.sqrt(len(values))


def test_a_bank_sees_what_difficulty_hides():
    """Planted bug: without calibration the same leak is nearly lost in the difficulty of the examples."""
    world = World.of(3, 600, 400, memory=1.0)
    forget = world.draw(100)
    original = world.observe(forget, world.trained)
    references = world.bank(8).calibrate(original)
    raw = stats.auc(*(signals.scores(original, part, SIGNALS[0]) for part in ("forget", "holdout")))
    sharp = stats.auc(
        *(signals.calibrated_scores(original, references, part, SIGNALS[0]) for part in ("forget", "holdout"))
    )
    assert sharp > raw + 0.05


def test_calibration_needs_every_example():
    world = World.of(0, 40, 40)
    other = replace(world, keys=np.array([f"other {key}" for key in world.keys]))
    observed = other.observe(other.draw(10), other.trained)
    with pytest.raises(EffaceError, match="holds no scores of"):
        world.bank(4).calibrate(observed)


def test_scores_of_a_classifier_are_calibrated_too() -> None:
    """A score of logits belongs to labelled examples alone: what the bank's models score has the labels with it."""
    world = World.of(3)
    bank = replace(world.bank(), scores={"logits.margin": world.bank().scores["backbone.margin"]})
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part, rows in {"forget": slice(0, 40), "holdout": slice(400, 480)}.items():
        keys = world.keys[rows]
        labels = np.where(np.arange(len(keys)) % 5, np.arange(len(keys)) % 3, -1)
        arrays |= {f"{part}/keys": keys, f"{part}/labels": labels}
        arrays[f"{part}/logits"] = rng.normal(size=(len(keys), 3)).astype(np.float32)
    subject, original = (Observations(name, "split", arrays, {"spaces": ["backbone"]}) for name in ("m", "o"))
    evidence = Evidence(original, subject, calibration=bank.calibrate(subject))
    scored = signals.calibrated_scores(subject, evidence.references, "forget", "logits.margin")
    assert len(scored) == len(signals.scores(subject, "forget", "logits.margin")) == 32
    found = {one.name: one for one in AUDITS["per_example"]().findings(evidence)}
    assert found["per_example.logits.margin.beyond"].value is not None


def test_the_learned_attack_combines_signals_and_is_not_fitted_on_the_audited_model():
    world = World.of(5, 600, 400, memory=0.8)
    bank = world.bank(8)
    attack = fit_attack(bank)
    assert attack is not None
    forget = world.draw(150)
    found = {}
    for name, seen in (("original", world.trained), ("oracle", world.trained & ~forget)):
        observed = world.observe(forget, seen)
        references = bank.calibrate(observed)
        scored = attach_scores(attack, observed, references)
        found[name] = stats.auc(scored.of("forget", "learned"), scored.of("holdout", "learned"))
        single = stats.auc(
            *(signals.calibrated_scores(observed, references, part, SIGNALS[0]) for part in ("forget", "holdout"))
        )
        if name == "original":
            assert found[name] > single + 0.02  # two independent signals tell more than one
    assert abs(found["oracle"] - 0.5) < 0.08
    assert fit_attack(world.bank(2)) is None


def test_a_method_that_lowers_the_named_margins_alone_is_seen_by_the_learned_attack():
    world = World.of(6, 1200, 1600, memory=1.5)
    bank = world.bank(8)
    # a third signal that the cheat leaves as it was
    scores = dict(bank.scores) | {"backbone.norm": np.stack([world.scores(row)[SIGNALS[0]] for row in bank.inside])}
    bank = ReferenceBank(bank.original, bank.keys, bank.trained, bank.inside, scores, bank.valid, bank.meta)
    forget = world.draw(600)
    untouched, cheat = world.observe(forget, world.trained), world.observe(forget, world.trained & ~forget)
    for part in ("forget", "holdout", "retain", "control"):
        rows = bank.positions(cheat.of(part, "keys"))
        norm = world.scores(world.trained)[SIGNALS[0]][rows]
        cheat.arrays[f"{part}/{signals.READY}backbone.norm"] = norm
        untouched.arrays[f"{part}/{signals.READY}backbone.norm"] = norm
    evidence = calibrate_evidence(Evidence(untouched, replace(cheat, model="cheat")), bank)
    verdict = judge(evidence, controlled=False)
    words = {one.signal: one.word for one in verdict.signals}
    assert words == {"backbone.margin": "removed", "projector.margin": "removed", "learned": "residue"}
    assert verdict.word == "residue"


def test_files_of_a_bank_join_and_come_back(tmp_path):
    bank = World.of(0, 40, 40).bank(4)
    halves = []
    for model in range(4):
        one = HalfScores(
            bank.original, bank.keys, bank.trained, bank.valid, bank.inside[model],
            {name: values[model] for name, values in bank.scores.items()}, bank.meta,
        )  # fmt: skip
        one.save(tmp_path / f"half-{model}.npz")
        halves.append(HalfScores.load(tmp_path / f"half-{model}.npz"))
    joined = join_halves(halves)
    save_bank(joined, tmp_path / "bank.npz")
    assert load_bank(tmp_path).digest == joined.digest == bank.digest
    with pytest.raises(EffaceError, match="do not belong together"):
        join_halves([halves[0], replace(halves[1], original="1" * 64)])


@pytest.mark.parametrize("harm", ["edited", "truncated", "zip of something else", "pickle", "missing"])
def test_a_damaged_bank_is_named(tmp_path, harm):
    path = tmp_path / "bank.npz"
    bank = World.of(0, 40, 40).bank(4)
    save_bank(bank, path)
    if harm == "edited":
        with np.load(path) as file:
            arrays = {name: file[name].copy() for name in file.files}
        arrays["score.backbone.margin"][0, 0] += 1
        np.savez(path, **arrays)
    elif harm == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif harm == "zip of something else":
        np.savez(path, x=np.zeros(3))
    elif harm == "pickle":
        np.savez(path, __header__=np.array({"a": 1}, dtype=object))
    else:
        path.unlink()
    with pytest.raises(EffaceError, match="reference bank"):
        load_bank(path)
