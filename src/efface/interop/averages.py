"""Averaged copies of a network in its own file: an EMA, SWA or AveragedModel section beside the trained weights.

A section is a copy if its names end like those of the network and its shapes are the same; its name and its prefix do
not matter. The averaged weights are often the ones that are deployed, so they are never reset to random values: after
unlearning they are a copy of the unlearned network, or they are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from torch import Tensor

from efface.interop.layouts.protocol import Layout, Role, State, TensorPlace, first_words
from efface.interop.names import votes
from efface.interop.split_norm import STATISTICS

AVERAGED_NAMES = re.compile(
    r"(^|_)(ema|swa|averag\w*|avg|polyak|shadow|teacher|target|mean_teacher)(_|$)", re.IGNORECASE
)
"""Names of sections and modules that hold an averaged copy."""


class AveragedWeights(StrEnum):
    """What happens to the averaged weights of a file."""

    COPY = "copy"
    """The trained weights are unlearned, and the averaged ones become a copy of the result."""
    START = "start"
    """The averaged weights are unlearned, and the trained ones become a copy of the result."""
    DROP = "drop"
    """The trained weights are unlearned, and the averaged ones are left out of the file that is handed back."""


@dataclass(frozen=True)
class PairedCopies:
    """The tensors of a file that are copies of others in it."""

    places: dict[str, TensorPlace] = field(default_factory=dict)
    """Name to place, for each tensor of a copy."""
    originals: dict[TensorPlace, TensorPlace] = field(default_factory=dict)
    """Place of each such tensor to the place of the one that it is a copy of."""


def pair_sections(weights: State, layout: Layout) -> PairedCopies:
    """Find the sections that are copies of the network in the main section.

    Args:
        weights: Clean name to tensor, without counters of tools.
        layout: The layout of the file; sections that it has rules for are not looked at.

    """
    main = {name: value for name, value in weights.items() if "/" not in name}
    found = PairedCopies()
    for section in dict.fromkeys(name.partition("/")[0] for name in weights if "/" in name):
        start = f"{section}/"
        inside = {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
        if any(layout.ruled_place(start + name) for name in inside):
            continue
        required = {name for name, value in main.items() if _is_backbone(layout, name) and is_required(name, value)}
        for name, original in find_pairs(inside, main, required).items():
            own = layout.place(original)
            place = TensorPlace(Role.MOMENTUM_ENCODER, f"{own.role}.{own.name}")
            if place in found.originals:
                place = TensorPlace(Role.MOMENTUM_ENCODER, f"{section}:{place.name}")
            found.places[start + name] = place
            found.originals[place] = own
    return found


def find_pairs(section: State, main: State, required: set[str], *, partial: bool = False) -> dict[str, str]:
    """Pair the tensors of a section with those of a network, by the ends of their names and by their shapes.

    Args:
        section: Name to tensor of what may be a copy.
        main: Name to tensor of the network.
        required: Names of the network that must all have a partner.
        partial: Whether the section may hold other weights too.

    Returns:
        Name in the section to name in the network; empty unless every weight of the section and every required tensor
        has a partner.

    """
    anchor = max(required, key=lambda name: (main[name].dim(), len(name)), default=None)
    if anchor is None:
        return {}
    for name, value in section.items():
        common = _common_end(anchor, name)
        if not common or value.shape != main[anchor].shape:
            continue
        before, inside = anchor.removesuffix(common), name.removesuffix(common)
        pairs = {
            one: before + one.removeprefix(inside)
            for one, tensor in section.items()
            if one.startswith(inside) and _same_shape(main.get(before + one.removeprefix(inside)), tensor)
        }
        alone = [one for one, tensor in section.items() if one not in pairs and votes(one, tensor)]
        if (partial or not alone) and required <= set(pairs.values()):
            return pairs
    return {}


def split_modules(names: Mapping[str, str], weights: State) -> dict[str, str]:
    """Name averaged modules within a state dict as if they were sections: ``ema.module.x`` becomes ``ema/module.x``.

    Args:
        names: Name in the file to clean name.
        weights: Clean name to tensor, without counters of tools.

    Returns:
        ``names``, changed for every module with the name of an averaged copy that is a copy of all the other weights.

    """
    words = [word for word in first_words(name for name in weights if "/" not in name) if AVERAGED_NAMES.search(word)]
    copies: list[str] = []
    for word in words:
        rest = {n: v for n, v in weights.items() if "/" not in n and n.partition(".")[0] not in words}
        inside = {n.removeprefix(f"{word}."): v for n, v in weights.items() if n.startswith(f"{word}.")}
        if rest and find_pairs(inside, rest, {name for name, value in rest.items() if is_required(name, value)}):
            copies.append(word)
    return {raw: _as_section(clean) if clean.partition(".")[0] in copies else clean for raw, clean in names.items()}


def _as_section(name: str) -> str:
    """Return a name as if its first word were a section, which must not be taken for one of DINO's two."""
    word, _, rest = name.partition(".")
    return f"{'averaged_' if word in ('student', 'teacher') else ''}{word}/{rest}" if rest else name


def _is_backbone(layout: Layout, name: str) -> bool:
    return layout.place(name).role is Role.BACKBONE


def is_required(name: str, value: Tensor) -> bool:
    """Whether a copy must have this tensor; some averages have parameters alone, without BatchNorm's statistics."""
    return votes(name, value) and not name.endswith(STATISTICS)


def _common_end(a: str, b: str) -> str:
    """Return the longest common end of two dotted names that consists of whole words."""
    left, right = a.split("."), b.split(".")
    count = 0
    while count < min(len(left), len(right)) and left[-1 - count] == right[-1 - count]:
        count += 1
    return ".".join(left[len(left) - count :])


def _same_shape(a: Tensor | None, b: Tensor) -> bool:
    return a is not None and a.shape == b.shape
