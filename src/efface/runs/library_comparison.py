"""Compare the features of a model folder with those that its own library computes from the same picture files.

timm and open_clip load the folder as ``local-dir:``, transformers by its ``Auto`` classes; each opens the pictures as
its documentation does (``Image.open(path).convert("RGB")``) and prepares them itself. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from efface.interop.assumptions import AssumptionCheck
from efface.runs.adoption import Adoption

COMPARED_PICTURES = 8
LARGEST_DIFFERENCE = 1e-4
"""Largest difference of a feature, relative to the largest feature (at least 1), that counts as equal."""
LIBRARY_ERRORS = (AttributeError, ImportError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError)
"""What libraries raise where a folder is not one of theirs."""


def compare_with_library(one: Adoption) -> list[AssumptionCheck]:
    """Compare the features of a few training pictures with the library's own; empty where it has none to compare."""
    compute, files = _find_library(one), _find_files(one)
    if compute is None or not files:
        return []
    rows = one.data.positions(list(files))
    try:
        name, theirs, projected = compute(list(files.values()))
    except LIBRARY_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        return [AssumptionCheck("library", "undecided", f"its own library could not compute features: {reason}")]
    model = one.loaded.model.to(one.device).eval()
    x = torch.from_numpy(np.ascontiguousarray(one.data.x[rows])).to(one.device).float().div_(255)
    with torch.no_grad():
        ours = model.features(x)
        ours = (model.project(ours) if projected else ours).cpu().numpy()
    if ours.shape != theirs.shape:
        note = f"{name} gives {theirs.shape[1]} features, and there are {ours.shape[1]} here: another output"
        return [AssumptionCheck("library", "undecided", note)]
    difference, scale = float(np.abs(ours - theirs).max()), max(1.0, float(np.abs(theirs).max()))
    note = (
        f"largest difference of a feature to {name}'s own, on {len(rows)} pictures: {difference:.2g} (of {scale:.2g})"
    )
    if difference <= LARGEST_DIFFERENCE * scale:
        return [AssumptionCheck("library", "passed", note)]
    remedy = (
        "It opens pictures without turning them, and drops transparency: if yours are such, "
        "--set data.preprocessing.orientation=stored --set data.preprocessing.transparency=drop."
    )
    return [AssumptionCheck("library", "undecided", note, remedy)]


_Features = Callable[[list[Path]], tuple[str, np.ndarray, bool]]
"""Computes features of pictures: name of the library, features, and whether they are projected."""


def _find_library(one: Adoption) -> _Features | None:
    if not one.path.is_dir():
        return None
    config: Any = one.file.meta.get("config.json") or {}
    if one.file.meta.get("open_clip_config.json"):
        return lambda files: _by_open_clip(one.path, files)
    if config.get("pretrained_cfg") and config.get("architecture"):
        return lambda files: _by_timm(one.path, files)
    if config.get("model_type") and one.file.meta.keys() & {"preprocessor_config.json", "processor_config.json"}:
        take = str(one.loaded.recipe.backbone.options.get("take", "pooler"))
        return lambda files: _by_transformers(one.path, files, take)
    return None


def _find_files(one: Adoption) -> dict[str, Path]:
    """Key to file of some training pictures, for data that are a folder."""
    settings = one.settings.get("data")
    options: Mapping[str, Any] = settings if isinstance(settings, Mapping) else {"source": settings}
    root = Path(str(options.get("root") or options.get("source") or "")).expanduser()
    if not root.is_dir():
        return {}
    keys = [str(key) for key in one.data.keys[one.sample()[:COMPARED_PICTURES]]]
    return {key: root / key for key in keys if (root / key).is_file()}


def _open(files: list[Path]) -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in files]


@torch.no_grad()
def _by_timm(path: Path, files: list[Path]) -> tuple[str, np.ndarray, bool]:
    import timm

    data: Any = importlib.import_module("timm.data")
    net: Any = timm.create_model(f"local-dir:{path}", pretrained=True, num_classes=0).eval()
    transform: Any = data.create_transform(**data.resolve_model_data_config(net))
    return "timm", net(torch.stack([transform(image) for image in _open(files)])).numpy(), False


@torch.no_grad()
def _by_transformers(path: Path, files: list[Path], take: str) -> tuple[str, np.ndarray, bool]:
    import transformers

    processor: Any = transformers.AutoImageProcessor.from_pretrained(path, local_files_only=True)
    net: Any = transformers.AutoModel.from_pretrained(path, local_files_only=True).eval()
    net = getattr(net, "vision_model", net)  # of images and captions
    pixels = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in _open(files)])
    out = net(pixel_values=pixels)
    if take == "pooler":
        return "transformers", out.pooler_output.flatten(1).float().numpy(), False
    first = out.last_hidden_state[:, 0]
    if take == "first_and_mean":
        start = 1 + int(getattr(net.config, "num_register_tokens", 0))
        first = torch.cat([first, out.last_hidden_state[:, start:].mean(1)], -1)
    return "transformers", first.float().numpy(), False


@torch.no_grad()
def _by_open_clip(path: Path, files: list[Path]) -> tuple[str, np.ndarray, bool]:
    import open_clip

    loaded: Any = open_clip.create_model_from_pretrained(f"local-dir:{path}")
    net, transform = loaded
    pictures = torch.stack([transform(image) for image in _open(files)])
    return "open_clip", net.eval().encode_image(pictures).float().numpy(), True
