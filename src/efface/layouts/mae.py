"""MAE: a Vision Transformer and its decoder in one dictionary, ``{model, optimizer, epoch, scaler, args}``.

The encoder has timm's names at top level; the decoder's begin with ``decoder_``.
"""

from __future__ import annotations

from efface.layouts.protocol import Layout, Meta, Role, Rule, State, bare, tops, wrapper_of

DECODER = ("decoder_embed", "decoder_pos_embed", "decoder_blocks", "decoder_norm", "decoder_pred", "mask_token")


def mae(state: State, meta: Meta) -> Layout | None:
    """A masked autoencoder with its decoder; without it, it is a plain timm file."""
    wrapper = wrapper_of(state)
    if not {"decoder_embed", "decoder_blocks"} & tops(bare(state, wrapper)):
        return None
    rules = (*(Rule(name, Role.EXTRAS, name) for name in DECODER), Rule("", Role.BACKBONE))
    return Layout(name="mae", rules=rules, wrapper=wrapper)
