"""Stop a method early: unseen examples V show when the forgotten F no longer stand out, or when it went too far.

At each check, in the backbone's features and in the output (:mod:`efface.unlearning.margins`, averaged over views):

    a_s = AUC of F's margins against V's,   r_s = AUC of R's margins against V's     (1/2: cannot be told apart)
    distance = max over s of max( |a_s - 1/2|, r_s(θ₀) - r_s )                       (0: F like V, R as before)

and an interval of each a_s at the level 1 - α_k / S, α_k = α / (k (k + 1)), with k = 1, 2, ... the number of the check
and S the number of spaces. The α_k sum to α: in at most a share α of all runs does any interval ever miss its AUC, no
matter how many checks there are. The method takes no further step once

    matched   every interval lies within 1/2 ± δ and R is as before: equivalence is shown, not only not refuted
    over      an a_s lies below 1/2 - δ, or its interval below 1/2: F stands out because of what was done to it

The result is the state with the smallest distance of all checks after the start. That F merely no longer stands out
ends nothing: in the middle of a schedule all margins are low, and come back. R is part of the distance because a model
that forgets everything also makes F and V alike. If no interval at θ₀ (level 1 - α) lies above 1/2, the checks have
nothing to measure and cannot tell when to stop (*blind*): the method runs to its end, and the result says so.

Source      ours; α-spending as in group-sequential trials (Lan and DeMets 1983).
Departures  none. Limitation: it does not know how hard F is. F's margins may differ from V's without any training.
Tests cover a level that is the same at each check; a result that is not the best state; views that change between
            checks; the audit's holdout; a collapsed model that counts as matched.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from efface import stats
from efface.config import Settings
from efface.data.dataset import Data
from efface.data.split import Split, select_matched_valid
from efface.errors import DivergenceError, EffaceError
from efface.schema import Count, NotNegative, OpenHalf, OpenShare, PairCount, Positive
from efface.training.batch import Subset
from efface.training.checkpoint import Checkpoint
from efface.training.history import StoppingCheck, StoppingResult, StopReason
from efface.training.loop import Run, compute_as
from efface.training.model import Model, frozen_statistics
from efface.training.optim import ScheduledOptimizer
from efface.unlearning.inputs import build_inputs
from efface.unlearning.margins import BACKBONE, OUTPUT, contrastive_margin, label_margin, pair_margin
from efface.unlearning.methods import Method
from efface.unlearning.protocol import Needs

SPACES = (BACKBONE, OUTPUT)
SCORING_BATCH = 256
"""Examples per forward pass of a check."""


@dataclass(frozen=True, kw_only=True)
class StoppingRule(Settings):
    """How often unseen examples are checked, and which differences count as none."""

    looks: Count = 16
    """Number of checks, spread evenly over the steps of an optimizer."""
    views: PairCount = 4
    """Views of each example, the same ones at every check; even, because views are compared in pairs."""
    cap: PairCount = 500
    """Most examples of F, of R and of V in a check."""
    delta: OpenHalf = 0.05
    """How far from 1/2 an AUC may be and still count as no difference."""
    alpha: OpenShare = 0.05
    """Share of runs in which any interval may miss."""
    spare: NotNegative = 0.03
    """How far the AUC of the retained examples may fall for the goal to count as reached."""
    tau: Positive = 0.1
    """Temperature of the margins in spaces of embeddings."""
    steps: Count | None = None
    """Most optimizer steps, whatever the checks show; by default no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views % 2:
            raise EffaceError(
                f"Early stopping cannot check {self.looks} times with {self.views} views of {self.cap} examples.",
                "views is even: views are compared in pairs.",
            )


def unlearn_with_early_stopping(
    stop: StoppingRule,
    method: Method,
    start: Checkpoint,
    data: Data,
    split: Split,
    run: Run,
    *,
    halve: bool | None = None,
) -> tuple[Model, StoppingResult]:
    """Run a method with early stopping.

    Args:
        stop: How often to check, and when to stop.
        method: The method to run; not retraining.
        start: The checkpoint to unlearn from; it is copied, not changed.
        data: All examples.
        split: The request; the unseen examples are its ``valid``, matched to the forgotten ones.
        run: Seed, device, log and training cost.
        halve: Whether the method gets one half of ``valid`` and the checks the other; by default if it reads ``valid``.

    Returns:
        The best state that a check saw, on the run's device, and how the run ended.

    Raises:
        EffaceError: If the method is exact, there are fewer than 2 unseen examples, or the budget ends before the first
            check.
        DivergenceError: If the loss stops being finite before the first check after the start.

    Example:
        >>> model, stopped = unlearn_with_early_stopping(StoppingRule(), Scrub(), checkpoint, data, split, Run(seed=0))
        >>> stopped.reason, stopped.reached

    """
    if method.exact:
        raise EffaceError(
            "Retraining starts from nothing: there is no point at which to stop it early.",
            remedy="Leave --stop out, or choose a method that starts from the checkpoint.",
        )
    unseen = select_matched_valid(split, data)
    if halve if halve is not None else Needs.VALID in method.needs:
        method_half = split_in_half(split.valid, run.rng("halves"))
        split, unseen = replace(split, valid=method_half), np.setdiff1d(unseen, method_half)
    positions = {"forget": split.forget, "retain": split.retain, "valid": unseen}
    subsets = {name: Subset.of(data, rows, start.recipe.views, name, run.device) for name, rows in positions.items()}
    model = copy.deepcopy(start.model).to(run.device)
    with compute_as(run, model):
        monitor = StoppingMonitor(stop, model, subsets, run)
        inputs = build_inputs(method, start, data, split, run.device)
        run.callbacks.append(monitor)
        try:
            with contextlib.suppress(StopUnlearning):
                model = method.unlearn(model, inputs, run)
        except DivergenceError:
            if monitor.best is None:
                raise
            monitor.reason = StopReason.DIVERGED
        finally:
            run.callbacks.remove(monitor)
        model, stopped = monitor.restore_best(model)
    model.bf16, model.world = start.model.bf16, start.model.world  # also of a copy that a method made and returned
    return model, stopped


class StopUnlearning(Exception):
    """Raised between two steps, so that the method takes no further one."""


class StoppingMonitor:
    """A step callback that checks a model while a method trains it, keeps the best state, and stops the method."""

    def __init__(self, stop: StoppingRule, start: Model, subsets: Mapping[str, Subset], run: Run) -> None:
        """Check the model at the start.

        Args:
            stop: How often to check, and when to stop.
            start: The model before unlearning.
            subsets: ``forget``, ``retain`` and ``valid``; at most ``stop.cap`` examples of each are used.
            run: The run that is monitored; checks are logged there and add to its training cost.

        """
        few = [name for name, subset in subsets.items() if len(subset) < 2]
        if few:
            raise EffaceError(
                f"Early stopping compares forget, retain and valid examples, and has too few of: {', '.join(few)}.",
                "It compares the forgotten with unseen examples, at least 2 of each.",
                "Set split.valid when pretraining (better 500), or unlearn without --stop.",
            )
        self.stop, self.run = stop, run
        self.subsets = {
            name: _sample(subset, stop.cap, run.rng("stop", i)) for i, (name, subset) in enumerate(subsets.items())
        }
        self.checks: list[StoppingCheck] = []
        self.best: tuple[StoppingCheck, Model, dict[str, Tensor]] | None = None
        self.reason = StopReason.ENDED
        self.evaluate(start)
        self.blind = all(low <= 0.5 for _, low, _ in self.checks[0].forget.values())

    def on_step_end(self, model: Model, optimizer: ScheduledOptimizer) -> None:
        """Check after a step if a check is due, and raise :class:`StopUnlearning` if the method should stop."""
        spent = self.stop.steps is not None and self.run.training_cost.steps >= self.stop.steps
        due = optimizer.taken % max(1, optimizer.steps // self.stop.looks) == 0 or optimizer.taken == optimizer.steps
        if not self.blind and (due or spent):
            self.reason = self.verdict(self.evaluate(model)) or StopReason.ENDED
            if self.reason is not StopReason.ENDED:
                raise StopUnlearning
        if spent:
            self.reason = StopReason.BUDGET
            raise StopUnlearning

    def evaluate(self, model: Model) -> StoppingCheck:
        """Compare F and R with V, keep the state if it is the best so far, and log the check."""
        with self.run.timed():
            scores = compute_margin_scores(model, self.subsets, self.stop, self.run)
            scores = self.run.world.agree(scores)  # all processes stop together
        alpha = alpha_at_check(len(self.checks), self.stop.alpha) if self.checks else self.stop.alpha * len(SPACES)
        level = 1 - alpha / len(SPACES)
        forget = {s: stats.delong(scores["forget"][s], scores["valid"][s], level) for s in SPACES}
        retain = {s: stats.auc(scores["retain"][s], scores["valid"][s]) for s in SPACES}
        before = self.checks[0].retain if self.checks else retain
        distance = max(max(abs(forget[s][0] - 0.5), before[s] - retain[s]) for s in SPACES)
        check = StoppingCheck(self.run.training_cost.steps, forget, retain, distance)
        if self.checks and (self.best is None or distance < self.best[0].distance):
            state = {name: value.detach().clone() for name, value in model.state_dict().items()}
            self.best = (check, model, state)
        self.checks.append(check)
        terms = {f"forget_{s}": forget[s][0] for s in SPACES} | {f"retain_{s}": retain[s] for s in SPACES}
        shown = sum(map(len, self.subsets.values())) * self.stop.views
        self.run.log_values("look", terms, examples=shown, distance=distance)
        return check

    def verdict(self, check: StoppingCheck) -> StopReason | None:
        """Why the method should stop after this check, or None."""
        delta = self.stop.delta
        if any(high < 0.5 or auc < 0.5 - delta for auc, _, high in check.forget.values()):
            return StopReason.OVER
        within = all(low > 0.5 - delta and high < 0.5 + delta for _, low, high in check.forget.values())
        return StopReason.MATCHED if within and self._spares_retained(check) else None

    def restore_best(self, model: Model) -> tuple[Model, StoppingResult]:
        """Restore the best state that a check saw; ``model``: what the method returned, or started with."""
        taken = self.run.training_cost.steps
        if self.blind:
            reason = StopReason.BLIND if self.reason is StopReason.ENDED else self.reason
            return model, self._result(reason, False, taken)
        if self.reason is StopReason.ENDED and (self.checks[-1].step != taken or self.best is None):
            self.evaluate(model)
        if self.best is None:
            raise EffaceError(
                f"The budget of {self.stop.steps} steps ended before the first check.", remedy="Allow more steps."
            )
        check, model, state = self.best
        model.load_state_dict(state)
        alike = all(
            low <= 0.5 <= high and abs(auc - 0.5) <= self.stop.delta for auc, low, high in check.forget.values()
        )
        return model, self._result(self.reason, alike and self._spares_retained(check), check.step)

    def _spares_retained(self, check: StoppingCheck) -> bool:
        """Whether the AUC of R fell by at most ``spare`` since the start, in every space."""
        before = self.checks[0].retain
        return all(before[s] - check.retain[s] <= self.stop.spare for s in SPACES)

    def _result(self, reason: StopReason, reached: bool, step: int) -> StoppingResult:
        """The result of a run whose restored state is the one after ``step`` steps."""
        unseen, taken = len(self.subsets["valid"]), self.run.training_cost.steps
        return StoppingResult(reason, reached, step, taken, unseen, self.stop.delta, tuple(self.checks))


def alpha_at_check(number: int, alpha: float) -> float:
    """α_k of check ``number`` = 1, 2, ...; over all checks they sum to α."""
    return alpha / (number * (number + 1))


@torch.no_grad()
def compute_margin_scores(
    model: Model, subsets: Mapping[str, Subset], stop: StoppingRule, run: Run
) -> dict[str, dict[str, np.ndarray]]:
    """Margins of all examples, by subset and space, [n]; higher is more member-like. V is the bank."""
    names = [*(name for name in subsets if name != "valid"), "valid"]
    features, outputs = list[list[Tensor]](), list[list[Tensor]]()
    with frozen_statistics(model):
        for number in range(stop.views):
            embedded = [_embed(model, subsets[name], number, run, name) for name in names]
            features.append([of_subset for of_subset, _ in embedded])
            outputs.append([of_subset for _, of_subset in embedded])
    lengths, bank = [len(subsets[name]) for name in names], len(subsets["valid"])
    labels = torch.cat([subsets[name].labels() for name in names]) if model.objective.needs_labels else None
    paired = model.objective.needs_captions
    captions = torch.cat([_embed_captions(model, subsets[name]) for name in names]) if paired else None
    scores = dict[str, dict[str, np.ndarray]]((name, {}) for name in names)
    for space, by_view in ((BACKBONE, features), (OUTPUT, outputs)):
        views = [torch.cat(view) for view in by_view]
        if space == OUTPUT and labels is not None:
            margins = [label_margin(view, labels.to(view.device)) for view in views]
        elif space == OUTPUT and captions is not None:
            margins = [pair_margin((a, b), captions, bank, stop.tau) for a, b in _pair_up(views)]
        else:
            margins = [contrastive_margin(a, b, bank, stop.tau) for a, b in _pair_up(views)]
        mean = torch.stack(margins).mean(0).double().cpu()
        for name, of_subset in zip(names, mean.split(lengths), strict=True):
            scores[name][space] = of_subset.numpy()
    return scores


def _embed(model: Model, subset: Subset, number: int, run: Run, name: str) -> tuple[Tensor, Tensor]:
    """Features and outputs of one view of each example, the same view at every check."""
    rng, features, outputs = run.rng(f"stop {name}"), list[Tensor](), list[Tensor]()
    for rows in subset.ids.split(SCORING_BATCH):
        embedded = model.features(subset.batch(rows, rng).view(number))
        features.append(embedded.float())
        outputs.append(model.project(embedded).float())
    return torch.cat(features), torch.cat(outputs)


def _embed_captions(model: Model, subset: Subset) -> Tensor:
    """The text tower's embeddings of the captions."""
    text = subset.text or ()  # the images stay where they are
    parts = [model.encode_text([text[int(row)] for row in rows]) for rows in subset.ids.split(SCORING_BATCH)]
    return torch.cat(parts).float()


def _pair_up(views: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The views two by two."""
    return zip(views[::2], views[1::2], strict=True)


def _sample(subset: Subset, cap: int, rng: torch.Generator) -> Subset:
    """At most ``cap`` examples of a subset, drawn once."""
    chosen = torch.randperm(len(subset.ids), generator=rng)[:cap].sort().values
    return replace(subset, ids=subset.ids[chosen])


def split_in_half(rows: np.ndarray, rng: torch.Generator) -> np.ndarray:
    """A random half of some positions (rounded down), in their order."""
    order = torch.randperm(len(rows), generator=rng).numpy()
    return np.sort(rows[order[: len(rows) // 2]])
