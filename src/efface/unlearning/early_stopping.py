"""Calibrated stopping: unseen examples V say when the forgotten F no longer stand out, and when it went too far.

At each look, in the backbone's features and in the output (:mod:`efface.unlearning.margins`, averaged over views):

    a_s = AUC of F's margins against V's,   r_s = AUC of R's margins against V's     (1/2: cannot be told apart)
    distance = max over s of max( |a_s - 1/2|, r_s(θ₀) - r_s )                       (0: F like V, R as before)

and an interval of each a_s at the level 1 - α_k / S, α_k = α / (k (k + 1)), k = 1, 2, ... the number of the look, S
that of the spaces. The α_k sum to α: in at most α of all runs does any of the intervals ever miss its AUC, however
often one looks. A method takes no further step once

    matched   every interval lies within 1/2 ± δ, R as before: shown, not only not refuted
    over      an a_s lies below 1/2 - δ, or its interval below 1/2: F stands out by what was done to it

and what is given back is the state of the look with the smallest distance, θ₀'s own not among them. That F merely
stands out no more ends nothing: in the middle of a schedule everybody's margins are low, and come back. R is in the
distance because a model that forgets everybody also makes F and V alike. Where no 1 - α interval at θ₀ lies above 1/2
the looks see nothing, cannot say when to stop, and say that (*blind*): the method then runs to its end.

Source      ours; α-spending by looks as in group-sequential trials (Lan and DeMets 1983).
Departures  none. What it does not know: how hard F is. F's margins may differ from V's without any training.
Tests kill  a level that is the same at each look; a state given back that is not the best; views that change between
            looks; the audit's holdout; a collapsed model that is called matched.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from efface import stats
from efface.data.dataset import Data
from efface.data.split import Split, select_matched_valid
from efface.errors import DivergenceError, EffaceError
from efface.training.batch import Subset
from efface.training.checkpoint import Checkpoint
from efface.training.history import StoppingCheck, StoppingResult, StopReason
from efface.training.loop import Run
from efface.training.model import Model, frozen_statistics
from efface.training.optim import ScheduledOptimizer
from efface.unlearning.inputs import build_inputs
from efface.unlearning.margins import BACKBONE, OUTPUT, contrastive_margin, label_margin
from efface.unlearning.methods import Method
from efface.unlearning.protocol import Needs

SPACES = (BACKBONE, OUTPUT)
SCORING_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """How often unseen examples are looked at, and what is called enough."""

    looks: int = 16
    """Looks over the steps of an optimizer, evenly."""
    views: int = 4
    """Views of each example, the same ones at every look; even."""
    cap: int = 500
    """Most examples of F, of R and of V that are looked at."""
    delta: float = 0.05
    """How far from 1/2 an AUC may be to count as nothing."""
    alpha: float = 0.05
    """Share of runs in which any interval may miss."""
    spare: float = 0.03
    """How far the AUC of the retained may fall for the goal to count as reached."""
    tau: float = 0.1
    """Temperature of the margins in spaces of embeddings."""
    steps: int | None = None
    """Most optimizer steps, whatever the looks say."""

    def __post_init__(self) -> None:
        if self.looks < 1 or self.views < 2 or self.views % 2 or self.cap < 2:
            raise EffaceError(
                f"Stopping cannot look {self.looks} times at {self.views} views of {self.cap} examples.",
                "At least 1 look, 2 examples and 2 views; views are compared in pairs.",
            )
        if not (0 < self.delta < 0.5 and 0 < self.alpha < 1 and self.tau > 0):
            raise EffaceError(
                f"Stopping cannot use delta {self.delta}, alpha {self.alpha}, tau {self.tau}.",
                "delta lies between 0 and 0.5, alpha between 0 and 1, tau is above 0.",
            )


class StopUnlearning(Exception):
    """Raised between two steps: the method shall take no further one."""


class StoppingMonitor:
    """Looks at a model while a method trains it, keeps the best state, and ends the method in time."""

    def __init__(self, stop: StoppingRule, start: Model, parts: Mapping[str, Subset], run: Run) -> None:
        """``parts``: forget, retain, valid, of which at most ``cap`` examples each are looked at."""
        few = [name for name, part in parts.items() if len(part) < 2]
        if few:
            raise EffaceError(
                f"Stopping looks at forget, retain and valid examples; too few of: {', '.join(few)}.",
                "It compares the forgotten with unseen examples, at least 2 of each.",
                "Set split.valid when pretraining (better 500), or unlearn without --stop.",
            )
        self.stop, self.run = stop, run
        self.parts = {name: _some(part, stop.cap, run.rng("stop", i)) for i, (name, part) in enumerate(parts.items())}
        self.looks: list[StoppingCheck] = []
        self.best: tuple[StoppingCheck, Model, dict[str, Tensor]] | None = None
        self.reason = StopReason.ENDED
        self.evaluate(start)
        self.blind = all(low <= 0.5 for _, low, _ in self.looks[0].forget.values())

    def on_step_end(self, model: Model, optimizer: ScheduledOptimizer) -> None:
        """Called after each step: look if it is time, and raise :class:`StopUnlearning` if it is enough."""
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
        """Compare F and R with V, remember the state if it is the best so far, log it."""
        with self.run.timed():
            seen = compute_margin_scores(model, self.parts, self.stop, self.run)
        spent = alpha_at_check(len(self.looks), self.stop.alpha) if self.looks else self.stop.alpha * len(SPACES)
        level = 1 - spent / len(SPACES)
        forget = {s: stats.delong(seen["forget"][s], seen["valid"][s], level) for s in SPACES}
        retain = {s: stats.auc(seen["retain"][s], seen["valid"][s]) for s in SPACES}
        before = self.looks[0].retain if self.looks else retain
        distance = max(max(abs(forget[s][0] - 0.5), before[s] - retain[s]) for s in SPACES)
        found = StoppingCheck(self.run.training_cost.steps, forget, retain, distance)
        if self.looks and (self.best is None or distance < self.best[0].distance):
            state = {name: value.detach().clone() for name, value in model.state_dict().items()}
            self.best = (found, model, state)
        self.looks.append(found)
        terms = {f"forget_{s}": forget[s][0] for s in SPACES} | {f"retain_{s}": retain[s] for s in SPACES}
        shown = sum(map(len, self.parts.values())) * self.stop.views
        self.run.log_values("look", terms, examples=shown, distance=distance)
        return found

    def verdict(self, look: StoppingCheck) -> StopReason | None:
        """Why it is enough, or None."""
        delta, spared = self.stop.delta, self.looks[0].retain
        if any(high < 0.5 or a < 0.5 - delta for a, _, high in look.forget.values()):
            return StopReason.OVER
        within = all(low > 0.5 - delta and high < 0.5 + delta for _, low, high in look.forget.values())
        return (
            StopReason.MATCHED
            if within and all(spared[s] - look.retain[s] <= self.stop.spare for s in SPACES)
            else None
        )

    def restore_best(self, model: Model) -> tuple[Model, StoppingResult]:
        """The best state that was seen, and how it came to that; ``model``: what the method gave back, or started."""
        taken = self.run.training_cost.steps
        if self.blind:
            reason = StopReason.BLIND if self.reason is StopReason.ENDED else self.reason
            return model, self._stopped(reason, False, taken)
        if self.reason is StopReason.ENDED and (self.looks[-1].step != taken or self.best is None):
            self.evaluate(model)
        if self.best is None:
            raise EffaceError(
                f"The budget of {self.stop.steps} steps ended before the first look.", remedy="Allow more steps."
            )
        found, model, state = self.best
        model.load_state_dict(state)
        still = all(low <= 0.5 <= high and abs(a - 0.5) <= self.stop.delta for a, low, high in found.forget.values())
        spared = all(self.looks[0].retain[s] - found.retain[s] <= self.stop.spare for s in SPACES)
        return model, self._stopped(self.reason, still and spared, found.step)

    def _stopped(self, reason: StopReason, reached: bool, step: int) -> StoppingResult:
        unseen, looks = len(self.parts["valid"]), tuple(self.looks)
        return StoppingResult(reason, reached, step, self.run.training_cost.steps, unseen, self.stop.delta, looks)


def alpha_at_check(number: int, alpha: float) -> float:
    """α of look ``number``, from 1: all looks together spend α."""
    return alpha / (number * (number + 1))


@torch.no_grad()
def compute_margin_scores(
    model: Model, parts: Mapping[str, Subset], stop: StoppingRule, run: Run
) -> dict[str, dict[str, np.ndarray]]:
    """Margins of each part's examples, by part and space, [n]; higher is more member-like. V is the bank."""
    names = [*(name for name in parts if name != "valid"), "valid"]
    inner, outer = list[list[Tensor]](), list[list[Tensor]]()
    with frozen_statistics(model):
        for number in range(stop.views):
            seen = [_embed(model, parts[name], number, run, name) for name in names]
            inner.append([features for features, _ in seen])
            outer.append([outputs for _, outputs in seen])
    lengths, bank = [len(parts[name]) for name in names], len(parts["valid"])
    labels = torch.cat([parts[name].labels() for name in names]) if model.objective.needs_labels else None
    found = dict[str, dict[str, np.ndarray]]((name, {}) for name in names)
    for space, views in ((BACKBONE, inner), (OUTPUT, outer)):
        whole = [torch.cat(view) for view in views]
        if space == OUTPUT and labels is not None:
            values = [label_margin(view, labels.to(view.device)) for view in whole]
        else:
            values = [contrastive_margin(a, b, bank, stop.tau) for a, b in zip(whole[::2], whole[1::2], strict=True)]
        mean = torch.stack(values).mean(0).double().cpu()
        for name, of_part in zip(names, mean.split(lengths), strict=True):
            found[name][space] = of_part.numpy()
    return found


def _embed(model: Model, part: Subset, number: int, run: Run, name: str) -> tuple[Tensor, Tensor]:
    """Features and outputs of one view of each example, the same view at every look."""
    rng, features, outputs = run.rng(f"stop {name}"), list[Tensor](), list[Tensor]()
    for rows in part.ids.split(SCORING_BATCH):
        seen = model.features(part.batch(rows, rng).view(number))
        features.append(seen.float())
        outputs.append(model.project(seen).float())
    return torch.cat(features), torch.cat(outputs)


def _some(part: Subset, cap: int, rng: torch.Generator) -> Subset:
    """At most ``cap`` of a part's examples, drawn once."""
    chosen = torch.randperm(len(part.ids), generator=rng)[:cap].sort().values
    return replace(part, ids=part.ids[chosen])


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
    """The best state that was seen on a method's way, on the run's device, and how it came to that.

    ``halve``: whether the method gets one half of ``valid`` and the looks the other; by default if it reads ``valid``.
    """
    if method.exact:
        raise EffaceError(
            "Retraining starts from nothing: there is no point at which to stop it early.",
            remedy="Leave --stop out, or choose a method that starts from the checkpoint.",
        )
    unseen = select_matched_valid(split, data)
    if halve if halve is not None else Needs.VALID in method.needs:
        own = split_in_half(split.valid, run.rng("halves"))
        split, unseen = replace(split, valid=own), np.setdiff1d(unseen, own)
    shown = {"forget": split.forget, "retain": split.retain, "valid": unseen}
    parts = {name: Subset.of(data, rows, start.recipe.views, name, run.device) for name, rows in shown.items()}
    model = copy.deepcopy(start.model).to(run.device)
    lookout = StoppingMonitor(stop, model, parts, run)
    run.callbacks.append(lookout)
    given = build_inputs(method, start, data, split, run.device)
    try:
        with contextlib.suppress(StopUnlearning):
            model = method.unlearn(model, given, run)
    except DivergenceError:
        if lookout.best is None:
            raise
        lookout.reason = StopReason.DIVERGED
    finally:
        run.callbacks.remove(lookout)
    return lookout.restore_best(model)


def split_in_half(rows: np.ndarray, rng: torch.Generator) -> np.ndarray:
    """One half of some positions, drawn at random, in order."""
    order = torch.randperm(len(rows), generator=rng).numpy()
    return np.sort(rows[order[: len(rows) // 2]])
