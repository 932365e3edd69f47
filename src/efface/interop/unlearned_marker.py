"""The marker of an unlearned checkpoint: how many requests it answered, and which examples they named.

The file itself says that it was unlearned, in a place that its library ignores: an entry of a torch file, the metadata
of a state dict, the header of a safetensors file. Which examples were forgotten is in ``NAME.efface.json`` beside it,
readable by its owner only, as keyed digests: it tells whether an id is one of them, and lists none. Without it nobody
could see that a list of what the original was trained on still names them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efface.errors import EffaceError
from efface.files import atomic_path, read_json, write_text
from efface.interop.containers import TorchFile, open_container, weights_file
from efface.interop.safe_load import UntrustedPickleError, is_archive
from efface.schema import FirstFormat, HexDigest, StoredModel, Tally, parse_record

ENTRY = "efface"
"""Name of the marker in a file."""
LIST_SUFFIX = ".efface.json"
LIST_REMEDY = "Restore it from the run folder's foreign/, or delete it."


class ForgottenList(StoredModel):
    """The content of ``NAME.efface.json``."""

    format: FirstFormat
    file: str
    model: HexDigest
    """Digest of the unlearned weights, as in ``meta.json`` and in the file's own marker."""
    requests: Tally
    salt: HexDigest
    forgotten: tuple[HexDigest, ...]


class InnerMarker(StoredModel):
    """What the file itself says."""

    unlearned: HexDigest
    requests: Tally


@dataclass(frozen=True)
class UnlearnedMarker:
    """What a checkpoint says about its own unlearning."""

    model: str
    """Digest of the unlearned weights."""
    requests: int
    """Number of requests that it has answered."""
    listed: ForgottenList | None = field(default=None)
    """The list beside it; None if it is not there."""

    def forgotten(self, keys: Sequence[str]) -> np.ndarray:
        """Which of these keys were forgotten, bool [N]."""
        if self.listed is None:
            return np.zeros(len(keys), bool)
        salt, known = bytes.fromhex(self.listed.salt), set(self.listed.forgotten)
        return np.array([_keyed(salt, key) in known for key in keys], bool)


def list_path(path: Path) -> Path:
    """Where the list of a checkpoint is."""
    return path.with_name(path.name + LIST_SUFFIX)


def write_marker(path: Path, model: str, requests: int, keys: Iterable[str]) -> str:
    """Mark a checkpoint that was written just now.

    Args:
        path: The file or folder of weights.
        model: Digest of the unlearned weights.
        requests: Number of requests that it has answered.
        keys: The examples that they named.

    Returns:
        What was done, in words.

    """
    salt = secrets.token_bytes(32)
    digests = sorted({_keyed(salt, key) for key in keys})
    content = {
        "format": 1, "file": path.name, "model": model, "requests": requests, "salt": salt.hex(), "forgotten": digests,
    }  # fmt: skip
    write_text(list_path(path), json.dumps(content, indent=1) + "\n", private=True)
    inside = _mark_inside(path, {"unlearned": model, "requests": requests})
    where = "in the file and beside it" if inside else "beside it; the file has no place for it"
    return f"marked as unlearned, {where} ({list_path(path).name}: keyed digests of {len(digests)} examples)"


def read_marker(path: Path, meta: Any) -> UnlearnedMarker | None:
    """Read the marker of a checkpoint.

    Args:
        path: The file or folder of weights.
        meta: The plain entries of its container.

    Returns:
        The marker; None for a checkpoint that was not unlearned here.

    """
    listed = None
    if list_path(path).is_file():
        stored = read_json(list_path(path), "list of forgotten examples", remedy=LIST_REMEDY)
        listed = parse_record(ForgottenList, stored, list_path(path), "list of forgotten examples", LIST_REMEDY)
    inside = _read_inside(path, meta)
    if inside is None:
        return None if listed is None else UnlearnedMarker(listed.model, listed.requests, listed)
    if listed is not None and listed.model != inside.unlearned:
        raise EffaceError(
            f"{list_path(path)} is the list of another checkpoint than {path.name}.",
            f"It names the weights {listed.model[:16]}, and the file {inside.unlearned[:16]}.",
            "Restore both from the same run folder's foreign/.",
        )
    return UnlearnedMarker(inside.unlearned, inside.requests, listed)


def _keyed(salt: bytes, key: str) -> str:
    return hmac.new(salt, key.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _read_inside(path: Path, meta: Any) -> InnerMarker | None:
    found = meta.get(ENTRY) if isinstance(meta, dict) else None
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError):
            return None
    if not isinstance(found, dict) or "unlearned" not in found:
        return None
    return parse_record(InnerMarker, found, path, "marker of an unlearned checkpoint", "Fetch the file again.")


def _mark_inside(path: Path, marker: dict[str, Any]) -> bool:
    """Write the marker into the first file of weights; False if there is no place for it."""
    file = weights_file(path)
    if file is None or file.suffix == ".json":
        return False
    try:
        container = open_container(file)
    except UntrustedPickleError:
        return False
    if not isinstance(container, TorchFile):
        _mark_safetensors(file, marker)
        return True
    content = container.content
    if container.main is not None:
        content[ENTRY] = marker
    elif isinstance(content, OrderedDict) and isinstance(getattr(content, "_metadata", None), dict):
        content._metadata[ENTRY] = marker  # pyright: ignore[reportAttributeAccessIssue]
    else:
        return False
    torch.save(content, file, _use_new_zipfile_serialization=is_archive(file))
    return True


def _mark_safetensors(file: Path, marker: dict[str, Any]) -> None:
    """Put the marker into the metadata of the header; the tensors stay where they are, behind it."""
    with atomic_path(file) as fresh, file.open("rb") as stream, fresh.open("wb") as marked:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        metadata = {**header.pop("__metadata__", {}), ENTRY: json.dumps(marker)}
        text = json.dumps({"__metadata__": metadata, **header}).encode()
        text += b" " * (-len(text) % 8)
        marked.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(stream, marked)
