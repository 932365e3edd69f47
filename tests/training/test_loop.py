"""The training loop: schedules, masks, logs, resuming, and what it must not change."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import torch
from torch import nn

from efface.errors import DivergenceError, EffaceError
from efface.training.checkpoint import Checkpoint, EpochStore
from efface.training.loop import Run, fit, frozen_copy, train_steps
from efface.training.optim import Optim, OptimizerType, Schedule
from efface.unlearning.protocol import task_loss
from tests import tiny


def part(augment=tiny.blurred):
    x, y = tiny.images(48)
    return tiny.parts(x, y, {"train": (0, 48)}, augment)["train"]


def test_the_cosine_schedule_starts_at_the_peak_and_ends_at_zero():
    optim = Optim(lr=1.0, warmup=0.1)
    rates = [optim.factor(step, 100) for step in range(100)]
    assert max(rates) == rates[10] == 1.0
    assert rates[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert rates[-1] < 0.01
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert Optim(schedule=Schedule.CONSTANT).factor(99, 100) == 1.0


def test_an_impossible_learning_rate_is_refused():
    for lr in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(EffaceError, match=r"Optim\.lr' cannot be"):
            Optim(lr=lr)


def test_one_dimensional_weights_are_not_decayed():
    layer = nn.Linear(3, 2)
    optimizer = Optim(lr=0.1, momentum=0, weight_decay=0.5, schedule=Schedule.CONSTANT).build(layer, 1)
    bias, weight = layer.bias.detach().clone(), layer.weight.detach().clone()
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.update()
    assert torch.equal(layer.bias, bias)
    torch.testing.assert_close(layer.weight, weight * 0.95)


@pytest.mark.parametrize("rule", list(OptimizerType))
def test_masked_weights_stay_bit_identical_despite_momentum_and_decay(rule):
    model = tiny.linear_softmax()
    optimizer = Optim(rule=rule, lr=0.1, weight_decay=0.1).build(model, 9)
    mask = torch.zeros_like(model.head.weight, dtype=torch.bool)
    mask[0] = True
    before = model.head.weight.detach().clone()
    only = {model.head.weight: mask, model.head.bias: torch.zeros(3, dtype=torch.bool)}
    run = Run()
    for epoch in range(3):
        train_steps(model, part().batches(16, run.rng("x", epoch)), task_loss(model), optimizer, run, only=only)
    assert torch.equal(model.head.weight[1:], before[1:])
    assert not torch.equal(model.head.weight[0], before[0])


def test_a_pass_serves_every_example_and_no_batch_is_too_large():
    batches = list(part().batches(20, torch.Generator().manual_seed(0)))
    assert [len(b) for b in batches] == [16, 16, 16]
    assert sorted(torch.cat([b.ids for b in batches]).tolist()) == list(range(48))


def test_views_are_cached_and_differ_from_each_other():
    batch = next(part().batches(16, torch.Generator().manual_seed(0)))
    assert batch.view(0) is batch.view(0)
    assert not torch.equal(batch.view(0), batch.view(1))


def test_joined_batches_keep_their_own_views():
    rng = torch.Generator().manual_seed(0)
    a, b = list(part().batches(24, rng))
    joint = a + b
    assert torch.equal(joint.view(1), torch.cat([a.view(1), b.view(1)]))
    assert torch.equal(joint.ids, torch.cat([a.ids, b.ids]))


def test_rows_of_a_batch_keep_the_views_that_they_have_in_it():
    batch = next(part().batches(16, torch.Generator().manual_seed(0)))
    some = batch.rows(3, 7)
    assert torch.equal(some.view(1), batch.view(1)[3:7]) and torch.equal(some.y, batch.y[3:7])
    assert len(some) == 4 and torch.equal((some + batch.rows(7)).ids, batch.ids[3:])


def test_logged_values_are_no_step_and_must_be_finite():
    records = []
    run = Run(log=records.append)
    with run.timed():
        run.log_values("look", {"a": 1.5, "b": 2.0}, examples=7)
    run.log_values("iteration", {"residual": 0.1}, number=4)
    assert records[0] == {"step": 0, "phase": "look", "terms": {"a": 1.5, "b": 2.0}, "total": 3.5}
    assert records[1]["step"] == 4
    assert (run.training_cost.steps, run.training_cost.examples) == (0, 7) and run.training_cost.seconds > 0
    with pytest.raises(DivergenceError, match="b = nan"):
        run.log_values("look", {"a": 1.0, "b": math.nan})


def test_a_frozen_copy_shares_no_storage():
    model = tiny.recipe("moco").start(0)
    teacher = frozen_copy(model)
    mine = {t.data_ptr() for t in [*model.parameters(), *model.buffers()]}
    assert mine.isdisjoint({t.data_ptr() for t in [*teacher.parameters(), *teacher.buffers()]})
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training


@pytest.mark.parametrize("objective", sorted(tiny.SMALL))
def test_a_run_cut_after_any_epoch_ends_bit_identical(objective, tmp_path):
    recipe = tiny.recipe(objective, epochs=3)
    train = part(recipe.views)
    whole = fit(recipe.start(2), train, recipe, Run(seed=2)).digest()

    class Cut(Exception):
        pass

    for stop in (1, 2):
        keeper = EpochStore(tmp_path / f"{objective}{stop}.pt")

        class CutAfter(EpochStore):
            def save(self, model, optimizer, epoch, cost, stop=stop):
                super().save(model, optimizer, epoch, cost)
                if epoch == stop:
                    raise Cut

        with pytest.raises(Cut):
            fit(recipe.start(2), train, recipe, Run(seed=2, resume_store=CutAfter(keeper.path)))
        run = Run(seed=2, resume_store=keeper)
        assert fit(recipe.start(2), train, recipe, run).digest() == whole
        assert run.training_cost.steps == 9


def test_dropout_is_seeded_by_the_run(tmp_path):
    """A network with dropout trains to the same weights, whatever the state of the global generator."""

    def trained(seed):
        torch.manual_seed(seed)
        model = tiny.linear_softmax()
        model.backbone = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
        run = Run(seed=1)
        train_steps(model, part().batches(16, run.rng("x")), task_loss(model), Optim(lr=0.1).build(model, 3), run)
        return model.digest()

    assert trained(0) == trained(99)


def test_half_precision_outputs_are_float32_and_close():
    recipe = tiny.recipe("simclr")
    model, batch = recipe.start(0).eval(), next(part().ordered_batches(8))
    full = model(batch.clean)
    model.bf16 = True
    halved = model(batch.clean)
    assert halved.dtype == torch.float32
    assert not torch.equal(full, halved)
    torch.testing.assert_close(full, halved, atol=0.05, rtol=0.05)


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from tests import tiny
from tests.training.test_loop import part
from efface.training.checkpoint import EpochStore
from efface.training.loop import Run, fit
from pathlib import Path
recipe = tiny.recipe("moco", epochs=30)
run = Run(seed=4, resume_store=EpochStore(Path({path!r})))
print(fit(recipe.start(4), part(recipe.views), recipe, run).digest(), run.training_cost.steps, flush=True)
"""


def test_a_killed_process_goes_on_to_the_same_weights(tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(name):
        return [sys.executable, "-c", KILLED.format(tests=root, path=str(tmp_path / name))]

    whole = subprocess.run(command("whole.pt"), capture_output=True, text=True, env=env, check=True).stdout
    process = subprocess.Popen(command("cut.pt"), env=env, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "cut.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.communicate()[0] == "", "it ended before it could be killed"
    again = subprocess.run(command("cut.pt"), capture_output=True, text=True, env=env, check=True).stdout
    assert again == whole


def test_a_checkpoint_is_saved_into_a_folder_that_was_not_there(tmp_path):
    recipe = tiny.recipe("simclr")
    model = recipe.start(0)
    Checkpoint(model, recipe).save(tmp_path / "runs" / "new")
    assert Checkpoint.load(tmp_path / "runs" / "new").model.digest() == model.digest()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        Checkpoint(model, recipe).save(tmp_path / "file")
