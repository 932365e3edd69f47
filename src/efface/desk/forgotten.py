"""The forgotten ids of a request, known from its list or by the keyed commitment in the ledger, and what holds them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from efface.desk.private import PrivateFiles
from efface.errors import EffaceError
from efface.reporting.redaction import Redactor, hmac_digest

TOKEN = "erased-"
"""How the name starts that takes the place of an id."""
UNSEARCHED = "was not searched:"
"""How it starts what is said of something that nobody could look into."""


@dataclass(frozen=True)
class Remains:
    """Something that remembers, and what is to be done about it."""

    kind: str
    place: str
    action: Literal["remove", "rewrite", "list"]
    detail: str = ""
    count: int = 0

    def as_dict(self) -> dict[str, Any]:
        """It as a JSON object."""
        return asdict(self)


class ForgottenIds:
    """Tells which names are ids of the request, and what takes their place.

    A name that differs from an id only in its code points (Unicode NFC, NFD) is that id, unless the data has an example
    of that very name.

    Args:
        secret: The key of the request; None if it was destroyed.
        ids: The ids; None if the list was erased, and they are recognized by ``items``.
        items: The keyed digests of the ids in the ledger.
        others: All names of the data, as far as they are known.
        tokens: What took the place of ids that are not known any more.

    """

    def __init__(
        self,
        secret: bytes | None,
        ids: Iterable[str] | None,
        items: Iterable[str],
        *,
        others: Iterable[str] = (),
        tokens: Iterable[str] = (),
    ) -> None:
        self.secret = secret
        self.known = None if ids is None else frozenset(ids)
        self.items, self.tokens = frozenset(items), frozenset(tokens)
        self._forms = frozenset(unicodedata.normalize("NFC", one) for one in self.known or ())
        self._keyed = self.known is None or bool(self.tokens)
        self._twins = frozenset(one for one in others if one not in (self.known or ()) and self._is_twin(one))

    @staticmethod
    def of(private: PrivateFiles, row: Mapping[str, Any], others: Iterable[str] = ()) -> ForgottenIds:
        """The ids of a request, from its private files and its row in the ledger.

        Args:
            private: The private files of the desk.
            row: Its row.
            others: All names of the data.

        Raises:
            EffaceError: Neither its list nor its key is left: nobody can tell which ids they were.

        """
        kept, secret = private.forget_list(row["id"]), private.key(row["id"])
        if kept is None and secret is None:
            raise EffaceError(
                f"Nobody can tell any more which examples {row['id']} was about.",
                "Its list was erased and its key destroyed.",
                "Restore its key from a backup, if there is one.",
            )
        return ForgottenIds(secret, None if kept is None else kept.keys, json.loads(row["items"]), others=others)

    def among(self, names: Iterable[str]) -> set[str]:
        """The names that are ids of the request."""
        names = set(names)
        found = names & (self.known or frozenset())
        left = names - found - self._twins
        found |= left & self._forms
        found |= {one for one in left if not one.isascii() and unicodedata.normalize("NFC", one) in self._forms}
        if self._keyed:
            found |= {one for one in names - found if any(map(self._is_keyed, self._spellings(one)))}
        return found

    def _is_twin(self, name: str) -> bool:
        """Whether a name of the data could be taken for an id in other code points."""
        return unicodedata.normalize("NFC", name) in self._forms or (self._keyed and not name.isascii())

    def _spellings(self, name: str) -> list[str]:
        """A name, and the same in other code points; none of what is no text, since no id is like that."""
        if name.isascii():
            return [name]
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            return []
        forms = () if name in self._twins else ("NFC", "NFD")
        return list(dict.fromkeys([name, *(unicodedata.normalize(form, name) for form in forms)]))

    def _is_keyed(self, name: str) -> bool:
        """Whether the keyed digest of a name, or its token, is one of the request."""
        if self.secret is not None and self.tokens and self.token(name) in self.tokens:
            return True
        return self.known is None and hmac_digest(self.secret or b"", name) in self.items

    def token(self, name: str) -> str:
        """What takes the place of an id: nobody can tell whose it was once the key is destroyed."""
        if self.secret is None:
            raise EffaceError(
                "The ids cannot be replaced: the key of the request was destroyed.",
                "With it, the same id gets the same replacement in every file.",
                "Restore the key from a backup, or remove the files by hand.",
            )
        return f"{TOKEN}{hmac_digest(self.secret, f'token:{name}')[:24]}"

    def replaced(self, value: Any, found: Iterable[str]) -> Any:
        """A copy of a JSON value in which the given ids are replaced, also within sentences."""
        return _Pseudonyms(self, frozenset(found))(value)

    def redacted(self, text: str) -> str:
        """A text for the ledger, which nobody can erase: ids in it are left out."""
        if self.secret is not None:
            return str(self.replaced(text, self.known or ()))
        return "ids are left out" if any(one in text for one in self.known or ()) else text


def say_unsearched(place: Path, error: EffaceError | OSError, ids: ForgottenIds) -> Remains:
    """What is listed of a file or folder that could not be searched: a person has to look at it."""
    if isinstance(error, EffaceError):
        said = ids.redacted(f"{error.what} {error.why}".strip())
    else:
        said = error.strerror or type(error).__name__
    return Remains("file", str(place), "list", f"{UNSEARCHED} {said}")


class _Pseudonyms(Redactor):
    """Replaces ids by their tokens."""

    def __init__(self, ids: ForgottenIds, found: frozenset[str]) -> None:
        super().__init__(found, ids.secret or b"")
        self._token_of = ids.token

    def name(self, item: str) -> str:
        """The replacement of an id."""
        return self._token_of(item)
