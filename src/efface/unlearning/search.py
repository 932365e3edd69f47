"""Auto: choose a method and its strength by unseen examples alone, within a budget of optimizer steps.

Candidates are tried in the order of what they gave in docs/frontier.md and docs/bench.md, each from the checkpoint as
received, each with looks at unseen examples (:mod:`efface.unlearning.early_stopping`) and with as many passes as the rest of the budget
allows. The first that reaches the goal is taken. One that went too far is tried once more at half its learning rate,
one that came to its end short of the goal at twice. If nothing reaches it, the nearest is given back, and said to be
no more than that. No trial sees the oracle or the audit's holdout; all looks are at one half of ``valid``, which no
trial is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from efface import config
from efface.data.dataset import Data
from efface.data.split import Split
from efface.errors import DivergenceError, EffaceError
from efface.training.batch import Log
from efface.training.checkpoint import Checkpoint
from efface.training.history import SearchHistory, StoppingResult, StopReason, Trial, find_best_trial
from efface.training.loop import Run, TrainingCost
from efface.training.model import Model
from efface.unlearning.early_stopping import StoppingRule, unlearn_with_early_stopping
from efface.unlearning.inputs import require_fit
from efface.unlearning.methods import METHODS, Method
from efface.unlearning.plugins import AUTO

BUDGET_SHARE, LARGER_BUDGET_SHARE, FEW_BUDGET_STEPS = 0.05, 0.2, 320
"""The budget as a share of retraining's steps; where that is few steps, up to the larger share."""


USUAL = 160
"""Steps that any candidate may take by default, however few retraining takes."""


MIN_TRIAL_STEPS = 8
"""Steps that a trial is worth starting for."""


CANDIDATES: tuple[str, ...] = (
    "margin_matching", "alignment_calibration", "gradient_constraint", "salun", "finetune",
)  # fmt: skip
"""In the order in which they are tried; what does not fit the checkpoint is passed over."""


OF_A_KIND: tuple[str, ...] = ("alignment_calibration", *(one for one in CANDIDATES if one != "alignment_calibration"))
"""The order where F is a class or a group: unseen examples, being of all kinds, say little to margin matching then."""


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search gives back."""

    model: Model
    method: Method
    stopped: StoppingResult
    search: SearchHistory
    training_cost: TrainingCost
    """What all trials cost."""


def count_retraining_steps(start: Checkpoint, split: Split) -> int:
    """Optimizer steps that retraining by the checkpoint's recipe takes."""
    return start.recipe.epochs * math.ceil(len(split.retain) / start.recipe.batch_size)


def resolve_budget(budget: str | float | None, start: Checkpoint, split: Split) -> int:
    """A budget as optimizer steps: ``"5%"`` of retraining's, or a whole number; None: the default share."""
    text, whole = str(budget).strip(), count_retraining_steps(start, split)
    if (budget is None or text.endswith("%")) and not start.trained:
        raise EffaceError(
            "A share of retraining's steps cannot be known: nothing says how this checkpoint was trained.",
            remedy="Give the budget as a number of steps, as in --budget 200.",
        )
    if budget is None:
        return max(1, round(max(whole * BUDGET_SHARE, min(whole * LARGER_BUDGET_SHARE, FEW_BUDGET_STEPS))))
    try:
        steps = whole * float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        steps = math.nan
    if not (math.isfinite(steps) and steps >= 1 and (text.endswith("%") or steps == int(steps))):
        raise EffaceError(
            f"The budget '{budget}' is no number of steps.",
            f"It is a share of retraining's {whole} steps, or a whole number of steps, and at least one step.",
            "Write it like 5% or 200.",
        )
    return int(steps)


def auto_settings_error(names: Iterable[str]) -> EffaceError:
    """The error for settings beside ``auto``."""
    return EffaceError(
        f"'{AUTO}' chooses the settings itself, and some were given: {', '.join(sorted(names))}.",
        remedy="Leave them out, or name the method they are of.",
    )


def search_methods(
    start: Checkpoint,
    data: Data,
    split: Split,
    budget: int,
    stop: StoppingRule,
    run: Run,
) -> SearchResult:
    """Try one candidate after the other until one reaches the goal or the budget is used up."""
    candidates = OF_A_KIND if split.provenance.get("matched") else CANDIDATES
    trials = list[Trial]()
    best: tuple[Model, Method] | None = None
    spent = TrainingCost()
    for method in _candidates(start, candidates):
        strength: float | None = 1.0
        while strength is not None and budget - spent.steps >= MIN_TRIAL_STEPS:
            left = budget - spent.steps
            asked = _shortened(_at(method, strength), left, start, split)
            attempt = Run(seed=run.seed, device=run.device, log=_numbered(run.log, len(trials) + 1), bf16=run.bf16)
            try:
                model, stopped = unlearn_with_early_stopping(
                    replace(stop, steps=left), asked, start, data, split, attempt, halve=True
                )
            except DivergenceError:
                spent.add(attempt.training_cost)
                strength = strength / 2 if strength == 1 else None
                continue
            spent.add(attempt.training_cost)
            trials.append(Trial(config.dump(asked, {Method: METHODS}), stopped))
            if find_best_trial(trials) == len(trials) - 1:
                best = model, asked
            if stopped.reached or stopped.blind:
                break
            strength = _next(strength, stopped)
        if trials and (trials[-1].stopped.reached or trials[-1].stopped.blind):
            break
    if best is None:
        raise EffaceError(
            f"Nothing could be tried within {budget} steps.",
            f"A trial is worth starting for {MIN_TRIAL_STEPS} steps or more, and every trial that was started diverged."
            if spent.steps else f"A trial is worth starting for {MIN_TRIAL_STEPS} steps or more.",
            "Allow a larger --budget.",
        )  # fmt: skip
    chosen = find_best_trial(trials)
    found = SearchHistory(budget, spent.steps, chosen, tuple(trials))
    return SearchResult(best[0], best[1], trials[chosen].stopped, found, spent)


def _candidates(start: Checkpoint, names: tuple[str, ...]) -> Iterator[Method]:
    """Those that fit the checkpoint, at their defaults."""
    for name in names:
        try:
            require_fit(name, METHODS[name].needs, start)
        except EffaceError:
            continue
        yield METHODS[name]()


def _next(strength: float, stopped: StoppingResult) -> float | None:
    """The strength to try next: half after too far, twice after too little, and no third try."""
    if strength != 1:
        return None
    return 0.5 if stopped.reason is StopReason.OVER else 2.0


def _at(method: Method, strength: float) -> Method:
    """The method with its learning rate times ``strength``."""
    fields = config.dump(method, {Method: METHODS})
    return _method(fields | {"optim": fields["optim"] | {"lr": fields["optim"]["lr"] * strength}})


def _shortened(method: Method, left: int, start: Checkpoint, split: Split) -> Method:
    """The method with no more passes than the steps that are left, so that its schedule comes to its end."""
    per_pass = math.ceil(len(split.retain) / start.recipe.batch_size)
    usual = max(1, start.recipe.epochs // 20) if start.trained else 10
    if left >= max(usual * per_pass, USUAL):
        return method
    return _method(config.dump(method, {Method: METHODS}) | {"epochs": max(1, left // per_pass)})


def _method(fields: Mapping[str, Any]) -> Method:
    return config.parse_choice(METHODS, fields, "method", {Method: METHODS})


def _numbered(log: Log, number: int) -> Log:
    """A log whose lines say which trial they are of."""

    def line(record: Mapping[str, Any]) -> None:
        log({**record, "trial": number})

    return line
