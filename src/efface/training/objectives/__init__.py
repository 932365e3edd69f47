"""Objectives: what a checkpoint was trained with. Methods talk to the protocol and never ask which one it is.

Adding one: a file here with a frozen dataclass, one line in ``OBJECTIVES``, a slow twin in ``tests/reference``.
"""

from efface import config
from efface.errors import unknown_name_error
from efface.training.model import Objective
from efface.training.objectives.barlow import Barlow
from efface.training.objectives.byol import Byol
from efface.training.objectives.clip import Clip
from efface.training.objectives.cross_entropy import CrossEntropy
from efface.training.objectives.moco import Moco
from efface.training.objectives.simclr import SimClr
from efface.training.objectives.simsiam import SimSiam
from efface.training.objectives.vicreg import VicReg

__all__ = [
    "OBJECTIVES",
    "Barlow",
    "Byol",
    "Clip",
    "CrossEntropy",
    "Moco",
    "Objective",
    "SimClr",
    "SimSiam",
    "VicReg",
    "objective_class",
]

OBJECTIVES: dict[str, type[Objective]] = {
    "barlow": Barlow,
    "byol": Byol,
    "clip": Clip,
    "cross_entropy": CrossEntropy,
    "moco": Moco,
    "simclr": SimClr,
    "simsiam": SimSiam,
    "vicreg": VicReg,
}


def objective_class(name: str) -> type[Objective]:
    """The objective called ``name``, or an error that suggests the nearest."""
    if name not in OBJECTIVES:
        raise unknown_name_error("objective", name, OBJECTIVES)
    return OBJECTIVES[name]


CHOICES: config.Choices = {Objective: OBJECTIVES}
