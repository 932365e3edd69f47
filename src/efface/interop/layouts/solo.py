"""solo-learn: ``backbone.*`` (older files: ``encoder.*``), ``projector.*``, ``predictor.*`` and more.

There may be momentum encoders ``momentum_*``, a ``queue``, ``prototypes.*``, and a ``classifier`` that was trained
online. The file is a Lightning checkpoint; only ``args.json`` beside it says how the network was built. For CIFAR the
stem is a 3x3 convolution with padding 2 and there is no max-pool, which no shape shows.
"""

from __future__ import annotations

from typing import Any

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

SOLO_METHODS = {
    "barlow_twins": "barlow",
    "byol": "byol",
    "mocov2plus": "moco",
    "simclr": "simclr",
    "simsiam": "simsiam",
    "vicreg": "vicreg",
}
SOLO_MODULES = {"projector", "momentum_projector", "momentum_head", "momentum_classifier", "dino_loss_func"}


def detect_solo(state: State, meta: Meta) -> Layout | None:
    """Recognize a file of solo-learn's trainer."""
    wrapper = find_wrapper(state, ("module.", "_orig_mod."))
    names = first_words(strip_wrapper(state, wrapper))
    body = next((name for name in ("backbone", "encoder") if name in names), None)
    if body is None or not ("classifier" in names and (names & SOLO_MODULES or "args.json" in meta)):
        return None
    method, cifar = _method(meta)
    notes = () if "args.json" in meta else ("args.json is not beside it: the stem's padding cannot be known",)
    if cifar:
        notes = ("trained on CIFAR: its stem pads by 2 and there is no max-pool",)
    rules = (
        PrefixRule(body, Role.BACKBONE),
        PrefixRule("projector", Role.HEAD),
        PrefixRule("head.last_layer", Role.PROTOTYPES),
        PrefixRule("head.mlp", Role.HEAD),
        PrefixRule("head", Role.HEAD),
        PrefixRule("predictor", Role.PREDICTOR),
        PrefixRule(f"momentum_{body}", Role.MOMENTUM_ENCODER, "backbone"),
        PrefixRule("momentum_projector", Role.MOMENTUM_ENCODER, "head"),
        PrefixRule("momentum_head.last_layer", Role.MOMENTUM_ENCODER, "prototypes"),
        PrefixRule("momentum_head.mlp", Role.MOMENTUM_ENCODER, "head"),
        PrefixRule("momentum_head", Role.MOMENTUM_ENCODER, "head"),
        PrefixRule("momentum_predictor", Role.MOMENTUM_ENCODER, "predictor"),
        PrefixRule("queue", Role.QUEUE, "queue"),
        PrefixRule("queue_y", Role.QUEUE, "queue_y"),
        PrefixRule("local_memory_embeddings", Role.QUEUE, "local_memory_embeddings"),
        PrefixRule("local_memory_index", Role.QUEUE, "local_memory_index"),
        PrefixRule("queue_ptr", Role.BUFFERS, "queue_ptr"),
        PrefixRule("prototypes", Role.PROTOTYPES),
        *(PrefixRule(name, Role.EXTRAS, name) for name in ("classifier", "momentum_classifier", "dino_loss_func")),
    )
    return Layout(
        name="solo",
        rules=rules,
        wrapper=wrapper,
        objective=SOLO_METHODS.get(method),
        gelu="momentum_head" in names,
        stem_padding=2 if cifar else None,
        notes=notes,
    )


def _method(meta: Meta) -> tuple[str, bool]:
    """Return the method, and whether the network has the stem for CIFAR."""
    args: Any = meta.get("args.json") or {}
    data = args.get("data")
    dataset = str(data.get("dataset", "") if isinstance(data, dict) else args.get("dataset", ""))
    return str(args.get("method", "")), dataset.lower() in ("cifar10", "cifar100")
