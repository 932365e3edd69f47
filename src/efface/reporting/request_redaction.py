"""Keep out of records who asked, and what a random request can be drawn again from.

A group is often a person, and the name of a list is often the person's: both become keyed digests, as ids do. The names
of classes stay. A random draw can be repeated by everybody who has the data and its seed, so no seed that it may have
been drawn with is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from efface.reporting.redaction import KEYED, hmac_digest

DRAWN = "@random:"
MEMORIZED = "@memorized:"
SEEDS = ("seed", "forget_seed")


def hide_request(record: Mapping[str, Any], secret: bytes) -> dict[str, Any]:
    """Return a copy of a record, as JSON values, without names of groups and lists, and without seeds of the draw."""
    selector = str(record["request"]["selector"])
    hidden = json.loads(json.dumps(record))
    names = _names(selector)
    if names:
        hidden = _replaced(hidden, selector, hide_selector(selector, secret), {n: _keyed(n, secret) for n in names})
    if DRAWN in selector:
        _hide_seeds(hidden, secret)
    return hidden


def hide_selector(selector: str, secret: bytes) -> str:
    """Replace the names in a selector by the starts of their keyed digests."""
    if selector.startswith("@group:"):
        return "@group:" + ",".join(_keyed(name, secret) for name in _names(selector))
    if selector.startswith(MEMORIZED):
        size = selector.split(":")[1]
        return f"{MEMORIZED}{size}:{_keyed(_names(selector)[0], secret)}{PurePath(selector).suffix}"
    if selector.startswith("@"):
        return selector
    return f"{_keyed(_names(selector)[0], secret)}{PurePath(selector).suffix}"


def _names(selector: str) -> list[str]:
    """The groups that a selector names, or the name of a list; none for a class, a draw or keys, which hide others."""
    if selector.startswith("@group:"):
        return [name.strip() for name in selector.removeprefix("@group:").split(",") if name.strip()]
    if selector.startswith(MEMORIZED):
        return [PurePath(selector.split(":", 2)[-1]).stem]
    return [] if selector.startswith("@") or selector in ("", "None") else [PurePath(selector).stem]


def _keyed(name: str, secret: bytes) -> str:
    return f"name:{hmac_digest(secret, name)[:12]}"


def _replaced(value: Any, selector: str, hidden: str, names: Mapping[str, str]) -> Any:
    """Replace the selector wherever it stands, and its names where they stand in quotes."""
    if isinstance(value, str):
        text = value.replace(selector, hidden)
        return re.sub(r"(['\"])(.*?)\1", lambda found: f"'{names[found[2]]}'" if found[2] in names else found[0], text)
    if isinstance(value, dict):
        return {key: _replaced(one, selector, hidden, names) for key, one in value.items()}
    return [_replaced(one, selector, hidden, names) for one in value] if isinstance(value, list) else value


def _hide_seeds(record: dict[str, Any], secret: bytes) -> None:
    """Hide, in place, the seed of the draw and every other seed of the same value."""
    drawn = {record["split"]["seed"], *(record["config"].get(name) for name in SEEDS)} - {None}
    record["split"]["seed"] = None
    for name in SEEDS:
        seed = record["config"].get(name)
        if seed is not None and not str(seed).startswith(KEYED):
            record["config"][name] = f"{KEYED}{hmac_digest(secret, f'seed:{seed}')}"
    for facts in record["checkpoints"].values():
        if facts["seed"] in drawn:
            facts["seed"] = None
