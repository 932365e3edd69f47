"""lightly: its examples and its ImageNet benchmarks.

examples     ``backbone`` is a Sequential of a ResNet's children, so its names are positions (``backbone.4.0.conv1``);
             momentum encoders end in ``_momentum`` or begin with ``teacher_``. In lightly's own ResNet the ReLUs are
             not child modules, so its Sequential has lost the ReLU after the stem.
benchmarks   ``backbone`` has torchvision's names; the momentum encoder is ``key_backbone`` (MoCo) or
             ``teacher_backbone`` (BYOL). Where there is a ``student_backbone`` (DINO) or ``query_backbone``, that one
             is trained, and plain ``backbone`` is its momentum encoder.

Memory banks are not persistent buffers, so these files have no queue.
"""

from __future__ import annotations

import re

from efface.interop.layouts.protocol import (
    CLASSIFIER_NAMES,
    Layout,
    Meta,
    PrefixRule,
    Role,
    State,
    find_wrapper,
    first_words,
    strip_wrapper,
)

TRAINED_BACKBONES = ("student_backbone", "query_backbone", "backbone")
MOMENTUM_BACKBONES = ("teacher_backbone", "key_backbone", "backbone_momentum", "backbone")
PROJECTION_HEADS = {
    "student_backbone": ("student_projection_head", "student_head"),
    "query_backbone": ("query_projection_head",),
    "backbone": ("projection_head",),
}
MOMENTUM_HEADS = (
    "teacher_projection_head",
    "teacher_head",
    "key_projection_head",
    "projection_head_momentum",
    "projection_head",
)
POSITIONS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""Children of torchvision's ResNet; 2 and 3 are ReLU and max-pool, or their replacements."""
SMALL_POSITIONS = {"0": "conv1", "1": "bn1", "2": "layer1", "3": "layer2", "4": "layer3", "5": "layer4"}
"""Children of lightly's own small ResNet, which applies ReLU as a function."""
SHORTCUTS = {"shortcut": "downsample"}
"""The word of lightly's ResNet for the branch that torchvision calls downsample."""
LIGHTLY_MODULES = {"projection_head", "student_head", "student_projection_head", "online_classifier", "prediction_head"}


def detect_lightly(state: State, meta: Meta) -> Layout | None:
    """Recognize a LightningModule of lightly's examples or benchmarks."""
    wrapper = find_wrapper(state, ("module.", "_orig_mod."))
    names = strip_wrapper(state, wrapper)
    first = first_words(names)
    body = next((name for name in TRAINED_BACKBONES if name in first), None)
    by_position = body is not None and any(re.match(rf"{body}\.\d+\.", name) for name in names)
    if body is None or not (
        first & LIGHTLY_MODULES or by_position or any(n.startswith("backbone.vit.") for n in names)
    ):
        return None
    if first <= {body, *CLASSIFIER_NAMES}:
        return None  # a plain network, whose ResNet is a Sequential of its children
    momentum = next((name for name in MOMENTUM_BACKBONES if name in first and name != body), None)
    rules = [
        *_tower(names, body, Role.BACKBONE, ""),
        *_heads(PROJECTION_HEADS[body], Role.HEAD, "", Role.PROTOTYPES, ""),
    ]
    if momentum:
        rules += [
            *_tower(names, momentum, Role.MOMENTUM_ENCODER, "backbone"),
            *_heads(MOMENTUM_HEADS, Role.MOMENTUM_ENCODER, "head", Role.MOMENTUM_ENCODER, "prototypes"),
        ]
    rules += [PrefixRule("prediction_head.layers", Role.PREDICTOR), PrefixRule("prototypes", Role.PROTOTYPES)]
    rules += [PrefixRule(name, Role.EXTRAS, name) for name in ("online_classifier", "criterion")]
    notes = ()
    if body != "backbone" and "backbone" in first:
        notes = (f"here '{body}' is the trained network and plain 'backbone' its momentum copy",)
    return Layout(
        name="lightly",
        rules=tuple(rules),
        wrapper=wrapper,
        objective=_objective(first, momentum),
        gelu=any("head.last_layer." in name for name in names),
        stem_relu=not (by_position and _small(names, body)),
        notes=notes,
    )


def _tower(names: State, prefix: str, role: Role, own: str) -> list[PrefixRule]:
    if any(name.startswith(f"{prefix}.vit.") for name in names):
        return [
            PrefixRule(f"{prefix}.vit", role, own),
            PrefixRule(f"{prefix}.mask_token", Role.EXTRAS, f"{prefix}.mask_token"),
        ]
    if not any(re.match(rf"{prefix}\.\d+\.", name) for name in names):
        return [PrefixRule(prefix, role, own)]
    first = SMALL_POSITIONS if _small(names, prefix) else POSITIONS
    return [PrefixRule(prefix, role, own, first=first, words=SHORTCUTS)]


def _small(names: State, prefix: str) -> bool:
    """Whether the first stage follows the normalization directly, because the ReLU is not a child module."""
    return any(name.startswith(f"{prefix}.2.") for name in names)


def _heads(names: tuple[str, ...], role: Role, own: str, last: Role, last_own: str) -> list[PrefixRule]:
    return [
        rule
        for name in names
        for rule in (PrefixRule(f"{name}.last_layer", last, last_own), PrefixRule(f"{name}.layers", role, own))
    ]


def _objective(first: set[str], momentum: str | None) -> str | None:
    if "prediction_head" in first:
        return "byol" if momentum else "simsiam"
    if "prototypes" in first or "student_backbone" in first or "projection_head" not in first:
        return None
    return "moco" if momentum else "simclr"
