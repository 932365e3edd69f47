"""MoCo, as the authors' code writes it.

v1, v2   ``encoder_q.*`` is trained, and ``encoder_k.*`` is its momentum encoder; the projector is their ``fc``;
         ``queue`` [dim, K] holds keys of past training images, ``queue_ptr`` the position of the next ones.
v3       ``base_encoder.*`` and ``momentum_encoder.*`` with the projector as ``fc`` (ResNet) or ``head`` (ViT),
         and a ``predictor``; no queue.

The container is ``{epoch, arch, state_dict, optimizer}``; every name begins with ``module.`` after training in
parallel.
"""

from __future__ import annotations

from efface.interop.layouts.protocol import (
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


def detect_moco(state: State, meta: Meta) -> Layout | None:
    """Recognize files of MoCo v1 and v2."""
    wrapper = find_wrapper(state)
    names = strip_wrapper(state, wrapper)
    if "encoder_q" not in first_words(names):
        return None
    rules = (
        *build_head_rules(strip_prefix(names, "encoder_q."), "encoder_q.", numbered=True),
        *build_head_rules(strip_prefix(names, "encoder_k."), "encoder_k.", momentum=True, numbered=True),
        PrefixRule("encoder_q", Role.BACKBONE),
        PrefixRule("encoder_k", Role.MOMENTUM_ENCODER, "backbone"),
        PrefixRule("queue", Role.QUEUE, "queue"),
        PrefixRule("queue_ptr", Role.BUFFERS, "queue_ptr"),
    )
    return Layout(name="moco", rules=rules, wrapper=wrapper, objective="moco")


def detect_moco_v3(state: State, meta: Meta) -> Layout | None:
    """Recognize files of MoCo v3."""
    wrapper = find_wrapper(state)
    names = strip_wrapper(state, wrapper)
    words = first_words(names)
    if "base_encoder" not in words and ("momentum_encoder" not in words or "backbone" in words):
        return None
    rules = (
        *build_head_rules(strip_prefix(names, "base_encoder."), "base_encoder.", numbered=True),
        *build_head_rules(strip_prefix(names, "momentum_encoder."), "momentum_encoder.", momentum=True, numbered=True),
        PrefixRule("base_encoder", Role.BACKBONE),
        PrefixRule("momentum_encoder", Role.MOMENTUM_ENCODER, "backbone"),
        PrefixRule("predictor", Role.PREDICTOR),
    )
    return Layout(name="moco_v3", rules=rules, wrapper=wrapper)
