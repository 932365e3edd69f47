"""What a checkpoint states about how pictures are prepared: in files beside it, or in its own settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from efface.data.preprocessing_files import StatedPreprocessing, find_stated, read_timm
from efface.errors import EffaceError
from efface.interop.checkpoint_file import ForeignCheckpoint
from efface.interop.sidecars import SIDECARS

WRONG_VALUES = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError, ZeroDivisionError)
"""What values of another kind lead to."""
TIMM_ARGUMENTS = ("crop_pct", "interpolation", "mean", "std", "img_size", "input_size")
"""Arguments of timm's training script that say how pictures are prepared; all of them are in its checkpoints."""


def read_stated(foreign: ForeignCheckpoint) -> StatedPreprocessing | None:
    """Find what a checkpoint states about how pictures are prepared; None if it states nothing.

    Read are the files that timm, transformers and open_clip write beside their weights, and the arguments in a
    checkpoint of timm's training script, with the configuration of the model that it names.

    Raises:
        EffaceError: The values are not of the kind that the library writes.

    """
    try:
        return find_stated(foreign.meta) or _read_timm_arguments(foreign.meta)
    except WRONG_VALUES as error:
        stated = [name for name in foreign.meta if name in SIDECARS]
        raise EffaceError(
            f"{', '.join(stated) or 'The arguments'} beside {foreign.path} cannot be understood.",
            f"Its values are not of the kind that its library writes: {error}.",
            "Fetch it again, or remove it and state its settings.",
        ) from error


def _read_timm_arguments(meta: Mapping[str, Any]) -> StatedPreprocessing | None:
    arguments = meta.get("args")
    if not isinstance(arguments, Mapping) or not isinstance(arguments.get("model"), str):
        return None
    if len(set(TIMM_ARGUMENTS) & arguments.keys()) < len(TIMM_ARGUMENTS):
        return None
    import timm  # slow to import, rarely needed

    known = timm.get_pretrained_cfg(arguments["model"]) if timm.is_model(arguments["model"]) else None
    values: dict[str, Any] = {} if known is None else known.to_dict()
    values |= {key: arguments[key] for key in TIMM_ARGUMENTS if arguments[key]}
    side = values.get("img_size")
    if side and not arguments["input_size"]:
        values["input_size"] = (3, side, side)
    return read_timm(values, "own arguments and timm's configuration of that model")
