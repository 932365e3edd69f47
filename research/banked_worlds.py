"""An original with its reference bank, and requests that are unlearned and looked at in memory.

Shared by the experiments that pool many small requests without the files of rehearsals: digits as in the demo, or 2 000
images of Fashion-MNIST as in ``research.request_sizes``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from research import request_sizes
from research.paths import RUNS
from research.request_sizes import COMMON

from efface.auditing.attacks.learned import attach_scores, fit_attack
from efface.auditing.bank_file import load_bank
from efface.auditing.observations import Observations
from efface.auditing.observers.observe import observe_model, sample_by_key
from efface.auditing.pooled_placements import Rehearsal
from efface.data.selection import Selection
from efface.data.split import Split, move_to_forget
from efface.runs.demo import DEMO_BANK, REGIMES
from efface.runs.rehearsal_kinds import draw_sets
from efface.runs.rehearsals import keep_scores
from efface.runs.run import open_run
from efface.training.checkpoint import Checkpoint

HOME = RUNS / "banked_worlds"


class BankedWorld:
    """An original, its bank, and the requests that are made of it."""

    def __init__(self, family: str, seed: int, *, bank: bool = True) -> None:
        self.family, self.seed, home = family, seed, HOME / f"{family}-{seed}"
        digits = family == "digits"
        settings = REGIMES["digits"] | COMMON | {"seed": seed} if digits else request_sizes.settings_of(family, seed)
        if bank:
            request_sizes.prepare(home, settings, DEMO_BANK if digits else request_sizes.BANK, 1)
            self.bank = load_bank(home / "bank")
            self.half = self.bank.part_for("audit")
            self.attack = fit_attack(self.half)
        else:
            request_sizes.train_original(home, settings)
        opened = open_run(home / "original")
        self.data, self.split = opened.data, opened.split
        self.original = Checkpoint.load(home / "original")

    def draw(self, count: int, size: int) -> list[np.ndarray]:
        """So many disjoint random requests of some size."""
        return draw_sets(self.data, self.split, "random", size, count, self.seed)

    def request(self, rows: np.ndarray) -> Split:
        """The split in which some examples are to be forgotten."""
        return move_to_forget(self.split, self.data, Selection(rows, random=True, by_group=False), self.seed)[0]

    def look(self, model: Checkpoint, split: Split) -> Rehearsal:
        """Observe a model on forgotten, retained and never-trained examples."""
        return self.calibrate(self.observe(model, split))

    def observe(self, model: Checkpoint, split: Split, *more: str) -> Observations:
        """Observe a model on forgotten, retained and never-trained examples, and on more parts."""
        few = replace(split, holdout=sample_by_key(self.data, split.holdout, 1500))
        watch = replace(request_sizes.WATCH, cap=500)
        parts = ("forget", "retain", "holdout", *more)
        return observe_model(model.model, self.data, few, self.original.recipe.views, watch, parts=parts)

    def calibrate(self, seen: Observations) -> Rehearsal:
        """The scores that an audit keeps, with those of models of its half of the bank that never saw an example."""
        observed = keep_scores(seen)
        references = self.half.calibrate(observed)
        if self.attack is not None:
            observed = attach_scores(self.attack, observed, references)
        return Rehearsal(observed, references)
