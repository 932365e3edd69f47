"""What describes weights: JSON files beside them, and plain values in the file itself."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.errors import EffaceError
from efface.files import parse_json

SIDECARS = (
    "args.json",
    "config.json",
    "open_clip_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
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
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EffaceError(f"{path} cannot be read.", str(error), "Fetch it again, or remove it.") from error
    return content if isinstance(content, dict) else {}


def is_plain(value: Any) -> bool:
    """Whether a value consists only of numbers, text and containers of them."""
    if isinstance(value, Namespace):
        return is_plain(vars(value))
    if isinstance(value, Mapping):
        return all(is_plain(key) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, complex, str, bytes))


def to_plain_settings(value: Any) -> Any:
    """Return a plain value; a Namespace becomes a dictionary."""
    return vars(value) if isinstance(value, Namespace) else value
