"""Layouts of the checkpoints of other libraries: which tensor is which part of the model.

To add a layout, write a function in this package that recognizes its files and lists its rules, add one line to
``LAYOUTS`` (the first that recognizes a file is used, so special layouts come first), and add a fixture to
``tests/checkpoints.py``.
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
    """Recognize the layout of a file from the names and shapes of its tensors and from its metadata.

    Raises:
        EffaceError: No known library writes such files.

    """
    for detect in LAYOUTS.values():
        layout = detect(state, meta)
        if layout is not None:
            return layout
    shown = ", ".join(sorted(first_words(state))[:8])
    raise EffaceError(
        "This file has the layout of no library that is known here.",
        f"Its {len(state)} tensors are under: {shown}. Known layouts: {', '.join(LAYOUTS)}.",
        "Save the encoder's own state dict (torch.save(encoder.state_dict(), ...)), with names of torchvision or timm.",
    )
