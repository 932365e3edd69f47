"""Describe the data at a path as it is read: examples, classes, groups, and what is not read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

CLASSES_SHOWN_AT_ONCE = 20


def is_data_path(name: str) -> bool:
    """Return whether ``name`` is a path; the name of a source takes precedence, as everywhere."""
    from efface.data.sources import SOURCES

    return bool(name) and name not in SOURCES and Path(name).expanduser().exists()


def describe_data(path: str, assignments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Load the data at a path and describe it.

    Args:
        path: A folder of images, a manifest or an .npz.
        assignments: Settings of the source, such as ``data.size=32``.

    Returns:
        A JSON object, and the lines to print.

    """
    from efface.cli.options import settings_of
    from efface.data.names import quote_first
    from efface.runs.run import load_data

    data = load_data(settings_of(None, assignments, data=path))
    channels, height, width = data.shape
    labels = [] if data.y is None else data.y.tolist()
    counts = Counter(data.classes[label] if label >= 0 else "" for label in labels)
    classes = {name: counts.get(name, 0) for name in data.classes}
    groups = set() if data.group is None else set(data.group.tolist()) - {""}
    official = {} if data.official is None else dict(Counter(data.official.tolist()))
    result = {
        "path": path,
        "examples": len(data),
        "shape": [channels, height, width],
        "classes": classes,
        "unlabelled": counts.get("", 0),
        "groups": len(groups),
        "captions": 0 if data.text is None else sum(bool(text.strip()) for text in data.text),
        "official": official,
        "skipped": list(data.skipped),
        "unread": list(data.unread),
        "notes": list(data.notes),
        "digest": data.digest(),
    }
    lines = [
        f"{data.name}: {len(data)} examples, {channels} x {height} x {width}; ids such as "
        f"{quote_first(data.keys[:3].tolist())}"
    ]
    if data.y is not None:
        shown = ", ".join(
            f"{quote_first([name])} {count}" for name, count in list(classes.items())[:CLASSES_SHOWN_AT_ONCE]
        )
        more = f", and {len(classes) - CLASSES_SHOWN_AT_ONCE} more" if len(classes) > CLASSES_SHOWN_AT_ONCE else ""
        unknown = f"; without a label {counts['']}" if counts.get("") else ""
        lines.append(f"{len(classes)} classes, in this order: {shown}{more}{unknown}")
    if groups:
        lines.append(f"{len(groups)} groups")
    if result["captions"]:
        lines.append(f"{result['captions']} captions")
    if official:
        lines.append("official parts: " + ", ".join(f"{part} {count}" for part, count in official.items()))
    if data.skipped:
        lines.append(
            f"{len(data.skipped)} broken items were skipped: {quote_first([one['key'] for one in data.skipped])}"
        )
    return result, [*lines, *data.notes]
