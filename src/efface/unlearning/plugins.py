"""Methods of other packages, found through the entry points of installed distributions.

    [project.entry-points."efface.methods"]
    shrink = "their_package.shrink:Shrink"

A plug-in appears in `efface methods`, ``--method``, the grids of `efface bench` and :func:`efface.unlearn`, in every
process. Records name its distribution and version.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from dataclasses import is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from efface.errors import EffaceError

GROUP = "efface.methods"
AUTO = "auto"
"""The name that asks for a search over methods; no plug-in may take it."""
METHOD_ATTRIBUTES = ("needs", "exact", "unlearn")
"""What a class must have to be a method, besides being a dataclass."""
_ORIGINS: dict[type, str] = {}


def load_plugins(methods: MutableMapping[str, Any]) -> None:
    """Add the methods that installed packages declare under the entry points ``efface.methods``.

    Args:
        methods: Name to class; changed in place.

    Raises:
        EffaceError: If a plug-in cannot be imported, is not a method, or takes a name that is in use. A broken plug-in
            is never left out silently.

    """
    for point in sorted(set(entry_points(group=GROUP)), key=lambda point: point.name):
        cls = _load(point)
        if point.name == AUTO or methods.get(point.name, cls) is not cls:
            raise _plugin_error(point, f"There is a method called '{point.name}' already.")
        methods[point.name] = cls
        _ORIGINS[cls] = _distribution(point)


def get_plugin_origin(cls: type) -> str:
    """Where a method comes from: name and version of its distribution, or its module; empty for those of efface."""
    if cls in _ORIGINS:
        return _ORIGINS[cls]
    return "" if cls.__module__.partition(".")[0] == __name__.partition(".")[0] else f"module {cls.__module__}"


def _load(point: EntryPoint) -> type:
    """Import the class that an entry point names, and check that it is a method."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", point.name):
        raise _plugin_error(point, "Names of methods have lower-case letters, digits and underscores only.")
    try:
        cls = point.load()
    except Exception as error:
        raise _plugin_error(point, f"{type(error).__name__}: {error}") from error
    if not (isinstance(cls, type) and is_dataclass(cls) and all(hasattr(cls, name) for name in METHOD_ATTRIBUTES)):
        raise _plugin_error(
            point, f"{point.value} is not a method: a method is a dataclass with {', '.join(METHOD_ATTRIBUTES)}."
        )
    return cls


def _plugin_error(point: EntryPoint, why: str) -> EffaceError:
    name = _distribution(point)
    return EffaceError(
        f"The method '{point.name}' of {name} cannot be used.", why, f"Repair or uninstall {name.split()[0]}."
    )


def _distribution(point: EntryPoint) -> str:
    """Name and version of the distribution that declares an entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
