"""A layout maps the names of tensors in a file to roles and names here, one to one.

    table : name in the file -> (role, name here)

A layout is an ordered list of rules. The first rule whose prefix matches a name gives its role and its name here. A
name that no rule matches becomes an extra under the same name, so nothing is lost and nothing is guessed.
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
"""Flat name to tensor. Outside of the main section of the file, the name is ``section/name``."""
Meta = Mapping[str, Any]
"""Everything but the tensors: the plain entries of the file, and the JSON files beside it under their file names."""
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")
"""Prefixes that DistributedDataParallel, torch.compile and enclosing modules put in front of every name."""
CLASSIFIER_NAMES = ("fc", "head", "heads", "classifier", "last_linear", "contrastive_head")
"""First words of the classifier in networks of torchvision, timm and others."""


class Role(StrEnum):
    """The part of a model that a foreign tensor belongs to."""

    BACKBONE = "backbone"
    HEAD = "head"
    PREDICTOR = "predictor"
    MOMENTUM_ENCODER = "twin"
    """The value is stored in run folders, so it keeps the name of earlier versions."""
    QUEUE = "queue"
    PROTOTYPES = "prototypes"
    TEXT = "text"
    SCALE = "scale"
    BUFFERS = "buffers"
    BOOKKEEPING = "bookkeeping"
    """Counters of averaging and profiling tools; they say nothing about images and are kept as they are."""
    EXTRAS = "extras"


@dataclass(frozen=True)
class TensorPlace:
    """A role, and the name within it.

    Names of a momentum encoder begin with ``backbone.`` or ``head.``, as in :class:`efface.training.model.Tower`.
    """

    role: Role
    name: str


@dataclass(frozen=True)
class PrefixRule:
    """Maps the name ``foreign``, and all names below it, to ``role``; ``own`` replaces ``foreign`` in the name.

    A ``foreign`` that is empty or ends in ``/`` matches everything in a section.
    """

    foreign: str
    role: Role
    own: str = ""
    first: Mapping[str, str] = field(default_factory=dict)
    """Replaces the first word that remains, such as a position in a ``Sequential``."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Replaces any word that remains."""

    def place(self, name: str) -> TensorPlace | None:
        """Return the place of a name; ``None`` if this rule does not match it."""
        if self.foreign == "" or self.foreign.endswith("/"):
            rest = name.removeprefix(self.foreign)
            matches = name.startswith(self.foreign) and "/" not in rest
        else:
            rest = name[len(self.foreign) + 1 :]
            matches = name == self.foreign or name.startswith(self.foreign + ".")
        if not matches:
            return None
        parts = rest.split(".") if rest else []
        parts = [self.words.get(part, part) for part in parts]
        parts[:1] = [self.first.get(part, part) for part in parts[:1]]
        return TensorPlace(self.role, ".".join([*([self.own] if self.own else []), *parts]))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Describes the files of one library: which tensor is which part of the model."""

    name: str
    """Name of the library or method."""
    rules: tuple[PrefixRule, ...]
    wrapper: str = ""
    """Prefix of every name in the main section, such as ``module.``."""
    objective: str | None = None
    """The objective that the model was trained with, by its name here; ``None`` where the layout does not tell."""
    gelu: bool = False
    """Whether the head's activations are GELUs and not ReLUs; no shape shows it."""
    stem_padding: int | None = None
    """Padding of a 3x3 stem, where the file states it; no shape shows it."""
    stem_relu: bool = True
    """Whether an activation follows the stem's normalization; no shape shows it."""
    notes: tuple[str, ...] = ()
    """What the user should know about this file that its tensors do not show."""
    fixed: Mapping[str, TensorPlace] = field(default_factory=dict)
    """Places that no rule gives: those of counters, and of the tensors of averaged copies."""
    copies: Mapping[TensorPlace, TensorPlace] = field(default_factory=dict)
    """Place of each tensor of an averaged copy to the place of the one that it is a copy of."""

    def place(self, name: str) -> TensorPlace:
        """Return the role and the name here of one foreign name."""
        if name in self.fixed:
            return self.fixed[name]
        return self.ruled_place(name) or TensorPlace(Role.EXTRAS, name.removeprefix(self.wrapper))

    def ruled_place(self, name: str) -> TensorPlace | None:
        """Return the place that a rule gives; ``None`` for a name that this layout does not know."""
        bare = name.removeprefix(self.wrapper)
        return next((place for rule in self.rules if (place := rule.place(bare)) is not None), None)

    def table(self, names: Iterable[str]) -> dict[str, TensorPlace]:
        """Return the place of every name.

        Raises:
            EffaceError: Two names have the same place, so the table could not be inverted.

        """
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
"""Recognizes the files of one library: returns their layout, or ``None``."""


def find_wrapper(names: Iterable[str], known: tuple[str, ...] = WRAPPERS) -> str:
    """Return the prefix of known wrappers that all names of the main section share, such as ``module.model.``."""
    main = [name for name in names if "/" not in name]
    prefix = ""
    while main:
        wrapper = next((one for one in known if all(name.startswith(prefix + one) for name in main)), None)
        if wrapper is None:
            break
        prefix += wrapper
    return prefix


def strip_wrapper(state: State, wrapper: str) -> dict[str, Tensor]:
    """Return the tensors of the main section, without the wrapper in their names."""
    return {name.removeprefix(wrapper): value for name, value in state.items() if "/" not in name}


def first_words(names: Iterable[str]) -> set[str]:
    """Return the first words of dotted names."""
    return {name.split(".")[0] for name in names}


def strip_prefix(state: State, prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def build_head_rules(
    state: State, prefix: str = "", *, momentum: bool = False, numbered: bool = False, separate: bool = False
) -> tuple[PrefixRule, ...]:
    """Build the rule for a head inside a backbone: an MLP under ``fc`` or ``head``, or the last linear layer.

    Args:
        state: The tensors of the backbone, without ``prefix``.
        prefix: The prefix of the backbone in the file.
        momentum: Whether the backbone belongs to the momentum encoder.
        numbered: Whether a single linear layer is layer 0 of a projector; otherwise it is a classifier.
        separate: Whether the head is beside the backbone and not in it, so that an MLP of any name is a head.

    """
    own, role = ("head", Role.MOMENTUM_ENCODER) if momentum else ("", Role.HEAD)
    linear = [
        name.removesuffix(".weight")
        for name, value in state.items()
        if name.endswith(".weight") and value.dim() == 2 and (separate or name.split(".")[0] in CLASSIFIER_NAMES)
    ]
    if not linear:
        return ()
    top = linear[-1].split(".")[0]
    steps = [name for name in linear if re.fullmatch(rf"{top}\.\d+", name)]
    if (separate or top in ("fc", "head")) and len(steps) > 1:
        return (PrefixRule(prefix + top, role, own),)
    return (PrefixRule(prefix + linear[-1], role, ".".join([*([own] if own else []), "0"]) if numbered else own),)
