"""SwAV, Barlow Twins and VICReg, as the authors' code writes them.

SwAV              torchvision's names at top level, ``projection_head.*``, ``prototypes.weight`` (or several).
Barlow, VICReg    ``backbone.*``, ``projector.*``, and for Barlow Twins a ``bn`` without weights, whose running
                  statistics are means over training images.
"""

from __future__ import annotations

from efface.interop.layouts.protocol import (
    Layout,
    Meta,
    PrefixRule,
    Role,
    State,
    find_wrapper,
    first_words,
    strip_wrapper,
)


def detect_swav(state: State, meta: Meta) -> Layout | None:
    """Recognize files of SwAV and DeepCluster v2."""
    wrapper = find_wrapper(state)
    names = first_words(strip_wrapper(state, wrapper))
    if "conv1" not in names or not {"projection_head", "prototypes"} & names:
        return None
    rules = (
        PrefixRule("projection_head", Role.HEAD),
        PrefixRule("prototypes", Role.PROTOTYPES),
        PrefixRule("", Role.BACKBONE),
    )
    return Layout(name="swav", rules=rules, wrapper=wrapper)


def detect_barlow(state: State, meta: Meta) -> Layout | None:
    """Recognize files of Barlow Twins and VICReg."""
    wrapper = find_wrapper(state)
    names = first_words(strip_wrapper(state, wrapper))
    if not {"backbone", "projector"} <= names:
        return None
    rules = (
        PrefixRule("backbone", Role.BACKBONE),
        PrefixRule("projector", Role.HEAD),
        PrefixRule("bn", Role.EXTRAS, "bn"),
    )
    objective = "barlow" if "bn" in names else "vicreg"
    return Layout(name="barlow", rules=rules, wrapper=wrapper, objective=objective)
