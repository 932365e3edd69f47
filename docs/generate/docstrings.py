"""A griffe extension: docstrings as the API reference shows them.

``Example:`` is read as a section of code, and Sphinx roles (``:class:`name```) become plain code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`+~?([^`]+)`+")


class PlainDocstrings(griffe.Extension):
    """Prepare every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = ROLE.sub(r"`\1`", text)
