"""The Python interface from data to record, on a model that is known to memorize: it is trained on random labels."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

import efface
from efface.errors import EffaceError
from efface.reporting.record import Record
from efface.training import defaults
from efface.training.checkpoint import Checkpoint
from efface.training.devices import prefers_bfloat16
from efface.training.optim import Optim
from efface.unlearning.methods import METHODS, Finetune, Retrain
from efface.unlearning.protocol import Needs
from tests import tiny

WATCH = efface.ObservationSettings(views=4, gradient=False)


@pytest.fixture(scope="module")
def world():
    """Random labels, an overfitted classifier, two retrained references, and a split with 40 examples to forget."""
    x, _ = tiny.images(400, seed=2)
    y = np.random.default_rng(0).integers(0, 3, 400)
    data = efface.Data.from_arrays(x, y, classes=("a", "b", "c"), name="noise")
    split = efface.split(data, forget="@random:40", seed=0, train=120, valid=60, holdout=160, test=60)
    recipe = tiny.recipe("cross_entropy", epochs=60, batch_size=30, views=efface.Views.none(), optim=Optim(lr=0.05))
    original = efface.pretrain(data, split, recipe=recipe, device="cpu")
    oracles = [efface.unlearn(original, data, split, "retrain", seed=seed, device="cpu") for seed in (1, 2)]
    return data, split, original, oracles


def judged(world, subject, criteria=None):
    data, split, original, oracles = world
    return efface.audit(
        data, split, original=original, unlearned=subject, oracles=oracles, criteria=criteria, watch=WATCH, device="cpu"
    )


def changed(checkpoint, change):
    """A copy of the checkpoint with changed weights, as if it had been unlearned."""
    model = copy.deepcopy(checkpoint.model)
    with torch.no_grad():
        change(model)
    return Checkpoint(model, checkpoint.recipe, parent=checkpoint.model.digest(), method={"name": "planted"})


def test_the_untouched_model_is_residue_and_the_oracles_are_not(world):
    _, _, original, oracles = world
    untouched = judged(world, original)
    assert untouched.verdict.word == "residue"
    assert any(one.powered for one in untouched.verdict.signals)
    for oracle in oracles:
        assert judged(world, oracle).verdict.word != "residue"


def collapse(model):
    model.backbone.layer3[-1].bn2.weight.zero_()
    model.backbone.layer3[-1].bn2.bias.fill_(1.0)
    model.backbone.layer3[-1].downsample[1].weight.zero_()
    model.backbone.layer3[-1].downsample[1].bias.fill_(1.0)


def test_a_collapsed_model_is_never_called_removed(world):
    collapsed = judged(world, changed(world[2], collapse), efface.Criteria(delta=0.2))
    assert collapsed.verdict.word != "removed"


def test_a_collapsed_model_that_reveals_nothing_fails_the_utility_gate(world):
    criteria = efface.Criteria(delta=0.2, signals=("logits.margin",))
    answer = judged(world, changed(world[2], collapse), criteria).verdict
    assert answer.word == "removed, utility lost"
    assert answer.exit_code == 5


def test_saved_evidence_can_be_read_back(world, tmp_path):
    data, split, original, _ = world
    after = efface.unlearn(original, data, split, Finetune(epochs=2), device="cpu")
    result = judged(world, after)
    assert {change.part for change in result.changes} == {"backbone", "backbone BatchNorm statistics", "head"}
    record = result.save(tmp_path / "x")
    assert Record.load(tmp_path / "x") == record
    assert record.request.count == 40
    assert record.checkpoints["oracle 2"].exact
    assert "<svg" in (tmp_path / "x" / "report.html").read_text(encoding="utf-8")
    found = json.loads((tmp_path / "x" / "findings.json").read_text())
    assert {one["name"] for one in found} == {one.name for one in result.findings}


def test_the_original_is_untouched_by_every_method(world):
    data, split, original, _ = world
    before = original.model.digest()
    for name, method in METHODS.items():
        short = {"epochs": 1} if "epochs" in method.__dataclass_fields__ else {}
        if not (Needs.ATTENTION | Needs.PAIRS | Needs.RECIPE | Needs.TARGETS | Needs.CLASSES) & method.needs:
            efface.unlearn(original, data, split, name, device="cpu", **short)
    assert original.model.digest() == before


def test_a_method_without_its_examples_is_refused(world):
    data, split, original, _ = world
    empty = copy.copy(split)
    object.__setattr__(empty, "retain", np.empty(0, np.int64))
    with pytest.raises(EffaceError, match=r"neggrad needs the retain examples.*gradient_ascent"):
        efface.unlearn(original, data, empty, "neggrad", device="cpu")


def test_retraining_needs_a_recipe(world):
    data, split, original, _ = world
    foreign = Checkpoint(original.model, original.recipe, trained=False)
    with pytest.raises(EffaceError, match="recipe"):
        efface.unlearn(foreign, data, split, Retrain(), device="cpu")


def test_a_batch_larger_than_the_data_is_refused(world):
    data, split, _, _ = world
    recipe = tiny.recipe("cross_entropy", batch_size=500)
    with pytest.raises(EffaceError, match="larger than the 120 training examples"):
        efface.pretrain(data, split, recipe=recipe, device="cpu")


def test_default_recipes_fit_the_data(world):
    data = world[0]
    for name in set(tiny.SMALL) - {"clip"}:  # noise has no captions
        recipe = defaults.default_recipe(data, name)
        assert (recipe.channels, recipe.size, recipe.classes) == (1, (8, 8), 3)
    assert defaults.default_recipe(data, "cross_entropy").views.crop is None
    assert defaults.default_recipe(data, "simclr").views.crop is not None


@pytest.mark.parametrize(
    ("device", "can", "pays"),
    [("cpu", {"avx512_bf16": True}, True), ("cpu", {"amx_bf16": True, "avx512_bf16": False}, True),
     ("cpu", {"avx512_f": True, "avx512_bf16": False}, False), ("cpu", {}, False), ("meta", {"amx_bf16": True}, False),
     ("cuda", {}, True)],
)  # fmt: skip
def test_bfloat16_is_the_default_only_where_the_machine_multiplies_it(monkeypatch, device, can, pays):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can, raising=False)
    assert prefers_bfloat16(torch.device(device)) is pays
