"""Before/after audit: what someone who kept the original learns from the unlearned model beside it, and of whom.

    forget      AUC of forgotten against never-trained examples: is it still known that they were there?
    requested   AUC of forgotten against retained examples: does the pair of models show who asked?
    retain      AUC of retained against never-trained examples, and its gain over having the original alone

The attack (:mod:`efface.auditing.attacks.two_models`) reads all signals before and after, and how far they moved. It is
fitted on one half of both groups and evaluated on the other, so it is what an attacker could do who knows the status
of some examples. The *original* value is that of the attacker who has the original alone, the *oracle* value that of
the one who has a retrained model instead of the unlearned one: exact retraining also shows who asked. Above the
oracle's, the method reveals more than retraining does.

Source      TC-UMIA: Fu et al., Revisiting Privacy Leakage in Machine Unlearning: Membership Inference Beyond the
            Forgotten Set, 2026, arXiv 2605.01129: forgotten, retained and unseen examples told apart by the predictions
            before and after. Two versions of a model: Chen et al. 2021, arXiv 2005.02205.
Departures  the equations of the first could not be read: signals instead of predictions, a discriminant in closed form
            on pairs of groups instead of a trained classifier of three, and no shadow models.
Tests cover an attack evaluated on the examples that it was fitted on; an attacker of the original alone who gains.
"""

from __future__ import annotations

from dataclasses import dataclass

from efface import stats
from efface.auditing import signals
from efface.auditing.attacks.signal_tables import FEWEST_COMPARED, shared_signals
from efface.auditing.attacks.two_models import HeldOutPlacements, attack_with_both
from efface.auditing.evidence import Evidence, Finding, mean_measured

COMPARED = {
    "forget": "forgotten against never-trained, by both models; 0.5: nothing is left to tell",
    "requested": "forgotten against retained, by both models: who asked; retraining shows it too",
    "retain": "retained against never-trained, by both models",
}


@dataclass(frozen=True)
class BeforeAfter:
    """AUC of an attacker who holds the model before and after, on the forgotten and on the retained."""

    level: float = 0.95
    """Confidence level of the intervals."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``before_after.forget.auc``, ``.requested.auc``, ``.retain.auc`` and ``.retain.gain``."""
        before = evidence.original
        unseen = signals.nonmember_part(before, "retain")
        compared = {"forget": ("forget", "holdout"), "requested": ("forget", "retain"), "retain": ("retain", unseen)}
        found: list[Finding] = []
        for what, (first, second) in compared.items():
            parts, n = (first, second, "holdout"), (before.count(first), before.count(second))
            names = shared_signals([o for _, o, _ in evidence.models()], parts)
            if min(n) < FEWEST_COMPARED or not names or evidence.subject.model == before.model:
                changed = evidence.subject.model != before.model
                note = "too few examples, or no signals" if changed else "the model is the original: nothing changed"
                found.append(Finding(f"before_after.{what}.auc", None, better="closer", n=n, note=note))
                continue
            for _, observed, _ in evidence.models():
                for part in parts:
                    signals.require_same_examples(before, (observed,), part)
            own, alone, *retrained = [
                attack_with_both(before, o, first, second, names) for _, o, _ in evidence.models()
            ]
            oracle = mean_measured(one.auc for one in retrained)
            value, low, high = stats.interval(own.v10, own.v01, self.level)
            found.append(
                Finding(
                    f"before_after.{what}.auc", value, (low, high), "closer", alone.auc, oracle, n, note=COMPARED[what]
                )
            )
            if what == "retain":
                found.append(self._gain(own, alone, retrained, n))
        return found

    def _gain(
        self, own: HeldOutPlacements, alone: HeldOutPlacements, retrained: list[HeldOutPlacements], n: tuple[int, int]
    ) -> Finding:
        """Build the finding of what the second model adds about the retained examples."""
        value, low, high = own.gain_over(alone, self.level)
        oracle = mean_measured(one.auc - alone.auc for one in retrained)
        note = "AUC minus that of the original alone; above the oracle's: more exposed than by retraining"
        return Finding("before_after.retain.gain", value, (low, high), "closer", None, oracle, n, note=note)
