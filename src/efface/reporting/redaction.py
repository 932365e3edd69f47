"""Items: which examples a record is about, told only to the holder of a key.

A plain digest of an id would hide nothing: ids can be guessed and hashed. So every id is digested with
HMAC-SHA256 under a random secret of the record's own, which is kept in a file beside it (``items.key``),
never in it. Whoever holds the key can check an id without this package::

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
    """The examples to forget, as keyed digests (or as bare ids, where that was asked for)."""

    scheme: Literal["hmac-sha256", "plain"] = "hmac-sha256"
    """``hmac-sha256``: ``values`` are HMAC-SHA256(secret, id in UTF-8), hexadecimal. ``plain``: bare ids."""
    count: int = 0
    """How many there are."""
    key_digest: str = ""
    """SHA-256 of the secret: tells whether a key file belongs to this record, and nothing else."""
    values: tuple[str, ...] = ()
    """Sorted, so that their order says nothing."""

    @staticmethod
    def of(ids: Iterable[str], secret: bytes | None) -> Items:
        """The items for ``ids`` under ``secret``; bare ids where it is None. Raises if an id comes twice."""
        every = [str(one) for one in ids]
        if len(set(every)) < len(every):
            raise EffaceError(
                f"{len(every) - len(set(every))} ids are in the request more than once.",
                "Every example is forgotten once.",
                "Remove the repeated ids.",
            )
        if secret is None:
            return Items(scheme="plain", count=len(every), values=tuple(sorted(every)))
        values = tuple(sorted(hmac_digest(secret, one) for one in every))
        return Items(count=len(every), key_digest=hashlib.sha256(secret).hexdigest(), values=values)

    def contains(self, item: str, secret: bytes | None) -> bool:
        """Whether ``item`` is among them; raises where the secret is missing or another record's."""
        if self.scheme == "plain":
            return item in self.values
        if secret is None or hashlib.sha256(secret).hexdigest() != self.key_digest:
            raise EffaceError(
                f"The key is {'missing' if secret is None else 'not the one of this record'}.",
                "The record holds keyed digests: without its key nobody can tell which examples they are.",
                f"Use the {KEY_FILE} that was written beside this record.",
            )
        return hmac_digest(secret, item) in self.values


def new_secret() -> bytes:
    """A fresh random secret."""
    return secrets.token_bytes(SECRET_BYTES)


def hmac_digest(secret: bytes, text: str) -> str:
    """HMAC-SHA256 of ``text`` (UTF-8) under ``secret``, hexadecimal."""
    return hmac.new(secret, text.encode("utf-8"), hashlib.sha256).hexdigest()


def write_key(folder: Path, secret: bytes) -> None:
    """Write the secret into ``items.key``, readable by its owner alone from its first byte on."""
    path = folder / KEY_FILE
    fresh = path.with_name(KEY_FILE + ".tmp")
    with disk_errors(path):
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secret.hex() + "\n")
        os.replace(fresh, path)


def read_key(path: Path) -> bytes:
    """The secret that :func:`write_key` wrote."""
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except FileNotFoundError:
        raise EffaceError(f"There is no key at {path}.", remedy=f"Name the {KEY_FILE} of this record.") from None
    except (OSError, ValueError) as error:
        raise EffaceError(
            f"{path} cannot be read as a key.", f"It should be one line of hexadecimal: {error}"
        ) from error
    if len(secret) != SECRET_BYTES:
        raise EffaceError(f"{path} holds {len(secret)} bytes.", f"A key has {SECRET_BYTES}.", "Fetch it again.")
    return secret


class Redactor:
    """Takes bare ids out of everything else a record says: selectors, warnings, labels of figures."""

    def __init__(self, ids: Collection[str], secret: bytes) -> None:
        self.secret, self.ids = secret, {str(one) for one in ids}
        # An id that reads like a number or a short word is taken for one where nothing marks it as an id.
        self.distinctive_ids = {one for one in self.ids if len(one) > 2 and not one.isdigit()}
        self.ids_with_spaces = sorted(
            (one for one in self.distinctive_ids if not _TOKEN.fullmatch(one)), key=len, reverse=True
        )

    def name(self, item: str) -> str:
        """What stands in the place of an id: the start of its keyed digest."""
        return f"item:{hmac_digest(self.secret, item)[:12]}"

    def __call__(self, value: Any) -> Any:
        """``value`` (of JSON's types) with every id in it replaced."""
        if isinstance(value, str):
            return self.name(value) if value in self.ids else self.text(value)
        if isinstance(value, dict):
            return {key: self(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(one) for one in value]
        return value

    def text(self, text: str) -> str:
        """Free text: ids as words of their own, in quotes, or listed in a ``@keys:`` selector."""
        chosen = _SELECTOR.search(text)
        if chosen:
            listed = (one.strip() for one in chosen.group(1).split(","))
            names = ",".join(self.name(one) if one in self.ids else one for one in listed)
            text = f"{text[: chosen.start()]}@keys:{names}"
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
