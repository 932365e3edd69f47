"""Contrastive unlearning: push forgotten examples away from their class and towards the others, in feature space.

    L(θ) = λ_UL · mean_i L_i + λ_CE · mean_{x∈batch of R} ℓ(θ; x)
    L_i = log Σ_{p∈P(i)} e^{z_i·z_p/τ} - mean_{a∈N(i)} z_i·z_a/τ       with log |N(i)| first where P(i) is empty

i: an example of a batch of F; P(i), N(i): the examples of a batch of R with the same label, with another label; z:
normalized features; ℓ: the objective that the checkpoint was trained with. For each batch of F there are ω steps, each
with a fresh batch of R. After each pass over F a stop rule measures accuracy on un-augmented images: the method ends
when accuracy on F has come down to accuracy on unseen examples or, if a whole class is forgotten, when accuracy on
unseen examples of that class is at most 1 / classes.

Source      Lee, Zhang, Yang, Lou and Xiong, Contrastive Unlearning, 2024, arXiv 2401.10458.
Departures  as in the official code F and the batch of R are one batch of a single forward pass in training mode, so
            that BatchNorm normalizes them together (in two passes the other classes lose most). z are the backbone's
            features; the official network is trained for it: its projector's normalized outputs are z and the input of
            its classifier. A batch of R keeps its size where F has fewer examples, and is drawn anew for each step (the
            official code starts over with the same shuffled loader for each batch of F, and cuts its batches to F's
            size); no weight decay on one-dimensional weights. An anchor whose N is empty is left out (official: not a
            number); one whose P is empty has log |N| also among random samples (official: infinite), and the push has
            weight 1 (official: |N ∪ P| / |N|). The unseen examples of the stop rule are a
            share of ``valid`` that nothing else here uses (official: the test set, which is reported); if it has no
            member of the class, F is used.
Tests cover two passes with batch statistics of their own; the same first ω batches of R each time; -inf or NaN for an
            anchor without partners; a push weighted by (|N| + |P|) / |N|; a stop rule on data that is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import ClassVar

import torch
from torch import Tensor

from efface.config import Settings
from efface.schema import Count, NotNegative, Positive, SomeShare
from efface.training.batch import Batch, LossTerms
from efface.training.loop import LossTermsFunction, Run, train_steps
from efface.training.model import Model, share_features
from efface.training.objectives.shared import normalize_rows
from efface.training.optim import Optim, Schedule
from efface.unlearning.predictions import measure_accuracy
from efface.unlearning.protocol import MethodInputs, Needs, RequestSizes


@dataclass(frozen=True, kw_only=True)
class ContrastiveUnlearning(Settings):
    """Contrastive unlearning: its two weights, temperature, length and learning rate."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN | Needs.VALID | Needs.LABELS
    exact: ClassVar[bool] = False
    weight: NotNegative = 3.0
    """Weight λ_UL of pushing and pulling; 0 is fine-tuning on the same schedule."""
    task_weight: NotNegative = 1.0
    """Weight λ_CE of the task on retained examples."""
    tau: Positive = 0.7
    """Temperature τ of the similarities."""
    omega: Count = 4
    """Steps ω for each batch of F, each with a fresh batch of R."""
    epochs: Count = 10
    """Most passes over F; the stop rule usually ends it sooner."""
    batch_size: Count | None = None
    """Examples of F, and of R, per step; by default 64 if a whole class is forgotten, else 128."""
    watch: SomeShare = 0.5
    """Share of ``valid`` that the stop rule uses, in (0, 1]."""
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, schedule=Schedule.CONSTANT))
    """Optimizer."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Train in passes over F until the stop rule is met."""
        forget, retain = inputs.forget, inputs.retain
        whole_class = inputs.forgets_whole_classes
        size, most = self._rows(whole_classes=whole_class), self.count_steps(inputs.sizes)
        optimizer, is_met = self.optim.build(model, most), self.stop_rule(inputs, whole_class, run)
        retain_batches, done = retain.cycle(size, run.rng("retain")), 0
        for epoch in count():
            for batch in forget.batches(size, run.rng("forget", epoch)):
                steps = min(self.omega, most - done)
                batches = islice(retain_batches, steps)
                train_steps(model, batches, self.terms(model, batch), optimizer, run, phase="contrast")
                done += steps
            if is_met(model) or done == most:
                break
        return model

    def count_steps(self, sizes: RequestSizes) -> int:
        """The most steps: ω for each batch of F in each epoch."""
        return self.epochs * -(-sizes.forget // self._rows(whole_classes=sizes.whole_classes)) * self.omega

    def _rows(self, *, whole_classes: bool) -> int:
        return self.batch_size or (64 if whole_classes else 128)

    def terms(self, model: Model, forget_batch: Batch) -> LossTermsFunction:
        """L as a function of a batch of R, for one batch of F; both go through the network together."""

        def terms(batch: Batch) -> LossTerms:
            count, joint = (len(forget_batch), forget_batch + batch) if self.weight else (0, batch)
            with share_features(model):
                retained = model.objective.loss(model, joint).rows(count)
                losses = {"task": self.task_weight * retained.per_example.mean()}
                if self.weight:
                    z, others = normalize_rows(model.features(joint.view(0))).tensor_split([count])
                    apart = push_and_pull(z, others, forget_batch.labels(), batch.labels(), self.tau)
                    losses["apart"] = self.weight * apart
            return LossTerms(losses, retained.carry, extra_examples=count)

        return terms

    def stop_rule(self, inputs: MethodInputs, whole_class: bool, run: Run) -> Callable[[Model], bool]:
        """A function that says whether accuracy has come down far enough, and logs what it measured."""
        order = torch.randperm(len(inputs.valid), generator=run.rng("watch"))
        share = inputs.valid.ids[order[: math.ceil(self.watch * len(order))]]
        unseen, members = replace(inputs.valid, ids=share), inputs.forget
        same_class = torch.isin(unseen.labels(), members.labels())
        if whole_class and same_class.any():
            members = replace(unseen, ids=unseen.ids[same_class])

        def is_met(model: Model) -> bool:
            with run.timed():
                accuracy, classes = measure_accuracy(model, members)
                bound = 1 / classes if whole_class else measure_accuracy(model, unseen)[0]
            shown = len(members) + (0 if whole_class else len(unseen))
            form = {"form": "class" if whole_class else "samples", "on": members.name, "of": len(members)}
            accuracy, bound = run.world.agree((accuracy, bound))  # all processes stop together
            measured = {"accuracy": accuracy, "bound": bound}
            run.log_values("stop_rule", measured, examples=shown, met=accuracy <= bound, **form)
            return accuracy <= bound

        return is_met


def push_and_pull(z: Tensor, others: Tensor, y: Tensor, other_y: Tensor, tau: float) -> Tensor:
    """mean_i L_i: scalar, finite. ``z`` [F, d], ``others`` [R, d]: normalized; ``y``, ``other_y``: their labels."""
    similarity, same = z @ others.T / tau, y[:, None] == other_y[None]
    negatives = (~same).sum(1)
    pull = similarity.masked_fill(same, 0).sum(1) / negatives.clamp(min=1)
    alone = ~same.any(1)
    log_sum = similarity.masked_fill(~same & ~alone[:, None], -torch.inf).logsumexp(1)
    push = torch.where(alone, negatives.clamp(min=1).to(log_sum).log(), log_sum)
    valid = negatives > 0
    return torch.where(valid, push - pull, 0).sum() / valid.sum().clamp(min=1)
