"""SwAV, Barlow Twins and VICReg, the authors' code.

SwAV              torchvision's names at top level, ``projection_head.*``, ``prototypes.weight`` (or several).
Barlow, VICReg    ``backbone.*``, ``projector.*``, and for Barlow a ``bn`` without weights, whose running statistics
                  are means over training images.
"""

from __future__ import annotations

from efface.layouts.protocol import Layout, Meta, Role, Rule, State, bare, tops, wrapper_of


def swav(state: State, meta: Meta) -> Layout | None:
    """SwAV and DeepCluster v2."""
    wrapper = wrapper_of(state)
    names = tops(bare(state, wrapper))
    if "conv1" not in names or not {"projection_head", "prototypes"} & names:
        return None
    rules = (
        Rule("projection_head", Role.HEAD),
        Rule("prototypes", Role.PROTOTYPES),
        Rule("", Role.BACKBONE),
    )
    return Layout(name="swav", rules=rules, wrapper=wrapper)


def barlow(state: State, meta: Meta) -> Layout | None:
    """Barlow Twins and VICReg."""
    wrapper = wrapper_of(state)
    names = tops(bare(state, wrapper))
    if not {"backbone", "projector"} <= names:
        return None
    rules = (Rule("backbone", Role.BACKBONE), Rule("projector", Role.HEAD))
    objective = "barlow" if "bn" in names else "vicreg"
    return Layout(name="barlow", rules=rules, wrapper=wrapper, objective=objective)
