"""The forgotten ids of a request, known from its list or by the keyed commitment in the ledger, and what holds them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from efface.desk.private import PrivateFiles
from efface.errors import EffaceError
from efface.reporting.redaction import Redactor, hmac_digest

TOKEN = "erased-"
"""How the name starts that takes the place of an id."""


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

    Args:
        secret: The key of the request; None if it was destroyed.
        ids: The ids; None if the list was erased, and they are recognized by ``items``.
        items: The keyed digests of the ids in the ledger.

    """

    def __init__(self, secret: bytes | None, ids: Iterable[str] | None, items: Iterable[str]) -> None:
        self.secret = secret
        self.known = None if ids is None else frozenset(ids)
        self.items = frozenset(items)

    @staticmethod
    def of(private: PrivateFiles, row: Mapping[str, Any]) -> ForgottenIds:
        """The ids of a request, from its private files and its row in the ledger.

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
        return ForgottenIds(secret, None if kept is None else kept.keys, json.loads(row["items"]))

    def among(self, names: Iterable[str]) -> set[str]:
        """The names that are ids of the request."""
        if self.known is not None:
            return set(self.known.intersection(names))
        secret = self.secret or b""
        return {one for one in names if hmac_digest(secret, one) in self.items}

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


class _Pseudonyms(Redactor):
    """Replaces ids by their tokens."""

    def __init__(self, ids: ForgottenIds, found: frozenset[str]) -> None:
        super().__init__(found, ids.secret or b"")
        self._token_of = ids.token

    def name(self, item: str) -> str:
        """The replacement of an id."""
        return self._token_of(item)
