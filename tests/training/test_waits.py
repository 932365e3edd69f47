"""No step of a training or of an unlearning method waits for the device.

A number that is read from a GPU (``float``, ``.item()``, a branch on a tensor, an index whose length depends on the
values) waits until everything before it is computed. Here the CPU plays the device: the images, labels and weights are
on it, and so is all that is computed from them.
"""

from __future__ import annotations

import traceback
from dataclasses import fields
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from efface.errors import DivergenceError
from efface.training import loop
from efface.training.augment import Views
from efface.training.batch import LossTerms, Subset
from efface.training.loop import Run, train_steps
from efface.training.objectives import OBJECTIVES
from efface.training.optim import Optim
from efface.training.readings import StepReadings
from efface.unlearning.methods import METHODS
from efface.unlearning.protocol import Needs, task_loss
from tests.tiny import VIT, given, images, linear_softmax, parts, recipe

_ATEN = torch.ops.aten
READS = {
    _ATEN._local_scalar_dense.default, _ATEN.nonzero.default, _ATEN._unique2.default, _ATEN.masked_select.default,
    _ATEN.unique_consecutive.default, _ATEN.equal.default, _ATEN.repeat_interleave.Tensor,
}  # fmt: skip
"""Operations that read values from the device: their result, or its shape, is needed by the program."""


class device_on_cpu(TorchDispatchMode):
    """Context that lists where values of the device are read in a step."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.there: set[int] = set()
        self.kept: list[Tensor] = []  # a storage that is freed could be taken for another
        self.waits: list[str] = []
        self.in_step = False
        self.steps = 0
        move, step, batch = Subset._move, loop.train_step, Subset.batch
        for name in ("cpu", "tolist", "numpy", "__float__", "__bool__", "__int__"):
            patch.setattr(Tensor, name, self._reading(getattr(Tensor, name)))

        def move_there(subset: Subset, values: Tensor) -> Tensor:
            return self.mark(move(subset, values).clone())

        def one_step(*args: Any, **named: Any) -> Any:
            self.steps += 1
            return self._inside(step, *args, **named)

        patch.setattr(Subset, "_move", move_there)
        patch.setattr(Subset, "batch", lambda *args: self._inside(batch, *args))
        patch.setattr(loop, "train_step", one_step)

    def _inside(self, function: Any, *args: Any, **named: Any) -> Any:
        before, self.in_step = self.in_step, True
        try:
            return function(*args, **named)
        finally:
            self.in_step = before

    def _reading(self, function: Any) -> Any:
        def read(tensor: Tensor, *args: Any, **named: Any) -> Any:
            if self.is_there(tensor):
                self.wait()
            return function(tensor, *args, **named)

        return read

    def mark(self, tensor: Tensor) -> Tensor:
        """Put a tensor on the device."""
        self.there.add(tensor.untyped_storage()._cdata)
        self.kept.append(tensor.detach())
        return tensor

    def is_there(self, value: Any) -> bool:
        """Whether a value is a tensor on the device."""
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self.there

    def wait(self) -> None:
        """Note where the program is."""
        if self.in_step:
            frames = [one for one in traceback.extract_stack() if "/efface/" in one.filename]
            self.waits.append(f"{frames[-1].filename.rsplit('/', 1)[-1]}: {frames[-1].line}" if frames else "torch")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Follow what is computed from tensors of the device."""
        result = func(*args, **(kwargs or {}))
        if any(map(self.is_there, tree_leaves((args, kwargs)))):
            masks = args[1] if func in (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default) else ()
            if func in READS or any(self.is_there(one) and one.dtype is torch.bool for one in masks):
                self.wait()
            for one in tree_leaves(result):
                if isinstance(one, Tensor):
                    self.mark(one)
        return result


def run_method(name: str, objective: str, patch: pytest.MonkeyPatch) -> device_on_cpu:
    """Run a method for a few steps."""
    x, y = images(90)
    views = Views(crop=(0.5, 1.0))
    chosen = {"epochs": 1, "forget_epochs": 1, "retain_epochs": 1, "batch_size": 20, "steps": 4, "forget_batch_size": 8}
    chosen = {key: value for key, value in chosen.items() if key in {one.name for one in fields(METHODS[name])}}
    method = METHODS[name](**chosen)
    changed = {"backbone": VIT} if Needs.ATTENTION in method.needs else {}
    made = recipe(objective, epochs=1, batch_size=20, **changed)
    model, subsets = made.start(0), parts(x, y, {"retain": (0, 50), "forget": (50, 65), "valid": (65, 90)}, views)
    watched = device_on_cpu(patch)
    for value in [*model.parameters(), *model.buffers()]:
        watched.mark(value.data)
    with watched:
        method.unlearn(model, given(method, subsets, made), Run(readings=StepReadings(every=1000)))
    return watched


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_no_step_of_an_objective_waits(name, monkeypatch):
    watched = run_method("finetune", name, monkeypatch)
    assert watched.steps == 3
    assert watched.waits == []


@pytest.mark.parametrize("objective", ["simclr", "cross_entropy"])
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"shards"}))
def test_no_step_of_a_method_waits(name, objective, monkeypatch):
    needs = METHODS[name].needs
    if (Needs.LABELS in needs and objective == "simclr") or (Needs.PAIRS in needs and objective == "cross_entropy"):
        pytest.skip("not for this objective")
    watched = run_method(name, objective, monkeypatch)
    assert watched.waits == []


@pytest.mark.parametrize(
    "read",
    [
        lambda loss: loss * float(loss.detach()),
        lambda loss: loss if loss > 0 else -loss,
        lambda loss: loss * loss.detach().item(),
        lambda loss: loss[None][loss[None] > -1].sum(),
        lambda loss: loss * torch.from_numpy(loss.detach().cpu().numpy()),
    ],
)
def test_a_planted_reading_is_found(read, monkeypatch):
    x, y = images(30)
    model, subset = linear_softmax(), parts(x, y, {"all": (0, 30)})["all"]
    watched, run = device_on_cpu(monkeypatch), Run(readings=StepReadings(every=1000))
    for value in model.parameters():
        watched.mark(value.data)

    def terms(batch: Any) -> LossTerms:
        return LossTerms({"task": read(model.objective.loss(model, batch).per_example.mean())})

    with watched:
        train_steps(model, subset.batches(10, run.rng("x")), terms, Optim().build(model, 3), run)
    assert len(watched.waits) >= 3


@pytest.mark.parametrize("every", [1, 2, 3, 100])
def test_the_log_is_the_same_however_often_terms_are_read(every):
    x, y = images(40)
    logs: list[list[dict[str, Any]]] = []
    for readings in (StepReadings(), StepReadings(every)):
        lines: list[dict[str, Any]] = []
        model, subset = linear_softmax(), parts(x, y, {"all": (0, 40)})["all"]
        run = Run(log=lines.append, readings=readings)
        train_steps(model, subset.batches(6, run.rng("x")), task_loss(model), Optim().build(model, 7), run)
        run.log_values("found", {"value": 1.0})
        logs.append(lines)
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0]] == [1, 2, 3, 4, 5, 6, 7, 7]


@pytest.mark.parametrize("every", [1, 3, 100])
def test_a_loss_that_is_not_finite_is_named_by_its_step(every):
    x, y = images(40)
    lines: list[dict[str, Any]] = []
    model, subset = linear_softmax(), parts(x, y, {"all": (0, 40)})["all"]
    run = Run(log=lines.append, readings=StepReadings(every))
    optimizer = Optim().build(model, 10)

    def terms(batch: Any) -> LossTerms:
        factor = torch.nan if run.training_cost.steps >= 4 else 1.0
        return LossTerms({"task": factor * model.objective.loss(model, batch).per_example.mean()})

    with pytest.raises(DivergenceError) as raised:
        train_steps(model, islice(subset.cycle(4, run.rng("x")), 10), terms, optimizer, run)
    assert raised.value.step == 4
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
