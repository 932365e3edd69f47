"""Import the public names of a package on first use, so that names that do not need torch load without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Build the module-level ``__getattr__`` of a package.

    Args:
        package: The package's own ``__name__``.
        homes: Public name to the module that defines it: relative to ``package``, or absolute if it starts with
            ``efface.``. A name that equals the last part of its module stands for the module itself.

    Returns:
        A function for ``__getattr__`` (PEP 562) that imports the module and returns the name from it.

    Example:
        >>> __getattr__ = lazy_exports("efface.data", {"Split": "split"})

    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        home = homes[name]
        module = import_module(home if home.startswith("efface.") else f"{package}.{home}")
        return module if home.rpartition(".")[2] == name else getattr(module, name)

    return get
