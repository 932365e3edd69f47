"""Unlearning until unseen examples say that it is enough: one method, looked at on the way."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace

import numpy as np
import torch

from efface.checkpoint import Checkpoint
from efface.data import Data
from efface.errors import EffaceError
from efface.giving import give, part_of
from efface.looks import Reason, Stopped
from efface.methods import Method
from efface.model import Model
from efface.splits import Split, unseen_like_forgotten
from efface.stopping import Enough, Lookout, Stop
from efface.train import Diverged, Run
from efface.types import Needs


def until(
    stop: Stop, method: Method, start: Checkpoint, data: Data, split: Split, run: Run, *, halve: bool | None = None
) -> tuple[Model, Stopped]:
    """The best state that was seen on a method's way, on the run's device, and how it came to that.

    ``halve``: whether the method gets one half of ``valid`` and the looks the other; by default if it reads ``valid``.
    """
    if method.exact:
        raise EffaceError(
            "Retraining starts from nothing: there is no point at which to stop it early.",
            remedy="Leave --stop out, or choose a method that starts from the checkpoint.",
        )
    unseen = unseen_like_forgotten(split, data)
    if halve if halve is not None else Needs.VALID in method.needs:
        own = half(split.valid, run.rng("halves"))
        split, unseen = replace(split, valid=own), np.setdiff1d(unseen, own)
    shown = {"forget": split.forget, "retain": split.retain, "valid": unseen}
    parts = {name: part_of(data, rows, start.recipe.views, name, run.device) for name, rows in shown.items()}
    model = copy.deepcopy(start.model).to(run.device)
    lookout = Lookout(stop, model, parts, run)
    run.watchers.append(lookout)
    given = give(method, start, data, split, run.device)
    try:
        with contextlib.suppress(Enough):
            model = method.unlearn(model, given, run)
    except Diverged:
        if lookout.best is None:
            raise
        lookout.reason = Reason.DIVERGED
    finally:
        run.watchers.remove(lookout)
    return lookout.conclude(model)


def half(rows: np.ndarray, rng: torch.Generator) -> np.ndarray:
    """One half of some positions, drawn at random, in order."""
    order = torch.randperm(len(rows), generator=rng).numpy()
    return np.sort(rows[order[: len(rows) // 2]])
