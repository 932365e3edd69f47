"""Training objectives. Methods use the protocol and never ask which objective a checkpoint was trained with.

To add one: write a frozen dataclass in a file of this folder, add a line to ``OBJECTIVES``, and write a reference
implementation in ``tests/reference``.
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
    """Look up the objective called ``name``.

    Raises:
        EffaceError: If there is none; the message suggests the nearest name.

    """
    if name not in OBJECTIVES:
        raise unknown_name_error("objective", name, OBJECTIVES)
    return OBJECTIVES[name]


CHOICES: config.Choices = {Objective: OBJECTIVES}
