"""MoCo, the authors' code.

v1, v2   ``encoder_q.*`` is trained, ``encoder_k.*`` its momentum copy; the projector is their ``fc``;
         ``queue`` [dim, K] holds keys of past training images, ``queue_ptr`` where the next ones go.
v3       ``base_encoder.*`` and ``momentum_encoder.*`` with the projector as ``fc`` (ResNet) or ``head`` (ViT),
         and a ``predictor``; no queue.

The container is ``{epoch, arch, state_dict, optimizer}``; every name begins with ``module.`` after training in
parallel.
"""

from __future__ import annotations

from efface.layouts.protocol import Layout, Meta, Role, Rule, State, bare, below, head_rules, tops, wrapper_of


def moco(state: State, meta: Meta) -> Layout | None:
    """MoCo v1 and v2."""
    wrapper = wrapper_of(state)
    names = bare(state, wrapper)
    if "encoder_q" not in tops(names):
        return None
    rules = (
        *head_rules(below(names, "encoder_q."), "encoder_q.", numbered=True),
        *head_rules(below(names, "encoder_k."), "encoder_k.", twin=True, numbered=True),
        Rule("encoder_q", Role.BACKBONE),
        Rule("encoder_k", Role.TWIN, "backbone"),
        Rule("queue", Role.QUEUE, "queue"),
        Rule("queue_ptr", Role.BUFFERS, "queue_ptr"),
    )
    return Layout(name="moco", rules=rules, wrapper=wrapper, objective="moco")


def moco_v3(state: State, meta: Meta) -> Layout | None:
    """MoCo v3."""
    wrapper = wrapper_of(state)
    names = bare(state, wrapper)
    if not {"base_encoder", "momentum_encoder"} & tops(names):
        return None
    rules = (
        *head_rules(below(names, "base_encoder."), "base_encoder.", numbered=True),
        *head_rules(below(names, "momentum_encoder."), "momentum_encoder.", twin=True, numbered=True),
        Rule("base_encoder", Role.BACKBONE),
        Rule("momentum_encoder", Role.TWIN, "backbone"),
        Rule("predictor", Role.PREDICTOR),
    )
    return Layout(name="moco_v3", rules=rules, wrapper=wrapper)
