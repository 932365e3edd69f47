"""open_clip: ``visual.*`` beside the text tower (``transformer.*``, ``token_embedding`` ... or ``text.*``).

``{epoch, name, state_dict, optimizer}`` from its trainer, or safetensors; ``module.`` in front after training in
parallel. A tower from timm is ``visual.trunk.*`` with its projection ``visual.head.*``. A bias beside the scale is
SigLIP's: its sigmoid loss is not CLIP's.
"""

from __future__ import annotations

from efface.layouts.protocol import Layout, Meta, Role, Rule, State, bare, tops, wrapper_of

TEXT = ("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection", "cls_emb")
"""The text tower's names where they are not below ``text``."""
EXTRAS = ("logit_bias", "text_decoder")


def open_clip(state: State, meta: Meta) -> Layout | None:
    """An image tower called ``visual`` with a text tower beside it."""
    wrapper = wrapper_of(state)
    names = bare(state, wrapper)
    if "visual" not in tops(names) or not tops(names) & {"text", *TEXT}:
        return None
    trunk = any(name.startswith("visual.trunk.") for name in names)
    rules = (
        Rule("visual.proj", Role.HEAD, "proj"),
        Rule("visual.head", Role.HEAD),
        Rule("attn_mask", Role.BUFFERS, "attn_mask"),
        Rule("text", Role.TEXT),
        *(Rule(name, Role.TEXT, name) for name in TEXT),
        Rule("logit_scale", Role.SCALE, "logit_scale"),
        *(Rule(name, Role.EXTRAS, name) for name in EXTRAS),
        Rule("visual.trunk" if trunk else "visual", Role.BACKBONE),
    )
    sigmoid = ("it has a bias beside the scale: trained with SigLIP's loss, and unlearned with CLIP's",)
    notes = sigmoid if "logit_bias" in names else ()
    return Layout(name="open_clip", rules=rules, wrapper=wrapper, objective="clip", notes=notes)
