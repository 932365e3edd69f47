"""What is said about a picture in a shard: which field is the key, the label, the caption, the group."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from efface.data.text_files import as_text
from efface.errors import EffaceError, suggest_name

REPEATED = "If they repeat from shard to shard: --set data.shard_keys=true puts the name of the shard before each."
"""What to do about a key that is there twice."""


def check_columns(columns: Any, known: Collection[str]) -> dict[str, str]:
    """Check ``data.columns``: known names, each with the field that is read for it.

    Raises:
        EffaceError: It is no mapping of names, or a name is unknown.

    """
    if columns is None:
        return {}
    if not isinstance(columns, Mapping) or not all(isinstance(one, str) and one for one in columns.values()):
        raise EffaceError(
            f"data.columns cannot be {columns!r}.",
            remedy="Write --set data.columns.caption=NAME, with the name of a field.",
        )
    for name in columns:
        if name not in known:
            raise EffaceError(
                f"data.columns maps '{name}', which no shard has.{suggest_name(str(name), known)}",
                f"Known: {', '.join(known)}.",
                "Write it as data.columns.caption=NAME: first the known name, then the field of the shard.",
            )
    return {str(name): str(field) for name, field in columns.items()}


def as_field(value: Any, name: str, where: str) -> str:
    """Convert what a shard says about a picture to text without outer spaces; nothing becomes an empty text.

    Raises:
        EffaceError: It is neither text nor a whole number.

    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    missing = value is None or (isinstance(value, float) and value != value)
    if not (whole or missing or isinstance(value, (str, bytes))):
        raise EffaceError(f"{where} has the {name} {value!r}.", "It should be text or a whole number.")
    try:
        return as_text(value).strip()
    except ValueError as error:
        raise EffaceError(f"The {name} of {where} cannot be read as text.", str(error)) from error
