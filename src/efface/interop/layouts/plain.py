"""Plain state dicts of torchvision, timm and similar libraries, and those of efface.

The backbone is at top level (or below one module: ``backbone.``, ``encoder.``) and its classifier is its last linear
layer: ``fc``, ``head``, ``heads.head``, ``classifier.6``, in the network or beside its owner. An MLP in place of ``fc``
is a projector, or a classifier's head. Names that are positions belong to a Sequential of a ResNet's children, as in
lightly's tutorials (``{"resnet18_parameters": ...}``).
"""

from __future__ import annotations

import re

from efface.interop.layouts.lightly import POSITIONS, SHORTCUTS, SMALL_POSITIONS
from efface.interop.layouts.protocol import (
    WRAPPERS,
    Layout,
    Meta,
    PrefixRule,
    Role,
    State,
    build_head_rules,
    find_wrapper,
    first_words,
    strip_prefix,
    strip_wrapper,
)

OWNERS = ("backbone.", "encoder.", "base_encoder.", "visual.", "trunk.", "feature_extractor.")
RESNET_CHILD = re.compile(r"(^|\.)[24]\.0\.conv1\.weight$")
"""Matches a convolution in the first stage of a ResNet that was made a Sequential of its children."""
MAX_OWNERS = 3
"""At most so many modules by names that are not known are looked into."""
MASKS = ("mask_token", "masked_embed")
"""Tokens that only masked training uses."""


def detect_efface(state: State, meta: Meta) -> Layout | None:
    """Recognize a weights file of efface, which contains its normalization."""
    if not {"mean", "std", "backbone"} <= first_words(state):
        return None
    rules = (
        *(PrefixRule(role.value, role) for role in (Role.BACKBONE, Role.HEAD, Role.PREDICTOR, Role.MOMENTUM_ENCODER)),
        PrefixRule("queue", Role.QUEUE, "queue"),
        PrefixRule("mean", Role.BUFFERS, "mean"),
        PrefixRule("std", Role.BUFFERS, "std"),
    )
    return Layout(name="efface", rules=rules)


def detect_plain(state: State, meta: Meta) -> Layout | None:
    """Recognize any single network with a convolution or a patch embedding."""
    wrapper = find_wrapper(state, (*WRAPPERS, *OWNERS))
    names = strip_wrapper(state, wrapper)
    words = first_words(names)
    for _ in range(MAX_OWNERS):
        if len(words) == 1:
            wrapper += f"{next(iter(words))}."  # a module of the user's own, by any name
            names = strip_wrapper(state, wrapper)
            words = first_words(names)
    if not any(value.dim() == 4 for value in names.values()) or len(words) < 2:
        return None
    by_position = any(RESNET_CHILD.search(name) for name in names)
    owners = [name[:-1] for name in (*OWNERS, *(("features.",) if by_position else ()))]
    owner = next((name for name in owners if name in words and _is_head(names, words - {name})), "")
    body = strip_prefix(names, f"{owner}.") if owner else names
    beside = {name: value for name, value in names.items() if not owner or name.partition(".")[0] != owner}
    heads = build_head_rules(beside, separate=bool(owner))
    if not by_position:
        masks = tuple(PrefixRule(name, Role.EXTRAS, name) for name in MASKS)
        return Layout(name="plain", rules=(*heads, *masks, PrefixRule(owner, Role.BACKBONE)), wrapper=wrapper)
    small = any(name.startswith("2.") for name in body)
    rule = PrefixRule(owner, Role.BACKBONE, first=SMALL_POSITIONS if small else POSITIONS, words=SHORTCUTS)
    return Layout(name="plain", rules=(*heads, rule), wrapper=wrapper, stem_relu=not small)


def _is_head(names: State, words: set[str]) -> bool:
    """Whether what stands beside the owner of the network is a single module of linear layers, by any name."""
    beside = [value for name, value in names.items() if name.partition(".")[0] in words]
    return len(words) == 1 and all(value.dim() <= 2 for value in beside)
