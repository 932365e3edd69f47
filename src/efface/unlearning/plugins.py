"""Methods of other packages: what an installed distribution brings by an entry point is one more method.

    [project.entry-points."efface.methods"]
    shrink = "their_package.shrink:Shrink"

It is then in `efface methods`, ``--method``, grids of `efface bench` and :func:`efface.unlearn`, in every process. A
record names the distribution and its version.
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
    """Add what installed packages declare in ``GROUP``; one that is broken or takes a known name is an error."""
    for point in sorted(set(entry_points(group=GROUP)), key=lambda one: one.name):
        cls = _load(point)
        if point.name == AUTO or methods.get(point.name, cls) is not cls:
            raise _refused(point, f"There is a method called '{point.name}' already.")
        methods[point.name] = cls
        _ORIGINS[cls] = _distribution(point)


def get_plugin_origin(cls: type) -> str:
    """Name and version of the distribution that brought a method, else its module; empty for those of efface."""
    if cls in _ORIGINS:
        return _ORIGINS[cls]
    return "" if cls.__module__.partition(".")[0] == __name__.partition(".")[0] else f"module {cls.__module__}"


def _load(point: EntryPoint) -> type:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", point.name):
        raise _refused(point, "Its name should be lower-case letters, digits and underscores, as other methods' are.")
    try:
        cls = point.load()
    except Exception as error:
        raise _refused(point, f"{type(error).__name__}: {error}") from error
    if not (isinstance(cls, type) and is_dataclass(cls) and all(hasattr(cls, name) for name in METHOD_ATTRIBUTES)):
        raise _refused(
            point, f"{point.value} is no method: it should be a dataclass with {', '.join(METHOD_ATTRIBUTES)}."
        )
    return cls


def _refused(point: EntryPoint, why: str) -> EffaceError:
    name = _distribution(point)
    return EffaceError(
        f"The method '{point.name}' of {name} cannot be used.", why, f"Mend or uninstall {name.split()[0]}."
    )


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
