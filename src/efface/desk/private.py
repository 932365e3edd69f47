"""What must never be in the ledger: the forget lists, who asked, and the keys of the commitments.

A desk keeps two private files for each request, both readable by their owner only:

    keys/ID.key     the secret under which the ledger commits to the request's examples
    lists/ID.json   who asked, and what is to be forgotten: a selector or ids, and the ids that it stands for

Without the list nobody knows what was asked; without the key nobody can find out whether an id was among them, not even
with a list of all ids. Both can be destroyed, and the chain of the ledger stays valid.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from efface.errors import EffaceError
from efface.files import make_folder, read_json, write_text
from efface.reporting.redaction import hmac_digest, new_secret, read_key
from efface.schema import FirstFormat, StoredModel

KEYS, LISTS = "keys", "lists"
_REMEDY = "Restore it from a backup."


class StoredForgetList(StoredModel):
    """The content of a ``lists/ID.json``."""

    format: FirstFormat
    forget: str | tuple[str, ...]
    asked_by: str = ""
    keys: tuple[str, ...] = Field(default=())
    notes: tuple[str, ...] = Field(default=())


@dataclass(frozen=True)
class ForgetList:
    """What a request asks for, as only the desk itself may know it."""

    forget: str | tuple[str, ...]
    """A selector such as ``@class:3``, or the ids that were listed."""
    asked_by: str = ""
    """Who asked: a name or an address."""
    keys: tuple[str, ...] = field(default=())
    """The ids of the training examples that it stands for; empty until it is planned."""
    notes: tuple[str, ...] = field(default=())
    """What the plan noted about them; it may name ids."""

    def planned(self, keys: tuple[str, ...], notes: tuple[str, ...]) -> ForgetList:
        """The list with the ids that were found, and what was noted about them."""
        return replace(self, keys=keys, notes=notes)

    def ids(self) -> list[str]:
        """Every id in it."""
        listed = () if isinstance(self.forget, str) else self.forget
        return list(dict.fromkeys([*listed, *self.keys]))

    def summary(self) -> str:
        """What is to be forgotten, without ids."""
        if isinstance(self.forget, str):
            return self.forget
        return f"{len(self.forget)} listed id{'s' if len(self.forget) != 1 else ''}"


def sync(path: Path) -> None:
    """Make sure that a file and its entry in the folder are on the disk."""
    for one, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY)):
        descriptor = os.open(one, flags)
        try:
            os.fsync(descriptor)
        except OSError:
            if one.is_file():
                raise  # some file systems cannot sync a folder; a file they can
        finally:
            os.close(descriptor)


class PrivateFiles:
    """The private files of a desk.

    Args:
        home: The folder of the desk.

    """

    def __init__(self, home: Path) -> None:
        self.home = Path(home)

    def key_path(self, request: str) -> Path:
        """Where the key of a request is."""
        return self.home / KEYS / f"{request}.key"

    def list_path(self, request: str) -> Path:
        """Where the list of a request is."""
        return self.home / LISTS / f"{request}.json"

    def new_key(self, request: str) -> bytes:
        """Draw a key for a request, and keep it."""
        secret, path = new_secret(), self.key_path(request)
        self._folder(path.parent)
        write_text(path, secret.hex() + "\n", private=True)
        sync(path)
        return secret

    def key(self, request: str) -> bytes | None:
        """The key of a request; None if it was destroyed.

        Raises:
            EffaceError: The file is damaged, or other users can read it.

        """
        path = self.key_path(request)
        if not path.exists():
            return None
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise EffaceError(
                f"Other users of this machine can read {path}.",
                f"Its mode is {mode:04o}, and with the key the ids in the ledger can be guessed.",
                f"Run chmod 600 {path}.",
            )
        return read_key(path)

    def destroy_key(self, request: str) -> bool:
        """Destroy the key of a request; returns whether there was one."""
        return _destroy(self.key_path(request))

    def write_list(self, request: str, content: ForgetList) -> None:
        """Keep the list of a request; it is on the disk when this returns."""
        path = self.list_path(request)
        self._folder(path.parent)
        asked = content.forget if isinstance(content.forget, str) else list(content.forget)
        stored = {"format": 1, "forget": asked, "asked_by": content.asked_by, "keys": list(content.keys)}
        stored["notes"] = list(content.notes)
        write_text(path, json.dumps(stored, ensure_ascii=False, indent=0) + "\n", private=True)
        sync(path)

    def forget_list(self, request: str) -> ForgetList | None:
        """The list of a request; None if it was erased."""
        path = self.list_path(request)
        if not path.exists():
            return None
        stored: dict[str, Any] = read_json(path, "forget list", schema=StoredForgetList, remedy=_REMEDY)
        asked = stored["forget"]
        return ForgetList(asked if isinstance(asked, str) else tuple(asked), stored["asked_by"], tuple(stored["keys"]))

    def require_list(self, request: str) -> ForgetList:
        """The list of a request; one that was erased raises."""
        found = self.forget_list(request)
        if found is None:
            raise EffaceError(
                f"The forget list of {request} is not there: {self.list_path(request)}.",
                "It was erased, or the folder of the desk is not the one that the request was added in.",
                "Name the folder of the desk: --desk DIR.",
            )
        return found

    def destroy_list(self, request: str) -> bool:
        """Destroy the list of a request; returns whether there was one."""
        return _destroy(self.list_path(request))

    def _folder(self, folder: Path) -> None:
        make_folder(folder, "Name another folder for the desk: --desk DIR.")
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:
            folder.chmod(0o700)


def commit(secret: bytes, content: str) -> str:
    """The keyed commitment to a text."""
    return hmac_digest(secret, content)


def _destroy(path: Path) -> bool:
    """Overwrite a file with zeros and remove it; returns whether there was one.

    It is renamed first, so that nobody reads zeros; what a cut left under that name is removed by the next call.
    """
    going = path.with_name(f".{path.name}.going")
    if path.exists():
        path.replace(going)
    try:
        size = going.stat().st_size
    except FileNotFoundError:
        return False
    with open(going, "r+b") as file:
        file.write(b"\0" * size)
        file.flush()
        os.fsync(file.fileno())
    going.unlink()
    return True
