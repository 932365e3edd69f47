"""Read how a library prepares pictures from the file in which it keeps that: timm, transformers, open_clip.

``config.json`` with ``pretrained_cfg`` (timm), ``preprocessor_config.json``, or ``processor_config.json`` with
``image_processor`` (transformers), ``open_clip_config.json`` with ``preprocess_cfg`` (open_clip). What is missing there
has the library's own default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from efface import config
from efface.data.preprocessing import Preprocessing, Resampling, ResizeLibrary, ResizeMode, Rounding
from efface.errors import EffaceError
from efface.files import parse_json

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PILLOW_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters by number."""
TIMM_CROP = 0.875
"""The share of the picture that timm keeps where nothing is stated."""
FAST_SINCE = 5
"""Version of transformers from which processors resize with torchvision, unless their names end in Pil."""
OLD_PROCESSORS = (
    "pictures are resized with torchvision, as by transformers 5 (if yours resizes with Pillow, as slow processors do: "
    "--set data.preprocessing.library=pillow)"
)
WARPED = 384
"""Size from which ConvNeXt's processor squashes pictures and no longer crops them."""


@dataclass(frozen=True)
class StatedPreprocessing:
    """How a library prepares pictures, by its own file."""

    source: str
    """The file that states it."""
    pixels: Preprocessing | None
    """Resize and crop; None if it states none."""
    mean: tuple[float, ...] | None = None
    """Mean for pixels in [0, 1]."""
    std: tuple[float, ...] | None = None
    """Standard deviation for pixels in [0, 1]."""
    reversed_colors: bool = False
    """Whether the network is given blue, green, red."""
    defaults: tuple[str, ...] = ()
    """What the file does not state, so that its library's default is used."""
    notes: tuple[str, ...] = ()
    """What the user should know about how it was read."""


def find_stated(files: Mapping[str, Any]) -> StatedPreprocessing | None:
    """Find what the files beside a checkpoint state about preprocessing.

    Args:
        files: File name to content.

    Returns:
        What the first of the known files states; None if none states anything.

    """
    for name, read in READERS.items():
        content = files.get(name)
        found = read(content, name) if isinstance(content, Mapping) else None
        if found is not None:
            return found
    return None


def read_file(path: str) -> StatedPreprocessing:
    """Read the preprocessing that a JSON file states.

    Raises:
        EffaceError: There is no such file, it is no JSON, or it states no preprocessing.

    """
    file = Path(path).expanduser()
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EffaceError(f"data.preprocessing: there is no file {path}.", remedy="Check the path.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise EffaceError(
            f"The preprocessing in {path} cannot be read.", str(error), "Fetch the file again."
        ) from error
    known = {file.name: content} if file.name in READERS else dict.fromkeys(READERS, content)
    found = find_stated(known) if isinstance(content, Mapping) else None
    if found is None or found.pixels is None:
        raise EffaceError(
            f"{path} states no preprocessing of pictures.",
            f"Read are {', '.join(READERS)} as timm, transformers and open_clip write them.",
            "State it: --set data.preprocessing.resize=256 --set data.preprocessing.crop=[224,224].",
        )
    return replace(found, source=file.name)


def read_timm(stated: Mapping[str, Any], source: str) -> StatedPreprocessing:
    """Read timm's settings as its ``resolve_data_config`` does.

    Args:
        stated: ``input_size``, ``interpolation``, ``crop_pct``, ``crop_mode``, ``mean``, ``std``.
        source: Where they are from, for messages.

    """
    known = {key: value for key, value in stated.items() if value}
    fallback = {
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "crop_pct": TIMM_CROP,
        "crop_mode": "center",
        "mean": IMAGENET[0],
        "std": IMAGENET[1],
    }
    defaults = tuple(key for key in fallback if key not in known)
    values = fallback | known
    height, width = (int(side) for side in tuple(values["input_size"])[-2:])
    crop = float(values["crop_pct"])
    scaled = (math.floor(height / crop), math.floor(width / crop))
    name = str(values["interpolation"])
    options: dict[str, Any] = {"crop": (height, width), "resampling": name if name != "random" else "bilinear"}
    if values["crop_mode"] == "squash":
        options |= {"resize": scaled, "mode": ResizeMode.EXACT}
    elif values["crop_mode"] == "border":
        fill = tuple(round(255 * float(v)) for v in values["mean"])
        options |= {"resize": scaled, "mode": ResizeMode.FIT, "fill": fill}
    elif height == width:
        options |= {"resize": scaled[0]}
    else:
        options |= {"resize": scaled, "mode": ResizeMode.COVER}
    mean, std = (tuple(float(v) for v in values[key]) for key in ("mean", "std"))
    return StatedPreprocessing(source, Preprocessing(**options), mean, std, defaults=defaults)


def _read_timm_config(content: Mapping[str, Any], source: str) -> StatedPreprocessing | None:
    stated = _group(content, "pretrained_cfg")
    return read_timm(stated, source) if stated else None


def _group(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    stated = content.get(name) or {}
    if not isinstance(stated, Mapping):
        raise TypeError(f"'{name}' is {stated!r}")
    return stated


def _read_open_clip(content: Mapping[str, Any], source: str) -> StatedPreprocessing | None:
    stated = _group(content, "preprocess_cfg")
    if not stated:
        return None
    size = stated.get("size") or ((content.get("model_cfg") or {}).get("vision_cfg") or {}).get("image_size") or 224
    height, width = (size, size) if isinstance(size, int) else (int(side) for side in size)
    mode = stated.get("resize_mode") or "shortest"
    options: dict[str, Any] = {"crop": (height, width), "resampling": stated.get("interpolation") or "bicubic"}
    if options["resampling"] == "random":
        options["resampling"] = "bicubic"
    if mode == "squash":
        options = {"resize": (height, width), "mode": ResizeMode.EXACT, "resampling": options["resampling"]}
    elif mode == "longest":
        options |= {"resize": (height, width), "mode": ResizeMode.FIT, "fill": stated.get("fill_color") or 0}
    elif height == width:
        options |= {"resize": height}
    else:  # open_clip ignores the interpolation here
        options |= {"resize": (height, width), "mode": ResizeMode.COVER, "resampling": "bicubic"}
    mean, std = (tuple(float(v) for v in stated.get(key) or OPENAI[i]) for i, key in enumerate(("mean", "std")))
    missing = tuple(key for key in ("size", "interpolation", "resize_mode", "mean", "std") if not stated.get(key))
    return StatedPreprocessing(source, Preprocessing(**options), mean, std, defaults=missing)


def _read_transformers(content: Mapping[str, Any], source: str) -> StatedPreprocessing | None:
    kind = str(content.get("image_processor_type") or content.get("feature_extractor_type") or "")
    if not kind and not {"size", "image_mean", "do_resize", "do_normalize"} & content.keys():
        return None
    if not kind and not {"size", "do_resize"} & content.keys():
        content = {**content, "do_resize": False}  # it says nothing about sizes
    fast = kind.endswith("Fast") or (not kind.endswith("Pil") and _transformers_version() >= FAST_SINCE)
    found = read_transformers(content, source, fast=fast)
    if not fast or kind.endswith("Fast"):
        return found
    return replace(found, notes=(OLD_PROCESSORS,))


def _read_processor(content: Mapping[str, Any], source: str) -> StatedPreprocessing | None:
    """Read the processor of pictures in that of pictures and texts, as transformers 5 stores both."""
    stated = _group(content, "image_processor")
    return _read_transformers(stated, source) if stated else None


def _transformers_version() -> int:
    """The major version of transformers that is installed; the newest known one if there is none."""
    try:
        return int(version("transformers").partition(".")[0])
    except (PackageNotFoundError, ValueError):
        return FAST_SINCE


def read_transformers(content: Mapping[str, Any], source: str, *, fast: bool) -> StatedPreprocessing:
    """Read the settings of an image processor of transformers.

    Args:
        content: The settings, as in ``preprocessor_config.json``.
        source: Where they are from, for messages.
        fast: Whether it resizes with torchvision.

    """
    kind = str(content.get("image_processor_type") or content.get("feature_extractor_type") or "")
    values = dict(content)
    defaults = tuple(key for key in ("size", "resample", "image_mean", "image_std") if values.get(key) is None)
    options: dict[str, Any] = {"rounding": Rounding.DOWN}
    if fast:
        options["library"] = ResizeLibrary.TORCHVISION
    resample = values.get("resample")
    if resample is None:
        resample = 3 if kind.startswith(("CLIP", "Bit", "ConvNext", "DeiT", "Siglip")) else 2
    options["resampling"] = PILLOW_FILTERS[resample] if isinstance(resample, int) else Resampling(str(resample).lower())
    crop = _hf_size(values.get("crop_size")) if values.get("do_center_crop") else None
    if values.get("do_resize", True):
        size = values.get("size") or 224
        shorter = size.get("shortest_edge") if isinstance(size, Mapping) else None
        if isinstance(size, int) and kind.startswith(("CLIP", "Bit", "ConvNext")):
            shorter = size
        if shorter and kind.startswith("ConvNext"):
            if shorter < WARPED:
                pct = float(values.get("crop_pct") or 224 / 256)
                options |= {"resize": int(shorter / pct)}
                crop = crop or (shorter, shorter)
            else:
                options |= {"resize": (shorter, shorter), "mode": ResizeMode.EXACT}
        elif shorter:
            longest = size.get("longest_edge") if isinstance(size, Mapping) else None
            if longest or crop is None:
                raise EffaceError(
                    f"{source} lets pictures keep their shape: {dict(size) if isinstance(size, Mapping) else size}.",
                    "A network here is given pictures of one size.",
                    "State it: --set data.preprocessing.resize=256 --set data.preprocessing.crop=[224,224].",
                )
            options |= {"resize": int(shorter)}
        else:
            options |= {"resize": _hf_size(size), "mode": ResizeMode.EXACT}
    if crop is not None:
        options |= {"crop": crop}
    scale = 255 * float(values.get("rescale_factor") or 1 / 255) if values.get("do_rescale", True) else 255.0
    mean, std = (0.0,), (1.0,)
    if values.get("do_normalize", True):
        default = OPENAI if kind.startswith(("CLIP", "Bit")) else HALF
        mean = tuple(float(v) for v in values.get("image_mean") or default[0])
        std = tuple(float(v) for v in values.get("image_std") or default[1])
    count = max(len(mean), len(std), 3 if len(mean) == 1 else 0)
    mean, std = (tuple(v / scale for v in (one * count if len(one) == 1 else one)) for one in (mean, std))
    return StatedPreprocessing(
        source, Preprocessing(**options), mean, std, bool(values.get("do_flip_channel_order")), defaults
    )


def _hf_size(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        if {"height", "width"} <= size.keys():
            return int(size["height"]), int(size["width"])
        side = size.get("shortest_edge") or size.get("longest_edge") or 224
        return int(side), int(side)
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[-1])
    return int(size or 224), int(size or 224)


READERS: dict[str, Callable[[Mapping[str, Any], str], StatedPreprocessing | None]] = {
    "preprocessor_config.json": _read_transformers,
    "processor_config.json": _read_processor,
    "open_clip_config.json": _read_open_clip,
    "config.json": _read_timm_config,
}
"""File name to the function that reads it, the most specific first."""


def read_preprocessing(value: Any) -> Preprocessing | None:
    """Build the preprocessing of ``data.preprocessing``: a mapping, or a file of a library that states it.

    Raises:
        EffaceError: A setting is unknown or does not fit, or the file states no preprocessing.

    """
    if value is None or isinstance(value, Preprocessing):
        return value
    if isinstance(value, str):
        return read_file(value).pixels
    if not isinstance(value, Mapping):
        raise EffaceError(
            f"data.preprocessing cannot be {value!r}.",
            "It is a group of settings, or a file that states them.",
            "Write --set data.preprocessing.resize=256 --set data.preprocessing.crop=[224,224], or name the file.",
        )
    made: Preprocessing = config.build(Preprocessing, value, path="data.preprocessing.")
    return made
