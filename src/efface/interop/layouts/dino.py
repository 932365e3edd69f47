"""DINO and iBOT: ``student`` and ``teacher`` as two sections of one file, each ``backbone.*`` and ``head.*``.

The student is trained, and the teacher is its momentum encoder; usually the teacher is deployed. Only networks with
BatchNorm are wrapped twice, so one section may have ``module.`` and the other not. The center of the loss is a
mean over training images. ``args`` is an argparse.Namespace.
"""

from __future__ import annotations

from efface.interop.layouts.protocol import Layout, Meta, PrefixRule, Role, State, find_wrapper, strip_prefix


def detect_dino(state: State, meta: Meta) -> Layout | None:
    """Recognize a file with a ``student`` or a ``teacher`` section."""
    sections = [name for name in ("student", "teacher") if any(key.startswith(f"{name}/") for key in state)]
    if not sections:
        return None
    rules: list[PrefixRule] = []
    for section in sections:
        momentum = section == "teacher" and "student" in sections
        start = f"{section}/{find_wrapper(strip_prefix(state, f'{section}/'))}"
        rules += [
            PrefixRule(f"{start}backbone.masked_embed", Role.EXTRAS, f"{section}.masked_embed"),
            PrefixRule(
                f"{start}backbone", Role.MOMENTUM_ENCODER if momentum else Role.BACKBONE, "backbone" if momentum else ""
            ),
            PrefixRule(
                f"{start}head.last_layer",
                Role.MOMENTUM_ENCODER if momentum else Role.PROTOTYPES,
                "prototypes" if momentum else "",
            ),
            PrefixRule(
                f"{start}head.mlp", Role.MOMENTUM_ENCODER if momentum else Role.HEAD, "head" if momentum else ""
            ),
            PrefixRule(f"{start}head", Role.MOMENTUM_ENCODER if momentum else Role.HEAD, "head" if momentum else ""),
        ]
    return Layout(
        name="dino",
        rules=tuple(rules),
        gelu=True,
        notes=("the student is the trained network; evaluation code usually loads the teacher, its momentum copy",),
    )
