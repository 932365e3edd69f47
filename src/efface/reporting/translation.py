"""The languages of the report: message catalogues from English to another language, as gettext has them.

A catalogue is ``locales/LANGUAGE.json``, English message to translation. Templates mark their messages with
``{% trans %}`` and ``_(...)``; ``tests/reporting/test_translation.py`` fails if a catalogue misses one or keeps one
that is gone. To add a language, add its file, and its decimal mark below.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from efface.errors import unknown_name_error

ENGLISH = "en"


@dataclass(frozen=True, eq=False)
class Catalog:
    """The messages of one language."""

    language: str
    messages: dict[str, str]
    decimal: str
    """The decimal mark."""

    def gettext(self, message: str) -> str:
        """The translation of a message; the message itself in English, or where the catalogue has none."""
        return self.messages.get(message, message)

    def ngettext(self, one: str, many: str, count: int) -> str:
        """The translation of a message for a count."""
        return self.gettext(one if count == 1 else many)

    def number(self, text: str) -> str:
        """A number as it is written in this language."""
        return text.replace(".", self.decimal)


DECIMAL_MARKS = {ENGLISH: ".", "de": ","}
"""Every language of the report, and its decimal mark."""


@cache
def load_catalog(language: str) -> Catalog:
    """Load the catalogue of a language.

    Raises:
        EffaceError: There is no such catalogue.

    Example:
        >>> load_catalog("de").gettext("A trace remains.")
        'Eine Spur ist geblieben.'

    """
    if language not in DECIMAL_MARKS:
        raise unknown_name_error("language of the report", language, DECIMAL_MARKS)
    if language == ENGLISH:
        return Catalog(language, {}, DECIMAL_MARKS[language])
    path = resources.files("efface.reporting").joinpath(f"locales/{language}.json")
    return Catalog(language, json.loads(path.read_text(encoding="utf-8")), DECIMAL_MARKS[language])
