"""Objectives: what a checkpoint was trained with. Methods talk to the protocol and never ask which one it is.

Adding one: a file here with a frozen dataclass, one line in ``OBJECTIVES``, a slow twin in ``tests/reference``.
"""

from efface.errors import unknown
from efface.objectives.barlow import Barlow
from efface.objectives.byol import Byol
from efface.objectives.clip import Clip
from efface.objectives.cross_entropy import CrossEntropy
from efface.objectives.moco import Moco
from efface.objectives.protocol import Objective
from efface.objectives.simclr import SimClr
from efface.objectives.simsiam import SimSiam
from efface.objectives.vicreg import VicReg

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
        raise unknown("objective", name, OBJECTIVES)
    return OBJECTIVES[name]
