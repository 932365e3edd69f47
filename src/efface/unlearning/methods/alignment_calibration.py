"""Alignment calibration: unlearn an encoder with the same similarities that it was trained with.

    ℓ_i = -sim(a_i, b_i)/τ + log Σ_k e^{sim(a_i, k)/τ}       a_i, b_i: two views of x_i; for x_i ∈ F, b_i is a view of
                                                             another example of F; k: what ℓ compares a_i with
    L_NCE = ( Σ_R ℓ_i + Σ_F [ -α · sim(a_i, b_i)/τ + γ · log Σ_k e^{sim(a_i, k)/τ} ] ) / ( n_R + α n_F )
    L(θ) = L_NCE + β · s · mean_F sim(a_i, c_i)        c_i: a third view of x_i itself; s = |F| / (|R| + |F|)

With captions (CLIP) a_i is an image, b_i its caption (for x_i ∈ F the caption of another example of F), c_i its own
caption; log Σ runs in both directions. R ∪ F is shuffled as one set; n_R, n_F count a batch. α pulls different
forgotten images together (negative calibration), β pushes two views of one image apart (positive calibration), γ keeps
forgotten images spread out among the others. The terms of F vanish with its share s: a forgotten example weighs β over
the size of a batch wherever it appears, but of ten among 600 most batches have none, and of one among a million nearly
all. With ``forget_batch_size`` m every step has m rows of F, repeated with other views, and s = m / (n_R + m).

Source      Wang, Lu, Zhang, Boenisch, Dziedzic, Yu and Gao, Alignment Calibration: Machine Unlearning for Contrastive
            Learning under Auditing, 2024, arXiv 2406.03603.
Departures  α, β and γ are separate (in the paper and its code γ = α). The sums are those of the objective: both
            directions except for MoCo, the positive among the k, and b_i of x_j among those of x_i. If F has one
            example, it has no other to be paired with, and its α term is left out. An epoch has as many steps as a pass
            over R. The official command line has the rate 0.06, ten times ours. All views go through the network
            together; the official code makes a pass for each, so that BatchNorm normalizes them apart. It moves MoCo's
            momentum encoder before a step, not after, and puts keys of forgotten examples into the queue. MoCo's keys,
            c_i among them, come from the momentum encoder: only a_i learns from them. A batch without forgotten
            examples has a β term of 0 (official: not a number). The paper does not cover BYOL and SimSiam; they push
            nothing apart, so γ has no effect there. The form with captions is ours: both towers learn from every term.
Tests cover NaN for a batch without forget examples; a view of x_i as its own partner; β without the share of F; a share
            that vanishes with F where rows are given; one coefficient for all three; keys of forget examples in the
            queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from efface.config import Settings
from efface.schema import Count, NotNegative
from efface.training.batch import Batch, LossTerms, Subset
from efface.training.loop import Run, train_steps
from efface.training.model import Model
from efface.training.optim import Optim, Schedule
from efface.unlearning.protocol import MethodInputs, Needs


@dataclass(frozen=True, kw_only=True)
class AlignmentCalibration(Settings):
    """Alignment calibration: its three coefficients, length and learning rate."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN | Needs.PAIRS
    exact: ClassVar[bool] = False
    alpha: NotNegative = 1.0
    """Weight α of the similarity of different forgotten images: negative calibration."""
    beta: NotNegative = 10.0
    """Weight β of the dissimilarity of two views of a forgotten image; 8 to 20 for a tenth, 0.8 to 2 for half."""
    gamma: NotNegative = 1.0
    """Weight γ of spreading forgotten images out: performance preserving."""
    epochs: Count | None = None
    """Passes; by default a twentieth of the original's epochs (10 if they are unknown)."""
    batch_size: Count | None = None
    """Retained examples per step on average, in addition to the forgotten ones; by default the original's."""
    forget_batch_size: Count | None = None
    """Forgotten examples per step; by default their share of a shuffled pass, which for a small F is mostly none."""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.006, schedule=Schedule.CONSTANT))
    """Optimizer."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Minimize L on mixed batches, with the rows of R first."""
        epochs, size = inputs.resolve_epochs(self.epochs), inputs.batch_size(self.batch_size)
        steps = inputs.retain.count_batches(size)
        optimizer = self.optim.build(model, epochs * steps)
        alpha = self.alpha if len(inputs.forget) > 1 else 0.0
        share = len(inputs.forget) / (len(inputs.retain) + len(inputs.forget))
        for epoch in range(epochs):
            rng = run.rng("mixed", epoch)
            if self.forget_batch_size is None:
                batches = mix_batches(inputs, steps, rng)
            else:
                batches = add_rows(inputs, size, self.forget_batch_size, rng)
            for retained, forgotten, partners in batches:
                drawn = len(forgotten) / (len(forgotten) + len(retained)) if self.forget_batch_size else share

                def terms(batch: Batch, forgotten: Batch = forgotten, share: float = drawn) -> LossTerms:
                    return self.terms(model, batch, forgotten, share, alpha)

                mixed = retained + forgotten.pair_with(partners)
                train_steps(model, [mixed], terms, optimizer, run, phase="mixed")
        return model

    def terms(self, model: Model, batch: Batch, forgotten: Batch, share: float, alpha: float) -> LossTerms:
        """L of a mixed batch, as four terms.

        Args:
            model: The model that is trained.
            batch: Rows of R, then the rows of ``forgotten``, each paired with another example of F.
            forgotten: The rows of F by themselves.
            share: s, the share of F.
            alpha: α, or 0 if F has one example.

        """
        retained = len(batch) - len(forgotten)
        parts = model.objective.contrastive_terms(model, batch, forgotten.pair_with(forgotten, number=2))
        size = (retained + self.alpha * len(forgotten)) or 1.0
        self_similarity = (parts.anchor[retained:] * parts.partners).sum(-1)
        terms = {
            "task": (parts.repel - parts.attract)[:retained].sum() / size,
            "negative": -alpha * parts.attract[retained:].sum() / size,
            "preserve": self.gamma * parts.repel[retained:].sum() / size,
            "positive": self.beta * share * self_similarity.sum() / max(1, len(forgotten)),
        }
        return LossTerms(terms, None if parts.carry is None else parts.carry[:retained])


MixedBatch = tuple[Batch, Batch, Batch]
"""Rows of R, rows of F, and another example of F for each of those."""


def mix_batches(inputs: MethodInputs, steps: int, rng: torch.Generator) -> Iterator[MixedBatch]:
    """One pass over R ∪ F, shuffled as one set, in ``steps`` batches."""
    retain, forget = inputs.retain, inputs.forget
    for rows in torch.randperm(len(retain) + len(forget), generator=rng).tensor_split(steps):
        place = rows[rows >= len(retain)] - len(retain)
        retained = retain.batch(retain.ids[rows[rows < len(retain)]], rng)
        yield retained, forget.batch(forget.ids[place], rng), draw_partners(forget, place, rng)


def add_rows(inputs: MethodInputs, size: int, count: int, rng: torch.Generator) -> Iterator[MixedBatch]:
    """One pass over R in batches, each with ``count`` rows of F."""
    forget = inputs.forget
    for retained in inputs.retain.batches(size, rng):
        place = torch.cat([torch.randperm(len(forget), generator=rng) for _ in range(-(-count // len(forget)))])[:count]
        yield retained, forget.batch(forget.ids[place], rng), draw_partners(forget, place, rng)


def draw_partners(forget: Subset, place: Tensor, rng: torch.Generator) -> Batch:
    """Another example of F for each of those at ``place`` in it; the same where F has one example."""
    shift = torch.randint(1, max(2, len(forget)), place.shape, generator=rng)
    return forget.batch(forget.ids[(place + shift) % len(forget)], rng)
