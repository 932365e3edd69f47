"""Objectives: what a checkpoint was trained with. Methods talk to the protocol and never ask which one it is.

Adding one: a file here with a frozen dataclass, one line in ``OBJECTIVES``, a slow twin in ``tests/reference``.
"""

from efface.errors import unknown
from efface.objectives.byol import Byol
from efface.objectives.cross_entropy import CrossEntropy
from efface.objectives.moco import Moco
from efface.objectives.protocol import Objective
from efface.objectives.simclr import SimClr

__all__ = ["OBJECTIVES", "Byol", "CrossEntropy", "Moco", "Objective", "SimClr", "objective_class"]

OBJECTIVES: dict[str, type[Objective]] = {
    "byol": Byol,
    "cross_entropy": CrossEntropy,
    "moco": Moco,
    "simclr": SimClr,
}


def objective_class(name: str) -> type[Objective]:
    """The objective called ``name``, or an error that suggests the nearest."""
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    return OBJECTIVES[name]
