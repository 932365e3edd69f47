"""Alignment calibration: unlearn an encoder through the very similarities that it was trained with.

    ℓ_i = -sim(a_i, b_i)/τ + log Σ_k e^{sim(a_i, k)/τ}       a_i, b_i: two views of x_i; for x_i ∈ F, b_i is a view of
                                                             another example of F; k: what ℓ compares a_i with
    L_NCE = ( Σ_R ℓ_i + Σ_F [ -α · sim(a_i, b_i)/τ + γ · log Σ_k e^{sim(a_i, k)/τ} ] ) / ( n_R + α n_F )
    L(θ) = L_NCE + β · |F| / (|R| + |F|) · mean_F sim(a_i, c_i)                   c_i: a third view of x_i itself

With captions (CLIP) a_i is an image, b_i its caption (for x_i ∈ F another one of F), c_i its own; log Σ runs both ways.
R ∪ F is shuffled as a whole; n_R, n_F count a batch. α pulls different forgotten images together (negative
calibration), β drives two views of one apart (positive calibration), γ keeps them spread out among the others.

Source      Wang, Lu, Zhang, Boenisch, Dziedzic, Yu and Gao, Alignment Calibration: Machine Unlearning for Contrastive
            Learning under Auditing, 2024, arXiv 2406.03603.
Departures  α, β and γ are apart (in the paper γ = α). The sums are the objective's own: both directions except for
            MoCo, the positive among the k, and b_i of x_j among those of x_i. Where F has one example, no x' exists
            and its α term is left out. An epoch is as many steps as a pass over R takes. MoCo's keys, c_i among them,
            come from the twin: only a_i learns from them. BYOL and SimSiam are not the paper's; they push nothing, so
            γ is idle there. The form with captions is ours: both towers learn from every term.
Tests kill  NaN for a batch without forget examples; a view of x_i as its own partner; β without |F| / (|R| + |F|);
            one coefficient for three; keys of forget examples in the queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from efface.training.batch import Batch, LossTerms
from efface.training.loop import Run, train_steps
from efface.training.model import Model
from efface.training.optim import Optim, Schedule
from efface.unlearning.protocol import MethodInputs, Needs


@dataclass(frozen=True, kw_only=True)
class AlignmentCalibration:
    """The three coefficients, length and learning rate."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN | Needs.PAIRS
    exact: ClassVar[bool] = False
    alpha: float = 1.0
    """Weight α of the similarity of different forgotten images: negative calibration."""
    beta: float = 10.0
    """Weight β of the dissimilarity of two views of a forgotten image; 8 to 20 for a tenth, 0.8 to 2 for half."""
    gamma: float = 1.0
    """Weight γ of spreading forgotten images out: performance preserving."""
    epochs: int | None = None
    """Passes; by default a twentieth of the original's epochs (10 where they are unknown)."""
    batch_size: int | None = None
    """Retained examples per step on average, forgotten ones beside them; by default the original's."""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.006, schedule=Schedule.CONSTANT))
    """Optimizer."""

    def unlearn(self, model: Model, given: MethodInputs, run: Run) -> Model:
        """Descend on mixed batches, R's rows first."""
        epochs, steps = given.resolve_epochs(self.epochs), given.retain.count_batches(given.batch_size(self.batch_size))
        optimizer = self.optim.build(model, epochs * steps)
        share = len(given.forget) / (len(given.retain) + len(given.forget))
        alpha = self.alpha if len(given.forget) > 1 else 0.0
        for epoch in range(epochs):
            for kept, gone, other in mix_batches(given, steps, run.rng("mixed", epoch)):

                def both(batch: Batch, gone: Batch = gone) -> LossTerms:
                    return self.terms(model, batch, gone, share, alpha)

                train_steps(model, [kept + gone.pair_with(other)], both, optimizer, run, phase="mixed")
        return model

    def terms(self, model: Model, batch: Batch, gone: Batch, share: float, alpha: float) -> LossTerms:
        """L on a batch whose last rows are ``gone``, each beside its partner. ``share``: |F| / (|R| + |F|)."""
        kept = len(batch) - len(gone)
        parts = model.objective.contrastive_terms(model, batch, gone.pair_with(gone, number=2))
        size = (kept + self.alpha * len(gone)) or 1.0
        same = (parts.anchor[kept:] * parts.partners).sum(-1)
        terms = {
            "task": (parts.repel - parts.attract)[:kept].sum() / size,
            "negative": -alpha * parts.attract[kept:].sum() / size,
            "preserve": self.gamma * parts.repel[kept:].sum() / size,
            "positive": self.beta * share * same.sum() / max(1, len(gone)),
        }
        return LossTerms(terms, None if parts.carry is None else parts.carry[:kept])


def mix_batches(given: MethodInputs, steps: int, rng: torch.Generator) -> Iterator[tuple[Batch, Batch, Batch]]:
    """One pass over R ∪ F in ``steps`` batches: rows of R, rows of F, and another example of F for each of those."""
    retain, forget = given.retain, given.forget
    for rows in torch.randperm(len(retain) + len(forget), generator=rng).tensor_split(steps):
        place = rows[rows >= len(retain)] - len(retain)
        shift = torch.randint(1, max(2, len(forget)), place.shape, generator=rng)
        other = forget.batch(forget.ids[(place + shift) % len(forget)], rng)
        kept = retain.batch(retain.ids[rows[rows < len(retain)]], rng)
        yield kept, forget.batch(forget.ids[place], rng), other
