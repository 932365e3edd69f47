"""Choose a method and its strength (``auto``) with unseen examples alone, within a budget of optimizer steps.

Candidates are tried in the order of their results in docs/results (frontier, bench). Each trial starts from the
checkpoint as received, with early stopping (:mod:`efface.unlearning.early_stopping`) and as many passes as the rest of
the budget allows. The first trial that reaches the goal is taken. A candidate that went too far is tried once more at
half its learning rate, one that ended short of the goal at twice. If nothing reaches the goal, the nearest trial is
returned, and the result says so. No trial sees a retrained reference or the audit's holdout; all checks use one half of
``valid``, and the methods get the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from efface import config
from efface.data.dataset import Data
from efface.data.request_kinds import kind_of_request
from efface.data.split import Split
from efface.errors import DivergenceError, EffaceError
from efface.training.batch import Log
from efface.training.checkpoint import Checkpoint
from efface.training.history import SearchHistory, StoppingResult, StopReason, Trial, find_best_trial
from efface.training.loop import Run, TrainingCost
from efface.training.model import Model
from efface.training.stages import estimate_steps
from efface.unlearning.early_stopping import StoppingRule, unlearn_with_early_stopping
from efface.unlearning.inputs import require_fit
from efface.unlearning.methods import METHODS, Method
from efface.unlearning.plugins import AUTO

BUDGET_SHARE = 0.05
"""The default budget, as a share of the steps that retraining takes."""
LARGER_BUDGET_SHARE, FEW_BUDGET_STEPS = 0.2, 320
"""Where the default share gives fewer steps than the second number: up to the first as a share."""
USUAL_STEPS = 160
"""Steps that any candidate may take by default, however few retraining takes."""
MIN_TRIAL_STEPS = 8
"""Fewest steps for which a trial is started."""
CANDIDATES: tuple[str, ...] = (
    "margin_matching", "alignment_calibration", "gradient_constraint", "salun", "finetune",
)  # fmt: skip
"""Methods in the order in which they are tried; those that do not fit the checkpoint are left out."""
BANK_CANDIDATE = "reference_matching"
"""What ``auto`` takes where there is a reference bank. It is told how hard each example is for models without it,
which unseen examples cannot show for a few pictures: there is nothing to search for."""
GROUP_CANDIDATES: tuple[str, ...] = (
    "alignment_calibration", *(name for name in CANDIDATES if name != "alignment_calibration"),
)  # fmt: skip
"""The order if F is a class or a large group: margin matching learns little from unseen examples of all kinds then."""
LARGE_SHARE = 0.05
"""Least share of the trained examples for that order: the terms of ``alignment_calibration`` vanish with F's share."""


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The model that a search chose, and how it was found."""

    model: Model
    method: Method
    """The method of the chosen trial, with its strength and length."""
    stopped: StoppingResult
    """How the chosen trial ended."""
    search: SearchHistory
    training_cost: TrainingCost
    """Cost of all trials together."""


def count_retraining_steps(start: Checkpoint, split: Split) -> int:
    """Optimizer steps that retraining with the checkpoint's recipe takes."""
    return estimate_steps(start.recipe, len(split.retain))


def resolve_budget(budget: str | float | None, start: Checkpoint, split: Split) -> int:
    """Convert a budget to optimizer steps.

    Args:
        budget: A share of retraining's steps such as ``"5%"``, a whole number of steps, or None for the default share.
        start: The checkpoint to unlearn from.
        split: The request.

    Returns:
        Optimizer steps, at least 1.

    Raises:
        EffaceError: If ``budget`` is neither, or is a share and nobody knows how the checkpoint was trained.

    """
    if (budget is None or str(budget).strip().endswith("%")) and not start.trained:
        raise EffaceError(
            "A share of retraining's steps cannot be computed: nothing says how this checkpoint was trained.",
            remedy="Give the budget as a number of steps, as in --budget 200.",
        )
    text, retraining = str(budget).strip(), count_retraining_steps(start, split)
    if budget is None:
        larger = min(retraining * LARGER_BUDGET_SHARE, FEW_BUDGET_STEPS)
        return max(1, round(max(retraining * BUDGET_SHARE, larger)))
    try:
        steps = retraining * float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        steps = math.nan
    if not (math.isfinite(steps) and steps >= 1 and (text.endswith("%") or steps == int(steps))):
        raise EffaceError(
            f"The budget '{budget}' is not a number of steps.",
            f"It is a share of retraining's {retraining} steps, or a whole number of steps, and at least one step.",
            "Write it like 5% or 200.",
        )
    return int(steps)


def order_candidates(split: Split) -> tuple[str, ...]:
    """The order in which methods are tried for a request."""
    share = len(split.forget) / max(1, len(split.train))
    return GROUP_CANDIDATES if kind_of_request(split) != "random" and share >= LARGE_SHARE else CANDIDATES


def auto_settings_error(names: Iterable[str]) -> EffaceError:
    """The error for method settings that are given together with ``auto``."""
    return EffaceError(
        f"'{AUTO}' chooses the settings itself, and some were given: {', '.join(sorted(names))}.",
        remedy="Leave them out, or name the method that they belong to.",
    )


def search_methods(
    start: Checkpoint,
    data: Data,
    split: Split,
    budget: int,
    stop: StoppingRule,
    run: Run,
) -> SearchResult:
    """Try one candidate after the other until one reaches the goal or the budget is used up.

    Args:
        start: The checkpoint to unlearn from; it is copied, not changed.
        data: All examples.
        split: The request.
        budget: Optimizer steps that all trials together may take.
        stop: The early stopping of each trial; its ``steps`` are set here.
        run: Seed, device and log; each line of the log gets the number of its trial.

    Returns:
        The first trial that reached the goal; otherwise the nearest one.

    Raises:
        EffaceError: If no trial could be completed within the budget.

    """
    trials = list[Trial]()
    best: tuple[Model, Method] | None = None
    spent = TrainingCost()
    for method in _candidates(start, order_candidates(split)):
        strength: float | None = 1.0
        while strength is not None and budget - spent.steps >= MIN_TRIAL_STEPS:
            left = budget - spent.steps
            candidate = _fit_to_budget(_at_strength(method, strength), left, start, split)
            trial_run = Run(seed=run.seed, device=run.device, log=_numbered(run.log, len(trials) + 1), bf16=run.bf16)
            try:
                model, stopped = unlearn_with_early_stopping(
                    replace(stop, steps=left), candidate, start, data, split, trial_run, halve=True
                )
            except DivergenceError:
                spent.add(trial_run.training_cost)
                strength = strength / 2 if strength == 1 else None
                continue
            spent.add(trial_run.training_cost)
            trials.append(Trial(config.dump(candidate, {Method: METHODS}), stopped))
            if find_best_trial(trials) == len(trials) - 1:
                best = model, candidate
            if stopped.reached or stopped.blind:
                break
            strength = _next_strength(strength, stopped)
        if trials and (trials[-1].stopped.reached or trials[-1].stopped.blind):
            break
    if best is None:
        diverged = ", and every trial that was started diverged" if spent.steps else ""
        raise EffaceError(
            f"No trial could be completed within {budget} steps.",
            f"A trial needs at least {MIN_TRIAL_STEPS} steps{diverged}.",
            "Allow a larger --budget.",
        )
    chosen = find_best_trial(trials)
    history = SearchHistory(budget, spent.steps, chosen, tuple(trials))
    return SearchResult(best[0], best[1], trials[chosen].stopped, history, spent)


def _candidates(start: Checkpoint, names: tuple[str, ...]) -> Iterator[Method]:
    """The methods that fit the checkpoint, with their default settings."""
    for name in names:
        try:
            require_fit(name, METHODS[name].needs, start)
        except EffaceError:
            continue
        yield METHODS[name]()


def _next_strength(strength: float, stopped: StoppingResult) -> float | None:
    """The strength to try next: half after too much, twice after too little; None after a second trial."""
    if strength != 1:
        return None
    return 0.5 if stopped.reason is StopReason.OVER else 2.0


def _at_strength(method: Method, strength: float) -> Method:
    """The method with its learning rate multiplied by ``strength``."""
    fields = config.dump(method, {Method: METHODS})
    return _method(fields | {"optim": fields["optim"] | {"lr": fields["optim"]["lr"] * strength}})


def _fit_to_budget(method: Method, left: int, start: Checkpoint, split: Split) -> Method:
    """The method with no more passes than ``left`` steps allow, so that its schedule is completed."""
    per_pass = math.ceil(len(split.retain) / start.recipe.batch_size)
    usual = max(1, start.recipe.epochs // 20) if start.trained else 10
    if left >= max(usual * per_pass, USUAL_STEPS):
        return method
    return _method(config.dump(method, {Method: METHODS}) | {"epochs": max(1, left // per_pass)})


def _method(fields: Mapping[str, Any]) -> Method:
    """Build a method from its name and settings."""
    return config.parse_choice(METHODS, fields, "method", {Method: METHODS})


def _numbered(log: Log, number: int) -> Log:
    """A log that adds the number of the trial to each line."""

    def log_trial(record: Mapping[str, Any]) -> None:
        log({**record, "trial": number})

    return log_trial
