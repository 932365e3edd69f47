"""open_clip: ``visual.*`` beside the text tower (``transformer.*``, ``token_embedding`` ... or ``text.*``).

``{epoch, name, state_dict, optimizer}`` from its trainer, or safetensors; ``module.`` in front after training in
parallel. An image tower from timm is ``visual.trunk.*`` with its projection ``visual.head.*``. A bias beside the scale
belongs to SigLIP, whose sigmoid loss is not the loss of CLIP.
"""

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

TEXT_NAMES = ("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection", "cls_emb")
"""Names of the text tower where they are not below ``text``."""
EXTRAS = ("logit_bias", "text_decoder")


def detect_open_clip(state: State, meta: Meta) -> Layout | None:
    """Recognize an image tower called ``visual`` with a text tower beside it."""
    wrapper = find_wrapper(state)
    names = strip_wrapper(state, wrapper)
    if "visual" not in first_words(names) or not first_words(names) & {"text", *TEXT_NAMES}:
        return None
    trunk = any(name.startswith("visual.trunk.") for name in names)
    rules = (
        PrefixRule("visual.proj", Role.HEAD, "proj"),
        PrefixRule("visual.head", Role.HEAD),
        PrefixRule("attn_mask", Role.BUFFERS, "attn_mask"),
        PrefixRule("text", Role.TEXT),
        *(PrefixRule(name, Role.TEXT, name) for name in TEXT_NAMES),
        PrefixRule("logit_scale", Role.SCALE, "logit_scale"),
        *(PrefixRule(name, Role.EXTRAS, name) for name in EXTRAS),
        PrefixRule("visual.trunk" if trunk else "visual", Role.BACKBONE),
    )
    sigmoid = ("it has a bias beside the scale: trained with SigLIP's loss, and unlearned with CLIP's",)
    notes = sigmoid if "logit_bias" in names else ()
    return Layout(name="open_clip", rules=rules, wrapper=wrapper, objective="clip", notes=notes)
