"""solo-learn: ``backbone.*`` (older files: ``encoder.*``), ``projector.*``, ``predictor.*``, their ``momentum_*``
twins, ``queue``, ``prototypes.*``, and a ``classifier`` trained beside it.

A Lightning checkpoint; how the network was built stands only in ``args.json`` beside it. For CIFAR the stem is a
3x3 convolution with padding 2 and there is no max-pool, which no shape shows.
"""

from __future__ import annotations

from typing import Any

from efface.layouts.protocol import Layout, Meta, Role, Rule, State, bare, tops, wrapper_of

OBJECTIVES = {
    "barlow_twins": "barlow",
    "byol": "byol",
    "mocov2plus": "moco",
    "simclr": "simclr",
    "simsiam": "simsiam",
    "vicreg": "vicreg",
}
OWN = {"projector", "momentum_projector", "momentum_head", "momentum_classifier", "dino_loss_func"}


def solo(state: State, meta: Meta) -> Layout | None:
    """A file that solo-learn's trainer wrote."""
    wrapper = wrapper_of(state, ("module.", "_orig_mod."))
    names = tops(bare(state, wrapper))
    body = next((name for name in ("backbone", "encoder") if name in names), None)
    if body is None or not ("classifier" in names and (names & OWN or "args.json" in meta)):
        return None
    method, cifar = _method(meta)
    notes = () if "args.json" in meta else ("args.json is not beside it: the stem's padding cannot be known",)
    if cifar:
        notes = ("trained on CIFAR: its stem pads by 2 and there is no max-pool",)
    rules = (
        Rule(body, Role.BACKBONE),
        Rule("projector", Role.HEAD),
        Rule("head.last_layer", Role.PROTOTYPES),
        Rule("head.mlp", Role.HEAD),
        Rule("head", Role.HEAD),
        Rule("predictor", Role.PREDICTOR),
        Rule(f"momentum_{body}", Role.TWIN, "backbone"),
        Rule("momentum_projector", Role.TWIN, "head"),
        Rule("momentum_head.last_layer", Role.TWIN, "prototypes"),
        Rule("momentum_head.mlp", Role.TWIN, "head"),
        Rule("momentum_head", Role.TWIN, "head"),
        Rule("momentum_predictor", Role.TWIN, "predictor"),
        Rule("queue", Role.QUEUE, "queue"),
        Rule("queue_y", Role.QUEUE, "queue_y"),
        Rule("local_memory_embeddings", Role.QUEUE, "local_memory_embeddings"),
        Rule("local_memory_index", Role.QUEUE, "local_memory_index"),
        Rule("queue_ptr", Role.BUFFERS, "queue_ptr"),
        Rule("prototypes", Role.PROTOTYPES),
    )
    return Layout(
        name="solo",
        rules=rules,
        wrapper=wrapper,
        objective=OBJECTIVES.get(method),
        gelu="momentum_head" in names,
        stem_padding=2 if cifar else None,
        notes=notes,
    )


def _method(meta: Meta) -> tuple[str, bool]:
    """Method, and whether the network has the stem for CIFAR."""
    args: Any = meta.get("args.json") or {}
    data = args.get("data")
    dataset = str(data.get("dataset", "") if isinstance(data, dict) else args.get("dataset", ""))
    return str(args.get("method", "")), dataset.lower() in ("cifar10", "cifar100")
