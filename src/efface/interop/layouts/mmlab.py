"""mmpretrain and mmselfsup: ``{meta, state_dict}`` with ``backbone.*``, ``neck.*`` and ``head.*``."""

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


def detect_mmlab(state: State, meta: Meta) -> Layout | None:
    """Recognize a file of OpenMMLab's runner, which always has ``meta``."""
    wrapper = find_wrapper(state)
    names = first_words(strip_wrapper(state, wrapper))
    if "backbone" not in names or not ("meta" in meta or "neck" in names):
        return None
    rules = (
        PrefixRule("backbone", Role.BACKBONE),
        PrefixRule("neck", Role.HEAD, "neck"),
        PrefixRule("head.fc", Role.HEAD),
        PrefixRule("head", Role.HEAD, "head"),
        PrefixRule("momentum_encoder", Role.MOMENTUM_ENCODER, "momentum_encoder"),
        PrefixRule("queue", Role.QUEUE, "queue"),
        PrefixRule("queue_ptr", Role.BUFFERS, "queue_ptr"),
        PrefixRule("data_preprocessor", Role.BUFFERS, "data_preprocessor"),
    )
    return Layout(name="mmlab", rules=rules, wrapper=wrapper)
