"""Unlearning methods, one file each. They see training code and what they are given; never an audit or the oracle.

Adding one: a file here with a frozen dataclass, one line in ``METHODS``, a slow twin in ``tests/reference``.
"""

from efface.errors import unknown
from efface.methods.alignment_calibration import AlignmentCalibration
from efface.methods.bad_teacher import BadTeacher
from efface.methods.contrastive_unlearning import ContrastiveUnlearning
from efface.methods.coun import Coun
from efface.methods.finetune import Finetune
from efface.methods.gradient_ascent import GradientAscent
from efface.methods.gradient_constraint import GradientConstraint
from efface.methods.influence import Influence
from efface.methods.l1_sparse import L1Sparse
from efface.methods.lethevit import LetheVit
from efface.methods.margin_matching import MarginMatching
from efface.methods.neggrad import NegGrad
from efface.methods.protocol import Method
from efface.methods.random_labels import RandomLabels
from efface.methods.retrain import Retrain
from efface.methods.salun import SalUn
from efface.methods.scrub import Scrub
from efface.methods.ssd import Ssd

__all__ = [
    "METHODS",
    "AlignmentCalibration",
    "BadTeacher",
    "ContrastiveUnlearning",
    "Coun",
    "Finetune",
    "GradientAscent",
    "GradientConstraint",
    "Influence",
    "L1Sparse",
    "LetheVit",
    "MarginMatching",
    "Method",
    "NegGrad",
    "RandomLabels",
    "Retrain",
    "SalUn",
    "Scrub",
    "Ssd",
    "method_class",
]

METHODS: dict[str, type[Method]] = {
    "alignment_calibration": AlignmentCalibration,
    "bad_teacher": BadTeacher,
    "contrastive_unlearning": ContrastiveUnlearning,
    "coun": Coun,
    "finetune": Finetune,
    "gradient_ascent": GradientAscent,
    "gradient_constraint": GradientConstraint,
    "influence": Influence,
    "l1_sparse": L1Sparse,
    "lethevit": LetheVit,
    "margin_matching": MarginMatching,
    "neggrad": NegGrad,
    "random_labels": RandomLabels,
    "retrain": Retrain,
    "salun": SalUn,
    "scrub": Scrub,
    "ssd": Ssd,
}


def method_class(name: str) -> type[Method]:
    """The method called ``name``, or an error that suggests the nearest."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]
