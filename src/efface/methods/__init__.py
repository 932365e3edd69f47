"""Unlearning methods, one file each. They see training code and what they are given; never an audit or the oracle.

Adding one: a file here with a frozen dataclass, one line in ``METHODS``, a slow twin in ``tests/reference``.
"""

from efface.errors import unknown
from efface.methods.alignment_calibration import AlignmentCalibration
from efface.methods.contrastive_unlearning import ContrastiveUnlearning
from efface.methods.coun import Coun
from efface.methods.finetune import Finetune
from efface.methods.gradient_ascent import GradientAscent
from efface.methods.gradient_constraint import GradientConstraint
from efface.methods.lethevit import LetheVit
from efface.methods.neggrad import NegGrad
from efface.methods.protocol import Method
from efface.methods.retrain import Retrain
from efface.methods.scrub import Scrub

__all__ = [
    "METHODS",
    "AlignmentCalibration",
    "ContrastiveUnlearning",
    "Coun",
    "Finetune",
    "GradientAscent",
    "GradientConstraint",
    "LetheVit",
    "Method",
    "NegGrad",
    "Retrain",
    "Scrub",
    "method_class",
]

METHODS: dict[str, type[Method]] = {
    "alignment_calibration": AlignmentCalibration,
    "contrastive_unlearning": ContrastiveUnlearning,
    "coun": Coun,
    "finetune": Finetune,
    "gradient_ascent": GradientAscent,
    "gradient_constraint": GradientConstraint,
    "lethevit": LetheVit,
    "neggrad": NegGrad,
    "retrain": Retrain,
    "scrub": Scrub,
}


def method_class(name: str) -> type[Method]:
    """The method called ``name``, or an error that suggests the nearest."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]
