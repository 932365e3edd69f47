"""MAE: a Vision Transformer and its decoder in one dictionary, ``{model, optimizer, epoch, scaler, args}``.

The encoder has timm's names at top level; the decoder's begin with ``decoder_``.
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

DECODER = ("decoder_embed", "decoder_pos_embed", "decoder_blocks", "decoder_norm", "decoder_pred", "mask_token")


def detect_mae(state: State, meta: Meta) -> Layout | None:
    """Recognize a masked autoencoder with its decoder; without a decoder it is a plain timm file."""
    wrapper = find_wrapper(state)
    if not {"decoder_embed", "decoder_blocks"} & first_words(strip_wrapper(state, wrapper)):
        return None
    rules = (*(PrefixRule(name, Role.EXTRAS, name) for name in DECODER), PrefixRule("", Role.BACKBONE))
    return Layout(name="mae", rules=rules, wrapper=wrapper)
