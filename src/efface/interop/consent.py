"""Consent to unpickle a file: given by the person at the keyboard, now, for this file. It is never read from a file.

Unpickling can run any code. The person consents to the files named in the call, or to files with a certain SHA-256. A
run folder only records that a file was unpickled, and its digest.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from efface.errors import EffaceError
from efface.files import file_digest
from efface.interop.containers import read_json_sidecar, weights_file
from efface.interop.safe_load import UntrustedPickleError


@dataclass(frozen=True)
class Consent:
    """What the user has allowed to be unpickled."""

    named: bool = False
    """The files that the user names in this call."""
    digests: frozenset[str] = frozenset()
    """SHA-256 of further files, wherever their paths come from."""

    @classmethod
    def of(cls, trust_pickle: bool | None = None, trusted: Collection[str] | None = None) -> Self:
        """Build it from the settings of a call; a text that is no SHA-256 raises."""
        for one in trusted or ():
            if len(one) != 64 or set(one.lower()) - set("0123456789abcdef"):
                raise EffaceError(
                    f"'{one}' is not a SHA-256.",
                    "It has 64 hexadecimal digits.",
                    "Copy it from `sha256sum FILE`.",
                )
        return cls(bool(trust_pickle), frozenset(one.lower() for one in trusted or ()))

    def covers(self, path: Path, *, named: bool) -> bool:
        """Whether a checkpoint may be unpickled; ``named``: the user named it in this call."""
        if named and self.named:
            return True
        return bool(self.digests) and path.exists() and set(pickle_digests(path).values()) <= self.digests

    def explain(self, error: UntrustedPickleError, path: Path, source: str) -> EffaceError:
        """The error for a checkpoint that the user did not name; ``source``: what named it."""
        missing = [one for one in pickle_digests(path).values() if one not in self.digests]
        return EffaceError(
            error.what,
            f"{error.why} It is named by {source}, and what a file says is no consent.",
            f"If you trust {path} with the SHA-256 that it has now, add "
            f"{' '.join(f'--trust-pickle {one}' for one in missing)}",
        )


def pickle_digests(path: Path) -> dict[str, str]:
    """SHA-256 of the files of weights of a checkpoint that are not safetensors, by name."""
    found = weights_file(path)
    files = [] if found is None else [found]
    if found is not None and found.name.endswith(".index.json"):
        names = read_json_sidecar(found).get("weight_map")
        files = [found.parent / str(name) for name in dict.fromkeys(names.values())] if isinstance(names, dict) else []
    return {file.name: file_digest(file) for file in files if file.suffix != ".safetensors" and file.is_file()}
