"""Keep ids out of records: forgotten examples are stored as keyed digests.

A plain digest of an id would hide nothing, because ids can be guessed and hashed. Every id is therefore digested
with HMAC-SHA256 under a random secret that belongs to one record. The secret is stored next to the record, in
``items.key``, and never in it. With the key, an id can be checked without this package::

    printf '%s' ID | openssl dgst -sha256 -mac HMAC -macopt hexkey:$(cat items.key)
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal

from efface.errors import EffaceError
from efface.files import disk_errors
from efface.schema import RecordModel

KEY_FILE = "items.key"
SECRET_BYTES = 32
KEYED = "hmac-sha256:"
_TOKEN = re.compile(r"[^\s,;:'\"()\[\]{}=]+")
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_SELECTOR = re.compile(r"@keys:(.*)", re.DOTALL)


class Items(RecordModel):
    """The forgotten examples, as keyed digests (or as bare ids, if that was requested)."""

    scheme: Literal["hmac-sha256", "plain"] = "hmac-sha256"
    """``hmac-sha256``: ``values`` are HMAC-SHA256(secret, id in UTF-8), hexadecimal. ``plain``: bare ids."""
    count: int = 0
    """Number of examples."""
    key_digest: str = ""
    """SHA-256 of the secret: shows whether a key file belongs to this record, and reveals nothing else."""
    values: tuple[str, ...] = ()
    """Sorted, so that their order reveals nothing."""

    @staticmethod
    def of(ids: Iterable[str], secret: bytes | None) -> Items:
        """Digest ``ids`` under ``secret`` (bare ids if it is None). A repeated id raises."""
        names = [str(one) for one in ids]
        if len(set(names)) < len(names):
            raise EffaceError(
                f"{len(names) - len(set(names))} ids are in the request more than once.",
                "Every example can be forgotten only once.",
                "Remove the repeated ids.",
            )
        if secret is None:
            return Items(scheme="plain", count=len(names), values=tuple(sorted(names)))
        values = tuple(sorted(hmac_digest(secret, one) for one in names))
        return Items(count=len(names), key_digest=hashlib.sha256(secret).hexdigest(), values=values)

    def contains(self, item: str, secret: bytes | None) -> bool:
        """Whether ``item`` is one of the examples. A missing secret, or that of another record, raises."""
        if self.scheme == "plain":
            return item in self.values
        if secret is None or hashlib.sha256(secret).hexdigest() != self.key_digest:
            raise EffaceError(
                f"The key is {'missing' if secret is None else 'not the one of this record'}.",
                "The record holds keyed digests, which cannot be matched to examples without its key.",
                f"Use the {KEY_FILE} that was saved next to this record.",
            )
        return hmac_digest(secret, item) in self.values


def new_secret() -> bytes:
    """A fresh random secret."""
    return secrets.token_bytes(SECRET_BYTES)


def hmac_digest(secret: bytes, text: str) -> str:
    """HMAC-SHA256 of ``text`` (UTF-8) under ``secret``, hexadecimal."""
    return hmac.new(secret, text.encode("utf-8"), hashlib.sha256).hexdigest()


def write_key(folder: Path, secret: bytes) -> None:
    """Write the secret to ``items.key``, which is created readable by its owner only."""
    path = folder / KEY_FILE
    fresh = path.with_name(KEY_FILE + ".tmp")
    with disk_errors(path):
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secret.hex() + "\n")
        os.replace(fresh, path)


def read_key(path: Path) -> bytes:
    """Read the secret that :func:`write_key` wrote."""
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except FileNotFoundError:
        raise EffaceError(f"There is no key at {path}.", remedy=f"Pass the {KEY_FILE} of this record.") from None
    except (OSError, ValueError) as error:
        raise EffaceError(
            f"{path} cannot be read as a key.", f"It should be one line of hexadecimal: {error}"
        ) from error
    if len(secret) != SECRET_BYTES:
        raise EffaceError(
            f"{path} holds {len(secret)} bytes.", f"A key has {SECRET_BYTES}.", "Restore the key file from a backup."
        )
    return secret


class Redactor:
    """Replace bare ids in the text of a record (selectors, warnings, labels) by short keyed digests.

    Args:
        ids: Ids to replace.
        secret: Key of the digests.

    """

    def __init__(self, ids: Collection[str], secret: bytes) -> None:
        self.secret, self.ids = secret, {str(one) for one in ids}
        # In free text an id that looks like a number or a short word is ambiguous: it is replaced only if marked as id.
        self.distinctive_ids = {one for one in self.ids if len(one) > 2 and not one.isdigit()}
        self.ids_with_spaces = sorted(
            (one for one in self.distinctive_ids if not _TOKEN.fullmatch(one)), key=len, reverse=True
        )

    def name(self, item: str) -> str:
        """The replacement of an id: the start of its keyed digest."""
        return f"item:{hmac_digest(self.secret, item)[:12]}"

    def __call__(self, value: Any) -> Any:
        """A copy of ``value`` (of JSON types) with every id replaced."""
        if isinstance(value, str):
            return self.name(value) if value in self.ids else self.text(value)
        if isinstance(value, dict):
            return {key: self(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(one) for one in value]
        return value

    def text(self, text: str) -> str:
        """Replace ids in free text: as separate words, in quotes, or in a ``@keys:`` selector."""
        selector = _SELECTOR.search(text)
        if selector:
            keys = (one.strip() for one in selector.group(1).split(","))
            names = ",".join(self.name(one) if one in self.ids else one for one in keys)
            text = f"{text[: selector.start()]}@keys:{names}"
        for one in self.ids_with_spaces:
            text = text.replace(one, self.name(one))
        text = _QUOTED.sub(self._quoted, text)
        return _TOKEN.sub(self._token, text)

    def _quoted(self, found: re.Match[str]) -> str:
        inner = found.group(1) if found.group(1) is not None else found.group(2)
        return found.group().replace(inner, self.name(inner)) if inner in self.ids else found.group()

    def _token(self, found: re.Match[str]) -> str:
        word = found.group().rstrip(".!?")
        return found.group().replace(word, self.name(word)) if word in self.distinctive_ids else found.group()
