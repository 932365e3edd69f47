"""A layout: which foreign name is which tensor of which part, strictly and both ways.

    table : foreign name -> (role, own name),   one to one on the names of a file

A layout is an ordered list of rules. The first rule whose prefix fits a name gives its role and its own name;
a name that no rule knows is an extra under its own name, so nothing is lost and nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import Tensor

from efface.errors import EffaceError

State = Mapping[str, Tensor]
"""Flat names to tensors. A tensor of a side section of its file is called ``section/name``."""
Meta = Mapping[str, Any]
"""What the file says beside its tensors: its plain entries, and the JSON files beside it under their file names."""
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")
"""What DistributedDataParallel, torch.compile and owning modules put in front of every name."""


class Role(StrEnum):
    """What a foreign tensor is."""

    BACKBONE = "backbone"
    HEAD = "head"
    PREDICTOR = "predictor"
    TWIN = "twin"
    QUEUE = "queue"
    PROTOTYPES = "prototypes"
    TEXT = "text"
    SCALE = "scale"
    BUFFERS = "buffers"
    EXTRAS = "extras"


@dataclass(frozen=True)
class TensorPlace:
    """A role, and the name within it. A twin's names begin with ``backbone.`` or ``head.``, as in a Tower."""

    role: Role
    name: str


@dataclass(frozen=True)
class PrefixRule:
    """Names that are ``foreign`` or below it belong to ``role``; ``own`` replaces ``foreign``.

    A ``foreign`` that is empty or ends in ``/`` stands for everything in a section.
    """

    foreign: str
    role: Role
    own: str = ""
    first: Mapping[str, str] = field(default_factory=dict)
    """New words for the first word that remains (positions in a Sequential)."""
    words: Mapping[str, str] = field(default_factory=dict)
    """New words for any word that remains."""

    def place(self, name: str) -> TensorPlace | None:
        """Where this rule puts a name; ``None`` if it does not speak of it."""
        if self.foreign == "" or self.foreign.endswith("/"):
            rest = name.removeprefix(self.foreign)
            fits = name.startswith(self.foreign) and "/" not in rest
        else:
            rest = name[len(self.foreign) + 1 :]
            fits = name == self.foreign or name.startswith(self.foreign + ".")
        if not fits:
            return None
        parts = rest.split(".") if rest else []
        parts = [self.words.get(part, part) for part in parts]
        parts[:1] = [self.first.get(part, part) for part in parts[:1]]
        return TensorPlace(self.role, ".".join([*([self.own] if self.own else []), *parts]))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where everything is in the files of one library."""

    name: str
    """The library or method, as users call it."""
    rules: tuple[PrefixRule, ...]
    wrapper: str = ""
    """In front of every name of the main section, such as ``module.``."""
    objective: str | None = None
    """The objective of efface that it was trained with, where the layout tells."""
    gelu: bool = False
    """Whether the head's activation is a GELU; no shape shows it, and others have ReLUs."""
    stem_padding: int | None = None
    """Padding of a 3x3 stem, where the file tells; no shape shows it."""
    stem_relu: bool = True
    """Whether an activation follows the stem's normalization; no shape shows it."""
    notes: tuple[str, ...] = ()
    """What to know about this file that its tensors do not show."""

    def place(self, name: str) -> TensorPlace:
        """The role and own name of one foreign name."""
        bare = name.removeprefix(self.wrapper)
        found = (rule.place(bare) for rule in self.rules)
        return next((place for place in found if place is not None), TensorPlace(Role.EXTRAS, bare))

    def table(self, names: Iterable[str]) -> dict[str, TensorPlace]:
        """Every foreign name's place; two names on one place are an error, so the table can be read backwards."""
        places = {name: self.place(name) for name in names}
        if len(set(places.values())) < len(places):
            seen: dict[TensorPlace, str] = {}
            for name, place in places.items():
                if place in seen:
                    raise EffaceError(
                        f"Two tensors would both be '{place.name}' of the {place.role}: {seen[place]} and {name}.",
                        f"The file was taken for the layout '{self.name}'.",
                        "Save the state dict of one model alone.",
                    )
                seen[place] = name
        return places


LayoutDetector = Callable[[State, Meta], Layout | None]
"""Recognizes the files of one library: their layout, or ``None``."""


def find_wrapper(names: Iterable[str], known: tuple[str, ...] = WRAPPERS) -> str:
    """What every name of the main section begins with, of the known wrappers: ``module.``, ``module.model.``, ..."""
    main = [name for name in names if "/" not in name]
    found = ""
    while main:
        again = next((w for w in known if all(name.startswith(found + w) for name in main)), None)
        if again is None:
            break
        found += again
    return found


def strip_wrapper(state: State, wrapper: str) -> dict[str, Tensor]:
    """The main section's tensors without their wrapper."""
    return {name.removeprefix(wrapper): value for name, value in state.items() if "/" not in name}


def first_words(names: Iterable[str]) -> set[str]:
    """First words of the names."""
    return {name.split(".")[0] for name in names}


def strip_prefix(state: State, prefix: str) -> dict[str, Tensor]:
    """Tensors under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def build_head_rules(
    state: State, prefix: str = "", *, twin: bool = False, numbered: bool = False
) -> tuple[PrefixRule, ...]:
    """The rule for a head that sits inside a backbone: an MLP under ``fc`` or ``head``, or the last linear layer.

    ``state``: the backbone's names, under ``prefix`` in the file. ``numbered``: a lone linear layer is a projector,
    and so layer 0 of it; else it is a classifier.
    """
    own, role = ("head", Role.TWIN) if twin else ("", Role.HEAD)
    linear = [
        name.removesuffix(".weight")
        for name, value in state.items()
        if name.endswith(".weight") and value.dim() == 2 and name.split(".")[0] in CLASSIFIER_NAMES
    ]
    if not linear:
        return ()
    top = linear[-1].split(".")[0]
    steps = [name for name in linear if re.fullmatch(rf"{top}\.\d+", name)]
    whole = top in ("fc", "head") and len(steps) > 1
    if whole:
        return (PrefixRule(prefix + top, role, own),)
    return (PrefixRule(prefix + linear[-1], role, ".".join([*([own] if own else []), "0"]) if numbered else own),)


CLASSIFIER_NAMES = ("fc", "head", "heads", "classifier", "last_linear", "contrastive_head")
"""Where networks of torchvision, timm and others keep their classifier."""
