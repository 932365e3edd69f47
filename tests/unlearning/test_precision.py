"""Precision belongs to a run: a model and its teachers compute in it, and afterwards nothing of it is left."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from efface import api
from efface.data.dataset import Data
from efface.data.split import Split, partition, select_forget_set
from efface.training.checkpoint import Checkpoint
from efface.training.loop import Run
from efface.training.model import Model
from efface.training.processes import ONE
from efface.unlearning.early_stopping import StoppingRule
from efface.unlearning.methods import METHODS
from efface.unlearning.protocol import Needs
from tests import tiny
from tests.unlearning.test_common_checks import HOME, recipe_for, small

BANKLESS = sorted(name for name, method in METHODS.items() if Needs.TARGETS not in method.needs)
PER_EXAMPLE = {"gradient_constraint", "influence", "salun", "ssd"}
"""Methods that differentiate twice, or for each example, which is done in float32 whatever the run asks for."""


@functools.cache
def world() -> tuple[Data, Split, Split]:
    """Tiny data, its split, and a request for a class."""
    x, y = tiny.images(96, seed=1)
    data = Data(x, np.array([f"k{row:03d}" for row in range(96)]), y=y, classes=("a", "b", "c"))
    split = partition(data, valid=20, holdout=12, test=10)
    return data, split, select_forget_set(split, data, "@class:a", allow_duplicates=True)


@functools.cache
def trained(name: str, *, bf16: bool = True) -> Checkpoint:
    """An original for a method, trained under bfloat16."""
    data, split, _ = world()
    method = small(name)
    return api.pretrain(data, split, recipe=recipe_for(method, HOME[name], epochs=1), device="cpu", bf16=bf16)


def unlearn(name: str, start: Checkpoint, **more) -> Checkpoint:
    """Unlearn with the small method of a name."""
    data, _, split = world()
    return api.unlearn(start, data, split, small(name), device="cpu", **more)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", BANKLESS)
def test_weights_in_memory_and_from_disk_are_unlearned_alike(name, bf16, tmp_path):
    memory = trained(name)
    memory.save(tmp_path)
    disk = Checkpoint.load(tmp_path)
    assert memory.model.digest() == disk.model.digest()
    one, two = (unlearn(name, start, bf16=bf16) for start in (memory, disk))
    assert one.model.digest() == two.model.digest()
    for model in (memory.model, disk.model, one.model, two.model):
        assert not model.bf16 and model.world is ONE


@pytest.mark.parametrize("stop", [None, StoppingRule(steps=4, views=2)], ids=["plain", "stopped early"])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", BANKLESS)
def test_every_network_of_a_run_computes_in_its_precision(name, bf16, stop, monkeypatch):
    start = trained(name, bf16=False)
    start.model.bf16 = not bf16  # whatever was left on it
    if stop is not None and METHODS[name].exact:
        return  # cannot be stopped
    seen, real = set[bool](), Model._run_backbone

    def watched(self, *words):
        seen.add(self.bf16)
        return real(self, *words)

    monkeypatch.setattr(Model, "_run_backbone", watched)
    try:
        result = unlearn(name, start, bf16=bf16, stop=stop)
        assert start.model.bf16 is (not bf16)
        assert result.model.bf16 is (not bf16)
    finally:
        start.model.bf16 = False
    if not (bf16 and name in PER_EXAMPLE):
        assert seen == {bf16}


@pytest.mark.parametrize("failing", [False, True])
def test_steps_leave_a_model_as_they_found_it(failing):
    from efface.training.loop import train_steps

    x, y = tiny.images(32)
    part = tiny.parts(x, y, {"retain": (0, 32)})["retain"]
    model = tiny.recipe("cross_entropy").start(0)
    run, seen = Run(bf16=True), []

    def terms(batch):
        seen.append(model.bf16)
        if failing:
            raise RuntimeError("planted")
        from efface.unlearning.protocol import task_loss

        return task_loss(model)(batch)

    steps = functools.partial(
        train_steps, model, part.batches(16, run.rng("x")), terms, tiny.recipe().optim.build(model, 2), run
    )
    if failing:
        with pytest.raises(RuntimeError, match="planted"):
            steps()
    else:
        steps()
    assert set(seen) == {True} and not model.bf16
