"""Other networks with the same weights: what no shape shows, and what may therefore have been trained otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from efface.interop.assumptions import Variant
from efface.training.networks.backbones import BLOCKS
from efface.training.objectives.shared import ProjectorLayer
from efface.training.recipe import Recipe

HEAD_WIDTHS = (16, 24, 32, 48, 64, 80, 96, 128)
"""Usual widths of an attention head."""


def structure_variants(recipe: Recipe, stated: Mapping[str, Any]) -> dict[str, list[Variant]]:
    """List other networks that these weights fit, by topic.

    Args:
        recipe: What the weights were put into.
        stated: Settings of the recipe that the user or a file stated; these are not varied.

    Returns:
        Topic (``stem``, ``attention heads``, ``activation``) to alternatives; topics without any are left out.

    """
    backbone, options = recipe.backbone, recipe.backbone.options
    known: Mapping[str, Any] = stated.get("backbone") or {}
    known_options: Mapping[str, Any] = known.get("options") or {}
    found: dict[str, list[Variant]] = {}
    if backbone.name in BLOCKS and "name" not in known:
        found["stem"] = [
            _variant(f"stem of stride {stride}, padding {padding}", stride=stride, padding=padding, recipe=recipe)
            for stride in (1, 2)
            for padding in (1, 2)
            if (stride, padding) != (backbone.stride, int(options.get("padding", 1)))
            and ("stride" not in known or stride == backbone.stride)
        ]
    heads, width = options.get("num_heads"), options.get("embed_dim")
    if isinstance(heads, int) and isinstance(width, int) and "num_heads" not in known_options:
        counts = sorted({width // one for one in HEAD_WIDTHS if width % one == 0} - {heads, 0})
        found["attention heads"] = [
            Variant(
                f"{count} attention heads",
                (f"recipe.backbone.options.num_heads={count}",),
                {"backbone": {"options": {"num_heads": count}}},
            )
            for count in counts
        ]
    if recipe.backbone.name.startswith("open_clip:") and "quick_gelu" not in known_options:
        other = not options.get("quick_gelu", False)
        setting = f"recipe.backbone.options.quick_gelu={str(other).lower()}"
        changed = {"backbone": {"options": {"quick_gelu": other}}}
        found["activation"] = [Variant(f"quick GELU {'on' if other else 'off'}", (setting,), changed)]
    layers = getattr(recipe.objective, "layers", None)
    if recipe.objective.needs_labels and layers and "layers" not in (stated.get("objective") or {}):
        others = [one for one in (ProjectorLayer.RELU, ProjectorLayer.GELU) if one not in layers]
        if len(others) == 1:
            changed_layers = _swap_activation(layers, others[0])
            written = f"[{', '.join(changed_layers)}]"
            found["activation of the head"] = [
                Variant(
                    f"a head with {others[0].value}",
                    (f"recipe.objective.layers={written}",),
                    {"objective": {"layers": changed_layers}},
                )
            ]
    return {topic: variants for topic, variants in found.items() if variants}


def describe_structure(recipe: Recipe, topic: str) -> str:
    """What is in use of a topic, in words."""
    backbone = recipe.backbone
    if topic == "stem":
        return f"stem of stride {backbone.stride}, padding {backbone.options.get('padding', 1)}"
    if topic == "attention heads":
        return f"{backbone.options.get('num_heads')} attention heads"
    if topic == "activation":
        return f"quick GELU {'on' if backbone.options.get('quick_gelu') else 'off'}"
    layers: Sequence[ProjectorLayer] = getattr(recipe.objective, "layers", None) or ()
    return f"a head of {', '.join(str(one.value) for one in layers)}"


def _swap_activation(layers: Sequence[ProjectorLayer], other: ProjectorLayer) -> list[str]:
    activations = (ProjectorLayer.RELU, ProjectorLayer.GELU)
    return [str((other if one in activations else one).value) for one in layers]


def _variant(name: str, *, stride: int, padding: int, recipe: Recipe) -> Variant:
    settings = [f"recipe.backbone.name={recipe.backbone.name}", f"recipe.backbone.width={recipe.backbone.width}"]
    settings += [f"recipe.backbone.stride={stride}", f"recipe.backbone.options.padding={padding}"]
    options = {**recipe.backbone.options, "padding": padding}
    settings += [f"recipe.backbone.options.stem_relu={str(v).lower()}" for k, v in options.items() if k == "stem_relu"]
    backbone = {"name": recipe.backbone.name, "width": recipe.backbone.width, "stride": stride, "options": options}
    return Variant(name, tuple(settings), {"backbone": backbone})
