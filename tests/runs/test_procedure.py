"""Models of a bank as rehearsals: which examples count as forgotten and as retained, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest

from efface.auditing.observations import Observations
from efface.auditing.rehearsals import judge_rehearsals
from efface.runs.procedure import half_as_rehearsal
from tests.auditing.bank_worlds import SIGNALS, World


@pytest.fixture(scope="module")
def world() -> World:
    """One world, whose bank is drawn once."""
    return World.of(5, trained=1200, unseen=1600, memory=1.5)


@pytest.fixture(scope="module")
def bank(world):
    """Eight models."""
    return world.bank()


@pytest.fixture(scope="module")
def unseen(world) -> Observations:
    """Names the never-trained examples."""
    never = world.keys[~world.trained]
    return Observations("m", "s", {"holdout/keys": never[::2], "control/keys": never[1::2]}, {"spaces": []})


def request(bank, model: int, share: float) -> np.ndarray:
    """100 examples, a share of them from those that the model was trained on."""
    rng, left = np.random.default_rng(model), round(100 * share)
    chosen = np.zeros(len(bank.keys), dtype=bool)
    chosen[rng.choice(np.flatnonzero(bank.inside[model]), left, replace=False)] = True
    chosen[rng.choice(np.flatnonzero(bank.trained & ~bank.inside[model]), 100 - left, replace=False)] = True
    return chosen


def test_what_a_model_was_not_trained_on_counts_as_forgotten(bank, unseen):
    made = half_as_rehearsal(bank, 3, unseen)
    assert made.observed.of("forget", "keys").tolist() == bank.keys[bank.trained & ~bank.inside[3]].tolist()
    assert made.observed.of("retain", "keys").tolist() == bank.keys[bank.inside[3]].tolist()
    assert len(made.references) == 3  # one model of each other pair


def test_chosen_examples_are_forgotten_and_not_retained(bank, unseen):
    chosen = request(bank, 2, 0.5)
    made = half_as_rehearsal(bank, 2, unseen, chosen)
    assert set(made.observed.of("forget", "keys")) == set(bank.keys[chosen])
    assert set(made.observed.of("retain", "keys")) == set(bank.keys[bank.inside[2] & ~chosen])


@pytest.mark.parametrize(("share", "word"), [(0.0, "removed"), (0.5, "residue"), (1.0, "residue")])
def test_the_word_follows_what_was_left_in(bank, unseen, share, word):
    made = [half_as_rehearsal(bank, model, unseen, request(bank, model, share)) for model in range(8)]
    assert judge_rehearsals(made, None, SIGNALS, 0.05, 0.05).word == word
