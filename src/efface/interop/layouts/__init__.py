"""Foreign checkpoints: what is where in the files of other libraries, and how to write them back the same way.

Adding a layout: a function here that recognizes its files and lists its rules, one line in ``LAYOUTS`` (the first
that recognizes a file wins, so special ones come first), one fixture in ``tests/checkpoints.py``.
"""

from efface.errors import EffaceError
from efface.interop.layouts.dino import detect_dino
from efface.interop.layouts.joint import detect_barlow, detect_swav
from efface.interop.layouts.lightly import detect_lightly
from efface.interop.layouts.mae import detect_mae
from efface.interop.layouts.mmlab import detect_mmlab
from efface.interop.layouts.moco import detect_moco, detect_moco_v3
from efface.interop.layouts.open_clip import detect_open_clip
from efface.interop.layouts.plain import detect_efface, detect_plain
from efface.interop.layouts.protocol import (
    Layout,
    LayoutDetector,
    Meta,
    PrefixRule,
    Role,
    State,
    TensorPlace,
    first_words,
)
from efface.interop.layouts.solo import detect_solo
from efface.interop.layouts.transformers import detect_transformers

__all__ = ["LAYOUTS", "Layout", "LayoutDetector", "Meta", "PrefixRule", "Role", "State", "TensorPlace", "detect_layout"]

LAYOUTS: dict[str, LayoutDetector] = {
    "efface": detect_efface,
    "transformers": detect_transformers,
    "moco": detect_moco,
    "moco_v3": detect_moco_v3,
    "dino": detect_dino,
    "solo": detect_solo,
    "lightly": detect_lightly,
    "mae": detect_mae,
    "swav": detect_swav,
    "barlow": detect_barlow,
    "mmlab": detect_mmlab,
    "open_clip": detect_open_clip,
    "plain": detect_plain,
}


def detect_layout(state: State, meta: Meta) -> Layout:
    """The layout of a file, from the names and shapes of its tensors and from what it says of itself."""
    for family in LAYOUTS.values():
        found = family(state, meta)
        if found is not None:
            return found
    shown = ", ".join(sorted(first_words(state))[:8])
    raise EffaceError(
        "This file has the layout of no library that is known here.",
        f"Its {len(state)} tensors are under: {shown}. Known layouts: {', '.join(LAYOUTS)}.",
        "Save the encoder's own state dict (torch.save(encoder.state_dict(), ...)), with names of torchvision or timm.",
    )
