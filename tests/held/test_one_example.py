"""One example to forget: every method works on it, for an objective with and without labels."""

from __future__ import annotations

import numpy as np
import pytest

import efface
from efface.errors import EffaceError
from efface.reporting.record import Record
from efface.training.objectives import OBJECTIVES
from efface.training.shards import Shards
from efface.unlearning.methods import METHODS
from efface.unlearning.protocol import Needs
from tests import tiny

CELLS = [(method, objective) for method in sorted(METHODS) for objective in ("simclr", "cross_entropy")]

KINDS = {Needs(0): {}, Needs.ATTENTION: {"backbone": tiny.VIT}, Needs.SHARDS: {"shards": Shards(count=2, slices=2)}}
"""The recipe of the original, by what a method needs of it."""


@pytest.fixture(scope="module")
def originals():
    x, y = tiny.images(80, seed=5)
    data = efface.Data.from_arrays(x, y)
    split = efface.split(data, forget="@random:1", seed=0, train=30, valid=15, holdout=20, test=15)
    assert len(split.forget) == 1
    made = {}
    for objective in ("simclr", "cross_entropy"):
        for kind, changed in KINDS.items():
            recipe = tiny.recipe(objective, epochs=1, batch_size=10, **changed)
            made[objective, kind] = efface.pretrain(data, split, recipe=recipe, device="cpu")
    return data, split, made


@pytest.mark.parametrize(("method", "objective"), CELLS)
def test_one_example_can_be_forgotten(originals, method, objective):
    data, split, made = originals
    needs, trained = METHODS[method].needs, OBJECTIVES[objective]
    original = made[objective, (Needs.ATTENTION | Needs.SHARDS) & needs]
    short = {"epochs": 1} if "epochs" in METHODS[method].__dataclass_fields__ else {}
    fits = (trained.needs_labels or Needs.LABELS not in needs) and (trained.contrasts_pairs or Needs.PAIRS not in needs)
    if not fits or (Needs.TARGETS | Needs.CLASSES) & needs:  # targets come from a bank; one example is no class
        with pytest.raises(EffaceError):
            efface.unlearn(original, data, split, method, device="cpu", **short)
        return
    made_of_it = efface.unlearn(original, data, split, method, device="cpu", **short)
    weights = made_of_it.model.state_dict()
    assert all(np.isfinite(value.double().numpy()).all() for value in weights.values())
    assert made_of_it.parent == original.model.digest()


@pytest.mark.parametrize("objective", ["simclr", "cross_entropy"])
@pytest.mark.parametrize("references", [0, 1, 4])
def test_one_forgotten_example_is_audited_and_recorded(originals, tmp_path, objective, references):
    data, split, made = originals
    original = made[objective, Needs(0)]
    settings = {"device": "cpu"}
    after = efface.unlearn(original, data, split, "finetune", epochs=1, **settings)
    oracles = [
        efface.unlearn(original, data, split, "retrain", seed=seed + 1, **settings) for seed in range(references)
    ]
    result = efface.audit(data, split, original=original, unlearned=after, oracles=oracles, **settings)
    assert result.verdict.word == "inconclusive"
    result.save(tmp_path / "audited")
    found = {one.name: one for one in Record.load(tmp_path / "audited").findings}
    if references == 4:
        single = found["per_example.backbone.margin.residual"]
        assert single.n[0] == 1 and single.value is not None and single.interval is None


def test_most_cells_are_run():
    fits = [
        (m, o)
        for m, o in CELLS
        if (OBJECTIVES[o].needs_labels or Needs.LABELS not in METHODS[m].needs)
        and (OBJECTIVES[o].contrasts_pairs or Needs.PAIRS not in METHODS[m].needs)
    ]
    assert len(METHODS) >= 16 and len(fits) >= 24
