"""JSON files beside the weights that describe them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from efface.errors import EffaceError

SIDECARS = ("args.json", "config.json", "open_clip_config.json", "preprocessor_config.json")
"""Files beside the weights that describe them; they are copied along."""
MAX_JSON_BYTES = 64 * 2**20
"""No configuration is larger; an index of shards lists some thousand names."""


def read_sidecars(path: Path) -> dict[str, Any]:
    """Read the JSON files beside a file of weights: file name to content."""
    return {name: read_json_sidecar(path.parent / name) for name in SIDECARS if (path.parent / name).is_file()}


def copy_sidecars(path: Path, folder: Path) -> None:
    """Copy the JSON files beside a file of weights into a folder, unless it has them already."""
    for name in SIDECARS:
        if (path.parent / name).is_file() and not (folder / name).exists():
            shutil.copyfile(path.parent / name, folder / name)


def read_json_sidecar(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; any other JSON value counts as empty."""
    if path.stat().st_size > MAX_JSON_BYTES:
        size = f"{path.stat().st_size / 2**20:.0f} MiB"
        raise EffaceError(f"{path} is not read.", f"It has {size}, more than any configuration.", "Remove it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EffaceError(f"{path} cannot be read.", str(error), "Fetch it again, or remove it.") from error
    return content if isinstance(content, dict) else {}
