"""Plain state dicts of torchvision, timm and similar libraries, and those of efface.

The backbone is at top level (or below one module: ``backbone.``, ``encoder.``) and its classifier is its last linear
layer: ``fc``, ``head``, ``heads.head``, ``classifier.6``. An MLP in place of ``fc`` is a projector. timm's trainer
keeps averaged weights in a second section, ``state_dict_ema``: a momentum encoder.
"""

from __future__ import annotations

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
    strip_wrapper,
)

AVERAGED = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "averaged_model")
OWNERS = ("backbone.", "encoder.", "base_encoder.", "visual.", "trunk.")


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
    if not any(value.dim() == 4 for value in names.values()) or len(first_words(names)) < 2:
        return None
    averaged = [section for section in AVERAGED if any(name.startswith(f"{section}/") for name in state)]
    rules = [*build_head_rules(names)]
    for section in averaged:
        theirs = {name.removeprefix(f"{section}/"): value for name, value in state.items() if section in name}
        start = f"{section}/{find_wrapper(theirs, (*WRAPPERS, *OWNERS))}"
        rules += [*build_head_rules(strip_wrapper(theirs, start.removeprefix(f"{section}/")), start, momentum=True)]
        rules += [
            PrefixRule(start, Role.MOMENTUM_ENCODER, "backbone")
            if start.endswith("/")
            else PrefixRule(start[:-1], Role.MOMENTUM_ENCODER, "backbone")
        ]
    rules += [PrefixRule("", Role.BACKBONE)]
    return Layout(name="plain", rules=tuple(rules), wrapper=wrapper)
