"""Plain state dicts of torchvision, timm and their like, and efface's own.

The backbone is at top level (or under one owner: ``backbone.``, ``encoder.``) and its classifier is its last linear
layer: ``fc``, ``head``, ``heads.head``, ``classifier.6``. An MLP in place of ``fc`` is a projector. timm's trainer
keeps averaged weights as a second section, ``state_dict_ema``: a twin.
"""

from __future__ import annotations

from efface.layouts.protocol import WRAPPERS, Layout, Meta, Role, Rule, State, bare, head_rules, tops, wrapper_of

AVERAGED = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "averaged_model")
OWNERS = ("backbone.", "encoder.", "base_encoder.", "visual.", "trunk.")


def efface(state: State, meta: Meta) -> Layout | None:
    """A bare file of efface's own weights: they carry their normalization."""
    if not {"mean", "std", "backbone"} <= tops(state):
        return None
    rules = (
        *(Rule(role.value, role) for role in (Role.BACKBONE, Role.HEAD, Role.PREDICTOR, Role.TWIN)),
        Rule("queue", Role.QUEUE, "queue"),
        Rule("mean", Role.BUFFERS, "mean"),
        Rule("std", Role.BUFFERS, "std"),
    )
    return Layout(name="efface", rules=rules)


def plain(state: State, meta: Meta) -> Layout | None:
    """Anything with a convolution or a patch embedding whose names are those of one network."""
    wrapper = wrapper_of(state, (*WRAPPERS, *OWNERS))
    names = bare(state, wrapper)
    if not any(value.dim() == 4 for value in names.values()) or len(tops(names)) < 2:
        return None
    averaged = [section for section in AVERAGED if any(name.startswith(f"{section}/") for name in state)]
    rules = [*head_rules(names)]
    for section in averaged:
        theirs = {name.removeprefix(f"{section}/"): value for name, value in state.items() if section in name}
        start = f"{section}/{wrapper_of(theirs, (*WRAPPERS, *OWNERS))}"
        rules += [*head_rules(bare(theirs, start.removeprefix(f"{section}/")), start, twin=True)]
        rules += [
            Rule(start, Role.TWIN, "backbone") if start.endswith("/") else Rule(start[:-1], Role.TWIN, "backbone")
        ]
    rules += [Rule("", Role.BACKBONE)]
    return Layout(name="plain", rules=tuple(rules), wrapper=wrapper)
