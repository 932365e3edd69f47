"""Unlearning methods, one file each. They see training code and what they are given; never an audit or the oracle.

Adding one: a file here with a frozen dataclass, one line in ``METHODS``, a slow twin in ``tests/reference``.
"""

from efface.errors import unknown
from efface.methods.finetune import Finetune
from efface.methods.gradient_ascent import GradientAscent
from efface.methods.gradient_constraint import GradientConstraint
from efface.methods.neggrad import NegGrad
from efface.methods.protocol import Method
from efface.methods.retrain import Retrain
from efface.methods.scrub import Scrub

__all__ = [
    "METHODS",
    "Finetune",
    "GradientAscent",
    "GradientConstraint",
    "Method",
    "NegGrad",
    "Retrain",
    "Scrub",
    "method_class",
]

METHODS: dict[str, type[Method]] = {
    "finetune": Finetune,
    "gradient_ascent": GradientAscent,
    "gradient_constraint": GradientConstraint,
    "neggrad": NegGrad,
    "retrain": Retrain,
    "scrub": Scrub,
}


def method_class(name: str) -> type[Method]:
    """The method called ``name``, or an error that suggests the nearest."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]
