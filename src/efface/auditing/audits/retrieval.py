"""Retrieval audit: how well an image-text model still matches images, captions and class names.

    recall@k            share of images whose own caption is among the k most similar ones of the part, and vice versa
    zero-shot accuracy  share of images for which the name of their class is the most similar of all class names

On the retain and test parts this is the model's utility, and higher is better. On the forget set, good is the oracle's
value. The gallery is the part itself, so recall falls as parts grow: compare models on one part, not parts with each
other.
"""

from __future__ import annotations

from dataclasses import dataclass

from efface import stats
from efface.auditing import representations
from efface.auditing.evidence import Evidence, Finding, share_finding


@dataclass(frozen=True)
class Retrieval:
    """Recall in both directions and zero-shot accuracy; no findings for models without captions."""

    ks: tuple[int, ...] = (1, 10)
    """Values of k: how many of the most similar ones may hold the right one."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``retrieval.<part>.<direction>.recall_at_<k>`` and ``retrieval.<part>.zero_shot``."""
        found: list[Finding] = []
        for part in ("test", "retain", "forget"):
            for of_text, direction in ((False, "image_to_text"), (True, "text_to_image")):
                for k in self.ks:
                    found += self._recall(evidence, part, k, of_text, f"retrieval.{part}.{direction}.recall_at_{k}")
            found += self._zero_shot(evidence, part)
        return found

    def _recall(self, evidence: Evidence, part: str, k: int, of_text: bool, name: str) -> list[Finding]:
        seen = [representations.retrieval_recall(o, part, k, of_text=of_text) for _, o, _ in evidence.models()]
        subject = seen[0]
        if subject is None or not len(subject):
            return []
        values = [None if s is None else float(s.mean()) for s in seen]
        spread = stats.bootstrap(lambda v: float(v.mean()), subject, draws=500)
        note = f"among {len(subject)} of {part}; by chance {min(1, k / len(subject)):.3f}"
        return [share_finding(name, part, values, spread, len(subject), note)]

    def _zero_shot(self, evidence: Evidence, part: str) -> list[Finding]:
        hits = [representations.zero_shot(o, part) for _, o, _ in evidence.models()]
        if hits[0] is None:
            return []
        values = [h and h[0] / h[1] for h in hits]
        spread = stats.clopper_pearson(*hits[0])
        note = f"among {len(evidence.subject.of('prompts', 'text'))} classes"
        return [share_finding(f"retrieval.{part}.zero_shot", part, values, spread, hits[0][1], note)]
