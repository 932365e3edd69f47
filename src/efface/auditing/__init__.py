"""Audits: from observations of models to findings and a verdict. NumPy only, except for ``observers``."""

from typing import TYPE_CHECKING

from efface._lazy import lazy_exports

if TYPE_CHECKING:
    from efface.auditing.criteria import Criteria
    from efface.auditing.evidence import Audit, Evidence, Finding
    from efface.auditing.observations import Observations
    from efface.auditing.verdict import Verdict, judge

_HOMES = {
    "Audit": "evidence",
    "Criteria": "criteria",
    "Evidence": "evidence",
    "Finding": "evidence",
    "Observations": "observations",
    "Verdict": "verdict",
    "judge": "verdict",
}

__all__ = [
    "Audit",
    "Criteria",
    "Evidence",
    "Finding",
    "Observations",
    "Verdict",
    "judge",
]

__getattr__ = lazy_exports(__name__, _HOMES)
