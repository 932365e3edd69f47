"""Contrastive unlearning: push forgotten examples out of their class and into the others, in feature space.

    L(θ) = λ_UL · mean_i L_i + λ_CE · mean_{x∈batch of R} ℓ(θ; x)
    L_i = log Σ_{p∈P(i)} e^{z_i·z_p/τ} - mean_{a∈N(i)} z_i·z_a/τ       with log |N(i)| first where P(i) is empty

i: an example of a batch of F; P(i), N(i): the batch of R with its label, with another; z: normalized features;
ℓ: the objective that the checkpoint was trained with. For each batch of F, ω steps, each with a fresh batch of R.
After each pass over F a stop rule looks at un-augmented images: it ends when accuracy on F has come down to accuracy
on unseen examples, or, where a whole class goes, when accuracy on its unseen examples is at most 1 / classes.

Source      Lee, Zhang, Yang, Lou and Xiong, Contrastive Unlearning, 2024, arXiv 2401.10458.
Departures  no more steps than fine-tuning takes by default, where the paper has only the stop rule; F and the batch
            of R go through the network one after the other; an anchor whose N is empty is left out. Unseen
            examples are a share of ``valid`` that nothing else here looks at; where no class member is among them, F's.
Tests kill  the same first ω batches of R each time; -inf or NaN of an anchor without partners; a push weighted by
            (|N| + |P|) / |N|; a stop rule on reported data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import ClassVar

import torch
from torch import Tensor

from efface.errors import EffaceError
from efface.training.batch import Batch, LossTerms, Subset
from efface.training.loop import LossTermsFunction, Run, train_steps
from efface.training.model import Model, frozen_statistics, share_features
from efface.training.objectives.shared import normalize_rows
from efface.training.optim import Optim, Schedule
from efface.unlearning.protocol import MethodInputs, Needs, task_loss


@dataclass(frozen=True, kw_only=True)
class ContrastiveUnlearning:
    """The two weights, the temperature, and how long it may take."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN | Needs.VALID | Needs.LABELS
    exact: ClassVar[bool] = False
    weight: float = 3.0
    """Weight λ_UL of pushing and pulling; 0 is fine-tuning in this method's rhythm."""
    task_weight: float = 1.0
    """Weight λ_CE of the task on retained examples."""
    tau: float = 0.7
    """Temperature τ of the similarities."""
    omega: int = 4
    """Steps ω for each batch of F, each with a fresh batch of R."""
    epochs: int | None = None
    """Most passes over F; by default as many steps as a twentieth of the original's epochs of R would take."""
    batch_size: int | None = None
    """Examples of F, and of R, per step; by default 64 where a whole class goes and 128 otherwise."""
    watch: float = 0.5
    """Share of ``valid`` that the stop rule looks at, in (0, 1]."""
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, schedule=Schedule.CONSTANT))
    """Optimizer."""

    def __post_init__(self) -> None:
        if not 0 < self.watch <= 1 or not self.tau > 0 or self.omega < 1:
            raise EffaceError(
                f"contrastive_unlearning cannot watch {self.watch} of valid with tau {self.tau}, omega {self.omega}.",
                "watch is a share above 0, at most 1; tau is above 0; omega counts steps, at least 1.",
            )

    def unlearn(self, model: Model, given: MethodInputs, run: Run) -> Model:
        """Passes over F until the stop rule is met."""
        forget, retain = given.forget, given.retain
        whole = not torch.isin(forget.labels(), retain.labels()).any()
        size = self.batch_size or (64 if whole else 128)
        most = given.resolve_epochs(None) * retain.count_batches(given.batch_size(None))
        if self.epochs is not None:
            most = self.epochs * forget.count_batches(size) * self.omega
        optimizer, met = self.optim.build(model, most), self.stop_rule(given, whole, run)
        fresh, done = retain.cycle(size, run.rng("retain")), 0
        for epoch in count():
            for gone in forget.batches(size, run.rng("forget", epoch)):
                now = min(self.omega, most - done)
                train_steps(model, islice(fresh, now), self.terms(model, gone), optimizer, run, phase="contrast")
                done += now
            if met(model) or done == most:
                break
        return model

    def terms(self, model: Model, gone: Batch) -> LossTermsFunction:
        """L on a batch of R beside the batch ``gone`` of F."""
        plain = task_loss(model)

        def both(batch: Batch) -> LossTerms:
            with share_features(model):
                kept = plain(batch)
                parts = {name: self.task_weight * term for name, term in kept.terms.items()}
                if self.weight:
                    z, others = (
                        normalize_rows(model.features(gone.view(0))),
                        normalize_rows(model.features(batch.view(0))),
                    )
                    apart = push_and_pull(z, others, gone.labels(), batch.labels(), self.tau)
                    parts["apart"] = self.weight * apart
            return LossTerms(parts, kept.carry, extra_examples=len(gone) if self.weight else 0)

        return both

    def stop_rule(self, given: MethodInputs, whole: bool, run: Run) -> Callable[[Model], bool]:
        """Whether accuracy has come down far enough; what it saw is logged."""
        order = torch.randperm(len(given.valid), generator=run.rng("watch"))
        share = given.valid.ids[order[: math.ceil(self.watch * len(order))]]
        watched, members = replace(given.valid, ids=share), given.forget
        same = torch.isin(watched.labels(), members.labels())
        if whole and same.any():
            members = replace(watched, ids=watched.ids[same])

        def met(model: Model) -> bool:
            with run.timed():
                accuracy, classes = measure_accuracy(model, members)
                bound = 1 / classes if whole else measure_accuracy(model, watched)[0]
            shown = len(members) + (0 if whole else len(watched))
            said = {"form": "class" if whole else "samples", "on": members.name, "of": len(members)}
            found = {"accuracy": accuracy, "bound": bound}
            run.log_values("stop_rule", found, examples=shown, met=accuracy <= bound, **said)
            return accuracy <= bound

        return met


def push_and_pull(z: Tensor, others: Tensor, y: Tensor, other_y: Tensor, tau: float) -> Tensor:
    """mean_i L_i: scalar, finite. ``z`` [F, d], ``others`` [R, d]: normalized; ``y``, ``other_y``: their labels."""
    similar, same = z @ others.T / tau, y[:, None] == other_y[None]
    apart = (~same).sum(1)
    pull = similar.masked_fill(same, 0).sum(1) / apart.clamp(min=1)
    alone = ~same.any(1)
    inside = similar.masked_fill(~same & ~alone[:, None], -torch.inf).logsumexp(1)
    push = torch.where(alone, apart.clamp(min=1).to(inside).log(), inside)
    valid = apart > 0
    return torch.where(valid, push - pull, 0).sum() / valid.sum().clamp(min=1)


@torch.no_grad()
def measure_accuracy(model: Model, part: Subset) -> tuple[float, int]:
    """Share of a part's un-augmented images whose label is the highest logit, and the number of logits."""
    right, classes = 0, 0
    with frozen_statistics(model):
        for batch in part.ordered_batches(256):
            logits = model(batch.clean)
            right, classes = right + int((logits.argmax(1) == batch.labels()).sum()), logits.shape[1]
    return right / len(part), classes
