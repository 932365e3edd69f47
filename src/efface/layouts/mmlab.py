"""mmpretrain and mmselfsup: ``{meta, state_dict}`` with ``backbone.*``, ``neck.*`` and ``head.*``."""

from __future__ import annotations

from efface.layouts.protocol import Layout, Meta, Role, Rule, State, bare, tops, wrapper_of


def mmlab(state: State, meta: Meta) -> Layout | None:
    """A file of OpenMMLab's runner, which always has ``meta``."""
    wrapper = wrapper_of(state)
    names = tops(bare(state, wrapper))
    if "backbone" not in names or not ("meta" in meta or "neck" in names):
        return None
    rules = (
        Rule("backbone", Role.BACKBONE),
        Rule("neck", Role.HEAD, "neck"),
        Rule("head.fc", Role.HEAD),
        Rule("head", Role.HEAD, "head"),
        Rule("momentum_encoder", Role.TWIN, "momentum_encoder"),
        Rule("queue", Role.QUEUE, "queue"),
        Rule("queue_ptr", Role.BUFFERS, "queue_ptr"),
        Rule("data_preprocessor", Role.BUFFERS, "data_preprocessor"),
    )
    return Layout(name="mmlab", rules=rules, wrapper=wrapper)
