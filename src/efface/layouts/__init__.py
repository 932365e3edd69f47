"""Foreign checkpoints: what is where in the files of other libraries, and how to write them back the same way.

Adding a layout: a function here that recognizes its files and lists its rules, one line in ``LAYOUTS`` (the first
that recognizes a file wins, so special ones come first), one fixture in ``tests/checkpoints.py``.
"""

from efface.errors import EffaceError
from efface.layouts.dino import dino
from efface.layouts.joint import barlow, swav
from efface.layouts.lightly import lightly
from efface.layouts.mae import mae
from efface.layouts.mmlab import mmlab
from efface.layouts.moco import moco, moco_v3
from efface.layouts.open_clip import open_clip
from efface.layouts.plain import efface, plain
from efface.layouts.protocol import Family, Layout, Meta, Place, Role, Rule, State, tops
from efface.layouts.solo import solo
from efface.layouts.transformers import transformers

__all__ = ["LAYOUTS", "Family", "Layout", "Meta", "Place", "Role", "Rule", "State", "sniff"]

LAYOUTS: dict[str, Family] = {
    "efface": efface,
    "transformers": transformers,
    "moco": moco,
    "moco_v3": moco_v3,
    "dino": dino,
    "solo": solo,
    "lightly": lightly,
    "mae": mae,
    "swav": swav,
    "barlow": barlow,
    "mmlab": mmlab,
    "open_clip": open_clip,
    "plain": plain,
}


def sniff(state: State, meta: Meta) -> Layout:
    """The layout of a file, from the names and shapes of its tensors and from what it says of itself."""
    for family in LAYOUTS.values():
        found = family(state, meta)
        if found is not None:
            return found
    shown = ", ".join(sorted(tops(state))[:8])
    raise EffaceError(
        "This file has the layout of no library that is known here.",
        f"Its {len(state)} tensors are under: {shown}. Known layouts: {', '.join(LAYOUTS)}.",
        "Save the encoder's own state dict (torch.save(encoder.state_dict(), ...)), with names of torchvision or timm.",
    )
