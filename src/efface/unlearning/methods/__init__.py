"""Unlearning methods, one file each.

Methods see the training code and their declared inputs, never an audit or a retrained reference. To add one: a file
here with a frozen dataclass, one line in ``METHODS``, a reference implementation in ``tests/reference``
(``CONTRIBUTING.md``).
"""

from efface.errors import unknown_name_error
from efface.unlearning.methods.alignment_calibration import AlignmentCalibration
from efface.unlearning.methods.bad_teacher import BadTeacher
from efface.unlearning.methods.contrastive_unlearning import ContrastiveUnlearning
from efface.unlearning.methods.coun import Coun
from efface.unlearning.methods.damp import Damp
from efface.unlearning.methods.finetune import Finetune
from efface.unlearning.methods.gradient_ascent import GradientAscent
from efface.unlearning.methods.gradient_constraint import GradientConstraint
from efface.unlearning.methods.influence import Influence
from efface.unlearning.methods.l1_sparse import L1Sparse
from efface.unlearning.methods.lethevit import LetheVit
from efface.unlearning.methods.margin_matching import MarginMatching
from efface.unlearning.methods.neggrad import NegGrad
from efface.unlearning.methods.purge import Purge
from efface.unlearning.methods.random_labels import RandomLabels
from efface.unlearning.methods.reference_matching import ReferenceMatching
from efface.unlearning.methods.retrain import Retrain
from efface.unlearning.methods.salun import SalUn
from efface.unlearning.methods.scrub import Scrub
from efface.unlearning.methods.shards import RetrainShards
from efface.unlearning.methods.ssd import Ssd
from efface.unlearning.protocol import Method

__all__ = [
    "METHODS",
    "AlignmentCalibration",
    "BadTeacher",
    "ContrastiveUnlearning",
    "Coun",
    "Damp",
    "Finetune",
    "GradientAscent",
    "GradientConstraint",
    "Influence",
    "L1Sparse",
    "LetheVit",
    "MarginMatching",
    "Method",
    "NegGrad",
    "Purge",
    "RandomLabels",
    "ReferenceMatching",
    "Retrain",
    "RetrainShards",
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
    "damp": Damp,
    "finetune": Finetune,
    "gradient_ascent": GradientAscent,
    "gradient_constraint": GradientConstraint,
    "influence": Influence,
    "l1_sparse": L1Sparse,
    "lethevit": LetheVit,
    "margin_matching": MarginMatching,
    "neggrad": NegGrad,
    "purge": Purge,
    "random_labels": RandomLabels,
    "reference_matching": ReferenceMatching,
    "retrain": Retrain,
    "salun": SalUn,
    "scrub": Scrub,
    "shards": RetrainShards,
    "ssd": Ssd,
}


def method_class(name: str) -> type[Method]:
    """The class of the method called ``name``, or an error that suggests the closest name."""
    if name not in METHODS:
        raise unknown_name_error("method", name, METHODS)
    return METHODS[name]
