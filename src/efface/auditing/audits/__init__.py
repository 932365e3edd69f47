"""The audits: each turns observations (arrays) into findings, without torch, models or methods.

To add one, write a module with a frozen dataclass that has ``findings(evidence)``, and add a line to ``AUDITS``. In all
audits a higher score is more member-like.
"""

from __future__ import annotations

from efface.auditing.audits.alignment_matrix import AlignmentMatrix
from efface.auditing.audits.before_after import BeforeAfter
from efface.auditing.audits.ceiling import Ceiling
from efface.auditing.audits.collateral import Collateral
from efface.auditing.audits.companions import Companions
from efface.auditing.audits.membership import Membership
from efface.auditing.audits.neighbor_class import NeighborClass
from efface.auditing.audits.nonmember_share import NonmemberShare
from efface.auditing.audits.oracle_direction import OracleDirection
from efface.auditing.audits.oracle_gap import OracleGap
from efface.auditing.audits.per_example import PerExample
from efface.auditing.audits.populations import Populations
from efface.auditing.audits.relative_distance import RelativeDistance
from efface.auditing.audits.relearn import Relearn
from efface.auditing.audits.retrieval import Retrieval
from efface.auditing.audits.utility import Utility
from efface.auditing.evidence import Audit

__all__ = ["AUDITS"]

AUDITS: dict[str, type[Audit]] = {
    "alignment_matrix": AlignmentMatrix,
    "before_after": BeforeAfter,
    "ceiling": Ceiling,
    "collateral": Collateral,
    "companions": Companions,
    "membership": Membership,
    "neighbor_class": NeighborClass,
    "nonmember_share": NonmemberShare,
    "oracle_direction": OracleDirection,
    "oracle_gap": OracleGap,
    "per_example": PerExample,
    "populations": Populations,
    "relative_distance": RelativeDistance,
    "relearn": Relearn,
    "retrieval": Retrieval,
    "utility": Utility,
}
"""Name of each audit to its class."""
